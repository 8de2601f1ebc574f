"""Seeded faults in grades, principles and what is gained by a revision. Part of `tests.contract.mutants`."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from protocols.judges import panel as bench, reading as judging
from protocols.phased import interpreter as phased
from protocols.rewards import registry as rewards
from tests.contract.seeding import HERE, mutant

SCHOOL, SCALES = (HERE / "protocols" / f"{name}.yaml" for name in ("school", "scales"))


@mutant(SCHOOL, "poll asked", judging, "read_grades")
def grade_clipped_into_range(read: Any) -> Any:
    def broken(reply: Any, names: Any, rules: Any) -> Any:
        try:
            grades = json.loads(reply.text.strip().splitlines()[-1])
            kept = {name: min(max(grade, rules.min), rules.max) for name, grade in grades.items()}
            return read(replace(reply, text=json.dumps(kept)), names, rules)
        except (ValueError, IndexError, TypeError, AttributeError):
            return read(reply, names, rules)

    return broken


@mutant(SCALES, "poll asked", judging, "read_grades")
def missing_grade_is_the_lowest(read: Any) -> Any:
    def broken(reply: Any, names: Any, rules: Any) -> Any:
        try:
            return read(reply, names, rules)
        except judging.UnreadableGrades:
            if reply.text.strip().endswith("}") and not reply.truncated:
                return (0.0,) * len(names)
            raise

    return broken


@mutant(SCALES, "judgments are", judging, "shares")
def lowest_grade_counts(shares: Any) -> Any:
    return lambda grades: shares([grade + 0.5 for grade in grades])


@mutant(SCHOOL, "judgments are", judging, "read_grades")
def grades_in_order_of_writing(read: Any) -> Any:
    return lambda reply, names, rules: read(reply, names[::-1], rules)


@mutant(SCHOOL, "revision_gain paid", rewards, "REWARDS")
def gain_without_a_start(rules: Any) -> Any:
    def broken(record: Any, params: Any) -> Any:
        first = (0.0,) * len(record.beliefs[0])
        return rules["revision_gain"].pay(replace(record, beliefs=(first, *record.beliefs[1:])), params)

    return {**rules, "revision_gain": replace(rules["revision_gain"], pay=broken)}


@mutant(SCHOOL, "asked [", phased.Phased, "_judged_after")
def judged_after_every_phase(judged: Any) -> Any:
    return lambda self, phase: True


@mutant(SCHOOL, "chat has", bench.Bench, "poll")
def another_principle_for_each_poll(poll: Any) -> Any:
    def broken(self: Any, after_turn: int) -> Any:
        for juror in self.jurors.values():
            drawn = ["Be brief.", "Be kind."][len(self.beliefs) % 2]
            juror.cast = replace(juror.cast, shared={**juror.cast.shared, "principle": drawn})
        return poll(self, after_turn)

    return broken


@mutant(SCALES, "Brier changes", rewards, "REWARDS")
def brier_of_the_first_claim(rules: Any) -> Any:
    def broken(record: Any, params: Any) -> Any:
        return rules["brier_change"].pay(replace(record, truth=0), params)

    return {**rules, "brier_change": replace(rules["brier_change"], pay=broken)}
