"""Shipped protocols of every kind, and one that is not ours, played and learned from by real tiny models: one engine
per policy, one learner."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import yaml

from actors.concurrency import gather_or_cancel
from actors.rollout.loop import play_all, training_task
from actors.system import start_ray
from configs.load import load
from configs.schema.run import ClusterConfig
from driver.loop import Trainer
from driver.run import Run
from protocols.types import Episode

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "configs" / "examples" / "protocols.yaml"
STAGES = [*yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))["stages"], "elsewhere"]
ELSEWHERE = """
# Three debaters, two of them a team that plans in private; a cross-examiner who may stop; a panel of three judges.
kind: phased
seats: {ann: debater, ben: debater, cid: debater, eve: examiner, j1: strict, j2: mild, j3: mild}
sides: {ann: 0, ben: 0, cid: 1}
zero_sum: true
prompts:
  debater: {opening: "{{ question }} You argue for {{ claim }}, not {{ other }}.", heard: "{{ quoted }}"}
  examiner: {opening: "{{ question }}"}
phases:
  - {name: strategy, seats: [ann, ben], visible_to: [ann, ben], prompt: "Agree on a plan:"}
  - {name: open, seats: [ann, ben, cid], order: simultaneous, prompt: "It is your turn:"}
  - {name: cross, seats: [eve, ann, cid], repeat: 2, stop: {seat: eve, says: DONE}, prompt: "It is your turn:"}
judge:
  panel: [j1, j2, j3]
  view: transcript
  when: end
  prompt: "{{ question }} A: {{ a }} B: {{ b }} {{ transcript }} Your answer:"
  entry: "{{ label }}: {{ quoted }}"
rewards: [{name: win_probability}]
"""
"""Lies outside of the repository."""
PLAYED_ELSEWHERE = (
    "{protocol: elsewhere, roles: {debater: speaker, examiner: speaker, strict: reader, mild: reader}, steps: 1, "
    "plays_per_step: 8, repeats: 4}"
)
ARMS = list(yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))["eval"]["arms"])
TOLERANCE = 1e-3
"""Nats between vLLM and the learner, both in float32 on CPU."""
T = TypeVar("T")

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


class Rig:
    """What a run of the example has, without its ledger and its screen: plays and learner steps on demand."""

    def __init__(self, folder: Path) -> None:
        self.loop = asyncio.new_event_loop()
        own = folder / "elsewhere.yaml"
        own.write_text(ELSEWHERE, encoding="utf-8")
        added = [f"protocols.elsewhere={own}", f"stages.elsewhere={PLAYED_ELSEWHERE}"]
        self.config = load(EXAMPLE, [f"run_dir={folder}", *added]).config
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
    learned = rig(Trainer(rig.run).learn("speaker", [episode for play in plays for episode in play], 0, 1.0))
    assert "empty" not in learned, "all rewards of every group were equal"
    assert learned["sampler_gap_max"] < TOLERANCE and learned["version"] == before + 1


@pytest.mark.parametrize("name", ARMS)
def test_it_is_played_on_held_out_tasks(rig: Rig, name: str) -> None:
    plays = rig.measure(name)
    assert [play[0].status for play in plays] == ["ok"] * len(plays), plays[0][0].outcome.reason
    assert all(0.0 <= (play[0].outcome.score or 0.0) <= 1.0 for play in plays)
