"""The registries of learning methods: everything that a `learner:` section can name.

They are declared here, so that checks can read them, and filled by `learners` (and by plugins) when it is imported. An
entry `reads` settings of its own section of LearnerConfig; a setting that its method does not read is refused. What it
`needs` is one of the words listed at its registry. No torch: `launch.py plan` checks a config in no time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from configs.schema.run import LearnerConfig, LossConfig
from protocols.errors import UserError
from protocols.extension import Registry


class LearnerConfigError(UserError):
    """Settings that no learner can run. The message begins with the setting, dotted below `learner`."""


Method = Callable[..., Any]

ADVANTAGES: Registry[Method] = Registry("advantage")
"""advantage.kind -> estimator, (CreditBatch, AdvantageConfig) -> advantages_B (learners/credit/advantages.py).

Needs: "group": it compares the members of a group, so a group of one, or of equal credits, teaches nothing. "parent":
groups lie within one parent play. "critic": a value head; the estimator is then (rewards_T, values_T, AdvantageConfig)
-> (advantages_T, returns_T) for each trajectory (learners/credit/gae.py)."""

SIGNALS: Registry[Method] = Registry("signal")
"""signal.kind -> weights of imitation, (credits_G, SignalConfig) -> weights_G >= 0 (learners/credit/signals.py).

Needs: "group": as above. "advantage": turns weigh their advantage instead, by `advantage.kind`. "polls": it learns
from the questions that a judge was asked, not from sampled turns (learners/credit/truth.py)."""

LOSSES: Registry[Method] = Registry("loss")
"""loss.kind -> loss of each token, (logprobs_L, MicroBatch, LossConfig) -> (loss_L, metrics)
(learners/losses/policy_gradient.py, scoring.py).

Needs: "pairs": it compares the replies of B pairs instead, (PairBatch, LossConfig) -> loss_B
(learners/losses/preference.py). "reference": log-probabilities under the reference. "previous": a reference of kind
previous. "mismatched": replies to other prompts. "targets": the signal `truth`, whose samples carry target
probabilities. "every choice": also of choices whose target is 0. "sequence": `normalise: auto` is sequence, not token.
"group": as above."""

CORRECTIONS: Registry[Method] = Registry("correction")
"""loss.correction -> off-policy weight of each token, (log_ratio_L, segments_L, LossConfig) -> weight_L."""

REFERENCES: Registry[Method] = Registry("reference")
"""reference.kind -> share of the policy's weights that the reference takes over at the start of a learner step,
(step, ReferenceConfig) -> 0 to 1. Needs: "average": its weights are a moving average, kept in float32."""

GROUP_FIELDS: Registry[Callable[..., str]] = Registry("part of a group key")
"""What advantage.group_by and advantage.baseline_by may name: (Episode, Turn) -> str."""

SECTIONS: dict[str, Registry[Method]] = {
    "loss": LOSSES, "signal": SIGNALS, "advantage": ADVANTAGES, "reference": REFERENCES,
}  # fmt: skip
"""Sections of LearnerConfig that have a kind."""

EACH_GROUP = frozenset({"credit", "discount", "group_by"})
"""Settings of AdvantageConfig that decide what a turn is credited with and which turns form a group."""

POLICY_GRADIENT = frozenset(
    {"normalise", "constant", "correction", "correction_low", "correction_high", "kl", "kl_estimator", "entropy"}
)
"""Settings of LossConfig that every policy-gradient loss reads."""


def is_preference(loss: str) -> bool:
    """Whether a loss compares replies to the same prompt with each other instead of weighing tokens."""
    return "pairs" in LOSSES.needs(loss)


def is_policy_gradient(loss: str) -> bool:
    """Whether a loss weighs sampled tokens by their advantages."""
    return LOSSES.reads(loss) >= POLICY_GRADIENT


def needs_reference(config: LossConfig) -> bool:
    """Whether the loss reads `Sample.reference_logprobs_L`."""
    return "reference" in LOSSES.needs(config.kind) or (config.kl > 0 and "kl" in LOSSES.reads(config.kind))


def normalisation(config: LossConfig) -> str:
    """token, sequence or constant, for losses of a token."""
    if config.normalise != "auto":
        return config.normalise
    return "sequence" if "sequence" in LOSSES.needs(config.kind) else "token"


def comparing(learner: LearnerConfig) -> tuple[str, frozenset[str]]:
    """The loss, signal or advantage estimator that decides how turns are compared, and what it needs."""
    if is_preference(learner.loss.kind):
        return learner.loss.kind, LOSSES.needs(learner.loss.kind)
    signal = learner.signal.kind
    if "advantage" in SIGNALS.needs(signal):
        return learner.advantage.kind, ADVANTAGES.needs(learner.advantage.kind)
    return signal, SIGNALS.needs(signal)


def comparing_kinds() -> list[str]:
    """The advantage estimators, signals and losses that compare the members of a group."""
    registries: tuple[Registry[Method], ...] = (ADVANTAGES, SIGNALS, LOSSES)
    return [name for registry in registries for name in registry if "group" in registry.needs(name)]
