"""Router: how requests travel, and which replica they reach. Engines are stand-ins."""

from __future__ import annotations

import pytest

from actors.serving import router as router_module
from actors.serving.router import SLACK, Router
from tests.support.fake_engine import FakeEngine, Revival, ask, ask_for, prompts, replies, run, settle


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
        assert router.counters.metrics("p")["output_tokens/p"] == 52.0
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


def test_the_router_forgets_plays_that_it_has_not_heard_of_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_module, "MAX_HOMES", 2)

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
        assert "prefix_hit_rate/p" not in router.counters.metrics("p")
        tasks = ask(router, 0, 1)
        await settle()
        engine.answer()
        for result, (asked, cached) in zip(engine.done, ((100, 0), (300, 96))):
            result.prompt_tokens, result.cached_tokens = asked, cached
        await replies(tasks)
        assert router.counters.metrics("p")["prefix_hit_rate/p"] == 96 / 400
        await settle()

    run(scenario)
