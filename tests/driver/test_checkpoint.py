"""Checkpoints are whole or absent, whatever goes wrong on the way."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from driver import checkpoint
from driver.checkpoint import CheckpointCorrupt, checkpoints, newest_valid, verify, writing

ROOT = Path(__file__).resolve().parent.parent.parent


def write(root: Path, name: str, text: str = "weights", keep: int = 0) -> Path:
    with writing(root, name, keep) as tmp:
        (tmp / "policy").mkdir()
        (tmp / "policy" / "model.bin").write_text(text)
        (tmp / "loop.json").write_text(json.dumps({"name": name}))
    return root / name


def test_round_trip(tmp_path: Path) -> None:
    folder = write(tmp_path, "step_1")
    verify(folder)
    assert (folder / "policy" / "model.bin").read_text() == "weights"
    assert newest_valid(tmp_path) == folder
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "add", "manifest", "no manifest"])
def test_damage_is_found_and_named(tmp_path: Path, damage: str) -> None:
    write(tmp_path, "step_1")
    folder = write(tmp_path, "step_2")
    victim = folder / "policy" / "model.bin"
    if damage == "flip":
        victim.write_text("weightz")
    elif damage == "truncate":
        victim.write_text("weight")
    elif damage == "remove":
        victim.unlink()
    elif damage == "add":
        victim = folder / "stray"
        victim.write_text("")
    else:
        victim = folder / checkpoint.MANIFEST
        victim.unlink() if damage == "no manifest" else victim.write_text("{")
    with pytest.raises(CheckpointCorrupt, match=str(victim.name)):
        verify(folder)
    assert newest_valid(tmp_path) == tmp_path / "step_1"


def test_an_exception_leaves_what_was_there(tmp_path: Path) -> None:
    folder = write(tmp_path, "step_1")
    with pytest.raises(RuntimeError, match="disk full"), writing(tmp_path, "step_2") as tmp:
        (tmp / "half").write_text("x")
        raise RuntimeError("disk full")
    assert checkpoints(tmp_path) == [folder] and newest_valid(tmp_path) == folder
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoint.LATEST, "step_1"]


@pytest.mark.parametrize("moment", ["_seal", "_point"])
def test_a_process_that_dies_leaves_a_valid_one(tmp_path: Path, moment: str) -> None:
    """Killed before the rename and between the rename and `latest`."""
    old = write(tmp_path, "step_9")
    script = (
        "import os, sys; from driver import checkpoint\n"
        f"checkpoint.{moment} = lambda *a: os._exit(9)\n"
        "with checkpoint.writing(sys.argv[1], 'step_10') as tmp: (tmp / 'x').write_text('new')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], env=environment).returncode == 9
    assert newest_valid(tmp_path) == old
    write(tmp_path, "step_10")
    assert newest_valid(tmp_path) == tmp_path / "step_10"


def test_keeps_the_newest_by_number(tmp_path: Path) -> None:
    for step in (1, 9, 10):
        write(tmp_path, f"step_{step}", keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_9", "step_10"]


def test_the_one_just_written_is_never_pruned(tmp_path: Path) -> None:
    write(tmp_path, "step_50")
    write(tmp_path, "step_7", keep=1)
    assert newest_valid(tmp_path) == tmp_path / "step_7"


def test_writing_a_name_again_replaces_it(tmp_path: Path) -> None:
    write(tmp_path, "step_1", "old")
    folder = write(tmp_path, "step_1", "new")
    verify(folder)
    assert (folder / "policy" / "model.bin").read_text() == "new"
    assert [path.name for path in checkpoints(tmp_path)] == ["step_1"]


def test_latest_that_names_nothing_falls_back(tmp_path: Path) -> None:
    folder = write(tmp_path, "step_1")
    (tmp_path / checkpoint.LATEST).write_text("step_2\n")
    assert newest_valid(tmp_path) == folder
    assert newest_valid(tmp_path / "nowhere") is None


@pytest.mark.parametrize("name", ["", "latest", ".hidden", "a/b", ".."])
def test_bad_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="plain folder name"), writing(tmp_path, name):
        pass


def test_error_survives_pickling() -> None:
    assert str(pickle.loads(pickle.dumps(CheckpointCorrupt("a: missing")))) == "a: missing"


def test_the_best_stays_beside_the_newest(tmp_path: Path) -> None:
    scores = {1: 0.5, 2: 0.9, 3: 0.7, 4: float("nan"), 5: 0.9, 6: 0.8}
    for step, score in scores.items():
        write(tmp_path, f"step_{step}", keep=2)
        assert checkpoint.mark_best(tmp_path, f"step_{step}", score) == (step in (1, 2)), step
    assert checkpoint.best(tmp_path) == "step_2"
    assert [path.name for path in checkpoints(tmp_path)] == ["step_2", "step_5", "step_6"]
    assert newest_valid(tmp_path) == tmp_path / "step_6"
    write(tmp_path, "step_7", keep=2)
    assert checkpoint.mark_best(tmp_path, "step_7", 0.95)
    write(tmp_path, "step_8", keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step_7", "step_8"]


def test_a_best_that_is_gone_or_unreadable_is_none(tmp_path: Path) -> None:
    assert checkpoint.best(tmp_path / "nowhere") is None and not checkpoint.mark_best(tmp_path, "step_1", 1.0)
    write(tmp_path, "step_1")
    for text in ("", "{", "[]", '{"name": "step_9", "score": 1}', '{"name": "step_1", "score": "x"}'):
        (tmp_path / checkpoint.BEST).write_text(text)
        assert checkpoint.best(tmp_path) is None, text
    assert checkpoint.mark_best(tmp_path, "step_1", 0.0) and checkpoint.best(tmp_path) == "step_1"
