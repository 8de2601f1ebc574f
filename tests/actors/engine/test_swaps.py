"""What `engine.swap` does with running requests when new weights arrive. The engine is ours, vLLM is a stand-in
(tests/support/fake_vllm.py); the same with vLLM: tests/actors/engine/test_swaps_engine.py."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from actors.engine.scheduler import RequestScheduler, WeightUpdate
from actors.serving.messages import GenRequest, GenResult
from actors.serving.router import Router
from actors.system import System
from configs.checks.engines import no_swap
from configs.load import load
from configs.machine import Machine
from configs.reading.errors import ConfigErrors
from configs.schema.run import EngineConfig, LearnerConfig, LoraConfig, PolicyConfig, RunConfig, StageConfig
from tests.support.fake_engine import Revival
from tests.support.fake_vllm import FIRST, TWICE, Serving, begun, numbered, serving, swapping

SMOKE = Path(__file__).resolve().parent.parent.parent.parent / "configs" / "smoke.yaml"
LAPTOP = Machine(2, 64 * 2**30)


@pytest.fixture
def draining(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path, "drain") as one:
        yield one


@pytest.fixture
def keeping(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path, "keep") as one:
        yield one


# ---- an engine -----------------------------------------------------------------------------------------


def test_keep_goes_on_with_the_new_weights(keeping: Serving) -> None:
    async def scenario() -> None:
        free, choice = GenRequest(0, [5], max_tokens=4), GenRequest(1, [5], choices=TWICE)
        task = await begun(keeping, [free, choice], 1)
        report = await (await swapping(keeping, 21, 1))
        assert report["drain_s"] == 0.0 and keeping.llm.loads == [(21, 2)]
        keeping.llm.allow()
        free_reply, choice_reply = await task
        assert free_reply.output_ids == [FIRST, 21, 21, 21] and free_reply.versions == [0, 1, 1, 1]
        assert choice_reply.output_ids == [1, 4] and choice_reply.versions == [0, 1]

    keeping.run(scenario())


def test_drain_lets_replies_end_with_the_old_weights_and_others_wait(draining: Serving) -> None:
    async def scenario() -> None:
        old = [GenRequest(0, [5], max_tokens=4), GenRequest(1, [5], choices=TWICE)]
        task = await begun(draining, old, 1)
        update = await swapping(draining, 21, 1)
        limited = [GenRequest(3, [6], choices=TWICE, read=read) for read in (False, True)]
        new = [GenRequest(2, [6], max_tokens=3), *limited]
        later = asyncio.ensure_future(draining.engine.generate(new))
        await asyncio.sleep(0)
        await draining.job_done()
        assert len(draining.llm.running) == 2 and not update.done() and draining.llm.loads == []
        status = await draining.engine.status()
        assert (status["running"] + status["waiting"], status["version"]) == (5, 0)
        draining.llm.allow()
        assert [reply.output_ids for reply in await task] == [[FIRST] * 4, [1, 3]]
        assert [set(reply.versions) for reply in task.result()] == [{0}, {0}]
        report = await update
        assert 0 < report["drain_s"] <= report["seconds"] and draining.llm.loads == [(21, 0)]
        free, choice, read = await later
        assert (free.output_ids, choice.output_ids) == ([21] * 3, [2, 6])
        assert [set(reply.versions) for reply in (free, choice, read)] == [{1}] * 3

    draining.run(scenario())


def test_an_idle_engine_drains_at_once(draining: Serving) -> None:
    async def scenario() -> None:
        for version, weights in ((1, 21), (1, 21), (2, 22)):  # the same one again: a restarted engine may be told twice
            await draining.engine.update_weights(version, numbered(weights))
            draining.llm.allow()
            (reply,) = await draining.engine.generate([GenRequest(0, [5], max_tokens=2)])
            assert reply.output_ids == [weights] * 2 and reply.versions == [version] * 2
        with pytest.raises(ValueError, match="older"):
            await draining.engine.update_weights(1, numbered(23))
        assert draining.llm.loads == [(21, 0), (21, 0), (22, 0)]

    draining.run(scenario())


def test_updates_that_come_while_one_drains_wait_their_turn(draining: Serving) -> None:
    async def scenario() -> None:
        task = await begun(draining, [GenRequest(0, [5], max_tokens=3)], 1)
        first = await swapping(draining, 21, 1)
        second = asyncio.ensure_future(draining.engine.update_weights(2, numbered(22)))
        draining.llm.allow()
        await asyncio.gather(first, second)
        assert (await task)[0].output_ids == [FIRST] * 3 and draining.llm.loads == [(21, 0), (22, 0)]

    draining.run(scenario())


def test_an_update_whose_caller_has_gone_is_left_out(draining: Serving) -> None:
    async def scenario() -> None:
        task = await begun(draining, [GenRequest(0, [5], max_tokens=3)], 1)
        update = await swapping(draining, 21, 1)
        later = asyncio.ensure_future(draining.engine.generate([GenRequest(1, [5], max_tokens=2)]))
        await asyncio.sleep(0)
        await draining.job_done()
        update.cancel()
        await asyncio.gather(update, return_exceptions=True)
        draining.llm.allow()
        assert (await task)[0].versions == [0] * 3 and (await later)[0].versions == [0] * 2
        await draining.engine.update_weights(2, numbered(22))
        assert draining.llm.loads == [(22, 0)]

    draining.run(scenario())


# ---- what may not change under whom -----------------------------------------------------------------------


class Reply:
    """A flight that takes as many steps as it is told, and notes the version of its adapter at each."""

    def __init__(self, request: GenRequest, finish: Any, world: World):
        self.request, self.finish, self.world = request, finish, world
        self.left, self.seen = request.max_tokens, list[int]()

    def attempt(self, step: Any, *args: Any) -> None:
        step(*args)

    def start(self) -> None:
        self.world.running.append(self)
        if self.left == 0:
            self.end("stop")

    def step(self) -> None:
        self.seen.append(self.world.version(self.request.adapter))
        self.left -= 1
        if self.left == 0:
            self.end("stop")

    def fail(self, reason: str) -> None:
        self.end("error")

    def end(self, finish: Any) -> None:
        self.world.running.remove(self)
        self.finish(GenResult(self.request.id, [], [], self.seen, finish=finish))


class World:
    """What an engine's thread does with its traffic, move by move."""

    def __init__(self, drain: bool):
        self.scheduler = RequestScheduler(lambda request, finish: Reply(request, finish, self), drain)  # type: ignore[arg-type,return-value]
        self.running: list[Reply] = []
        self.versions = Counter[str]()
        self.results: dict[int, list[GenResult]] = {}
        self.asked: list[GenRequest] = []
        self.swap: WeightUpdate | None = None

    def version(self, adapter: str) -> int:
        return self.versions[""] * 1000 + (self.versions[adapter] if adapter else 0)

    def launch(self, adapter: str, steps: int) -> None:
        request = GenRequest(len(self.asked), [1], max_tokens=steps, adapter=adapter)
        self.asked.append(request)
        self.scheduler.launch([request], [lambda result: self.results.setdefault(result.id, []).append(result)])

    def load(self, adapter: str) -> None:
        self.versions[adapter] += 1

    def update(self, adapter: str) -> None:
        if self.swap is None or self.swap.done.done():  # the engine takes one at a time
            self.swap = WeightUpdate(adapter, lambda: self.load(adapter), Future())
            self.scheduler.update(self.swap)

    def step(self) -> None:
        for reply in list(self.running):
            reply.step()
        self.scheduler.load_pending()
        for deliver, result in self.scheduler.take_finished():
            deliver(result)


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32), drain=st.booleans())
def test_whatever_happens_everyone_is_answered_once_and_drained_replies_are_of_one_version(
    seed: int, drain: bool
) -> None:
    rng, world = random.Random(seed), World(drain)
    given_up = set[int]()
    for _ in range(60):
        move = rng.random()
        if move < 0.45:
            world.launch(rng.choice(["", "a", "b"]), rng.randrange(6))
        elif move < 0.6:
            world.update(rng.choice(["", "a", "b"]))
        elif move < 0.7 and world.asked:
            ids = {rng.randrange(len(world.asked)) for _ in range(2)}
            given_up |= {id for id in ids if id not in world.results}
            flights = world.scheduler.abort(ids)
            assert all(flight.request.id in ids for flight in flights)
        else:
            world.step()
    for _ in range(20):
        world.step()
    assert {id: len(found) for id, found in world.results.items()} == {one.id: 1 for one in world.asked}
    ended_early = {id for id, (result,) in world.results.items() if result.finish == "error"}
    assert ended_early <= given_up and world.scheduler.aborted == len(ended_early)
    assert world.swap is None or world.swap.done.result(timeout=0) >= 0, "a swap waits for ever"
    assert not drain or all(len(set(result.versions)) <= 1 for (result,) in world.results.values())


def test_an_adapter_waits_for_its_own_requests_only() -> None:
    world = World(drain=True)
    world.launch("a", 3)
    world.update("b")
    assert world.versions == {"b": 1}
    world.update("a")
    world.launch("a", 1)
    world.launch("b", 1)
    assert world.versions["a"] == 0 and [reply.request.id for reply in world.running] == [0, 2]
    for _ in range(4):
        world.step()
    assert world.versions["a"] == 1
    assert [world.results[id][0].versions for id in range(3)] == [[0, 0, 0], [1], [1]]


def test_keep_waits_for_nobody() -> None:
    world = World(drain=False)
    world.launch("", 3)
    world.step()
    world.update("")
    world.step()
    world.step()
    assert world.results[0][0].versions == [0, 1000, 1000]


# ---- metrics and settings ----------------------------------------------------------------------------------


def test_a_push_says_how_long_the_slowest_engine_drained() -> None:
    def channel(waited: float) -> Any:
        async def update(version: int, weights: Any) -> dict[str, float]:
            return {"seconds": waited + 1, "bytes": 7.0, "drain_s": waited}

        return SimpleNamespace(engine=SimpleNamespace(update_weights=SimpleNamespace(remote=update)))

    async def scenario() -> None:
        policy, codec = PolicyConfig(engine=EngineConfig(replicas=3, swap="drain"), trained=True), None
        system, channels = System({"p": policy}, 0), [channel(waited) for waited in (0.5, 2.0, 1.0)]
        served = system._register("p", policy, channels, Router("p", channels, Revival()), codec, 0)  # type: ignore[arg-type]
        await system.push("p", 1, "w")
        assert served.drain_seconds == 2.0
        channels[1].engine = channel(0.25).engine
        await system.push("p", 2, "w")
        assert served.drain_seconds == 1.0, "of the last push"

    asyncio.run(asyncio.wait_for(scenario(), 20))


def refused(*overrides: str) -> str:
    with pytest.raises(ConfigErrors) as caught:
        load(SMOKE, overrides, machine=LAPTOP)
    return str(caught.value)


STALE = "stages.debate.max_staleness=1"


def test_the_setting_is_taken_where_it_does_something() -> None:
    loaded = load(SMOKE, ["policies.debater.engine={swap: drain}", STALE], machine=LAPTOP)
    policies = loaded.config.policies
    assert policies["debater"].engine.swap == "drain" and policies["judge"].engine.swap == "keep"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["policies.judge.engine={swap: drain}", STALE], r"judge\.engine\.swap: has no effect .*weights never change"),
        (["policies.debater.engine={swap: drain}", "stages.debate.max_staleness=0"],
         r"debater\.engine\.swap: has no effect with max_staleness: 0 where the policy learns \(debate\)"),
        (["policies.debater.engine={share: judge, swap: drain}", "policies.debater.learner.lora={rank: 4}", STALE],
         r"debater\.engine\.swap: has no effect on a policy that shares engines"),
        (["policies.debater.engine={swap: wait}", STALE], r"debater\.engine\.swap: .*keep.*drain"),
    ],
    ids=["frozen", "synchronous", "guest", "unknown"],
)  # fmt: skip
def test_the_setting_is_refused_where_it_does_nothing(overrides: list[str], message: str) -> None:
    found = refused(*overrides)
    assert re.search(message, found), found


def test_shared_engines_swap_what_their_guests_learn() -> None:
    lora = LearnerConfig(lora=LoraConfig(rank=4))
    host, guest = PolicyConfig(), PolicyConfig(engine=EngineConfig(share="judge"), trained=True, learner=lora)
    stage = StageConfig(roles={"judge": "judge", "debater": "alice"}, max_staleness=1)
    config = RunConfig(policies={"judge": host, "alice": guest}, stages={"main": stage})
    assert [*no_swap(config, "judge")] == [*no_swap(config, "alice")] == []
    stage.max_staleness = 0
    ((_, switch),) = no_swap(config, "judge")
    assert switch == ("stages", "main", "max_staleness")
    config.policies["alice"] = PolicyConfig(trained=True)
    ((_, switch),) = no_swap(config, "judge")
    assert switch == ("policies", "judge", "trained")


def test_engines_of_opponent_checkpoints_never_swap_under_play(tmp_path: Path) -> None:
    file = tmp_path / "league.yaml"
    past = "past: {kind: past, of: [player], engine: {swap: drain}}"
    file.write_text(f"extends: [{SMOKE.parent / 'kuhn_league.yaml'}]\npolicies: {{{past}}}\n")
    with pytest.raises(ConfigErrors, match=r"past\.engine\.swap: has no effect on opponent checkpoints"):
        load(file, [], machine=LAPTOP)
