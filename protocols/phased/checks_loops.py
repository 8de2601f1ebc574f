"""Mistakes in loops over several phases."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from protocols.phased.rules import Loop, PhasedRules
from protocols.speech import words

MAX_REPEAT = 1000
"""More rounds than this of one phase are taken for a loop without an end."""

Problem = tuple[str, str]


def loop_problems(rules: PhasedRules) -> Iterable[Problem]:
    taken: dict[str, int] = {}
    for i, loop in enumerate(rules.loops):
        yield from _over_problems(rules, loop, f"loops.{i}.over")
        for name in loop.over:
            if taken.setdefault(name, i) != i:
                yield f"loops.{i}.over", f"phase {name!r} is part of loops.{taken[name]} already"
        most = MAX_REPEAT // max([phase.repeat for phase in rules.phases if phase.name in loop.over] or [1])
        if loop.repeat < 2:
            message = "a loop has an end and comes round again before it: say how often at most"
            yield f"loops.{i}.repeat", f"{message}; valid: 2 to {most}"
        elif loop.repeat > most:
            yield f"loops.{i}.repeat", f"{loop.repeat} times are as good as an endless loop; valid: 2 to {most}"
        yield from _stop_problems(rules, loop, f"loops.{i}.stop")


def _over_problems(rules: PhasedRules, loop: Loop, path: str) -> Iterable[Problem]:
    names = [phase.name for phase in rules.phases]
    if not loop.over:
        yield path, f"needs the phases that are repeated; valid: {', '.join(names)}"
    for name in loop.over:
        if name not in names:
            yield path, f"there is no phase {name!r}; valid: {', '.join(names)}"
    places = [names.index(name) for name in loop.over if name in names]
    if any(later != place + 1 for place, later in pairwise(places)):
        yield path, f"phases of a loop follow each other as in phases; valid: neighbours out of {', '.join(names)}"
    for phase in rules.phases:
        if phase.commits and phase.name in loop.over:
            yield path, f"a seat commits once, and {phase.name!r} commits: let it stand before the loop"


def _stop_problems(rules: PhasedRules, loop: Loop, path: str) -> Iterable[Problem]:
    stop, block = loop.stop, [phase for phase in rules.phases if phase.name in loop.over]
    if stop is None:
        return
    if not (stop.seat or stop.says or stop.agreed or stop.belief_above is not None):
        yield path, "says nothing of when; valid: seat with says, agreed, belief_above"
    if stop.agreed and len(rules.choosers(loop)) < 2:
        yield f"{path}.agreed", "needs two or more seats that choose in the loop (moves: choices)"
    if stop.belief_above is not None:
        if not 0 < stop.belief_above < 1:
            yield f"{path}.belief_above", "must be above 0 and below 1"
        judge = rules.judge
        asked = judge is not None and (judge.when == "each_turn" or {*judge.after} & {*loop.over})
        if judge is None or judge.graded or not asked:
            valid = "judge.when: each_turn, or phases with one of the loop in judge.after"
            yield f"{path}.belief_above", f"needs a judge of claims who is asked within the loop; valid: {valid}"
    if not (stop.seat or stop.says):
        return
    speaking = [phase for phase in block if stop.seat in phase.seats and phase.moves == "free"]
    if not speaking:
        valid = ", ".join(dict.fromkeys(seat for phase in block if phase.moves == "free" for seat in phase.seats))
        yield f"{path}.seat", f"{stop.seat!r} writes nothing in the loop; valid: {valid or 'none'}"
    if not stop.says.strip() or stop.says != stop.says.strip() or len(stop.says.splitlines()) > 1:
        yield f"{path}.says", "must be one line without space around it, for example DONE"
    elif speaking and all(p.max_words is not None and words(stop.says) > p.max_words for p in speaking):
        yield f"{path}.says", "is longer than max_words, so nobody would ever hear it"
