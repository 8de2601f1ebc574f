"""Proper scoring rules of a judge's probabilities, as losses of tokens (learners/losses/policy_gradient.py). Axis: L loss tokens.

A reply is one choice of one question, its probability p the product over its tokens, under the mask of the legal ones.
`advantages_L` holds, at each of its tokens, what p should be: t. Both rules are sums over the choices of terms that
depend on one choice each, so choices need not share a micro-batch. Each token carries the value of its whole reply and
`normalise: sequence` averages over replies: a choice of several tokens counts once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from configs.schema.run import LossConfig
from learners.losses.preference import reply_logprobs


def log_score(
    logprobs_L: Tensor,
    old_logprobs_L: Tensor,
    advantages_L: Tensor,
    config: LossConfig,
    segments_L: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """-t log p (nats), over the choices of a question the logarithmic score. Good 1952. Unbounded: being sure and
    wrong costs most."""
    return -advantages_L * _whole(logprobs_L, segments_L), {}


def brier(
    logprobs_L: Tensor,
    old_logprobs_L: Tensor,
    advantages_L: Tensor,
    config: LossConfig,
    segments_L: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(p - t)^2, over the choices of a question the Brier score. Brier 1950. Bounded, so a mislabelled task does
    little harm."""
    return (_whole(logprobs_L, segments_L).exp() - advantages_L).square(), {}


def _whole(logprobs_L: Tensor, segments_L: Tensor | None) -> Tensor:
    """At each token the log-probability of its whole reply."""
    if segments_L is None:
        segments_L = torch.zeros(len(logprobs_L), dtype=torch.long, device=logprobs_L.device)
    return reply_logprobs(logprobs_L, segments_L, int(segments_L.max()) + 1)[segments_L]
