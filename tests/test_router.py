"""Router: how requests travel, and what becomes of them when engines die. Engines are stand-ins."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from actors import router as router_module
from actors.messages import GenRequest, GenResult
from actors.router import MAX_TRIES, SLACK, EngineLost, Router


class FakeEngine:
    """An actor handle: `submit.remote` and `collect.remote`, answering when the test says so."""

    def __init__(self) -> None:
        self.batches: list[list[GenRequest]] = []
        self.open: dict[int, GenRequest] = {}
        self.collecting = 0
        self.submit = SimpleNamespace(remote=self._submit)
        self.collect = SimpleNamespace(remote=self._collect)
        self.done: list[GenResult] = []
        self._dead = False
        self._news = asyncio.Event()

    def _submit(self, batch: list[GenRequest]) -> None:
        self.batches.append(batch)
        if not self._dead:
            self.open.update({request.id: request for request in batch})

    async def _collect(self) -> list[GenResult]:
        self.collecting += 1
        assert self.collecting == 1, "two long polls at once: each would take the other's results"
        try:
            while not self.done and not self._dead:
                self._news.clear()
                await self._news.wait()
            if self._dead:
                raise RayActorError()
            done, self.done = self.done, []
            return done
        finally:
            self.collecting -= 1

    def answer(self, *ids: int, error: str = "") -> None:
        for id in ids or tuple(self.open):
            request = self.open.pop(id)
            result = GenResult(id, [] if error else list(request.prompt_ids), [], [])
            if error:
                result.finish, result.error = "error", error
            self.done.append(result)
        self._news.set()

    def die(self) -> None:
        self._dead, self.done, self.open = True, [], {}
        self._news.set()

    def restart(self) -> None:
        self._dead = False


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def ask(router: Router, *prompts: int) -> list[asyncio.Task[GenResult]]:
    """One request per prompt, all made in this tick of the loop. The reply repeats the prompt."""
    return [asyncio.ensure_future(router.generate(GenRequest(0, [prompt]))) for prompt in prompts]


async def replies(tasks: list[asyncio.Task[GenResult]]) -> list[int]:
    return [result.output_ids[0] for result in await asyncio.wait_for(asyncio.gather(*tasks), 5)]


def prompts(batch: list[GenRequest]) -> list[int]:
    return [request.prompt_ids[0] for request in batch]


class Revival:
    """`revive` as the system passes it: holds until the test lets go, then the engine is back."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.go = asyncio.Event()

    async def __call__(self, handle: Any) -> None:
        self.asked.append(handle)
        await self.go.wait()
        handle.restart()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(), 20)
        assert asyncio.all_tasks() == {asyncio.current_task()}, "the router left something running"

    asyncio.run(bounded())


def test_requests_of_one_tick_travel_in_one_call() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        router = Router("p", [engine], Revival())
        first = ask(router, *range(50))
        await settle()
        second = ask(router, 50, 51)
        await settle()
        assert [prompts(batch) for batch in engine.batches] == [list(range(50)), [50, 51]]
        ids = [request.id for batch in engine.batches for request in batch]
        assert len(set(ids)) == 52
        engine.answer(*reversed(ids))  # whatever the order of the answers, everyone gets his own
        assert await replies(first + second) == list(range(52))
        assert (router.counters.requests, router.counters.retried) == (52, 0)
        assert router.counters.figures("p")["output_tokens/p"] == 52.0
        await settle()

    run(scenario)


def test_a_slow_reply_does_not_hold_back_a_fast_one() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        router = Router("p", [engine], Revival())
        slow, fast = ask(router, 1, 2)
        await settle()
        engine.answer(1)
        assert await replies([fast]) == [2] and not slow.done()
        engine.answer(0)
        assert await replies([slow]) == [1]
        await settle()

    run(scenario)


def test_the_least_loaded_replica_is_chosen() -> None:
    async def scenario() -> None:
        one, two = engines = [FakeEngine(), FakeEngine()]
        router = Router("p", engines, Revival())
        tasks = ask(router, *range(10))
        await settle()
        assert [len(engine.open) for engine in engines] == [5, 5]
        one.answer(*list(one.open)[:3])
        await settle()
        tasks += ask(router, 10, 11, 12)
        await settle()
        assert prompts(one.batches[-1]) == [10, 11, 12] and len(two.batches) == 1
        one.answer()
        two.answer()
        assert await replies(tasks) == list(range(13))
        await settle()

    run(scenario)


def ask_for(router: Router, play: str, *prompts: int) -> list[asyncio.Task[GenResult]]:
    requests = [GenRequest(0, [prompt], play=play) for prompt in prompts]
    return [asyncio.ensure_future(router.generate(request)) for request in requests]


def test_the_turns_of_a_play_stay_with_one_replica() -> None:
    async def scenario() -> None:
        engines = [FakeEngine(), FakeEngine()]
        router = Router("p", engines, Revival())
        for play in range(4):  # one after the other, so that both are idle at each turn
            for turn in range(5):
                tasks = ask_for(router, f"play-{play}", 10 * play + turn)
                await settle()
                for engine in engines:
                    engine.answer()
                await replies(tasks)
                await settle()
        busy = ask(router, 90)  # where the least loaded replica is another one than before
        await settle()
        again = [task for play in range(4) for task in ask_for(router, f"play-{play}", 10 * play + 5)]
        await settle()
        homes = [{prompt // 10 for batch in engine.batches for prompt in prompts(batch)} for engine in engines]
        assert homes[0] & homes[1] == set() and homes[0] | homes[1] == {0, 1, 2, 3, 9}
        for engine in engines:
            engine.answer()
        await replies(busy + again)
        await settle()

    run(scenario)


def test_a_crowded_replica_is_left() -> None:
    async def scenario() -> None:
        engines = [FakeEngine(), FakeEngine()]
        router = Router("p", engines, Revival())
        tasks = ask_for(router, "large", *range(100))
        await settle()
        # With 100 open no replica may have more than 1.25 * 50 and SLACK, and one more that found it not crowded.
        assert max(len(engine.open) for engine in engines) <= 1.25 * 50 + SLACK + 1
        last = next(engine for engine in engines if 99 in prompts(engine.batches[-1]))
        for engine in engines:
            engine.answer()
        await replies(tasks)
        await settle()
        tasks = ask_for(router, "large", 100)
        await settle()
        assert prompts(last.batches[-1]) == [100]
        last.answer()
        await replies(tasks)
        await settle()

    run(scenario)


def test_a_play_whose_replica_died_makes_its_home_elsewhere() -> None:
    async def scenario() -> None:
        one, two = engines = [FakeEngine(), FakeEngine()]
        revival = Revival()
        router = Router("p", engines, revival)
        tasks = ask_for(router, "play", 0)
        await settle()
        assert prompts(one.batches[-1]) == [0]
        one.die()
        await settle()
        assert prompts(two.batches[-1]) == [0]
        revival.go.set()
        await settle()
        tasks += ask_for(router, "play", 1)
        await settle()
        assert prompts(two.batches[-1]) == [1] and len(one.batches) == 1
        two.answer()
        assert await replies(tasks) == [0, 1]
        await settle()

    run(scenario)


def test_the_router_forgets_plays_that_it_has_not_heard_of_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_module, "HOMES", 2)

    async def scenario() -> None:
        engines = [FakeEngine(), FakeEngine()]
        router = Router("p", engines, Revival())
        for play in ("a", "b", "a", "c"):
            tasks = ask_for(router, play, 0)
            await settle()
            for engine in engines:
                engine.answer()
            await replies(tasks)
            await settle()
        assert list(router._homes) == ["a", "c"]

    run(scenario)


def test_the_share_of_prompt_tokens_that_the_cache_had_is_a_figure() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        router = Router("p", [engine], Revival())
        assert "prefix_hit_rate/p" not in router.counters.figures("p")
        tasks = ask(router, 0, 1)
        await settle()
        engine.answer()
        for result, (asked, cached) in zip(engine.done, ((100, 0), (300, 96))):
            result.prompt_tokens, result.cached_tokens = asked, cached
        await replies(tasks)
        assert router.counters.figures("p")["prefix_hit_rate/p"] == 96 / 400
        await settle()

    run(scenario)


def test_what_a_dead_replica_left_goes_to_the_other() -> None:
    async def scenario() -> None:
        one, two = FakeEngine(), FakeEngine()
        revival = Revival()
        router = Router("p", [one, two], revival)
        tasks = ask(router, *range(8))
        await settle()
        answered, *left = one.open
        one.answer(answered)
        await settle()
        one.die()
        await settle()
        assert sorted(request.id for request in two.batches[-1]) == left
        assert revival.asked == [one] and (router.counters.restarts, router.counters.retried) == (1, 3)
        tasks += ask(router, 8, 9)
        await settle()
        assert len(one.batches) == 1, "nothing may be sent to an engine before it is revived"
        two.answer()
        assert await replies(tasks) == list(range(10))
        revival.go.set()
        await settle()
        again = ask(router, 10, 11)
        await settle()
        assert len(one.open) == len(two.open) == 1
        one.answer()
        two.answer()
        assert await replies(again) == [10, 11]
        await settle()

    run(scenario)


def test_with_no_other_replica_requests_wait_for_the_revived_one() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        revival = Revival()
        router = Router("p", [engine], revival)
        tasks = ask(router, 0, 1)
        await settle()
        engine.die()
        await settle()
        tasks += ask(router, 2)
        await settle()
        assert len(engine.batches) == 1 and not any(task.done() for task in tasks)
        revival.go.set()
        await settle()
        assert prompts(engine.batches[-1]) == [0, 1, 2]
        engine.answer()
        assert await replies(tasks) == [0, 1, 2]
        assert router.counters.restarts == 1
        await settle()

    run(scenario)


def test_a_request_whose_engines_died_several_times_is_lost() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        revival = Revival()
        revival.go.set()
        router = Router("p", [engine], revival)
        (old,) = ask(router, 0)
        for death in range(1, MAX_TRIES + 1):
            await settle()
            if death == MAX_TRIES:
                assert not old.done()
                (young,) = ask(router, 1)
                await settle()
            engine.die()
        with pytest.raises(EngineLost, match=f"'p': engine died {MAX_TRIES} times"):
            await old
        await settle()
        engine.answer()
        assert await replies([young]) == [1], "one death is no reason to give up"
        assert router.counters.restarts == MAX_TRIES
        await settle()

    run(scenario)


def test_a_refused_request_fails_alone() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        router = Router("p", [engine], Revival())
        first, refused, last = ask(router, 0, 1, 2)
        await settle()
        engine.answer(1, error="prompt too long")
        engine.answer(0, 2)
        assert await replies([first, last]) == [0, 2]
        with pytest.raises(EngineLost, match="prompt too long"):
            await refused
        assert router.counters.requests == 2 and router.counters.retried == 0
        await settle()

    run(scenario)


def test_a_caller_that_has_gone_is_not_missed() -> None:
    async def scenario() -> None:
        engine = FakeEngine()
        revival = Revival()
        router = Router("p", [engine], revival)
        gone, waiting, gone_later = ask(router, 0, 1, 2)
        await settle()
        gone.cancel()
        await settle()
        engine.answer(0)
        engine.die()
        gone_later.cancel()
        revival.go.set()
        await settle()
        assert prompts(engine.batches[-1]) == [1], "nobody waits for the others"
        engine.answer()
        assert await replies([waiting]) == [1]
        await settle()

    run(scenario)


def test_an_engine_that_does_not_come_back_is_told_to_everyone_now_and_later() -> None:
    async def scenario() -> None:
        async def revive(handle: Any) -> None:
            raise EngineLost("no room on any node")

        engine = FakeEngine()
        router = Router("p", [engine], revive)
        tasks = ask(router, 0, 1)
        await settle()
        engine.die()
        await settle()
        tasks += ask(router, 2)
        for task in tasks:
            with pytest.raises(EngineLost, match="no room on any node"):
                await asyncio.wait_for(task, 5)

    run(scenario)


def test_stopping_ends_polls_and_revivals() -> None:
    async def scenario() -> None:
        one, two = FakeEngine(), FakeEngine()
        router = Router("p", [one, two], Revival())
        tasks = ask(router, 0, 1)
        await settle()
        one.die()
        await settle()
        router.stop()
        for task in tasks:
            task.cancel()
        await settle()
        assert two.collecting == 0

    run(scenario)
