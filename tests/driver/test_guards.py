"""Alarms on metrics: when they sound, what they ask for, and what a run does about it. Dumps of broken batches."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from configs.schema.run import GuardConfig
from driver.guards import Guards
from driver.rollback import RollBack, apply_alerts
from driver.run import Stopped
from learners.dump import KEEP, dump, load
from learners.types import Sample

KL = "learner/debater/approx_kl"


def actions(guards: Guards, *values: float, kind: str = "learner/debater", name: str = "approx_kl") -> list[str]:
    """What is asked for after each value; "" for nothing."""
    found = []
    for step, value in enumerate(values):
        guards.log(kind, step, {name: value})
        found.append(",".join(alarm.action for alarm in guards.take()))
    return found


def test_an_alarm_sounds_once_until_all_is_well_again() -> None:
    guards = Guards([GuardConfig(KL, above=0.1)])
    assert actions(guards, 0.1, 0.2, 0.3, 0.05, 0.2) == ["", "warn", "", "", "warn"]
    assert [(alarm["step"], alarm["value"]) for alarm in guards.history] == [(1, 0.2), (4, 0.2)]


def test_so_many_values_in_a_row() -> None:
    guards = Guards([GuardConfig(KL, below=0.5, steps=3, action="stop")])
    assert actions(guards, 0.4, 0.4, 0.6, 0.4, 0.4, 0.4) == ["", "", "", "", "", "stop"]


@given(st.lists(st.floats(0, 1), max_size=30), st.integers(1, 4))
def test_alarms_are_the_runs_of_values_outside(values: list[float], steps: int) -> None:
    asked = actions(Guards([GuardConfig(KL, above=0.5, steps=steps)]), *values)
    outside = "".join("x" if value > 0.5 else "." for value in values)
    runs = sum(len(run) >= steps for run in outside.split("."))
    assert asked.count("warn") == runs


def test_other_figures_missing_ones_and_nan_are_no_news() -> None:
    guards = Guards([GuardConfig(KL, above=0.1, steps=2)])
    guards.log("learner/proposer", 0, {"approx_kl": 9.0})
    guards.log("learner/debater", 0, {"loss": 9.0, "learner/debater/approx_kl": 9.0})
    assert guards.take() == [] and guards.unseen == [KL]
    assert actions(guards, 0.2, math.nan, math.inf, 0.2) == ["", "", "", "warn"]
    assert guards.unseen == []


def test_figures_with_a_slash_in_their_name() -> None:
    guards = Guards([GuardConfig("rollout/main/length/debater", above=50)])
    assert actions(guards, 40, 60, kind="rollout/main", name="length/debater") == ["", "warn"]
    guards = Guards([GuardConfig("rollout/main/length/debater", above=50)])
    assert actions(guards, 60, kind="rollout/main", name="length") == [""]


def test_reward_that_rises_faster_than_accuracy() -> None:
    reward, right = "rollout/main/reward/debater/win_probability", "eval/trained/score"
    guards = Guards([GuardConfig(reward, against=right, above=0.25)])
    told = []
    metrics = [(0.9, None), (0.1, 0.7), (0.3, None), (0.3, 0.6), (0.4, None), (0.4, 0.9)]
    for step, (paid, accuracy) in enumerate(metrics):
        if accuracy is not None:
            guards.log("eval/trained", step, {"score": accuracy})
        guards.log("rollout/main", step, {"reward/debater/win_probability": paid})
        told.append([round(alarm.value, 9) for alarm in guards.take()])
    # Both are known from step 1 on: reward 0.1, accuracy 0.7. Step 3: +0.2 against -0.1. Step 5: +0.3 against +0.2.
    assert told == [[], [], [], [0.3], [], []]


def test_two_figures_of_one_line_are_compared_with_each_other() -> None:
    own, other = "rollout/main/belief", "rollout/main/belief/auditor"
    guards = Guards([GuardConfig(own, against=other, above=0.5)])
    for step, (one, two) in enumerate([(0.0, 0.0), (1.0, 0.9), (1.0, 0.0)]):
        guards.log("rollout/main", step, {"belief": one, "belief/auditor": two})
        assert bool(guards.take()) == (step == 2)


def test_rolling_back_is_tried_so_often_and_then_the_run_stops() -> None:
    guards = Guards([GuardConfig(KL, above=0.1, action="roll_back", times=2), GuardConfig(KL, above=0.3)])
    assert not guards.alarmed
    assert actions(guards, 0.2) == ["roll_back"] and guards.alarmed
    for expected in ("roll_back", "stop"):
        guards.rolled_back()
        assert not guards.alarmed
        again = Guards(guards.configs)
        again.restore(json.loads(json.dumps(guards.state())))
        guards = again  # a run that is resumed has no more tries
        assert actions(guards, 0.05, 0.2) == ["", expected]
    assert [alarm["action"] for alarm in guards.history] == ["roll_back", "roll_back", "stop"]


def test_other_guards_than_before_start_from_scratch() -> None:
    guards = Guards([GuardConfig(KL, above=0.1)])
    actions(guards, 0.2)
    fewer = Guards([])
    fewer.restore(guards.state())
    assert fewer.states == [] and len(fewer.history) == 1
    assert Guards([GuardConfig(KL, above=0.1)]).restore({}) is None


class Quiet:
    """A tracker that notes what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.logged: list[tuple[Any, ...]] = []
        self.screen = self

    def note(self, text: str, style: str = "") -> None:
        self.notes.append(text)

    def log(self, *entry: Any) -> None:
        self.logged.append(entry)


@pytest.mark.parametrize(
    ("asked", "raised"),
    [(["warn"], None), (["roll_back", "warn"], RollBack), (["roll_back", "stop"], Stopped), ([], None)],
)
def test_what_is_heeded(asked: list[Any], raised: type[Exception] | None) -> None:
    run: Any = Quiet()
    run.tracker = run
    run.guards = Guards([GuardConfig(KL, above=0.1, action=action) for action in asked])
    run.guards.log("learner/debater", 7, {"approx_kl": 0.25})
    if raised is None:
        apply_alerts(run)
    else:
        with pytest.raises(raised):
            apply_alerts(run)
    assert run.logged == [("guards", 7, {KL: 0.25})] * len(asked)
    assert all("approx_kl is 0.25 at step 7" in note for note in run.notes) and len(run.notes) == len(asked)
    apply_alerts(run)  # each alarm once


# -- dumps


def broken(value: float) -> Sample:
    legal, tags = [(2, 5), (3,)], {"role": "r"}
    return Sample([1, 2, 3], [1, 2], [value, 1.0], [-0.5, -math.inf], [3, 4], legal, 0.7, "g", tags, [0, 0])


def test_a_dump_gives_back_the_batch(tmp_path: Path) -> None:
    samples = [broken(math.inf), Sample([1, 2], [1], [1.0], [0.0], [0], proximal_logprobs_L=[-math.inf])]
    path = dump(tmp_path / "dumps", "debater", 3, samples, {"skipped": 1.0, "loss": math.nan})
    assert path is not None and load(path) == samples
    found = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (found["policy"], found["step"], found["metrics"]["loss"]) == ("debater", 3, "nan")
    (sample,) = load(dump(tmp_path, "debater", 3, [broken(math.nan)], {}) or "")
    assert math.isnan(sample.advantages_L[0])


def test_only_the_first_dumps_of_a_policy_are_kept(tmp_path: Path) -> None:
    written = [dump(tmp_path, name, step, [], {}) for step in range(KEEP + 2) for name in ("one", "two")]
    assert sum(path is not None for path in written) == 2 * KEEP == len(list(tmp_path.iterdir()))
    assert dump(tmp_path, "one", 0, [], {}) is not None, "the same step again replaces its dump"
