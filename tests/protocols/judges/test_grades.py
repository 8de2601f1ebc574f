"""Grades, principles and gains, on plays small enough to be written out by hand."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from configs.load import load_protocol
from protocols.contract.drive import Trace, drive
from protocols.judges.grading import GradeRules, UnreadableGrades, read_grades, shares
from protocols.judges.reading import JudgeRules
from protocols.phased.interpreter import Phased
from protocols.phased.rules import Phase
from protocols.prompts import RolePrompt
from protocols.rewards.record import RewardTerm
from protocols.types import Reply, Task, TurnRequest
from tests.contract.seeding import SHIPPED

TEN = GradeRules(min=0, max=10)


@pytest.mark.parametrize(
    ("text", "grades"),
    [
        ('{"A": 10, "B": 2.5}', (1.0, 0.25)),
        ('I saw {"A": 1, "B": 1}.\n  {"B":0,"A":1e0}  \n', (0.1, 0.0)),
        ('{"A": 10}', None), ('{"A": 1, "B": 2, "C": 3}', None), ('{"A": 1, "B": 2, "A": 3}', None),
        ('{"A": 1, "B": 11}', None), ('{"A": 1, "B": -0.1}', None), ('{"A": 1, "B": "2"}', None),
        ('{"A": 1, "B": true}', None), ('{"A": 1, "B": null}', None), ('{"A": 1, "B": NaN}', None),
        ('{"A": 1, "B": Infinity}', None), ('{"A": 1, "B": 1e999}', None), ('[["A", 1], ["B", 2]]', None),
        ('{"A": 1, "B": 2}.', None), ('Grades: {"A": 1, "B": 2}', None), ('{"A": 1, "B": 2}\nThat is it.', None),
        ("", None), ("[" * 10**5, None), ("9" * 5000, None), ('{"A": {}, "B": 2}', None),
    ],
)  # fmt: skip
def test_grades_are_read_to_the_letter(text: str, grades: tuple[float, ...] | None) -> None:
    if grades is None:
        with pytest.raises(UnreadableGrades):
            read_grades(Reply(text), ("A", "B"), TEN)
    else:
        assert read_grades(Reply(text), ("A", "B"), TEN) == pytest.approx(grades)
        with pytest.raises(UnreadableGrades, match="cut off"):
            read_grades(Reply(text, truncated=True), ("A", "B"), TEN)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_shares_are_a_belief_and_keep_the_order(grades: list[float]) -> None:
    belief = shares(grades)
    assert sum(belief) == pytest.approx(1.0) and all(0 <= p <= 1 for p in belief)
    assert all(belief[i] <= belief[j] for i in range(len(grades)) for j in range(len(grades)) if grades[i] < grades[j])


def test_shares_by_hand() -> None:
    assert shares((0.3, 0.1)) == pytest.approx((0.75, 0.25)) and shares((0.0, 0.0)) == (0.5, 0.5)


REVISE = Phased(
    phases=[Phase("draft", ["ann"]), Phase("critique", ["ben"]), Phase("revision", ["ann"])],
    seats={"ann": "author", "ben": "critic", "jay": "judge"},
    prompts={"author": RolePrompt(), "critic": RolePrompt()},
    judge=JudgeRules("jay", "{{ transcript }}", view="transcript", when="phases", after=["draft", "revision"],
                     orders="given", grade=GradeRules("seats", 1, 5, ["ann"]), retries=1),
    rewards=[RewardTerm("grade"), RewardTerm("revision_gain", weight=2.0)],
)  # fmt: skip


def play(rules: Phased, *graded: str, task: Task | None = None, seed: int = 0) -> Trace:
    said = iter(graded)

    def player(ask: TurnRequest) -> Reply:
        return Reply(next(said)) if ask.seat == "jay" else Reply(f"{ask.phase} {ask.turn}")

    return drive(rules, task or Task("t", "Write."), seed, player)


def test_a_critic_is_paid_what_the_revision_gains() -> None:
    assert REVISE.problems() == []
    outcome = play(REVISE, 'Poor.\n{"ann": 2}', "Better!", '{"ann": 4}').outcome
    assert outcome.status == "ok" and outcome.score is None, "no answer is known"
    assert [(j.scores, j.after_turn) for j in outcome.judgments] == [((0.25,), 1), ((0.75,), 3)]
    assert {(r.seat, r.name): r.value for r in outcome.rewards} == {
        ("ann", "grade"): 0.75, ("ann", "revision_gain"): 1.0, ("ben", "revision_gain"): 1.0}  # fmt: skip
    assert outcome.metrics["grade/ann"] == 0.75


def test_grades_that_stay_unreadable_make_the_play_invalid() -> None:
    outcome = play(REVISE, '{"ann": 6}', '{"ann": 0}').outcome
    assert outcome.status == "invalid" and outcome.rewards == () and "from 1 to 5" in outcome.reason


def test_grades_of_claims_are_beliefs() -> None:
    judge = JudgeRules("jay", "{{ a }} {{ b }}", view="transcript", when="end", grade=GradeRules(min=0, max=4))
    rules = replace(REVISE, judge=judge, sides={"ann": 0}, rewards=[RewardTerm("win_probability")])
    assert rules.problems() == []
    trace = play(rules, '{"A": 3, "B": 1}', '{"A": 2, "B": 2}', task=Task("t", "?", "x", ("x", "y")))
    (judgment,) = trace.outcome.judgments
    assert judgment.scores == pytest.approx((0.625, 0.375)), "0.75, and 0.5 with the claims exchanged"
    assert trace.outcome.score == 1.0 and trace.outcome.rewards[0].value == pytest.approx(0.25)
    assert [(ask.choices, ask.read, ask.target) for ask in trace.requests()[-2:]] == [((), False, None)] * 2


def test_one_principle_is_drawn_for_the_play_and_all_come_up() -> None:
    rules = load_protocol(SHIPPED / "constitution.yaml")
    assert isinstance(rules, Phased)
    drawn: Counter[str] = Counter()
    for seed in range(200):
        player = {"assistant": "text", "judge": json.dumps({"assistant": 5})}
        trace = drive(rules, Task("t", "?"), seed, lambda ask, said=player: Reply(said[ask.seat]))
        shown = [p for p in rules.principles if any(p in m.text for ask in trace.requests() for m in ask.messages)]
        assert len(shown) == 1 and trace.outcome.status == "ok"
        drawn[shown[0]] += 1
    assert len(drawn) == 4 and min(drawn.values()) > 20, drawn


def test_principles_may_stand_in_a_file_of_their_own(tmp_path: Any) -> None:
    (tmp_path / "mine.yaml").write_text("principles: [Be kind.]\n")
    (tmp_path / "play.yaml").write_text(f"extends: [{SHIPPED / 'constitution.yaml'}, mine.yaml]\n")
    rules = load_protocol(tmp_path / "play.yaml")
    assert isinstance(rules, Phased) and rules.principles == ["Be kind."]


def grading(**changes: Any) -> dict[str, Any]:
    return {"judge": replace(REVISE.judge, grade=replace(REVISE.judge.grade, **changes))}  # type: ignore[union-attr, type-var]


def judging(**changes: Any) -> dict[str, Any]:
    return {"judge": replace(REVISE.judge, **changes)}  # type: ignore[type-var]


MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    (grading(min=5), "judge.grade.max", "more than min"),
    (grading(seats=[]), "judge.grade.seats", "valid: ann, ben"),
    (grading(seats=["jay"]), "judge.grade.seats", "valid: ann, ben"),
    (grading(of="claims"), "judge.grade.seats", "no effect"),
    (judging(orders="both"), "judge.orders", "valid with grade of seats: given"),
    (judging(view="evidence"), "judge.view", "valid with grade of seats: transcript"),
    (judging(view="chat"), "judge.grade", "one reply per question"),
    (judging(answers="claims"), "judge.answers", "valid: labels"),
    (judging(after=[]), "judge.after", "valid: draft, critique, revision"),
    (judging(after=["drafts"]), "judge.after", "valid: draft, critique, revision"),
    (judging(when="end"), "judge.after", "valid with when: phases"),
    (judging(prompt="{{ a }}"), "judge.prompt", "unknown placeholder"),
    (judging(after=["draft"]), "rewards.1.name", "asked more than once"),
    (judging(grade=None), "rewards.0.name", "grades seats"),
    (judging(grade=None), "rewards.1.name", "set sides"),
    (judging(temperature=0.0), "judge.temperature", "every sample is the same"),
    ({"rewards": [RewardTerm("win")]}, "rewards.0.name", "the judgment of a judge"),
    ({"principles": ["Be kind."]}, "principles", "no prompt shows them"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "path", "says"), MISTAKES)
def test_mistakes_are_named(changes: dict[str, Any], path: str, says: str) -> None:
    found = replace(REVISE, **changes).problems()
    assert any(where == path and says in message for where, message in found), found
