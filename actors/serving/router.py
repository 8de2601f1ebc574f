"""Router: sends a policy's requests to the replicas that serve it.

Requests made in one tick of the event loop travel to a replica in one message (at most MAX_BATCH in each), and results
come back one by one as they finish: a request costs no message of its own, and a long generation delays no short one.

The first request of a play goes to the least loaded replica. Later requests of the play follow it, because their
prompts begin alike and that replica has the prefix cached. When that replica is crowded, the play moves to another
one for good.

When a replica dies, the router sends its unfinished requests to other replicas, or holds them until the restarted
replica has the current weights. Sampling again is harmless: nothing of a lost reply was used.

When an episode is cancelled, its queued requests are dropped and its running ones aborted.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass

from actors.serving.messages import EngineLost, GenRequest, GenResult, RequestRefused
from actors.serving.wire import EngineChannel

MAX_TRIES = 3
CROWDED, SLACK = 1.25, 8
"""A replica is crowded when it has more open requests than CROWDED times the mean plus SLACK (consistent hashing with
bounded loads: Mirrokni, Thorup and Zadimoghaddam 2018, arXiv 1608.01350), so that affinity idles no other replica."""
MAX_BATCH = 128
"""Requests per message. A full message leaves before the tick ends: a thousand plays that begin in one tick take
half a second to build their requests, and the engine should not wait for the last."""
MAX_HOMES = 100_000
"""Plays whose replica the router remembers; it forgets the least recently used first."""


@dataclass(slots=True)
class _Pending:
    request: GenRequest
    future: asyncio.Future[GenResult]
    tries: int = 0
    replica: Replica | None = None
    """The replica that it was last sent to."""


@dataclass
class Counters:
    """A policy's requests since the start of the run."""

    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    memo_hits: int = 0
    """Requests that the players answered from their memo (actors/players/memo.py)."""
    retried: int = 0
    """Requests sent again after a replica died."""
    aborted: int = 0
    """Requests whose caller was cancelled."""
    restarts: int = 0
    engine_prompt_tokens: int = 0
    """Prompt tokens over all calls of the engine: a choice needs one call per branching."""
    cached_tokens: int = 0
    """How many of `engine_prompt_tokens` the prefix cache held."""
    request_s: float = 0.0
    """Seconds from request to result, summed over requests. Its growth per second is the mean number of open requests
    (Little's law); the policy with the most is the bottleneck."""

    def metrics(self, policy: str) -> dict[str, float]:
        """name/policy -> value; `prefix_hit_rate` is the cached share of prompt tokens."""
        values = {name: float(value) for name, value in asdict(self).items()}
        if self.engine_prompt_tokens:
            values["prefix_hit_rate"] = self.cached_tokens / self.engine_prompt_tokens
        return {f"{name}/{policy}": value for name, value in values.items()}


class Replica:
    """The router's view of one engine. `on_death` receives the replica and its unanswered requests."""

    def __init__(self, channel: EngineChannel, on_death: Callable[[Replica, list[_Pending]], None]):
        self.channel, self._on_death = channel, on_death
        self.up = True
        self.cause = ""
        """What the engine last died of, where it could say so."""
        self._queue: list[_Pending] = []
        self._cancelled: list[int] = []
        """Ids of running requests to abort with the next message."""
        self._running: dict[int, _Pending] = {}
        self._flushing = False
        self._collector: asyncio.Task[None] | None = None

    @property
    def load(self) -> int:
        return len(self._queue) + len(self._running)

    def send(self, pending: _Pending) -> None:
        pending.replica = self
        self._queue.append(pending)
        if len(self._queue) < MAX_BATCH:
            self._flush_soon()
        else:
            self._flush()

    def cancel(self, pending: _Pending) -> None:
        """Aborts a request whose caller was cancelled. It counts as running until the engine has answered it."""
        if pending.request.id in self._running:
            self._cancelled.append(pending.request.id)
            self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        batch = [pending for pending in self._queue if not pending.future.done()]
        cancelled, self._queue, self._cancelled = self._cancelled, [], []
        if batch and not self.up:
            self._on_death(self, batch)
        elif batch:
            for pending in batch:
                self._running[pending.request.id] = pending
            self.channel.submit([pending.request for pending in batch])
            if self._collector is None or self._collector.done():
                self._collector = asyncio.ensure_future(self._collect())
        if cancelled:
            self.channel.abort(cancelled)

    async def _collect(self) -> None:
        """Resolves the futures of running requests until none is left."""
        from ray.exceptions import RayError

        while self._running:
            try:
                results = await self.channel.collect()
            except RayError as error:
                self.fail(error)
                return
            for result in results:
                if result.finish == "died":
                    self.cause = result.error
                pending = self._running.pop(result.id, None)
                if pending is None or pending.future.done():
                    continue
                if result.finish == "error":
                    pending.future.set_exception(RequestRefused(result.error))
                else:
                    pending.future.set_result(result)

    def fail(self, error: Exception) -> None:
        """Marks the engine as dead and returns its unanswered requests to the router."""
        self.up = False
        lost, self._running = list(self._running.values()), {}
        self._on_death(self, lost)

    def stop(self) -> None:
        if self._collector is not None:
            self._collector.cancel()


class Router:
    """Routes the requests of one policy. `revive` returns when a dead engine runs again with the current weights, and
    raises when it stays down."""

    def __init__(
        self, policy: str, channels: Sequence[EngineChannel], revive: Callable[[EngineChannel], Awaitable[None]]
    ):
        self.policy, self._revive = policy, revive
        self.replicas = [Replica(channel, self._on_death) for channel in channels]
        self.counters = Counters()
        self._ids = itertools.count()
        self._open = 0
        """Unanswered requests."""
        self._homes: OrderedDict[str, Replica] = OrderedDict()
        """Play -> the replica of its latest request."""
        self._waiting: list[_Pending] = []
        """Requests held while every replica is down."""
        self._failure = ""
        """The error that removed the last replica."""
        self._revivals: dict[Replica, asyncio.Task[None]] = {}

    async def generate(self, request: GenRequest, counters: Counters | None = None) -> GenResult:
        """Sends one request and waits for its result. Sets `request.id`; counts into `counters` (default: the
        router's).

        Raises RequestRefused when the engine refuses the request, EngineLost when MAX_TRIES engines died under
        it and when no replica is left.
        """
        request.id = next(self._ids)
        pending = _Pending(request, asyncio.get_running_loop().create_future())
        self._send(pending)
        self._open += 1
        counters, start = counters or self.counters, time.monotonic()
        try:
            result = await pending.future
        except asyncio.CancelledError:
            counters.aborted += 1
            if pending.replica is not None:
                pending.replica.cancel(pending)
            raise
        finally:
            self._open -= 1
            counters.request_s += time.monotonic() - start
        counters.requests += 1
        counters.prompt_tokens += len(request.prompt_ids)
        counters.output_tokens += len(result.output_ids) or 1
        counters.engine_prompt_tokens += result.prompt_tokens
        counters.cached_tokens += result.cached_tokens
        return result

    def _send(self, pending: _Pending) -> None:
        if not self.replicas:
            self._fail(pending, self._failure)
            return
        play = pending.request.play
        replica = self._home(play)
        if replica is None:
            live = [replica for replica in self.replicas if replica.up]
            if not live:
                self._waiting.append(pending)
                return
            replica = live[0] if len(live) == 1 else min(live, key=lambda replica: replica.load)
        if play and len(self.replicas) > 1:
            self._homes[play] = replica
            self._homes.move_to_end(play)
            if len(self._homes) > MAX_HOMES:
                self._homes.popitem(last=False)
        replica.send(pending)

    def _home(self, play: str) -> Replica | None:
        """The replica of the play's latest request; None for a new play, or when that replica is down or crowded."""
        home = self._homes.get(play)
        if home is None or not home.up or home.load > CROWDED * self._open / len(self.replicas) + SLACK:
            return None
        return home

    def _on_death(self, replica: Replica, lost: list[_Pending]) -> None:
        if replica not in self._revivals:
            self.counters.restarts += 1
            self._revivals[replica] = asyncio.get_running_loop().create_task(self._bring_back(replica))
        for pending in lost:
            pending.tries += 1
            self.counters.retried += 1
            if pending.future.done():
                continue
            if pending.tries >= MAX_TRIES:
                cause = f", last of {replica.cause}" if replica.cause else ""
                self._fail(pending, f"engine died {MAX_TRIES} times{cause}")
            else:
                self._send(pending)

    async def _bring_back(self, replica: Replica) -> None:
        """Waits for the restarted engine, then sends the requests that were held. Removes a replica that stays
        down."""
        try:
            await self._revive(replica.channel)
            replica.up = True
        except Exception as error:  # any error that keeps the engine down is reported to its requests
            self.replicas.remove(replica)
            self._failure = str(error)
        finally:
            del self._revivals[replica]
        waiting, self._waiting = self._waiting, []
        for pending in waiting:
            self._send(pending)

    def _fail(self, pending: _Pending, reason: str) -> None:
        if not pending.future.done():
            pending.future.set_exception(EngineLost(f"policy {self.policy!r}: {reason}"))

    def stop(self) -> None:
        """Stops waiting for results and revivals; open requests stay unanswered."""
        for replica in self.replicas:
            replica.stop()
        for task in self._revivals.values():
            task.cancel()
