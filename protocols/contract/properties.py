"""What every protocol promises, one property at a time and whatever its kind: `launch.py protocol check FILE`.

Each property is judged from plays with scripted players alone. Where the kind has an oracle, one more property says
whether the plays went as the file is written, word for word.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from protocols.base import Protocol
from protocols.contract import suite
from protocols.contract.drive import Scripted, Trace, asks_grades, asks_vote, drive, parts_of, phases_of
from protocols.contract.tasks import Markers, synthetic
from protocols.contract.text import Raw, traces
from protocols.contract.twins import choice_shows
from protocols.types import Reply, Task, TurnRequest, VerifierError

EVIDENCE = (40, 3)
"""Statements of a task: more than are ever revealed, and fewer."""
SHOWN = 3
"""Violations of a property that are printed."""


@dataclass(frozen=True)
class Property:
    """`check` yields what is wrong, with the play it was found in."""

    name: str
    says: str
    check: Callable[[Subject], Iterator[str]]
    applies: Callable[[Raw], bool] = lambda raw: True
    """Whether a protocol with this YAML promises it at all."""


@dataclass(frozen=True)
class Finding:
    """Whether a property holds; None where it does not apply."""

    property: Property
    holds: bool | None
    wrong: tuple[str, ...] = ()


@dataclass
class Subject:
    """A protocol, the YAML it was read from, and its plays."""

    protocol: Protocol
    raw: Raw
    seeds: Sequence[int]
    plays: list[tuple[str, Trace]] = field(default_factory=list)
    """(which way of playing, its trace)"""
    unplayed: list[str] = field(default_factory=list)
    """Plays that raised, or did not end."""

    def play_all(self) -> None:
        for seed in self.seeds:
            for way, settings in suite.PLAYS.items():
                for evidence in EVIDENCE:
                    self._play(way, synthetic(self.raw, seed, evidence), seed, settings)

    def _play(self, way: str, task: Task, seed: int, settings: dict[str, Any]) -> None:
        where = f"{way} replies, {len(task.evidence)} statements, seed {seed}"
        try:
            self.plays.append(
                (where, drive(self.protocol, task, seed, Scripted.of(self.raw, seed, **settings)))
            )
        except Exception as error:  # whatever a kind of one's own may raise
            self.unplayed.append(f"{where}: {type(error).__name__}: {error}")


def examine(protocol: Protocol, raw: Raw, seeds: Sequence[int] = range(6)) -> list[Finding]:
    """Every property of `protocol`, which `raw` describes."""
    subject = Subject(protocol, raw, seeds)
    subject.play_all()
    findings = []
    for entry in PROPERTIES:
        if not entry.applies(raw) or (not subject.plays and entry.check is not _ends):
            findings.append(Finding(entry, None))
            continue
        try:
            wrong = tuple(dict.fromkeys(entry.check(subject)))
        except Exception as error:  # whatever a kind of one's own may raise: the property does not hold
            wrong = (f"{type(error).__name__}: {error}",)
        findings.append(Finding(entry, not wrong, wrong))
    return findings


def _ends(subject: Subject) -> Iterator[str]:
    yield from subject.unplayed


def _repeats(subject: Subject) -> Iterator[str]:
    for seed in subject.seeds:
        task = synthetic(subject.raw, seed)
        first, second = (
            drive(subject.protocol, task, seed, Scripted.of(subject.raw, seed, illegal=0.3)) for _ in range(2)
        )
        if first.digest() != second.digest():
            yield f"seed {seed}: two plays with the same seed differ"


def _seats(subject: Subject) -> Iterator[str]:
    declared, asked = set(subject.protocol.roles().items()), set()
    for where, trace in subject.plays:
        for request in trace.requests():
            asked.add((request.seat, request.role))
            if (request.seat, request.role) not in declared:
                yield f"{where}: {request.seat} is asked as {request.role}, which roles() does not declare"
    for seat, role in sorted(declared - asked):
        yield f"{seat} ({role}) is never asked, however it is played"


def _chats(subject: Subject) -> Iterator[str]:
    for where, trace in _with_children(subject):
        said: dict[str, tuple[tuple[str, str], ...]] = {}
        for request, reply in _turns(trace):
            chat = tuple((str(m.speaker), m.text) for m in request.messages)
            speakers = [speaker for speaker, _ in chat if speaker != "system"]
            if speakers != ["user", "assistant"] * (len(speakers) // 2) + ["user"] or any(
                speaker == "system" for speaker, _ in chat[1:]
            ):
                yield f"{where}: {request.seat}'s chat goes {', '.join(speaker for speaker, _ in chat)}"
            before = said.get(request.seat)
            if not request.fresh:
                if before is not None and (
                    chat[: len(before) - 1] != before[:-1] or len(chat) <= len(before)
                ):
                    yield f"{where}: {request.seat}'s chat in {request.phase} does not continue its earlier one"
                said[request.seat] = (*chat, ("assistant", reply.text))


def _once(subject: Subject) -> Iterator[str]:
    for where, trace in subject.plays:
        marks = {*trace.task.evidence}.union(*(traces(reply.text) for _, reply in _all_turns(trace)))
        marks = {mark for mark in marks if mark.startswith("zq") or mark in trace.task.evidence}
        for request in trace.requests():
            heard = "\n".join(m.text for m in request.messages if m.speaker != "assistant")
            if any(heard.count(mark) > 1 for mark in marks if mark in heard):
                yield f"{where}: {request.seat} in {request.phase} hears the same message twice"


def _hidden(subject: Subject) -> Iterator[str]:
    for where, trace in _with_children(subject):
        for request, _ in _turns(trace):
            shown = "\n".join(m.text for m in request.messages)
            for name, hidden in trace.task.hidden.items():
                if hidden.text in shown and request.role not in hidden.roles:
                    yield f"{where}: {request.seat} in {request.phase} sees hidden {name!r}"
    for seed in subject.seeds:
        yield from suite.hidden_shows(subject.protocol, subject.raw, seed)


def _answer(subject: Subject) -> Iterator[str]:
    for seed in subject.seeds:
        yield from suite.answer_shows(subject.protocol, subject.raw, seed)
    for where, trace in _with_children(subject):
        answer = trace.task.answer
        if answer and answer not in trace.task.choices:
            for request, _ in _turns(trace):
                if any(answer in m.text for m in request.messages if m.speaker != "assistant"):
                    yield f"{where}: {request.seat} in {request.phase} sees the answer"


def _private(subject: Subject) -> Iterator[str]:
    for seed in subject.seeds:
        yield from (
            f"seed {seed}: {wrong}" for wrong in suite.private_shows(subject.protocol, subject.raw, seed)
        )


def _first(subject: Subject) -> Iterator[str]:
    for seed in subject.seeds:
        yield from suite.order_violations(subject.protocol, subject.raw, seed)


def _cards(subject: Subject) -> Iterator[str]:
    for seed in subject.seeds:
        yield from (f"seed {seed}: {wrong}" for wrong in suite.card_shows(subject.protocol, subject.raw, seed))


def _sides(subject: Subject) -> Iterator[str]:
    for seed in subject.seeds:
        yield from suite.side_shows(subject.protocol, subject.raw, seed)


def _choices(subject: Subject) -> Iterator[str]:
    for seed in subject.seeds:
        yield from choice_shows(subject.protocol, subject.raw, seed)


class _Undecided(Markers):
    """A verifier that never comes to a result."""

    def __init__(self) -> None:
        self.asked = False

    def check(self, task: Task, answer: str) -> bool:
        self.asked = True
        raise VerifierError("no verdict")


def _missing(subject: Subject) -> Iterator[str]:
    for where, trace in _with_children(subject):
        for judgment in trace.outcome.judgments:
            if not judgment.valid and (
                judgment.scores or (judgment.decides and trace.outcome.status == "ok")
            ):
                yield f"{where}: {judgment.seat}'s verdict could not be read, and yet it counts"
    for seed in subject.seeds:
        domain = _Undecided()
        task = replace(synthetic(subject.raw, seed), domain=domain)
        trace = drive(subject.protocol, task, seed, player := Scripted.of(subject.raw, seed, unreadable=1.0))
        judged = domain.asked or any(
            request.read or request.phase in player.votes or asks_vote(request) or asks_grades(request)
            for request in trace.requests()
        )
        outcome = trace.outcome
        if judged and (outcome.status != "invalid" or outcome.score is not None or outcome.rewards):
            yield f"seed {seed}: no verdict could be read, and the play is {outcome.status} with score {outcome.score}"


def _pay(subject: Subject) -> Iterator[str]:
    for where, trace in _with_children(subject):
        outcome = trace.outcome
        taken = {(request.seat, request.turn) for request, _ in _turns(trace)}
        if outcome.status != "ok" and (outcome.rewards or outcome.score is not None):
            yield f"{where}: a play that is {outcome.status} pays or scores"
        if outcome.status != "ok" and not outcome.reason:
            yield f"{where}: a play that is {outcome.status} does not say why"
        if outcome.score is not None and not 0.0 <= outcome.score <= 1.0:
            yield f"{where}: score {outcome.score} is not in [0, 1]"
        for reward in outcome.rewards:
            known = (reward.seat, reward.turn) in taken if reward.turn is not None else any(
                seat == reward.seat for seat, _ in taken)  # fmt: skip
            if not math.isfinite(reward.value) or not known:
                yield f"{where}: reward {reward.name} of {reward.value} for {reward.seat}, turn {reward.turn}"


def _zero_sum(subject: Subject) -> Iterator[str]:
    for where, trace in subject.plays:
        total = math.fsum(reward.value for reward in trace.outcome.rewards)
        if abs(total) > 1e-9:
            yield f"{where}: zero_sum is promised, and the rewards sum to {total:g}"


def _as_written(subject: Subject) -> Iterator[str]:
    for where, trace in subject.plays:
        yield from (f"{where}: {wrong}" for wrong in suite.check_trace(subject.raw, trace))


def _turns(trace: Trace) -> Iterator[tuple[TurnRequest, Reply]]:
    """The turns of a play, without those of its sub-plays."""
    for asks in trace.rounds:
        for ask, answer in asks:
            if isinstance(ask, TurnRequest) and isinstance(answer, Reply):
                yield ask, answer


def _all_turns(trace: Trace) -> Iterator[tuple[TurnRequest, Reply]]:
    yield from _turns(trace)
    for child in trace.children:
        yield from _all_turns(child)


def _with_children(subject: Subject) -> Iterator[tuple[str, Trace]]:
    todo = list(subject.plays)
    while todo:
        where, trace = todo.pop(0)
        yield where, trace
        todo += [(f"{where}, sub-play", child) for child in trace.children]


PROPERTIES = (
    Property("ends", "every play comes to an end, whatever is said", _ends),
    Property("repeatable", "the same seed and replies give the same play", _repeats),
    Property("seats", "every declared seat is asked, under its own role, and no other", _seats),
    Property("chats", "a seat's chat only grows, user and assistant in turn", _chats),
    Property("once", "nobody hears the same message twice", _once),
    Property("hidden", "hidden material reaches only the roles that may see it", _hidden),
    Property("answer", "the right answer does not show in what anyone is asked", _answer),
    Property(
        "private",
        "what is written in private parts reaches nobody else",
        _private,
        lambda raw: bool(parts_of(raw)),
    ),
    Property(
        "cards", "what a player of a game holds shows to that player alone", _cards, lambda raw: raw["kind"] == "game"
    ),
    Property("sides", "a judge of evidence cannot tell who argues which side", _sides, suite.judges_evidence),
    Property(
        "commitments",
        "what a seat commits to shows to those alone who hear it",
        _choices,
        lambda raw: any(phase.get("commits") for phase in phases_of(raw)),
    ),
    Property(
        "speakers",
        "in a shuffled phase nobody is always first",
        _first,
        lambda raw: (raw["kind"] == "game" and raw.get("order") == "shuffled")
        or any(phase.get("speakers") == "shuffled" for phase in phases_of(raw)),
    ),
    Property(
        "missing data",
        "a verdict or vote that cannot be read makes the play invalid, never a score",
        _missing,
    ),
    Property("rewards", "rewards are finite and for turns that were taken; invalid plays pay nothing", _pay),
    Property(
        "zero-sum", "rewards sum to 0 as the file promises", _zero_sum, lambda raw: bool(raw.get("zero_sum"))
    ),
    Property(
        "as written",
        "requests, beliefs and scores are the file's, word for word",
        _as_written,
        suite.has_oracle,
    ),
)


def report(findings: Sequence[Finding]) -> str:
    """One line per property; under one that does not hold, the first violations."""
    lines = []
    for found in findings:
        word = {True: "holds", False: "FAILS", None: "-"}[found.holds]
        lines.append(f"{word:6} {found.property.name:13} {found.property.says}")
        lines += [f"       {'':13} {wrong}" for wrong in found.wrong[:SHOWN]]
        if len(found.wrong) > SHOWN:
            lines.append(f"       {'':13} and {len(found.wrong) - SHOWN} more")
    return "\n".join(lines)
