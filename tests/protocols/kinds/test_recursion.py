"""A protocol that delegates to itself: its tree of plays counted by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from configs.load import load_protocol
from configs.reading.errors import ConfigErrors
from configs.reading.raw import read_raw
from protocols.contract.drive import Trace, drive
from protocols.judges.grading import GradeRules
from protocols.judges.reading import JudgeRules
from protocols.phased.checks_subplays import below
from protocols.phased.interpreter import Phased
from protocols.phased.rules import Delegate, Phase, Stop
from protocols.prompts import RolePrompt
from protocols.types import Hidden, Reply, Task, TurnRequest
from reporting.sketch.sketch import sketch
from tests.contract.seeding import HERE, SHIPPED

TASK = Task("t", "Why?", hidden={"map": Hidden("north is up", ("solver",))})
ASK = Phase("ask", ["ann"], repeat=2, stop=Stop("ann", "DONE"), delegate=Delegate(depth=2))
TREE = Phased(
    phases=[ASK, Phase("reply", ["ann"])], seats={"ann": "solver"},
    prompts={"solver": RolePrompt(opening="{{ question }}")}, name="tree",
)  # fmt: skip


def tree(**changes: Any) -> Phased:
    return replace(TREE, phases=[replace(ASK, delegate=replace(ASK.delegate, **changes)), TREE.phases[1]])  # type: ignore[type-var]


def play(rules: Phased, done: str = "") -> Trace:
    """Every play asks all that it may; the one whose question is `done` asks nothing."""
    assert rules.problems() == []

    def player(ask: TurnRequest) -> Reply:
        question = ask.messages[0].text.split("\n")[0]
        if ask.phase == "reply":
            return Reply(f"re {question}")
        return Reply("DONE" if question == done else f"{question}{ask.turn}")

    return drive(rules, TASK, 0, player)


def shape(trace: Trace) -> Any:
    """The plays below one, as nested lists."""
    return [shape(child) for child in trace.children]


def test_copies_answer_copies_down_to_the_lowest_level() -> None:
    trace = play(TREE)
    assert shape(trace) == [[[], []], [[], []]] and trace.outcome.metrics["questions"] == 6
    assert trace.outcome.answer == "re Why?"
    heard = trace.children[1].requests()[2].messages
    assert [m.text for m in heard] == [
        "Why?1", "Why?10", "The answer:\n> re Why?10", "Why?11", "The answer:\n> re Why?11"]  # fmt: skip
    assert [r.phase for r in trace.children[0].children[0].requests()] == ["reply"]
    assert trace.children[0].children[1].task.id == "t/ask0/ask1"
    assert TREE.roles() == {"ann": "solver"}


def test_a_budget_is_shared_and_what_is_left_over_goes_on() -> None:
    # Of 9 the first copy may spend 9 // 2 - 1 = 3: 3 // 2 - 1 = 0 and 2 - 1 = 1 for the copies below it, too little for
    # two questions. It spends 2. Of the 6 left the second may spend 5: 5 // 2 - 1 = 1, but then 4 - 1 = 3 is enough.
    trace = play(tree(depth=3, budget=9))
    assert shape(trace) == [[[], []], [[], [[], []]]] and trace.outcome.metrics["questions"] == 8
    # Where the first asks nothing, the second may spend 9 - 1 - 1 = 7: 7 // 2 - 1 = 2 for its first question.
    trace = play(tree(depth=3, budget=9), done="Why?0")
    assert shape(trace) == [[], [[[], []], [[], []]]] and trace.outcome.metrics["questions"] == 8


def test_no_tree_is_larger_than_its_budget_or_its_depth() -> None:
    for budget in range(2, 30):
        asked = play(tree(depth=4, budget=budget)).outcome.metrics["questions"]
        assert asked <= budget and (asked >= 2)
    assert [below(2, depth) for depth in (1, 2, 3, 4)] == [2, 6, 14, 30]
    for depth in (1, 2, 3):
        assert play(tree(depth=depth)).outcome.metrics["questions"] == below(2, depth)


def test_the_estimate_counts_the_whole_tree() -> None:
    path = SHIPPED / "amplification.yaml"
    found = sketch(load_protocol(path), read_raw(path))
    # A helper's three questions may spend 11 // 3 - 1 = 2, 10 // 2 - 1 = 4 and 6 - 1 = 5: two of them ask three in turn
    assert sum(load.turns for load in found.loads.values()) == 2 * (1 + 4 + 1 + 7 + 7) + 1 and found.at_most


MISTAKES: list[tuple[Phased, str, str]] = [
    (tree(depth=0), "phases.0.delegate.depth", "must have an end: say how many levels deep; valid: 1 to 8"),
    (tree(depth=9), "phases.0.delegate.depth", "1022 plays below one are as good as an endless recursion"),
    (tree(depth=10**9), "phases.0.delegate.depth", "endless recursion"),
    (tree(depth=9, budget=1001), "phases.0.delegate.depth", "budget: 2 to 1000"),
    (tree(budget=1), "phases.0.delegate.budget", "valid: 0, or 2 to 1000"),
    (tree(budget=6), "phases.0.delegate.budget", "has no effect: depth 2 is 6 questions at most"),
    (tree(protocol=replace(TREE, phases=TREE.phases[1:], seats={"eve": "solver"}), depth=2),
     "phases.0.delegate.depth", "as deep as it is written"),
    (replace(TREE, phases=[ASK, replace(ASK, name="more"), TREE.phases[1]]), "phases.1.delegate", "another phase"),
    (replace(TREE, sides={"ann": 0}), "phases.0.delegate.protocol", "no sides"),
    (replace(TREE, phases=[ASK, replace(TREE.phases[1], moves="choices")]), "phases.0.delegate.protocol", "no claims"),
    (replace(TREE, phases=[ASK, replace(TREE.phases[1], visible_to=[])]), "phases.0.delegate.protocol", "no answer"),
    (replace(TREE, prompts={"solver": RolePrompt("{{ map }}", hidden=["map"])}), "phases.0.delegate.share", "'map'"),
]  # fmt: skip


@pytest.mark.parametrize(("rules", "path", "says"), MISTAKES)
def test_mistakes_are_named(rules: Phased, path: str, says: str) -> None:
    assert any(where == path and says in message for where, message in rules.problems()), rules.problems()


def test_a_grader_that_would_never_be_asked_below_is_asked_at_the_end() -> None:
    judge = JudgeRules("jay", "{{ transcript }}", view="transcript", when="phases", after=["ask"], orders="given",
                       grade=GradeRules("seats", seats=["ann"]))  # fmt: skip
    rules = replace(TREE, judge=judge, seats={"ann": "solver", "jay": "judge"})
    assert rules.problems() == []
    trace = drive(rules, TASK, 0, lambda ask: Reply('{"ann": 5}' if ask.seat == "jay" else "So?"))
    lowest = trace.children[0].children[0]
    assert [r.seat for r in lowest.requests()] == ["ann", "jay"] and lowest.outcome.status == "ok"


def test_a_recursion_without_an_end_is_refused_with_its_line(tmp_path: Any) -> None:
    text = (HERE / "protocols" / "tree.yaml").read_text(encoding="utf-8").replace("depth: 3, budget: 9, ", "")
    (tmp_path / "endless.yaml").write_text(text, encoding="utf-8")
    line = next(i for i, row in enumerate(text.splitlines(), 1) if "delegate:" in row)
    with pytest.raises(ConfigErrors, match=rf"endless.yaml:{line}: phases\[0\].delegate.depth: .*valid: 1 to 8"):
        load_protocol(tmp_path / "endless.yaml")
