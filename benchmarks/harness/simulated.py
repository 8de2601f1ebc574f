"""Engines that only pretend: a drawn delay, then a legal reply; sometimes a failure, sometimes a death.

Many replicas share one Ray actor (`Host`), so that 256 of them fit on a small machine. Each has a connection of its
own, dies and comes back alone, and the driver cannot tell (`Handle` is like an actor's).
"""

from __future__ import annotations

import asyncio
import functools
import math
import random
from types import SimpleNamespace
from typing import Any

from actors.serving.messages import GenRequest, GenResult
from actors.serving.wire import Line, Order, decode_order, encode

SIGMA = 1.0
"""Of the lognormal delays: one in a hundred takes six times the mean."""
REFUSED, DEATHS = 1e-4, 2e-4
"""Per request: it fails (its play is tried again), or one of 256 replicas dies with all that it holds."""
RESTART_S = 1.0


class Died(RuntimeError):
    """A simulated engine is gone."""


class Simulated:
    """One replica inside a host: the engine's end of a line (actors/serving/wire.py), and one life."""

    def __init__(self, address: str, life: bytes):
        import zmq.asyncio

        self.life = life
        self.died = asyncio.Event()
        self._socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.IDENTITY, life)
        self._socket.connect(address)
        self._socket.send(b"")

    async def order(self) -> Order:
        return decode_order(await self._socket.recv())

    def reply(self, result: GenResult) -> None:
        if not self.died.is_set():
            self._socket.send(encode([result]))

    def die(self) -> None:
        """With all that it holds."""
        if not self.died.is_set():
            self.died.set()
            self._socket.close(linger=0)


class Host:
    """A Ray actor with many simulated engines."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.replicas: dict[int, Simulated] = {}
        self.mean_s, self.deaths = 1.0, 0.0

    async def begin(self, mean_s: float, deaths: float) -> None:
        """A new measurement: everything asked before is forgotten."""
        self.mean_s, self.deaths = mean_s, deaths
        for replica in self.replicas.values():
            replica.die()
        self.replicas = {}

    async def connect(self, number: int, address: str, life: bytes) -> dict[str, Any]:
        """A new life of that replica."""
        if number in self.replicas:
            self.replicas[number].die()
        replica = self.replicas[number] = Simulated(address, life)
        serving = asyncio.ensure_future(self._serve(replica))
        ended = asyncio.ensure_future(replica.died.wait())
        ended.add_done_callback(lambda _: serving.cancel())
        return {"policy": f"simulated {number}"}

    async def watch(self, number: int, life: bytes) -> None:
        """Raises Died when that life ends."""
        replica = self.replicas.get(number)
        if replica is not None and replica.life == life:
            await replica.died.wait()
        raise Died(f"replica {number}")

    async def _serve(self, replica: Simulated) -> None:
        mean, rng, loop = math.log(self.mean_s) - SIGMA**2 / 2, self.rng, asyncio.get_running_loop()
        while True:
            order = await replica.order()  # who gives up is answered all the same
            if rng.random() < self.deaths * len(order.requests):
                replica.die()
            for request in order.requests:
                loop.call_later(rng.lognormvariate(mean, SIGMA), self._finish, replica, request)

    def _finish(self, replica: Simulated, request: GenRequest) -> None:
        replica.reply(answer(request, self.rng))


def answer(request: GenRequest, rng: random.Random) -> GenResult:
    """A legal reply, of the shape that vLLM's has (actors/engine/flight.py)."""
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
    """One replica of a host, with the calls that a line makes of an engine."""

    def __init__(self, host: Any, number: int):
        self.connect, self.watch = (
            SimpleNamespace(remote=functools.partial(method.remote, number)) for method in (host.connect, host.watch)
        )


async def revive(line: Line) -> None:
    """What the system does for a real engine: wait until it is back."""
    await asyncio.sleep(RESTART_S)
    await line.connect()
