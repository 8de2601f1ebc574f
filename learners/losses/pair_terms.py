"""A preference loss on one micro-batch of pairs. Axes: L tokens that carry loss, B pairs, N replies (2 B)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from configs.methods import LOSSES, needs_reference
from configs.schema.run import LossConfig
from learners.batches.batching import MicroBatch
from learners.batches.training_batch import mismatches
from learners.losses.policy_gradient import Metrics
from learners.losses.preference import PairBatch, reply_logprobs
from learners.types import Pair, Sample


def pair_terms(
    config: LossConfig, batch: MicroBatch, logprobs_L: Tensor, pairs: Sequence[Pair], all_pairs: int, drift: float
) -> tuple[Tensor, Tensor, Metrics]:
    """(loss_B, weight_B, metrics) of the pairs in a micro-batch.

    `pairs`: all of this rank's minibatch, of which the micro-batch holds some (`batch.index_L` counts in
    training_batch.sequences). Each weighs 1 / `all_pairs`, the number in the whole minibatch on all ranks: neither
    the number of ranks nor the micro-batch size changes the gradient. `drift`: see `kto_drift`.
    """
    if int(batch.index_L[0]) < 0:  # a rank that only keeps step with the others
        return logprobs_L, torch.zeros_like(logprobs_L), {}
    owners_N, replies_L = torch.unique(batch.index_L, return_inverse=True)
    here = [pairs[owner // 2] for owner in owners_N[::2].tolist()]
    lengths_N = torch.bincount(replies_L).to(logprobs_L.dtype)
    policy_N = reply_logprobs(logprobs_L, replies_L, len(owners_N))
    if batch.reference_logprobs_L is None:
        assert not needs_reference(config), f"{config.kind}: the pairs carry no reference log-probabilities"
        reference_N = torch.zeros_like(policy_N)
    else:
        reference_N = reply_logprobs(batch.reference_logprobs_L, replies_L, len(owners_N))
    rates_N = policy_N.new_tensor([rate for pair in here for rate in pair.win_rates])
    probability_B = policy_N.new_tensor([pair.probability for pair in here])
    compared = PairBatch(
        policy_N[::2], policy_N[1::2], reference_N[::2], reference_N[1::2], lengths_N[::2], lengths_N[1::2],
        probability_B, rates_N[::2], rates_N[1::2], drift,
    )  # fmt: skip
    loss_B: Tensor = LOSSES[config.kind](compared, config)
    metrics = _measure(config, policy_N.detach(), reference_N, lengths_N)
    if "mismatched" in LOSSES.needs(config.kind):
        metrics["kto_drift"] = torch.full_like(loss_B.detach(), drift)
    if config.sft:
        imitation_B = -policy_N[::2] / lengths_N[::2]
        metrics["chosen_nll"] = imitation_B.detach()
        loss_B = loss_B + config.sft * imitation_B
    return loss_B, torch.full_like(loss_B, 1.0 / all_pairs), metrics


def _measure(config: LossConfig, policy_N: Tensor, reference_N: Tensor, lengths_N: Tensor) -> Metrics:
    """Log-ratios of whole replies (nats); for a loss without a reference, log-probabilities per token."""
    ratio_N = policy_N - reference_N if needs_reference(config) else policy_N / lengths_N
    margin_B = ratio_N[::2] - ratio_N[1::2]
    metrics = {"preference_margin": margin_B, "preference_accuracy": (margin_B > 0).to(margin_B.dtype)}
    return metrics | {"chosen_logratio": ratio_N[::2], "rejected_logratio": ratio_N[1::2]}


def kto_drift(
    pairs: Sequence[Pair],
    logprobs: Callable[[Sequence[Sample]], list[list[float]]],
    device: torch.device,
    world: int,
) -> float:
    """Mean log-ratio of replies to other prompts, under the weights held now, over all ranks: KTO's estimate of
    KL(policy || reference), arXiv 2402.01306, section 4.2, before it is clamped at 0. 0 where there is none."""
    samples = mismatches(pairs)
    total = 0.0
    for sample, values_L in zip(samples, logprobs(samples)):
        total += math.fsum(values_L) - math.fsum(sample.reference_logprobs_L or ())
    sums = torch.tensor([total, len(samples)], dtype=torch.float64, device=device)
    if world > 1:
        torch.distributed.all_reduce(sums)
    total, number = sums.tolist()
    return total / number if number else 0.0
