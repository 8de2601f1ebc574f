"""Loops over several phases, written out by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.load import load_protocol
from configs.reading.errors import ConfigErrors
from configs.reading.raw import read_raw
from protocols.contract.drive import Trace, drive
from protocols.judges.reading import JudgeRules
from protocols.phased.interpreter import Phased
from protocols.phased.rules import Loop, Phase, Stop
from protocols.prompts import RolePrompt
from protocols.rewards.record import RewardTerm
from protocols.types import Reply, Task, TurnRequest
from reporting.sketch.sketch import sketch
from tests.contract.seeding import HERE

TASK = Task("t", "Why?", "yes", ("yes", "no"))
LOOP = Loop(["ask", "answer"], repeat=3, stop=Stop("ann", "DONE"))
RULES = Phased(
    phases=[Phase("ask", ["ann"]), Phase("answer", ["ben", "cid"], speakers="alternating"), Phase("sum", ["ann"])],
    loops=[LOOP],
    seats={"ann": "asker", "ben": "answerer", "cid": "answerer", "jay": "judge"},
    sides={"ben": 0, "cid": 1},
    prompts={"asker": RolePrompt(), "answerer": RolePrompt()},
    judge=JudgeRules("jay", "{{ a }}\n{{ transcript }}", view="transcript", when="phases", after=["answer"],
                     orders="given"),
    rewards=[RewardTerm("win_probability")],
)  # fmt: skip


def play(rules: Phased, said: dict[tuple[str, int], str] | None = None, beliefs: tuple[float, ...] = ()) -> Trace:
    assert rules.problems() == []

    def player(ask: TurnRequest) -> Reply:
        if ask.read:
            p = dict(enumerate(beliefs)).get(ask.turn, 0.5)
            return Reply("A", (p, 1 - p))
        return Reply((said or {}).get((ask.seat, ask.turn), f"{ask.seat}{ask.turn}"))

    return drive(rules, TASK, 0, player)


def asked(trace: Trace) -> str:
    return " ".join(request.seat for request in trace.requests())


def test_question_answer_and_verdict_come_round_again() -> None:
    trace = play(RULES)
    assert asked(trace) == "ann ben cid jay ann cid ben jay ann ben cid jay ann", "alternating counts through"
    transcripts = [r.messages[0].text for r in trace.requests() if r.read]
    assert transcripts[1] == "yes\nann: ann0\n\nben: ben0\n\ncid: cid0\n\nann: ann1\n\ncid: cid1\n\nben: ben1"
    assert len(trace.outcome.judgments) == 3 and trace.outcome.metrics["stopped"] == 0


def test_a_word_ends_the_loop_at_once_and_nothing_else() -> None:
    trace = play(RULES, {("ann", 1): "Enough.\nDONE"}, beliefs=(0.9,))
    assert asked(trace) == "ann ben cid jay ann ann", "the rest of the loop falls away"
    assert trace.outcome.metrics["stopped"] == 1 and trace.outcome.score == 1.0
    assert asked(play(RULES, {("ben", 0): "DONE"})) == asked(play(RULES)), "only ann has a say"


def test_a_judge_that_was_never_reached_is_asked_at_the_end() -> None:
    trace = play(RULES, {("ann", 0): "DONE"}, beliefs=(0.25,))
    assert asked(trace) == "ann ann jay" and trace.outcome.score == 0.0


def test_a_sure_judge_ends_the_loop() -> None:
    rules = replace(RULES, loops=[replace(LOOP, stop=Stop(belief_above=0.8))])
    assert asked(play(rules, beliefs=(0.8, 0.1))) == "ann ben cid jay ann cid ben jay ann"


def test_an_end_of_a_phase_is_for_one_time_round() -> None:
    phases = [replace(RULES.phases[0], repeat=2, stop=Stop("ann", "GO")), *RULES.phases[1:]]
    rules = replace(RULES, phases=phases, loops=[replace(LOOP, repeat=2, stop=None)])
    trace = play(rules, {("ann", 0): "GO"})
    assert asked(trace) == "ann ben cid jay ann ann cid ben jay ann" and trace.outcome.metrics["stopped"] == 1


def test_all_who_choose_in_the_loop_must_agree() -> None:
    phases = [Phase("ask", ["ann"]), Phase("answer", ["ben", "cid"], moves="choices")]
    rules = replace(RULES, phases=phases, judge=None, vote="answer", sides={}, rewards=[],
                    seats={"ann": "asker", "ben": "answerer", "cid": "answerer"},
                    loops=[replace(LOOP, stop=Stop(agreed=True))])  # fmt: skip
    picks = {("ben", 0): "no", ("cid", 0): "yes", ("ben", 1): "yes"}
    trace = play(rules, {**dict.fromkeys([("cid", 1), ("ben", 2), ("cid", 2)], "no"), **picks})
    assert asked(trace) == "ann ben cid ann ben" and trace.outcome.score == 1.0


def test_the_estimate_is_of_the_longest_play() -> None:
    for name, turns in (("seminar", 2 + 4 * (1 + 4 + 2) + 2), ("circle", 3 * 3 + 3 * (2 * 5 + 2 + 1))):
        path = HERE / "protocols" / f"{name}.yaml"
        found = sketch(load_protocol(path), read_raw(path))
        assert sum(load.turns for load in found.loads.values()) == turns and found.at_most


def looping(**changes: Any) -> dict[str, Any]:
    return {"loops": [replace(LOOP, **changes)]}


MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    (looping(repeat=0), "loops.0.repeat", "valid: 2 to 1000"),
    (looping(repeat=1001), "loops.0.repeat", "as good as an endless loop; valid: 2 to 1000"),
    ({**looping(repeat=300), "phases": [replace(p, repeat=4) for p in RULES.phases]}, "loops.0.repeat", "2 to 250"),
    (looping(over=[]), "loops.0.over", "valid: ask, answer, sum"),
    (looping(over=["ask", "reply"]), "loops.0.over", "no phase 'reply'; valid: ask, answer, sum"),
    (looping(over=["ask", "sum"]), "loops.0.over", "follow each other"),
    (looping(over=["answer", "ask"]), "loops.0.over", "follow each other"),
    ({"loops": [LOOP, replace(LOOP, over=["answer", "sum"])]}, "loops.1.over", "part of loops.0 already"),
    (looping(stop=Stop()), "loops.0.stop", "seat with says, agreed, belief_above"),
    (looping(stop=Stop("bob", "DONE")), "loops.0.stop.seat", "valid: ann, ben, cid"),
    (looping(stop=Stop("ann", "")), "loops.0.stop.says", "one line"),
    (looping(stop=Stop(agreed=True)), "loops.0.stop.agreed", "two or more seats that choose"),
    (looping(stop=Stop(belief_above=2.0)), "loops.0.stop.belief_above", "below 1"),
    ({**looping(stop=Stop(belief_above=0.9)), "judge": replace(RULES.judge, after=["sum"])},  # type: ignore[type-var]
     "loops.0.stop.belief_above", "asked within the loop"),
    ({"phases": [replace(RULES.phases[0], moves="choices", commits=True), *RULES.phases[1:]]},
     "loops.0.over", "commits once"),
    ({"loops": []}, "phases.1.speakers", "without a second repeat"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "path", "says"), MISTAKES)
def test_mistakes_are_named(changes: dict[str, Any], path: str, says: str) -> None:
    assert RULES.problems() == []
    found = replace(RULES, **changes).problems()
    assert any(where == path and says in message for where, message in found), found


def test_a_loop_without_an_end_is_refused_with_its_line(tmp_path: Path) -> None:
    text = (HERE / "protocols" / "seminar.yaml").read_text(encoding="utf-8").replace("repeat: 4, ", "")
    path = tmp_path / "endless.yaml"
    path.write_text(text, encoding="utf-8")
    line = next(i for i, row in enumerate(text.splitlines(), 1) if "over:" in row)
    with pytest.raises(ConfigErrors, match=rf"endless.yaml:{line}: loops\[0\].repeat: .*say how often.*2 to 500"):
        load_protocol(path)
