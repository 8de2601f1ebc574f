"""What the driver keeps between batches, without any actor."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from configs.load import load
from driver.run import Run, RunState, StageProgress, TooOld

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"


@pytest.fixture
def make(tmp_path: Path) -> Any:
    config = load(CONFIGS / "smoke.yaml", [f"run_dir={tmp_path}"]).config

    def _make() -> Run:
        tracker: Any = None
        ledger: Any = None
        return Run(config, tracker, ledger)

    return _make


def test_baselines_are_in_checkpoints(make: Any, tmp_path: Path) -> None:
    run = make()
    run.baselines = {"debater": {"debate / debater / side 0 place 0 / debater": 0.125}}
    run.state().write(tmp_path)
    resumed = make()
    asyncio.run(resumed.restore(tmp_path, learners=False))
    assert resumed.baselines == run.baselines


def test_checkpoints_from_before_there_were_baselines_still_load(make: Any, tmp_path: Path) -> None:
    state = asdict(make().state())
    del state["baselines"]
    (tmp_path / "run.json").write_text(json.dumps(state))
    resumed = make()
    asyncio.run(resumed.restore(tmp_path, learners=False))
    assert resumed.baselines == {}


def test_a_checkpoint_that_lacks_what_was_always_there_is_too_old(make: Any, tmp_path: Path) -> None:
    state = asdict(make().state())
    del state["versions"]
    (tmp_path / "run.json").write_text(json.dumps(state))
    with pytest.raises(TooOld, match=r"run\.json was written by a version that is too old"):
        asyncio.run(make().restore(tmp_path, learners=False))


def test_a_stage_begins_with_the_archive_of_an_earlier_one_once(make: Any) -> None:
    run = make()
    first, second = run.config.stages
    run.config.stages[second].archive_of = first
    run.archives[first].add("1 2", "sort", 0.5)
    run.begin(second)
    run.archives[first].add("3 4", "sort", 0.5)
    run.begin(second)  # as after --resume
    assert [entry.proposal for entry in run.archives[second].within(0, 1)] == ["1 2"]


def test_state_comes_back_as_it_was(make: Any, tmp_path: Path) -> None:
    run = make()
    run.progress["debate"] = StageProgress(step=3, group=7, again=[5], updates_before=2)
    run.state().write(tmp_path)
    assert RunState.read(tmp_path) == run.state()
