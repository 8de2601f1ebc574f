"""The run directory: made, set aside, taken up again."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path


class UsageError(ValueError):
    """The command line asks for something that cannot be done."""


def fresh_folder(folder: Path, config_yaml: str) -> Path | None:
    """Make the run directory. One that holds episodes is moved to `folder`.1, .2, ...: returns where to."""
    moved = None
    if (folder / "episodes.jsonl").exists():
        moved = folder.rename(_unused(folder, lambda number: f"{folder.name}.{number}"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(config_yaml, encoding="utf-8")
    return moved


def continue_folder(folder: Path, config_yaml: str) -> None:
    """Check that there is a run to continue; keep its first configuration when this one differs."""
    saved = folder / "config.yaml"
    if not saved.is_file():
        raise UsageError(f"nothing to resume: {folder} is no run directory")
    before = saved.read_text(encoding="utf-8")
    if before != config_yaml:
        older = _unused(saved, lambda number: f"config.{number}.yaml")
        older.write_text(before, encoding="utf-8")
        saved.write_text(config_yaml, encoding="utf-8")
        print(f"the configuration differs from the one this run had: that one is kept as {older}")


def _unused(path: Path, name: Callable[[int], str]) -> Path:
    """The first of name(1), name(2), ... that is not taken beside `path`."""
    return next(p for number in count(1) if not (p := path.with_name(name(number))).exists())
