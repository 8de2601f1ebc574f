"""Wire: what is sent comes out, each result once; deaths, restarts, strangers. Real sockets, engines are stand-ins."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st
from ray.exceptions import RayActorError, RayError

from actors.serving import wire
from actors.serving.messages import GenRequest, GenResult
from actors.serving.router import Router
from actors.serving.wire import (
    ChannelHub,
    EngineChannel,
    EngineEndpoint,
    EngineMessage,
    EngineUnreachable,
    Restarted,
)
from tests.support.fake_engine import ask, replies, settle
from tests.support.local_channel import actor

IDS = st.lists(st.integers(0, 2**31), max_size=8)
LOGPROBS = st.lists(st.floats(allow_nan=False, max_value=0.0), max_size=8)
REQUESTS = st.builds(
    GenRequest,
    id=st.integers(0, 2**62),
    prompt_ids=IDS,
    temperature=st.floats(0, 10),
    stop_ids=IDS.map(tuple),
    choices=st.lists(IDS.map(tuple), max_size=4).map(tuple),
    read=st.booleans(),
    seed=st.none() | st.integers(0, 2**63 - 1),
    play=st.text(max_size=8),
    adapter=st.text(max_size=8),
)
RESULTS = st.builds(
    GenResult,
    id=st.integers(0, 2**62),
    output_ids=IDS,
    logprobs=LOGPROBS,
    versions=IDS,
    allowed=st.none() | st.lists(IDS, max_size=4),
    choice=st.none() | st.integers(0, 9),
    choice_logprobs=st.none() | LOGPROBS,
    finish=st.sampled_from(["stop", "length", "error"]),
    error=st.text(max_size=8),
)


@given(st.lists(REQUESTS, max_size=5), IDS, st.lists(RESULTS, max_size=5))
def test_what_is_sent_comes_out(requests: list[GenRequest], given_up: list[int], results: list[GenResult]) -> None:
    order = wire.decode_message(wire.encode(EngineMessage(requests, given_up)))
    assert order == EngineMessage(requests, given_up)
    assert wire.decode_results(wire.encode(results)) == results
    for one, other in zip(order.requests, requests):  # a tuple stays one: choices are keys of caches in the engine
        assert [type(choice) for choice in one.choices] == [type(choice) for choice in other.choices]
        assert type(one.choices) is type(one.stop_ids) is tuple


def test_infinite_logprobs_travel() -> None:
    (found,) = wire.decode_results(wire.encode([GenResult(1, [2], [-math.inf], [0])]))
    assert found.logprobs == [-math.inf]


def test_what_is_no_order_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        wire.decode_message(wire.encode([[["id", "prompt"]], []]))


class StandIn:
    """An engine that runs in this loop: it notes orders, and answers, dies and comes back when the test says so."""

    def __init__(self) -> None:
        self.endpoint: EngineEndpoint | None = None
        self.epoch, self.epochs = b"", 0
        self.open: dict[int, GenRequest] = {}
        self.given_up: list[int] = []
        self.ended = asyncio.Event()
        self.deaf = False

    async def connect(self, address: str, epoch: bytes) -> dict[str, Any]:
        if self.ended.is_set():  # Ray has restarted it
            self.endpoint, self.ended = None, asyncio.Event()
        self.epoch, self.epochs = epoch, self.epochs + 1
        self.endpoint = self.endpoint or EngineEndpoint()
        if not self.deaf:
            self.endpoint.connect(address, epoch)
        return {"policy": "p"}

    async def watch(self, epoch: bytes) -> None:
        if epoch != self.epoch:
            raise RayError from Restarted("what Ray makes of it")
        await self.ended.wait()
        raise RayActorError

    async def hear(self, count: int) -> None:
        """Until it has been told so many things more."""
        assert self.endpoint is not None
        while count > 0:
            await asyncio.sleep(0.001)
            for order in self.endpoint.receive():
                self.open.update({request.id: request for request in order.requests})
                self.given_up += order.cancelled
                count -= len(order.requests) + len(order.cancelled)

    def answer(self, *ids: int) -> None:
        assert self.endpoint is not None
        results = [GenResult(id, list(self.open.pop(id).prompt_ids), [], []) for id in ids or tuple(self.open)]
        self.endpoint.send(results)

    def answer_at_once(self) -> None:
        """Whatever has come."""
        assert self.endpoint is not None
        for order in self.endpoint.receive():
            self.open.update({request.id: request for request in order.requests})
            self.answer()

    def die(self) -> None:
        assert self.endpoint is not None
        self.endpoint.close()
        self.open = {}
        self.ended.set()


class Node:
    """Some stand-ins, channels to them, and the real router in front."""

    def __init__(self, count: int):
        self.engines = [StandIn() for _ in range(count)]
        self.hub = ChannelHub("127.0.0.1")
        self.channels = [EngineChannel(self.hub, actor(engine)) for engine in self.engines]
        self.back = asyncio.Event()
        self.router = Router("p", self.channels, self.revive)

    async def revive(self, channel: EngineChannel) -> None:
        await self.back.wait()
        await channel.connect()

    def stop(self) -> None:
        self.router.stop()
        for channel in self.channels:
            channel.close()
        self.hub.close()
        for engine in self.engines:
            if engine.endpoint is not None and not engine.ended.is_set():
                engine.endpoint.close()


def run(count: int, scenario: Callable[[Node], Awaitable[None]]) -> None:
    async def bounded() -> None:
        node = Node(count)
        try:
            await asyncio.gather(*(channel.connect() for channel in node.channels))
            await asyncio.wait_for(scenario(node), 20)
        finally:
            node.stop()
        await settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}, "something was left running"

    asyncio.run(bounded())


def test_requests_reach_their_engine_and_answers_whoever_submitted() -> None:
    async def scenario(node: Node) -> None:
        tasks = ask(node.router, *range(40))
        await asyncio.gather(*(engine.hear(10) for engine in node.engines))
        for engine in reversed(node.engines):
            engine.answer()
        assert await replies(tasks) == list(range(40))

    run(4, scenario)


def test_one_engine_does_not_hold_back_another() -> None:
    async def scenario(node: Node) -> None:
        slow, fast = ask(node.router, 1, 2)
        await asyncio.gather(*(engine.hear(1) for engine in node.engines))
        node.engines[1].answer()
        assert await replies([fast]) == [2] and not slow.done()
        node.engines[0].answer()
        assert await replies([slow]) == [1]

    run(2, scenario)


def test_who_gives_up_is_passed_on() -> None:
    async def scenario(node: Node) -> None:
        kept, dropped = ask(node.router, 1, 2)
        (engine,) = node.engines
        await engine.hear(2)
        dropped.cancel()
        await engine.hear(1)
        assert engine.given_up == [id for id, request in engine.open.items() if request.prompt_ids == [2]]
        engine.answer()
        assert await replies([kept]) == [1]

    run(1, scenario)


def test_an_engine_that_dies_loses_only_its_own_and_comes_back() -> None:
    async def scenario(node: Node) -> None:
        one, two = node.engines
        tasks = ask(node.router, *range(6))
        await asyncio.gather(one.hear(3), two.hear(3))
        one.die()
        await two.hear(3)
        assert (node.router.counters.restarts, node.router.counters.retried) == (1, 3)
        two.answer()
        assert await replies(tasks) == list(range(6))
        node.back.set()
        while not all(replica.up for replica in node.router.replicas):
            await asyncio.sleep(0.001)
        assert one.epochs == 2
        tasks = ask(node.router, 6, 7)
        await asyncio.gather(one.hear(1), two.hear(1))
        one.answer()
        two.answer()
        assert await replies(tasks) == [6, 7]

    run(2, scenario)


def test_a_restarted_engine_never_hears_what_its_predecessor_was_submitted() -> None:
    """It died while nobody waited for it; the request goes to the epoch that has ended, and is asked again."""

    async def scenario(node: Node) -> None:
        (engine,) = node.engines
        engine.die()
        (task,) = ask(node.router, 5)
        await asyncio.sleep(0.05)
        assert node.router.counters.restarts == 1 and not task.done()
        node.back.set()
        await engine.hear(1)
        assert engine.epochs == 2 and [request.prompt_ids for request in engine.open.values()] == [[5]]
        engine.answer()
        assert await replies([task]) == [5] and node.router.counters.retried == 1

    run(1, scenario)


def test_what_an_engine_answered_before_it_died_counts() -> None:
    async def scenario(node: Node) -> None:
        (engine,), (channel,) = node.engines, node.channels
        channel.submit([GenRequest(3, [7])])
        await engine.hear(1)
        engine.answer()
        await asyncio.sleep(0.05)
        engine.die()
        await asyncio.sleep(0.05)
        assert [result.id for result in await channel.collect()] == [3]
        with pytest.raises(RayActorError):
            await channel.collect()

    run(1, scenario)


def test_an_answer_of_an_earlier_life_is_nobodys() -> None:
    async def scenario(node: Node) -> None:
        (engine,), (channel,) = node.engines, node.channels
        old = engine.endpoint
        assert old is not None
        engine.endpoint = None
        await channel.connect()
        old.send([GenResult(1, [], [], [])])
        channel.submit([GenRequest(2, [5])])
        await engine.hear(1)
        engine.answer()
        assert [result.id for result in await channel.collect()] == [2]
        old.close()

    run(1, scenario)


def test_a_stranger_is_not_listened_to() -> None:
    async def scenario(node: Node) -> None:
        (engine,), (channel,) = node.engines, node.channels
        stranger = EngineEndpoint()
        stranger.connect(node.hub.address, b"somebody")
        stranger.send([GenResult(2, [66], [], [])])
        assert stranger._socket is not None
        stranger._socket.send_multipart([b"", b"no", b"message"])
        channel.submit([GenRequest(2, [5])])
        await engine.hear(1)
        await asyncio.sleep(0.05)
        engine.answer()
        assert [result.output_ids for result in await channel.collect()] == [[5]]
        stranger.close()

    run(1, scenario)


def test_an_engine_that_cannot_reach_the_driver_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "HANDSHAKE_SECONDS", 0.05)

    async def scenario(node: Node) -> None:
        (engine,), (channel,) = node.engines, node.channels
        engine.deaf = True
        with pytest.raises(EngineUnreachable, match=r"policy 'p' runs, but could not connect .* tcp://127.0.0.1:\d+"):
            await channel.connect()

    run(1, scenario)


def test_an_engine_whose_driver_has_gone_says_so() -> None:
    async def scenario(node: Node) -> None:
        endpoint = node.engines[0].endpoint
        assert endpoint is not None and endpoint.receive() == []
        node.hub.close()
        with pytest.raises(ConnectionError, match="driver"):
            for _ in range(2000):
                endpoint.receive()
                await asyncio.sleep(0.001)
        node.channels[0].submit([GenRequest(1, [1])])  # at the end of a run: it goes nowhere
        node.channels[0].abort([1])

    run(1, scenario)


def test_nothing_is_left_lying_when_both_ends_speak_at_once() -> None:
    """ZeroMQ rings once, and not at all for what comes while something is sent."""

    async def scenario(node: Node) -> None:
        tasks: list[asyncio.Task[GenResult]] = []
        for number in range(2000):
            tasks += ask(node.router, number)
            for engine in node.engines:
                engine.answer_at_once()
            await asyncio.sleep(0)
        while not all(task.done() for task in tasks):
            for engine in node.engines:
                engine.answer_at_once()
            await asyncio.sleep(0.001)
        assert await replies(tasks) == list(range(2000))

    run(4, scenario)


def test_ringing_ends_the_waiting() -> None:
    async def scenario() -> None:
        endpoint = EngineEndpoint()
        for often in (2, 100_000, 2):  # more than the bell holds
            for _ in range(often):
                endpoint.wake()
            await asyncio.wait_for(asyncio.to_thread(endpoint.wait), 5)
        waiting = asyncio.ensure_future(asyncio.to_thread(endpoint.wait))
        await asyncio.sleep(0.05)
        assert not waiting.done(), "what was rung before is forgotten"
        endpoint.wake()
        await asyncio.wait_for(waiting, 5)
        endpoint.close()

    asyncio.run(scenario())
