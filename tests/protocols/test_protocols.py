"""Every shipped protocol, and two made for the purpose, against the contract suite; and the suite against faults."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from configs.load import load_protocol
from configs.reading.errors import ConfigErrors
from configs.reading.raw import read_raw
from protocols.chat import MaterialError
from protocols.contract import suite
from protocols.contract.drive import Scripted, drive
from protocols.contract.tasks import synthetic
from protocols.judges.reading import JudgeRules, UnreadableVerdict
from protocols.kinds.propose_solve import ProposeSolve
from protocols.kinds.solve import Solve
from protocols.phased.interpreter import Phased
from protocols.phased.rules import Phase, Stop
from protocols.prompts import RolePrompt
from protocols.proposals import with_example, with_proposal
from protocols.rewards.record import RewardTerm
from protocols.templates import TemplateError, names, quote, render, template_problems
from protocols.types import Hidden, Reply, Task, TurnRequest
from tests.contract import mutants

TESTS = Path(__file__).resolve().parent.parent
SHIPPED = TESTS.parent / "configs" / "protocol"
FILES = sorted([*SHIPPED.glob("*.yaml"), *(TESTS / "contract" / "protocols").glob("*.yaml")])


def by_name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", FILES, ids=by_name)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_contract(path: Path, seed: int) -> None:
    assert suite.violations(load_protocol(path), read_raw(path), seed) == []


@pytest.mark.parametrize("name", mutants.MUTANTS)
def test_seeded_fault_is_caught(name: str) -> None:
    says = mutants.MUTANTS[name][1]
    assert any(says in wrong for wrong in mutants.noticed(name)), f"nothing said about {says!r}"


@pytest.mark.parametrize("path", sorted({path for path, _, _ in mutants.MUTANTS.values()}), ids=by_name)
def test_without_a_fault_the_suite_is_silent(path: Path) -> None:
    for seed in range(6):
        assert suite.violations(load_protocol(path), read_raw(path), seed) == []


DIGESTS = """
import sys
from pathlib import Path
from configs.load import load_protocol
from protocols.contract.drive import Scripted, drive
from configs.reading.raw import read_raw
from protocols.contract.tasks import synthetic
for name in sys.argv[1:]:
    path = Path(name)
    trace = drive(load_protocol(path), synthetic(read_raw(path), 5), 5, Scripted(5, illegal=0.3))
    print(path.stem, trace.digest())
"""


def test_plays_do_not_depend_on_the_hash_seed() -> None:
    said = set()
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(TESTS.parent)}
        command = [sys.executable, "-c", DIGESTS, *map(str, FILES)]
        done = subprocess.run(command, env=env, cwd=TESTS.parent, capture_output=True, text=True, check=True)
        assert len(done.stdout.splitlines()) == len(FILES)
        said.add(done.stdout)
    assert len(said) == 1


@pytest.mark.parametrize("path", FILES, ids=by_name)
def test_protocols_survive_pickling_and_declare_their_seats(path: Path) -> None:
    protocol, raw = load_protocol(path), read_raw(path)
    again = pickle.loads(pickle.dumps(protocol))
    task = synthetic(raw, 1)
    first, second = (drive(p, task, 1, Scripted.of(raw, 1)) for p in (protocol, again))
    assert first.digest() == second.digest()
    plays = [drive(protocol, synthetic(raw, seed), seed, Scripted.of(raw, seed)) for seed in range(4)]
    assert {(r.seat, r.role) for play in plays for r in play.requests()} == set(protocol.roles().items())


def test_pixel_prompts_word_for_word() -> None:
    """Prompts of the tiny models are counted in words, so they are fixed here."""
    protocol = load_protocol(SHIPPED / "pixel_debate.yaml")
    evidence = ("r0c3=2", "r1c5=4", "r2c2=1", "r3c3=3", "r4c4=2")
    task = Task("t", "", "7", ("3", "7"), evidence, {"image": Hidden(" ".join(evidence), ("debater",))})
    script = {("alice", 0): "r3c3=3", ("bob", 0): "r0c3=2", ("alice", 1): "r1c5=4", ("bob", 1): "r4c4=2"}

    def player(request: TurnRequest) -> Reply:
        return Reply("A", (0.4, 0.6)) if request.read else Reply(script[request.seat, request.turn])

    trace = drive(protocol, task, 0, player)
    last = {request.seat: [m.text for m in request.messages] for request in trace.requests()}
    image = "image r0c3=2 r1c5=4 r2c2=1 r3c3=3 r4c4=2"
    assert last["alice"] == [f"{image} for=3 not=7", "r3c3=3", "they r0c3=2"]
    assert last["bob"] == [f"{image} for=7 not=3 they r3c3=3", "r0c3=2", "they r1c5=4"]
    judged = [r for r in trace.requests() if r.seat == "judge"]
    assert [r.messages[0].text for r in judged[:4]] == [
        "3 or 7",
        "7 or 3",
        "3 or 7 r3c3=3",
        "7 or 3 r3c3=3",
    ]
    assert [r.choices for r in judged[:2]] == [("3", "7"), ("7", "3")]
    assert [r.target for r in judged[:2]] == ["7", "7"]
    assert judged[-2].messages[0].text == "3 or 7 r0c3=2 r1c5=4 r3c3=3 r4c4=2"
    assert len(trace.requests()) == 4 + 2 * 5
    assert trace.outcome.score == 0.5, "0.4 and 0.6 in the other order average to even odds"


@pytest.mark.parametrize("name", ["pixel_debate", "pixel_debate_free", "pixel_consultancy"])
def test_judge_requests_are_those_of_a_play(name: str) -> None:
    path = SHIPPED / f"{name}.yaml"
    protocol = load_protocol(path)
    assert isinstance(protocol, Phased)
    task = synthetic(read_raw(path), 3)
    trace = drive(protocol, task, 3, Scripted(3))
    revealed: list[str] = []
    polls = 0
    for asks in trace.rounds:
        requests, replies = zip(*asks)
        if requests[0].read:
            alone = protocol.judge_requests(task, revealed[::-1])
            assert [(r.messages, r.choices, r.target) for r in alone] == [
                (r.messages, r.choices, r.target) for r in requests]  # fmt: skip
            belief = protocol.belief(task, [reply.probs for reply in replies])
            assert belief == trace.outcome.judgments[polls].scores
            polls += 1
        else:
            revealed.append(replies[0].text.strip())
    assert polls == len(trace.outcome.judgments) == 5


@pytest.mark.parametrize(
    "probs", [(), (1.0,), (0.5, 0.6), (math.nan, 0.5), (-0.1, 1.1), (0.0, 0.0), (math.inf, 0.0)]
)
def test_unreadable_probabilities_are_refused(probs: tuple[float, ...]) -> None:
    path = SHIPPED / "pixel_debate.yaml"
    protocol, task = load_protocol(path), synthetic(read_raw(path), 0)
    assert isinstance(protocol, Phased)
    with pytest.raises(UnreadableVerdict):
        protocol.belief(task, [(0.5, 0.5), probs])


def test_a_brought_proposal_is_played_without_its_proposer() -> None:
    path = SHIPPED / "pixel_proposed.yaml"
    protocol, raw = load_protocol(path), read_raw(path)
    assert isinstance(protocol, ProposeSolve)
    task = synthetic(raw, 2)
    brought = with_proposal(task, task.proposals[3])
    trace = drive(protocol, brought, 2, Scripted(2))
    assert "proposer" not in {request.seat for request in trace.requests()}
    assert len(trace.children) == 8 and trace.outcome.rewards == () and trace.outcome.status == "ok"
    assert {child.task.id for child in trace.children} == {f"{task.id}/{task.proposals[3]}"}
    assert protocol.proposal(brought, ()) == task.proposals[3]


def test_an_example_is_the_proposers_target_and_nobody_sees_it() -> None:
    path = SHIPPED / "propose_solve.yaml"
    protocol, task = load_protocol(path), with_example(synthetic(read_raw(path), 2), "an example")
    requests = drive(protocol, task, 2, Scripted(2)).requests()
    assert [request.target for request in requests if request.seat == "proposer"] == ["an example"]
    assert not any("an example" in m.text for request in requests for m in request.messages)


def test_hidden_material_needs_the_task_to_allow_it() -> None:
    path = SHIPPED / "pixel_debate.yaml"
    protocol, task = load_protocol(path), synthetic(read_raw(path), 0)
    for hidden in ({}, {"image": Hidden("secret", ("judge",))}):
        with pytest.raises(MaterialError, match="image") as caught:
            drive(protocol, replace(task, hidden=hidden), 0, Scripted(0))
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_templates_fill_in_literal_values_once() -> None:
    assert render("{{a}} {{ b }} {x} }}", {"a": "{{ b }}", "b": "{% c %}"}) == "{{ b }} {% c %} {x} }}"
    assert names("{{ a }}{{b}}{{ a }}") == ("a", "b")
    with pytest.raises(TemplateError, match="valid here: a, b"):
        render("{{ c }}", {"a": "", "b": ""})
    assert template_problems("p", "{{ a }}", ["a"]) == []
    assert len(template_problems("p", "{{ a.b }} {{ c }}", ["a"])) == 2
    assert quote("a\nbob: b\r\nc\u2028d") == "> a\n> bob: b\r\n> c\u2028> d"


def debate(**changes: Any) -> Phased:
    """A small sound protocol, to be broken by `changes`."""
    sound = Phased(
        phases=[Phase("talk", ["ann", "ben"])],
        seats={"ann": "speaker", "ben": "speaker", "jay": "judge"},
        sides={"ann": 0, "ben": 1},
        prompts={"speaker": RolePrompt(opening="{{ question }}")},
        judge=JudgeRules("jay", "{{ a }} {{ b }}"),
        rewards=[RewardTerm("belief_change")],
    )
    return replace(sound, **changes)


JUDGE = JudgeRules("jay", "{{ a }} {{ b }}")
TALK = Phase("talk", ["ann", "ben"])
SEATS = {"ann": "speaker", "ben": "speaker", "jay": "judge"}


def speaking(**changes: Any) -> dict[str, Any]:
    return {"phases": [replace(TALK, **changes)]}


def judging(**changes: Any) -> dict[str, Any]:
    return {"judge": replace(JUDGE, **changes)}


MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    (speaking(seats=["ann", "ben", "bob"]), "phases.0.seats", "ann, ben, jay"),
    (speaking(seats=["ann", "ben", "jay"]), "judge.seat", "no turn in a phase"),
    (speaking(seats=["ann"]), "seats.ben", "never speaks"),
    (speaking(repeat=0), "phases.0", "never reached"),
    (speaking(repeat=10**6), "phases.0.repeat", "endless loop"),
    (speaking(visible_to=["nobody"]), "phases.0.visible_to", "valid: all, ann, ben"),
    (speaking(order="simultaneous", moves="evidence"), "phases.0.order", "clash"),
    (speaking(visible_to=[], moves="evidence"), "phases.0.visible_to", "public"),
    (speaking(enforce=False), "phases.0.enforce", "no effect"),
    (speaking(prompt="{{ image }}"), "phases.0.prompt", "unknown placeholder {{ image }}"),
    (speaking(order="simultaneous", seats=["ann", "ben", "ann"]), "phases.0.seats", "twice"),
    (speaking(name="judge"), "phases.0.name", "judge"),
    (speaking(max_tokens=0), "phases.0.max_tokens", "at least 1"),
    (speaking(temperature=-1.0), "phases.0.temperature", "at least 0"),
    (speaking(speakers="shuffled", order="simultaneous"), "phases.0.speakers", "valid: fixed"),
    (speaking(speakers="alternating"), "phases.0.speakers", "without a second repeat"),
    (speaking(speakers="shuffled", seats=["ann", "ben", "ann"]), "phases.0.speakers", "twice in a round"),
    (speaking(parts={"thinking": "private"}), "phases.0.parts", "at least one part that is shown"),
    (speaking(parts={"a b": "shown"}), "phases.0.parts", "cannot stand in a tag"),
    (speaking(parts={"a": "shown"}, moves="choices"), "phases.0.parts", "valid: moves: free"),
    (speaking(max_words=0), "phases.0.max_words", "at least 1"),
    (speaking(max_words=9, moves="evidence"), "phases.0.max_words", "valid with moves: free"),
    (speaking(max_words=9, soft_words=10), "phases.0.soft_words", "valid: 1 to 9"),
    (speaking(max_words=9, min_words=10), "phases.0.min_words", "valid: 1 to 9"),
    (speaking(soft_words=9), "phases.0.soft_words", "add {name: length}"),
    (speaking(stop=Stop("jay", "DONE")), "phases.0.stop.seat", "valid: ann, ben"),
    (speaking(stop=Stop("ann", " ")), "phases.0.stop.says", "one line"),
    (speaking(stop=Stop("ann", "I am done"), max_words=2), "phases.0.stop.says", "longer than max_words"),
    (speaking(stop=Stop("ann", "A"), moves="choices"), "phases.0.stop", "valid with moves: free"),
    (speaking(stop=Stop("ben", "DONE")), "phases.0.stop", "raise repeat"),
    ({"vote": "talk"}, "vote", "the judge decides"),
    ({"vote": "talk", "judge": None}, "vote", "no phase with moves: choices 'talk'"),
    ({"listens": {"joy": []}}, "listens.joy", "valid: ann, ben, jay"),
    ({"listens": {"ann": ["ann"]}}, "listens.ann", "valid: ben"),
    ({"listens": {"jay": ["ben"]}, **speaking(moves="evidence")}, "listens.jay", "would miss some"),
    ({"rewards": [RewardTerm("right_choice")]}, "rewards.0.name", "moves: choices"),
    ({"phases": []}, "phases", "at least one"),
    ({"phases": [TALK, TALK]}, "phases", "two phases"),
    ({"prompts": {}}, "prompts", "'speaker' has no prompts"),
    ({"prompts": {"speaker": RolePrompt(), "spaeker": RolePrompt()}}, "prompts.spaeker", "valid: speaker"),
    ({"prompts": {"speaker": RolePrompt(opening="{{ clam }}")}}, "prompts.speaker.opening", "claim"),
    ({"prompts": {"speaker": RolePrompt(hidden=["claim"])}}, "prompts.speaker.hidden", "already a name"),
    (
        {"prompts": {"speaker": RolePrompt(), "judge": RolePrompt(hidden=["x"])}},
        "prompts.judge.hidden",
        "no hidden",
    ),
    ({"seats": {**SEATS, "jay": "speaker"}}, "seats.ann", "shares the role"),
    ({"seats": {**SEATS, "all": "speaker"}}, "seats.all", "not names"),
    ({"sides": {"ann": 0, "ben": 2}}, "sides.ben", "valid: 0, 1"),
    ({"sides": {"ann": 0, "bob": 1}}, "sides.bob", "no seat"),
    ({"sides": {"ann": 0, "jay": 1}}, "sides.jay", "no side"),
    ({"sides": {}}, "rewards.0.name", "set sides"),
    (judging(seat="joy"), "judge.seat", "valid: ann, ben, jay"),
    (judging(prompt="{{ a }} {{ image }}"), "judge.prompt", "no hidden material"),
    (judging(prompt="{{ transcript }}"), "judge.prompt", "unknown placeholder"),
    (judging(view="chat"), "judge.orders", "given"),
    (judging(ask="A or B?"), "judge.ask", "no effect"),
    (judging(labels=["A"]), "judge.labels", "different labels"),
    (judging(labels=["A", "A"]), "judge.labels", "different labels"),
    (judging(prompt=""), "judge.prompt", "missing"),
    (judging(seat=""), "judge.seat", "either seat"),
    (judging(panel=["jay", "kim"]), "judge.seat", "either seat"),
    (judging(seat="", panel=["jay"]), "judge.panel", "no panel"),
    (judging(seat="", panel=["jay", "kim"]), "judge.panel", "no seat 'kim'"),
    (judging(seat="", panel=["jay", "jay"]), "judge.panel", "named as a judge twice"),
    (judging(held_out=["ben"]), "judge.held_out", "no turn in a phase"),
    (judging(held_out=["jay"]), "judge.held_out", "named as a judge twice"),
    (judging(combine="majority"), "judge.combine", "valid with judge.panel"),
    (judging(votes=-1), "judge.votes", "at least 0"),
    (judging(votes=3, view="chat", orders="given"), "judge.votes", "one reply per question"),
    (judging(retries=1), "judge.retries", "valid with votes"),
    (judging(max_tokens=9), "judge.max_tokens", "valid with votes"),
    (judging(votes=1, max_tokens=-1), "judge.max_tokens", "at least 1"),
    (judging(votes=3, temperature=0.0), "judge.temperature", "every sample is the same"),
    (judging(when="end"), "rewards.0.name", "each_turn"),
    ({"rewards": [RewardTerm("belief_chnage")]}, "rewards.0.name", "belief_change, brier_change, format, "),
    ({"rewards": [RewardTerm("correct")]}, "rewards.0.name", "exact verifier"),
    ({"rewards": [RewardTerm("length")]}, "rewards.0.name", "soft_words or min_words"),
    ({"rewards": [RewardTerm("illegal")]}, "rewards.0.name", "legal moves"),
    ({"rewards": [RewardTerm("win", params={"clip": 1.0})]}, "rewards.0.params.clip", "no setting"),
    ({"rewards": [RewardTerm("win_logit", params={"clip": 0.0})]}, "rewards.0.params.clip", "above 0"),
    ({"rewards": [RewardTerm("win", to=["bob"])]}, "rewards.0.to", "valid: ann"),
    ({"rewards": [RewardTerm("win", weight=0.0)]}, "rewards.0.weight", "not 0"),
    ({"zero_sum": True}, "rewards.0", "zero_sum: true is promised"),
    ({"zero_sum": True, "rewards": [], "sides": {"ann": 0, "ben": 0}}, "zero_sum", "each side"),
    ({"judge": None, "seats": {"ann": "speaker", "ben": "speaker"}}, "rewards.0.name", "a judge"),
]


@pytest.mark.parametrize(
    ("changes", "path", "says"), MISTAKES, ids=[f"{i}-{p}" for i, (_, p, _) in enumerate(MISTAKES)]
)
def test_mistakes_are_named(changes: dict[str, Any], path: str, says: str) -> None:
    assert debate().problems() == []
    found = debate(**changes).problems()
    assert any(where == path and says in message for where, message in found), found


def test_mistakes_of_the_other_kinds_are_named() -> None:
    sound = ProposeSolve(Solve())
    assert Solve().problems() == sound.problems() == []
    for broken, path, says in [
        (Solve(prompt="{{ answer }}"), "prompt", "valid here: question"),
        (Solve(rewards=[RewardTerm("learnability")]), "rewards.0.name", "sub-plays"),
        (Solve(hidden=["question"]), "hidden", "already"),
        (Solve(max_tokens=0), "max_tokens", "at least 1"),
        (replace(sound, child=Solve(prompt="{{ x }}")), "child.prompt", "valid here: question"),
        (replace(sound, seat="solver"), "seat", "taken: solver"),
        (replace(sound, repeats=1), "repeats", "at least 2"),
        (replace(sound, repeats=0), "repeats", "at least 1"),
        (replace(sound, enforce=False), "enforce", "no effect"),
        (replace(sound, hidden=["proposal"]), "hidden", "proposal"),
    ]:
        assert any(where == path and says in message for where, message in broken.problems()), (path, says)


def test_a_malformed_file_is_refused_with_its_line(tmp_path: Path) -> None:
    text = (
        (SHIPPED / "pixel_debate.yaml")
        .read_text(encoding="utf-8")
        .replace("seats: [alice, bob]", "seats: [alice, bbo]")
    )
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    line = next(i for i, row in enumerate(text.splitlines(), 1) if "bbo" in row)
    with pytest.raises(ConfigErrors, match=f"broken.yaml:{line}.*no seat 'bbo'.*alice, bob, judge"):
        load_protocol(path)
