"""Engines that only pretend: a drawn delay, then a legal reply; sometimes a failure, sometimes a death.

Many replicas share one Ray actor (`Host`), so that 256 of them fit on a small machine; each is addressed, polled
and restarted on its own, and the router cannot tell (`Handle` answers like an actor's handle).
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from actors.messages import GenRequest, GenResult, Parcel

SIGMA = 1.0
"""Of the lognormal delays: one in a hundred takes six times the mean."""
REFUSED, DEATHS = 1e-4, 2e-4
"""Per request: it fails (its play is tried again), or one of 256 replicas dies with all that it holds."""
RESTART_S = 1.0


class Died(RuntimeError):
    """A simulated engine is gone."""


@dataclass
class Simulated:
    """One replica inside a host."""

    done: Parcel[GenResult] = field(default_factory=Parcel)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    life: int = 0
    """Counts restarts: what an earlier life was asked is never answered."""
    dead: bool = False


class Host:
    """A Ray actor with `replicas` simulated engines."""

    def __init__(self, replicas: int, seed: int):
        self.rng = random.Random(seed)
        self.replicas = [Simulated() for _ in range(replicas)]
        self.mean_s, self.deaths = 1.0, 0.0

    async def begin(self, mean_s: float, deaths: float) -> None:
        """A new measurement: everything asked before is forgotten, polls under way end."""
        self.mean_s, self.deaths = mean_s, deaths
        for number in range(len(self.replicas)):
            await self.restart(number)

    async def submit(self, number: int, batch: list[GenRequest]) -> None:
        replica, loop, rng = self.replicas[number], asyncio.get_running_loop(), self.rng
        if rng.random() < self.deaths * len(batch):
            replica.dead = True
            replica.news.set()
        mean = math.log(self.mean_s) - SIGMA**2 / 2
        for request in batch:
            loop.call_later(rng.lognormvariate(mean, SIGMA), self._finish, replica, replica.life, request)

    async def collect(self, number: int) -> list[GenResult]:
        replica = self.replicas[number]
        life = replica.life
        while not replica.done and not replica.dead and replica.life == life:
            replica.news.clear()
            await replica.news.wait()
        if replica.life != life:
            return []
        if replica.dead:
            raise Died(f"replica {number}")
        done, replica.done = replica.done, Parcel()
        return done

    async def restart(self, number: int) -> None:
        replica = self.replicas[number]
        replica.life, replica.dead, replica.done = replica.life + 1, False, Parcel()
        replica.news.set()

    def _finish(self, replica: Simulated, life: int, request: GenRequest) -> None:
        if replica.life == life and not replica.dead:
            replica.done.append(answer(request, self.rng))
            replica.news.set()


def answer(request: GenRequest, rng: random.Random) -> GenResult:
    """A legal reply, of the shape that vLLM's has (actors/engine_flight.py)."""
    if rng.random() < REFUSED:
        return GenResult(request.id, [], [], [], finish="error", error="simulated failure")
    if request.read:
        share = math.log(1 / len(request.choices))
        return GenResult(request.id, [], [], [0], choice_logprobs=[share] * len(request.choices))
    choice = rng.randrange(len(request.choices))
    ids = list(request.choices[choice])
    allowed = [[token] for token in ids]
    return GenResult(request.id, ids, [-1.0] * len(ids), [0] * len(ids), allowed, choice=choice)


class Handle:
    """One replica of a host, with the calls that a router makes of an engine's handle."""

    def __init__(self, host: Any, number: int):
        self.submit = remote(lambda batch: host.submit.remote(number, batch))
        self.collect = remote(lambda: host.collect.remote(number))
        self.abort = remote(lambda ids: None)  # what is asked for is answered in its time
        self.restart = remote(lambda: host.restart.remote(number))


def remote(call: Callable[..., Any]) -> SimpleNamespace:
    return SimpleNamespace(remote=call)


async def revive(handle: Handle) -> None:
    """What the system does for a real engine: wait until it is back."""
    await asyncio.sleep(RESTART_S)
    await handle.restart.remote()
