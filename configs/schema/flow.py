"""Which plays of a stage train, and which are only recorded. Part of configs/schema/run.py, which has all others."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class KeepConfig:
    """Groups that reach the learners. The others are recorded as `filtered`, and new ones begin at once."""

    signal: bool = False
    """Only groups in which some reward of a policy that learns differs (dynamic sampling, DAPO, arXiv 2503.14476,
    section 3.2)."""
    solve_rate: list[float] = field(default_factory=list)
    """[least, most]: only groups whose mean score lies between, ends included (R-Zero, arXiv 2508.05004, how the
    solver's tasks are chosen). Empty: any. A group without any score is kept, since nothing is known of it."""
    limit: float = 20.0
    """Filtered groups for each that a step needs, beyond which the stage ends with an error."""


@dataclass
class AuditConfig:
    """Policies that do not learn here answer some of the tasks, to see whether the tasks' right answers are."""

    share: float = 0.1
    """Of the tasks that are played, proposed and real ones."""
    protocol: str = ""
    """Which entry of `protocols` they play; its score is whether they came to the task's own answer."""
    roles: dict[str, str] = field(default_factory=dict)
    """role -> policy"""
