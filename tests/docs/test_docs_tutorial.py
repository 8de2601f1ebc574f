"""The files of docs/tutorial.md are sound: the debate keeps the contract, and the run can be planned."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import launch
from tests.house import ROOT

TEXT = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tutorial's files and the configs that they extend."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name, body in re.findall(r"```yaml\n# (mine/\S+)\n(.*?)```", TEXT, re.S):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(body)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_debate_keeps_the_contract(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["protocol", "show", "mine/debate.yaml", "--svg", "mine/debate.svg"]) == 0
    assert launch.main(["protocol", "check", "mine/debate.yaml"]) == 0
    assert "FAILS" not in capsys.readouterr().out
    assert (checkout / "mine" / "debate.svg").exists()


def test_the_run_can_be_planned(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["plan", "mine/run.yaml"]) == 0
    assert "debater 4" in capsys.readouterr().out
