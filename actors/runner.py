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
    seats: Mapping[str, Seated] | None = None,
) -> list[Episode]:
    """Plays `protocol` on `task` to its end. Errors of players propagate; nothing half-played is returned.

    `players`: role -> who plays it. `seats`: seat -> who takes it instead.
    """
    play = _Play(players, id, seats or {})
    generator = protocol.play(task, random.Random(seed))
    answers: list[Answer] | None = None
    while True:
        try:
            asks = next(generator) if answers is None else generator.send(answers)
        except StopIteration as end:
            outcome: Outcome = end.value
            break
        answers = await play.answer(asks)
        unreadable = play.unreadable(asks, answers)
        if unreadable:
            generator.close()
            outcome = Outcome("invalid", reason=unreadable)
            break
    recorded = replace(task, domain=None, game=None)
    root = Episode(id, protocol.name, recorded, seed, tuple(play.turns), outcome, parent, meta or {})
    return [root, *play.children]


class _Play:
    """The state of one running play: what each seat has said, and the finished sub-plays."""

    def __init__(self, players: Mapping[str, Seated], id: str, seats: Mapping[str, Seated]):
        self.players, self.id, self.seats = players, id, seats
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

    @staticmethod
    def unreadable(asks: list[Ask], answers: list[Answer]) -> str:
        """Why the play cannot go on: a move that was to be one of the legal ones and that nobody could read. What
        becomes of a verdict that cannot be read is the protocol's own rule."""
        for ask, answer in zip(asks, answers):
            if isinstance(answer, Reply) and answer.unreadable and not getattr(ask, "read", False):
                return f"{getattr(ask, 'seat', '')} in {getattr(ask, 'phase', '')}: {answer.unreadable}"
        return ""

    def _one(self, ask: Ask) -> Awaitable[Any]:
        if isinstance(ask, SubPlay):
            id = f"{self.id}/{ask.key}"
            return run_play(
                ask.protocol, ask.task, ask.seed, self.players, id, parent=self.id, seats=self.seats
            )
        return self._seated(ask).player(ask, () if ask.fresh else self._histories.get(ask.seat, ()))

    def _seated(self, ask: TurnRequest) -> Seated:
        if ask.seat in self.seats:
            return self.seats[ask.seat]
        try:
            return self.players[ask.role]
        except KeyError:
            raise MissingPlayer(ask.role, tuple(self.players)) from None

    def _record(self, ask: TurnRequest, reply: Reply) -> None:
        turn = Turn(
            seat=ask.seat, role=ask.role, policy=self._seated(ask).policy, turn=ask.turn, phase=ask.phase,
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


async def unless(stop: asyncio.Event, awaitable: Awaitable[Any], error: type[Exception]) -> Any:
    """Awaits, but raises `error` as soon as `stop` is set."""
    task, stopping = asyncio.ensure_future(awaitable), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            raise error  # even when the result is there: a busy loop would never stop otherwise
        return task.result()
    finally:
        for one in (task, stopping):
            one.cancel()
        await asyncio.gather(task, stopping, return_exceptions=True)
