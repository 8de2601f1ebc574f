"""What the tests of rollouts play: one turn, players that are told what to say, a stage in the background."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from actors.players.base import Player, Seated, UniformPlayer
from actors.rollout.ledger import Ledger
from actors.rollout.loop import Rollouts
from configs.load import load_protocol
from configs.schema.run import StageConfig
from protocols.base import Play, Protocol
from protocols.types import Message, Outcome, Reply, Task, Turn, TurnRequest
from tasks.archive import Archive
from tasks.kinds.pixels import Pixels

PROTOCOLS = Path(__file__).resolve().parent.parent.parent / "configs" / "protocol"
SOURCE = Pixels()
DEBATE = load_protocol(PROTOCOLS / "pixel_debate.yaml")
PROPOSED = load_protocol(PROTOCOLS / "pixel_proposed.yaml")


class OneTurn(Protocol):
    """One seat says something. "bad" makes the play invalid."""

    kind, name = "test", "one_turn"

    def play(self, task: Task, rng: random.Random) -> Play:
        (reply,) = yield [TurnRequest("a", "r", (Message("user", task.id),), 0)]
        assert isinstance(reply, Reply)
        if reply.text == "bad":
            return Outcome("invalid", reason="unreadable")
        return Outcome(score=rng.random())

    def roles(self) -> Mapping[str, str]:
        return {"a": "r"}

    def literal_texts(self) -> list[str]:
        return []


class Uniform:
    """Plays uniformly and counts what it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.player = UniformPlayer(seed=0)

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        self.asked += 1
        await asyncio.sleep(0)
        return await self.player(request, history)


class Scripted:
    """Replies with what `function(task id)` says; counts the requests per task."""

    def __init__(self, function: Callable[[str], Reply | str] = lambda id: "ok"):
        self.function, self.asked = function, Counter[str]()

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        id = request.messages[0].text
        self.asked[id] += 1
        await asyncio.sleep(0)
        reply = self.function(id)
        return Reply(reply) if isinstance(reply, str) else reply


def rollouts(
    ledger: Ledger, player: Player, protocol: Protocol | None = None, state: Any = None, **settings: Any
) -> Rollouts:
    protocol = protocol or OneTurn()
    players = {role: Seated("p", player) for role in protocol.roles().values()}
    stage = StageConfig(**{"plays_per_step": 4, **settings})
    return Rollouts("s", stage, protocol, SOURCE, players, ledger, 7, Archive(), state)


class Running:
    """`Rollouts.run` in the background, until the block ends."""

    def __init__(self, rollouts: Rollouts, ledger: Ledger):
        self.rollouts, self.ledger = rollouts, ledger

    async def __aenter__(self) -> Running:
        self.task = asyncio.ensure_future(self.rollouts.run())
        await self.settle()
        return self

    async def __aexit__(self, *error: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def settle(self) -> None:
        """Until nothing moves any more."""
        quiet, before = 0, None
        while quiet < 200:
            await asyncio.sleep(0)
            now = (self.rollouts.next_group, self.ledger.waiting, self.ledger.counts.total())
            quiet, before = (quiet + 1 if now == before else 0), now

    @property
    def started(self) -> int:
        return self.rollouts.next_group


def run(folder: Path, scenario: Callable[[Ledger], Any]) -> Any:
    async def bounded() -> Any:
        ledger = Ledger(folder)
        try:
            return await asyncio.wait_for(scenario(ledger), 30)
        finally:
            ledger.close()
            assert asyncio.all_tasks() == {asyncio.current_task()}, "plays went on after the end"

    return asyncio.run(bounded())
