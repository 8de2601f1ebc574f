"""The run directory: make it, set an earlier one aside, continue one, and log in it why a run failed."""

from __future__ import annotations

import fcntl
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from driver import checkpoint
from driver.checkpoint import CHECKPOINTS
from protocols.errors import UserError

LOCK = "run.lock"
"""The file that a live run holds a lock on. It says which process that is."""


class UsageError(UserError):
    """The command line asks for something that cannot be done."""


class RunInUse(UserError):
    """Another process is writing to this run directory."""


class RunFailed(Exception):
    """A run ended by a failure that is not the user's mistake. The message names the log that has the traceback."""


@contextmanager
def failures_logged(folder: Path, command: str, resume: str = "") -> Iterator[None]:
    """Runs the block for `command` ("train"). An exception that is not a UserError goes with its traceback to
    `folder`/logs/error.log and becomes a RunFailed with a short message: what failed, where the log is and, where
    there is a checkpoint, the command `resume`. A UserError that a Ray actor raised is raised as it was there."""
    try:
        yield
    except UserError as error:
        raise getattr(error, "cause", error) from None  # Ray's own wrapper says more than a user wants to read
    except Exception as error:
        log = folder / "logs" / "error.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {command}\n")
            traceback.print_exception(error, file=file)
        lines = [f"{command} failed: {_summary(error)}", f"  traceback: {log}"]
        if resume and checkpoint.newest_valid(folder / CHECKPOINTS) is not None:
            lines.append(f"  to continue from the last checkpoint: {resume}")
        raise RunFailed("\n".join(lines)) from error


def _summary(error: Exception) -> str:
    """The class and the first line of an exception; of one in a Ray actor, those of its cause."""
    error = getattr(error, "cause", error)
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the run directory `folder`, which is made where there is none, for this process alone. Raises RunInUse
    where another process holds it. The kernel lets go of it when the process ends, however it ends: a POSIX record
    lock, which children do not inherit, so that none of them keeps a dead driver's run locked."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise RunInUse(f"{folder} is being written by another process ({file.read().strip() or 'just started'}): "
                           "wait for it, or choose another name= or run_dir=") from None  # fmt: skip
        if not _same_file(folder / LOCK, file.fileno()):
            raise RunInUse(f"{folder} was moved away by another process: try again")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield


def set_aside(folder: Path) -> Path | None:
    """Moves a run directory that holds episodes to `folder`.1, .2, ...: returns where to. Raises RunInUse where its
    run is alive."""
    if not (folder / "episodes.jsonl").exists():
        return None
    with locked(folder):
        return folder.rename(_unused(folder, lambda number: f"{folder.name}.{number}"))


def fresh_folder(folder: Path, config_yaml: str) -> None:
    """Makes the run directory of a new run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config_yaml, encoding="utf-8")


def check_run(folder: Path) -> None:
    """Raises UsageError unless there is a run to continue."""
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"nothing to resume: {folder} is no run directory")


def continue_folder(folder: Path, config_yaml: str) -> None:
    """Keeps the first configuration of a run that goes on where this one differs."""
    saved = folder / "config.yaml"
    before = saved.read_text(encoding="utf-8")
    if before != config_yaml:
        older = _unused(saved, lambda number: f"config.{number}.yaml")
        older.write_text(before, encoding="utf-8")
        saved.write_text(config_yaml, encoding="utf-8")
        print(f"the configuration differs from the one this run had: that one is kept as {older}")


def _same_file(path: Path, descriptor: int) -> bool:
    """Whether `path` still names the open file: another process may have renamed its folder."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _unused(path: Path, name: Callable[[int], str]) -> Path:
    """The first of name(1), name(2), ... that is not taken beside `path`."""
    return next(p for number in count(1) if not (p := path.with_name(name(number))).exists())
