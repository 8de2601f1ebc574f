"""Router: what becomes of requests whose engine dies, refuses them or does not come back. Engines are stand-ins."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors.serving.messages import EngineLost, GenResult, RequestRefused
from actors.serving.router import MAX_TRIES, Router
from tests.support.fake_engine import FakeEngine, Revival, ask, ask_for, prompts, replies, run, settle


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
            engine.done.append(GenResult(-1, [], [], [], finish="died", error=f"KeyError: {death}"))
            engine._news.set()
            await settle()
            engine.die()
        with pytest.raises(EngineLost, match=f"'p': engine died {MAX_TRIES} times, last of KeyError: {MAX_TRIES}"):
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
        with pytest.raises(RequestRefused, match="prompt too long"):
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
        async def revive(channel: Any) -> None:
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
