"""Figures gathered over micro-batches and ranks: weighted means, totals and peaks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """Plain numbers only, so that it crosses process boundaries cheaply."""

    means: dict[str, tuple[float, float]] = field(default_factory=dict)
    """name -> (sum, weight)"""
    totals: dict[str, float] = field(default_factory=dict)
    peaks: dict[str, float] = field(default_factory=dict)

    def mean(self, name: str, total: float, weight: float) -> None:
        """Adds `total`, a sum over `weight` things."""
        old = self.means.get(name, (0.0, 0.0))
        self.means[name] = (old[0] + total, old[1] + weight)

    def total(self, name: str, value: float) -> None:
        self.totals[name] = self.totals.get(name, 0.0) + value

    def peak(self, name: str, value: float) -> None:
        self.peaks[name] = max(self.peaks.get(name, value), value)

    def add(self, other: Tally) -> None:
        """Adds everything that `other` gathered."""
        for name, (total, weight) in other.means.items():
            self.mean(name, total, weight)
        for name, value in other.totals.items():
            self.total(name, value)
        for name, value in other.peaks.items():
            self.peak(name, value)

    def result(self) -> dict[str, float]:
        """One figure per name; means without weight are left out."""
        figures = {name: total / weight for name, (total, weight) in self.means.items() if weight > 0}
        return {**figures, **self.totals, **self.peaks}


def merge(tallies: Iterable[Tally]) -> dict[str, float]:
    """The figures of several ranks as one."""
    whole = Tally()
    for tally in tallies:
        whole.add(tally)
    return whole.result()
