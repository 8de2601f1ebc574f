"""Simulated engines: a legal reply after a random delay, sometimes an error, sometimes the engine's death.

Many replicas share one Ray actor (`Host`), so that 256 of them fit on a small machine. Each replica is an `Engine`
with a connection of its own, dies and restarts alone, and looks to the driver like an actor (`Handle`).
"""

from __future__ import annotations

import asyncio
import functools
import math
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from actors.serving.engine import Engine
from actors.serving.messages import GenRequest, GenResult
from actors.serving.wire import EngineChannel, Restarted, decode_message, encode, handshake

SIGMA = 1.0
"""Of the lognormal delays: one in a hundred takes six times the mean."""
REFUSED, DEATHS = 1e-4, 2e-4
"""Probability per request that it gets an error, and that the replica dies with all its requests."""
RESTART_S = 1.0


class Died(RuntimeError):
    """A simulated engine has died."""


class SimulatedEngine(Engine):
    """Replies after lognormal delays of mean `mean_s` seconds; dies with probability `deaths` per request."""

    def __init__(self, rng: random.Random, mean_s: float, deaths: float = 0.0):
        self.rng, self.mean_s, self.deaths = rng, mean_s, deaths
        self.version, self.adapters, self.running = 0, dict[str, int](), 0
        self._socket: Any = None
        self._epoch, self._died = b"", asyncio.Event()

    async def connect(self, address: str, epoch: bytes) -> dict[str, Any]:
        import zmq.asyncio

        self.die()
        self._epoch, self._died, self.running = epoch, asyncio.Event(), 0
        self._socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        handshake(self._socket, address, epoch)
        serving = asyncio.ensure_future(self._serve())
        asyncio.ensure_future(self._died.wait()).add_done_callback(lambda _: serving.cancel())
        return {"policy": "simulated"}

    async def watch(self, epoch: bytes) -> None:
        if epoch != self._epoch:
            raise Restarted("this engine has not received the requests of that connection epoch")
        await self._died.wait()
        raise Died

    async def update_weights(self, version: int, buckets: Sequence[Any], adapter: str = "") -> dict[str, float]:
        if version < (self.adapters.get(adapter, 0) if adapter else self.version):
            raise ValueError(f"version {version} is older than the current one")
        if adapter:
            self.adapters[adapter] = version
        else:
            self.version = version
        return {"bytes": 0.0, "seconds": 0.0, "drain_s": 0.0}

    async def status(self) -> dict[str, Any]:
        numbers = {"running": self.running, "waiting": 0, "aborted": 0}
        return {"version": self.version, "adapters": dict(self.adapters), **numbers}

    def die(self) -> None:
        """Closes the connection; the replies to open requests are never sent."""
        if self._socket is not None:
            self._died.set()
            self._socket.close(linger=0)
            self._socket = None

    async def _serve(self) -> None:
        mean, rng, loop = math.log(self.mean_s) - SIGMA**2 / 2, self.rng, asyncio.get_running_loop()
        while self._socket is not None:
            message = decode_message(await self._socket.recv())  # cancelled requests finish like the others
            if rng.random() < self.deaths * len(message.requests):
                self.die()
            self.running += len(message.requests)
            for request in message.requests:
                loop.call_later(rng.lognormvariate(mean, SIGMA), self._finish, self._epoch, request)

    def _finish(self, epoch: bytes, request: GenRequest) -> None:
        if self._socket is not None and epoch == self._epoch:
            self.running -= 1
            version = self.adapters.get(request.adapter, 0) if request.adapter else self.version
            self._socket.send(encode([answer(request, self.rng, version)]))


class Host:
    """A Ray actor with many simulated engines."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.replicas: dict[int, SimulatedEngine] = {}

    async def begin(self, replicas: int, mean_s: float, deaths: float) -> None:
        """Replaces all engines by new ones."""
        for replica in self.replicas.values():
            replica.die()
        self.replicas = {number: SimulatedEngine(self.rng, mean_s, deaths) for number in range(replicas)}

    async def call(self, number: int, method: str, *args: Any) -> Any:
        """Calls a method of one engine."""
        return await getattr(self.replicas[number], method)(*args)


def answer(request: GenRequest, rng: random.Random, version: int = 0) -> GenResult:
    """A legal reply in the form of vLLM's (actors/engine/generation.py); an error with probability REFUSED."""
    if rng.random() < REFUSED:
        return GenResult(request.id, [], [], [], finish="error", error="simulated failure")
    if request.read:
        share = math.log(1 / len(request.choices))
        return GenResult(request.id, [], [], [version], choice_logprobs=[share] * len(request.choices))
    choice = rng.randrange(len(request.choices))
    ids = list(request.choices[choice])
    allowed = [[token] for token in ids]
    return GenResult(request.id, ids, [-1.0] * len(ids), [version] * len(ids), allowed, choice=choice)


class Handle:
    """One replica of a host, with the methods of a Ray actor handle that an EngineChannel calls."""

    def __init__(self, host: Any, number: int):
        self.connect, self.watch = (
            SimpleNamespace(remote=functools.partial(host.call.remote, number, name)) for name in ("connect", "watch")
        )


async def revive(channel: EngineChannel) -> None:
    """Restarts a simulated engine, as the system does with a real one."""
    await asyncio.sleep(RESTART_S)
    await channel.connect()
