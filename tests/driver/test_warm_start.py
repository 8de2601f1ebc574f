"""What starts when, before anyone plays: a run that only takes notes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from configs.schema.run import (
    EngineConfig,
    LearnerConfig,
    PolicyConfig,
    RunConfig,
    StageConfig,
    WarmStartConfig,
)
from driver import warm_start

TAUGHT = WarmStartConfig(protocol="p", roles=["judge"], steps=1)


def policies(**changes: PolicyConfig) -> dict[str, PolicyConfig]:
    cpu, here = EngineConfig(device="cpu"), LearnerConfig(device="cpu")
    found = {
        "judge": PolicyConfig(engine=cpu, learner=here, warm_start=TAUGHT),
        "debater": PolicyConfig(engine=cpu, learner=here, trained=True),
        "consultant": PolicyConfig(engine=cpu, learner=here, trained=True),
        "heir": PolicyConfig(engine=cpu, learner=here, trained=True, init_from="judge"),
        "chance": PolicyConfig(kind="uniform"),
    }
    return found | changes


class Notes:
    """Stands for a Run: what was started, in order, and on which weights."""

    def __init__(self, **changes: PolicyConfig) -> None:
        stages = {
            "debate": StageConfig(roles={"a": "debater", "b": "debater", "judge": "judge", "c": "chance"}),
            "consultancy": StageConfig(roles={"consultant": "consultant", "heir": "heir", "judge": "judge"}),
        }
        self.config = RunConfig(policies=policies(**changes), stages=stages)
        self.models = {name: f"{name}/init" for name, policy in self.config.policies.items() if policy.kind == "lm"}
        self.started: list[str] = []

    async def learner(self, name: str) -> None:
        self.started.append(f"learner {name}")
        await asyncio.sleep(0)

    async def serve(self, names: Iterable[str]) -> None:
        if named := [name for name in names if name in self.models]:
            self.started.append(f"engines {' '.join(named)} on {' '.join(self.models[name] for name in named)}")
        await asyncio.sleep(0)

    def trained_in(self, stage: StageConfig) -> list[str]:
        return [name for name in dict.fromkeys(stage.roles.values()) if self.config.policies[name].trained]


@pytest.fixture(autouse=True)
def lessons(monkeypatch: pytest.MonkeyPatch) -> None:
    async def taught(run: Any, name: str) -> None:
        run.started.append(f"lessons {name}")
        for _ in range(50):  # long lessons: all else is up before they end
            await asyncio.sleep(0)
        run.models[name] = f"{name}/warm"

    monkeypatch.setattr(warm_start, "warm_start", taught)
    monkeypatch.setattr(warm_start, "on_gpu", lambda engine: engine.device == "cuda")
    monkeypatch.setattr(warm_start, "resolve_device", lambda learner: learner.device)


def opened(**changes: PolicyConfig) -> Notes:
    run = Notes(**changes)
    asyncio.run(warm_start.warm_starts(run))  # type: ignore[arg-type]
    return run


def test_what_needs_no_lessons_starts_one_by_one_while_others_are_taught() -> None:
    run = opened()
    assert run.started == [
        "learner judge",
        "lessons judge",
        "engines debater on debater/init",
        "learner debater",
        "engines consultant on consultant/init",
        "learner consultant",
        "engines judge on judge/warm",
    ]
    assert run.models["heir"] == "judge/warm", "starts later, on what the judge has learned"


def test_where_nobody_is_taught_only_the_first_stage_starts() -> None:
    run = opened(judge=PolicyConfig(engine=EngineConfig(device="cpu")))
    assert run.started == ["engines debater judge on debater/init judge/init"]


def test_a_gpu_is_left_to_the_lessons() -> None:
    """The engines of the first stage start at once, as they would without lessons; nothing else does."""
    gpu = EngineConfig(device="cuda")
    learner = LearnerConfig(device="cuda")
    judge = PolicyConfig(engine=gpu, learner=learner, warm_start=TAUGHT)
    debater = PolicyConfig(engine=gpu, learner=learner, trained=True)
    consultant = PolicyConfig(engine=gpu, learner=learner, trained=True)
    run = opened(judge=judge, debater=debater, consultant=consultant)
    assert run.started == ["lessons judge", "engines debater on debater/init"]


def test_engines_that_are_shared_do_not_start_before_their_base() -> None:
    guest = PolicyConfig(engine=EngineConfig(device="cpu", share="judge"), learner=LearnerConfig(device="cpu"))
    run = opened(debater=guest)
    assert not any(event.startswith("engines judge") for event in run.started)


def test_a_config_that_only_measures_starts_nothing() -> None:
    assert warm_start.players(RunConfig()) == warm_start.unwarmed(RunConfig()) == []
