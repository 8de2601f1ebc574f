"""Proposals of one batch that repeat each other, and what a batch of proposals is paid; numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from configs.load import load
from configs.reading.errors import ConfigErrors
from protocols.contract.drive import Trace, drive
from protocols.kinds.duplicates import THRESHOLD, bleu, clustered, distance, shares
from protocols.kinds.propose_solve import ProposeSolve
from protocols.kinds.solve import Solve
from protocols.rewards.record import RewardTerm
from protocols.types import Episode, Reply, Task, Turn, TurnRequest
from tests.protocols.kinds.test_kinds import Sums

ROOT = Path(__file__).resolve().parent.parent.parent.parent
EMPTY = Turn("proposer", "proposer", "p", 0, "propose", (), "")


@pytest.mark.parametrize(("one", "other", "value"), [
    ("a b c d e", "a b c d f", (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25),
    ("a b", "a b c d", math.exp(1 - 4 / 2)),
    ("a b c d", "a b", math.sqrt(2 / 4 * 1 / 3)),
    ("a a a", "a b c", (1 / 3 * 0.1 / 2 * 0.1 / 1) ** (1 / 3)),
    ("x", "x", 1.0), ("x", "y", 0.1), ("", "", 1.0), ("", "y", 0.0),
])  # fmt: skip
def test_bleu_by_hand(one: str, other: str, value: float) -> None:
    assert bleu(one.split(), other.split()) == pytest.approx(value)


def test_shares_by_hand() -> None:
    assert distance("a b c d e", "a b c d f") == pytest.approx(1 - 0.2**0.25)  # 0.33: one cluster
    assert shares(["a b c d e", "x y z", "a b c d f", "x  y z"]) == [0.5, 0.5, 0.5, 0.5]
    assert shares(["a b c d e", "7", "a b c d f"]) == [2 / 3, 1 / 3, 2 / 3]
    assert shares(["7"] * 4) == [1.0] * 4 and shares(["1", "2", "3", "4"]) == [0.25] * 4
    # 0 and 1 merge first, 0.4 apart; 2 is 0.45 from one and 0.75 from the other, 0.6 in the mean: it stays out
    assert clustered([[0, 0.4, 0.45], [0.4, 0, 0.75], [0.45, 0.75, 0]]) == [[0, 1], [2]]


@given(st.integers(2, 9).flatmap(lambda n: st.lists(
    st.floats(0.01, 1.0), min_size=n * (n - 1) // 2, max_size=n * (n - 1) // 2, unique=True)))  # fmt: skip
def test_clusters_are_those_of_scipy(apart: list[float]) -> None:
    square = squareform(np.array(apart))
    labels = fcluster(linkage(apart, "average"), THRESHOLD - 1e-9, "distance")
    expected = sorted([int(i) for i in np.flatnonzero(labels == label)] for label in set(labels))
    assert sorted(clustered(square.tolist())) == expected


@given(st.lists(st.text("ab ", max_size=9), min_size=1, max_size=6))
def test_distances_are_symmetric_and_shares_whole(texts: list[str]) -> None:
    for one in texts:
        for other in texts:
            apart = distance(one, other)
            assert 0.0 <= apart <= 1.0 and apart == distance(other, one)
            assert (apart == 0.0) == (one.split() == other.split())
    counts = [share * len(texts) for share in shares(texts)]
    assert all(count == pytest.approx(round(count)) and count >= 0.99 for count in counts)


BATCH = ProposeSolve(
    Solve(), repeats=4, batch=4, name="r_zero",
    rewards=[RewardTerm("r_zero", params={"duplicates": 0.5}), RewardTerm("invalid_proposal")],
)  # fmt: skip


def played(proposals: list[str], answers: str) -> Trace:
    """`answers`: what the solver says, a digit at a time."""
    left = iter(answers)

    def player(request: TurnRequest) -> Reply:
        return Reply(proposals[request.turn] if request.seat == "proposer" else next(left))

    assert BATCH.problems() == []
    return drive(BATCH, Task("t", "Write a sum.", domain=Sums()), 0, player)


def test_alike_proposals_are_fined_by_hand() -> None:
    trace = played(["2 + 3", "1 + 0", "none", "2 + 3"], "5559" "1999" "5599")
    assert [len(asks) for asks in trace.rounds] == [4, 12]
    first = trace.rounds[0]
    assert all(ask.fresh and ask.messages == first[0][0].messages for ask, _ in first)  # type: ignore[union-attr]
    paid = {(r.name, r.turn): r.value for r in trace.outcome.rewards}
    # "2 + 3" stands twice in four; BLEU of "2 + 3" and "1 + 0" is (1/3 * .05 * .1)^(1/3) = 0.12
    assert paid == {
        ("r_zero", 0): pytest.approx(0.25 - 0.5 * 0.5), ("r_zero", 1): pytest.approx(0.25 - 0.5 * 0.25),
        ("r_zero", 3): pytest.approx(0.5 - 0.5 * 0.5), ("invalid_proposal", 2): -1.0,
    }  # fmt: skip
    metrics, outcome = trace.outcome.metrics, trace.outcome
    assert outcome.score == pytest.approx((0.75 + 0.25 + 0.5) / 3) and metrics["proposal_valid"] == 0.75
    assert metrics["duplicates"] == pytest.approx((0.5 + 0.25 + 0.25 + 0.5) / 4)
    assert [ask.key for ask, _ in trace.rounds[1]][3:5] == ["0.3", "1.0"]  # type: ignore[union-attr]


def test_a_proposal_that_is_not_decided_is_missing_data_and_the_others_count() -> None:
    outcome = played(["2 + 3", "1 + 0", "2 + 2", "none"], "????" "1999" "44?9").outcome
    assert outcome.status == "ok" and outcome.score == pytest.approx((1 / 4 + 2 / 3) / 2)
    assert sorted((r.name, r.turn) for r in outcome.rewards) == [
        ("invalid_proposal", 3), ("r_zero", 1), ("r_zero", 2)]  # fmt: skip
    outcome = played(["2 + 3"] * 3 + ["none"], "?" * 12).outcome
    assert outcome.status == "invalid" and outcome.rewards == () and "0 of 4 sub-plays" in outcome.reason
    fined = played(["none"] * 4, "").outcome
    assert fined.status == "ok" and fined.score is None and len(fined.rewards) == 4


def test_every_decided_proposal_is_archived() -> None:
    trace = played(["2 + 3", "1 + 0", "none", "2 + 3"], "5559" "1999" "5599")
    turns = tuple(
        replace(EMPTY, turn=ask.turn, text=answer.text) for ask, answer in trace.rounds[0]  # type: ignore[union-attr]
    )
    play = Episode("e", "r_zero", trace.task, 0, turns, trace.outcome)
    assert BATCH.rates(play) == [("2 + 3", 0.75), ("1 + 0", 0.25), ("2 + 3", 0.5)]
    assert BATCH.rates(replace(play, outcome=played(["none"] * 4, "").outcome)) == []


def test_one_proposal_has_none_to_be_like() -> None:
    alone = replace(BATCH, batch=1)
    assert [path for path, _ in alone.problems()] == ["rewards.0.params.duplicates"]
    assert [path for path, _ in replace(BATCH, batch=0).problems()] == ["batch"]
    negative = replace(BATCH, rewards=[RewardTerm("r_zero", params={"duplicates": -1.0})])
    assert [path for path, _ in negative.problems()] == ["rewards.0.params.duplicates"]


def test_a_batch_is_compared_with_itself_where_turns_are_not_told_apart() -> None:
    path, grouped = ROOT / "configs" / "propose_solve.yaml", "policies.proposer.learner.advantage.group_by="
    load(path, ["protocols.proposed.batch=4", f"{grouped}[task, role]"])
    for batch, fields in ((4, "[task, role, turn]"), (1, "[task, role]")):
        with pytest.raises(ConfigErrors, match="groups of one") as caught:
            load(path, [f"protocols.proposed.batch={batch}", f"{grouped}{fields}"])
        assert f"group_by without {'turn' if batch == 4 else 'task'}" in str(caught.value)
