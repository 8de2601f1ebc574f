"""The reward of judges that write: each readable vote by itself, judges that decide only, and nothing unreadable."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.load import load_protocol
from configs.reading.raw import read_raw
from protocols.contract.suite import violations
from protocols.judges.panel import Juror
from protocols.rewards.record import Record, RewardTerm, Verdict
from protocols.rewards.registry import pay
from tests.protocols.phased.test_phased import judged

VERDICT = RewardTerm("right_verdict")
JURY = Path(__file__).resolve().parent.parent.parent / "contract" / "protocols" / "jury.yaml"


def paid(outcome: Any) -> list[tuple[str, int | None, float]]:
    return [(r.seat, r.turn, r.value) for r in outcome.rewards if r.name == "right_verdict"]


def test_the_rule_by_hand() -> None:
    record = Record({"jay": "judge"}, verdicts=[Verdict("jay", 0, True), Verdict("jay", 3, False)])
    rewards = pay([RewardTerm("right_verdict", weight=2.0)], record)
    assert [(r.seat, r.turn, r.value) for r in rewards] == [("jay", 0, 2.0), ("jay", 3, 0.0)]
    assert pay([VERDICT], Record({})) == ()


@pytest.fixture
def votes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`judged` with right_verdict among its rewards."""
    import tests.protocols.phased.test_phased as phased

    real = phased.protocol

    def rewarded(*phases: Any, **changes: Any) -> Any:
        made = real(*phases, **changes)
        return replace(made, rewards=[*made.rewards, VERDICT])

    monkeypatch.setattr(phased, "protocol", rewarded)
    return judged


def test_each_readable_vote_is_paid_by_itself(votes: Any) -> None:
    trace, _ = votes({"jay": ["A", "?", "B", "", "A", "A"]}, votes=4, retries=3)
    # Four questions (turns 0 to 3), then the two unreadable ones again (4 and 5). A is right.
    assert trace.outcome.status == "ok"
    assert paid(trace.outcome) == [("jay", 0, 1.0), ("jay", 2, 0.0), ("jay", 4, 1.0), ("jay", 5, 1.0)]


def test_members_of_a_panel_are_paid_for_their_own_votes_and_held_out_judges_for_none(votes: Any) -> None:
    said = {"jay": ["A"], "kim": ["B"], "lee": ["A"], "max": ["A"]}
    trace, _ = votes(said, votes=1, panel=["jay", "kim", "lee"], held_out=["max"])
    assert paid(trace.outcome) == [("jay", 0, 1.0), ("kim", 0, 0.0), ("lee", 0, 1.0)]


def test_invalid_plays_and_probabilities_are_never_paid(votes: Any) -> None:
    trace, _ = votes({"jay": ["A", "?", "B", "?"]}, votes=3, retries=1)
    assert trace.outcome.status == "invalid" and trace.outcome.rewards == ()
    trace, _ = votes({"jay": [0.9]}, seat="jay", panel=[])
    assert paid(trace.outcome) == []


def test_the_contract_notices_votes_that_are_paid_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    protocol, raw = load_protocol(JURY), read_raw(JURY)
    assert all(not violations(protocol, raw, seed) for seed in range(3))
    real = Juror._note_vote

    def generous(self: Juror, turn: int, i: int) -> None:
        real(self, turn, i)
        self.votes = [replace(vote, right=True) for vote in self.votes]

    monkeypatch.setattr(Juror, "_note_vote", generous)
    found = [wrong for seed in range(6) for wrong in violations(protocol, raw, seed)]
    assert any("for votes that were right" in wrong for wrong in found)
