"""Sides that seats choose for themselves, on plays small enough to be written out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from configs.load import load_protocol
from protocols.contract.drive import Trace, drive
from protocols.judges.reading import JudgeRules
from protocols.phased.interpreter import Phased
from protocols.phased.rules import Phase
from protocols.prompts import RolePrompt
from protocols.rewards.record import RewardTerm
from protocols.types import Reply, Task, TurnRequest
from tests.contract.seeding import SHIPPED

TASK = Task("t", "Why?", "yes", ("yes", "no"))
CHOOSE = Phase("choose", ["ann"], moves="choices", enforce=False, commits=True)
OPEN = Phased(
    phases=[CHOOSE, Phase("talk", ["ann", "ben"], prompt="{{ claim }}, not {{ other }}!")],
    seats={"ann": "solver", "ben": "critic", "jay": "judge"},
    opposes={"ben": "ann"},
    prompts={"solver": RolePrompt(), "critic": RolePrompt(opening="You say {{ claim }}.")},
    judge=JudgeRules("jay", "{{ a }} ({{ seat_a }})\n{{ transcript }}", view="transcript", when="end",
                     orders="given", entry="{{ label }} {{ text }}"),
    rewards=[RewardTerm("win_probability"), RewardTerm("illegal"), RewardTerm("right_choice", weight=3.0)],
)  # fmt: skip


def play(rules: Phased, choice: str, verdict: tuple[float, float] = (0.75, 0.25)) -> Trace:
    def player(ask: TurnRequest) -> Reply:
        if ask.read:
            return Reply("A", verdict)
        return Reply(choice if ask.phase == "choose" else f"{ask.seat} speaks")

    return drive(rules, TASK, 0, player)


def paid(trace: Trace) -> dict[tuple[str, str], float]:
    return {(reward.seat, reward.name): reward.value for reward in trace.outcome.rewards}


@pytest.mark.parametrize(("choice", "side"), [("yes", 0), ("no", 1)])
def test_who_chooses_argues_it_and_who_opposes_the_other(choice: str, side: int) -> None:
    assert OPEN.problems() == []
    trace = play(OPEN, choice)
    other = "no" if choice == "yes" else "yes"
    last = {ask.seat: ask for ask in trace.requests()}
    assert last["ann"].messages[-1].text == f"{choice}, not {other}!"
    assert last["ben"].messages[0].text.startswith(f"You say {other}.\n\nann: {choice}")
    first, _ = ("ann", "ben") if side == 0 else ("ben", "ann")
    label, rival = "AB"[side], "AB"[1 - side]
    assert last["jay"].messages[0].text == (
        f"yes ({first})\n{label} {choice}\n\n{label} ann speaks\n\n{rival} ben speaks"
    )
    gain = 0.5 if side == 0 else -0.5
    expected = {("ann", "win_probability"): gain, ("ben", "win_probability"): -gain,
                ("ann", "right_choice"): 3.0 * (side == 0)}  # fmt: skip
    assert paid(trace) == expected and trace.outcome.score == 1.0
    assert trace.outcome.metrics["side/ann"] == side and trace.outcome.metrics["side/ben"] == 1 - side
    assert [ask.situation for ask in trace.requests()[:3]] == [
        "place 0", f"side {side} place 0", f"side {1 - side} place 1"]  # fmt: skip
    assert trace.requests()[0].target == "yes", "a teacher would choose the right answer"


def test_who_names_no_claim_forfeits_and_is_fined_and_nobody_wins() -> None:
    trace = play(OPEN, "perhaps")
    assert [ask.seat for ask in trace.requests()] == ["ann"], "the judge is not asked"
    outcome = trace.outcome
    assert (outcome.status, outcome.score, outcome.judgments) == ("ok", None, ())
    assert paid(trace) == {("ann", "illegal"): -1.0, ("ann", "right_choice"): 0.0}
    assert outcome.metrics["forfeit"] == 1


def test_two_who_choose_the_same_are_a_team() -> None:
    rules = replace(OPEN, phases=[replace(CHOOSE, seats=["ann", "ben"], order="simultaneous"), Phase("talk", ["ben"])],
                    opposes={}, prompts={"solver": RolePrompt(), "critic": RolePrompt()})  # fmt: skip
    assert rules.problems() == []
    assert paid(play(rules, "no"))["ann", "win_probability"] == -0.25, "half of -0.5 each"


SECRET = replace(CHOOSE, visible_to=["ben"])
MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({"phases": [replace(CHOOSE, moves="free", enforce=True)]}, "phases.0.commits", "valid with moves: choices"),
    ({"phases": [replace(CHOOSE, repeat=2)]}, "phases.0.repeat", "valid: 1"),
    ({"phases": [CHOOSE, replace(CHOOSE, name="again")]}, "phases.1.commits", "'choose' already"),
    ({"sides": {"ann": 0}}, "phases.0.commits", "assigned side"),
    ({"sides": {"ben": 0}}, "opposes.ben", "side of its own"),
    ({"opposes": {"bob": "ann"}}, "opposes.bob", "valid: ann, ben"),
    ({"opposes": {"jay": "ann"}}, "opposes.jay", "valid: ann, ben"),
    ({"opposes": {"ben": "jay"}}, "opposes.ben", "valid: ann"),
    ({"phases": [replace(CHOOSE, visible_to=["jay"]), *OPEN.phases[1:]]}, "opposes.ben", "must hear"),
    ({"phases": [SECRET, *OPEN.phases[1:]]}, "judge.entry", "would tell 'jay'"),
    ({"phases": [SECRET, *OPEN.phases[1:]]}, "judge.prompt", "would tell 'jay'"),
    ({"phases": [*OPEN.phases[1:], CHOOSE]}, "phases.0.prompt", "unknown placeholder {{ claim }}"),
    ({"prompts": {**OPEN.prompts, "solver": RolePrompt("{{ claim }}")}}, "prompts.solver.system", "{{ claim }}"),
    ({"phases": OPEN.phases[1:]}, "opposes.ben", "commits to no claim; valid: none"),
    ({"opposes": {}, "zero_sum": True}, "zero_sum", "one that opposes"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "path", "says"), MISTAKES)
def test_mistakes_are_named(changes: dict[str, Any], path: str, says: str) -> None:
    found = replace(OPEN, **changes).problems()
    assert any(where == path and says in message for where, message in found), found


def test_sides_that_are_chosen_are_no_game_to_search() -> None:
    evidence = Phase("show", ["ann", "ben"], moves="evidence")
    rules = replace(OPEN, phases=[CHOOSE, evidence], judge=JudgeRules("jay", "{{ a }} {{ evidence }}"))
    assert rules.problems() == [] and "choose" in rules.search_problem()
    with pytest.raises(ValueError, match="not known before"):
        rules.reveal_sides()


def test_the_shipped_open_debates_differ_in_the_rebuttal() -> None:
    short, long = (load_protocol(SHIPPED / f"debate_open{end}.yaml") for end in ("", "_aba"))
    assert isinstance(short, Phased) and isinstance(long, Phased)
    assert long.phases[:-1] == short.phases and long.phases[-1].name == "rebuttal"
    assert replace(long, phases=short.phases, name=short.name) == short
