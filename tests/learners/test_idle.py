"""Why a stage left a policy as it was: the cause is in the learner's metrics."""

from __future__ import annotations

import pytest

from learners.idle import Idle

FLAT = {"turns": 8.0, "groups": 2.0, "zero_variance_groups": 2.0}


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        (FLAT, "in every group all rewards were equal"),
        (FLAT | {"skipped": 1.0}, "no loss or gradient was a number"),
        ({"turns": 8.0, "turns_without_reward": 8.0}, "no reward reached"),
        ({"turns": 0.0}, "it took no turn"),
        ({"polls": 4.0, "polls_without_answer": 4.0}, "known right answer"),
        ({"polls": 4.0, "polls_without_answer": 1.0, "polls_trained": 0.0}, "trusted"),
        ({"turns": 8.0, "groups": 3.0, "groups_without_pair": 3.0}, "no two replies"),
        ({"turns": 8.0, "groups": 3.0, "zero_variance_groups": 1.0}, "no turn of its had a weight"),
    ],
)
def test_each_cause_is_named_by_its_counts(metrics: dict[str, float], why: str) -> None:
    idle = Idle()
    for _ in range(3):
        idle.add({"debater": metrics, "judge": {"updates": 1.0, **FLAT}})
    assert set(idle.reasons()) == {"debater"}, "who was updated has no reason"
    assert why in idle.reasons()["debater"]


def test_one_step_of_another_kind_is_no_cause_of_all() -> None:
    idle = Idle()
    idle.add({"debater": FLAT})
    idle.add({"debater": {"turns": 8.0, "turns_without_reward": 8.0}})
    assert "in every group" in idle.reasons()["debater"], "of the groups that there were"
