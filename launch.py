"""The command line: train, eval, plan, replay, protocol, play, init, export, doctor.

    python launch.py train configs/pixel_debate.yaml name=first stages.debate.steps=50
    python launch.py replay runs/first

Arguments only: what the commands do is in `driver/commands.py`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from driver import commands
from driver.run_folder import RunFailed, UsageError
from protocols.errors import UserError

ROOT = Path(__file__).resolve().parent


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 2 for a user's mistake, 1 for a run that failed, or for what doctor or
    a check found. A defect anywhere else keeps its traceback."""
    args = parse(argv)
    try:
        check_imports()
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except (UserError, RunFailed) as error:
        print(error, file=sys.stderr)
        return 1 if isinstance(error, RunFailed) else 2
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
    subparsers = top.add_subparsers(metavar="COMMAND", required=True)

    train = subparsers.add_parser("train", help="run a configuration")
    _config(train, "YAML file, or with --resume a run directory")
    train.add_argument("--resume", action="store_true", help="continue from the run's last checkpoint")
    train.set_defaults(run=lambda a: commands.train(a.config, a.overrides, a.address, a.resume))

    evaluate = subparsers.add_parser("eval", help="measure the arms of a finished run again")
    evaluate.add_argument("folder", metavar="RUN", type=Path, help="run directory")
    evaluate.add_argument(
        "--best", action="store_true", help="its best checkpoint (track.best), not its last"
    )
    _overrides(evaluate)
    evaluate.set_defaults(run=lambda a: commands.evaluate(a.folder, a.overrides, a.address, a.best))

    plan = subparsers.add_parser("plan", help="check a configuration and show what it would start")
    _config(plan)
    plan.set_defaults(run=lambda a: commands.plan(a.config, a.overrides, a.address))

    replay = subparsers.add_parser("replay", help="read the transcript of an episode")
    replay.add_argument("folder", metavar="RUN", type=Path, help="run directory")
    replay.add_argument("episode", metavar="EPISODE", nargs="?", help="its id, or the beginning of it")
    replay.add_argument("--seat", help="as this seat saw it")
    replay.set_defaults(run=lambda a: commands.replay(a.folder, a.episode, a.seat))

    _play_command(subparsers.add_parser("play", help="take a seat yourself"))
    _protocol_commands(subparsers.add_parser("protocol", help="look at a protocol file, or check it"))

    init = subparsers.add_parser("init", help="write a configuration for a file of questions")
    init.add_argument("questions", metavar="QUESTIONS", type=Path, help="JSONL, CSV or Parquet file")
    init.add_argument("--judge", metavar="MODEL", required=True, help="folder, or name on the hub")
    init.add_argument("--debater", metavar="MODEL", required=True, help="folder, or name on the hub")
    init.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("debate.yaml"), help="default: debate.yaml"
    )
    init.set_defaults(run=lambda a: commands.init(a.questions, a.judge, a.debater, a.out))

    _export_command(subparsers.add_parser("export", help="write a run's episodes as a data set"))

    doctor = subparsers.add_parser("doctor", help="check the installation and the machine")
    doctor.add_argument(
        "config", metavar="CONFIG", type=Path, nargs="?", help="also its remote policies' keys"
    )
    doctor.set_defaults(run=lambda a: commands.doctor(a.config))
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
    play.set_defaults(
        run=lambda a: commands.play(
            a.protocol, a.seats, a.config, a.question, a.choices or (), a.answer, a.out
        )
    )


def _export_command(export: argparse.ArgumentParser) -> None:
    export.add_argument("folder", metavar="RUN", type=Path, help="run directory")
    kinds = ("episodes", "sft", "preferences", "jsonl")
    export.add_argument("--as", dest="kind", choices=kinds, default="episodes", help="what a row is")
    export.add_argument("--format", dest="form", choices=("jsonl", "parquet"), default="jsonl")
    export.add_argument("--out", metavar="FOLDER", type=Path, help="default: RUN/export/KIND")
    export.add_argument("--policy", default="", help="only what this policy wrote (sft, preferences)")
    export.add_argument("--protocol", default="", help="only episodes of this protocol")
    export.add_argument("--least-reward", type=float, help="sft: only seats that were paid at least this")
    export.set_defaults(
        run=lambda a: commands.export(a.folder, a.kind, a.form, a.out, a.policy, a.protocol, a.least_reward)
    )


def _protocol_commands(protocol: argparse.ArgumentParser) -> None:
    subparsers = protocol.add_subparsers(metavar="COMMAND", required=True)
    show = subparsers.add_parser("show", help="turn order, who sees what, turns and tokens")
    show.add_argument("file", metavar="FILE", type=Path, help="protocol YAML")
    show.add_argument("--svg", metavar="OUT", type=Path, help="also write the picture to this file")
    show.set_defaults(run=lambda a: commands.protocol_show(a.file, a.svg))
    check = subparsers.add_parser("check", help="does it keep the contract? 1 if not")
    check.add_argument("file", metavar="FILE", type=Path, help="protocol YAML")
    check.set_defaults(run=lambda a: commands.protocol_check(a.file))


def _config(command: argparse.ArgumentParser, what: str = "YAML file") -> None:
    command.add_argument("config", metavar="CONFIG", type=Path, help=what)
    _overrides(command)


def _overrides(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "overrides", metavar="key=value", nargs="*", help="settings that override the file's"
    )
    command.add_argument("--address", help="running Ray cluster (default: a local one is started)")


def check_imports() -> None:
    """The packages imported must be the ones beside this file: another checkout may be installed."""
    import protocols

    found = Path(protocols.__file__ or "").resolve().parent
    if found != ROOT / "protocols":
        raise UsageError(f"`protocols` was imported from {found}, not from {ROOT}: make install in {ROOT}")


if __name__ == "__main__":
    sys.exit(main())
