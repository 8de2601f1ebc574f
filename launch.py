"""The command line: train, eval, plan, replay, protocol, play, doctor.

    python launch.py train configs/pixel_debate.yaml name=first stages.debate.steps=50
    python launch.py replay runs/first

Everything heavy is imported by the command that needs it: `plan`, `replay` and `--help` answer at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from driver.run_folder import UsageError, continue_folder, fresh_folder

if TYPE_CHECKING:
    from rich.console import Console

ROOT = Path(__file__).resolve().parent
OURS = frozenset(
    {"launch", "__main__", "driver", "reporting"}
    | {"actors", "configs", "learners", "protocols", "tasks"}
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 2 for a user's mistake, 1 for what doctor found."""
    args = parse(argv)
    try:
        check_imports()
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except ValueError as error:
        if type(error).__module__.partition(".")[0] not in OURS:
            raise  # a defect of ours, not a user's mistake: show where
        print(f"{error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, `head` for example, has seen enough
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; options and `key=value` may stand in any order."""
    top = parser()
    args, rest = top.parse_known_args(argv)
    if any(text.startswith("-") for text in rest) or (rest and not hasattr(args, "overrides")):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


def parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    about = "Train language models by debate and other games."
    top = argparse.ArgumentParser(prog="launch.py", description=about)
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    train = commands.add_parser("train", help="run a configuration")
    _config(train, "YAML file, or with --resume a run directory")
    train.add_argument("--resume", action="store_true", help="continue from the run's last checkpoint")
    train.set_defaults(run=run_train)

    evaluate = commands.add_parser("eval", help="measure the arms of a finished run again")
    evaluate.add_argument("folder", metavar="RUN", type=Path, help="run directory")
    evaluate.add_argument("--best", action="store_true", help="its best checkpoint (track.best), not its last")
    _overrides(evaluate)
    evaluate.set_defaults(run=run_eval)

    plan = commands.add_parser("plan", help="check a configuration and show what it would start")
    _config(plan)
    plan.set_defaults(run=run_plan)

    replay = commands.add_parser("replay", help="read the transcript of an episode")
    replay.add_argument("folder", metavar="RUN", type=Path, help="run directory")
    replay.add_argument("episode", metavar="EPISODE", nargs="?", help="its id, or the beginning of it")
    replay.add_argument("--seat", help="as this seat saw it")
    replay.set_defaults(run=run_replay)

    _play_command(commands.add_parser("play", help="take a seat yourself"))
    _protocol_commands(commands.add_parser("protocol", help="look at a protocol file, or check it"))

    doctor = commands.add_parser("doctor", help="check the installation and the machine")
    doctor.add_argument(
        "config", metavar="CONFIG", type=Path, nargs="?", help="also its remote policies' keys"
    )
    doctor.set_defaults(run=run_doctor)
    return top


def _play_command(play: argparse.ArgumentParser) -> None:
    play.add_argument("protocol", metavar="PROTOCOL", help="protocol YAML, or its name in CONFIG")
    take = "seat to take; several times for several seats"
    play.add_argument("--as", dest="seats", metavar="SEAT", action="append", required=True, help=take)
    play.add_argument(
        "--config", metavar="CONFIG", type=Path, help="where tasks and remote opponents come from"
    )
    play.add_argument("--question", help="the task, in place of one from CONFIG or a made-up one")
    play.add_argument("--choice", dest="choices", action="append", help="a competing answer; once for each")
    play.add_argument("--answer", help="the right one of them")
    play.add_argument(
        "--out", metavar="RUN", type=Path, default=Path("runs/human"), help="where it is recorded"
    )
    play.set_defaults(run=run_play)


def _protocol_commands(protocol: argparse.ArgumentParser) -> None:
    commands = protocol.add_subparsers(metavar="COMMAND", required=True)
    show = commands.add_parser("show", help="turn order, who sees what, turns and tokens")
    show.add_argument("file", metavar="FILE", type=Path, help="protocol YAML")
    show.add_argument("--svg", metavar="OUT", type=Path, help="also write the picture to this file")
    show.set_defaults(run=run_protocol_show)
    check = commands.add_parser("check", help="does it keep the contract? 1 if not")
    check.add_argument("file", metavar="FILE", type=Path, help="protocol YAML")
    check.set_defaults(run=run_protocol_check)


def _config(command: argparse.ArgumentParser, what: str = "YAML file") -> None:
    command.add_argument("config", metavar="CONFIG", type=Path, help=what)
    _overrides(command)


def _overrides(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "overrides", metavar="key=value", nargs="*", help="settings that override the file's"
    )
    command.add_argument("--address", help="running Ray cluster (default: a local one is started)")


def run_train(args: argparse.Namespace) -> int:
    """Train, from the start or (--resume) from the last checkpoint. A run directory stands for its own config."""
    from configs.load import to_yaml

    saved = args.config / "config.yaml"
    if args.config.is_dir() and not (args.resume and saved.is_file()):
        raise UsageError(f"{args.config} is a folder: name a YAML file, or a run directory with --resume")
    loaded, _ = _load(saved if args.config.is_dir() else args.config, args)
    folder = args.config if args.config.is_dir() else Path(loaded.config.run_dir)
    text = to_yaml(loaded.tree)
    from driver import experiment

    if args.resume:
        continue_folder(folder, text)
    else:
        moved = fresh_folder(folder, text)
        if moved:
            print(f"{folder} held an earlier run: it is now {moved} (to continue a run: --resume)")
    return int(experiment.train(loaded.config, folder, resume=args.resume) or 0)


def run_eval(args: argparse.Namespace) -> int:
    """Measure a run's arms again, with the weights it ended with."""
    saved = args.folder / "config.yaml"
    if not saved.is_file():
        raise UsageError(f"{args.folder} is no run directory: it has no config.yaml")
    loaded, _ = _load(saved, args)
    from driver import experiment

    return int(experiment.evaluate(loaded.config, args.folder, args.best) or 0)


def run_plan(args: argparse.Namespace) -> int:
    """Show what a configuration would start; refuse what cannot work."""
    from driver.preflight.plan import make_plan, render

    loaded, machine = _load(args.config, args)
    _console().print(render(make_plan(loaded.config, loaded.protocols, machine)))
    return 0


def run_replay(args: argparse.Namespace) -> int:
    """Print the transcript of an episode."""
    if not (args.folder / "episodes.jsonl").is_file():
        raise UsageError(f"{args.folder} is no run directory: it has no episodes.jsonl")
    from reporting.replay import show

    show(args.folder, args.episode, args.seat)
    return 0


def run_doctor(args: argparse.Namespace) -> int:
    """Report on installation and machine; 1 if something keeps runs from working."""
    from rich.console import Console
    from rich.table import Table

    from configs.machine import Machine
    from driver.preflight.doctor import examine

    policies = None
    if args.config is not None:
        args.overrides, args.address = [], ""
        policies = _load(args.config, args)[0].config.policies
    findings = examine(Path("runs").resolve(), Machine.here(), policies)
    table = Table("what", "", "found")
    style = {"ok": "green", "note": "yellow", "fault": "bold red"}
    for finding in findings:
        table.add_row(finding.what, f"[{style[finding.level]}]{finding.level}[/]", finding.text)
    Console().print(table)
    return int(any(finding.level == "fault" for finding in findings))


def run_play(args: argparse.Namespace) -> int:
    """A person takes a seat."""
    from driver.seat.play import Wish, play

    loaded = None
    if args.config is not None:
        args.overrides, args.address = [], ""
        loaded = _load(args.config, args)[0]
    wish = Wish(args.question, tuple(args.choices or ()), args.answer)
    return play(args.protocol, loaded, tuple(args.seats), wish, args.out)


def run_protocol_show(args: argparse.Namespace) -> int:
    """Print what a protocol does, found by driving it."""
    from configs.load import load_protocol
    from configs.reading.raw import read_raw
    from reporting.sketch.sketch import sketch
    from reporting.sketch.view import render, svg

    found = sketch(load_protocol(args.file), read_raw(args.file))
    _console().print(render(found))
    if args.svg is not None:
        args.svg.parent.mkdir(parents=True, exist_ok=True)
        args.svg.write_text(svg(found), encoding="utf-8")
        print(f"wrote {args.svg}")
    return 0


def run_protocol_check(args: argparse.Namespace) -> int:
    """Does a protocol file keep the contract? One line per property; 1 if one does not hold."""
    from configs.load import load_protocol
    from configs.reading.raw import read_raw
    from protocols.contract.properties import examine, report

    findings = examine(load_protocol(args.file), read_raw(args.file))
    print(report(findings))
    return int(any(finding.holds is False for finding in findings))


def _load(path: Path, args: argparse.Namespace):  # type: ignore[no-untyped-def]
    """(loaded config, this machine). With --address the hardware is elsewhere and is not checked."""
    from configs.checks.known import Known
    from configs.load import load
    from configs.machine import Machine
    from configs.methods import KINDS, check_learner, idle
    from learners.credit.samples import GROUP_FIELDS

    overrides = list(args.overrides) + ([f"cluster.address={args.address}"] if args.address else [])
    machine = Machine.here()
    known = Known(KINDS, tuple(GROUP_FIELDS), idle, check_learner)
    return load(path, overrides, machine=machine, known=known), machine


def _console() -> Console:
    """As wide as the terminal; wide enough for tables where there is none."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def check_imports() -> None:
    """The packages imported must be the ones beside this file: another checkout may be installed."""
    import protocols

    found = Path(protocols.__file__ or "").resolve().parent
    if found != ROOT / "protocols":
        raise UsageError(f"`protocols` was imported from {found}, not from {ROOT}: make install in {ROOT}")


if __name__ == "__main__":
    sys.exit(main())
