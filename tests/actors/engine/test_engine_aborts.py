"""An engine that is told which requests nobody waits for any more. vLLM is a stand-in (tests/support/fake_vllm.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.serving.messages import GenRequest, GenResult
from actors.serving.wire import ChannelHub, EngineChannel
from tests.support.fake_vllm import FIRST, TWICE, Serving, begun, numbered, serving, swapping
from tests.support.local_channel import actor


@pytest.fixture
def draining(tmp_path: Path) -> Iterator[Serving]:
    with serving(tmp_path, "drain") as one:
        yield one


def test_an_engine_ends_what_it_is_told_to_and_answers_each_once(draining: Serving) -> None:
    async def scenario(channel: EngineChannel) -> None:
        engine, llm = draining.engine, draining.llm
        read = GenRequest(3, [5], choices=TWICE, read=True)  # three requests of vLLM
        channel.submit([*(GenRequest(id, [5], max_tokens=3) for id in range(3)), read])
        await draining.until(lambda: len(llm.running) == 6)
        status = await engine.status()
        assert (status["running"], status["waiting"]) == (4, 0)
        channel.abort([1, 3, 77])
        await draining.until(lambda: len(llm.running) == 2 == len(engine._submitted))
        llm.allow()
        found: list[GenResult] = []
        while len(found) < 4:
            found += await channel.collect()
        assert {result.id: result.finish for result in found} == {0: "length", 1: "error", 2: "length", 3: "error"}
        assert all("aborted" in result.error for result in found if result.id in (1, 3))
        channel.abort([0, 1])  # too late
        channel.submit([GenRequest(4, [5], max_tokens=1)])
        assert [result.id for result in await channel.collect()] == [4]
        status = await engine.status()
        assert (status["aborted"], status["running"], status["waiting"]) == (2, 0, 0)

    draining.run(draining.on_channel(scenario))


def test_a_swap_does_not_wait_for_what_is_given_up_and_held_requests_can_be(draining: Serving) -> None:
    async def scenario(channel: EngineChannel) -> None:
        task = await begun(draining, [GenRequest(0, [5], max_tokens=9)], 1)
        update = await swapping(draining, 21, 1)
        channel.submit([GenRequest(1, [5], max_tokens=2), GenRequest(2, [5], max_tokens=2)])
        channel.abort([0, 1])
        await update
        draining.llm.allow()
        assert (await task)[0].finish == "error" and draining.llm.loads == [(21, 0)]
        found: list[GenResult] = []
        while len(found) < 2:
            found += await channel.collect()
        assert {result.id: (result.finish, result.output_ids) for result in found} == {
            1: ("error", []), 2: ("length", [21, 21])
        }  # fmt: skip
        assert draining.llm.most == 1, "what was held and given up never ran"

    draining.run(draining.on_channel(scenario))


def test_the_stand_in_tells_weights_apart(draining: Serving) -> None:
    """The checks above are worth something only if tokens say what they were computed with."""

    async def scenario() -> None:
        draining.llm.allow()
        (before,) = await draining.engine.generate([GenRequest(0, [5], max_tokens=1)])
        await draining.engine.update_weights(1, numbered(30))
        (after,) = await draining.engine.generate([GenRequest(0, [5], max_tokens=1)])
        assert (before.output_ids, after.output_ids) == ([FIRST], [30])

    draining.run(scenario())


def test_an_engine_whose_driver_has_gone_ends(draining: Serving) -> None:
    """Its process, that is: `_die` is a stand-in here."""

    async def scenario() -> None:
        hub = ChannelHub("127.0.0.1")
        channel = EngineChannel(hub, actor(draining.engine))
        await channel.connect()
        channel.submit([GenRequest(0, [5], max_tokens=3)])
        await draining.until(lambda: len(draining.llm.running) == 1)
        hub.close()
        await draining.until(lambda: not draining.engine._thread.is_alive())
        channel.close()

    draining.run(scenario())
    assert [type(error) for error in draining.died] == [ConnectionError]
    draining.died.clear()
