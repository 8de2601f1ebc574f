"""Hub: one call for many engines, and what becomes of requests when an engine or the hub itself dies. Engines and Ray
are stand-ins; the router in front is the real one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from actors.hub import Hub, Line, News, started, trunks
from actors.messages import GenRequest, GenResult
from actors.restarts import Restarted
from actors.router import Router
from tests.fake_engine import FakeEngine, ask, ask_for, prompts, replies, settle


class FakeRay:
    """A hub as its handle shows it: calls run later, fail while it is dead, and a new life knows nothing of the old."""

    def __init__(self, engines: Mapping[int, Any]):
        self.engines, self.calls, self.submitted = engines, 0, 0
        self.up = asyncio.Event()
        self.died = asyncio.Event()
        self.submit, self.collect, self.ready = map(self._method, ("submit", "collect", "ready"))
        self.tasks: set[asyncio.Future[Any]] = set()
        self.restart()

    def _method(self, name: str) -> SimpleNamespace:
        def call(*args: Any) -> asyncio.Future[Any]:
            self.calls += 1
            self.submitted += name == "submit"
            task = asyncio.ensure_future(self._run(name, args))
            self.tasks.add(task)
            task.add_done_callback(self._ended)
            return task

        return SimpleNamespace(remote=call)

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled():
            task.exception()  # a reference that nobody reads raises nothing

    async def _run(self, name: str, args: tuple[Any, ...]) -> Any:
        if name == "ready":
            await self.up.wait()
        elif not self.up.is_set():
            raise RayActorError()
        call = asyncio.ensure_future(getattr(self.hub, name)(*args))
        died = asyncio.ensure_future(self.died.wait())
        try:
            await asyncio.wait([call, died], return_when=asyncio.FIRST_COMPLETED)
            if call.done() and not isinstance(call.exception(), Restarted):
                return call.result()
            raise RayActorError()  # or RayTaskError: the driver makes no difference
        finally:
            call.cancel()
            died.cancel()

    def die(self) -> None:
        self.up.clear()
        self.died.set()
        for poll in self.hub._polls.values():
            poll.cancel()

    def restart(self) -> None:
        self.hub, self.died = Hub(self.engines), asyncio.Event()
        self.hub._unnoticed = bool(self.calls)  # what Ray says in an actor that it has restarted
        self.up.set()


class Node:
    """Some engines behind one hub, and a router that sees lines."""

    async def build(self, count: int) -> Node:
        self.engines = [FakeEngine() for _ in range(count)]
        for engine in self.engines:
            engine.ready = SimpleNamespace(remote=lambda: asyncio.sleep(0))  # type: ignore[attr-defined]
            engine.abort = SimpleNamespace(remote=lambda ids, e=engine: e.answer(*ids, error="given up"))  # type: ignore[attr-defined]
        (self.trunk,) = trunks(self.engines, ["here"] * count, lambda node, there: FakeRay(there))
        self.ray: FakeRay = self.trunk.hub
        self.lines = await started([self.trunk])
        self.router = Router("p", self.lines, self.revive)
        self.ray.calls = 0
        return self

    async def revive(self, line: Line) -> None:
        line.engine.restart()
        await line.ready.remote()

    def stop(self) -> None:
        self.router.stop()
        self.trunk.stop()
        for task in (*self.ray.tasks, *self.ray.hub._polls.values()):
            task.cancel()


def run(count: int, scenario: Callable[[Node], Awaitable[None]]) -> None:
    async def bounded() -> None:
        node = await Node().build(count)
        await asyncio.wait_for(scenario(node), 20)
        await settle()
        assert not node.ray.hub._polls, "the hub polls engines that have nothing to do"
        node.stop()
        await settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(bounded())


def test_requests_of_one_tick_for_many_engines_travel_in_one_call() -> None:
    async def scenario(node: Node) -> None:
        tasks = ask(node.router, *range(40))
        await settle()
        assert [len(engine.open) for engine in node.engines] == [5] * 8
        assert (node.ray.submitted, node.ray.calls) == (1, 2)  # and one to collect
        for engine in node.engines:
            engine.answer()
        await settle()
        assert node.ray.calls <= 4
        assert await replies(tasks) == list(range(40))

    run(8, scenario)


def test_one_engine_does_not_hold_back_another() -> None:
    async def scenario(node: Node) -> None:
        slow, fast = ask(node.router, 1, 2)
        await settle()
        node.engines[1].answer()
        assert await replies([fast]) == [2] and not slow.done()
        (again,) = ask(node.router, 3)
        await settle()
        assert prompts(node.engines[1].batches[-1]) == [3]
        node.engines[1].answer()
        node.engines[0].answer()
        assert await replies([slow, again]) == [1, 3]

    run(2, scenario)


def test_an_engine_that_dies_loses_only_its_own() -> None:
    async def scenario(node: Node) -> None:
        one, two = node.engines
        tasks = ask(node.router, *range(6))
        await settle()
        kept = set(two.open)
        one.die()
        await settle()
        assert set(two.open) > kept and (node.router.counters.restarts, node.router.counters.retried) == (1, 3)
        assert all(replica.up for replica in node.router.replicas)
        two.answer()
        assert await replies(tasks) == list(range(6))
        tasks = ask(node.router, 6, 7)
        await settle()
        assert len(one.open) == len(two.open) == 1  # the dead one is back
        one.answer()
        two.answer()
        assert await replies(tasks) == [6, 7]

    run(2, scenario)


def test_a_hub_that_dies_costs_no_request() -> None:
    async def scenario(node: Node) -> None:
        tasks = ask(node.router, *range(6))
        await settle()
        before = [set(engine.open) for engine in node.engines]
        node.ray.die()
        await settle()
        assert not any(replica.up for replica in node.router.replicas)
        assert not any(task.done() for task in tasks)
        node.ray.restart()
        await settle()
        assert all(replica.up for replica in node.router.replicas)
        # Engines still work on what the first hub had passed on. Whoever answers first is right.
        assert set().union(*before) == set().union(*(engine.open for engine in node.engines))
        for engine in node.engines:
            engine.answer()
        assert await replies(tasks) == list(range(6))
        await settle()
        for engine in node.engines:
            engine.answer()

    run(2, scenario)


def test_what_dies_with_a_hub_that_is_back_at_once_is_asked_again() -> None:
    """The call that carries requests ends with the old hub, the one that waits for answers reaches the new one."""

    async def scenario(node: Node) -> None:
        whole, lost = node.ray.submit, []

        def into_the_void(*args: Any) -> None:
            lost.append(args)
            node.ray.submit = whole
            node.ray.die()
            node.ray.restart()

        node.ray.calls = 1  # so that it is a restart
        node.ray.submit = SimpleNamespace(remote=into_the_void)
        tasks = ask(node.router, 1, 2)
        await settle()
        assert len(lost) == 1 and node.router.counters.restarts == 2  # that of a hub is one of all its lines
        for engine in node.engines:
            engine.answer()
        assert await replies(tasks) == [1, 2]

    run(2, scenario)


def test_who_gives_up_is_passed_on() -> None:
    async def scenario(node: Node) -> None:
        kept, dropped = ask_for(node.router, "play", 1, 2)
        await settle()
        dropped.cancel()
        await settle()
        (engine,) = node.engines
        assert [request.prompt_ids for request in engine.open.values()] == [[1]]
        assert node.router.counters.aborted == 1
        engine.answer()
        assert await replies([kept]) == [1]

    run(1, scenario)


def test_answers_come_before_the_news_of_a_death() -> None:
    async def scenario(node: Node) -> None:
        (line,) = node.lines
        first = asyncio.ensure_future(line.collect.remote())
        await settle()
        line.take(News(died=True))
        line.take(News([answer := GenResult(0, [], [], [])]))
        assert await first == [answer]
        with pytest.raises(RayActorError):
            await line.collect.remote()

    run(1, scenario)


def test_a_death_that_nobody_waits_for_is_forgotten() -> None:
    async def scenario(node: Node) -> None:
        (line,) = node.lines
        line.take(News(died=True))
        (task,) = ask(node.router, 5)
        await settle()
        node.engines[0].answer()
        assert await replies([task]) == [5]
        assert node.router.counters.restarts == 0

    run(1, scenario)


def test_lines_stand_in_the_order_of_their_engines() -> None:
    async def scenario() -> None:
        engines = [FakeEngine() for _ in range(5)]
        found = trunks(engines, ["a", "b", "a", "c", "b"], lambda node, there: FakeRay(there))
        lines = await started(found)
        assert [line.engine for line in lines] == engines
        assert [sorted(trunk.lines) for trunk in found] == [[0, 2], [1, 4], [3]]
        assert lines[0].batches is engines[0].batches  # what is no request is the engine's own

    asyncio.run(scenario())


def test_a_death_is_told_though_the_engine_answers_again() -> None:
    """Before the driver has fetched the news, Ray may have restarted the engine, and it answers what came later."""

    async def scenario() -> None:
        engine = FakeEngine()
        hub = Hub({0: engine})
        await hub.submit({0: [GenRequest(1, [7])]}, {})
        await settle()
        engine.die()
        await settle()
        engine.restart()
        await hub.submit({0: [GenRequest(2, [8])]}, {})
        engine.answer()
        await settle()
        news = (await hub.collect())[0]
        assert news.died and [result.id for result in news.results] == [2]

    asyncio.run(asyncio.wait_for(scenario(), 5))


def test_a_hub_counts_what_it_passes_on_by_id() -> None:
    """A late answer to the hub's former life does not stand for one that is still to come."""

    async def scenario() -> None:
        engine = FakeEngine()
        hub = Hub({0: engine})
        engine.done.append(GenResult(99, [], [], []))
        await hub.submit({0: [GenRequest(1, [7])]}, {})
        await settle()
        assert [result.id for result in (await hub.collect())[0].results] == [99]
        engine.answer()
        assert [result.id for result in (await hub.collect())[0].results] == [1]

    asyncio.run(asyncio.wait_for(scenario(), 5))
