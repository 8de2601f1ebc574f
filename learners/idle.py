"""Why a policy that was to learn made no update in a whole stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping


class NothingLearned(RuntimeError):
    """A stage went by without updating any policy."""


class Idle:
    """Sums up the learner metrics of a stage's steps, for each policy."""

    def __init__(self) -> None:
        self.totals: dict[str, Counter[str]] = {}

    def add(self, learned: Mapping[str, Mapping[str, float]]) -> None:
        """The metrics of one step, by policy."""
        for policy, metrics in learned.items():
            self.totals.setdefault(policy, Counter()).update(metrics)

    def reasons(self) -> dict[str, str]:
        """policy -> why, for those that were due at some step and made no update."""
        return {policy: _why(found) for policy, found in self.totals.items() if not found["updates"]}


def _why(found: Counter[str]) -> str:
    """The first of these that explains it all."""
    polls, turns, groups = found["polls"], found["turns"], found["groups"]
    causes = {
        "no loss or gradient was a number (batches in dumps/)": found["skipped"] > 0,
        "no question to it had a known right answer": polls > 0 and found["polls_without_answer"] == polls,
        "none of its questions was on a trusted task": polls > 0 and found["polls_trained"] == 0,
        "it took no turn": turns == polls == 0,
        "no reward reached any of its turns": turns > 0 and found["turns_without_reward"] == turns,
        "in every group all rewards were equal": 0 < groups <= found["zero_variance_groups"],
        "no two replies to one prompt differed in reward": 0 < groups == found["groups_without_pair"],
    }
    return next((why for why, holds in causes.items() if holds), "no turn of its had a weight (see learner/ metrics)")
