"""Inputs of losses without a model: micro-batches of given log-probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from learners.batches.batching import MicroBatch


def micro_batch(
    old_L: Tensor,
    advantages_L: Tensor,
    segments_L: Tensor | None = None,
    proximal_L: Tensor | None = None,
    reference_L: Tensor | None = None,
) -> MicroBatch:
    """A micro-batch as the losses see it. `segments_L` None: all tokens belong to one reply."""
    zeros_L = torch.zeros(len(old_L), dtype=torch.long)
    segments_L = zeros_L if segments_L is None else segments_L
    return MicroBatch({}, old_L, advantages_L, zeros_L, zeros_L, segments_L, proximal_L, reference_L)
