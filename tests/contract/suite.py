"""The contract suite: `violations(protocol, raw, seed)` plays a protocol in many ways and lists what is wrong.

`raw` is the protocol's YAML as plain data; expectations come from it and never from the protocol object.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from protocols.base import Protocol, SubPlay
from protocols.types import Hidden, Outcome, Reply, Task, TurnRequest
from tasks.base import with_proposal
from tests.contract.drive import Scripted, Trace, drive
from tests.contract.oracle import PhasedOracle
from tests.contract.oracle_bench import Raw, seats_of
from tests.contract.tasks import NOBODY, synthetic

PLAYS: dict[str, dict[str, Any]] = {
    "legal": {},
    "illegal": {"illegal": 0.5},
    "unreadable": {"unreadable": 0.2},
    "all wrong": {"illegal": 0.3, "unreadable": 0.1},
}


def read_raw(path: Path) -> Raw:
    """A protocol's YAML as plain data: over what it extends, and with the file of its child read in its place."""
    raw: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    for base in raw.pop("extends", [])[::-1]:
        raw = _over(read_raw(path.parent / base), raw)
    if isinstance(raw.get("child"), str):
        raw["child"] = read_raw(path.parent / raw["child"])
    return raw


def _over(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Mappings are merged key by key; everything else is replaced."""
    merged = dict(base)
    for key, value in own.items():
        old = merged.get(key)
        merged[key] = _over(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def violations(protocol: Protocol, raw: Raw, seed: int) -> list[str]:
    """Everything that is wrong with `protocol`, which `raw` describes. Empty for a sound one."""
    found = [f"problem: {path}: {message}" for path, message in protocol.problems()]
    for way, settings in PLAYS.items():
        for evidence in (40, 3):
            task = synthetic(raw, seed, evidence)
            trace = drive(protocol, task, seed, Scripted.of(raw, seed, **settings))
            found += [f"{way}: {wrong}" for wrong in check_trace(raw, trace)]
            again = drive(protocol, task, seed, Scripted.of(raw, seed, **settings))
            if again.digest() != trace.digest():
                found.append(f"{way}: a replay with the same seed differs")
    return found + order_violations(protocol, raw, seed) + twin_violations(protocol, raw, seed)


def order_violations(protocol: Protocol, raw: Raw, seed: int, plays: int = 24) -> list[str]:
    """In a shuffled phase everyone must be first in some plays. By chance two seats fail once in 2^23."""
    found = []
    for phase in raw.get("phases", []):
        if phase.get("speakers") == "shuffled":
            task, first = synthetic(raw, seed), set()
            for i in range(plays):
                trace = drive(protocol, task, seed + i, Scripted.of(raw, seed))
                first.add(next(ask.seat for ask in trace.requests() if ask.phase == phase["name"]))
            if len(first) < 2:
                found.append(f"{phase['name']}: {first} is first in all of {plays} shuffled plays")
    return found


def check_trace(raw: Raw, trace: Trace) -> list[str]:
    """One play against what its YAML says."""
    if raw["kind"] == "phased":
        return PhasedOracle(raw, trace.task).run(trace)
    return (_check_solve if raw["kind"] == "solve" else _check_proposed)(raw, trace)


def _check_solve(raw: Raw, trace: Trace) -> list[str]:
    (((request, reply),),) = trace.rounds
    assert isinstance(request, TurnRequest) and isinstance(reply, Reply)
    task, outcome = trace.task, trace.outcome
    found = _secrets(request, task)
    if task.answer and any(task.answer in message.text for message in request.messages):
        found.append("the solver saw the answer")
    if task.question not in request.messages[-1].text:
        found.append("the solver did not see its own question")
    if "undecidable" in reply.text:
        if outcome.status != "invalid" or outcome.rewards or outcome.score is not None or not outcome.reason:
            found.append("an undecided verifier scored")
    elif outcome.status != "ok" or outcome.score != float(reply.text == task.answer):
        found.append(
            f"{outcome.status} with score {outcome.score} for a reply that is {reply.text == task.answer}"
        )
    elif _pay(raw, outcome, "correct", {}) != outcome.score:
        found.append(f"score {outcome.score} was paid {outcome.rewards}")
    return found


def _check_proposed(raw: Raw, trace: Trace) -> list[str]:
    found: list[str] = []
    task, rounds = trace.task, list(trace.rounds)
    brought = task.hidden.get("proposal")
    proposal = brought.text if brought else ""
    choices = list(task.proposals) if raw.get("proposals", "free") == "choices" else []
    if brought is None:
        ((request, reply),) = rounds.pop(0)
        assert isinstance(request, TurnRequest) and isinstance(reply, Reply)
        found += _secrets(request, task)
        if list(request.choices) != choices:
            found.append(f"the proposer may choose {request.choices}, not {choices}")
        proposal = reply.text.strip()
    valid = bool(brought) or (proposal in choices if choices else not proposal.startswith("nonsense"))
    plays = [ask for asks in rounds for ask, _ in asks]
    if len(plays) != (raw.get("repeats", 8) if valid else 0) or len(rounds) > 1:
        return [*found, f"{len(plays)} sub-plays in {len(rounds)} yields of a proposal that is {valid}"]
    for ask in plays:
        assert isinstance(ask, SubPlay)
        if ask.task.id != f"{task.id}/{proposal}" or ask.task.parent != task.id:
            found.append(f"a sub-play got task {ask.task.id}, not the one proposed")
    keys, seeds = ({getattr(ask, name) for ask in plays} for name in ("key", "seed"))
    if len(keys) != len(plays) or len(seeds) != len(plays):
        found.append("sub-plays share keys or seeds")
    found += [f"child: {wrong}" for child in trace.children for wrong in check_trace(raw["child"], child)]
    return found + _check_proposer_pay(raw, trace, valid, brought is None)


def _check_proposer_pay(raw: Raw, trace: Trace, valid: bool, asked: bool) -> list[str]:
    outcome = trace.outcome
    scores = [
        c.outcome.score for c in trace.children if c.outcome.score is not None and c.outcome.status == "ok"
    ]
    if not valid:
        wrong = outcome.status != "ok" or outcome.score is not None
        return (
            ["an invalid proposal was not fined"]
            if wrong or _pay(raw, outcome, "invalid_proposal") != -1.0
            else []
        )
    if len(scores) < max(2, raw.get("repeats", 8) / 2):
        wrong = outcome.status != "invalid" or bool(outcome.rewards) or outcome.score is not None
        return ["too few sub-plays had a score, and yet it counted"] if wrong else []
    p = sum(scores) / len(scores)
    if outcome.status != "ok" or outcome.score is None or abs(outcome.score - p) > 1e-9:
        return [f"{outcome.status} with score {outcome.score}, not {p}"]
    paid = _pay(raw, outcome, "learnability")
    should = 4 * p * (1 - p) if asked else None
    if (paid is None) != (should is None) or abs((paid or 0.0) - (should or 0.0)) > 1e-9:
        return [f"learnability paid {paid}, not {should}"]
    return []


def _pay(raw: Raw, outcome: Outcome, name: str, default: Mapping[str, float] | None = None) -> float | None:
    """The sum of rewards of that name, by weight; None where there are none."""
    weight = next((t.get("weight", 1.0) for t in raw.get("rewards", []) if t["name"] == name), 1.0)
    paid = [r.value / weight for r in outcome.rewards]
    return sum(paid) if paid and all(r.name == name for r in outcome.rewards) else None


def _secrets(request: TurnRequest, task: Task) -> list[str]:
    chat = "\n".join(message.text for message in request.messages)
    return [f"{request.seat} saw hidden {name!r}" for name, hidden in task.hidden.items()
            if hidden.text in chat and request.role not in hidden.roles]  # fmt: skip


def twin_violations(protocol: Protocol, raw: Raw, seed: int) -> list[str]:
    """Plays that differ only in what somebody may not know must look the same to them."""
    found = []
    task = synthetic(raw, seed)
    base = _views(drive(protocol, task, seed, Scripted.of(raw, seed)))
    other = (
        next(c for c in (*task.choices, "") if c != task.answer) if raw["kind"] == "phased" else task.answer
    )
    twin = _views(drive(protocol, replace(task, answer=other), seed, Scripted.of(raw, seed)))
    if twin != base:
        found.append("the right answer shows in what a seat is asked")
    for name, hidden in task.hidden.items():
        changed = {**task.hidden, name: Hidden("changed", hidden.roles)}
        twin = _views(drive(protocol, replace(task, hidden=changed), seed, Scripted.of(raw, seed)))
        for (role, chat), (_, twin_chat) in zip(base, twin):
            if role not in hidden.roles and chat != twin_chat:
                found.append(f"hidden {name!r} shows in what {role} is asked")
    found += _private_parts(protocol, raw, seed)
    judge = raw.get("judge", {})
    if judge and judge.get("view", "evidence") == "evidence":
        last = len(task.choices) - 1
        swapped = replace(protocol, sides={s: last - side for s, side in raw["sides"].items()})  # type: ignore[type-var]
        twin = _views(drive(swapped, task, seed, Scripted.of(raw, seed)))
        for (role, chat), (_, twin_chat) in zip(base, twin):
            if role in {raw["seats"][seat] for seat in seats_of(judge)} and chat != twin_chat:
                found.append("who argues which side shows in what the judge is asked")
    if raw["kind"] == "propose_solve":
        proposal = task.proposals[0]
        trace = drive(protocol, with_proposal(task, proposal), seed, Scripted.of(raw, seed))
        found += [f"replayed proposal: {wrong}" for wrong in check_trace(raw, trace)]
    assert NOBODY in task.hidden
    return found


def _private_parts(protocol: Protocol, raw: Raw, seed: int) -> list[str]:
    """A play in which every private part, and all between the parts, reads otherwise: nobody else may notice."""
    parts = {phase["name"]: phase["parts"] for phase in raw.get("phases", []) if "parts" in phase}
    if not parts:
        return []
    scripted = Scripted.of(raw, seed)

    def thinks_otherwise(request: TurnRequest) -> Reply:
        reply, text = scripted(request), ""
        for piece in re.split(r"(<(\w+)>.*?</\2>)", reply.text, flags=re.DOTALL)[1::3]:
            name = piece[1 : piece.index(">")]
            text += piece if parts[request.phase][name] == "shown" else f"<{name}>another thought</{name}>"
        return replace(reply, text=text) if request.phase in parts else reply

    task = synthetic(raw, seed)
    first, other = (
        drive(protocol, task, seed, player) for player in (Scripted.of(raw, seed), thinks_otherwise)
    )
    said = [
        [[m.text for m in r.messages if m.speaker != "assistant"] for r in t.requests()]
        for t in (first, other)
    ]
    return [] if said[0] == said[1] else ["what a seat wrote in private shows in what is asked"]


def _views(trace: Trace) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    return [(r.role, tuple((m.speaker, m.text) for m in r.messages)) for r in trace.requests()]
