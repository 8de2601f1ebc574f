"""What a learner step takes: samples one by one, or pairs of replies that a preference loss compares.

A pair is never torn: both replies are on one rank and in one micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterable, MutableMapping, Sequence

from configs.schema.run import PREFERENCE_LOSSES, LearnerConfig
from learners.batches.lessons import Lesson
from learners.credit.pairing import build_pairs
from learners.credit.samples import build_samples
from learners.credit.truth import Answers
from protocols.types import Episode

LABEL_GAMMA = 7.0
"""arXiv 2409.16636, whose rewards are in [0, 1]."""


def build_lessons(
    episodes: Iterable[Episode],
    policy: str,
    config: LearnerConfig,
    baselines: MutableMapping[str, float],
    answers: Answers | None = None,
) -> tuple[Sequence[Lesson], dict[str, float]]:
    """What the loss of `policy` learns from these episodes, and figures about it. `answers`: which right answers may be
    learned from; None: all."""
    loss = config.loss
    if loss.kind not in PREFERENCE_LOSSES:
        return build_samples(episodes, policy, config.advantage, baselines, config.signal, answers)
    gamma = LABEL_GAMMA if loss.label_gamma is None else loss.label_gamma
    return build_pairs(episodes, policy, config.advantage, gamma, mismatch=loss.kind == "kto", answers=answers)


