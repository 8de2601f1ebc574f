"""The contract suite: `violations(protocol, raw, seed)` plays a protocol in many ways and lists what is wrong.

`raw` is the protocol's YAML as plain data; expectations come from it and never from the protocol object.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product
from typing import Any

from protocols.base import Protocol
from protocols.contract.drive import Scripted, Trace, aliases, drive, parts_of, phases_of
from protocols.contract.game import MarkerGame
from protocols.contract.oracle import PhasedOracle
from protocols.contract.oracle_bench import seats_of
from protocols.contract.oracle_game import GameOracle
from protocols.contract.oracle_proposed import proposed, solved
from protocols.contract.tasks import NOBODY, synthetic
from protocols.contract.text import Raw
from protocols.contract.twins import choice_shows
from protocols.proposals import with_proposal
from protocols.types import Hidden, Reply, TurnRequest

PLAYS: dict[str, dict[str, Any]] = {
    "legal": {},
    "illegal": {"illegal": 0.5},
    "unreadable": {"unreadable": 0.2},
    "all wrong": {"illegal": 0.3, "unreadable": 0.1},
}


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
    for phase in phases_of(raw):
        if phase.get("speakers") == "shuffled":
            task, first = synthetic(raw, seed), set()
            for i in range(plays):
                trace = drive(protocol, task, seed + i, Scripted.of(raw, seed))
                first.add(next(ask.seat for ask in trace.requests() if ask.phase == phase["name"]))
            if len(first) < 2:
                found.append(f"{phase['name']}: {first} is first in all of {plays} shuffled plays")
    if raw["kind"] == "game" and raw.get("order") == "shuffled":  # all players of the marker game are asked, in order
        task = synthetic(raw, seed)
        traces = [drive(protocol, task, seed + i, Scripted.of(raw, seed)) for i in range(plays)]
        first = {trace.requests()[0].seat for trace in traces}
        if len(first) < 2:
            found.append(f"{first} is player 0 in all of {plays} shuffled plays")
    return found


def check_trace(raw: Raw, trace: Trace) -> list[str]:
    """One play against what its YAML says. Nothing is said about a kind without an oracle."""
    oracle = ORACLES.get(raw["kind"])
    return [] if oracle is None else oracle(raw, trace)


def _check_phased(raw: Raw, trace: Trace) -> list[str]:
    """Whatever was drawn, principle and names, it must be one and the same all through the play."""
    if raw.get("judge", {}).get("orders") == "rerun":
        return _check_rerun(raw, trace)
    given = aliases(raw)
    speaking = [seat for seat, name in given.items() if name != seat]
    orders = permutations(speaking) if raw.get("names") == "drawn" else [tuple(speaking)]
    found: list[list[str]] = []
    for order, principle in product(orders, raw.get("principles") or [""]):
        names = {**given, **{seat: given[at] for seat, at in zip(order, speaking)}}
        oracle = PhasedOracle(raw, trace.task, names, principle)
        found.append(oracle.run(trace))
        found[-1] += [
            f"{delegate['phase']}: {wrong}"
            for delegate, child in zip(oracle.delegated, trace.children)
            for wrong in check_trace(delegate["protocol"], child)
        ]
        if not found[-1]:
            break
    return min(found, key=len)


def _check_rerun(raw: Raw, trace: Trace) -> list[str]:
    """Played twice, the second time with every order of speaking reversed, and believed in the mean."""
    judge = {**raw["judge"], "orders": "both"}
    runs = [{**raw, "judge": judge}]
    runs.append({**runs[0], "phases": [{**phase, "seats": phase["seats"][::-1]} for phase in raw["phases"]]})
    asks = [ask for asks in trace.rounds for ask, _ in asks]
    if len(trace.children) != 2 or len(asks) != 2 or any(child.task != trace.task for child in trace.children):
        return [f"{len(trace.children)} plays of {len(asks)} asked for, not two of the same task"]
    found = [f"run {i}: {wrong}" for i, run in enumerate(runs) for wrong in check_trace(run, trace.children[i])]
    outcome, below = trace.outcome, [child.outcome for child in trace.children]
    if any(each.status != "ok" for each in below):
        wrong = outcome.status != "invalid" or bool(outcome.rewards) or outcome.score is not None
        return [*found, "one of two plays is invalid, and yet it counts"] if wrong else found
    if any("forfeit" in each.metrics for each in below):
        return [*found, "a forfeit scored"] if outcome.score is not None or outcome.judgments else found
    first, second = ([j for j in each.judgments if j.decides][-1].scores for each in below)
    mean = [(p + q) / 2 for p, q in zip(first, second)]
    best = [claim for claim, p in zip(trace.task.choices, mean) if max(mean) - p < 1e-9]
    score = 0.0 if trace.task.answer not in best else 1.0 if len(best) == 1 else 0.5
    got = outcome.judgments[-1].scores if outcome.judgments else ()
    if len(got) != len(mean) or any(abs(p - q) > 1e-9 for p, q in zip(got, mean)) or outcome.score != score:
        found.append(f"believed {got} with score {outcome.score}, not {mean} with {score}")
    return found


def _check_proposed(raw: Raw, trace: Trace) -> list[str]:
    found = proposed(raw, trace)
    return found + [f"child: {wrong}" for child in trace.children for wrong in check_trace(raw["child"], child)]


ORACLES: dict[str, Callable[[Raw, Trace], list[str]]] = {
    "phased": _check_phased,
    "solve": solved,
    "propose_solve": _check_proposed,
    "game": lambda raw, trace: GameOracle(raw, trace.task).run(trace),
}
"""Kinds whose plays are worked out from the YAML and compared word for word."""


def twin_violations(protocol: Protocol, raw: Raw, seed: int) -> list[str]:
    """Plays that differ only in what somebody may not know must look the same to them."""
    found = [
        *answer_shows(protocol, raw, seed),
        *hidden_shows(protocol, raw, seed),
        *side_shows(protocol, raw, seed),
        *private_shows(protocol, raw, seed),
        *card_shows(protocol, raw, seed),
        *choice_shows(protocol, raw, seed),
    ]
    if raw["kind"] == "propose_solve":
        task = synthetic(raw, seed)
        trace = drive(protocol, with_proposal(task, task.proposals[0]), seed, Scripted.of(raw, seed))
        found += [f"replayed proposal: {wrong}" for wrong in check_trace(raw, trace)]
    return found


def answer_shows(protocol: Protocol, raw: Raw, seed: int) -> list[str]:
    """Nobody is asked anything else when another answer is the right one."""
    task = synthetic(raw, seed)
    if task.answer not in task.choices:  # an exact verifier's: `_check_solve` looks for it
        return []
    other = next(choice for choice in task.choices if choice != task.answer)
    base, twin = (
        _views(drive(protocol, t, seed, Scripted.of(raw, seed))) for t in (task, replace(task, answer=other))
    )
    return [] if base == twin else ["the right answer shows in what a seat is asked"]


def hidden_shows(protocol: Protocol, raw: Raw, seed: int) -> list[str]:
    """Hidden material changes nothing for roles that may not see it."""
    found = []
    task = synthetic(raw, seed)
    assert NOBODY in task.hidden
    base = _views(drive(protocol, task, seed, Scripted.of(raw, seed)))
    for name, hidden in task.hidden.items():
        kept = re.findall(r"quo\w+", hidden.text)  # what a seat that sees it may quote to others
        other = str(int(hidden.text) + 1) if hidden.text.isdecimal() else " ".join(["changed", *kept])
        changed = {**task.hidden, name: Hidden(other, hidden.roles)}
        twin = _views(drive(protocol, replace(task, hidden=changed), seed, Scripted.of(raw, seed)))
        for (role, chat), (_, twin_chat) in zip(base, twin):
            if role not in hidden.roles and chat != twin_chat:
                found.append(f"hidden {name!r} shows in what {role} is asked")
    return found


def private_shows(protocol: Protocol, raw: Raw, seed: int) -> list[str]:
    """What is written in private, in a part or between the parts, may read otherwise: nobody else notices."""
    parts = parts_of(raw)
    if not parts:
        return []
    scripted = Scripted.of(raw, seed)

    def thinks_otherwise(request: TurnRequest) -> Reply:
        reply, text = scripted(request), ""
        if request.phase not in parts:
            return reply
        for piece in re.split(r"(<(\w+)>.*?</\2>)", reply.text, flags=re.DOTALL)[1::3]:
            name = piece[1 : piece.index(">")]
            text += piece if parts[request.phase][name] == "shown" else f"<{name}>another thought</{name}>"
        return replace(reply, text=text)

    task = synthetic(raw, seed)
    first, other = (
        drive(protocol, task, seed, player) for player in (Scripted.of(raw, seed), thinks_otherwise)
    )
    said = [
        [[m.text for m in r.messages if m.speaker != "assistant"] for r in t.requests()]
        for t in (first, other)
    ]
    return [] if said[0] == said[1] else ["what a seat wrote in private shows in what is asked"]


def card_shows(protocol: Protocol, raw: Raw, seed: int) -> list[str]:
    """A game in which one player holds other cards, and everybody says the same, looks the same to all others."""
    task = synthetic(raw, seed)
    if not isinstance(task.game, MarkerGame):
        return []
    found = []
    for player in range(task.game.players):
        twin = replace(task, game=replace(task.game, altered=player))
        base, other = (drive(protocol, t, seed, Scripted.of(raw, seed)) for t in (task, twin))
        texts = [[(r.seat, [m.text for m in r.messages]) for r in t.requests()] for t in (base, other)]
        changed = {seat for (seat, text), (_, other_text) in zip(*texts) if text != other_text}
        if len(changed) != 1 or len(texts[0]) != len(texts[1]):
            found.append(f"the cards of player {player} show in what {sorted(changed) or 'nobody'} is asked")
    return found


def has_oracle(raw: Raw) -> bool:
    """Whether plays of this protocol can be worked out from its YAML."""
    return raw["kind"] in ORACLES


def judges_evidence(raw: Raw) -> bool:
    """Whether a judge is shown evidence alone."""
    judge = raw.get("judge") or {}
    return bool(judge) and judge.get("view", "evidence") == "evidence"


def side_shows(protocol: Protocol, raw: Raw, seed: int) -> list[str]:
    """A judge of the evidence alone is not told who argues which side."""
    if not judges_evidence(raw):
        return []
    task = synthetic(raw, seed)
    base = _views(drive(protocol, task, seed, Scripted.of(raw, seed)))
    last = len(task.choices) - 1
    swapped = replace(protocol, sides={s: last - side for s, side in raw.get("sides", {}).items()})  # type: ignore[type-var]
    twin = _views(drive(swapped, task, seed, Scripted.of(raw, seed)))
    judges = {raw["seats"][seat] for seat in seats_of(raw["judge"])}
    if any(role in judges and chat != other for (role, chat), (_, other) in zip(base, twin)):
        return ["who argues which side shows in what the judge is asked"]
    return []


def _views(trace: Trace) -> list[tuple[str, tuple[tuple[str, str], ...]]]:
    return [(r.role, tuple((m.speaker, m.text) for m in r.messages)) for r in trace.requests()]
