"""Requests that are given up, and weights that wait for requests under way, through Ray to a real engine and back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.players.chat import ChatCodec
from actors.serving.messages import GenRequest, GenResult
from actors.system import ServedPolicy, System
from configs.schema.run import EngineConfig, ModelConfig, PolicyConfig
from learners.models.tiny import materialise
from learners.weights import read_folder
from tests.support.rigs import Rig, rigged

LONG = 200

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


class Served(Rig):
    """One policy with a draining engine."""

    def __init__(self, folder: Path):
        super().__init__()
        model = ModelConfig(hidden_size=64, layers=2, heads=2, kv_heads=1, max_len=256)
        policy = PolicyConfig(model=model, engine=EngineConfig(kv_cache_mb=32, swap="drain"), trained=True)
        self.model_dir = str(materialise(model, ["yes", "no"], folder))
        self.system = System({"p": policy}, seed=0)
        codec = ChatCodec.from_pretrained(self.model_dir)
        self.served: ServedPolicy = self(self.system.serve("p", self.model_dir, codec))

    def ask(self, count: int) -> list[asyncio.Task[GenResult]]:
        requests = [GenRequest(0, [5 + i, 6, 7], max_tokens=LONG) for i in range(count)]
        return [asyncio.ensure_future(self.served.router.generate(request)) for request in requests]

    async def until(self, key: str, value: int) -> dict[str, Any]:
        """The engine's status once it says so."""
        while True:
            status: dict[str, Any] = (await self.system.statuses())["p"][0]
            if status[key] == value:
                return status
            await asyncio.sleep(0.01)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with rigged(lambda: Served(tmp_path_factory.mktemp("model")), actors=2) as rig:
        yield rig


def test_the_engine_ends_what_nobody_waits_for(rig: Served) -> None:
    async def scenario() -> None:
        tasks = rig.ask(8)
        await rig.until("running", 8)
        for task in tasks[2:]:
            task.cancel()
        status = await rig.until("aborted", 6)
        assert status["generated_tokens"] <= 2 * LONG, "none of the six came to its end"
        kept = await asyncio.gather(*tasks[:2])
        assert [len(result.output_ids) for result in kept] == [LONG] * 2
        assert rig.served.router.counters.aborted == 6
        await rig.until("running", 0)
        assert rig.served.router.replicas[0].load == 0

    rig(scenario())


def test_a_push_waits_for_requests_under_way_and_says_how_long(rig: Served) -> None:
    import ray

    async def scenario() -> None:
        tasks, version = rig.ask(4), rig.served.version + 1
        await rig.until("running", 4)
        push = asyncio.ensure_future(rig.system.push("p", version, ray.put(read_folder(Path(rig.model_dir)))))
        while not push.done():  # others ask meanwhile
            tasks += rig.ask(1)
            await asyncio.sleep(0.02)
        await push
        assert 0 < rig.served.drain_seconds <= rig.served.sync_seconds
        tasks += rig.ask(1)
        versions = [set(result.versions) for result in await asyncio.gather(*tasks)]
        assert versions[:4] == [{version - 1}] * 4 and versions[-1] == {version}
        assert all(len(found) == 1 for found in versions), "a reply of two versions"

    rig(scenario())
