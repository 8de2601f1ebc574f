"""Grades: a judge writes one number for each claim or seat, in a form so strict that nothing else can pass for it."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from protocols.types import Reply

Problem = tuple[str, str]


class UnreadableGrades(ValueError):
    """A judge's reply that does not end in the grades asked for. Missing data, never a score."""


@dataclass(frozen=True)
class GradeRules:
    """The judge gives reasons as it likes; the last line of its reply is one JSON object and nothing else, with a
    number from `min` to `max` for each name, for example {"A": 7, "B": 2}. Names are the labels or the seats."""

    of: Literal["claims", "seats"] = "claims"
    """claims: the belief in a claim is its share of the points above `min`, or equal shares where nobody has any.
    seats: no claim is judged, and the play has no score; the grades, from 0 (`min`) to 1 (`max`), are rewards."""
    min: float = 0.0
    max: float = 10.0
    seats: list[str] = field(default_factory=list)
    """With of: seats: who is graded, in this order."""


def read_grades(reply: Reply, names: Sequence[str], rules: GradeRules) -> tuple[float, ...]:
    """The grades of `names` in this order, from 0 (`min`) to 1 (`max`). Raises `UnreadableGrades`."""
    if reply.truncated:
        raise UnreadableGrades("the grades were cut off")
    lines = reply.text.strip().splitlines()
    last = lines[-1].strip() if lines else ""
    try:
        pairs = json.loads(last, object_pairs_hook=tuple, parse_constant=_no_number)
    except (ValueError, RecursionError):
        raise UnreadableGrades(f"the verdict ends in {last[:80]!r}, which is no JSON object") from None
    wanted = ", ".join(names)
    if not isinstance(pairs, tuple) or sorted(name for name, _ in pairs) != sorted(names):
        raise UnreadableGrades(f"the grades {last[:80]!r} are not one for each of: {wanted}")
    grades = dict(pairs)
    for name, grade in grades.items():
        if type(grade) not in (int, float) or not rules.min <= grade <= rules.max:
            raise UnreadableGrades(f"the grade of {name} is no number from {rules.min:g} to {rules.max:g}")
    return tuple((grades[name] - rules.min) / (rules.max - rules.min) for name in names)


def shares(grades: Sequence[float]) -> tuple[float, ...]:
    """A belief from grades: the share of all points, equal shares where there are none."""
    total = math.fsum(grades)
    return tuple(grade / total if total > 0 else 1.0 / len(grades) for grade in grades)


def grade_problems(rules: GradeRules, graded_by: Any, speaking: Collection[str]) -> Iterator[Problem]:
    """Mistakes of `judge.grade`. `graded_by`: the JudgeRules around it. `speaking`: seats that take turns."""
    if not (math.isfinite(rules.min) and math.isfinite(rules.max) and rules.min < rules.max):
        yield "judge.grade.max", f"must be more than min: {rules.min:g}"
    if graded_by.view == "chat":
        yield "judge.grade", "a growing chat has one reply per question; valid with grade: evidence, transcript"
    if graded_by.answers != "labels":
        yield "judge.answers", "has no effect on grades; valid: labels"
    if rules.of == "claims":
        if rules.seats:
            yield "judge.grade.seats", "has no effect on the grades of claims; valid with of: seats"
        return
    if not rules.seats:
        yield "judge.grade.seats", f"needs the seats that are graded; valid: {', '.join(sorted(speaking))}"
    for seat in rules.seats:
        if seat not in speaking or rules.seats.count(seat) > 1:
            valid = ", ".join(sorted(speaking))
            yield "judge.grade.seats", f"there is no (other) seat {seat!r} to grade; valid: {valid}"
    if graded_by.orders != "given":
        yield "judge.orders", "there are no claims to show in another order; valid with grade of seats: given"
    if graded_by.view == "evidence":
        yield "judge.view", "shows who said nothing; valid with grade of seats: transcript"
    if graded_by.combine == "majority":
        yield "judge.combine", "grades of seats are no votes; valid: mean"


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
