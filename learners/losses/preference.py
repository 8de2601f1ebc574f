"""Losses that compare replies to the same prompt. Axis: B pairs.

Each loss maps a `PairBatch` and the settings to the loss of each pair, [B]; the mean is the caller's. "Chosen" is the
better reply, y_w in the papers, "rejected" the other, y_l. A log-ratio is log pi(y) - log pi_ref(y), h the chosen one's
minus the rejected one's. A setting that is None has the paper's value. No torch at import: `launch.py plan` reads the
registry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from configs.methods import LOSSES
from configs.schema.run import LossConfig

if TYPE_CHECKING:
    from torch import Tensor

COMPARES = frozenset({"pairs", "group"})


@dataclass(frozen=True, slots=True)
class PairBatch:
    """The replies of B pairs: log-probabilities of whole replies (nats, summed over tokens) under the policy and under
    a frozen reference with the same masks and temperature. Gradients flow into those of the policy only."""

    chosen_B: Tensor
    rejected_B: Tensor
    ref_chosen_B: Tensor
    ref_rejected_B: Tensor
    chosen_lengths_B: Tensor
    """Tokens that carry loss."""
    rejected_lengths_B: Tensor
    probability_B: Tensor
    """That the chosen reply is the better one, from the credits of both (learners/credit/pairing.py)."""
    chosen_rate_B: Tensor
    """Estimated probability that the chosen reply beats one drawn from the policy of the iteration before."""
    rejected_rate_B: Tensor
    drift: float = 0.0
    """kto: mean log-ratio of replies to other prompts."""

    @property
    def chosen_ratio_B(self) -> Tensor:
        return self.chosen_B - self.ref_chosen_B

    @property
    def rejected_ratio_B(self) -> Tensor:
        return self.rejected_B - self.ref_rejected_B

    @property
    def margin_B(self) -> Tensor:
        """h"""
        return self.chosen_ratio_B - self.rejected_ratio_B


@LOSSES.register(
    "dpo", reads={"beta", "sft"}, needs=COMPARES | {"reference"}, source="DPO, arXiv 2305.18290, eq. 7"
)
def dpo(pairs: PairBatch, config: LossConfig) -> Tensor:
    """-log sigma(beta h)."""
    return -_logsigmoid(_or(config.beta, 0.1) * pairs.margin_B)


@LOSSES.register(
    "smoothed_dpo", reads={"beta", "label_gamma", "sft"}, needs=COMPARES | {"reference"},
    source="Arnesen, Rein and Michael 2024, arXiv 2409.16636",
)  # fmt: skip
def smoothed_dpo(pairs: PairBatch, config: LossConfig) -> Tensor:
    """-q log sigma(beta h) - (1 - q) log sigma(-beta h), q the probability that the chosen reply is the better one.

    With one q below 1 for all pairs it would be conservative DPO (Mitchell 2023). Least where sigma(beta h) = q, so
    certainty is not rewarded beyond the label's.
    """
    h_B = _or(config.beta, 0.1) * pairs.margin_B
    return -pairs.probability_B * _logsigmoid(h_B) - (1.0 - pairs.probability_B) * _logsigmoid(-h_B)


@LOSSES.register(
    "ipo", reads={"tau", "sft"}, needs=COMPARES | {"reference"}, source="IPO, arXiv 2310.12036, eq. 17"
)
def ipo(pairs: PairBatch, config: LossConfig) -> Tensor:
    """(h - 1 / (2 tau))^2: h has a target, not a direction."""
    return (pairs.margin_B - 0.5 / _or(config.tau, 0.1)).square()


@LOSSES.register("simpo", reads={"beta", "gamma", "sft"}, needs=COMPARES, source="SimPO, arXiv 2405.14734")
def simpo(pairs: PairBatch, config: LossConfig) -> Tensor:
    """-log sigma(beta log pi(y_w) / |y_w| - beta log pi(y_l) / |y_l| - gamma), without a reference."""
    reward_B = pairs.chosen_B / pairs.chosen_lengths_B - pairs.rejected_B / pairs.rejected_lengths_B
    return -_logsigmoid(_or(config.beta, 2.0) * reward_B - _or(config.gamma, 1.0))


@LOSSES.register(
    "spin", reads={"scale", "sft"}, needs=COMPARES | {"reference", "previous"}, source="SPIN, arXiv 2401.01335"
)
def spin(pairs: PairBatch, config: LossConfig) -> Tensor:
    """log(1 + e^(-scale h)), the logistic loss: winners against replies drawn from the policy of the iteration before,
    which is the reference."""
    return -_logsigmoid(_or(config.scale, 0.1) * pairs.margin_B)


@LOSSES.register(
    "kto", reads={"beta", "desirable_weight", "undesirable_weight", "sft"},
    needs=COMPARES | {"reference", "mismatched"}, source="KTO, arXiv 2402.01306",
)  # fmt: skip
def kto(pairs: PairBatch, config: LossConfig) -> Tensor:
    """Mean of w_D (1 - sigma(beta (l_w - z))) and w_U (1 - sigma(beta (z - l_l))), l the log-ratios.

    z = max(0, drift) estimates KL(policy || reference), section 4.2; no gradient passes through it.
    """
    z, beta = max(pairs.drift, 0.0), _or(config.beta, 0.1)
    desirable_B = _or(config.desirable_weight, 1.0) * (1.0 - (beta * (pairs.chosen_ratio_B - z)).sigmoid())
    undesirable_B = _or(config.undesirable_weight, 1.0) * (1.0 - (beta * (z - pairs.rejected_ratio_B)).sigmoid())
    return 0.5 * (desirable_B + undesirable_B)


@LOSSES.register(
    "sppo", reads={"eta", "label_gamma", "sft"}, needs=COMPARES | {"reference", "previous"},
    source="SPPO, arXiv 2405.00675",
)  # fmt: skip
def sppo(pairs: PairBatch, config: LossConfig) -> Tensor:
    """Mean over both replies of (l - eta (P - 1/2))^2, l the log-ratio, P the reply's win rate."""
    eta = _or(config.eta, 1000.0)
    chosen_B = (pairs.chosen_ratio_B - eta * (pairs.chosen_rate_B - 0.5)).square()
    rejected_B = (pairs.rejected_ratio_B - eta * (pairs.rejected_rate_B - 0.5)).square()
    return 0.5 * (chosen_B + rejected_B)


def reply_logprobs(logprobs_L: Tensor, segments_L: Tensor, replies: int) -> Tensor:
    """Log-probability of each whole reply, [replies]: the sum over its tokens, axis L."""
    return logprobs_L.new_zeros(replies).index_add(0, segments_L, logprobs_L)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _logsigmoid(values_B: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return logsigmoid(values_B)
