"""Kinds of protocol that are no phases, and the votes that weigh: outcomes and rewards worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.load import load_protocol
from configs.reading.raw import read_raw
from driver.preflight.plan import count_requests
from protocols.base import Protocol
from protocols.contract.drive import Trace, drive
from protocols.judges.confidence import LEVELS, vote_shares, weight
from protocols.kinds.negotiation import last_move, shares
from protocols.kinds.prover_verifier import final_answer
from protocols.kinds.revision import Revision, RevisionStep
from protocols.kinds.taboo import winner
from protocols.prompts import RolePrompt
from protocols.rewards.record import Move, Record, RewardTerm
from protocols.rewards.registry import REWARDS
from protocols.types import (
    Domain,
    Hidden,
    InvalidProposal,
    Reply,
    Reward,
    Task,
    TurnRequest,
    VerifierError,
)  # fmt: skip
from reporting.sketch.sketch import sketch

SHIPPED = Path(__file__).resolve().parent.parent.parent.parent / "configs" / "protocol"
GUESS = "I know the word! It is"
Said = Mapping[str, Sequence[Any]]


def shipped(name: str) -> Any:
    return load_protocol(SHIPPED / f"{name}.yaml")


def played(protocol: Protocol, task: Task, said: Said, seed: int = 0) -> Trace:
    """A play in which each seat says what is listed for it, in order: a text, or probabilities that are read."""
    lines = {seat: iter(texts) for seat, texts in said.items()}

    def player(request: TurnRequest) -> Reply:
        line = next(lines[request.seat])
        return Reply(line) if isinstance(line, str) else Reply(request.choices[0], tuple(line))

    return drive(protocol, task, seed, player)


def paid(trace: Trace, name: str) -> dict[str, float]:
    """seat -> the sum of its rewards of that name."""
    found: dict[str, float] = {}
    for reward in trace.outcome.rewards:
        if reward.name == name:
            found[reward.seat] = found.get(reward.seat, 0.0) + reward.value
    return {seat: pytest.approx(value) for seat, value in found.items()}


class Sums(Domain):
    """Tasks "a + b"; the answer is the sum."""

    def derive(self, task: Task, proposal: str) -> Task:
        parts = proposal.split(" + ")
        if len(parts) != 2 or not all(part.isdecimal() for part in parts):
            raise InvalidProposal(proposal)
        return Task(f"{task.id}/{proposal}", proposal, str(sum(map(int, parts))), domain=self, parent=task.id)

    def check(self, task: Task, answer: str) -> bool:
        if answer == "?":
            raise VerifierError("undecided")
        return answer == task.answer

    def grade(self, task: Task, answer: str) -> float:
        """Half for a number of the right length."""
        if self.check(task, answer):
            return 1.0
        return 0.5 if answer.isdecimal() and len(answer) == len(task.answer or "") else 0.0


SUM = Task("sum", "2 + 3", "5", domain=Sums())


# ---- votes that weigh


def test_confidence_weighs_as_in_reconcile() -> None:
    assert [weight(level) for level in LEVELS] == [0.1] * 7 + [0.3, 0.5, 0.8, 1.0]
    votes = {"ann": 0, "ben": 1, "cid": 1}
    assert vote_shares(votes, None, 2) == pytest.approx((1 / 3, 2 / 3))
    # 1 against 0.3 + 0.1
    assert vote_shares(votes, {"ann": "100%", "ben": "70%", "cid": "60%"}, 2) == pytest.approx((5 / 7, 2 / 7))
    assert vote_shares(votes, {"ben": "0%"}, 2) == (0.0, 1.0), "without a level there is no vote"
    assert vote_shares(votes, {}, 2) == () == vote_shares({}, None, 2)


def test_a_sure_member_outvotes_two_unsure_ones() -> None:
    task = Task("t", "q", "yes", ("yes", "no"))
    prose = ["..."] * 3
    said = {"first": [*prose, "yes", "100%"], "second": [*prose, "no", "70%"], "third": [*prose, "no", "60%"]}
    trace = played(shipped("round_table"), task, said)
    assert trace.outcome.score == 1.0
    assert trace.outcome.metrics["votes_truth"] == pytest.approx(5 / 7)
    unread = {**said, "first": [*prose, "yes", "very"]}
    assert played(shipped("round_table"), task, unread).outcome.score == 0.0
    nobody = {seat: [*lines[:-1], "very"] for seat, lines in said.items()}
    assert played(shipped("round_table"), task, nobody).outcome.status == "invalid"


def test_self_consistency_writes_as_much_as_the_society_it_controls() -> None:
    def written(name: str) -> int:
        return sum(
            phase.max_tokens * phase.repeat * len(phase.seats) for phase in shipped(name).phases if phase.max_tokens
        )

    assert written("self_consistency") == written("society_of_minds") == 9 * 300
    assert count_requests(shipped("self_consistency")) == {"reader": 18}


def test_the_team_is_paid_for_the_share_of_right_votes_and_a_correction_for_its_gain() -> None:
    task = Task("t", "q", "yes", ("yes", "no"))
    trace = played(
        shipped("actor_critic"), task, {"actor": ["a", "b", "c", "yes"], "critic": ["wrong", "still wrong"]}
    )
    assert paid(trace, "team_right") == {"actor": 1.0, "critic": 1.0}
    moves = [Move("up", 0, right=False), Move("fix", 0, right=True), Move("up", 1, right=True),
             Move("fix", 1, right=True), Move("fix", 2, right=False)]  # fmt: skip
    found = list(REWARDS["correction_gain"].pay(Record({}, moves), {}))
    assert found == [
        Reward("fix", 0, 1.0, "correction_gain"), Reward("up", 1, 0.0, "correction_gain"),
        Reward("fix", 1, 0.0, "correction_gain"),
    ]  # fmt: skip


def test_ensembled_consultancy_keeps_the_consultants_apart() -> None:
    found = sketch(shipped("consultancy_ensembled"), read_raw(SHIPPED / "consultancy_ensembled.yaml"))
    seen = {step.seat: step.seen for step in found.steps if step.how == "writes" and step.number == "1"}
    assert seen["alice"] == {"bob": False, "judge": True, "judge_2": False}
    assert seen["bob"] == {"alice": False, "judge": False, "judge_2": True}


# ---- revision


def test_a_gated_step_rewrites_only_what_an_inspector_objects_to() -> None:
    task = Task("t", "Why?")
    said = {
        "upstream": ["first"], "ethics": ["it is\n FINE "], "facts": ["FINE? no: false"],
        "facts_fix": ["second"], "help": ["FINE"],
        "rater": [(1, 0, 0, 0, 0, 0, 0), (0, 0, 0, 0.5, 0, 0, 0.5)],
    }  # fmt: skip
    trace = played(shipped("inspectors"), task, said)
    asked = {request.seat: request.messages[-1].text for request in trace.requests()}
    assert "ethics_fix" not in asked and "help_fix" not in asked
    assert "> first" in asked["facts_fix"] and "> FINE? no: false" in asked["facts_fix"]
    assert "> second" in asked["help"] and "first" not in asked["help"]
    # expected place: 0 of 6 for the first, (3 + 6) / 2 of 6 for the last
    assert trace.outcome.metrics["rating_first"] == 0.0 and trace.outcome.metrics["rating_last"] == 0.75
    asked_or_rewrote = ["ethics", "facts", "facts_fix", "help"]
    assert paid(trace, "improvement") == dict.fromkeys(asked_or_rewrote, 0.75), "not upstream"
    assert trace.outcome.score is None


def test_what_nobody_changed_is_rated_once() -> None:
    said = {"upstream": ["same"], "corrector": ["same"], "rater": [(0, 0, 0, 1, 0, 0, 0)]}
    trace = played(shipped("corrector"), Task("t", "Why?"), said)
    assert [request.seat for request in trace.requests()] == ["upstream", "corrector", "rater"]
    assert paid(trace, "improvement") == {"corrector": 0.0}
    blank = {**said, "corrector": [" "]}
    assert played(shipped("corrector"), Task("t", "Why?"), blank).outcome.metrics["revisions"] == 0.0


def test_peers_comment_apart_and_the_agent_hears_them_all() -> None:
    said = {"agent": ["draft", "better"], "peer_1": ["one"], "peer_2": ["two"], "peer_3": ["three"],
            "observer": [(0, 1, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 0, 1)]}  # fmt: skip
    trace = played(shipped("social_round"), Task("t", "Why?"), said)
    asked = trace.requests()
    assert all("> draft" in r.messages[-1].text and "one" not in r.messages[-1].text for r in asked[1:4])
    assert all(f"> {text}" in asked[4].messages[-1].text for text in ("one", "two", "three"))
    assert "draft" not in asked[4].messages[-1].text, "its own words stand in its own turn"
    assert paid(trace, "rating") == {"agent": 1.0}
    assert paid(trace, "improvement") == dict.fromkeys(["peer_1", "peer_2", "peer_3"], pytest.approx(5 / 6))


def test_a_verifier_grades_first_and_last_version() -> None:
    rules = Revision(
        seats={"ann": "writer", "cid": "critic"}, author="ann", verifier=True,
        prompts={"writer": RolePrompt(opening="{{ question }}"), "critic": RolePrompt(opening="{{ question }}")},
        steps=[RevisionStep("again", "ann", "Again.", ["cid"], "Well?")], name="sums",
        rewards=[RewardTerm("rating"), RewardTerm("improvement", to=["cid"])],
    )  # fmt: skip
    assert rules.problems() == []
    trace = played(rules, SUM, {"ann": ["7", "5"], "cid": ["no"]})
    assert trace.outcome.score == 1.0
    assert paid(trace, "rating") == {"ann": 1.0, "cid": 1.0} and paid(trace, "improvement") == {"cid": 0.5}
    undecided = played(rules, SUM, {"ann": ["7", "?"], "cid": ["no"]})
    assert undecided.outcome.status == "invalid" and "undecided" in undecided.outcome.reason
    with pytest.raises(ValueError, match="no domain"):
        played(rules, Task("t", "q"), {})


# ---- taboo


@pytest.mark.parametrize(
    ("speaker", "text", "wins"),
    [
        ("attacker", "Do you like fruit?", ""), ("attacker", "An Apple a day", "defender"),
        ("attacker", "pineapple, apples", ""), ("defender", "I eat apples and pineapple", ""),
        ("defender", "I eat an APPLE.", "attacker"), ("defender", f"Ha. {GUESS} apple!", "defender"),
        ("defender", f'{GUESS}: "Apple"', "defender"), ("defender", f"{GUESS} pear, not apple", "attacker"),
        ("defender", f"{GUESS} applesauce", "attacker"), ("attacker", GUESS, ""),
    ],
)  # fmt: skip
def test_who_wins_at_taboo(speaker: str, text: str, wins: str) -> None:
    assert winner("apple", speaker, text, GUESS) == wins


def test_taboo_ends_with_the_winning_turn_and_sums_to_zero() -> None:
    task = Task("word/apple", "", hidden={"word": Hidden("apple", ("attacker",))})
    talk = ["hello"] * 5
    won = played(shipped("taboo"), task, {"attacker": talk, "defender": ["hi", "an apple then"]})
    assert len(won.requests()) == 4 and won.outcome.score == 1.0
    assert paid(won, "game_result") == {"attacker": 1.0, "defender": -1.0}
    lost = played(shipped("taboo"), task, {"attacker": ["apple"], "defender": []})
    assert lost.outcome.score == 0.0 and paid(lost, "game_result") == {"attacker": -1.0, "defender": 1.0}
    drawn = played(shipped("taboo"), task, {"attacker": talk, "defender": talk})
    assert len(drawn.requests()) == 10 and drawn.outcome.score == 0.5
    assert paid(drawn, "game_result") == {"attacker": 0.0, "defender": 0.0}
    told = {r.seat: "\n".join(m.text for m in r.messages) for r in drawn.requests()}
    assert "apple" in told["attacker"] and "apple" not in told["defender"]


# ---- negotiation


@pytest.mark.parametrize(
    ("text", "standing", "does"),
    [
        ("It is a fine balloon.\nOFFER 12\n", False, 12), ("OFFER 12", True, 12), ("Fine.\nACCEPT", True, "ACCEPT"),
        ("ACCEPT", False, None), ("LEAVE", False, "LEAVE"), ("OFFER 12 or ACCEPT", True, None), ("offer 3", True, None),
        ("OFFER 12\nWhat do you say?", True, None), ("", True, None), ("OFFER -3", True, None),
    ],
)  # fmt: skip
def test_what_a_turn_does(text: str, standing: bool, does: int | str | None) -> None:
    assert last_move(text, standing) == does


def bargain(said: Said, **changes: Any) -> Trace:
    hidden = {"cost": Hidden("10", ("seller",)), "value": Hidden("20", ("buyer",))}
    return played(replace(shipped("negotiation"), **changes), Task("b", "A balloon.", hidden=hidden), said)


def test_a_deal_divides_the_gain() -> None:
    assert shares(12, 10, 20) == {"seller": pytest.approx(0.2), "buyer": pytest.approx(0.8)}
    assert shares(10**9, 10, 20) == {"seller": 2.0, "buyer": -1.0} and shares(0, 10, 20)["seller"] == -1.0
    trace = bargain({"seller": ["OFFER 18", "hm.\nOFFER 16"], "buyer": ["no\nOFFER 11", "ACCEPT"]})
    assert trace.outcome.score == 1.0 and trace.outcome.metrics["price"] == 16.0
    assert paid(trace, "game_result") == {"seller": 0.6, "buyer": 0.4}
    assert "10" not in "".join(m.text for r in trace.requests() if r.seat == "buyer" for m in r.messages)


def test_no_deal_is_worth_nothing_and_a_bad_one_costs() -> None:
    left = bargain({"seller": ["OFFER 30"], "buyer": ["LEAVE"]})
    assert left.outcome.score == 0.0 and paid(left, "game_result") == {"seller": 0.0, "buyer": 0.0}
    bad = bargain({"seller": ["OFFER 30"], "buyer": ["ACCEPT"]})
    assert bad.outcome.score == 0.0 and paid(bad, "game_result") == {"seller": 2.0, "buyer": -1.0}
    # Talk is no offer: there is nothing to accept, and each such turn is fined 0.1.
    talk = bargain({"seller": ["hello"] * 4, "buyer": ["ACCEPT"] * 4})
    assert talk.outcome.metrics["deal"] == 0.0 and paid(talk, "illegal") == {"seller": -0.4, "buyer": -0.4}


def test_moves_can_be_picked_from_prices() -> None:
    said = {"seller": ["OFFER 15", "OFFER 12"], "buyer": ["nonsense", "ACCEPT"]}
    trace = bargain(said, prices=[12, 15], max_tokens=None)
    first, second, third = trace.requests()[:3]
    assert first.choices == ("OFFER 12", "OFFER 15", "LEAVE")
    assert second.choices == ("OFFER 12", "OFFER 15", "ACCEPT", "LEAVE")
    assert third.choices == first.choices, "nonsense is no offer"
    assert "(no offer)" in third.messages[-1].text and "nonsense" not in third.messages[-1].text
    assert trace.outcome.metrics["price"] == 12.0


# ---- market making


def test_forecasts_are_scored_against_the_belief_and_arguments_by_what_they_moved() -> None:
    task = Task("t", "q", "yes", ("yes", "no"))
    said = {"predictor": ["50%", "80%", "20%", "20%"], "adversary": ["a", "b", "c"], "judge": [(0.3, 0.7), (0.9, 0.1)]}
    trace = played(shipped("market"), task, said)
    # The orders of the answers average to (0.3 + 0.1) / 2 for the first one.
    assert trace.outcome.metrics["belief"] == pytest.approx(0.2) and trace.outcome.score == 0.0
    assert paid(trace, "forecast") == {"predictor": -(0.09 + 0.36)}
    assert paid(trace, "market_move") == {"adversary": 0.3 + 0.6 + 0.0}
    turns = {(r.seat, r.turn): r.value for r in trace.outcome.rewards if r.name == "market_move"}
    assert turns == {("adversary", 0): pytest.approx(0.3), ("adversary", 1): pytest.approx(0.6), ("adversary", 2): 0.0}
    adversary = [r.messages[-1].text for r in trace.requests() if r.seat == "adversary"]
    assert "now: 50%" in adversary[0] and "now: 80%" in adversary[1]


def test_an_unreadable_forecast_is_fined_and_not_scored() -> None:
    task = Task("t", "q", "yes", ("yes", "no"))
    rules = replace(shipped("market"), rounds=1, rewards=[RewardTerm("forecast"), RewardTerm("illegal")])
    said = {"predictor": ["dunno", "100%"], "adversary": ["a"], "judge": [(1.0, 0.0), (0.0, 1.0)]}
    trace = played(rules, task, said)
    assert paid(trace, "forecast") == {"predictor": 0.0} and paid(trace, "illegal") == {"predictor": -1.0}
    assert trace.outcome.metrics["forecast_first"] == 0.5 and trace.outcome.score == 1.0
    unread = {**said, "predictor": ["50%", "50%"], "judge": [(1.0, 0.0), ()]}
    assert played(rules, task, unread).outcome.status == "invalid"


# ---- prover and verifier


def test_final_answers() -> None:
    assert final_answer("steps\n\n 5 \n\n") == "5" and final_answer("so\nAnswer: 5") == "5" and final_answer(" ") == ""


def provers(helpful: bool) -> int:
    """A seed with which the prover is to help, or to deceive."""
    for seed in range(100):
        trace = played(shipped("prover_verifier"), SUM, {"prover": ["5"], "verifier": [(0.5, 0.5)]}, seed)
        if (trace.requests()[0].situation == "helpful") == helpful:
            return seed
    raise AssertionError("drawn for each play")


@pytest.mark.parametrize(
    ("helpful", "answer", "p", "src", "score"),
    [
        (True, "5", 0.9, 0.8, 1.0), (True, "6", 0.9, -0.8, 0.0), (False, "6", 0.9, 0.8, 0.0),
        (False, "5", 0.9, -0.8, 1.0), (True, "5", 0.4, -1.0, 0.0), (False, "6", 0.5, -1.0, 0.5),
    ],
)  # fmt: skip
def test_src_by_hand(helpful: bool, answer: str, p: float, src: float, score: float) -> None:
    said = {"prover": [f"as follows\n{answer}"], "verifier": [(1 - p, p)]}
    trace = played(shipped("prover_verifier"), SUM, said, provers(helpful))
    assert paid(trace, "src") == {"prover": src} and trace.outcome.score == score
    assert paid(trace, "verdict_score") == {"verifier": -((p - (answer == "5")) ** 2)}
    prover, verifier = trace.requests()
    assert verifier.target == ("right" if answer == "5" else "wrong")
    assert prover.target == ("5" if helpful else None)
    assert ("subtly wrong" in prover.messages[-1].text) != helpful
    assert "subtly" not in verifier.messages[-1].text


def test_undecided_or_unread_is_missing_data() -> None:
    for said in ({"prover": ["?"], "verifier": []}, {"prover": ["5"], "verifier": [(0.5, 0.6)]}):
        outcome = played(shipped("prover_verifier"), SUM, said).outcome
        assert outcome.status == "invalid" and outcome.reason and not outcome.rewards and outcome.score is None
