"""What a protocol does, seen from outside: whose turn it is when, and who gets to see it. For `protocol show`.

The protocol is driven with scripted players that say unique marks, on a task whose every text is a mark, and a seat has
seen a text if its mark stands in a request to that seat. A reply picked from a list has no mark of its own: there the
play is driven again with another pick, and who is asked something else has seen it. The definition is read for how
replies are written alone (their parts, the word that ends a phase); what comes of it is seen in the play.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from protocols.base import Protocol, SubPlay
from protocols.contract.drive import (
    Trace,
    asks_grades,
    asks_vote,
    drive,
    grades_of,
    nested,
    parts_of,
    words_of,
)
from protocols.contract.tasks import Markers, synthetic
from protocols.contract.text import Raw
from protocols.errors import UserError
from protocols.types import Reply, Task, TurnRequest

CHARS_PER_TOKEN = 4
"""Rule of thumb for English text."""
MAX_TOKENS = 64
"""Length of a reply that the protocol does not limit: the default of `policies.NAME.max_tokens`."""
SEED = 0
ORDERS = 16
"""Seeds on which an order that is drawn shows: two seats are the same way round on all once in 2^15."""

Place = tuple[tuple[str, ...], int, int]
"""A turn: path of the sub-play, yield within it, place within the yield."""
Turns = list[tuple[Place, TurnRequest, Reply]]


class Unplayable(UserError):
    """A protocol that raises when it is played on a made-up task."""


@dataclass(frozen=True)
class Step:
    """One turn. `seen`: seat -> whether it has seen the reply by its next turns; None where it has none."""

    number: str
    """Turns of equal number happen at once. 1, 2, ...; those of sub-plays in round 2 are 2.1, 2.2, ..."""
    seat: str
    role: str
    phase: str
    how: str
    """writes, picks or judges."""
    seen: dict[str, bool | None]
    fork: int = 1
    """How many equal sub-plays run side by side, of which this is a turn of one."""
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """seat -> the parts of the reply that it has seen, where these are not all."""
    ends: bool = False
    """Whether turns fall away if the seat says so here."""


@dataclass
class Load:
    """Generations of one role in a whole play, and their tokens: an estimate (`CHARS_PER_TOKEN`), replies at their
    longest, without the length of the task's own texts."""

    turns: int = 0
    written: int = 0
    """Tokens of replies."""
    prompt: int = 0
    """Tokens of all prompts, each turn's anew."""
    fresh: int = 0
    """Those that do not continue the seat's previous prompt: what is left with a prefix cache."""


@dataclass(frozen=True)
class Sketch:
    """The picture of one play in which everybody does what is legal."""

    name: str
    kind: str
    seats: dict[str, str]
    """seat -> role"""
    steps: tuple[Step, ...]
    material: dict[str, dict[str, bool]]
    """What of the task is shown to whom: question, claims, evidence, proposals and hidden material by name."""
    loads: dict[str, Load] = field(default_factory=dict)
    """role -> work"""
    drawn: bool = False
    """Whether another play has another order of turns: then this is one of them."""
    at_most: bool = False
    """Whether a play may be shorter: a phase or a loop may end early."""


def sketch(protocol: Protocol, raw: Raw) -> Sketch:
    """Drives `protocol`, which `raw` (its YAML) describes, on a task made for the purpose. Raises `Unplayable`."""
    task = replace(synthetic(raw, SEED), domain=_Derived())
    try:
        trace = drive(protocol, task, SEED, _Marked(raw))
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise Unplayable(f"protocol {protocol.name} cannot be played on a made-up task: {said}") from error
    turns = list(_turns(trace))
    seats = dict(protocol.roles())
    forks = dict(_forks(trace))
    steps = []
    for index, (place, request, reply) in enumerate(turns):
        if any(not part.endswith("#0") for part in place[0]):
            continue  # sub-plays of one yield are alike: the first stands for all
        own_mark = not request.choices or reply.text in task.evidence
        twin = None if own_mark else list(_turns(drive(protocol, task, SEED, _Marked(raw, other=index))))
        judges = request.read or asks_vote(request) or asks_grades(request)
        how = "judges" if judges else "picks" if request.choices else "writes"
        seen = {seat: _seen(turns, twin, index, seat) for seat in seats if seat != request.seat}
        fork = forks.get(place[0], 1)
        number = ".".join(str(int(part.partition("#")[0]) + 1) for part in (*place[0], str(place[1])))
        parts = _parts_seen(raw, turns, index, seats)
        ends = _ends(protocol, raw, task, turns, index)
        steps.append(Step(number, request.seat, request.role, request.phase, how, seen, fork, parts, ends))
    return Sketch(
        protocol.name,
        str(raw["kind"]),
        seats,
        tuple(steps),
        _material(task, turns, seats),
        _loads(protocol, raw, task),
        len({_order(drive(protocol, task, seed, _Marked(raw))) for seed in range(ORDERS)}) > 1,
        any(block.get("stop") for each in nested(raw) for key in ("phases", "loops") for block in each.get(key) or ()),
    )


def _order(trace: Trace) -> tuple[tuple[str, str], ...]:
    return tuple((request.seat, request.phase) for _, request, _ in _turns(trace))


def _parts_seen(raw: Raw, turns: Turns, index: int, seats: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """seat -> the parts of turn `index` that it has seen, for seats that have seen some and not all."""
    request, names = turns[index][1], list(parts_of(raw).get(turns[index][1].phase, ()))
    found = {}
    for seat in seats:
        told = "\n".join(_told(turns[i][1]) for i in _asked(turns, index, seat) or ())
        seen = tuple(name for place, name in enumerate(names) if _mark(index, place) in told)
        if seat != request.seat and 0 < len(seen) < len(names):
            found[seat] = seen
    return found


def _ends(protocol: Protocol, raw: Raw, task: Task, turns: Turns, index: int) -> bool:
    """Whether the play is shorter if the word that ends the phase is said in turn `index`."""
    words = {word for _, word in words_of(raw).get(turns[index][1].phase, ())}
    ended = (drive(protocol, task, SEED, _Marked(raw, says=(index, word))) for word in sorted(words))
    return any(len(list(_turns(play))) < len(turns) for play in ended)


class _Derived(Markers):
    """Tasks made from a proposal, of which everything may bear its traces: the claims too."""

    def derive(self, task: Task, proposal: str) -> Task:
        child = super().derive(task, proposal)
        claims = {claim: f"{claim} {proposal}" for claim in task.choices}
        return replace(
            child, choices=tuple(claims.values()), answer=claims.get(child.answer or "", child.answer)
        )


class _Marked:
    """Says what no one else says: a mark of its own in free text, a statement that nobody has picked from a list.

    `other`: the index of one turn that is answered otherwise. `says`: the index of one turn, and what is said in it.
    `longest`: replies are as long as they may be, and all that they can hold is in what others hear.
    """

    def __init__(
        self, raw: Raw, other: int = -1, says: tuple[int, str] = (-1, ""), longest: bool = False
    ) -> None:
        self.parts, self.grades = parts_of(raw), grades_of(raw)
        self.other, self.says, self.longest = other, says, longest
        self.count = self.picks = 0

    def __call__(self, request: TurnRequest) -> Reply:
        index, self.count = self.count, self.count + 1
        changed = index == self.other
        if request.read:
            first = 0.75 if changed else 1 / len(request.choices) - 0.04  # not so sure that a phase would end
            rest = (1 - first) / max(1, len(request.choices) - 1)
            probs = (first, *[rest] * (len(request.choices) - 1))
            return Reply(request.choices[probs.index(max(probs))], probs)
        room = CHARS_PER_TOKEN * (request.max_tokens or MAX_TOKENS) if self.longest else 0
        if request.choices:
            turn, self.picks = self.picks, self.picks + (not asks_vote(request))  # nobody agrees: no phase would end
            pick = request.choices[((turn if not asks_vote(request) else 0) - changed) % len(request.choices)]
            return Reply(f"{_filler(room - len(pick) - 1)}\n{pick}" if asks_vote(request) and room else pick)
        if asks_grades(request) and request.seat in self.grades:
            names, low, high = self.grades[request.seat]
            line = json.dumps(dict.fromkeys(names, high if changed else low))
            return Reply(f"{_filler(room - len(line) - 1)}\n{line}" if room else line)
        parts = self.parts.get(request.phase, {"": "shown"})
        texts = [
            self.says[1] if index == self.says[0] else _mark(index, place) for place in range(len(parts))
        ]
        said = [f"<{name}>{text}</{name}>" if name else text for name, text in zip(parts, texts)]
        heard = [*parts.values()].index("shown")
        said[heard] = said[heard].replace(texts[heard], texts[heard] + _filler(room - sum(map(len, said))))
        return Reply("".join(said))


def _filler(length: int) -> str:
    return (" and so on" * (length // 10 + 1))[: max(0, length)]


def _mark(index: int, part: int = 0) -> str:
    return f"zq{index:05d}said{part:02d}"


def _turns(trace: Trace, path: tuple[str, ...] = ()) -> Iterator[tuple[Place, TurnRequest, Reply]]:
    """Every turn, sub-plays at the place where they happen, in the order in which `drive` asks."""
    children = iter(trace.children)
    for number, asks in enumerate(trace.rounds):
        plays = 0
        for place, (ask, answer) in enumerate(asks):
            if isinstance(ask, SubPlay):
                yield from _turns(next(children), (*path, f"{number}#{plays}"))
                plays += 1
            elif isinstance(answer, Reply):
                yield (path, number, place), ask, answer


def _forks(trace: Trace, path: tuple[str, ...] = (), above: int = 1) -> Iterator[tuple[tuple[str, ...], int]]:
    """path of the first of some sub-plays of one yield -> how many they are, times those they are part of."""
    children = iter(trace.children)
    for number, asks in enumerate(trace.rounds):
        plays = [next(children) for ask, _ in asks if isinstance(ask, SubPlay)]
        if plays:
            first = (*path, f"{number}#0")
            yield first, above * len(plays)
            yield from _forks(plays[0], first, above * len(plays))


def _told(request: TurnRequest) -> str:
    return "\n".join(message.text for message in request.messages if message.speaker != "assistant")


def _asked(turns: Turns, index: int, seat: str) -> list[int] | None:
    """The turns of `seat` after the round of turn `index`; None where there are none."""
    path, number, _ = turns[index][0]
    later = [
        i for i, (place, request, _) in enumerate(turns)
        if i > index and request.seat == seat and place[:2] != (path, number)
        and (place[0][: len(path)] == path or path[: len(place[0])] == place[0])
    ]  # fmt: skip
    return later or None


def _seen(turns: Turns, twin: Turns | None, index: int, seat: str) -> bool | None:
    """`twin`: the turns of a play in which turn `index` was answered otherwise; None for a reply with a mark."""
    later = _asked(turns, index, seat)
    if later is None:
        return None
    if twin is None:
        reply = turns[index][2].text
        marks = re.findall(r"zq\d{5}said\d+", reply) or [reply]
        return any(mark in _told(turns[i][1]) for i in later for mark in marks)
    return any(i >= len(twin) or _told(twin[i][1]) != _told(turns[i][1]) for i in later)


def _material(task: Task, turns: Turns, seats: dict[str, str]) -> dict[str, dict[str, bool]]:
    """Only what the play shows to somebody: a mark that stands in the seat's requests before anybody could say it."""
    texts = {
        "question": [task.question], "claims": list(task.choices), "proposals": list(task.proposals),
        **{f"hidden {name}": [hidden.text] for name, hidden in task.hidden.items() if hidden.roles},
    }  # fmt: skip
    told = {
        seat: "\n".join(_told(request) for _, request, _ in turns if request.seat == seat) for seat in seats
    }
    shown = {
        name: {seat: any(mark in told[seat] for mark in marks) for seat in seats}
        for name, marks in texts.items()
    }
    return {name: row for name, row in shown.items() if name == "question" or any(row.values())}


def _loads(protocol: Protocol, raw: Raw, task: Task) -> dict[str, Load]:
    """Work of a play with the longest replies."""
    loads: dict[str, Load] = {}
    before: dict[tuple[tuple[str, ...], str], int] = {}
    for (path, _, _), request, reply in _turns(drive(protocol, task, SEED, _Marked(raw, longest=True))):
        load = loads.setdefault(request.role, Load())
        size = _tokens(sum(len(message.text) for message in request.messages))
        known = 0 if request.fresh else before.get((path, request.seat), 0)
        load.turns += 1
        load.prompt += size
        load.fresh += max(0, size - known)
        load.written += 0 if request.read else _tokens(len(reply.text))
        if not request.fresh:
            before[path, request.seat] = size
    return loads


def _tokens(chars: int) -> int:
    return -(-chars // CHARS_PER_TOKEN)
