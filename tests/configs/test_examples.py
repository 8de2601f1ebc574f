"""The example configs are sound, and their protocols can be played on their tasks by players without a model."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from actors.rollout.loop import training_task
from configs.load import load, load_task_source
from configs.machine import Machine
from protocols.contract.drive import Scripted, drive

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "configs" / "examples"
FILES = [path for path in sorted(EXAMPLES.glob("*.yaml")) if path.stem != "tiny"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_example_is_sound_and_its_stages_can_be_played(path: Path) -> None:
    loaded = load(path, machine=Machine(cpus=2, memory=16 * 2**30))
    source = load_task_source(loaded.config.tasks)
    for name, stage in loaded.config.stages.items():
        protocol = loaded.protocols[stage.protocol]
        task = training_task(source, protocol, random.Random(name))
        trace = drive(protocol, task, 0, Scripted(0))
        assert trace.outcome.status == "ok", (name, trace.outcome.reason)
    for name, arm in loaded.config.eval.arms.items():
        (task,) = source.derived_heldout(1, 0)
        trace = drive(loaded.protocols[arm.protocol], task, 0, Scripted(0))
        assert trace.outcome.score is not None, name
