"""Checkpoints that are whole or absent.

`with writing(root, "step_00010") as tmp:` fills a hidden folder beside the final one. On leaving, every
file is flushed to disk and listed with its sha256 in `manifest.json`, the folder is renamed, and
`root/latest` (a text file with the name) is replaced. A crash at any moment leaves the older checkpoints
and `latest` as they were. Resume from `newest_valid(root)`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from protocols.errors import UserError

CHECKPOINTS = "checkpoints"
"""The folder of a run directory that holds them."""

MANIFEST = "manifest.json"
LATEST = "latest"
BEST = "best.json"


class CheckpointCorrupt(UserError):
    """A checkpoint is not what was written. The message names the file."""


@contextmanager
def writing(root: Path | str, name: str, keep: int = 0) -> Iterator[Path]:
    """A folder to fill, published as `root/name` when the block ends without an exception.

    `keep` > 0: afterwards only that many newest checkpoints stay, and the best (`mark_best`). Names sort by their
    numbers (`step_9` before `step_10`). An existing `root/name` is replaced.
    """
    root = Path(root)
    if not name or name == LATEST or name.startswith(".") or Path(name).name != name:
        raise ValueError(f"checkpoint name {name!r}: must be one plain folder name")
    root.mkdir(parents=True, exist_ok=True)
    tmp = root / f".{name}.tmp"
    shutil.rmtree(tmp, ignore_errors=True)
    tmp.mkdir()
    try:
        yield tmp
    except BaseException:
        shutil.rmtree(tmp, ignore_errors=True)
        raise
    _seal(tmp)
    final = root / name
    old = root / f".{name}.old"
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
    os.rename(tmp, final)
    _sync(root)
    _point(root, name)
    shutil.rmtree(old, ignore_errors=True)
    if keep > 0:
        kept = {name, best(root)}
        for extra in checkpoints(root)[:-keep]:
            if extra.name not in kept:
                shutil.rmtree(extra)


def mark_best(root: Path | str, name: str, score: float) -> bool:
    """Notes in `root/best.json` that checkpoint `name` scored `score`, unless one that is still there scored as much
    or more. Says whether it is the best now. A score that is no number never is."""
    root = Path(root)
    entry = {"name": name, "score": score}
    if not math.isfinite(score) or not (root / name).is_dir():
        return False
    before = _best(root)
    if before is not None and before["name"] != name and before["score"] >= score:
        return False
    _replace(root, BEST, json.dumps(entry))
    return True


def best(root: Path | str) -> str | None:
    """Name of the checkpoint that scored best; None where none was marked."""
    entry = _best(Path(root))
    return None if entry is None else str(entry["name"])


def _best(root: Path) -> dict[str, Any] | None:
    try:
        entry = json.loads((root / BEST).read_text())
        return entry if (root / entry["name"]).is_dir() and math.isfinite(entry["score"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def verify(folder: Path | str) -> None:
    """Raises CheckpointCorrupt, naming the file, unless `folder` holds exactly what its manifest lists."""
    folder = Path(folder)
    try:
        listed = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointCorrupt(f"{folder / MANIFEST}: unreadable ({error})") from error
    present = {path.relative_to(folder).as_posix() for path in _files(folder)}
    for name, entry in listed.items():
        if name not in present:
            raise CheckpointCorrupt(f"{folder / name}: missing")
        size = (folder / name).stat().st_size
        if size != entry["bytes"]:
            raise CheckpointCorrupt(f"{folder / name}: {size} bytes, not {entry['bytes']}")
        if _digest(folder / name) != entry["sha256"]:
            raise CheckpointCorrupt(f"{folder / name}: contents changed since it was written")
    for name in sorted(present - set(listed)):
        raise CheckpointCorrupt(f"{folder / name}: not in the manifest")


def checkpoints(root: Path | str) -> list[Path]:
    """Published checkpoints, oldest first by the numbers in their names. Not verified."""
    root = Path(root)
    if not root.is_dir():
        return []
    folders = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return sorted(folders, key=lambda path: _natural(path.name))


def newest_valid(root: Path | str) -> Path | None:
    """What `latest` names when that verifies, else the newest checkpoint that does; None without any."""
    root = Path(root)
    candidates = checkpoints(root)[::-1]
    if (root / LATEST).is_file():
        named = root / (root / LATEST).read_text().strip()
        candidates = [path for path in candidates if path == named] + [p for p in candidates if p != named]
    for candidate in candidates:
        try:
            verify(candidate)
        except CheckpointCorrupt:
            continue
        return candidate
    return None


def _seal(folder: Path) -> None:
    files = {}
    for path in _files(folder):
        _sync(path)
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"files": files}, indent=1, sort_keys=True))
    _sync(manifest)
    for path in folder.rglob("*"):
        if path.is_dir():
            _sync(path)
    _sync(folder)


def _point(root: Path, name: str) -> None:
    _replace(root, LATEST, name + "\n")


def _replace(root: Path, name: str, text: str) -> None:
    tmp = root / f".{name}.tmp"
    tmp.write_text(text)
    _sync(tmp)
    os.replace(tmp, root / name)
    _sync(root)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Asks the disk to hold what was written (a folder: its list of names)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = [part for part in re.split(r"(\d+)", name) if part]
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]
