"""Losses of one token, in one explicit table. Axis: L tokens that carry loss.

A loss takes the learner's log-probabilities, those of the policy that sampled, and the advantages, and
returns the loss of each token with what it measured there. The learner sums over tokens and divides by the
number of loss tokens of the *whole* minibatch, all ranks and micro-batches together: every token weighs
the same wherever it lands (token-level normalisation, DAPO, arXiv 2503.14476, section 3.3), and neither
the number of ranks nor the micro-batch size changes the gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from configs.schema import LossConfig
from learners.settings import LOSS_USES

Metrics = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor, Tensor, LossConfig], tuple[Tensor, Metrics]]


def clip(
    logprobs_L: Tensor, old_logprobs_L: Tensor, advantages_L: Tensor, config: LossConfig
) -> tuple[Tensor, Metrics]:
    """Clipped surrogate: PPO, arXiv 1707.06347, eq. 7, per token as in GRPO, arXiv 2402.03300, eq. 3.

    -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), with r the ratio of new to old probability. Two
    bounds instead of one epsilon: arXiv 2503.14476, section 3.1.
    """
    ratio_L = torch.exp(logprobs_L - old_logprobs_L)
    free_L = ratio_L * advantages_L
    clipped_L = ratio_L.clamp(1.0 - config.clip_low, 1.0 + config.clip_high) * advantages_L
    metrics = _drift(logprobs_L, old_logprobs_L)
    metrics["clip_fraction"] = (clipped_L < free_L).detach().to(logprobs_L.dtype)
    return -torch.minimum(free_L, clipped_L), metrics


def reinforce(
    logprobs_L: Tensor, old_logprobs_L: Tensor, advantages_L: Tensor, config: LossConfig
) -> tuple[Tensor, Metrics]:
    """-r A without clipping. While the weights are those that sampled, its gradient is REINFORCE's
    (Williams 1992, -A grad log p); afterwards r corrects for the drift.
    """
    return -torch.exp(logprobs_L - old_logprobs_L) * advantages_L, _drift(logprobs_L, old_logprobs_L)


def sft(
    logprobs_L: Tensor, old_logprobs_L: Tensor, advantages_L: Tensor, config: LossConfig
) -> tuple[Tensor, Metrics]:
    """Negative log-likelihood times the token's weight, which Samples carry as their advantage."""
    return -logprobs_L * advantages_L, {}


def _drift(logprobs_L: Tensor, old_logprobs_L: Tensor) -> Metrics:
    """How far the weights have moved: the ratio r, and an unbiased, never negative estimate of
    KL(old || new), k3 = r - 1 - log r (Schulman 2020, "Approximating KL divergence")."""
    log_ratio_L = (logprobs_L - old_logprobs_L).detach()
    ratio_L = log_ratio_L.exp()
    return {"ratio": ratio_L, "approx_kl": ratio_L - 1.0 - log_ratio_L}


LOSSES: dict[str, Loss] = {"clip": clip, "reinforce": reinforce, "sft": sft}


def token_loss(
    kind: str,
    config: LossConfig,
    logprobs_L: Tensor,
    old_logprobs_L: Tensor,
    advantages_L: Tensor,
    entropy_L: Tensor,
) -> tuple[Tensor, Metrics]:
    """LOSSES[kind] less `config.entropy` times the entropy (nats) of the distribution over legal tokens.

    Raises ValueError for a kind that does not exist.
    """
    if kind not in LOSSES:
        raise ValueError(f"loss.kind: {kind!r} is none of {', '.join(LOSSES)}")
    loss_L, metrics = LOSSES[kind](logprobs_L, old_logprobs_L, advantages_L, config)
    if config.entropy and "entropy" in LOSS_USES[kind]:
        loss_L = loss_L - config.entropy * entropy_L
    return loss_L, metrics
