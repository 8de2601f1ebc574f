"""Mistakes in the definition of a phased protocol, each as (path of the YAML key, message with what is valid)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

from protocols.judges.reading import judge_problems
from protocols.phased.checks_loops import MAX_REPEAT, loop_problems
from protocols.phased.checks_sides import name_problems, side_problems, sided_at
from protocols.phased.checks_subplays import sub_play_problems
from protocols.phased.rules import Phase, PhasedRules, Stop
from protocols.rewards.record import Source
from protocols.rewards.registry import REWARDS, reward_problems
from protocols.speech import words
from protocols.templates import names, template_problems

_PART = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")

Problem = tuple[str, str]


def phased_problems(rules: PhasedRules) -> list[Problem]:
    found = [*_seat_problems(rules), *_prompt_problems(rules)]
    for i, phase in enumerate(rules.phases):
        found += _phase_problems(rules, phase, i)
    if not rules.phases:
        found.append(("phases", "needs at least one phase"))
    doubles = {p.name for p in rules.phases if [q.name for q in rules.phases].count(p.name) > 1}
    found += [("phases", f"two phases are called {name!r}; names must differ") for name in sorted(doubles)]
    if rules.judge is not None:
        speaking = {s for phase in rules.phases for s in phase.seats}
        found += judge_problems(rules.judge, rules.seats, speaking, _shared(rules))
    found += [*loop_problems(rules), *_when_problems(rules), *_principle_problems(rules), *name_problems(rules)]
    found += sub_play_problems(rules)
    found += [*_vote_problems(rules), *_listen_problems(rules), *side_problems(rules)]
    return [*found, *_pay_problems(rules)]


def _judges(rules: PhasedRules) -> tuple[str, ...]:
    return () if rules.judge is None else rules.judge.seats


def _seat_problems(rules: PhasedRules) -> Iterable[Problem]:
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


def _prompt_problems(rules: PhasedRules) -> Iterable[Problem]:
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
            if name in (*_BUILT_IN, "principles", "principle"):
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


def _phase_problems(rules: PhasedRules, phase: Phase, index: int) -> Iterable[Problem]:
    path = f"phases.{index}"
    if not phase.name or phase.name == "judge":
        yield f"{path}.name", "needs a name other than 'judge', which is the judge's own"
    for seat in phase.seats:
        if seat not in rules.seats:
            yield f"{path}.seats", _no("seat", seat, rules.seats)
        elif rules.seats[seat] in rules.prompts:
            valid = _names(rules, rules.seats[seat], sided_at(rules, [seat], index))
            yield from template_problems(f"{path}.prompt", phase.prompt, valid)
    if not phase.seats or phase.repeat < 1:
        speaking = ", ".join(seat for seat in rules.seats if seat not in _judges(rules))
        message = f"phase {phase.name!r} is never reached: it needs seats and repeat of at least 1"
        yield path, f"{message}; valid: seats out of {speaking}, repeat: 1 to {MAX_REPEAT}"
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
    yield from _order_problems(phase, path, phase.repeat > 1 or phase.name in rules.loop_of)
    yield from _speech_problems(phase, path)
    yield from _stop_problems(rules, phase, index)
    if phase.quotes and phase.moves != "free":
        yield f"{path}.quotes", f"has no effect with moves: {phase.moves}; valid with moves: free"
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


def _order_problems(phase: Phase, path: str, again: bool) -> Iterable[Problem]:
    """Mistakes in who speaks first. `again`: whether the phase has a second round."""
    path = f"{path}.speakers"
    if phase.speakers == "fixed":
        return
    if phase.order == "simultaneous" or len(phase.seats) < 2:
        yield path, f"{phase.speakers} has no effect where seats do not take turns; valid: fixed"
    elif phase.speakers == "alternating" and not again:
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


def _stop_problems(rules: PhasedRules, phase: Phase, index: int) -> Iterable[Problem]:
    """Mistakes in how a phase may end early."""
    stop, path = phase.stop, f"phases.{index}.stop"
    if stop is None:
        return
    if not (stop.seat or stop.says or stop.agreed or stop.belief_above is not None):
        yield path, "says nothing of when; valid: seat with says, agreed, belief_above"
    yield from _condition_problems(rules, stop, index)
    if stop.seat or stop.says:
        yield from _word_problems(phase, stop, path)
    elif phase.repeat == 1 and (phase.order == "simultaneous" or len(phase.seats) == 1):
        yield path, "has no effect on a turn that is the last of its phase anyway; raise repeat"


def _condition_problems(rules: PhasedRules, stop: Stop, index: int) -> Iterable[Problem]:
    path, phase = f"phases.{index}.stop", rules.phases[index]
    chosen = {seat for p in rules.phases[: index + 1] if p.moves == "choices" for seat in p.seats}
    silent = [seat for seat in phase.seats if seat not in chosen]
    if stop.agreed and silent:
        yield f"{path}.agreed", f"{silent[0]!r} has chosen nothing by then (moves: choices) to agree with others in"
    if stop.agreed and len({*phase.seats}) < 2:
        yield f"{path}.agreed", "one seat always agrees with itself; valid with two or more"
    if stop.belief_above is None:
        return
    if not 0 < stop.belief_above < 1:
        yield f"{path}.belief_above", "must be above 0 and below 1"
    if rules.judge is None or rules.judge.when != "each_turn" or rules.judge.graded:
        yield f"{path}.belief_above", "needs a judge of claims who is asked after each turn (judge.when: each_turn)"


def _word_problems(phase: Phase, stop: Stop, path: str) -> Iterable[Problem]:
    """Mistakes in the word by which a seat ends a phase."""
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


def _vote_problems(rules: PhasedRules) -> Iterable[Problem]:
    choosing = [phase.name for phase in rules.phases if phase.moves == "choices"]
    if rules.vote and rules.judge is not None:
        yield "vote", "the judge decides, and so the vote has no effect; valid: one of the two"
    if rules.vote and rules.vote not in choosing:
        yield "vote", _no("phase with moves: choices", rules.vote, choosing)
    sure = [phase.name for phase in rules.phases if phase.moves == "confidence"]
    if rules.vote_weights and not rules.vote:
        yield "vote_weights", "has no effect without a vote; valid with vote"
    if rules.vote_weights and rules.vote_weights not in sure:
        yield "vote_weights", _no("phase with moves: confidence", rules.vote_weights, sure)


def _when_problems(rules: PhasedRules) -> Iterable[Problem]:
    """Mistakes in when the judge is asked."""
    judge, phases = rules.judge, [phase.name for phase in rules.phases]
    if judge is None:
        return
    if judge.after and judge.when != "phases":
        yield "judge.after", f"has no effect with when: {judge.when}; valid with when: phases"
    if judge.when == "phases" and not judge.after:
        yield "judge.after", f"needs the phases after which the judge is asked; valid: {', '.join(phases)}"
    for name in judge.after:
        if name not in phases or judge.after.count(name) > 1:
            yield "judge.after", _no("(other) phase", name, phases)


def _shared(rules: PhasedRules) -> tuple[str, ...]:
    """Placeholders that every prompt may use."""
    return ("principles", "principle") if rules.principles else ()


def _principle_problems(rules: PhasedRules) -> Iterable[Problem]:
    if not rules.principles:
        return
    texts = [phase.prompt for phase in rules.phases]
    texts += [text for prompt in rules.prompts.values() for text in (prompt.system, prompt.opening)]
    texts += [] if rules.judge is None else [rules.judge.system, rules.judge.prompt]
    if not any({*_shared(rules)} & {*names(text)} for text in texts):
        yield "principles", "no prompt shows them: write {{ principles }} or {{ principle }} in one"
    if not all(principle.strip() for principle in rules.principles):
        yield "principles", "a principle has no words"


def _listen_problems(rules: PhasedRules) -> Iterable[Problem]:
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


def _pay_problems(rules: PhasedRules) -> Iterable[Problem]:
    has: set[Source] = {"turns"}
    if any(phase.moves != "free" for phase in rules.phases):
        has.add("legal moves")
    if any(phase.moves == "choices" for phase in rules.phases):
        has.add("choices")
    if rules.vote:
        has.add("vote")
    if any(phase.quotes for phase in rules.phases):
        has.add("quotes")
    limited = [i for i, phase in enumerate(rules.phases) if phase.soft_words or phase.min_words]
    if limited:
        has.add("word limits")
    if limited and all(term.name != "length" for term in rules.rewards):
        name = "soft_words" if rules.phases[limited[0]].soft_words else "min_words"
        yield f"phases.{limited[0]}.{name}", "has no effect without the reward 'length': add {name: length}"
    if rules.judge is not None:
        each_turn = rules.judge.when == "each_turn"
        if rules.judge.graded:
            has.add("grades")
        else:
            has |= {"final belief", "beliefs"} if each_turn else {"final belief"}
        if each_turn or len(rules.judge.after) > 1 or {*rules.judge.after} & {*rules.loop_of}:
            has.add("two judgments")
        if rules.judge.votes:
            has.add("verdicts")
    yield from reward_problems(rules.rewards, has, rules.seats)
    for i, term in enumerate(rules.rewards):
        rule = REWARDS.get(term.name)
        sided = rules.sides or any(phase.commits for phase in rules.phases)
        graded = rules.judge is not None and rules.judge.graded
        if rule is not None and rule.needs in _OF_SIDES and not sided and not graded:
            yield f"rewards.{i}.name", f"reward {term.name!r} pays the seats that argue a side: set sides"
        if rules.zero_sum and rule is not None and (not rule.zero_sum or term.to):
            valid = ", ".join(sorted(name for name, r in REWARDS.items() if r.zero_sum and r.needs in has))
            yield f"rewards.{i}", f"zero_sum: true is promised; valid: {valid}, paid to all"
    both = {*rules.sides.values()} == {0, 1} or bool(rules.opposes)
    if rules.zero_sum and (rules.judge is None or len(rules.judge.labels) != 2 or not both):
        yield "zero_sum", "needs a judge with two labels and a seat on each side (0 and 1, or one that opposes)"


_OF_SIDES: tuple[Source, ...] = ("beliefs", "final belief", "two judgments")
_BUILT_IN = ("question", "choices", "seat", "role", "claim", "other")


def _names(rules: PhasedRules, role: str, sided: bool | None = None) -> list[str]:
    """The placeholders that prompts of this role may use. `sided`: whether the reader has a side by then; None: when
    its chat begins, every seat of the role."""
    if sided is None:
        sided = sided_at(rules, [seat for seat, r in rules.seats.items() if r == role])
    return [*(_BUILT_IN if sided else _BUILT_IN[:4]), *_shared(rules), *rules.prompts[role].hidden]


def _no(what: str, name: str, valid: Iterable[str]) -> str:
    return f"there is no {what} {name!r}; valid: {', '.join(valid) or 'none'}"
