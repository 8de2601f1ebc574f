"""What one optimizer step measured, per token and per role."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learners.batches.batching import MicroBatch
from learners.ranks.metrics import Tally
from learners.types import Sample


class Figures:
    """Kept apart until the step is known to have been applied: a broken step must not spoil the means."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.tally = Tally()
        self.updates = 0
        names = [sample.tags.get("role", "") for sample in samples]
        self.roles = sorted(set(names))
        self.role_ids_N = torch.tensor([self.roles.index(name) for name in names], dtype=torch.long)

    def add(self, batch: MicroBatch, entropy_L: Tensor, loss_L: Tensor, metrics: dict[str, Tensor]) -> None:
        """Figures of one micro-batch. All arguments are detached; losses and metrics of tokens [L], or of pairs."""
        if not self._real(batch):
            return
        tokens = float(len(entropy_L))
        self.tally.total("tokens", tokens)
        self.tally.mean("loss", float(loss_L.sum()), len(loss_L))
        self.tally.mean("entropy", float(entropy_L.sum()), tokens)
        for name, values_L in metrics.items():
            if name == "ratio":
                self.tally.peak("ratio_max", float(values_L.max()))
            else:
                self.tally.mean(name, float(values_L.sum()), len(values_L))
        role_ids_L = self.role_ids_N[batch.index_L.cpu()]
        entropies_R = torch.bincount(role_ids_L, entropy_L.double().cpu(), minlength=len(self.roles))
        counts_R = torch.bincount(role_ids_L, minlength=len(self.roles))
        for role, entropy, count in zip(self.roles, entropies_R.tolist(), counts_R.tolist()):
            if role:
                self.tally.mean(f"entropy/{role}", entropy, count)

    def gap(self, batch: MicroBatch, logprobs_L: Tensor, version: int | None) -> None:
        """How far the learner's log-probabilities are from the sampler's, where both had the same weights."""
        if not self._real(batch):
            return
        gaps_L = (logprobs_L - batch.old_logprobs_L).abs()
        if version is not None:
            gaps_L = gaps_L[batch.versions_L == version]
        if len(gaps_L):
            self.tally.mean("sampler_gap", float(gaps_L.sum()), len(gaps_L))
            self.tally.peak("sampler_gap_max", float(gaps_L.max()))

    @staticmethod
    def _real(batch: MicroBatch) -> bool:
        return bool(batch.index_L[0] >= 0)
