"""The contract of the `Engine` port, over a real socket, for every implementation that runs without vLLM and Ray."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.serving.engine import ENGINES, Engine
from actors.serving.messages import GenRequest
from actors.serving.wire import ChannelHub, EngineChannel, Restarted
from benchmarks.harness import simulated
from benchmarks.harness.simulated import SimulatedEngine
from tests.support.fake_vllm import numbered, serving
from tests.support.local_channel import actor, local_channel

CHOICES = ((1, 3), (1, 4), (2, 5), (2, 6))
Scenario = Callable[[Engine, EngineChannel], Awaitable[None]]


@pytest.fixture(params=["vllm", "simulated"])
def run(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Runs a scenario with an engine and a channel to it."""
    if request.param == "vllm":
        with serving(tmp_path, "keep") as one:
            one.llm.allow()

            async def connected(scenario: Scenario) -> None:
                async with local_channel(one.engine) as channel:
                    await scenario(one.engine, channel)

            yield lambda scenario: one.run(connected(scenario))
        return
    monkeypatch.setattr(simulated, "REFUSED", 0.0)

    async def alone(scenario: Scenario) -> None:
        engine, hub = SimulatedEngine(random.Random(0), 0.005), ChannelHub("127.0.0.1")
        channel = EngineChannel(hub, actor(engine))
        await channel.connect()
        await scenario(engine, channel)
        channel.close()
        engine.die()
        hub.close()

    yield lambda scenario: asyncio.run(asyncio.wait_for(alone(scenario), 20))


async def results_of(channel: EngineChannel, count: int) -> dict[int, Any]:
    results: dict[int, Any] = {}
    while len(results) < count:
        for result in await channel.collect():
            assert result.id not in results, "a request has two results"
            results[result.id] = result
    return results


def test_each_request_has_one_result_of_its_form(run: Any) -> None:
    async def scenario(engine: Engine, channel: EngineChannel) -> None:
        reads = [GenRequest(i, [7], choices=CHOICES, read=True) for i in range(5)]
        samples = [GenRequest(i, [7], choices=CHOICES) for i in range(5, 10)]
        channel.submit([*reads, *samples])
        channel.abort([99])  # an unknown id is ignored
        results = await results_of(channel, 10)
        for read in reads:
            result = results[read.id]
            assert (result.output_ids, result.versions, len(result.choice_logprobs)) == ([], [0], len(CHOICES))
        for sample in samples:
            result = results[sample.id]
            assert tuple(result.output_ids) == CHOICES[result.choice]
            assert len(result.logprobs) == len(result.versions) == len(result.allowed) == len(result.output_ids)
            assert all(token in legal for token, legal in zip(result.output_ids, result.allowed))

    run(scenario)


def test_versions_follow_the_weights_and_never_go_back(run: Any) -> None:
    async def scenario(engine: Engine, channel: EngineChannel) -> None:
        report = await engine.update_weights(3, numbered(20))
        assert report.keys() >= {"bytes", "seconds", "drain_s"}
        channel.submit([GenRequest(0, [7], choices=CHOICES)])
        assert (await results_of(channel, 1))[0].versions == [3, 3]
        with pytest.raises(ValueError, match="older"):
            await engine.update_weights(2, numbered(30))
        status = await engine.status()
        assert (status["version"], status["adapters"], status["running"]) == (3, {}, 0)

    run(scenario)


def test_a_connection_epoch_is_watched_until_another_begins(run: Any) -> None:
    async def scenario(engine: Engine, channel: EngineChannel) -> None:
        watching = asyncio.ensure_future(engine.watch(channel._epoch))
        await asyncio.sleep(0.01)
        assert not watching.done()
        with pytest.raises(Restarted):
            await engine.watch(b"another")
        watching.cancel()

    run(scenario)


def test_engines_are_found_by_name() -> None:
    import actors.engine.actor as vllm

    assert ENGINES["vllm"] is vllm.VLLMEngine
    assert "did you mean vllm?" in ENGINES.unknown("vlm")
