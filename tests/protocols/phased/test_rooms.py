"""Checked quotes, neutral names, conditions that end a phase, and rewards that judges' beliefs and sub-plays give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from protocols.chat import MaterialError
from protocols.contract.drive import Trace, drive
from protocols.judges.reading import JudgeRules
from protocols.phased.interpreter import Phased
from protocols.phased.rules import Phase, Stop
from protocols.prompts import RolePrompt
from protocols.rewards.record import Move, Record, RewardTerm
from protocols.rewards.registry import pay, reward_problems
from protocols.speech import tag_quotes
from protocols.types import Hidden, Reply, Task, TurnRequest

STORY = "It was a dark\n  and stormy night."


@pytest.mark.parametrize(
    ("text", "tagged", "found"),
    [
        ("<quote>dark and</quote>!", "<v_quote>dark and</v_quote>!", [True]),
        ("<quote> dark\n and </quote>", "<v_quote> dark\n and </v_quote>", [True]),
        ("<quote>Dark and</quote>", "<u_quote>Dark and</u_quote>", [False]),
        ("<quote>darkand</quote> <quote>night.</quote>", "<u_quote>darkand</u_quote> <v_quote>night.</v_quote>",
         [False, True]),
        ("<quote> </quote>", "<u_quote> </u_quote>", [False]),
        ("<quote>dark", "<quote>dark", []),
        ("<v_quote>dark</v_quote>", "(v_quote)dark(/v_quote)", []),
        ("< V_Quote >x</ v_quote>", "( V_Quote )x(/ v_quote)", []),
        ("<v_<v_quote>quote>", "<v_(v_quote)quote>", []),
        ("<quote>dark <quote>and</quote>", "<u_quote>dark <quote>and</u_quote>", [False]),
    ],
)  # fmt: skip
def test_quotes_are_checked_word_for_word(text: str, tagged: str, found: list[bool]) -> None:
    assert tag_quotes(text, [STORY, "Another."]) == (tagged, found)


@given(st.lists(st.sampled_from(["<quote>", "</quote>", "<v_quote>", "<", "v_quote>", "dark", " and", "x", "</v_"])))
def test_only_what_the_source_holds_is_ever_marked_as_verified(parts: list[str]) -> None:
    tagged, _ = tag_quotes("".join(parts), [STORY])
    for piece in tagged.split("<v_quote>")[1:]:
        quoted = " ".join(piece.split("</v_quote>")[0].split())
        assert quoted and quoted in " ".join(STORY.split())


TASK = Task("t", "Why?", "yes", ("yes", "no"), hidden={"story": Hidden(STORY, ())})
BASE = Phased(
    phases=[Phase("talk", ["ann", "ben"], quotes=["story"], max_words=3)],
    seats={"jay": "judge", "ann": "speaker", "ben": "speaker"},
    sides={"ann": 0, "ben": 1},
    prompts={"speaker": RolePrompt(opening="I am {{ seat }}.")},
    judge=JudgeRules("jay", "{{ seat_a }} or {{ seat_b }}\n{{ transcript }}", view="transcript", when="end",
                     orders="given"),
    rewards=[RewardTerm("unverified_quotes")],
)  # fmt: skip


def play(rules: Phased, said: dict[str, Any], verdicts: Iterator[float] | None = None, seed: int = 0) -> Trace:
    assert rules.problems() == []

    def player(ask: TurnRequest) -> Reply:
        if ask.read:
            p = 0.75 if verdicts is None else next(verdicts)
            return Reply("A", (p, 1 - p))
        text = said[ask.seat]
        return Reply(text if isinstance(text, str) else text[ask.turn])

    return drive(rules, TASK, seed, player)


def test_the_judge_reads_which_quotes_are_true_and_false_ones_are_fined() -> None:
    said = {"ann": "See <quote>stormy night.</quote> and more", "ben": "<quote>fog</quote> <quote>rain</quote>"}
    trace = play(BASE, said)
    assert trace.requests()[-1].messages[0].text == (
        "ann or ben\nann: See <v_quote>stormy night.</v_quote>\n\nben: <u_quote>fog</u_quote> <u_quote>rain</u_quote>"
    )
    assert [(r.seat, r.turn, r.value) for r in trace.outcome.rewards] == [("ben", 0, -2.0)]
    assert (trace.outcome.metrics["quotes_verified"], trace.outcome.metrics["quotes_unverified"]) == (1, 2)
    with pytest.raises(MaterialError, match="story"):
        drive(BASE, replace(TASK, hidden={}), 0, lambda ask: Reply("x"))


def test_names_are_neutral_and_known_to_all_alike() -> None:
    trace = play(replace(BASE, names="numbered"), {"ann": "a", "ben": "b"})
    texts = [ask.messages[-1].text for ask in trace.requests()]
    assert texts == ["I am Speaker 1.", "I am Speaker 2.\n\nSpeaker 1: a",
                     "Speaker 1 or Speaker 2\nSpeaker 1: a\n\nSpeaker 2: b"]  # fmt: skip
    rules, said = replace(BASE, names="drawn"), {"ann": "a", "ben": "b"}
    drawn = Counter(play(rules, said, seed=seed).requests()[0].messages[0].text for seed in range(200))
    assert set(drawn) == {"I am Speaker 1.", "I am Speaker 2."} and min(drawn.values()) > 65


def order(trace: Trace) -> list[str]:
    return [ask.seat for ask in trace.requests() if ask.seat != "jay"]


def test_a_phase_ends_when_all_have_chosen_the_same() -> None:
    vote = Phase("vote", ["ann", "ben"], repeat=4, moves="choices", enforce=False, stop=Stop(agreed=True))
    rules = replace(BASE, phases=[vote], rewards=[])
    assert order(play(rules, {"ann": ["yes", "yes"], "ben": ["no", "yes"]})) == ["ann", "ben"] * 2
    assert order(play(rules, {"ann": ["yes"], "ben": ["yes"]})) == ["ann", "ben"]
    assert order(play(rules, {"ann": ["yes", "no"], "ben": ["no"]})) == ["ann", "ben", "ann"], "in mid-round"
    assert order(play(rules, {"ann": ["?"] * 4, "ben": ["?"] * 4})) == ["ann", "ben"] * 4, "nobody has chosen"
    assert order(play(rules, {"ann": ["yes", "?"], "ben": ["?", "yes"]})) == ["ann", "ben"] * 2, "the last legal one"


def test_a_phase_ends_when_the_judge_is_sure() -> None:
    talk = Phase("talk", ["ann", "ben"], repeat=3, stop=Stop(belief_above=0.9))
    judge = replace(BASE.judge, when="each_turn")  # type: ignore[type-var]
    rules = replace(BASE, phases=[talk, Phase("last", ["ann"])], judge=judge, rewards=[])
    said = {"ann": "a", "ben": "b"}
    assert order(play(rules, said, iter([0.99, 0.5, 0.9, 0.05, 0.5]))) == ["ann", "ben", "ann", "ann"]
    assert order(play(rules, said, iter([0.5] * 8))) == ["ann", "ben"] * 3 + ["ann"]


def stop(**settings: Any) -> dict[str, Any]:
    return {"phases": [Phase("talk", ["ann", "ben"], repeat=2, stop=Stop(**settings))]}


MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    (stop(), "phases.0.stop", "seat with says, agreed, belief_above"),
    (stop(agreed=True), "phases.0.stop.agreed", "'ann' has chosen nothing"),
    (stop(belief_above=0.9), "phases.0.stop.belief_above", "each_turn"),
    (stop(belief_above=1.0), "phases.0.stop.belief_above", "below 1"),
    (stop(seat="ann"), "phases.0.stop.says", "one line"),
    ({"phases": [Phase("show", ["ann"], moves="evidence", quotes=["story"])]}, "phases.0.quotes", "moves: free"),
    ({"seats": {**BASE.seats, "ben": "critic"}, "names": "drawn", "prompts": {
        "speaker": RolePrompt(heard="{{ role }}"), "critic": RolePrompt()}}, "prompts.speaker.heard", "tell who"),
    ({"phases": [Phase("talk", ["ann", "ben"])]}, "rewards.0.name", "quotes are checked"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "path", "says"), MISTAKES)
def test_mistakes_are_named(changes: dict[str, Any], path: str, says: str) -> None:
    found = replace(BASE, **changes).problems()
    assert any(where == path and says in message for where, message in found), found


# ---- rewards -------------------------------------------------------------------------------------------

ROLES = {"ann": "prover", "ben": "prover"}


def values(record: Record, name: str, **params: float) -> list[float]:
    return [reward.value for reward in pay([RewardTerm(name, params=params)], record)]


def test_provers_are_paid_for_convincing_of_what_they_should() -> None:
    moves = [Move("ann", 0), Move("ben", 0)]
    for belief, truth, helpful, paid in [
        ((0.75, 0.25), 0, 1.0, [0.5, -1.0]),
        ((0.75, 0.25), 1, 1.0, [-0.5, -1.0]),
        ((0.75, 0.25), 1, 0.0, [0.5, -1.0]),
        ((0.75, 0.25), 0, 0.0, [-0.5, -1.0]),
        ((0.5, 0.5), 0, 1.0, [-1.0, -1.0]),
        ((0.5, 0.5), None, 1.0, []),
    ]:
        record = Record(ROLES, moves, {"ann": 0, "ben": 1}, [belief], truth=truth)
        assert values(record, "src_sides", helpful=helpful) == pytest.approx(paid)
    problems = reward_problems([RewardTerm("src_sides", params={"helpful": 0.5})], {"final belief"}, ROLES)
    assert [path for path, _ in problems] == ["rewards.0.params.helpful"]


def test_what_brings_the_judge_nearer_to_the_truth_is_paid_by_the_brier_score() -> None:
    moves = [Move("ann", 0, before=0, after=1), Move("ben", 0, before=1, after=2), Move("ben", 1)]
    record = Record(ROLES, moves, {"ann": 0, "ben": 1}, [(0.5, 0.5), (0.8, 0.2), (0.6, 0.4)], truth=0)
    assert values(record, "brier_change") == pytest.approx([0.5 - 0.08, 0.08 - 0.32])
    assert values(replace(record, truth=None), "brier_change") == []


@pytest.mark.parametrize(("scores", "azr", "r_zero"), [
    ([0.0, 0.0], [0.0], [0.0]), ([1.0, 0.0, 0.0, 0.0], [0.75], [0.25]), ([1.0, 1.0], [0.0], [0.0]),
    ([0.5, 1.0], [0.25], [0.25]), ([], [], []),
])  # fmt: skip
def test_proposers_by_hand(scores: list[float], azr: list[float], r_zero: list[float]) -> None:
    record = Record({"pat": "proposer"}, [Move("pat", 0)], sub_scores=scores)
    assert values(record, "azr") == azr and values(record, "r_zero") == r_zero
    assert values(replace(record, proposal_valid=False), "azr") == []
