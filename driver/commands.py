"""What each command of `launch.py` does. Returns its exit code.

Everything heavy is imported by the command that needs it: `plan`, `replay` and `--help` answer at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from driver.run_folder import (
    UsageError,
    check_run,
    continue_folder,
    failures_logged,
    fresh_folder,
    locked,
    set_aside,
)

if TYPE_CHECKING:
    from rich.console import Console

    from configs.load import Loaded


def train(config: Path, overrides: Sequence[str] = (), address: str | None = None, resume: bool = False) -> int:
    """Train from the start or, with `resume`, from the last checkpoint. `config`: a YAML file or, with `resume`, a run
    directory, which brings its own configuration. Raises UserError, and RunFailed for any other failure."""
    from configs.load import to_yaml

    if resume and config.name == "config.yaml" and (config.parent / "checkpoints").is_dir():
        config = config.parent  # the run that the file belongs to, wherever it has been moved
    saved = config / "config.yaml"
    if config.is_dir() and not (resume and saved.is_file()):
        raise UsageError(f"{config} is a folder: name a YAML file, or a run directory with --resume")
    loaded = load(saved if config.is_dir() else config, overrides, address)
    folder = config if config.is_dir() else Path(loaded.config.run_dir)
    text = to_yaml(loaded.tree)
    from driver import experiment

    if resume:
        check_run(folder)
    elif moved := set_aside(folder):
        print(f"{folder} held an earlier run: it is now {moved} (to continue a run: --resume)")
    with locked(folder):
        (continue_folder if resume else fresh_folder)(folder, text)
        with failures_logged(folder, "train", f"python launch.py train {folder} --resume"):
            return experiment.train(loaded.config, folder, resume=resume)


def evaluate(folder: Path, overrides: Sequence[str] = (), address: str | None = None, best: bool = False) -> int:
    """Measure a run's arms again with the weights it ended with or, with `best`, its best ones."""
    saved = folder / "config.yaml"
    if not saved.is_file():
        raise UsageError(f"{folder} is no run directory: it has no config.yaml")
    loaded = load(saved, overrides, address)
    from driver import experiment

    with locked(folder), failures_logged(folder, "eval"):
        return experiment.evaluate(loaded.config, folder, best)


def plan(config: Path, overrides: Sequence[str] = (), address: str | None = None) -> int:
    """Show what a configuration would start; refuse what cannot work."""
    from configs.machine import Machine
    from driver.preflight.plan import make_plan, render

    loaded = load(config, overrides, address)
    _console().print(render(make_plan(loaded.config, loaded.protocols, Machine.here())))
    return 0


def replay(folder: Path, episode: str | None = None, seat: str | None = None) -> int:
    """Print the transcript of an episode."""
    if not (folder / "episodes.jsonl").is_file():
        raise UsageError(f"{folder} is no run directory: it has no episodes.jsonl")
    from reporting.replay import show

    show(folder, episode, seat)
    return 0


def init(questions: Path, judge: str, debater: str, out: Path) -> int:
    """Write a starter configuration."""
    from driver.preflight.starter import init as write

    for line in write(questions, judge, debater, out):
        print(f"  guessed  {line}")
    print(f"wrote {out}; next: python launch.py plan {out}")
    return 0


def export(
    folder: Path, kind: str, form: str, out: Path | None, policy: str, protocol: str, least_reward: float | None
) -> int:
    """Write a run's episodes as a data set."""
    from reporting.export import Wanted, export as write

    to = out or folder / "export" / kind
    counts = write(folder, to, Wanted(kind, policy, protocol, least_reward), form)
    print(f"wrote {counts.rows} rows of {counts.episodes} episodes to {to / f'data.{form}'}")
    return 0


def doctor(config: Path | None = None) -> int:
    """Report on installation and machine; 1 if something keeps runs from working."""
    from rich.console import Console
    from rich.table import Table

    from configs.machine import Machine
    from driver.preflight.doctor import examine

    policies = None if config is None else load(config).config.policies
    findings = examine(Path("runs").resolve(), Machine.here(), policies)
    table = Table("what", "", "found")
    style = {"ok": "green", "note": "yellow", "fault": "bold red"}
    for finding in findings:
        table.add_row(finding.what, f"[{style[finding.level]}]{finding.level}[/]", finding.text)
    Console().print(table)
    return int(any(finding.level == "fault" for finding in findings))


def play(
    protocol: str, seats: Sequence[str], config: Path | None, question: str | None, choices: Sequence[str],
    answer: str | None, out: Path,
) -> int:  # fmt: skip
    """A person takes seats of a protocol."""
    from driver.seat.play import Wish, play

    loaded = None if config is None else load(config)
    return play(protocol, loaded, tuple(seats), Wish(question, tuple(choices), answer), out)


def protocol_show(file: Path, svg_file: Path | None = None) -> int:
    """Print what a protocol does, found by driving it."""
    from configs.load import load_protocol
    from configs.reading.raw import read_raw
    from reporting.sketch.sketch import sketch
    from reporting.sketch.view import render, svg

    picture = sketch(load_protocol(file), read_raw(file))
    _console().print(render(picture))
    if svg_file is not None:
        svg_file.parent.mkdir(parents=True, exist_ok=True)
        svg_file.write_text(svg(picture), encoding="utf-8")
        print(f"wrote {svg_file}")
    return 0


def protocol_check(file: Path) -> int:
    """Does a protocol file keep the contract? One line per property; 1 if one does not hold."""
    from configs.load import load_protocol
    from configs.reading.raw import read_raw
    from protocols.contract.properties import examine, report

    findings = examine(load_protocol(file), read_raw(file))
    print(report(findings))
    return int(any(finding.holds is False for finding in findings))


def load(path: Path, overrides: Sequence[str] = (), address: str | None = None) -> Loaded:
    """A checked configuration. With `address` the hardware is elsewhere and is not checked. Raises ConfigErrors."""
    import learners  # noqa: F401  registers the methods that a config can name
    from configs.load import load
    from configs.machine import Machine

    overrides = [*overrides, *([f"cluster.address={address}"] if address else [])]
    return load(path, overrides, machine=Machine.here())


def _console() -> Console:
    """As wide as the terminal; wide enough for tables where there is none."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)
