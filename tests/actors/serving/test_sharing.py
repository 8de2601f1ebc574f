"""Policies on one engine: what the config may say, what each sees of the router, what engines get. Without engines:
tests/actors/engine/test_engine_lora.py has one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.serving.lane import Lane
from actors.serving.messages import GenRequest
from actors.serving.router import Router
from actors.system import ServedPolicy, System
from configs.load import load
from configs.machine import Machine, needs
from configs.policies import adapter_of, apart, group_of, learner_of, with_adapters
from configs.reading.errors import ConfigErrors
from configs.schema.run import (
    EngineConfig,
    LearnerConfig,
    LoraConfig,
    ModelConfig,
    PolicyConfig,
    RunConfig,
    StageConfig,
)
from driver.run import serve, settle
from tests.support.fake_engine import FakeEngine, Revival

SMOKE = Path(__file__).resolve().parent.parent.parent.parent / "configs" / "smoke.yaml"
LAPTOP = Machine(2, 64 * 2**30)


def policy(share: str = "", rank: int = 0, **settings: Any) -> PolicyConfig:
    """One that is trained where it has a rank."""
    learner = LearnerConfig(lora=LoraConfig(rank=rank) if rank else None)
    return PolicyConfig(engine=EngineConfig(share=share), trained=rank > 0, learner=learner, **settings)


POLICIES = {"judge": policy(), "alice": policy("judge", 4), "bob": policy("judge", 12), "other": policy("", 8)}


def test_who_is_served_by_whom_and_with_what_room() -> None:
    assert group_of(POLICIES, "judge") == ["judge", "alice", "bob"] and group_of(POLICIES, "other") == []
    assert [adapter_of(POLICIES, name) for name in (*POLICIES, "past.0")] == ["", "alice", "bob", "", ""]
    found = with_adapters(POLICIES, "judge", EngineConfig(extra={"seed": 3}))
    assert found.extra == {"enable_lora": True, "max_loras": 3, "max_lora_rank": 16, "seed": 3}
    assert with_adapters(POLICIES, "other", EngineConfig()) == EngineConfig()
    parted = apart({**POLICIES, "judge": PolicyConfig(engine=EngineConfig(replicas=3))})
    assert {name: one.engine.replicas for name, one in parted.items()} == {"judge": 3, "alice": 3, "bob": 3, "other": 1}
    assert not any(one.engine.share for one in parted.values())


# ---- the config ----------------------------------------------------------------------------------------

def problems(policies: dict[str, PolicyConfig], stages: dict[str, Any] | None = None) -> dict[str, str]:
    from configs.checks.sharing import sharing_problems

    run = SimpleNamespace(policies=policies, stages=stages or {})
    return {".".join(map(str, path)): f"{message} ({valid})" for path, message, valid in sharing_problems(run)}  # type: ignore[arg-type]


def test_sound_groups_have_no_problem() -> None:
    assert problems(POLICIES) == {}
    warm = {"base": policy(warm_start=SimpleNamespace()), "alice": policy("base", 2, init_from="base"),
            "bob": policy("base", 8, init_from="base")}  # fmt: skip
    assert problems(warm) == {}
    both = {"alice": policy("", 4), "bob": policy("alice", 4)}
    stage = StageConfig(roles={"a": "alice", "b": "bob"}, train=[])
    assert problems(both, {"one": stage, "other": StageConfig(roles={"a": "judge"}, train=[])}) == {}


@pytest.mark.parametrize(
    ("changes", "key", "message"),
    [
        ({"bob": policy("nobody", 4)}, "bob.engine.share", r"no policy 'nobody' \(judge, other"),
        ({"bob": policy("bob", 4)}, "bob.engine.share", "own engines anyway"),
        ({"bob": policy("alice", 4)}, "bob.engine.share", "'alice' shares engines itself"),
        ({"judge": PolicyConfig(kind="uniform")}, "bob.engine.share", r"'judge' is of kind uniform: others cannot"),
        ({"bob": PolicyConfig(kind="past", of=["other"], engine=EngineConfig(share="judge"))}, "bob.engine.share",
         "kind past has no adapter"),
        ({"bob": policy("judge", 4, model=ModelConfig(layers=3))}, "bob.model", "another model than 'judge'"),
        ({"bob": policy("judge", 4, init_from="other")}, "bob.init_from", "other weights than 'judge'"),
        ({"bob": policy("judge")}, "bob.engine.share", "are the same policy .*one policy for the roles"),
        ({"bob": PolicyConfig(engine=EngineConfig(share="judge"), trained=True)}, "bob.learner.lora", "trains all"),
        ({"judge": PolicyConfig(trained=True)}, "judge.learner.lora", "'judge' trains all weights"),
        ({"bob": policy("judge", 600)}, "bob.learner.lora.rank", r"up to rank 512 .*600 \(1 to 512"),
        ({"bob": policy("judge", 4, warm_start=SimpleNamespace())}, "bob.warm_start", "merged into the base"),
    ],
)  # fmt: skip
def test_groups_that_cannot_be_are_refused(changes: dict[str, PolicyConfig], key: str, message: str) -> None:
    import re

    found = problems({**POLICIES, **changes})
    assert re.search(message, found[f"policies.{key}"]), found


def test_merged_pushes_and_second_stages_are_refused() -> None:
    merged = policy("judge", 4)
    merged.learner.lora = LoraConfig(push="merged")
    assert "not replaced (adapter)" in problems({**POLICIES, "bob": merged})["policies.bob.learner.lora.push"]
    stages = {name: StageConfig(roles={"a": "alice"}, train=[]) for name in ("one", "two")}
    assert "'alice' is trained in 2 stages" in problems(POLICIES, stages)["stages.two.train"]
    stages["two"].train = ["bob"]
    assert problems(POLICIES, stages) == {}


def learner(share: str = "", rank: int = 4, **settings: Any) -> PolicyConfig:
    """Trained, with a place in the learner of another."""
    return PolicyConfig(trained=True, learner=LearnerConfig(lora=LoraConfig(rank), share=share), **settings)


TOGETHER = {"alice": learner(), "bob": learner("alice", 8), "judge": policy()}
BOTH = {"one": StageConfig(roles={"a": "alice", "b": "bob"})}


def test_learners_on_one_base_are_one_process_with_the_settings_of_the_first() -> None:
    assert problems(TOGETHER, BOTH) == {}
    host = LearnerConfig(ranks=2, threads=3, zero_stage=2, lr=0.5, lora=LoraConfig(4))
    guest = learner_of({**TOGETHER, "alice": PolicyConfig(learner=host)}, "bob")
    assert (guest.ranks, guest.threads, guest.zero_stage, guest.lr) == (2, 3, 2, LearnerConfig().lr)
    run = RunConfig(policies=TOGETHER, stages=BOTH, tasks=SimpleNamespace())  # type: ignore[arg-type]
    assert [need.policy for need in needs(run, LAPTOP) if need.part == "learner"] == ["alice"]


@pytest.mark.parametrize(
    ("changes", "stages", "key", "message"),
    [
        ({"bob": learner("nobody")}, BOTH, "bob.learner.share", r"'nobody' is no other policy .*\(alice\)"),
        ({"bob": learner("bob")}, BOTH, "bob.learner.share", r"'bob' is no other policy"),
        ({"bob": learner("judge")}, BOTH, "bob.learner.share", "'judge' is no other policy that trains an adapter"),
        ({"bob": PolicyConfig(trained=True, learner=LearnerConfig(share="alice"))}, BOTH, "bob.learner.share",
         "'bob' trains no adapter"),
        ({"bob": learner("alice", model=ModelConfig(layers=3))}, BOTH, "bob.model", "other weights than 'alice'"),
        ({"bob": learner("alice", init_from="judge")}, BOTH, "bob.model", "other weights than 'alice'"),
        ({"alice": learner(warm_start=SimpleNamespace()), "bob": learner("alice", init_from="alice")}, BOTH,
         "alice.warm_start", "would train a base that is shared"),
        ({"alice": PolicyConfig(trained=True, learner=LearnerConfig(zero_stage=3, lora=LoraConfig()))}, BOTH,
         "alice.learner.zero_stage", r"into slices.*\(0 to 2\)"),
        ({}, {"one": StageConfig(roles={"a": "alice"}), "two": StageConfig(roles={"b": "bob"})}, "bob.learner.share",
         "not trained in the same one stage"),
        ({}, {**BOTH, "two": StageConfig(roles={"a": "alice", "b": "bob"})}, "bob.learner.share", "same one stage"),
    ],
)  # fmt: skip
def test_learners_that_cannot_share_are_refused(
    changes: dict[str, PolicyConfig], stages: dict[str, StageConfig], key: str, message: str
) -> None:
    import re

    found = problems({**TOGETHER, **changes}, stages)
    assert re.search(message, found[f"policies.{key}"]), found


def test_a_config_file_says_so_too() -> None:
    shared = ["policies.debater.learner={share: judge, threads: 2}", "policies.debater.learner.lora={rank: 4}"]
    with pytest.raises(ConfigErrors, match="threads: has no effect on a policy that shares a learner's processes"):
        load(SMOKE, shared, machine=LAPTOP)
    lora = "policies.debater.learner.lora={rank: 4}"
    with pytest.raises(ConfigErrors, match=r"debater\.engine\.share: there is no policy 'nobody' \(valid: judge"):
        load(SMOKE, [lora, "policies.debater.engine.share=nobody"], machine=LAPTOP)
    with pytest.raises(ConfigErrors, match=r"engine\.replicas: has no effect on a policy that shares engines"):
        load(SMOKE, [lora, "policies.debater.engine={share: judge, replicas: 2}"], machine=LAPTOP)


def test_shared_engines_are_counted_once() -> None:
    from dataclasses import replace

    run = load(SMOKE, [], machine=LAPTOP).config
    before = [need.policy for need in needs(run, LAPTOP) if need.part == "engine"]
    run.policies["debater"] = replace(run.policies["debater"], engine=EngineConfig(share="judge"))
    after = [need.policy for need in needs(run, LAPTOP) if need.part == "engine"]
    assert after == [name for name in before if name != "debater"] != before


# ---- the router and the system -------------------------------------------------------------------------


def test_lanes_name_their_adapter_and_count_apart() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        router = Router("judge", [engine], Revival())
        lanes = [Lane(router, "", host=True), Lane(router, "alice"), Lane(router, "bob")]
        tasks = [asyncio.ensure_future(lane.generate(GenRequest(0, [i]))) for i, lane in enumerate(lanes * 2)]
        await asyncio.sleep(0.01)
        (batch,) = engine.batches
        assert [request.adapter for request in batch] == ["", "alice", "bob"] * 2
        assert len({request.id for request in batch}) == 6, "requests of different policies have the same id"
        engine.answer()
        assert [(await task).output_ids for task in tasks] == [[i] for i in range(6)]
        assert [lane.counters.requests for lane in lanes] == [2, 2, 2] and router.counters is lanes[0].counters
        assert lanes[1].replicas is router.replicas

    asyncio.run(asyncio.wait_for(scenario(), 20))


class NotingLine:
    """The channel to an engine that notes what it is given."""

    def __init__(self) -> None:
        self.given: list[tuple[Any, ...]] = []
        self.version, self.adapters = 0, dict[str, int]()
        calls = {"status": self.connect, "update_weights": self._update}
        self.engine = SimpleNamespace(**{name: SimpleNamespace(remote=call) for name, call in calls.items()})

    async def connect(self) -> dict[str, Any]:
        return {"version": self.version, "adapters": dict(self.adapters)}

    async def _update(self, version: int, weights: Any, adapter: str = "") -> dict[str, float]:
        self.given.append((version, weights, adapter))
        if adapter:
            self.adapters[adapter] = version
        else:
            self.version = version
        return {"bytes": 7.0, "seconds": 0.0, "drain_s": 0.5}


def shared_system() -> tuple[System, NotingLine]:
    system, channel = System(POLICIES, 0), NotingLine()
    router = Router("judge", [channel], Revival())  # type: ignore[list-item]
    codec: Any = None
    channels: Any = [channel]
    for name in ("judge", "alice", "bob"):
        system._register(name, POLICIES[name], channels, router, codec, 0)
    return system, channel


def test_a_push_names_the_adapter_and_a_revived_engine_gets_everybodys() -> None:
    async def scenario() -> None:
        system, channel = shared_system()
        await system.push("alice", 1, "a1")
        await system.push("bob", 1, "b1")
        await system.push("alice", 2, "a2")
        assert channel.given == [(1, "a1", "alice"), (1, "b1", "bob"), (2, "a2", "alice")]
        assert system.served["alice"].sync_bytes == 7
        await system.refresh()
        assert len(channel.given) == 3, "all is current"
        channel.adapters.clear()
        await system.refresh()
        assert sorted(channel.given[3:]) == [(1, "b1", "bob"), (2, "a2", "alice")]
        channel.given.clear()
        await system._revive(system.served["judge"], channel)  # type: ignore[arg-type]
        assert sorted(channel.given) == [(1, "b1", "bob"), (2, "a2", "alice")]

    asyncio.run(asyncio.wait_for(scenario(), 20))


class Run:
    """What actors/serving/lane.py knows of a run."""

    def __init__(self, versions: dict[str, int]):
        self.config, self.learners = SimpleNamespace(policies=dict(POLICIES)), {}
        self.models = self.codecs = dict.fromkeys(POLICIES, "folder")
        self.versions, self.order = versions, list[str]()
        self.system = SimpleNamespace(
            served={}, policies=self.config.policies, serve=self.start, push=self.push, refresh=self.refresh
        )

    async def start(self, name: str, folder: str, codec: str, version: int) -> None:
        self.order.append(name)
        adapter = adapter_of(self.config.policies, name)
        router: Any = None
        self.system.served[name] = ServedPolicy(name, POLICIES[name], [], router, router, version, adapter=adapter)

    async def push(self, name: str, version: int, weights: Any) -> None:
        self.order.append(f"push {name} {version} {weights}")

    async def refresh(self) -> None:
        pass


def test_hosts_start_first_and_a_learner_that_goes_on_gives_its_adapter() -> None:
    async def scenario() -> None:
        fresh = Run({})
        await serve(fresh, ["bob", "alice", "other"])
        assert fresh.order == ["judge", "other", "bob", "alice"]
        resumed = Run({"alice": 3, "other": 5})

        async def export() -> str:
            return "ref"

        resumed.learners = {name: SimpleNamespace(export_ref=export) for name in ("alice", "bob", "other")}
        await serve(resumed, ["alice", "bob", "other"])
        assert resumed.order[4:] == ["push alice 3 ref"]

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_adapters_that_no_learner_carries_on_are_served_apart() -> None:
    for versions, going_on, shared in (
        ({}, [], True), ({"alice": 2, "bob": 1}, ["alice", "bob"], True), ({"alice": 2, "bob": 1}, ["bob"], False),
        ({"alice": 2}, [], False), ({"other": 2}, [], True),
    ):  # fmt: skip
        run = Run(versions)  # type: ignore[arg-type]
        settle(run, going_on)
        assert bool(run.config.policies["alice"].engine.share) == shared
        assert run.system.policies is run.config.policies
