"""Losses that learn from comparisons and labels instead of advantages, in one explicit table. Axis: B examples.

Pure functions over log-probabilities of whole replies (nats, summed over tokens; see `reply_logprobs`) under the
policy and under a frozen reference with the same masks and temperature, or over scores and verdicts. Each returns
the loss of every example, [B]; the mean is the caller's. "Chosen" is the reply that was preferred, y_w in the
papers, "rejected" the other, y_l. A log-ratio is log pi(y) - log pi_ref(y). Keyword-only arguments are settings;
their defaults are the papers'. Gradients flow into the policy's arguments only as far as the caller lets them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from protocols.errors import UserError

# -- preferences between two replies


def dpo(
    chosen_B: Tensor, rejected_B: Tensor, ref_chosen_B: Tensor, ref_rejected_B: Tensor, *, beta: float = 0.1
) -> Tensor:
    """-log sigma(beta h), h the difference of the log-ratios. DPO, arXiv 2305.18290, eq. 7."""
    return -logsigmoid(beta * _margin(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B))


def smoothed_dpo(
    chosen_B: Tensor,
    rejected_B: Tensor,
    ref_chosen_B: Tensor,
    ref_rejected_B: Tensor,
    probability_B: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    """-p log sigma(beta h) - (1 - p) log sigma(-beta h), p the probability that "chosen" is better.

    With p from the rewards of a debate (`soft_label`): Arnesen, Rein and Michael 2024, arXiv 2409.16636. With one
    p below 1 for all: conservative DPO (Mitchell 2023). Least where sigma(beta h) = p, so certainty is not rewarded
    beyond the label's.
    """
    h_B = beta * _margin(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B)
    return -probability_B * logsigmoid(h_B) - (1.0 - probability_B) * logsigmoid(-h_B)


def soft_label(first_B: Tensor, second_B: Tensor, *, gamma: float = 7.0) -> Tensor:
    """Probability that the first is better, from rewards: e^(g r1) / (e^(g r1) + e^(g r2)). arXiv 2409.16636."""
    return torch.sigmoid(gamma * (first_B - second_B))


def ipo(
    chosen_B: Tensor, rejected_B: Tensor, ref_chosen_B: Tensor, ref_rejected_B: Tensor, *, tau: float = 0.1
) -> Tensor:
    """(h - 1 / (2 tau))^2. IPO, arXiv 2310.12036, eq. 17. Bounded preference: h has a target, not a direction."""
    return (_margin(chosen_B, rejected_B, ref_chosen_B, ref_rejected_B) - 0.5 / tau).square()


def simpo(
    chosen_B: Tensor,
    rejected_B: Tensor,
    chosen_lengths_B: Tensor,
    rejected_lengths_B: Tensor,
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
) -> Tensor:
    """-log sigma(beta log pi(y_w) / |y_w| - beta log pi(y_l) / |y_l| - gamma). SimPO, arXiv 2405.14734.
    Needs no reference."""
    reward_B = chosen_B / chosen_lengths_B - rejected_B / rejected_lengths_B
    return -logsigmoid(beta * reward_B - gamma)


def spin(
    real_B: Tensor, own_B: Tensor, ref_real_B: Tensor, ref_own_B: Tensor, *, scale: float = 0.1
) -> Tensor:
    """log(1 + exp(-lambda h)), SPIN, arXiv 2401.01335, with the logistic loss: `real` replies from data (or from
    winners) against `own` ones, drawn from the reference, which is the policy of the iteration before."""
    return dpo(real_B, own_B, ref_real_B, ref_own_B, beta=scale)


def _margin(chosen_B: Tensor, rejected_B: Tensor, ref_chosen_B: Tensor, ref_rejected_B: Tensor) -> Tensor:
    return (chosen_B - ref_chosen_B) - (rejected_B - ref_rejected_B)


# -- labels of single replies


def kto(
    logprobs_B: Tensor,
    ref_B: Tensor,
    desirable_B: Tensor,
    mismatched_B: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """lambda_y (1 - sigma(beta (r - z))) for desirable replies, (1 - sigma(beta (z - r))) for others. KTO, arXiv
    2402.01306.

    r is the log-ratio; z = max(0, mean of `mismatched_B`), without gradient, estimates KL(policy || reference) from
    the log-ratios of replies that belong to other prompts. `desirable_B` is boolean.
    """
    z = mismatched_B.detach().mean().clamp(min=0.0)
    gap_B = beta * (logprobs_B - ref_B - z)
    good_B = desirable_weight * (1.0 - torch.sigmoid(gap_B))
    bad_B = undesirable_weight * (1.0 - torch.sigmoid(-gap_B))
    return torch.where(desirable_B, good_B, bad_B)


def sppo(logprobs_B: Tensor, ref_B: Tensor, win_rate_B: Tensor, *, eta: float = 1000.0) -> Tensor:
    """(r - eta (P - 1/2))^2, r the log-ratio to the policy of the iteration before, P the estimated probability that
    this reply beats that policy. SPPO, arXiv 2405.00675."""
    return (logprobs_B - ref_B - eta * (win_rate_B - 0.5)).square()


# -- judges


def bradley_terry(chosen_scores_B: Tensor, rejected_scores_B: Tensor) -> Tensor:
    """-log sigma(s_w - s_l): a reward model's scores. Bradley and Terry 1952; arXiv 2203.02155."""
    return -logsigmoid(chosen_scores_B - rejected_scores_B)


def brier(logprobs_BC: Tensor, right_B: Tensor) -> Tensor:
    """Sum over the choices C of (p - 1[right])^2, from 0 to 2. Brier 1950. A proper score: in expectation least at
    the true probabilities. `right_B`: index of the right choice."""
    truth_BC = torch.nn.functional.one_hot(right_B, logprobs_BC.shape[1]).to(logprobs_BC.dtype)
    return (logprobs_BC.exp() - truth_BC).square().sum(1)


def log_score(logprobs_BC: Tensor, right_B: Tensor) -> Tensor:
    """-log p of the right choice (nats). Good 1952. Proper too, and unbounded: being sure and wrong costs most."""
    return -logprobs_BC.gather(1, right_B[:, None]).squeeze(1)


def weak_to_strong(
    log_odds_B: Tensor, weak_B: Tensor, *, alpha: float = 0.5, positive_share: float = 0.5
) -> Tensor:
    """(1 - alpha) CE(f, weak label) + alpha CE(f, f's own hardened answer). Burns et al. 2023, arXiv 2312.09390,
    section 4.3 and appendix A.4: confidence in itself where the student disagrees with its weak teacher.

    `log_odds_B`: the student's for the positive class; `weak_B`: the teacher's probability of it. The own answer is
    positive for the `positive_share` of the batch with the highest odds (in the paper a threshold that half of the
    batch passes), so that it cannot collapse into one class. The paper raises `alpha` linearly from 0 over the
    first fifth of training.
    """
    order_B = log_odds_B.detach().argsort(descending=True)
    own_B = torch.zeros_like(log_odds_B)
    own_B[order_B[: round(positive_share * len(own_B))]] = 1.0
    teacher_B = binary_cross_entropy_with_logits(log_odds_B, weak_B, reduction="none")
    itself_B = binary_cross_entropy_with_logits(log_odds_B, own_B, reduction="none")
    return (1.0 - alpha) * teacher_B + alpha * itself_B


PREFERENCES: dict[str, Callable[..., Tensor]] = {
    "dpo": dpo,
    "smoothed_dpo": smoothed_dpo,
    "ipo": ipo,
    "simpo": simpo,
    "spin": spin,
    "kto": kto,
    "sppo": sppo,
    "bradley_terry": bradley_terry,
    "brier": brier,
    "log_score": log_score,
    "weak_to_strong": weak_to_strong,
}


class UnknownPreference(UserError):
    """A loss, or a setting of one, that there is not."""


def preference_loss(kind: str, inputs: Mapping[str, Tensor], settings: Mapping[str, float]) -> Tensor:
    """PREFERENCES[kind] of `inputs` by name, [B]. Raises UnknownPreference for a kind that does not exist and for a
    setting that it does not read."""
    if kind not in PREFERENCES:
        raise UnknownPreference(f"loss.kind: {kind!r} is none of {', '.join(PREFERENCES)}")
    read = settings_of(kind)
    for name in settings:
        if name not in read:
            valid = ", ".join(read) or "no setting"
            raise UnknownPreference(f"loss.{name}: has no effect on the loss {kind!r}, which reads {valid}")
    return PREFERENCES[kind](**inputs, **settings)


def settings_of(kind: str) -> dict[str, float]:
    """The settings that a loss reads, with their defaults."""
    parameters = inspect.signature(PREFERENCES[kind]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}


def reply_logprobs(logprobs_L: Tensor, segments_L: Tensor, replies: int) -> Tensor:
    """Log-probability of each whole reply, [replies]: the sum over its tokens (axis L, as in learners/losses/policy_gradient.py)."""
    return logprobs_L.new_zeros(replies).index_add(0, segments_L, logprobs_L)
