"""Proper scoring rules of a judge's probabilities, as losses of tokens. Axis: L tokens that carry loss.

A reply is one choice of one question, its probability p the product over its tokens, under the mask of the legal ones.
`batch.advantages_L` holds at each of its tokens the target t that p should reach. Both rules are sums over the choices
of terms that depend on one choice each, so choices need not share a micro-batch. Each token carries the value of its
whole reply and `normalise: sequence` averages over replies: a choice of several tokens counts once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from configs.methods import LOSSES
from configs.schema.run import LossConfig
from learners.batches.batching import MicroBatch
from learners.losses.policy_gradient import TokenLoss
from learners.losses.preference import reply_logprobs

if TYPE_CHECKING:
    from torch import Tensor


@LOSSES.register(
    "log_score", reads={"normalise", "constant"}, needs={"targets", "sequence"}, source="Good 1952"
)
def log_score(logprobs_L: Tensor, batch: MicroBatch, config: LossConfig) -> TokenLoss:
    """-t log p (nats), over the choices of a question the logarithmic score.

    Unbounded: a verdict that is sure and wrong costs most."""
    return -batch.advantages_L * _whole(logprobs_L, batch), {}


@LOSSES.register(
    "brier", reads={"normalise", "constant"}, needs={"targets", "every choice", "sequence"}, source="Brier 1950"
)
def brier(logprobs_L: Tensor, batch: MicroBatch, config: LossConfig) -> TokenLoss:
    """(p - t)^2, over the choices of a question the Brier score.

    Bounded, so a mislabelled task does little harm."""
    return (_whole(logprobs_L, batch).exp() - batch.advantages_L).square(), {}


def _whole(logprobs_L: Tensor, batch: MicroBatch) -> Tensor:
    """At each token the log-probability of its whole reply."""
    return reply_logprobs(logprobs_L, batch.segments_L, int(batch.segments_L.max()) + 1)[batch.segments_L]
