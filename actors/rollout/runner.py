"""run_play: drives one protocol generator, asking players for replies. Pure asyncio: no Ray, no vLLM.

What it consumes: a protocol, a task, a seed and a player for each role. What it waits for: replies.
What it produces: the episodes of the play, the root first, then its sub-plays.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import Any

from actors.concurrency import gather_or_cancel
from actors.players.base import PLAY, Seated
from actors.serving.seeds import turn_seed
from protocols.base import Answer, Ask, Protocol, SubPlay
from protocols.errors import UserError
from protocols.types import Episode, Outcome, Reply, Task, Turn, TurnRequest


class MissingPlayer(UserError):
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
    play = _Play(players, id, seats or {}, seed)
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

    def __init__(self, players: Mapping[str, Seated], id: str, seats: Mapping[str, Seated], seed: int):
        self.players, self.id, self.seats, self.seed = players, id, seats, seed
        self.turns: list[Turn] = []
        self.children: list[Episode] = []
        self._histories: dict[str, tuple[Turn, ...]] = {}
        self._asked: Counter[tuple[str, int]] = Counter()

    async def answer(self, asks: list[Ask]) -> list[Answer]:
        """Answers in the order of `asks`; all of them proceed side by side."""
        PLAY.set(self.id)  # each time: a sub-play may have run in this very task
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
        seated = self._seated(ask)
        if seated.seeded:
            place = (ask.seat, ask.turn)
            ask = replace(ask, seed=turn_seed(self.seed, *place, self._asked[place]))
            self._asked[place] += 1
        return seated.player(ask, () if ask.fresh else self._histories.get(ask.seat, ()))

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


