"""Mistakes in the definition of a phased protocol, each as (path of the YAML key, message with what is valid)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

from protocols.judging import judge_problems
from protocols.rewards import REWARDS, Source, reward_problems
from protocols.speech import words
from protocols.templates import template_problems

if TYPE_CHECKING:
    from protocols.phased import Phase, Phased

MAX_REPEAT = 1000
"""More rounds than this of one phase are taken for a loop without an end."""

_PART = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")

Problem = tuple[str, str]


def phased_problems(rules: Phased) -> list[Problem]:
    found = [*_seat_problems(rules), *_prompt_problems(rules)]
    for i, phase in enumerate(rules.phases):
        found += _phase_problems(rules, phase, f"phases.{i}")
    if not rules.phases:
        found.append(("phases", "needs at least one phase"))
    doubles = {p.name for p in rules.phases if [q.name for q in rules.phases].count(p.name) > 1}
    found += [("phases", f"two phases are called {name!r}; names must differ") for name in sorted(doubles)]
    if rules.judge is not None:
        found += judge_problems(rules.judge, rules.seats, {s for phase in rules.phases for s in phase.seats})
    return [*found, *_vote_problems(rules), *_listen_problems(rules), *_pay_problems(rules)]


def _judges(rules: Phased) -> tuple[str, ...]:
    return () if rules.judge is None else rules.judge.seats


def _seat_problems(rules: Phased) -> Iterable[Problem]:
    judges = _judges(rules)
    judging = {rules.seats[seat] for seat in judges if seat in rules.seats}
    speaking = {seat for phase in rules.phases for seat in phase.seats}
    labels = 2 if rules.judge is None else len(rules.judge.labels)
    for seat, role in rules.seats.items():
        if seat in ("all", "") or role in ("all", ""):
            yield f"seats.{seat}", "'all' and the empty name are not names of seats or roles"
        if seat not in speaking and seat not in judges:
            yield f"seats.{seat}", f"seat {seat!r} never speaks: name it in a phase, or as a judge"
        if seat != role and seat in rules.seats.values():
            yield (
                f"seats.{seat}",
                f"{seat!r} is a seat and a role of another seat; visible_to could mean both",
            )
        if seat not in judges and role in judging:
            yield f"seats.{seat}", f"{seat!r} shares the role {role!r} with a judge; give it another role"
    for seat, side in rules.sides.items():
        if seat not in rules.seats:
            yield f"sides.{seat}", _no("seat", seat, rules.seats)
        elif seat in judges:
            yield f"sides.{seat}", "a judge argues no side"
        if not 0 <= side < labels:
            yield f"sides.{seat}", f"side {side} is no claim; valid: {', '.join(map(str, range(labels)))}"


def _prompt_problems(rules: Phased) -> Iterable[Problem]:
    judges = _judges(rules)
    judging = {rules.seats[seat] for seat in judges if seat in rules.seats}
    speaking = [role for seat, role in rules.seats.items() if seat not in judges]
    for role, prompt in rules.prompts.items():
        path = f"prompts.{role}"
        if role in judging:
            yield path, "the judge is prompted in the judge section"
            if prompt.hidden:
                yield f"{path}.hidden", "a judge is shown no hidden material"
            continue
        if role not in speaking:
            yield path, _no("role", role, dict.fromkeys(speaking))
            continue
        valid = _names(rules, role)
        for name in prompt.hidden:
            if name in _BUILT_IN:
                yield (
                    f"{path}.hidden",
                    f"{name!r} is already a name of its own; call the hidden material otherwise",
                )
        yield from template_problems(f"{path}.system", prompt.system, valid)
        yield from template_problems(f"{path}.opening", prompt.opening, valid)
        yield from template_problems(f"{path}.heard", prompt.heard, ("seat", "role", "text", "quoted"))
    for role in dict.fromkeys(speaking):
        if role not in rules.prompts:
            yield (
                "prompts",
                f"role {role!r} has no prompts; valid: an entry for each of {', '.join(dict.fromkeys(speaking))}",
            )


def _phase_problems(rules: Phased, phase: Phase, path: str) -> Iterable[Problem]:
    if not phase.name or phase.name == "judge":
        yield f"{path}.name", "needs a name other than 'judge', which is the judge's own"
    for seat in phase.seats:
        if seat not in rules.seats:
            yield f"{path}.seats", _no("seat", seat, rules.seats)
        elif rules.seats[seat] in rules.prompts:
            yield from template_problems(f"{path}.prompt", phase.prompt, _names(rules, rules.seats[seat]))
    if not phase.seats or phase.repeat < 1:
        yield (path, f"phase {phase.name!r} is never reached: it needs seats and repeat of at least 1")
    if phase.repeat > MAX_REPEAT:
        yield (
            f"{path}.repeat",
            f"{phase.repeat} rounds are as good as an endless loop; valid: 1 to {MAX_REPEAT}",
        )
    together = phase.order == "simultaneous"
    if together and len(set(phase.seats)) < len(phase.seats):
        yield f"{path}.seats", "a seat cannot speak twice at once"
    if together and phase.moves == "evidence" and len(phase.seats) > 1:
        yield f"{path}.order", "seats that reveal at once could clash on one statement; valid: sequential"
    yield from _order_problems(phase, path)
    yield from _speech_problems(phase, path)
    yield from _stop_problems(phase, f"{path}.stop")
    known = {"all", *rules.seats, *rules.seats.values()}
    for who in phase.visible_to:
        if who not in known:
            yield f"{path}.visible_to", _no("seat or role", who, sorted(known))
    if phase.moves == "evidence" and "all" not in phase.visible_to:
        yield f"{path}.visible_to", "a reveal is public (it is not legal again for anyone); valid: [all]"
    if phase.moves == "free" and not phase.enforce:
        yield f"{path}.enforce", "has no effect on free text; valid with moves: evidence or choices"
    if phase.max_tokens is not None and phase.max_tokens < 1:
        yield f"{path}.max_tokens", "must be at least 1"
    if phase.temperature is not None and phase.temperature < 0:
        yield f"{path}.temperature", "must be at least 0"


def _order_problems(phase: Phase, path: str) -> Iterable[Problem]:
    """Mistakes in who speaks first."""
    path = f"{path}.speakers"
    if phase.speakers == "fixed":
        return
    if phase.order == "simultaneous" or len(phase.seats) < 2:
        yield path, f"{phase.speakers} has no effect where seats do not take turns; valid: fixed"
    elif phase.speakers == "alternating" and phase.repeat < 2:
        yield path, "alternating has no effect without a second repeat; valid: fixed, shuffled"
    elif phase.speakers == "shuffled" and len(set(phase.seats)) < len(phase.seats):
        yield path, "a seat that speaks twice in a round has no one place; valid: fixed, alternating"


def _speech_problems(phase: Phase, path: str) -> Iterable[Problem]:
    """Mistakes in what is heard of a turn."""
    for name in phase.parts:
        if not _PART.fullmatch(name):
            yield f"{path}.parts", f"{name!r} cannot stand in a tag; valid: letters, digits, - and _"
    if phase.parts and "shown" not in phase.parts.values():
        yield f"{path}.parts", "nothing is shown; valid: at least one part that is shown (or visible_to: [])"
    if phase.parts and phase.moves != "free":
        yield (
            f"{path}.parts",
            f"a move is one statement as it stands (moves: {phase.moves}); valid: moves: free",
        )
    limits = {"min_words": phase.min_words, "soft_words": phase.soft_words, "max_words": phase.max_words}
    given = [(name, limit) for name, limit in limits.items() if limit is not None]
    for name, limit in given:
        if limit < 1:
            yield f"{path}.{name}", "must be at least 1"
        if phase.moves != "free":
            yield f"{path}.{name}", f"has no effect with moves: {phase.moves}; valid with moves: free"
    for (low, fewer), (high, more) in pairwise(given):
        if fewer > more:
            yield f"{path}.{low}", f"{fewer} words are more than {high}: {more}; valid: 1 to {more}"


def _stop_problems(phase: Phase, path: str) -> Iterable[Problem]:
    """Mistakes in how a phase may end early."""
    stop = phase.stop
    if stop is None:
        return
    if stop.seat not in phase.seats:
        yield f"{path}.seat", _no("seat in this phase", stop.seat, phase.seats)
    if not stop.says.strip() or stop.says != stop.says.strip() or len(stop.says.splitlines()) > 1:
        yield f"{path}.says", "must be one line without space around it, for example DONE"
    if phase.moves != "free":
        yield path, f"a seat that picks a move cannot say {stop.says!r}; valid with moves: free"
    if phase.max_words is not None and words(stop.says) > phase.max_words:
        yield f"{path}.says", f"is longer than max_words: {phase.max_words}, so nobody would ever hear it"
    if phase.repeat == 1 and (phase.order == "simultaneous" or phase.seats[-1:] == [stop.seat]):
        yield path, "has no effect on a turn that is the last of its phase anyway; raise repeat"


def _vote_problems(rules: Phased) -> Iterable[Problem]:
    choosing = [phase.name for phase in rules.phases if phase.moves == "choices"]
    if rules.vote and rules.judge is not None:
        yield "vote", "the judge decides, and so the vote has no effect; valid: one of the two"
    if rules.vote and rules.vote not in choosing:
        yield "vote", _no("phase with moves: choices", rules.vote, choosing)


def _listen_problems(rules: Phased) -> Iterable[Problem]:
    speaking = dict.fromkeys(seat for phase in rules.phases for seat in phase.seats)
    for seat, heard in rules.listens.items():
        if seat not in rules.seats:
            yield f"listens.{seat}", _no("seat", seat, rules.seats)
        for other in heard:
            if other not in speaking or other == seat:
                others = [name for name in speaking if name != seat]
                yield f"listens.{seat}", _no("other seat that speaks", other, others)
    for phase in rules.phases:
        deaf = [s for s in rules.listens if {*phase.seats} - {s, *rules.listens[s]}]
        if phase.moves == "evidence" and deaf:
            yield (
                f"listens.{deaf[0]}",
                f"reveals are public, and {deaf[0]!r} would miss some of {phase.name!r}",
            )


def _pay_problems(rules: Phased) -> Iterable[Problem]:
    has: set[Source] = {"turns"}
    if any(phase.moves != "free" for phase in rules.phases):
        has.add("legal moves")
    if any(phase.moves == "choices" for phase in rules.phases):
        has.add("choices")
    limited = [i for i, phase in enumerate(rules.phases) if phase.soft_words or phase.min_words]
    if limited:
        has.add("word limits")
    if limited and all(term.name != "length" for term in rules.rewards):
        name = "soft_words" if rules.phases[limited[0]].soft_words else "min_words"
        yield f"phases.{limited[0]}.{name}", "has no effect without the reward 'length': add {name: length}"
    if rules.judge is not None:
        has.add("final belief")
        if rules.judge.when == "each_turn":
            has.add("beliefs")
    yield from reward_problems(rules.rewards, has, rules.seats)
    for i, term in enumerate(rules.rewards):
        rule = REWARDS.get(term.name)
        if rule is not None and rule.needs in ("beliefs", "final belief") and not rules.sides:
            yield f"rewards.{i}.name", f"reward {term.name!r} pays the seats that argue a side: set sides"
        if rules.zero_sum and rule is not None and (not rule.zero_sum or term.to):
            valid = ", ".join(sorted(name for name, r in REWARDS.items() if r.zero_sum and r.needs in has))
            yield f"rewards.{i}", f"zero_sum: true is promised; valid: {valid}, paid to all"
    if rules.zero_sum and (
        rules.judge is None or len(rules.judge.labels) != 2 or {*rules.sides.values()} != {0, 1}
    ):
        yield "zero_sum", "needs a judge with two labels and a seat on each side (0 and 1)"


_BUILT_IN = ("question", "choices", "seat", "role", "claim", "other")


def _names(rules: Phased, role: str) -> list[str]:
    """The placeholders that prompts of this role may use."""
    sided = all(seat in rules.sides for seat, r in rules.seats.items() if r == role)
    return [*(_BUILT_IN if sided else _BUILT_IN[:4]), *rules.prompts[role].hidden]


def _no(what: str, name: str, valid: Iterable[str]) -> str:
    return f"there is no {what} {name!r}; valid: {', '.join(valid) or 'none'}"
