"""Who sits in the opponent's place: engines that hold one opponent checkpoint at a time, and whom each play meets.

    redraw (learn_loop, between steps) ──► slots ──► seating (rollout_loop, one per group of plays)

An opponent checkpoint is exchanged only when no play is under way against it: `redraw` waits for those plays, and
plays that
begin meanwhile wait for `redraw`. So every play meets one opponent from beginning to end, at any staleness.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

from actors.concurrency import gather_or_cancel
from actors.league.pool import League, Snapshot
from actors.players.base import Seated
from configs.policies import rules_of
from configs.schema.run import OpponentsConfig

Load = Callable[[Snapshot], Awaitable[Seated]]
"""Brings the weights of an opponent checkpoint to an engine; returns who plays it."""


class OpponentSlot:
    """One engine, and the opponent checkpoint that it holds."""

    def __init__(self, load: Load):
        self._load = load
        self.snapshot: Snapshot | None = None
        self._seated: Seated | None = None
        self._playing = 0
        self._turnstile = asyncio.Condition()
        self._closed = False

    @property
    def held(self) -> str:
        """The name of the opponent checkpoint held."""
        return "" if self.snapshot is None else self.snapshot.name

    async def hold(self, snapshot: Snapshot) -> None:
        """Waits until nobody plays against the opponent checkpoint held now, then holds another."""
        if snapshot == self.snapshot:
            return
        self._closed = True
        try:
            async with self._turnstile:
                await self._turnstile.wait_for(lambda: self._playing == 0)
            self._seated = await self._load(snapshot)
            self.snapshot = snapshot
        finally:
            self._closed = False
            async with self._turnstile:
                self._turnstile.notify_all()

    @asynccontextmanager
    async def playing(self) -> AsyncIterator[Seated]:
        """The opponent checkpoint held, for as long as the block lasts. Waits while another is being brought."""
        async with self._turnstile:
            await self._turnstile.wait_for(lambda: not self._closed)
            self._playing += 1
        assert self._seated is not None, "an engine for opponent checkpoints holds none yet"
        try:
            yield self._seated
        finally:
            self._playing -= 1
            async with self._turnstile:
                self._turnstile.notify_all()


class Opponents:
    """Whom the plays of one stage meet. Draws depend on seed, stage, step and group, and on the league."""

    def __init__(
        self,
        stage: str,
        settings: OpponentsConfig,
        league: League,
        slots: Sequence[OpponentSlot],
        fixed: Mapping[str, Seated],
        learners: Sequence[str],
        past_of: Sequence[str],
        seed: int,
    ):
        """`fixed`: policy -> who plays it. `learners`: policies that learn here. `past_of`: whose opponent
        checkpoints there are."""
        self.stage, self.settings, self.league, self.slots = stage, settings, league, slots
        self.fixed, self.learners, self.seed = dict(fixed), list(learners), seed
        self.policies = settings.against or list(past_of)
        self.rules = rules_of(settings)

    @property
    def candidates(self) -> list[Snapshot]:
        """Opponent checkpoints that may be met, oldest first."""
        return self.league.of(self.policies)

    async def redraw(self, step: int) -> None:
        """Gives every engine for opponent checkpoints one to hold, drawn independently."""
        rng = random.Random(f"{self.seed}/{self.stage}/held/{step}")
        power, candidates = self.settings.power, self.candidates
        drawn = [self.league.draw(rng, self.rules, self.learners, candidates, power) for _ in self.slots]
        await gather_or_cancel([slot.hold(one) for slot, one in zip(self.slots, drawn)])

    @asynccontextmanager
    async def seating(self, group: int) -> AsyncIterator[dict[str, Seated]]:
        """seat -> its opponent, for all plays of a group: siblings meet the same one, in the same seat. Empty in
        self-play. Seats take turns from group to group."""
        rng = random.Random(f"{self.seed}/{self.stage}/opponent/{group}")
        seat = self.settings.seats[group % len(self.settings.seats)]
        mix = self.settings.mix
        shares = {"self": mix.get("self", 0.0), "fixed": mix.get("fixed", 0.0), "past": sum(self.rules.values())}
        (kind,) = rng.choices(list(shares), list(shares.values()))
        if kind == "past":
            async with rng.choice(self.slots).playing() as opponent:
                yield {seat: opponent}
        elif kind == "fixed":
            yield {seat: self.fixed[rng.choice(sorted(self.fixed))]}
        else:
            yield {}
