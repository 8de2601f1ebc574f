"""Router: from a policy's requests to the replicas that serve it.

Requests made in one tick of the event loop travel to a replica in one message (more than one where they are many);
finished ones come back as they end (actors/serving/wire.py). So a request costs no message of its own, and a long generation
never holds back a short one.

The first request of a play goes to the least loaded replica and the others after it: prompts of one play begin
alike, and that replica has the beginning in its prefix cache. A crowded one is left, for good.

A replica that dies gives its unfinished requests back; they go to another replica, or wait until the
restarted one has the current weights. Sampling again is harmless: nothing of a lost reply was used.

Who is cancelled while it waits (its play was) leaves a request that nobody needs: one that has not left yet stays here,
the engine is told to end the others, those of one tick in one message. It answers them all the same.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass

from actors.serving.messages import EngineLost, GenRequest, GenResult
from actors.serving.wire import Line

MAX_TRIES = 3
CROWDED, SLACK = 1.25, 8
"""A replica is crowded with more open requests than CROWDED times the mean and SLACK (bounded loads as in
Mirrokni, Thorup and Zadimoghaddam 2018, arXiv 1608.01350): sticking together must not idle the others."""
FULL = 128
"""Requests that travel at once, before the tick ends."""
HOMES = 100_000
"""Plays whose replica is remembered; those not heard of for longest are forgotten first."""


@dataclass(slots=True)
class _Pending:
    request: GenRequest
    future: asyncio.Future[GenResult]
    tries: int = 0
    replica: Replica | None = None
    """That it was sent to last."""


@dataclass
class Counters:
    """What a policy's engines have done since the start."""

    requests: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    memo_hits: int = 0
    retried: int = 0
    aborted: int = 0
    """Requests that who made them has given up; engines are told to end those that they have."""
    restarts: int = 0
    engine_prompt_tokens: int = 0
    """What vLLM was asked: a choice is one request, but asks at each of its branchings."""
    cached_tokens: int = 0
    """Of these, tokens that the prefix cache had."""
    request_s: float = 0.0
    """Seconds from the asking to the answer, of all requests together. What it grows by in a second is how many are
    under way on average (Little's law): the policy with the most is the one that plays wait for."""

    def figures(self, policy: str) -> dict[str, float]:
        """As metrics of `policy`; `prefix_hit_rate` is the share of prompt tokens that were not computed again."""
        found = {name: float(value) for name, value in asdict(self).items()}
        if self.engine_prompt_tokens:
            found["prefix_hit_rate"] = self.cached_tokens / self.engine_prompt_tokens
        return {f"{name}/{policy}": value for name, value in found.items()}


class Replica:
    """One engine, seen from the router."""

    def __init__(self, line: Line, on_death: Callable[[Replica, list[_Pending]], None]):
        self.line, self._on_death = line, on_death
        self.up = True
        self._queue: list[_Pending] = []
        self._given_up: list[int] = []
        """Ids of running requests whose end the engine is not told yet."""
        self._running: dict[int, _Pending] = {}
        self._flushing = False
        self._collector: asyncio.Task[None] | None = None

    @property
    def load(self) -> int:
        return len(self._queue) + len(self._running)

    def send(self, pending: _Pending) -> None:
        pending.replica = self
        self._queue.append(pending)
        if len(self._queue) < FULL:
            self._flush_soon()
        else:  # the engine need not wait for the rest: a thousand plays that begin in one tick take half a second
            self._flush()

    def give_up(self, pending: _Pending) -> None:
        """Nobody waits for this one any more. One that is running stays so until the engine has answered."""
        if pending.request.id in self._running:
            self._given_up.append(pending.request.id)
            self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        batch = [pending for pending in self._queue if not pending.future.done()]
        given_up, self._queue, self._given_up = self._given_up, [], []
        if batch and not self.up:
            self._on_death(self, batch)
        elif batch:
            for pending in batch:
                self._running[pending.request.id] = pending
            self.line.submit([pending.request for pending in batch])
            if self._collector is None or self._collector.done():
                self._collector = asyncio.ensure_future(self._collect())
        if given_up:
            self.line.abort(given_up)

    async def _collect(self) -> None:
        """Waits for results while any request is out. Unblocks the players that asked for them."""
        from ray.exceptions import RayError

        while self._running:
            try:
                results = await self.line.collect()
            except RayError as error:
                self.fail(error)
                return
            for result in results:
                pending = self._running.pop(result.id, None)
                if pending is None or pending.future.done():
                    continue
                if result.finish == "error":
                    pending.future.set_exception(EngineLost(result.error))
                else:
                    pending.future.set_result(result)

    def fail(self, error: Exception) -> None:
        """The actor is gone: everything unanswered goes back to the router."""
        self.up = False
        lost, self._running = list(self._running.values()), {}
        self._on_death(self, lost)

    def stop(self) -> None:
        if self._collector is not None:
            self._collector.cancel()


class Router:
    """All replicas of one policy. `revive` restarts a dead replica with the current weights."""

    def __init__(self, policy: str, lines: Sequence[Line], revive: Callable[[Line], Awaitable[None]]):
        self.policy, self._revive = policy, revive
        self.replicas = [Replica(line, self._bury) for line in lines]
        self.counters = Counters()
        self._ids = itertools.count()
        self._open = 0
        """Requests that have been made and not answered."""
        self._homes: OrderedDict[str, Replica] = OrderedDict()
        self._waiting: list[_Pending] = []
        self._gone = ""
        """Why no replica is left."""
        self._revivals: set[asyncio.Task[None]] = set()

    async def generate(self, request: GenRequest, counters: Counters | None = None) -> GenResult:
        """One request, to the replica of its play or the least loaded. Raises EngineLost after MAX_TRIES deaths.
        `counters`: where it is counted, in place of the router's own."""
        request.id = next(self._ids)
        pending = _Pending(request, asyncio.get_running_loop().create_future())
        self._send(pending)
        self._open += 1
        counters, asked = counters or self.counters, time.monotonic()
        try:
            result = await pending.future
        except asyncio.CancelledError:
            counters.aborted += 1
            if pending.replica is not None:
                pending.replica.give_up(pending)
            raise
        finally:
            self._open -= 1
            counters.request_s += time.monotonic() - asked
        counters.requests += 1
        counters.prompt_tokens += len(request.prompt_ids)
        counters.output_tokens += len(result.output_ids) or 1
        counters.engine_prompt_tokens += result.prompt_tokens
        counters.cached_tokens += result.cached_tokens
        return result

    def _send(self, pending: _Pending) -> None:
        if not self.replicas:
            self._lose(pending, self._gone)
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
            if len(self._homes) > HOMES:
                self._homes.popitem(last=False)
        replica.send(pending)

    def _home(self, play: str) -> Replica | None:
        """Where the play's earlier requests went; None for a new play, or when that replica is down or crowded."""
        home = self._homes.get(play)
        if home is None or not home.up or home.load > CROWDED * self._open / len(self.replicas) + SLACK:
            return None
        return home

    def _bury(self, replica: Replica, lost: list[_Pending]) -> None:
        first = not any(task.get_name() == str(id(replica)) for task in self._revivals)
        if first:
            self.counters.restarts += 1
            task = asyncio.get_running_loop().create_task(self._bring_back(replica), name=str(id(replica)))
            self._revivals.add(task)
            task.add_done_callback(self._revivals.discard)
        for pending in lost:
            pending.tries += 1
            self.counters.retried += 1
            if pending.future.done():
                continue
            if pending.tries >= MAX_TRIES:
                self._lose(pending, f"engine died {MAX_TRIES} times")
            else:
                self._send(pending)

    async def _bring_back(self, replica: Replica) -> None:
        """Waits for the restarted actor and its weights; then releases what waited for it. A replica that does
        not come back is given up."""
        try:
            await self._revive(replica.line)
            replica.up = True
        except Exception as error:  # whatever kept the engine down is what its requests are told
            self.replicas.remove(replica)
            self._gone = str(error)
        waiting, self._waiting = self._waiting, []
        for pending in waiting:
            self._send(pending)

    def _lose(self, pending: _Pending, reason: str) -> None:
        if not pending.future.done():
            pending.future.set_exception(EngineLost(f"policy {self.policy!r}: {reason}"))

    def stop(self) -> None:
        for replica in self.replicas:
            replica.stop()
        for task in self._revivals:
            task.cancel()
