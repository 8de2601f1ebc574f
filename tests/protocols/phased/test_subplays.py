"""Questions that another protocol answers, and a debate that is played twice, written out by hand."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from actors.players.base import ScriptedPlayer, Seated
from actors.rollout.runner import run_play
from configs.load import load_protocol
from configs.reading.errors import ConfigErrors
from protocols.chat import MaterialError
from protocols.contract.drive import Trace, drive
from protocols.judges.reading import JudgeRules
from protocols.kinds.solve import Solve
from protocols.phased.interpreter import Phased
from protocols.phased.rules import Delegate, Phase
from protocols.prompts import RolePrompt
from protocols.rewards.record import RewardTerm
from protocols.types import Hidden, Reply, Task, TurnRequest
from tests.contract.seeding import SHIPPED

TASK = Task("t", "Why?", "yes", ("yes", "no"), hidden={"map": Hidden("north is up", ("solver",)),
                                                       "key": Hidden("17", ("solver",))})  # fmt: skip
HELPER = Phased(
    phases=[Phase("reply", ["eve"], parts={"note": "private", "text": "shown"})],
    seats={"eve": "solver"},
    prompts={"solver": RolePrompt(opening="{{ question }} {{ map }}", hidden=["map"])},
    name="helper",
)
ASK = Phase("ask", ["ann"], repeat=2, delegate=Delegate(HELPER, ["map"]))
IDA = Phased(
    phases=[ASK, Phase("answer", ["ann"], moves="choices")],
    seats={"ann": "solver"},
    prompts={"solver": RolePrompt(opening="{{ question }}")},
    vote="answer",
    rejected="(nothing)",
    rewards=[RewardTerm("right_choice")],
)


def play(rules: Phased, said: dict[Any, str], task: Task = TASK) -> Trace:
    assert rules.problems() == []
    return drive(rules, task, 0, lambda ask: Reply(said.get((ask.seat, ask.turn)) or said[ask.seat]))


SAID = {("ann", 0): "Which way is up?", ("ann", 1): "And down?", ("ann", 2): "yes",
        "eve": "<note>secret</note><text>North.</text>"}  # fmt: skip


def test_a_question_is_answered_by_a_play_of_its_own() -> None:
    trace = play(IDA, SAID)
    last = [m.text for m in trace.requests()[2].messages]
    assert last == ["Why?", "Which way is up?", "The answer:\n> North.", "And down?", "The answer:\n> North."]
    first, second = trace.children
    assert [child.requests()[0].messages[0].text for child in trace.children] == [
        "Which way is up? north is up", "And down? north is up"]  # fmt: skip
    assert (first.task.id, second.task.id, first.task.parent) == ("t/ask0", "t/ask1", "t")
    assert (first.task.choices, first.task.answer, [*first.task.hidden]) == ((), None, ["map"])
    assert trace.outcome.score == 1.0 and trace.outcome.metrics["answered"] == 2
    assert IDA.roles() == {"ann": "solver", "eve": "solver"}


def test_what_came_to_nothing_is_no_answer_and_a_last_word_no_question() -> None:
    trace = play(IDA, {**SAID, "eve": "secret"})
    assert "(nothing)" in trace.requests()[2].messages[-1].text
    assert (trace.outcome.metrics["answered"], trace.outcome.metrics["unanswered"]) == (0, 2)
    with pytest.raises(MaterialError, match="'map' for ask"):
        play(IDA, SAID, replace(TASK, hidden={}))
    shipped = load_protocol(SHIPPED / "decomposition.yaml")
    assert isinstance(shipped, Phased)
    ended = play(shipped, {("solver", 0): "How?", ("solver", 1): "DONE", ("solver", 2): "yes", "helper": "So."})
    assert len(ended.children) == 1 and ended.outcome.score == 1.0
    assert ended.children[0].outcome.answer == "So."


def test_sub_plays_are_recorded_under_the_play_that_asked() -> None:
    said = {"ann": ["Up?", "Down?", "no"], "eve": ["<note></note><text>North.</text>"] * 2}
    player = ScriptedPlayer(lambda ask: said[ask.seat].pop(0))
    episodes = asyncio.run(run_play(IDA, TASK, 3, {"solver": Seated("base", player)}, "e"))
    assert [(e.id, e.parent, e.protocol, len(e.turns)) for e in episodes] == [
        ("e", None, "", 3), ("e/ask0", "e", "helper", 1), ("e/ask1", "e", "helper", 1)]  # fmt: skip


def debate(**changes: Any) -> Phased:
    return replace(Phased(
        phases=[Phase("talk", ["ann", "ben"], repeat=2)],
        seats={"ann": "speaker", "ben": "speaker", "jay": "judge"},
        sides={"ann": 0, "ben": 1},
        prompts={"speaker": RolePrompt()},
        judge=JudgeRules("jay", "{{ a }}\n{{ transcript }}", view="transcript", when="end", orders="rerun"),
        rewards=[RewardTerm("win_probability")],
    ), **changes)  # fmt: skip


def run(verdicts: list[float | None]) -> Trace:
    """`verdicts`: of the claim shown first, in the order asked; None: unreadable."""
    said = iter(verdicts)

    def player(ask: TurnRequest) -> Reply:
        if not ask.read:
            return Reply(ask.seat)
        p = next(said)
        return Reply("A", () if p is None else (p, 1 - p))

    assert debate().problems() == []
    return drive(debate(), TASK, 0, player)


def test_a_debate_is_played_twice_and_believed_in_the_mean() -> None:
    trace = run([0.9, 0.3, 0.4, 0.6])
    orders = [[ask.seat for ask in child.requests() if not ask.read] for child in trace.children]
    assert orders == [["ann", "ben"] * 2, ["ben", "ann"] * 2]
    first, second = (child.outcome.judgments[-1].scores[0] for child in trace.children)
    assert (first, second) == pytest.approx((0.8, 0.4))
    (judgment,) = trace.outcome.judgments
    assert judgment.scores == pytest.approx((0.6, 0.4)) and trace.outcome.score == 1.0
    assert [child.outcome.score for child in trace.children] == [1.0, 0.0]
    assert trace.outcome.metrics["order_gap"] == pytest.approx(0.4)
    assert trace.outcome.rewards == ()
    assert [r.value for r in trace.children[1].outcome.rewards] == pytest.approx([-0.2, 0.2])


def test_both_plays_must_be_readable() -> None:
    outcome = run([0.9, 0.3, 0.4, None]).outcome
    assert outcome.status == "invalid" and outcome.score is None and "one of two plays" in outcome.reason


def delegating(**changes: Any) -> dict[str, Any]:
    return {"phases": [replace(ASK, delegate=replace(ASK.delegate, **changes)), *IDA.phases[1:]]}  # type: ignore[type-var]


MISTAKES: list[tuple[Phased, dict[str, Any], str, str]] = [
    (IDA, delegating(protocol=Solve()), "phases.0.delegate.protocol", "valid: phased"),
    (IDA, delegating(protocol=debate()), "phases.0.delegate.protocol", "has no claims"),
    (IDA, delegating(protocol=replace(HELPER, seats={"ann": "solver"})), "phases.0.delegate.protocol", "call one"),
    (IDA, delegating(protocol=replace(HELPER, prompts={})), "phases.0.delegate.protocol.prompts", "no prompts"),
    (IDA, delegating(heard="{{ seat }}"), "phases.0.delegate.heard", "valid here: quoted, text"),
    (IDA, {"phases": [replace(ASK, moves="choices")], "vote": "ask"}, "phases.0.delegate", "valid with moves: free"),
    (IDA, {"phases": [IDA.phases[1], ASK]}, "phases.1.delegate", "would not hear"),
    (debate(), {"phases": [Phase("talk", ["ann", "ben"], order="simultaneous")]}, "judge.orders", "valid: both, given"),
    (debate(), {"phases": [Phase("talk", ["ann", "ben"], speakers="shuffled")]}, "judge.orders", "alternating"),
    (debate(), {"judge": replace(debate().judge, view="chat", prompt="{{ a }}")}, "judge.orders", "given"),  # type: ignore[type-var]
]  # fmt: skip


@pytest.mark.parametrize(("sound", "changes", "path", "says"), MISTAKES)
def test_mistakes_are_named(sound: Phased, changes: dict[str, Any], path: str, says: str) -> None:
    found = replace(sound, **changes).problems()
    assert any(where == path and says in message for where, message in found), found


def test_a_protocol_cannot_delegate_to_itself(tmp_path: Any) -> None:
    text = (SHIPPED / "decomposition.yaml").read_text(encoding="utf-8")
    (tmp_path / "loop.yaml").write_text(text + "\n", encoding="utf-8")
    start = text.index("      protocol:\n")
    end = text.index("  - name: answer")
    (tmp_path / "loop.yaml").write_text(text[:start] + "      protocol: loop.yaml\n" + text[end:], encoding="utf-8")
    with pytest.raises(ConfigErrors, match=r"lead back to themselves: .*loop.yaml -> .*loop.yaml"):
        load_protocol(tmp_path / "loop.yaml")
