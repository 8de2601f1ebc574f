"""Traffic: which requests of an engine are under way, and which wait until new weights are there.

    launch ──► under way ──► finished        keep:  new weights are loaded at once, whatever is under way
         └───► held while a swap waits       drain: loaded when nothing is under way that they would change

vLLM can pause by itself, but not here: in the engine's own process it refuses to wait for running requests, and one
reply of ours is several of its requests, of which a pause would hold back the later ones. All in the engine thread,
and without vLLM.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from actors.engine.flight import Flight
from actors.serving.messages import GenRequest, GenResult

Deliver = Callable[[GenResult], None]

GIVEN_UP = "given up: nobody waits for it any more"


@dataclass(frozen=True)
class Swap:
    """New weights: all of them, or an adapter's. `done` gets the seconds for which they waited."""

    adapter: str
    load: Callable[[], None]
    done: Future[float]
    since: float = field(default_factory=time.monotonic)

    def changes(self, request: GenRequest) -> bool:
        """Whether the request is computed with these weights: those of an adapter are nobody else's."""
        return not self.adapter or request.adapter == self.adapter


class Traffic:
    """`begin` makes a flight, which calls back with its result. `drain`: swaps wait for what is under way."""

    def __init__(self, begin: Callable[[GenRequest, Deliver], Flight], drain: bool):
        self._begin, self._drain = begin, drain
        self._flights: dict[int, Flight] = {}
        self._held: list[tuple[GenRequest, Deliver]] = []
        self._swap: Swap | None = None
        self._numbers = count()
        self._finished: list[tuple[Deliver, GenResult]] = []
        self.aborted = 0
        """Requests that were given up before they were answered."""

    def launch(self, batch: Sequence[GenRequest], deliveries: Sequence[Deliver]) -> None:
        for request, deliver in zip(batch, deliveries):
            if self._swap is not None and self._swap.changes(request):
                self._held.append((request, deliver))
            else:
                self._start(request, deliver)

    def swap(self, swap: Swap) -> None:
        """New weights have come. One swap at a time. What `swap.load` raises is raised here or by `settle`."""
        assert self._swap is None or self._swap.done.cancelled(), "two swaps at once"
        self._swap = swap
        self.settle()

    def settle(self) -> None:
        """Loads new weights that need not wait (any longer), then starts what was held back. A swap whose caller has
        gone is left out."""
        swap = self._swap
        if swap is None or (self._drain and any(swap.changes(one.request) for one in self._flights.values())):
            return
        self._swap = None
        if swap.done.set_running_or_notify_cancel():
            waited = time.monotonic() - swap.since if self._drain else 0.0
            swap.load()
            swap.done.set_result(waited)
        held, self._held = self._held, []
        for request, deliver in held:
            self._start(request, deliver)

    def give_up(self, ids: Collection[int]) -> set[Flight]:
        """Ends the requests of these ids; each still has a result, an error. Those that have ended are ignored.
        Returns the flights among them: what they have asked of vLLM is the engine's to end."""
        waiting = [one for one in self._held if one[0].id in ids]
        self._held = [one for one in self._held if one[0].id not in ids]
        for request, deliver in waiting:
            self._finished.append((deliver, GenResult(request.id, [], [], [], finish="error", error=GIVEN_UP)))
        flights = {flight for flight in self._flights.values() if flight.request.id in ids}
        for flight in flights:
            flight.fail(GIVEN_UP)
        self.aborted += len(waiting) + len(flights)
        return flights

    def take_finished(self) -> list[tuple[Deliver, GenResult]]:
        """Results since the last call, and whom to give them to."""
        finished, self._finished = self._finished, []
        return finished

    def _start(self, request: GenRequest, deliver: Deliver) -> None:
        number = next(self._numbers)
        flight = self._flights[number] = self._begin(request, partial(self._finish, number, deliver))
        flight.attempt(flight.start)

    def _finish(self, number: int, deliver: Deliver, result: GenResult) -> None:
        del self._flights[number]
        self._finished.append((deliver, result))
