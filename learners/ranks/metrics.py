"""The metrics of a learner step, gathered over micro-batches and ranks: weighted means, totals and peaks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from learners.batches.batching import MicroBatch
from learners.types import Sample

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(slots=True)
class MetricSums:
    """Sums of one rank; plain numbers only, so that they cross process boundaries cheaply."""

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

    def add(self, other: MetricSums) -> None:
        """Adds everything that `other` gathered."""
        for name, (total, weight) in other.means.items():
            self.mean(name, total, weight)
        for name, value in other.totals.items():
            self.total(name, value)
        for name, value in other.peaks.items():
            self.peak(name, value)

    def result(self) -> dict[str, float]:
        """One number per name; means without weight are left out."""
        means = {name: total / weight for name, (total, weight) in self.means.items() if weight > 0}
        return {**means, **self.totals, **self.peaks}


def merge(parts: Iterable[MetricSums]) -> dict[str, float]:
    """The metrics of several ranks as one."""
    whole = MetricSums()
    for part in parts:
        whole.add(part)
    return whole.result()


class StepMetrics:
    """The metrics of one optimizer step, per token and per role.

    Kept apart until the step has been applied: a skipped step must not spoil the means."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.sums = MetricSums()
        self.updates = 0
        names = [sample.tags.get("role", "") for sample in samples]
        self.roles = sorted(set(names))
        self.role_ids_N = np.array([self.roles.index(name) for name in names], dtype=np.int64)

    def add(self, batch: MicroBatch, entropy_L: Tensor, loss_L: Tensor, metrics: dict[str, Tensor]) -> None:
        """Adds one micro-batch. All arguments are detached; losses and metrics of tokens [L], or of pairs [B]."""
        if not self._real(batch):
            return
        tokens = float(len(entropy_L))
        self.sums.total("tokens", tokens)
        self.sums.mean("loss", float(loss_L.sum()), len(loss_L))
        self.sums.mean("entropy", float(entropy_L.sum()), tokens)
        for name, values_L in metrics.items():
            if name == "ratio":
                self.sums.peak("ratio_max", float(values_L.max()))
            else:
                self.sums.mean(name, float(values_L.sum()), len(values_L))
        role_ids_L = self.role_ids_N[batch.index_L.cpu().numpy()]
        entropies_R = np.bincount(role_ids_L, entropy_L.double().cpu().numpy(), minlength=len(self.roles))
        counts_R = np.bincount(role_ids_L, minlength=len(self.roles))
        for role, entropy, count in zip(self.roles, entropies_R.tolist(), counts_R.tolist()):
            if role:
                self.sums.mean(f"entropy/{role}", entropy, count)

    def gap(self, batch: MicroBatch, logprobs_L: Tensor, version: int | None) -> None:
        """How far the learner's log-probabilities are from the sampler's, where both had the same weights."""
        if not self._real(batch):
            return
        gaps_L = (logprobs_L - batch.old_logprobs_L).abs()
        if version is not None:
            gaps_L = gaps_L[batch.versions_L == version]
        if len(gaps_L):
            self.sums.mean("sampler_gap", float(gaps_L.sum()), len(gaps_L))
            self.sums.peak("sampler_gap_max", float(gaps_L.max()))

    @staticmethod
    def _real(batch: MicroBatch) -> bool:
        return bool(batch.index_L[0] >= 0)
