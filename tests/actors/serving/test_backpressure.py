"""When the engines of one policy are slower than those of another: nothing piles up, and one can see which."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.players.base import Seated
from actors.rollout.ledger import Ledger
from actors.rollout.loop import Rollouts
from actors.serving import router as router_module
from actors.serving.messages import GenRequest
from actors.serving.router import Router
from configs.schema.run import StageConfig
from protocols.base import Play, Protocol
from protocols.types import Message, Outcome, Reply, Task, Turn, TurnRequest
from tasks.archive import Archive
from tasks.kinds.lists import Lists
from tests.support.fake_engine import FakeEngine
from tests.support.rollout_stage import run

TURNS = 3
SOURCE = Lists(sampler="uniform")


class Alternating(Protocol):
    """Two seats take turns, TURNS each."""

    kind, name = "test", "alternating"

    def play(self, task: Task, rng: random.Random) -> Play:
        for turn in range(TURNS):
            for seat in ("quick", "slow"):
                yield [TurnRequest(seat, seat, (Message("user", task.id),), turn)]
        return Outcome(score=1.0)

    def roles(self) -> Mapping[str, str]:
        return {"quick": "quick", "slow": "slow"}

    def literal_texts(self) -> list[str]:
        return []


class Asks:
    """A player on a router; sees how many requests are open at once."""

    def __init__(self, replicas: int = 1):
        async def revive(channel: Any) -> None:
            raise AssertionError

        self.engines = [FakeEngine() for _ in range(replicas)]
        self.router = Router("p", self.engines, revive)
        self.asked = self.open = self.most = 0

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        self.asked, self.open = self.asked + 1, self.open + 1
        self.most = max(self.most, self.open)
        await self.router.generate(GenRequest(0, [1]))
        self.open -= 1
        return Reply("x")


async def serve(quick: Asks, slow: Asks, every: int) -> None:
    """The quick engine answers all that it has at every tick, each slow one a single request at every tenth or so."""
    tick = 0
    while True:
        await asyncio.sleep(0)
        tick += 1
        quick.engines[0].answer(*list(quick.engines[0].open))
        for engine in slow.engines if tick % every == 0 else ():
            if engine.open:
                engine.answer(next(iter(engine.open)))


@asynccontextmanager
async def playing(ledger: Ledger, quick: Asks, slow: Asks, stage: StageConfig) -> AsyncIterator[Rollouts]:
    """Rollouts of plays in which a quick and a slow policy take turns."""
    players = {"quick": Seated("q", quick), "slow": Seated("s", slow)}
    subject = Rollouts("s", stage, Alternating(), SOURCE, players, ledger, 7, Archive())
    running = [asyncio.ensure_future(subject.run()), asyncio.ensure_future(serve(quick, slow, 10))]
    yield subject
    for one in running:
        one.cancel()
    quick.router.stop()
    slow.router.stop()
    await asyncio.gather(*running, return_exceptions=True)
    await asyncio.sleep(0)


@pytest.mark.parametrize("staleness", [0, 1])
def test_the_slowest_policy_sets_the_pace_and_nothing_piles_up(tmp_path: Path, staleness: int) -> None:
    async def scenario(ledger: Ledger) -> None:
        quick, slow, stage = Asks(), Asks(), StageConfig(plays_per_step=4, max_staleness=staleness, steps=3)
        slots = 4 * (1 + staleness)
        async with playing(ledger, quick, slow, stage) as subject:
            for step in range(3):
                plays = await subject.batch()
                assert subject.next_group <= slots + 4 * step, "no play beyond the slots, however quick one policy is"
                subject.release(plays)
        assert slow.most <= slots and slow.asked == quick.asked == 3 * 4 * TURNS

    run(tmp_path, scenario)


def test_replicas_of_the_slow_policy_share_its_requests(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        quick, slow, stage = Asks(), Asks(replicas=4), StageConfig(plays_per_step=8, steps=1)
        async with playing(ledger, quick, slow, stage) as subject:
            await subject.batch()
        shares = [sum(map(len, engine.batches)) for engine in slow.engines]
        assert sum(shares) == 8 * TURNS and max(shares) <= 2 * min(shares), shares

    run(tmp_path, scenario)


def test_seconds_under_way_tell_who_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests of 3 and 5 seconds by a clock of the test's own: 8 in all."""

    async def scenario() -> None:
        clock = SimpleNamespace(now=100.0)
        monkeypatch.setattr(router_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
        asks = Asks()
        asked = [asyncio.ensure_future(asks.router.generate(GenRequest(0, [i]))) for i in range(2)]
        for id, now in ((0, 103.0), (1, 105.0)):
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            clock.now = now
            asks.engines[0].answer(id)
            await asked[id]
        assert asks.router.counters.metrics("p")["request_s/p"] == 8.0
        asks.router.stop()

    asyncio.run(scenario())
