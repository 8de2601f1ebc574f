"""Losses of single tokens. Axis: L tokens that carry loss.

A loss takes the learner's log-probabilities `logprobs_L` (nats), the micro-batch they belong to and the settings, and
returns the loss of each token with what it measured there. The ratio r starts from `batch.old_logprobs_L`.
`token_loss` adds what the policy-gradient losses share: off-policy correction, divergence from a reference, entropy.
The learner sums over tokens with the weights of `token_weights`, which count tokens and replies of the *whole*
minibatch, all ranks and micro-batches together: neither the number of ranks nor the micro-batch size changes the
gradient. No torch at import: `launch.py plan` reads the registry.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from configs.methods import CORRECTIONS, LOSSES, POLICY_GRADIENT, normalisation
from configs.schema.run import LossConfig
from learners.batches.batching import MicroBatch

if TYPE_CHECKING:
    from torch import Tensor

Metrics = dict[str, "Tensor"]
TokenLoss = tuple["Tensor", Metrics]
"""(loss_L, name -> value of each token)"""


@LOSSES.register(
    "clip", reads=POLICY_GRADIENT | {"clip_low", "clip_high", "dual_clip"},
    source="PPO, arXiv 1707.06347, eq. 7; two bounds: DAPO, arXiv 2503.14476, section 3.1; dual: arXiv 1912.09729",
)  # fmt: skip
def clip(logprobs_L: Tensor, batch: MicroBatch, config: LossConfig) -> TokenLoss:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A), r the ratio of new to old probability of a token.

    Per token as in GRPO, arXiv 2402.03300, eq. 3. With `dual_clip` c, where A < 0: -max(min(...), c A), or a token
    that the old policy hardly ever took could outweigh all others.
    """
    metrics = _drift(logprobs_L, batch)
    gain_L, metrics["clip_fraction"] = _clipped((logprobs_L - batch.old_logprobs_L).exp(), batch, config)
    if config.dual_clip:
        bounded_L = gain_L.maximum(config.dual_clip * batch.advantages_L)
        gain_L = bounded_L.where(batch.advantages_L < 0, gain_L)
    return -gain_L, metrics


@LOSSES.register("reinforce", reads=POLICY_GRADIENT, source="Williams 1992")
def reinforce(logprobs_L: Tensor, batch: MicroBatch, config: LossConfig) -> TokenLoss:
    """-r A without clipping.

    While the weights are those that sampled, its gradient is REINFORCE's, -A grad log p; afterwards r corrects for
    the drift.
    """
    return -(logprobs_L - batch.old_logprobs_L).exp() * batch.advantages_L, _drift(logprobs_L, batch)


@LOSSES.register("sft", reads={"normalise", "constant"})
def sft(logprobs_L: Tensor, batch: MicroBatch, config: LossConfig) -> TokenLoss:
    """-w log p, w the token's weight, which samples carry as their advantage."""
    return -logprobs_L * batch.advantages_L, {}


@LOSSES.register(
    "gspo", reads=POLICY_GRADIENT | {"clip_low", "clip_high"}, needs={"sequence"},
    source="GSPO, arXiv 2507.18071, section 4.1",
)  # fmt: skip
def gspo(logprobs_L: Tensor, batch: MicroBatch, config: LossConfig) -> TokenLoss:
    """-min(s A, clip(s, 1 - clip_low, 1 + clip_high) A), s = exp(mean of log r over the reply), at each of its tokens.

    With `normalise: sequence` a reply of any length counts once, as in the paper. Its bounds are 3e-4 and 4e-4: s
    strays much less than a token's r.
    """
    metrics = _drift(logprobs_L, batch)
    ratio_L = segment_mean(logprobs_L - batch.old_logprobs_L, batch.segments_L).exp()
    gain_L, metrics["clip_fraction"] = _clipped(ratio_L, batch, config)
    return -gain_L, metrics


@LOSSES.register(
    "cispo", reads=POLICY_GRADIENT | {"clip_low", "clip_high"}, source="CISPO, arXiv 2506.13585, eq. 4 and 5"
)
def cispo(logprobs_L: Tensor, batch: MicroBatch, config: LossConfig) -> TokenLoss:
    """-sg(clip(r, 1 - clip_low, 1 + clip_high)) A log p, sg: no gradient.

    The ratio's weight is bounded, but no token is ever left without a gradient. The paper has no lower bound:
    `clip_low: 1`.
    """
    metrics = _drift(logprobs_L, batch)
    weight_L = metrics["ratio"].clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
    metrics["clip_fraction"] = (weight_L != metrics["ratio"]).to(logprobs_L.dtype)
    return -weight_L * batch.advantages_L * logprobs_L, metrics


def _clipped(ratio_L: Tensor, batch: MicroBatch, config: LossConfig) -> tuple[Tensor, Tensor]:
    """min(r A, clip(r) A), and where the bound took effect."""
    free_L = ratio_L * batch.advantages_L
    clipped_L = ratio_L.clamp(1.0 - config.clip_low, 1.0 + config.clip_high) * batch.advantages_L
    return free_L.minimum(clipped_L), (clipped_L < free_L).detach().to(ratio_L.dtype)


def _drift(logprobs_L: Tensor, batch: MicroBatch) -> Metrics:
    """How far the weights have moved: the ratio r, and an unbiased, never negative estimate of
    KL(old || new), k3 = r - 1 - log r (Schulman 2020, "Approximating KL divergence")."""
    log_ratio_L = (logprobs_L - batch.old_logprobs_L).detach()
    ratio_L = log_ratio_L.exp()
    return {"ratio": ratio_L, "approx_kl": ratio_L - 1.0 - log_ratio_L}


def segment_mean(values_L: Tensor, segments_L: Tensor) -> Tensor:
    """At each token the mean over its reply."""
    sizes_N = segments_L.bincount()
    sums_N = values_L.new_zeros(len(sizes_N)).index_add(0, segments_L, values_L)
    return (sums_N / sizes_N)[segments_L]


# -- off-policy corrections: the weight of each token from log w, w the ratio of the learner's probability at the start
#    of the step to the sampler's. No gradient passes through.


@CORRECTIONS.register("none")
def uncorrected(log_ratio_L: Tensor, segments_L: Tensor, config: LossConfig) -> Tensor:
    """1; the ratio of the loss then starts from the sampler's probabilities."""
    return log_ratio_L.new_ones(len(log_ratio_L))


@CORRECTIONS.register(
    "truncate", reads={"correction_high"}, source="truncated importance sampling, Yao et al. 2025; Ionides 2008"
)
def truncate(log_ratio_L: Tensor, segments_L: Tensor, config: LossConfig) -> Tensor:
    """min(w, correction_high). Yao et al., "Your efficient RL framework secretly brings you off-policy RL training",
    take 2."""
    return log_ratio_L.exp().clamp(max=config.correction_high)


@CORRECTIONS.register("mask", reads={"correction_low", "correction_high"}, source="IcePop, arXiv 2510.18855")
def mask(log_ratio_L: Tensor, segments_L: Tensor, config: LossConfig) -> Tensor:
    """w within [correction_low, correction_high], 0 outside; [0.5, 5] in the paper.

    A token that the two engines disagree about that much says more of the engines than of the reward."""
    ratio_L = log_ratio_L.exp()
    inside_L = (ratio_L >= config.correction_low) & (ratio_L <= config.correction_high)
    return ratio_L.where(inside_L, ratio_L.new_zeros(()))


@CORRECTIONS.register(
    "reject", reads={"correction_low", "correction_high"}, source="sequence rejection, Liu et al. 2025"
)
def reject(log_ratio_L: Tensor, segments_L: Tensor, config: LossConfig) -> Tensor:
    """1 for replies whose geometric mean of w is within [correction_low, correction_high], else 0.

    Rejects whole replies (Liu et al., "When speed kills stability"), by the mean so that length does not decide."""
    mean_L = segment_mean(log_ratio_L, segments_L).exp()
    return ((mean_L >= config.correction_low) & (mean_L <= config.correction_high)).to(log_ratio_L.dtype)


# -- what the policy-gradient losses share


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
    ratio_L = (logprobs_L - sampled_logprobs_L).exp()
    if estimator == "k1":
        return ratio_L * log_L
    if estimator == "k2":
        return ratio_L.detach() * 0.5 * log_L.square()
    assert estimator == "k3", f"{estimator!r} is none of k1, k2, k3"
    return ratio_L * ((-log_L).exp() - 1.0 + log_L)


def token_loss(logprobs_L: Tensor, entropy_L: Tensor, batch: MicroBatch, config: LossConfig) -> TokenLoss:
    """LOSSES[config.kind], corrected for the sampler, plus `config.kl` times the divergence from the reference, less
    `config.entropy` times the entropy (nats) of the distribution over legal tokens.

    `batch.old_logprobs_L` are the sampler's. With a correction, the ratio of the loss starts from
    `batch.proximal_logprobs_L`, those of the learner at the start of the step (None: the weights have not moved
    since). Raises ValueError for an unknown kind, and where a reference is asked for and missing.
    """
    if config.kind not in LOSSES:
        raise ValueError(LOSSES.unknown(config.kind))
    loss, reads = LOSSES[config.kind], LOSSES.reads(config.kind)
    loss_L: Tensor
    metrics: Metrics
    if "correction" in reads and config.correction != "none":
        proximal_L = logprobs_L.detach() if batch.proximal_logprobs_L is None else batch.proximal_logprobs_L
        weigh = CORRECTIONS[config.correction]
        weight_L = weigh(proximal_L - batch.old_logprobs_L, batch.segments_L, config)
        loss_L, metrics = loss(logprobs_L, replace(batch, old_logprobs_L=proximal_L), config)
        loss_L = loss_L * weight_L
        metrics["correction_weight"] = weight_L
        metrics["correction_dropped"] = (weight_L == 0).to(weight_L.dtype)
    else:
        loss_L, metrics = loss(logprobs_L, batch, config)
    if "kl" in reads and config.kl:
        if batch.reference_logprobs_L is None:
            raise ValueError("loss.kl: the samples carry no reference log-probabilities")
        term_L = reference_kl(logprobs_L, batch.old_logprobs_L, batch.reference_logprobs_L, config.kl_estimator)
        metrics["reference_kl"] = term_L.detach()
        loss_L = loss_L + config.kl * term_L
    if "entropy" in reads and config.entropy:
        loss_L = loss_L - config.entropy * entropy_L
    return loss_L, metrics


def token_weights(config: LossConfig, segments_L: Tensor, tokens: int, replies: int) -> Tensor:
    """Weight of each token's loss; `tokens` and `replies`: of the whole minibatch, all ranks together.

    token: 1 / tokens (DAPO, arXiv 2503.14476, section 3.3). sequence: 1 / (replies * length of its reply), the mean
    of the replies' means (GRPO, arXiv 2402.03300, eq. 3). constant: 1 / (replies * constant), free of the lengths
    (Dr. GRPO, arXiv 2503.20783, section 3.2). Lengths count the tokens that carry loss.
    """
    import torch

    ones_L = torch.ones(len(segments_L), device=segments_L.device)
    how = normalisation(config)
    if how == "token":
        return ones_L / tokens
    if how == "constant":
        return ones_L / (replies * config.constant)
    return ones_L / (replies * segments_L.bincount()[segments_L])
