"""Hub: one actor per node that speaks for the engines on it (`engine.hub`).

    router ──► lines ──► trunk ══ one call per tick ══► Hub ──► engines of its node

A call to Ray costs the driver about as much as all the rest of a turn, and with many engines most calls carry a single
request. Behind a hub the driver makes one call per tick and node, whatever the number of engines; the router does not
see it: a `Line` answers like an engine's handle, and what is no request (weights, status) goes to the engine itself.

Replies wait in the hub until the driver asks for them. A hub that dies takes along those that it holds, and engines go
on: to the router all of them have died, it waits until Ray has restarted the hub, and asks again.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from actors.messages import GenRequest, GenResult, Parcel
from actors.restarts import Restarted, restarted


@dataclass(slots=True)
class News:
    """Of one engine, since the driver asked last."""

    results: Parcel[GenResult] = field(default_factory=Parcel)
    died: bool = False
    """It is gone, with all it had not answered."""


class Hub:
    """The actor. It keeps one long poll at each engine that has something to do."""

    def __init__(self, engines: Mapping[int, Any]):
        self._engines = engines
        self._open: dict[int, set[int]] = {number: set() for number in engines}
        """Ids of the requests that an engine has and has not answered."""
        self._polls: dict[int, asyncio.Task[None]] = {}
        self._found: dict[int, News] = defaultdict(News)
        self._news = asyncio.Event()
        self._unnoticed = restarted()

    async def ready(self) -> None:
        """Answers once the hub runs."""
        self._unnoticed = False

    async def submit(self, batches: Mapping[int, list[GenRequest]], given_up: Mapping[int, list[int]]) -> None:
        """Passes requests on, and ids of those that nobody waits for any more."""
        if self._unnoticed:
            return
        for number, batch in batches.items():
            self._open[number].update(request.id for request in batch)
            self._engines[number].submit.remote(batch)
            if number not in self._polls:
                self._polls[number] = asyncio.ensure_future(self._poll(number))
        for number, ids in given_up.items():
            self._engines[number].abort.remote(ids)

    async def collect(self) -> dict[int, News]:
        """Everything that has come since the last call, by the numbers of engines; waits until that is something.
        Raises Restarted where whoever asks cannot know that this is another life."""
        if self._unnoticed:
            raise Restarted("nothing is known of what was asked before")
        while not self._found:
            self._news.clear()
            await self._news.wait()
        found, self._found = dict(self._found), defaultdict(News)
        return found

    async def _poll(self, number: int) -> None:
        from ray.exceptions import RayError

        open_here = self._open[number]
        try:
            while open_here:
                results: list[GenResult] = await self._engines[number].collect.remote()
                open_here.difference_update(result.id for result in results)
                self._found[number].results += results
                self._news.set()
        except RayError:
            open_here.clear()
            self._found[number].died = True
            self._news.set()
        finally:
            del self._polls[number]


class Trunk:
    """A hub, seen from the driver: what its lines send in one tick travels in one call."""

    def __init__(self, hub: Any, engines: Mapping[int, Any]):
        self.hub = hub
        self.lines = {number: Line(self, number, engine) for number, engine in engines.items()}
        self._batches: dict[int, Parcel[GenRequest]] = defaultdict(Parcel)
        self._given_up: dict[int, list[int]] = defaultdict(list)
        self._flushing = False
        self._collector: asyncio.Task[None] | None = None

    def send(self, number: int, batch: Sequence[GenRequest] = (), given_up: Sequence[int] = ()) -> None:
        """Takes along requests, or ids of requests given up, for one engine."""
        if batch:
            self._batches[number].extend(batch)
        if given_up:
            self._given_up[number].extend(given_up)
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def watch(self) -> None:
        """Begins to collect, as long as a line waits."""
        if self._collector is None or self._collector.done():
            self._collector = asyncio.ensure_future(self._collect())

    def stop(self) -> None:
        """Nobody waits any more."""
        if self._collector is not None:
            self._collector.cancel()

    def _flush(self) -> None:
        self._flushing = False
        batches, given_up = dict(self._batches), dict(self._given_up)
        self._batches.clear()
        self._given_up.clear()
        self.hub.submit.remote(batches, given_up)

    async def _collect(self) -> None:
        from ray.exceptions import RayError

        while any(line.waiting for line in self.lines.values()):
            try:
                found: dict[int, News] = await self.hub.collect.remote()
            except RayError:
                for line in self.lines.values():
                    line.take(News(died=True))
                return
            for number, news in found.items():
                self.lines[number].take(news)
            await asyncio.sleep(0)  # lines wake up; those whose engine has more to do wait again


class Line:
    """One engine behind a hub. Answers like its handle."""

    def __init__(self, trunk: Trunk, number: int, engine: Any):
        self.engine = engine
        self.waiting = False
        self._trunk = trunk
        self._found: list[GenResult] = []
        self._died = False
        self._news = asyncio.Event()
        self.submit = remote(lambda batch: trunk.send(number, batch))
        self.abort = remote(lambda ids: trunk.send(number, given_up=ids))
        self.collect = remote(self._collect)
        self.ready = remote(self._ready)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def take(self, news: News) -> None:
        """What the hub has told of this engine. A death of which nobody waits to hear left nothing unanswered."""
        self._found += news.results
        self._died |= news.died and self.waiting
        self._news.set()

    async def _collect(self) -> list[GenResult]:
        from ray.exceptions import RayActorError

        self.waiting = True
        self._trunk.watch()
        try:
            while not self._found and not self._died:
                self._news.clear()
                await self._news.wait()
        finally:
            self.waiting = False
        if not self._found:
            self._died = False
            raise RayActorError()
        found, self._found = self._found, []
        return found

    async def _ready(self) -> Any:
        await self._trunk.hub.ready.remote()
        return await self.engine.ready.remote()


def remote(call: Callable[..., Any]) -> SimpleNamespace:
    """Something with the `remote` of an actor's method."""
    return SimpleNamespace(remote=call)


def trunks(engines: Sequence[Any], nodes: Sequence[str], hub_on: Callable[[str, dict[int, Any]], Any]) -> list[Trunk]:
    """One for each node. `nodes`: where each engine is; `hub_on(node, engines)` starts a hub there."""
    placed: dict[str, dict[int, Any]] = defaultdict(dict)
    for number, (engine, node) in enumerate(zip(engines, nodes, strict=True)):
        placed[node][number] = engine
    return [Trunk(hub_on(node, there), there) for node, there in placed.items()]


async def started(found: Sequence[Trunk]) -> list[Line]:
    """Their lines in the order of the engines, once every hub runs."""
    waiting: list[Awaitable[None]] = [trunk.hub.ready.remote() for trunk in found]
    await asyncio.gather(*waiting)
    lines = {number: line for trunk in found for number, line in trunk.lines.items()}
    return [lines[number] for number in sorted(lines)]
