"""What a run reports of its arms: intervals over the right clusters, missing data left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.evaluation.arms import arm_metrics, heldout_tasks, score, score_by
from configs.load import load_protocol
from protocols.types import Episode, Judgment, Outcome, Reward, Task, Turn
from tasks.kinds.lists import Lists
from tasks.kinds.pixels import Pixels


def play(task: Task, value: float | None) -> list[Episode]:
    outcome = Outcome("ok" if value is not None else "invalid", score=value)
    return [Episode(f"arm-{task.id}-{value}", "p", task, 0, (), outcome)]


def test_lists_are_independent_of_each_other_though_all_have_the_same_root() -> None:
    source = Lists()
    tasks = source.derived_heldout(100, 0)
    found = score([play(task, float(i % 4 == 0)) for i, task in enumerate(tasks)], source.cluster)
    assert found.mean == 0.25 and found.n == 100
    assert found.low < 0.20 and found.high > 0.30, "one cluster for all would give no width at all"


def test_lies_about_one_image_are_one_cluster() -> None:
    source = Pixels(holdout=2)
    tasks = source.derived_heldout(18, 0)
    values = {task.parent: float(i) for i, task in enumerate(tasks[:2])}
    found = score([play(task, values[task.parent]) for task in tasks], source.cluster)
    assert (found.low, found.high) == (0.0, 1.0), "two images: the mean could be 0, 0.5 or 1"


def test_plays_without_a_score_are_missing_and_not_zero() -> None:
    source = Lists()
    tasks = source.derived_heldout(4, 0)
    found = score([play(task, value) for task, value in zip(tasks, (1.0, None, 1.0, None))], source.cluster)
    assert found.mean == 1.0 and found.n == 2


def test_accuracy_by_length_is_in_numerical_order() -> None:
    source = Lists(min_len=2, max_len=12)
    tasks = source.derived_heldout(22, 0)
    found = score_by([play(task, float(len(task.question) > 8)) for task in tasks], source.bucket)
    assert list(found) == [str(length) for length in range(2, 13)]
    assert found["2"] == pytest.approx(1.0), "`reverse 3 1` is longer than 8 characters"
    assert score_by([play(task, 1.0) for task in Pixels().derived_heldout(3, 0)], Pixels().bucket) == {}


def test_an_arm_tells_the_players_objectives_and_how_good_its_judge_was() -> None:
    task = Task("img1/2", "q", "a", ("a", "b"), parent="img1")
    rewards = (Reward("ann", 0, 0.5, "belief_change"), Reward("ben", 0, -0.1, "belief_change"))
    outcome = Outcome("ok", (Judgment("jay", (0.8, 0.2), True, 1),), rewards, score=1.0)
    turns = tuple(Turn(seat, role, "p", 0, "", (), "x") for seat, role in (("ann", "debater"), ("ben", "debater")))
    root = Episode("arm-0", "proposed", Task("img1", "q"), 0, (Turn("pro", "proposer", "q", 0, "", (), "b"),),
                   Outcome("ok", rewards=(Reward("pro", 0, 0.75, "learnability"),), score=1.0))  # fmt: skip
    child = Episode("arm-0/0", "debate", task, 0, turns, outcome, parent="arm-0")
    lost = Episode("arm-1", "proposed", task, 0, (), Outcome("lost"))
    metrics = arm_metrics([[root, child], [lost]])
    assert metrics["reward/debater/belief_change"] == pytest.approx(0.2)
    assert metrics["reward/proposer/learnability"] == 0.75
    assert metrics["brier"] == pytest.approx(0.04)


def test_a_proposer_is_measured_on_root_tasks() -> None:
    source, configs = Pixels(), Path(__file__).resolve().parent.parent.parent.parent / "configs" / "protocol"
    proposed, debate = (load_protocol(configs / f"{name}.yaml") for name in ("pixel_proposed", "pixel_debate"))
    roots = heldout_tasks(source, proposed, 5, 0)
    assert all(task.proposals and not task.choices for task in roots)
    assert [task.id for task in roots] == [task.parent for task in heldout_tasks(source, debate, 5, 0)]
