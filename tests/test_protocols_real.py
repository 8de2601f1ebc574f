"""Shipped protocols of every kind played and learned from by real tiny models: one engine per policy, one learner."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from actors.rollouts import play_all, training_task
from actors.runner import gather_or_cancel
from actors.system import start_ray
from configs.load import load
from configs.schema import ClusterConfig
from loop import Run
from protocols.types import Episode

EXAMPLE = Path(__file__).resolve().parent.parent / "configs" / "examples" / "protocols.yaml"
STAGES = list(yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))["stages"])
ARMS = list(yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))["eval"]["arms"])
TOLERANCE = 1e-3
"""Nats between vLLM and the learner, both in float32 on CPU."""
T = TypeVar("T")

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


class Rig:
    """What a run of the example has, without its ledger and its screen: plays and learner steps on demand."""

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        self.config = load(EXAMPLE, [f"run_dir={folder}"]).config
        nothing: Any = None
        self.run = Run(self.config, nothing, nothing)
        self(self.run.prepare())
        self(gather_or_cancel([self.run.serve(["speaker", "reader"]), self.run.learner("speaker")]))

    def __call__(self, awaitable: Awaitable[T]) -> T:
        async def bounded() -> T:
            return await asyncio.wait_for(awaitable, 300)

        return self.loop.run_until_complete(bounded())

    def play(self, name: str) -> list[list[Episode]]:
        """The plays of one learner step of a stage."""
        stage = self.config.stages[name]
        protocol = self.run.protocols[stage.protocol]
        groups = [
            training_task(self.run.source, protocol, random.Random(f"{name}/{i}"))
            for i in range(stage.plays_per_step // stage.repeats)
        ]
        tasks = [task for task in groups for _ in range(stage.repeats)]
        return self(play_all(protocol, tasks, self.run.system.players(stage.roles), name, seed=1))

    def measure(self, name: str) -> list[list[Episode]]:
        arm = self.config.eval.arms[name]
        tasks = self.run.source.derived_heldout(arm.episodes, 0)
        players = self.run.system.players(arm.roles)
        return self(play_all(self.run.protocols[arm.protocol], tasks, players, name, seed=1))


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    import ray

    start_ray(ClusterConfig(), actors=6)
    made = None
    try:
        made = Rig(tmp_path_factory.mktemp("protocols"))
        yield made
    finally:
        if made is not None:
            made.run.dismiss("speaker")
            made.run.system.stop()
            made.loop.close()
        ray.shutdown()


@pytest.mark.parametrize("name", STAGES)
def test_it_is_played_and_learned_from(rig: Rig, name: str) -> None:
    stage = rig.config.stages[name]
    plays = rig.play(name)
    assert [play[0].status for play in plays] == ["ok"] * stage.plays_per_step, plays[0][0].outcome.reason
    turns = [turn for play in plays for episode in play for turn in episode.turns]
    assert {turn.role for turn in turns} == set(rig.run.protocols[stage.protocol].roles().values())
    assert all(turn.policy == stage.roles[turn.role] and turn.trace is not None for turn in turns)
    assert any(reward.value for play in plays for reward in play[0].outcome.rewards)
    before = rig.run.system.served["speaker"].version
    learned = rig(rig.run.learn("speaker", [episode for play in plays for episode in play], 0, 1.0))
    assert "empty" not in learned, "all rewards of every group were equal"
    assert learned["sampler_gap_max"] < TOLERANCE and learned["version"] == before + 1


@pytest.mark.parametrize("name", ARMS)
def test_it_is_played_on_held_out_tasks(rig: Rig, name: str) -> None:
    plays = rig.measure(name)
    assert [play[0].status for play in plays] == ["ok"] * len(plays), plays[0][0].outcome.reason
    assert all(0.0 <= (play[0].outcome.score or 0.0) <= 1.0 for play in plays)
