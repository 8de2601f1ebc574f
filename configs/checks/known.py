"""What the checks are told about learners."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from configs.schema.run import LearnerConfig


@dataclass(frozen=True)
class Known:
    """What the learners' side knows, handed in because `configs` does not import `learners`."""

    kinds: Mapping[str, Collection[str]]
    """Section of LearnerConfig that has a `kind` -> the kinds that there are."""
    group_fields: Collection[str]
    """What AdvantageConfig.group_by and baseline_by may name."""
    idle: Callable[[LearnerConfig], Iterable[tuple[str, str, str]]]
    """(setting, why it has no effect, what makes it so), dotted below `learner`; its kinds are known ones."""
    check_learner: Callable[[LearnerConfig, str], object]
    """Raises ValueError("setting: what is wrong") for what no learner can run on a device (cpu or cuda)."""
