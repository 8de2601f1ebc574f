"""Mistakes in who argues which side: assigned by the task, chosen in a phase, or opposed to what another chose."""

from __future__ import annotations

import math
from collections.abc import Iterable

from protocols.phased.rules import PhasedRules
from protocols.templates import names

Problem = tuple[str, str]


def side_problems(rules: PhasedRules) -> Iterable[Problem]:
    chosen: dict[str, str] = {}
    for i, phase in enumerate(rules.phases):
        path = f"phases.{i}.commits"
        if not phase.commits:
            continue
        if phase.moves != "choices":
            yield path, f"nobody can commit to a claim with moves: {phase.moves}; valid with moves: choices"
        if phase.repeat != 1:
            yield f"phases.{i}.repeat", "a seat commits once; valid: 1"
        for seat in phase.seats:
            if seat in rules.sides:
                yield path, f"{seat!r} has an assigned side already; take it out of sides"
            if seat in chosen:
                yield path, f"{seat!r} has committed in phase {chosen[seat]!r} already"
            chosen[seat] = phase.name
    yield from _opposition_problems(rules, list(chosen))
    yield from _telling_problems(rules)


def _opposition_problems(rules: PhasedRules, chosen: list[str]) -> Iterable[Problem]:
    judges = () if rules.judge is None else rules.judge.seats
    for seat, chooser in rules.opposes.items():
        path = f"opposes.{seat}"
        if seat not in rules.seats or seat in judges:
            speaking = [s for s in rules.seats if s not in judges]
            yield path, f"there is no seat {seat!r} that could argue; valid: {', '.join(speaking)}"
        elif seat in rules.sides or seat in chosen:
            yield path, f"{seat!r} has a side of its own already; take it out of one of the two"
        elif chooser not in chosen:
            yield path, f"{chooser!r} commits to no claim; valid: {', '.join(chosen) or 'none'}"
        elif any(p.commits and chooser in p.seats and seat not in rules.audience(p, chooser) for p in rules.phases):
            yield path, f"{seat!r} must hear what {chooser!r} commits to: let that phase be visible to it"
    if rules.opposes and rules.judge is not None and len(rules.judge.labels) != 2:
        yield "opposes", "there is one other claim only among two; valid with two labels of the judge"


def _telling_problems(rules: PhasedRules) -> Iterable[Problem]:
    """A judge must not read from a label what it was not to hear."""
    judge = rules.judge
    if judge is None:
        return
    telling = {"judge.entry": {"label"} if judge.view != "evidence" else set(),
               "judge.prompt": {f"seat_{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"}}  # fmt: skip
    for phase in rules.phases:
        unheard = [j for s in phase.seats for j in judge.seats if phase.commits and j not in rules.audience(phase, s)]
        for path, placeholders in telling.items():
            template = judge.entry if path == "judge.entry" else judge.prompt
            told = [name for name in names(template) if name in placeholders]
            if unheard and told:
                yield path, (f"{{{{ {told[0]} }}}} would tell {unheard[0]!r} what is chosen in phase {phase.name!r}, "
                             "which is not visible to it")  # fmt: skip


def sided_after(rules: PhasedRules, seat: str) -> float:
    """Index of the phase after which `seat` has a side: -1 where it is assigned, infinite where it never has one."""
    if seat in rules.sides:
        return -1
    chooser = rules.opposes.get(seat, seat)
    found = [i for i, phase in enumerate(rules.phases) if phase.commits and chooser in phase.seats]
    return found[0] if found else math.inf


def sided_at(rules: PhasedRules, seats: Iterable[str], phase: int | None = None) -> bool:
    """Whether all of these seats have a side in phase number `phase`; None: in the first in which each speaks."""
    for seat in seats:
        first = next((i for i, p in enumerate(rules.phases) if seat in p.seats), math.inf)
        if not sided_after(rules, seat) < (first if phase is None else phase):
            return False
    return True


def name_problems(rules: PhasedRules) -> Iterable[Problem]:
    """Mistakes in neutral names: what else would tell who speaks."""
    if rules.names == "own":
        return
    judges = () if rules.judge is None else rules.judge.seats
    speaking = [seat for seat in rules.seats if seat not in judges]
    templates = {f"prompts.{role}.heard": prompt.heard for role, prompt in rules.prompts.items()}
    if rules.judge is not None and rules.judge.view != "evidence":
        templates["judge.entry"] = rules.judge.entry
    for path, template in templates.items():
        if "role" in names(template) and len({rules.seats[seat] for seat in speaking}) > 1:
            yield path, f"{{{{ role }}}} would tell who speaks, with names: {rules.names}; valid: seat, text, quoted"
    if len(speaking) < 2:
        yield "names", "one seat that speaks is known by any name; valid: own"
    graded = () if rules.judge is None else rules.judge.graded
    if rules.names == "drawn" and graded and {*graded} != {*speaking}:
        yield "names", "the judge cannot be told which drawn names to grade; valid: numbered, or all seats graded"
