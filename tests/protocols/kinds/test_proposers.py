"""Kinds of protocol in which somebody proposes tasks and somebody else rates them: worked out by hand."""

from __future__ import annotations

from dataclasses import replace

from protocols.types import Episode, Task, Turn, VerifierError
from tests.protocols.kinds.test_kinds import Sums, paid, played, shipped


def test_a_bad_proposal_is_fined_and_a_good_one_played() -> None:
    rules = replace(shipped("propose_solve_judge"), repeats=4)
    root = Task("root", "Write a sum.", domain=Sums())
    bad = played(rules, root, {"proposer": ["1 + 1"], "judge": [(1, 0, 0, 0, 0, 0, 0)]})
    assert bad.children == [] and bad.outcome.score is None and bad.outcome.status == "ok"
    assert paid(bad, "invalid_proposal") == {"proposer": -1.0} and paid(bad, "learnability") == {}
    good = played(
        rules, root, {"proposer": ["2 + 3"], "judge": [(0, 0, 0, 1, 0, 0, 0)], "solver": ["5", "6", "5", "5"]}
    )
    assert good.outcome.score == 0.75 and good.outcome.metrics["proposal_rating"] == 0.5
    assert paid(good, "learnability") == {"proposer": 0.75}, "4 x 0.75 x 0.25"
    assert paid(good, "rating") == {"proposer": 0.25}, "0.5 by its weight of 0.5"
    nonsense = played(rules, root, {"proposer": ["x"]})
    assert nonsense.outcome.rewards[0].value == -1.0, "what is no task is not rated"
    unread = played(rules, root, {"proposer": ["2 + 3"], "judge": [()]})
    assert unread.outcome.status == "invalid" and unread.outcome.rewards == ()


def test_what_has_no_exact_answer_has_no_score() -> None:
    class Open(Sums):
        def derive(self, task: Task, proposal: str) -> Task:
            return Task("leaf/1", proposal, domain=self, parent=task.id)

    root = Task("leaf", "Write an instruction.", domain=Open())
    said = {"writer": ["Sing."], "filter": [(0.2, 0.8)], "answerer": list("abcd"), "evaluator": [(0, 0, 1)] * 4}
    trace = played(shipped("lab"), root, said)
    assert trace.outcome.status == "ok" and trace.outcome.score is None
    assert paid(trace, "rating") == {"writer": 0.8}
    assert [paid(child, "rating") for child in trace.children] == [{"answerer": 1.0}] * 4
    turn = Turn("writer", "writer", "p", 0, "propose", (), "Sing. ")
    play = Episode("e", "lab", root, 0, (turn,), trace.outcome)
    assert shipped("lab").rates(play) == [("Sing.", None)], "what was played is archived, whatever it was worth"
    refused = played(shipped("lab"), root, said | {"filter": [(0.8, 0.2)]}).outcome
    assert shipped("lab").rates(replace(play, outcome=refused)) == []


def test_a_proposer_is_paid_for_what_is_not_solved_but_can_be() -> None:
    rules = replace(shipped("program"), repeats=4)
    root = Task("root", "Write a sum.", domain=Sums())
    for answers, value in ((["5", "6", "6", "6"], 0.75), (["6"] * 4, 0.0), (["5"] * 4, 0.0)):
        trace = played(rules, root, {"proposer": ["2 + 3"], "solver": answers})
        assert paid(trace, "azr") == {"proposer": value}


def test_a_domain_that_cannot_decide_whether_a_proposal_is_one_is_missing_data() -> None:
    class Broken(Sums):
        def derive(self, task: Task, proposal: str) -> Task:
            raise VerifierError("no process")

    outcome = played(shipped("program"), Task("root", "q", domain=Broken()), {"proposer": ["2 + 3"]}).outcome
    assert outcome.status == "invalid" and "no process" in outcome.reason and outcome.rewards == ()
