"""What the driver keeps between batches, without any actor."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from configs.load import load
from driver.run import Run

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
    (tmp_path / "run.json").write_text(json.dumps(run.state()))
    resumed = make()
    asyncio.run(resumed.restore(tmp_path, learners=False))
    assert resumed.baselines == run.baselines


def test_checkpoints_from_before_there_were_baselines_still_load(make: Any, tmp_path: Path) -> None:
    state = make().state()
    del state["baselines"]
    (tmp_path / "run.json").write_text(json.dumps(state))
    resumed = make()
    asyncio.run(resumed.restore(tmp_path, learners=False))
    assert resumed.baselines == {}
