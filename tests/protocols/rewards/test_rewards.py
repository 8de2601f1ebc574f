"""Rewards against numbers worked out by hand, and their promises as properties."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from protocols.rewards.belief import log_odds
from protocols.rewards.record import Move, Record, RewardTerm
from protocols.rewards.registry import REWARDS, pay

ROLES = {"alice": "debater", "bob": "debater", "judge": "judge"}
SIDES = {"alice": 0, "bob": 1}
probability = st.floats(0.0, 1.0, allow_nan=False)


def record(*p_first: float, **more: object) -> Record:
    """Alternating reveals of alice and bob, judged before the first and after each; P(first claim) given."""
    beliefs = [(p, 1.0 - p) for p in p_first]
    moves = [Move(("alice", "bob")[i % 2], i // 2, before=i, after=i + 1) for i in range(len(beliefs) - 1)]
    return Record(ROLES, **{"moves": moves, "sides": SIDES, "beliefs": beliefs, **more})  # type: ignore[arg-type]


def paid(name: str, of: Record, **params: float) -> list[tuple[str, int | None, float]]:
    return [(r.seat, r.turn, r.value) for r in pay([RewardTerm(name, params=params)], of)]


def test_belief_change_by_hand() -> None:
    # log odds of the first claim: 0, log 3, log 1.5, log 4
    got = paid("belief_change", record(0.5, 0.75, 0.6, 0.8))
    assert [(seat, turn) for seat, turn, _ in got] == [("alice", 0), ("bob", 0), ("alice", 1)]
    assert [v for *_, v in got] == pytest.approx([math.log(3), math.log(2), math.log(4 / 1.5)])


def test_certain_judges_stay_finite() -> None:
    assert paid("belief_change", record(0.0, 1.0), clip=5.0) == [("alice", 0, 10.0)]
    assert log_odds((0.0, 0.0), 0, 5.0) == 0.0
    assert log_odds((1.0, 0.0), 1, 5.0) == -5.0


def test_several_claims() -> None:
    assert log_odds((0.2, 0.5, 0.3), 1, 8.0) == pytest.approx(0.0)
    of = Record(ROLES, sides={"alice": 0}, beliefs=[(0.2, 0.5, 0.3)])
    assert paid("win_probability", of) == [("alice", None, pytest.approx(-0.3))]
    assert paid("win", of) == [("alice", None, -1.0)]


def test_a_turn_that_the_judge_missed_changes_no_belief() -> None:
    of = record(0.5, 0.9, moves=[Move("alice", 0), Move("judge", 0, before=0, after=1)])
    assert paid("belief_change", of) == []


def test_final_rewards_by_hand() -> None:
    of = record(0.5, 0.8)
    assert paid("win", of) == [("alice", None, 1.0), ("bob", None, -1.0)]
    assert paid("win_probability", of) == [
        ("alice", None, pytest.approx(0.6)),
        ("bob", None, pytest.approx(-0.6)),
    ]
    assert paid("win_logit", of, clip=1.0) == [("alice", None, 1.0), ("bob", None, -1.0)]
    assert paid("win", record(0.5)) == [("alice", None, 0.0), ("bob", None, 0.0)]


def test_penalties_by_hand() -> None:
    moves = [Move("alice", 0, rejected=True), Move("bob", 0, unfinished=True), Move("alice", 1)]
    assert paid("illegal", record(0.5, moves=moves)) == [("alice", 0, -1.0)]
    assert paid("format", record(0.5, moves=moves)) == [("bob", 0, -1.0)]


def test_rewards_of_proposers_and_solvers_by_hand() -> None:
    moves, roles = [Move("p", 0)], {"p": "proposer"}
    assert paid("learnability", Record(roles, moves, sub_scores=[1, 0, 0, 0])) == [("p", 0, 0.75)]
    assert paid("learnability", Record(roles, moves, sub_scores=[1, 1])) == [("p", 0, 0.0)]
    assert paid("learnability", Record(roles, moves)) == []
    assert paid("learnability", Record(roles, moves, sub_scores=[1, 0], proposal_valid=False)) == []
    assert paid("invalid_proposal", Record(roles, moves, proposal_valid=False)) == [("p", 0, -1.0)]
    assert paid("invalid_proposal", Record(roles, moves, sub_scores=[1, 0])) == []
    assert paid("correct", Record(roles, moves, score=1.0)) == [("p", 0, 1.0)]


def test_weights_and_addressees() -> None:
    of = record(0.5, 0.8)
    terms = [
        RewardTerm("win", weight=3.0, to=["bob"]),
        RewardTerm("win_probability", weight=-1.0, to=["debater"]),
    ]
    assert [(r.name, r.seat, r.value) for r in pay(terms, of)] == [
        ("win", "bob", -3.0), ("win_probability", "alice", pytest.approx(-0.6)),
        ("win_probability", "bob", pytest.approx(0.6)),
    ]  # fmt: skip
    assert pay([RewardTerm("win", to=["judge"])], of) == ()


@given(probability, st.lists(st.sampled_from([0, 1]), min_size=2, max_size=6), st.floats(0.1, 20.0))
def test_zero_sum_where_promised(p: float, sides: list[int], clip: float) -> None:
    """Teams of any size: where both sides have somebody, what one wins the other loses."""
    seats = {f"s{i}": side for i, side in enumerate([0, 1, *sides])}
    returns = {seat: float(i) for i, seat in enumerate(seats)}
    returns["s0"] = -math.fsum(returns.values())
    of = Record(dict.fromkeys(seats, "debater"), sides=seats, beliefs=[(p, 1.0 - p)], returns=returns)
    for name, rule in REWARDS.items():
        if rule.zero_sum:
            if rule.needs == "game":
                continue  # as the game has it: tests/protocols/kinds/test_game.py
            params = {"clip": clip} if "clip" in rule.params else {}
            rewards = [value for *_, value in paid(name, of, **params)]
            assert len(rewards) == len(seats)
            assert math.fsum(rewards) == pytest.approx(0.0, abs=1e-9)


@given(st.lists(probability, min_size=2, max_size=8), st.floats(0.5, 20.0))
def test_belief_changes_telescope(p_first: list[float], clip: float) -> None:
    """What alice gains minus what bob gains is how far the judge moved from first to last."""
    of = record(*p_first)
    gained = math.fsum(
        value if seat == "alice" else -value for seat, _, value in paid("belief_change", of, clip=clip)
    )
    first, last = (log_odds(of.beliefs[i], 0, clip) for i in (0, -1))
    assert gained == pytest.approx(last - first, abs=1e-9)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=16))
def test_learnability_is_highest_at_even_odds(scores: list[float]) -> None:
    ((_, _, value),) = paid("learnability", Record({"p": "proposer"}, [Move("p", 0)], sub_scores=scores))
    p = sum(scores) / len(scores)
    assert 0.0 <= value <= 1.0
    assert value == pytest.approx(1.0 - (2.0 * p - 1.0) ** 2)
