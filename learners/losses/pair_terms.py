"""Preference losses of one micro-batch of pairs. Axes: L tokens that carry loss, B pairs, N replies (2 B)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from configs.methods import needs_reference
from configs.schema.run import LossConfig
from learners.batches.batching import MicroBatch
from learners.batches.lessons import mismatches
from learners.losses.policy_gradient import Metrics
from learners.losses.preference import preference_loss, reply_logprobs, settings_of
from learners.types import Pair, Sample


def pair_terms(
    config: LossConfig, batch: MicroBatch, logprobs_L: Tensor, pairs: Sequence[Pair], everyones: int, drift: float
) -> tuple[Tensor, Tensor, Metrics]:
    """Loss of each pair, its weight, and what was measured on it.

    `pairs`: all of this rank's minibatch, of which the micro-batch holds some (`batch.index_L` counts in
    pairs.sequences). Each weighs 1 / `everyones`, the pairs of the whole minibatch on all ranks: neither the number
    of ranks nor the micro-batch size changes the gradient. `drift`: see `kto_drift`.
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
    loss_B = _compare(config, policy_N, reference_N, lengths_N, here, drift)
    metrics = _measure(config, policy_N.detach(), reference_N, lengths_N)
    if config.kind == "kto":
        metrics["kto_drift"] = torch.full_like(loss_B.detach(), drift)
    if config.sft:
        imitation_B = -policy_N[::2] / lengths_N[::2]
        metrics["chosen_nll"] = imitation_B.detach()
        loss_B = loss_B + config.sft * imitation_B
    return loss_B, torch.full_like(loss_B, 1.0 / everyones), metrics


def _compare(
    config: LossConfig, policy_N: Tensor, reference_N: Tensor, lengths_N: Tensor, pairs: Sequence[Pair], drift: float
) -> Tensor:
    """learners.losses.preference's loss of each pair; for the losses of single replies the mean of its two."""
    set_here = {name: getattr(config, name) for name in settings_of(config.kind)}
    settings = {name: value for name, value in set_here.items() if value is not None}

    def loss(**inputs: Tensor) -> Tensor:
        return preference_loss(config.kind, inputs, settings)

    chosen_B, rejected_B, ref_chosen_B, ref_rejected_B = (
        policy_N[::2], policy_N[1::2], reference_N[::2], reference_N[1::2]
    )  # fmt: skip
    if config.kind == "simpo":
        return loss(chosen_B=chosen_B, rejected_B=rejected_B,
                    chosen_lengths_B=lengths_N[::2], rejected_lengths_B=lengths_N[1::2])  # fmt: skip
    if config.kind == "kto":
        desirable_N = torch.arange(len(policy_N), device=policy_N.device) % 2 == 0
        loss_N = loss(logprobs_B=policy_N, ref_B=reference_N, desirable_B=desirable_N,
                      mismatched_B=policy_N.new_tensor([drift]))  # fmt: skip
        return loss_N.view(-1, 2).mean(1)
    if config.kind == "sppo":
        rates_N = policy_N.new_tensor([rate for pair in pairs for rate in pair.win_rates])
        return loss(logprobs_B=policy_N, ref_B=reference_N, win_rate_B=rates_N).view(-1, 2).mean(1)
    if config.kind == "spin":
        return loss(real_B=chosen_B, own_B=rejected_B, ref_real_B=ref_chosen_B, ref_own_B=ref_rejected_B)
    inputs = {"chosen_B": chosen_B, "rejected_B": rejected_B}
    inputs |= {"ref_chosen_B": ref_chosen_B, "ref_rejected_B": ref_rejected_B}
    if config.kind == "smoothed_dpo":
        inputs["probability_B"] = policy_N.new_tensor([pair.probability for pair in pairs])
    return loss(**inputs)


def _measure(config: LossConfig, policy_N: Tensor, reference_N: Tensor, lengths_N: Tensor) -> Metrics:
    """Log-ratios to the reference (nats, of whole replies; per token and without a reference for SimPO)."""
    ratio_N = policy_N / lengths_N if config.kind == "simpo" else policy_N - reference_N
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
