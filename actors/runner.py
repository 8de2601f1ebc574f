"""run_play: drives one protocol generator, asking players for replies. Pure asyncio: no Ray, no vLLM.

What it consumes: a protocol, a task, a seed and a player for each role. What it waits for: replies.
What it produces: the episodes of the play, the root first, then its sub-plays.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from actors.players import Player
from protocols.base import Answer, Ask, Protocol, SubPlay
from protocols.types import Episode, Outcome, Reply, Task, Turn, TurnRequest


@dataclass(frozen=True, slots=True)
class Seated:
    """Who answers for a role."""

    policy: str
    player: Player


class MissingPlayer(ValueError):
    """A protocol asked a role that nobody plays."""

    def __init__(self, role: str, known: tuple[str, ...]):
        super().__init__(role, known)
        self.role, self.known = role, known

    def __str__(self) -> str:
        return f"nobody plays the role {self.role!r} (bound roles: {', '.join(self.known) or 'none'})"


async def run_play(
    protocol: Protocol,
    task: Task,
    seed: int,
    players: Mapping[str, Seated],
    id: str,
    parent: str | None = None,
    meta: Mapping[str, Any] | None = None,
) -> list[Episode]:
    """Plays `protocol` on `task` to its end. Errors of players propagate; nothing half-played is returned."""
    play = _Play(players, id)
    generator = protocol.play(task, random.Random(seed))
    answers: list[Answer] | None = None
    while True:
        try:
            asks = next(generator) if answers is None else generator.send(answers)
        except StopIteration as end:
            outcome: Outcome = end.value
            break
        answers = await play.answer(asks)
    recorded = replace(task, domain=None)
    root = Episode(id, protocol.name, recorded, seed, tuple(play.turns), outcome, parent, meta or {})
    return [root, *play.children]


class _Play:
    """The state of one running play: what each seat has said, and the finished sub-plays."""

    def __init__(self, players: Mapping[str, Seated], id: str):
        self.players, self.id = players, id
        self.turns: list[Turn] = []
        self.children: list[Episode] = []
        self._histories: dict[str, tuple[Turn, ...]] = {}

    async def answer(self, asks: list[Ask]) -> list[Answer]:
        """Answers in the order of `asks`; all of them proceed side by side."""
        if len(asks) == 1:
            replies: list[Any] = [await self._one(asks[0])]
        else:
            replies = await gather_or_cancel([self._one(ask) for ask in asks])
        answers: list[Answer] = []
        for ask, reply in zip(asks, replies):
            if isinstance(ask, SubPlay):
                self.children.extend(reply)
                answers.append(reply[0].outcome)
            else:
                self._record(ask, reply)
                answers.append(reply)
        return answers

    def _one(self, ask: Ask) -> Awaitable[Any]:
        if isinstance(ask, SubPlay):
            id = f"{self.id}/{ask.key}"
            return run_play(ask.protocol, ask.task, ask.seed, self.players, id, parent=self.id)
        seated = self._seated(ask.role)
        return seated.player(ask, () if ask.fresh else self._histories.get(ask.seat, ()))

    def _seated(self, role: str) -> Seated:
        try:
            return self.players[role]
        except KeyError:
            raise MissingPlayer(role, tuple(self.players)) from None

    def _record(self, ask: TurnRequest, reply: Reply) -> None:
        turn = Turn(
            seat=ask.seat, role=ask.role, policy=self.players[ask.role].policy, turn=ask.turn, phase=ask.phase,
            messages=ask.messages, text=reply.text, choices=ask.choices, probs=reply.probs, read=ask.read,
            fresh=ask.fresh, target=ask.target, situation=ask.situation, truncated=reply.truncated,
            trace=reply.trace,
        )  # fmt: skip
        self.turns.append(turn)
        if not ask.fresh:
            self._histories[ask.seat] = (*self._histories.get(ask.seat, ()), turn)


async def gather_or_cancel(awaitables: list[Awaitable[Any]]) -> list[Any]:
    """asyncio.gather that leaves nothing running: when one fails, the others are cancelled and awaited."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
