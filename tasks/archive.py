"""Archive: earlier proposals with their solve rates, replayed so that a proposer's drift is not forgotten by
the solver.

In the proposer-solver runs a proposer without replay leaves short lists behind and the solver forgets them;
half of all plays drawn from an archive keeps them (Absolute Zero, arXiv 2505.03335, samples its task buffer
likewise).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(slots=True)
class ArchivedProposal:
    """One proposal. `solve_rate` is in [0, 1] and the newest one, None where its sub-plays have no score; `count`
    is how often it was proposed."""

    task_id: str
    """The root task that it was proposed for."""
    proposal: str
    solve_rate: float | None
    count: int = 1

    @property
    def learnability(self) -> float:
        """4p(1-p): 1 where half the attempts succeed, 0 where all or none do; 1 where that is not known."""
        return 1.0 if self.solve_rate is None else 4 * self.solve_rate * (1 - self.solve_rate)


class Archive:
    """At most `capacity` different proposals; the one proposed or updated longest ago makes room."""

    def __init__(self, capacity: int = 4096) -> None:
        if capacity < 1:
            raise ValueError(f"an archive holds at least one proposal, not {capacity}")
        self.capacity = capacity
        self.added = 0
        """Proposals seen so far, duplicates included."""
        self.duplicates = 0
        """Those of them that stood in the archive already."""
        self._entries: dict[tuple[str, str], ArchivedProposal] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, proposal: str, task_id: str, solve_rate: float | None) -> bool:
        """Stores a fresh proposal (one that a proposer just made). Says whether it is new."""
        self.added += 1
        known = self._entries.get((task_id, proposal))
        if known is not None:
            self.duplicates += 1
        self._put(ArchivedProposal(task_id, proposal, solve_rate, 1 if known is None else known.count + 1))
        return known is None

    def update(self, proposal: str, task_id: str, solve_rate: float | None) -> None:
        """Notes the solve rate of a replay. Not a duplicate; nothing happens to a proposal already
        dropped."""
        known = self._entries.get((task_id, proposal))
        if known is not None:
            self._put(ArchivedProposal(task_id, proposal, solve_rate, known.count))

    def within(self, least: float, most: float) -> list[ArchivedProposal]:
        """The entries whose last solve rate lies between, ends included; with [0, 1] also those without one."""
        rated = [(entry, entry.solve_rate) for entry in self._entries.values()]
        return [entry for entry, p in rated if ((least, most) == (0, 1) if p is None else least <= p <= most)]

    def draw(self, rng: random.Random, frontier: float = 0.0, rates: Sequence[float] = (0.0, 1.0)) -> ArchivedProposal:
        """One entry of those whose solve rate lies in `rates`, weighted (1 - frontier) + frontier * 4p(1-p): 0 is
        uniform, which also replays what is solved and so guards against forgetting; 1 keeps to what is neither solved
        nor hopeless. Raises IndexError if there is none.
        """
        if not 0 <= frontier <= 1:
            raise ValueError(f"frontier must lie in [0, 1], not {frontier}")
        entries = self.within(*rates)
        if not entries:
            raise IndexError("the archive is empty" if not self._entries else f"no solve rate lies in {rates}")
        weights = [(1 - frontier) + frontier * entry.learnability for entry in entries]
        if not any(weights):
            return rng.choice(entries)
        return rng.choices(entries, weights)[0]

    @property
    def duplicate_share(self) -> float:
        """Share of the proposals so far that repeated one still in the archive."""
        return self.duplicates / self.added if self.added else 0.0

    def histogram(self, bins: int = 10) -> list[int]:
        """Entries with a solve rate in `bins` equal intervals of [0, 1]; a rate of 1 counts in the last."""
        counts = [0] * bins
        for entry in self._entries.values():
            if entry.solve_rate is not None:
                counts[min(int(entry.solve_rate * bins), bins - 1)] += 1
        return counts

    def state(self) -> dict[str, Any]:
        """Plain values, for JSON and checkpoints."""
        entries = [asdict(entry) for entry in self._entries.values()]
        counts = {"added": self.added, "duplicates": self.duplicates}
        return {"capacity": self.capacity, **counts, "entries": entries}

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Archive:
        """The archive that `state()` described: it draws the same entries from the same random state."""
        archive = cls(state["capacity"])
        for values in state["entries"]:
            archive._put(ArchivedProposal(**values))
        archive.added, archive.duplicates = state["added"], state["duplicates"]
        return archive

    def _put(self, entry: ArchivedProposal) -> None:
        if entry.solve_rate is not None and not 0 <= entry.solve_rate <= 1:
            raise ValueError(f"a solve rate lies in [0, 1], not {entry.solve_rate}")
        key = (entry.task_id, entry.proposal)
        self._entries.pop(key, None)
        self._entries[key] = entry
        if len(self._entries) > self.capacity:
            del self._entries[next(iter(self._entries))]
