"""Which requests of an engine run, and which wait for new weights.

    launch ──► running ──► finished          keep:  new weights are loaded at once, whatever is running
         └───► held during a weight update   drain: loaded when no running request depends on them

vLLM's own pause does not fit: inside the engine's process it refuses to wait for running requests, and one of our
requests is several of vLLM's, the later of which a pause would hold back. The scheduler runs on the engine thread and
does not import vllm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from actors.engine.generation import Generation
from actors.serving.messages import GenRequest, GenResult

Deliver = Callable[[GenResult], None]

ABORTED = "aborted: its caller was cancelled"


@dataclass(frozen=True)
class WeightUpdate:
    """New weights: the whole model's, or one adapter's. `done` receives the seconds they waited for running
    requests."""

    adapter: str
    load: Callable[[], None]
    done: Future[float]
    since: float = field(default_factory=time.monotonic)

    def affects(self, request: GenRequest) -> bool:
        """Whether the request is computed with these weights. An adapter's affect only requests that name it."""
        return not self.adapter or request.adapter == self.adapter


class RequestScheduler:
    """`begin` makes a generation that calls back with its result. `drain`: updates wait for running requests."""

    def __init__(self, begin: Callable[[GenRequest, Deliver], Generation], drain: bool):
        self._begin, self._drain = begin, drain
        self._running: dict[int, Generation] = {}
        self._held: list[tuple[GenRequest, Deliver]] = []
        self._update: WeightUpdate | None = None
        self._numbers = count()
        self._finished: list[tuple[Deliver, GenResult]] = []
        self.aborted = 0
        """Requests aborted before they finished."""

    def launch(self, batch: Sequence[GenRequest], deliveries: Sequence[Deliver]) -> None:
        """Starts the requests, or holds those that a waiting update affects."""
        for request, deliver in zip(batch, deliveries):
            if self._update is not None and self._update.affects(request):
                self._held.append((request, deliver))
            else:
                self._start(request, deliver)

    def update(self, update: WeightUpdate) -> None:
        """Schedules new weights, one update at a time. Errors of `update.load` are raised here or by
        `load_pending`."""
        assert self._update is None or self._update.done.cancelled(), "two weight updates at once"
        self._update = update
        self.load_pending()

    def load_pending(self) -> None:
        """Loads the new weights if they need not wait (any longer), then starts the held requests. Skips an update
        whose caller was cancelled."""
        update = self._update
        if update is None or (self._drain and any(update.affects(one.request) for one in self._running.values())):
            return
        self._update = None
        if update.done.set_running_or_notify_cancel():
            waited = time.monotonic() - update.since if self._drain else 0.0
            update.load()
            update.done.set_result(waited)
        held, self._held = self._held, []
        for request, deliver in held:
            self._start(request, deliver)

    def abort(self, ids: Collection[int]) -> set[Generation]:
        """Ends these requests with error results and ignores ids of finished ones. Returns the running generations
        among them, whose vLLM requests the caller must abort."""
        waiting = [one for one in self._held if one[0].id in ids]
        self._held = [one for one in self._held if one[0].id not in ids]
        for request, deliver in waiting:
            self._finished.append((deliver, GenResult(request.id, [], [], [], finish="error", error=ABORTED)))
        running = {generation for generation in self._running.values() if generation.request.id in ids}
        for generation in running:
            generation.fail(ABORTED)
        self.aborted += len(waiting) + len(running)
        return running

    def take_finished(self) -> list[tuple[Deliver, GenResult]]:
        """Results since the last call, each with its delivery function."""
        finished, self._finished = self._finished, []
        return finished

    def _start(self, request: GenRequest, deliver: Deliver) -> None:
        number = next(self._numbers)
        generation = self._running[number] = self._begin(request, partial(self._finish, number, deliver))
        generation.attempt(generation.start)

    def _finish(self, number: int, deliver: Deliver, result: GenResult) -> None:
        del self._running[number]
        self._finished.append((deliver, result))
