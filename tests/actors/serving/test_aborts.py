"""Requests that nobody waits for any more: the router tells their engines, and keeps what others wait for. What
an engine does then: tests/actors/engine/test_engine_aborts.py."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actors.concurrency import Shared, gather_or_cancel
from actors.players.engine_player import EnginePlayer
from actors.rollout.ledger import Ledger
from actors.serving.lane import Lane
from actors.serving.messages import GenRequest, GenResult
from actors.serving.router import Router
from protocols.types import Message, TurnRequest
from tests.actors.players.test_memo import Codec
from tests.support.fake_engine import FakeEngine, Revival, ask, prompts, replies, run, settle
from tests.support.rollout_stage import rollouts, run as run_with_ledger


class Abortable(FakeEngine):
    """Ends what it is told to end, as an engine does: with an error."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[list[int]] = []

    def abort(self, ids: list[int]) -> None:
        self.told.append(ids)
        for id in ids:
            if id in self.open:
                self.answer(id, error="given up")


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await settle()
    assert all(task.cancelled() for task in tasks)


# ---- the router ----------------------------------------------------------------------------------------


def test_requests_given_up_in_one_tick_are_told_in_one_call() -> None:
    async def scenario() -> None:
        engine = Abortable()
        router = Router("p", [engine], Revival())
        tasks = ask(router, *range(20))
        await settle()
        await cancel(*tasks[3:12])
        assert engine.told == [list(range(3, 12))] and len(engine.batches) == 1
        await cancel(tasks[12])
        assert engine.told[1:] == [[12]] and router.replicas[0].load == 10
        engine.answer()
        assert await replies(tasks[:3] + tasks[13:]) == [*range(3), *range(13, 20)]
        assert (router.counters.aborted, router.counters.requests) == (10, 10)
        assert router.counters.metrics("p")["aborted/p"] == 10.0
        await settle()

    run(scenario)


def test_when_all_are_given_up_the_poll_ends_and_later_requests_are_served() -> None:
    async def scenario() -> None:
        engine = Abortable()
        router = Router("p", [engine], Revival())
        await settle()
        tasks = ask(router, 0, 1)
        await settle()
        await cancel(*tasks)
        assert engine.collecting == 0 and router.replicas[0].load == 0 == router._open
        again = ask(router, 2)
        await settle()
        engine.answer()
        assert await replies(again) == [2]
        await settle()

    run(scenario)


def test_what_has_not_left_yet_stays_here() -> None:
    async def scenario() -> None:
        engine = Abortable()
        router = Router("p", [engine], Revival())
        stays, goes = ask(router, 0, 1)
        router.replicas[0]._flushing = True  # holds the batch back
        await asyncio.sleep(0)
        await cancel(stays)
        router.replicas[0]._flush()
        assert [prompts(batch) for batch in engine.batches] == [[1]] and engine.told == []
        engine.answer()
        assert await replies([goes]) == [1] and router.counters.aborted == 1
        await settle()
        (alone,) = ask(router, 2)
        router.replicas[0]._flushing = True
        await asyncio.sleep(0)
        await cancel(alone)
        router.replicas[0]._flush()
        assert len(engine.batches) == 1, "a call without a request"

    run(scenario)


def test_an_answer_that_is_there_already_is_nothing_to_end() -> None:
    async def scenario() -> None:
        engine = Abortable()
        router = Router("p", [engine], Revival())
        first, second = ask(router, 0, 1)
        await settle()
        engine.answer(0)
        while 0 in router.replicas[0]._running:
            await asyncio.sleep(0)
        await cancel(first)
        assert engine.told == []
        engine.answer(1)
        assert await replies([second]) == [1]
        await settle()

    run(scenario)


def test_requests_of_a_dead_engine_are_given_up_here_alone() -> None:
    async def scenario() -> None:
        engine, revival = Abortable(), Revival()
        router = Router("p", [engine], revival)
        early, late, stays = ask(router, 0, 1, 2)
        await settle()
        early.cancel()
        engine.die()  # before it is told
        await settle()
        await cancel(late)  # while it waits for the engine
        revival.go.set()
        await settle()
        assert prompts(engine.batches[-1]) == [2] and not {1, 2} & {id for ids in engine.told for id in ids}
        engine.answer()
        assert await replies([stays]) == [2]
        assert router.counters.aborted == 2
        await settle()

    run(scenario)


def test_policies_on_one_engine_count_apart() -> None:
    async def scenario() -> None:
        engine = Abortable()
        router = Router("judge", [engine], Revival())
        lanes = [Lane(router, "", host=True), Lane(router, "alice")]
        tasks = [asyncio.ensure_future(lane.generate(GenRequest(0, [1]))) for lane in lanes for _ in range(2)]
        await settle()
        await cancel(*tasks[1:])
        assert [lane.counters.aborted for lane in lanes] == [1, 2] and engine.told == [[1, 2, 3]]
        engine.answer()
        await replies(tasks[:1])
        await settle()

    run(scenario)


def test_when_one_play_of_a_group_fails_the_requests_of_the_others_end() -> None:
    async def scenario() -> None:
        engine = Abortable()
        router = Router("p", [engine], Revival())

        async def failing() -> None:
            await settle()
            raise RuntimeError("a play failed")

        with pytest.raises(RuntimeError, match="a play failed"):
            await gather_or_cancel([*(router.generate(GenRequest(0, [i])) for i in range(3)), failing()])
        await settle()
        assert engine.told == [[0, 1, 2]] and engine.open == {}

    run(scenario)


# ---- reads that plays share ------------------------------------------------------------------------------

READ = TurnRequest("j", "judge", (Message("user", "q"),), 0, choices=("a", "b"), read=True)


def shared_read(count: int) -> tuple[Abortable, EnginePlayer, list[asyncio.Task[Any]]]:
    engine = Abortable()
    player = EnginePlayer(Router("p", [engine], Revival()), Codec(), 1.0, 8)  # type: ignore[arg-type]
    return engine, player, [asyncio.ensure_future(player(READ, ())) for _ in range(count)]


def answer_read(engine: Abortable) -> None:
    for id in tuple(engine.open):
        del engine.open[id]
        engine.done.append(GenResult(id, [], [], [3], choice_logprobs=[-0.1, -2.4]))
    engine._news.set()


def test_a_read_lives_as_long_as_anyone_waits_for_it() -> None:
    async def scenario() -> None:
        engine, player, tasks = shared_read(3)
        await settle()
        await cancel(tasks[0])  # the one that asked first
        await cancel(tasks[2])
        assert engine.told == [] and len(engine.open) == 1
        answer_read(engine)
        assert (await tasks[1]).trace.versions_T == (3,)
        assert player.router.counters.aborted == 0
        assert (await player(READ, ())).trace.versions_T == (3,), "it is remembered"
        await settle()

    run(scenario)


def test_a_read_that_nobody_waits_for_is_given_up_and_can_be_asked_again_at_once() -> None:
    async def scenario() -> None:
        engine, player, tasks = shared_read(2)
        await settle()
        for task in tasks:
            task.cancel()
        for _ in range(50):  # some come in the very ticks in which the old request ends
            tasks.append(asyncio.ensure_future(player(READ, ())))
            await asyncio.sleep(0)
        await settle()
        assert engine.told == [[0]] and len(engine.open) == 1 and not any(task.done() for task in tasks[2:])
        answer_read(engine)
        assert {task.trace.versions_T for task in await asyncio.gather(*tasks[2:])} == {(3,)}
        assert (player.router.counters.aborted, player.router.counters.memo_hits) == (1, 1 + 49)
        await settle()

    run(scenario)


def test_a_read_of_old_weights_that_is_given_up_leaves_the_new_one_alone() -> None:
    async def scenario() -> None:
        engine, player, (old,) = shared_read(1)
        await settle()
        player.forget()
        new = asyncio.ensure_future(player(READ, ()))
        await settle()
        await cancel(old)
        assert engine.told == [[0]]
        answer_read(engine)
        await new
        await player(READ, ())
        assert len(engine.batches) == 2, "the new odds were dropped with the old request"
        await settle()

    run(scenario)


def test_shared_work_by_hand() -> None:
    async def scenario() -> None:
        go, ended = asyncio.Event(), list[str]()

        async def work() -> int:
            try:
                await go.wait()
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise
            ended.append("done")
            return 7

        shared = Shared(work())
        one, two = (asyncio.ensure_future(shared.result()) for _ in range(2))
        await settle()
        await cancel(one)
        assert not shared.given_up
        go.set()
        assert await two == 7 == await shared.result() and not shared.given_up
        go.clear()
        lonely = Shared(work())
        task = asyncio.ensure_future(lonely.result())
        await settle()
        await cancel(task)
        assert lonely.given_up and ended == ["done", "cancelled"]

        async def fail() -> None:
            raise ValueError("no")

        failing = Shared(fail())
        found = await asyncio.gather(failing.result(), failing.result(), return_exceptions=True)
        assert [str(error) for error in found] == ["no", "no"] and not failing.given_up

    run(scenario)


# ---- plays -------------------------------------------------------------------------------------------------


class Letters(Codec):
    def text(self, ids: Any) -> str:
        return ""


@pytest.mark.parametrize("staleness", [0, 1])
def test_requests_of_cancelled_plays_end_at_the_engine(tmp_path: Path, staleness: int) -> None:
    """Four plays to a step and two to spare; all that are under way are left when the stage is."""

    async def scenario(ledger: Ledger) -> None:
        engine = Abortable()
        player = EnginePlayer(Router("p", [engine], Revival()), Letters(), 1.0, 8)  # type: ignore[arg-type]
        subject = rollouts(ledger, player, plays_per_step=4, oversample=1.5, max_staleness=staleness, steps=3)
        running = asyncio.ensure_future(subject.run())
        await settle()
        assert sorted(engine.open) == list(range(4 * (1 + staleness) + 2))
        engine.answer(0, 1, 3, 5)
        plays = await subject.batch()
        await settle()
        assert len(plays) == 4
        assert engine.told == ([[2, 4]] if staleness == 0 else [])
        assert len(engine.open) == (0 if staleness == 0 else 6), "the others may go with a later step"
        subject.release(plays)
        await settle()
        under_way = sorted(engine.open)
        assert len(under_way) == 4 * (1 + staleness) + 2
        engine.told.clear()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await settle()
        assert sorted(id for ids in engine.told for id in ids) == under_way and engine.open == {}
        assert player.router.counters.aborted == len(under_way) + (2 if staleness == 0 else 0)

    run_with_ledger(tmp_path, scenario)
