"""Settings of phased protocols, one by one, on plays small enough to be written out by hand."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from configs.load import load_protocol
from configs.reading.raw import read_raw
from protocols.contract import suite
from protocols.contract.drive import Scripted, Trace, drive
from protocols.contract.tasks import synthetic
from protocols.judges.reading import JudgeRules, UnreadableVerdict, read_vote
from protocols.phased.interpreter import Phased
from protocols.phased.rules import Phase, Stop
from protocols.prompts import RolePrompt
from protocols.rewards.record import RewardTerm
from protocols.speech import first_words, off_length, says, shown_parts
from protocols.types import Reply, Task, TurnRequest
from tests.contract import mutants

TASK = Task("t", "Why?", "yes", ("yes", "no"), evidence=("e1", "e2", "e3", "e4"))
SEATS = {"ann": "speaker", "ben": "speaker", "jay": "judge"}


def protocol(*phases: Phase, **changes: Any) -> Phased:
    """Two speakers with a side each, and a judge who reads all of it at the end."""
    made = Phased(
        phases=list(phases),
        seats=SEATS,
        sides={"ann": 0, "ben": 1},
        prompts={"speaker": RolePrompt()},
        judge=JudgeRules("jay", "{{ transcript }}", view="transcript", when="end", orders="given"),
    )
    made = replace(made, **changes)
    assert made.problems() == []
    return made


def play(
    rules: Phased, say: Callable[[TurnRequest], str | Reply] = lambda ask: "words", seed: int = 0
) -> Trace:
    def player(ask: TurnRequest) -> Reply:
        if ask.read:
            return Reply("A", (0.75, 0.25))
        said = say(ask)
        return Reply(said) if isinstance(said, str) else said

    return drive(rules, TASK, seed, player)


def order(trace: Trace) -> list[str]:
    return [ask.seat for ask in trace.requests() if not ask.read]


def shown(trace: Trace) -> str:
    """What the judge was shown."""
    return next(ask.messages[-1].text for ask in trace.requests() if ask.seat == "jay")


def test_alternating_speakers_take_turns_at_being_first() -> None:
    trace = play(protocol(Phase("talk", ["ann", "ben"], speakers="alternating", repeat=3)))
    assert order(trace) == ["ann", "ben", "ben", "ann", "ann", "ben"]
    situations = [ask.situation for ask in trace.requests() if not ask.read]
    assert situations[:4] == ["side 0 place 0", "side 1 place 1", "side 1 place 0", "side 0 place 1"]


def test_shuffled_speakers_have_one_order_per_play_and_every_order_comes_up() -> None:
    rules = protocol(
        Phase("talk", ["ann", "ben"], speakers="shuffled", repeat=2),
        Phase("end", ["ben", "ann"], speakers="shuffled"),
    )
    counts = Counter(tuple(order(play(rules, seed=seed))) for seed in range(400))
    assert set(counts) == {("ann", "ben") * 3, ("ben", "ann") * 3}
    assert 150 < counts["ann", "ben", "ann", "ben", "ann", "ben"] < 250, "five standard deviations around 200"
    assert order(play(rules, seed=7)) == order(play(rules, seed=7))


def test_alternating_reveals_are_one_game_and_shuffled_ones_are_none() -> None:
    reveals = Phase("show", ["ann", "ben"], moves="evidence", speakers="alternating", repeat=2)
    rules = protocol(reveals)
    assert rules.reveal_sides() == (0, 1, 1, 0)
    with pytest.raises(ValueError, match="shuffled"):
        protocol(replace(reveals, speakers="shuffled")).reveal_sides()


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        ("<t>hm</t><a>So.</a>", "So."),
        (" <t>\nhm\n</t>\nWell:\n<a>\n So.\nAnd so.\n</a> end", "So.\nAnd so."),
        ("<t></t><a>1 < 2 <b>x</b></a>", "1 < 2 <b>x</b>"),
        ("So.", None),
        ("<a>So.</a>", None),
        ("<t>hm</t><a>So.", None),
        ("<a>So.</a><t>hm</t>", None),
        ("<t>hm</t><a>So.</a><a>And so.</a>", None),
        ("<t>hm <a>not</a></t><a>So.</a>", None),
        ("<t>hm</t><a>So.<t></a>", None),
        ("<t>hm<a>So.</t></a>", None),
        ("<t>hm</t><a> \n</a>", None),
        ("<T>hm</T><A>So.</A>", None),
        ("", None),
    ],
)
def test_parts_are_shown_where_it_is_clear_which(text: str, heard: str | None) -> None:
    assert shown_parts(text, {"t": "private", "a": "shown"}, " / ") == heard


def test_several_shown_parts_are_joined() -> None:
    assert (
        shown_parts("<a>x</a><t>y</t><b>z</b>", {"a": "shown", "t": "private", "b": "shown"}, " / ")
        == "x / z"
    )


def test_a_turn_without_its_parts_is_counted_fined_and_not_heard() -> None:
    talk = Phase("talk", ["ann", "ben"], repeat=2, parts={"t": "private", "a": "shown"})
    rules = protocol(talk, rejected="(unclear)", rewards=[RewardTerm("format", weight=0.5)])
    said = {("ann", 0): "<t>secret</t><a>So.</a>", ("ben", 0): "secret", ("ann", 1): "<t>secret</t>",
            ("ben", 1): "<t>secret</t><a>No.</a>"}  # fmt: skip
    trace = play(rules, lambda ask: said[ask.seat, ask.turn])
    assert shown(trace) == "ann: So.\n\nben: (unclear)\n\nann: (unclear)\n\nben: No."
    assert [(r.seat, r.turn, r.value) for r in trace.outcome.rewards] == [("ben", 0, -0.5), ("ann", 1, -0.5)]
    assert trace.outcome.metrics["unparsed"] == 2 and trace.outcome.metrics["rejected"] == 0
    (ben,) = [ask for ask in trace.requests() if (ask.seat, ask.turn) == ("ben", 1)]
    assert [m.text for m in ben.messages] == ["ann: So.", "secret", "(unclear)\n\nann: (unclear)"]


def test_word_limits_cut_what_is_heard_and_fine_what_was_written() -> None:
    talk = Phase("talk", ["ann", "ben"], max_words=4, soft_words=2, min_words=2, parts={"a": "shown"})
    rules = protocol(talk, rewards=[RewardTerm("length", params={"cap": 1.2})])
    said = {"ann": "<a>one  two\nthree four five</a> unheard", "ben": "<a>one</a>"}
    trace = play(rules, lambda ask: said[ask.seat])
    assert shown(trace) == "ann: one  two\nthree four\n\nben: one"
    assert [(r.seat, r.turn, r.value) for r in trace.outcome.rewards] == [("ann", 0, -1.2), ("ben", 0, -0.5)]
    assert trace.outcome.metrics["cut"] == 1
    unheard = play(rules, lambda ask: "one two three")
    assert unheard.outcome.rewards == () and unheard.outcome.metrics["cut"] == 0, (
        "a turn without parts has no length"
    )


@given(st.text(alphabet="ab \n\t\u2003\x1c"), st.integers(1, 6))
def test_a_cut_keeps_whole_words_and_the_space_between_them(text: str, limit: int) -> None:
    kept = first_words(text, limit)
    assert text.startswith(kept) and kept.split() == text.split()[:limit]
    assert kept == (text if len(text.split()) <= limit else kept.rstrip())


def test_lengths_by_hand() -> None:
    assert [off_length(n, 4, 10) for n in (0, 3, 4, 10, 15, 30)] == [1.0, 0.25, 0.0, 0.0, 0.5, 2.0]
    assert off_length(7, None, None) == off_length(7, 7, None) == off_length(7, None, 7) == 0.0


def test_a_seat_ends_its_phase_and_no_other() -> None:
    ask = Phase(
        "ask", ["ann", "ben"], repeat=3, stop=Stop("ann", "DONE"), parts={"t": "private", "a": "shown"}
    )
    rules = protocol(ask, Phase("end", ["ben"]))
    said = {("ann", 0): "<t>\nDONE\n</t><a>Are you DONE?</a>", ("ben", 0): "<t></t><a>DONE</a>",
            ("ann", 1): "<t></t><a>Thanks.\n DONE</a>", ("ben", 1): "bye"}  # fmt: skip
    trace = play(rules, lambda ask: said[ask.seat, ask.turn])
    assert order(trace) == ["ann", "ben", "ann", "ben"]
    assert shown(trace) == "ann: Are you DONE?\n\nben: DONE\n\nann: Thanks.\n DONE\n\nben: bye"
    assert trace.outcome.metrics["stopped"] == 1


def test_a_stop_at_once_lets_the_others_finish_their_turns() -> None:
    rules = protocol(Phase("talk", ["ann", "ben"], order="simultaneous", repeat=3, stop=Stop("ann", "DONE")))
    trace = play(rules, lambda ask: "DONE")
    assert order(trace) == ["ann", "ben"] and shown(trace) == "ann: DONE\n\nben: DONE"


def test_a_word_ends_a_phase_only_on_a_line_of_its_own() -> None:
    assert says("Well.\n  DONE \nBye.", "DONE") and says("DONE", "DONE") and says("a\r\nno more", "no more")
    assert not any(says(text, "DONE") for text in ("", "done", "DONE.", "I am DONE", "> DONE"))


def test_a_vote_among_the_seats_decides_where_there_is_no_judge() -> None:
    seats = {"ann": "speaker", "ben": "speaker", "cid": "speaker"}
    vote = Phase("vote", [*seats], order="simultaneous", moves="choices", enforce=False, visible_to=[])
    rules = protocol(
        vote, seats=seats, sides={}, judge=None, vote="vote", rewards=[RewardTerm("right_choice")]
    )
    for said, score, paid in [
        ({"ann": "yes", "ben": "no", "cid": " yes"}, 1.0, [1.0, 0.0, 1.0]),
        ({"ann": "yes", "ben": "no", "cid": "perhaps"}, 0.5, [1.0, 0.0, 0.0]),
        ({"ann": "?", "ben": "no", "cid": "?"}, 0.0, [0.0, 0.0, 0.0]),
        ({"ann": "?", "ben": "?", "cid": "?"}, None, []),
    ]:
        outcome = play(rules, lambda ask: said[ask.seat]).outcome  # noqa: B023
        assert (outcome.score, [r.value for r in outcome.rewards]) == (score, paid)
        assert outcome.status == ("invalid" if score is None else "ok")


def test_seats_listen_to_whom_they_are_told_to() -> None:
    talk = Phase("talk", ["ann", "ben"])
    rules = protocol(talk, Phase("end", ["ann"]), listens={"jay": ["ben"], "ann": []})
    trace = play(rules, lambda ask: f"{ask.seat} {ask.turn}")
    assert shown(trace) == "ben: ben 0"
    last = [ask for ask in trace.requests() if ask.seat == "ann"][-1]
    assert [m.text for m in last.messages if m.speaker == "user"] == ["", ""]


# ---- judges ------------------------------------------------------------------------------------------

TALK = Phase("talk", ["ann", "ben"])


def judged(verdicts: dict[str, list[Any]], **judge: Any) -> tuple[Trace, dict[str, int]]:
    """A short debate before these judges; seat -> what each says, poll by poll. Also how often each was asked."""
    seats = {"ann": "speaker", "ben": "speaker", **{seat: f"judge {seat}" for seat in verdicts}}
    several = (
        {"seat": "", "panel": [s for s in verdicts if s != "max"]} if len(verdicts) > 1 else {"seat": "jay"}
    )
    settings = {"view": "transcript", "when": "end", "orders": "given", **several, **judge}
    rules = JudgeRules(prompt="{{ a }}", **settings)
    made = protocol(TALK, seats=seats, judge=rules, rewards=[RewardTerm("win_probability")])
    asked = dict.fromkeys(verdicts, 0)

    def player(ask: TurnRequest) -> Reply:
        if ask.seat not in verdicts:
            return Reply("words")
        said = verdicts[ask.seat][asked[ask.seat]]
        asked[ask.seat] += 1
        return Reply(said) if isinstance(said, str) else Reply("A", (said, 1 - said))

    return drive(made, TASK, 0, player), asked


@pytest.mark.parametrize(
    ("text", "vote"),
    [
        ("A", 0), (" B\n", 1), ("A or B?\nA\n  B  ", 1), ("B\nA", 0),
        ("", None), ("A or B", None), ("A.", None), ("a", None), ("Verdict: A", None), ("A\nThat is it.", None),
    ],
)  # fmt: skip
def test_a_vote_is_the_last_line_alone(text: str, vote: int | None) -> None:
    if vote is not None:
        assert read_vote(Reply(text), ("A", "B")) == (1.0 - vote, float(vote))
        with pytest.raises(UnreadableVerdict, match="cut off"):
            read_vote(Reply(text, truncated=True), ("A", "B"))
    else:
        with pytest.raises(UnreadableVerdict, match="none of: A, B"):
            read_vote(Reply(text), ("A", "B"))


def test_votes_are_counted_and_unreadable_ones_asked_again() -> None:
    trace, asked = judged({"jay": ["A", "?", "B", "", "A", "A"]}, votes=4, retries=3)
    assert asked == {"jay": 6}, "two of four were unreadable"
    assert [len(asks) for asks in trace.rounds] == [1, 1, 4, 2]
    assert trace.outcome.judgments[0].scores == (0.75, 0.25) and trace.outcome.score == 1.0
    assert [r.value for r in trace.outcome.rewards] == [0.5, -0.5]


def test_beyond_the_budget_of_retries_a_play_is_invalid() -> None:
    trace, asked = judged({"jay": ["A", "?", "B", "?"]}, votes=3, retries=1)
    assert asked == {"jay": 4} and trace.outcome.status == "invalid"
    trace, asked = judged({"jay": ["A", "?", "?"]}, votes=3, retries=1)
    assert asked == {"jay": 3}, "two unreadable votes are more than one retry"
    assert trace.outcome.status == "invalid" and "none of: A, B" in trace.outcome.reason
    assert trace.outcome.score is None and trace.outcome.rewards == ()
    assert [(j.valid, j.scores) for j in trace.outcome.judgments] == [(False, ())]


def test_a_panel_believes_the_mean_or_the_majority() -> None:
    verdicts: dict[str, list[Any]] = {"jay": [0.9], "kim": [0.45], "lee": [0.3]}
    trace, _ = judged(verdicts)
    assert [(j.seat, j.decides) for j in trace.outcome.judgments] == [
        ("jay", False), ("kim", False), ("lee", False), ("panel", True)]  # fmt: skip
    assert trace.outcome.judgments[-1].scores == pytest.approx((0.55, 0.45)) and trace.outcome.score == 1.0
    assert [r.value for r in trace.outcome.rewards] == pytest.approx([0.1, -0.1])
    trace, _ = judged(verdicts, combine="majority")
    assert trace.outcome.judgments[-1].scores == pytest.approx((1 / 3, 2 / 3)) and trace.outcome.score == 0.0
    trace, _ = judged({"jay": [0.9], "kim": [0.5]}, combine="majority")
    assert trace.outcome.judgments[-1].scores == (0.75, 0.25), "who is torn votes half for each"


def test_one_unreadable_member_makes_the_panel_unreadable() -> None:
    trace, _ = judged({"jay": [0.9], "kim": [7.0], "lee": [0.8]})
    assert trace.outcome.status == "invalid" and trace.outcome.reason.startswith("kim after turn 2")
    assert [(j.seat, j.valid) for j in trace.outcome.judgments] == [
        ("jay", True), ("kim", False), ("lee", True), ("panel", False)]  # fmt: skip


def test_a_held_out_judge_is_recorded_and_changes_nothing() -> None:
    base, _ = judged({"jay": [0.9]})
    for verdict in (0.1, 0.9, 7.0):
        trace, _ = judged({"jay": [0.9], "max": [verdict]}, seat="jay", panel=[], held_out=["max"])
        held_out, deciding = trace.outcome.judgments
        assert (held_out.seat, held_out.valid, held_out.decides) == ("max", verdict < 1, False)
        assert deciding == base.outcome.judgments[0]
        assert trace.outcome.rewards == base.outcome.rewards and trace.outcome.score == base.outcome.score
        metrics = dict(trace.outcome.metrics)
        assert metrics.pop("belief_truth/max", None) == (verdict if verdict < 1 else None)
        assert metrics == base.outcome.metrics


def test_a_held_out_judge_that_failed_is_asked_no_more() -> None:
    verdicts = {"jay": [0.5, 0.6, 0.7], "max": [0.2, 7.0]}
    trace, asked = judged(verdicts, seat="jay", panel=[], held_out=["max"], when="each_turn")
    assert asked == {"jay": 3, "max": 2} and trace.outcome.status == "ok"


def test_only_one_judge_s_probabilities_can_be_searched() -> None:
    reveal = Phase("show", ["ann", "ben"], moves="evidence")
    judge = JudgeRules("jay", "{{ a }}")
    assert protocol(reveal, judge=judge).search_problem() == ""
    voting = protocol(reveal, judge=replace(judge, votes=1))
    assert "votes" in voting.search_problem()
    with pytest.raises(ValueError, match="votes"):
        voting.judge_requests(TASK, [])


# ---- a protocol that only its author knows ---------------------------------------------------------------

OUTSIDE = """
    # Three debaters, two of them a team that plans in private; a cross-examiner who may stop; a panel of three judges.
    kind: phased
    seats: {ann: debater, ben: debater, cid: debater, eve: examiner, j1: strict, j2: mild, j3: mild}
    sides: {ann: 0, ben: 0, cid: 1}
    zero_sum: true
    rejected: "(unreadable)"
    prompts:
      debater:
        system: You debate as {{ seat }}.
        opening: "{{ question }} You argue for {{ claim }}, not {{ other }}."
        heard: "{{ seat }} wrote:\\n{{ quoted }}"
      examiner: {opening: "{{ question }} It is one of {{ choices }}."}
    phases:
      - {name: strategy, seats: [ann, ben], repeat: 2, visible_to: [ann, ben], prompt: Agree on a plan.}
      - {name: open, seats: [ann, ben, cid], order: simultaneous, parts: {thinking: private, argument: shown}}
      - {name: cross, seats: [eve, ann, cid], repeat: 3, stop: {seat: eve, says: DONE}, max_words: 40}
      - {name: close, seats: [cid, ben], speakers: shuffled}
    judge:
      panel: [j1, j2, j3]
      view: transcript
      when: end
      votes: 2
      retries: 4
      prompt: "{{ question }}\\nA: {{ a }}\\nB: {{ b }}\\n{{ transcript }}\\nEnd with a line that holds A or B."
      entry: "{{ label }}:\\n{{ quoted }}"
    rewards:
      - {name: win_probability}
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("elsewhere") / "my_debate.yaml"
    path.write_text(textwrap.dedent(OUTSIDE), encoding="utf-8")
    return path


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_new_protocol_is_yaml_alone(outside: Path, seed: int) -> None:
    made = load_protocol(outside)
    assert suite.violations(made, read_raw(outside), seed) == []


def test_its_private_round_stays_private_and_its_examiner_may_stop(outside: Path) -> None:
    made, raw = load_protocol(outside), read_raw(outside)
    lengths = set()
    for seed in range(12):
        trace = drive(made, synthetic(raw, seed), seed, Scripted.of(raw, seed))
        turns = [(ask, reply) for asks in trace.rounds for ask, reply in asks]
        plans = {reply.text.split("\n")[0] for ask, reply in turns if ask.phase == "strategy"}
        for ask, _ in turns:
            seen = "\n".join(m.text for m in ask.messages)
            assert (ask.seat in ("ann", "ben")) or not any(plan in seen for plan in plans)
        lengths.add(sum(ask.phase == "cross" for ask, _ in turns))
        assert [j.seat for j in trace.outcome.judgments] == ["j1", "j2", "j3", "panel"]
    assert 1 in lengths and 9 in lengths, "stopped at once, and not at all"


@pytest.mark.parametrize(
    "fault", ["public_scratchpad", "private_part_shown", "deaf_to_the_stop", "panel_of_one"]
)
def test_the_suite_sees_faults_in_it(outside: Path, fault: str) -> None:
    made, raw = load_protocol(outside), read_raw(outside)
    with mutants.seeded(fault):
        assert any(suite.violations(made, raw, seed) for seed in range(6))
