"""A run directory belongs to one live process, and stands on its own wherever it lies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import launch
from configs.load import load
from driver.run import MissingModel, Run, RunState, located, stored
from driver.run_folder import LOCK, RunInUse, locked, set_aside

ROOT = Path(__file__).resolve().parent.parent.parent
SMOKE = ROOT / "configs" / "smoke.yaml"
HOLD = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from driver.run_folder import locked
with locked(Path({folder!r})):
    {extra}
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path, extra: str = "pass") -> subprocess.Popen[str]:
    """Another process that holds the lock of `folder`."""
    code = HOLD.format(root=str(ROOT), folder=str(folder), extra=extra)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize(
    "command",
    [["train", SMOKE], ["train", SMOKE, "--resume"], ["train", "RUN", "--resume"], ["eval", "RUN"]],
    ids=["same name", "resume", "resume by folder", "eval"],
)
def test_a_live_run_is_refused_with_one_line_and_left_alone(
    command: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(f"extends: [{SMOKE}]\n")
    (folder / "episodes.jsonl").write_text("")
    for name in ("train", "evaluate"):
        monkeypatch.setattr(f"driver.experiment.{name}", lambda *args, **named: pytest.fail("started"))
    live = holder(folder)
    before = sorted((path.name, path.read_bytes()) for path in folder.iterdir())
    arguments = [str(folder) if one == "RUN" else str(one) for one in command]
    override = [f"run_dir={folder}"] if "RUN" not in command else []
    try:
        assert launch.main([*arguments, *override]) == 2
    finally:
        live.kill()
        live.wait()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and f"is being written by another process (process {live.pid}" in said[0]
    assert sorted((path.name, path.read_bytes()) for path in folder.iterdir()) == before
    assert not (tmp_path / "run.1").exists()


def test_a_killed_run_lets_go_even_where_its_children_live_on(tmp_path: Path) -> None:
    child = "child = os.fork(); child or (time.sleep(30), os._exit(0)); (Path({!r})).write_text(str(child))"
    live = holder(tmp_path, child.format(str(tmp_path / "child")))
    os.kill(live.pid, signal.SIGKILL)
    live.wait()
    orphan = int((tmp_path / "child").read_text())
    try:
        os.kill(orphan, 0)  # it lives
        with locked(tmp_path):
            assert f"process {os.getpid()} on " in (tmp_path / LOCK).read_text()
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_of_two_that_set_a_run_aside_one_gives_way(tmp_path: Path) -> None:
    """The folder that the lock was asked for may be gone when the lock is had."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "episodes.jsonl").write_text("")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from pathlib import Path\nfrom driver.run_folder import set_aside, RunInUse\n"
        f"try:\n    print(set_aside(Path({str(folder)!r})))\nexcept RunInUse:\n    print('in use')\n"
    )
    several = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    said = sorted(one.communicate()[0].strip() for one in several)
    assert [text for text in said if text not in ("None", "in use")] == [str(tmp_path / "run.1")]
    assert not folder.exists() and set_aside(folder) is None


def test_a_folder_that_was_renamed_meanwhile_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from driver import run_folder

    folder = tmp_path / "run"
    real = run_folder.fcntl.lockf

    def renamed(*arguments: Any) -> None:
        folder.rename(tmp_path / "moved")
        real(*arguments)

    monkeypatch.setattr(run_folder.fcntl, "lockf", renamed)
    with pytest.raises(RunInUse, match="was moved away by another process"), locked(folder):
        pass


def test_models_inside_a_run_are_named_relative_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "runs" / "old", tmp_path / "elsewhere"
    inside = old / "models" / "m" / "s"
    inside.mkdir(parents=True)
    assert stored(str(inside), old) == "${run_dir}/models/m/s"
    assert stored("org/name", old) == "org/name"
    assert stored(str(tmp_path / "base"), old) == str(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    assert stored("runs/old/models/m/s", Path("runs/old")) == "${run_dir}/models/m/s"
    old.rename(new)
    assert located("${run_dir}/models/m/s", new) == str(new / "models" / "m" / "s")
    assert located("runs/old/models/m/s", new, "runs/old") == str(new / "models" / "m" / "s")  # an older version's
    assert located("org/name", new, "runs/old") == "org/name"
    with pytest.raises(MissingModel, match=r"models/gone is missing: the run in .*elsewhere needs this model"):
        located("${run_dir}/models/gone", new)


def test_run_json_holds_no_path_of_the_machine(tmp_path: Path) -> None:
    nothing: Any = None
    config = load(SMOKE, [f"run_dir={tmp_path / 'a'}"]).config
    run = Run(config, nothing, nothing, tmp_path / "b")
    for name in config.policies:
        (tmp_path / "b" / "models" / name).mkdir(parents=True)
        run.models[name] = str(tmp_path / "b" / "models" / name)
    run.state().write(tmp_path)
    assert str(tmp_path) not in (tmp_path / "run.json").read_text()
    assert set(RunState.read(tmp_path).models.values()) == {f"${{run_dir}}/models/{name}" for name in config.policies}
    assert json.loads((tmp_path / "run.json").read_text())["bases"] == {}
