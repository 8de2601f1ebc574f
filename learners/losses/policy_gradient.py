"""Losses of one token, in one explicit table. Axis: L tokens that carry loss.

A loss takes the learner's log-probabilities, those that the ratio starts from, the advantages and which reply
each token belongs to, and returns the loss of each token with what it measured there. `token_loss` adds what
they share: off-policy correction, divergence from a reference, entropy. The learner sums over tokens with the
weights of `token_weights`, which count tokens and replies of the *whole* minibatch, all ranks and micro-batches
together: neither the number of ranks nor the micro-batch size changes the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from configs.methods import LOSS_USES, normalisation
from configs.schema.run import LossConfig
from learners.losses.scoring import brier, log_score

Metrics = dict[str, Tensor]


class Loss(Protocol):
    """`segments_L`: index of each token's reply, from 0; None: all belong to one."""

    def __call__(
        self,
        logprobs_L: Tensor,
        old_logprobs_L: Tensor,
        advantages_L: Tensor,
        config: LossConfig,
        segments_L: Tensor | None = None,
    ) -> tuple[Tensor, Metrics]: ...


def clip(
    logprobs_L: Tensor,
    old_logprobs_L: Tensor,
    advantages_L: Tensor,
    config: LossConfig,
    segments_L: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """Clipped surrogate: PPO, arXiv 1707.06347, eq. 7, per token as in GRPO, arXiv 2402.03300, eq. 3.

    -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), with r the ratio of new to old probability. Two
    bounds instead of one epsilon: arXiv 2503.14476, section 3.1. With `dual_clip` c, where A < 0:
    -max(min(...), c A), or a token that the old policy hardly ever took could outweigh all others (arXiv
    1912.09729, dual-clip PPO).
    """
    ratio_L = torch.exp(logprobs_L - old_logprobs_L)
    metrics = _drift(logprobs_L, old_logprobs_L)
    gain_L, metrics["clip_fraction"] = _clipped(ratio_L, advantages_L, config)
    if config.dual_clip:
        bounded_L = torch.maximum(gain_L, config.dual_clip * advantages_L)
        gain_L = torch.where(advantages_L < 0, bounded_L, gain_L)
    return -gain_L, metrics


def reinforce(
    logprobs_L: Tensor,
    old_logprobs_L: Tensor,
    advantages_L: Tensor,
    config: LossConfig,
    segments_L: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """-r A without clipping. While the weights are those that sampled, its gradient is REINFORCE's
    (Williams 1992, -A grad log p); afterwards r corrects for the drift.
    """
    return -torch.exp(logprobs_L - old_logprobs_L) * advantages_L, _drift(logprobs_L, old_logprobs_L)


def sft(
    logprobs_L: Tensor,
    old_logprobs_L: Tensor,
    advantages_L: Tensor,
    config: LossConfig,
    segments_L: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """Negative log-likelihood times the token's weight, which Samples carry as their advantage."""
    return -logprobs_L * advantages_L, {}


def gspo(
    logprobs_L: Tensor,
    old_logprobs_L: Tensor,
    advantages_L: Tensor,
    config: LossConfig,
    segments_L: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """Clipped surrogate of whole replies: GSPO, arXiv 2507.18071, section 4.1.

    -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A), s = exp(mean of log r over the reply), the same at each of
    its tokens; with `normalise: sequence` a reply of any length counts once, as in the paper. Its bounds are
    3e-4 and 4e-4: s strays much less than a token's r.
    """
    ratio_L = torch.exp(segment_mean(logprobs_L - old_logprobs_L, segments_L))
    metrics = _drift(logprobs_L, old_logprobs_L)
    gain_L, metrics["clip_fraction"] = _clipped(ratio_L, advantages_L, config)
    return -gain_L, metrics


def cispo(
    logprobs_L: Tensor,
    old_logprobs_L: Tensor,
    advantages_L: Tensor,
    config: LossConfig,
    segments_L: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """-sg(clip(r, 1 - clip_low, 1 + clip_high)) A log p, sg: no gradient. CISPO, arXiv 2506.13585, eq. 4 and 5.

    The ratio's weight is bounded, but no token is ever left without a gradient. The paper has no lower bound:
    `clip_low: 1`.
    """
    metrics = _drift(logprobs_L, old_logprobs_L)
    weight_L = metrics["ratio"].clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
    metrics["clip_fraction"] = (weight_L != metrics["ratio"]).to(logprobs_L.dtype)
    return -weight_L * advantages_L * logprobs_L, metrics


def _clipped(ratio_L: Tensor, advantages_L: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """min(r A, clip(r) A), and where the bound took effect."""
    free_L = ratio_L * advantages_L
    clipped_L = ratio_L.clamp(1.0 - config.clip_low, 1.0 + config.clip_high) * advantages_L
    return torch.minimum(free_L, clipped_L), (clipped_L < free_L).detach().to(ratio_L.dtype)


def _drift(logprobs_L: Tensor, old_logprobs_L: Tensor) -> Metrics:
    """How far the weights have moved: the ratio r, and an unbiased, never negative estimate of
    KL(old || new), k3 = r - 1 - log r (Schulman 2020, "Approximating KL divergence")."""
    log_ratio_L = (logprobs_L - old_logprobs_L).detach()
    ratio_L = log_ratio_L.exp()
    return {"ratio": ratio_L, "approx_kl": ratio_L - 1.0 - log_ratio_L}


def segment_mean(values_L: Tensor, segments_L: Tensor | None) -> Tensor:
    """At each token the mean over its reply."""
    if segments_L is None:
        segments_L = torch.zeros(len(values_L), dtype=torch.long, device=values_L.device)
    sizes_N = torch.bincount(segments_L)
    sums_N = values_L.new_zeros(len(sizes_N)).index_add(0, segments_L, values_L)
    return (sums_N / sizes_N)[segments_L]


LOSSES: dict[str, Loss] = {
    "clip": clip,
    "reinforce": reinforce,
    "sft": sft,
    "gspo": gspo,
    "cispo": cispo,
    "log_score": log_score,
    "brier": brier,
}


# -- what the policy-gradient losses share


def truncate(log_ratio_L: Tensor, config: LossConfig, segments_L: Tensor | None) -> Tensor:
    """min(w, correction_high): truncated importance sampling (Yao et al. 2025, "Your efficient RL framework
    secretly brings you off-policy RL training"; the bound is Ionides 2008's). Their bound is 2."""
    return log_ratio_L.exp().clamp(max=config.correction_high)


def mask(log_ratio_L: Tensor, config: LossConfig, segments_L: Tensor | None) -> Tensor:
    """w within [correction_low, correction_high], 0 outside: IcePop, arXiv 2510.18855, with [0.5, 5] there. A
    token that the two engines disagree about that much says more of the engines than of the reward."""
    ratio_L = log_ratio_L.exp()
    inside_L = (ratio_L >= config.correction_low) & (ratio_L <= config.correction_high)
    return torch.where(inside_L, ratio_L, torch.zeros_like(ratio_L))


def reject(log_ratio_L: Tensor, config: LossConfig, segments_L: Tensor | None) -> Tensor:
    """1 for replies whose geometric mean of w is within [correction_low, correction_high], else 0: rejection of
    whole replies (Liu et al. 2025, "When speed kills stability"), by the mean so that length does not decide."""
    mean_L = segment_mean(log_ratio_L, segments_L).exp()
    return ((mean_L >= config.correction_low) & (mean_L <= config.correction_high)).to(log_ratio_L.dtype)


CORRECTIONS: dict[str, Callable[[Tensor, LossConfig, Tensor | None], Tensor]] = {
    "truncate": truncate,
    "mask": mask,
    "reject": reject,
}
"""Weight of each token from log w, w the ratio of the learner's probability at the start of the step to the
sampler's. No gradient passes through."""


def reference_kl(
    logprobs_L: Tensor, sampled_logprobs_L: Tensor, reference_logprobs_L: Tensor, estimator: str
) -> Tensor:
    """A term for KL(policy || reference), in nats, at each token. Estimators: Schulman 2020.

    Its gradient has the gradient of the divergence as its expectation over tokens that `sampled` drew, on- and
    off-policy. Differentiating an estimate as it stands has not: k1 gives 0, k3 gives the gradient of
    KL(reference || policy) (arXiv 2506.09477). So k1 and k3 are multiplied by the ratio r = policy / sampled with
    its gradient (as arXiv 2512.02556 does for k3; the value's expectation is then the divergence too), and k2, whose
    own gradient is right but whose value is not, by r without.
    """
    log_L = logprobs_L - reference_logprobs_L
    ratio_L = torch.exp(logprobs_L - sampled_logprobs_L)
    if estimator == "k1":
        return ratio_L * log_L
    if estimator == "k2":
        return ratio_L.detach() * 0.5 * log_L.square()
    assert estimator == "k3", f"{estimator!r} is none of k1, k2, k3"
    return ratio_L * (torch.exp(-log_L) - 1.0 + log_L)


def token_loss(
    kind: str,
    config: LossConfig,
    logprobs_L: Tensor,
    old_logprobs_L: Tensor,
    advantages_L: Tensor,
    entropy_L: Tensor,
    segments_L: Tensor | None = None,
    proximal_logprobs_L: Tensor | None = None,
    reference_logprobs_L: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """LOSSES[kind], corrected for the sampler, plus `config.kl` times the divergence from the reference, less
    `config.entropy` times the entropy (nats) of the distribution over legal tokens.

    `old_logprobs_L` are the sampler's. With a correction, the ratio of the loss starts from `proximal_logprobs_L`,
    those of the learner at the start of the step (None: the weights have not moved since). Raises ValueError for a
    kind that does not exist, and where a reference is asked for and missing.
    """
    if kind not in LOSSES:
        raise ValueError(f"loss.kind: {kind!r} is none of {', '.join(LOSSES)}")
    uses = LOSS_USES[kind]
    if "correction" in uses and config.correction != "none":
        proximal_L = logprobs_L.detach() if proximal_logprobs_L is None else proximal_logprobs_L
        weight_L = CORRECTIONS[config.correction](proximal_L - old_logprobs_L, config, segments_L)
        loss_L, metrics = LOSSES[kind](logprobs_L, proximal_L, advantages_L, config, segments_L)
        loss_L = loss_L * weight_L
        metrics["correction_weight"] = weight_L
        metrics["correction_dropped"] = (weight_L == 0).to(weight_L.dtype)
    else:
        loss_L, metrics = LOSSES[kind](logprobs_L, old_logprobs_L, advantages_L, config, segments_L)
    if "kl" in uses and config.kl:
        if reference_logprobs_L is None:
            raise ValueError("loss.kl: the samples carry no reference log-probabilities")
        term_L = reference_kl(logprobs_L, old_logprobs_L, reference_logprobs_L, config.kl_estimator)
        metrics["reference_kl"] = term_L.detach()
        loss_L = loss_L + config.kl * term_L
    if "entropy" in uses and config.entropy:
        loss_L = loss_L - config.entropy * entropy_L
    return loss_L, metrics


def token_weights(config: LossConfig, segments_L: Tensor, tokens: int, replies: int) -> Tensor:
    """Weight of each token's loss; `tokens` and `replies`: of the whole minibatch, all ranks together.

    token: 1 / tokens (DAPO, arXiv 2503.14476, section 3.3). sequence: 1 / (replies * length of its reply), the mean
    of the replies' means (GRPO, arXiv 2402.03300, eq. 3). constant: 1 / (replies * constant), free of the lengths
    (Dr. GRPO, arXiv 2503.20783, section 3.2). Lengths count the tokens that carry loss.
    """
    ones_L = torch.ones(len(segments_L), device=segments_L.device)
    how = normalisation(config)
    if how == "token":
        return ones_L / tokens
    if how == "constant":
        return ones_L / (replies * config.constant)
    return ones_L / (replies * torch.bincount(segments_L)[segments_L])
