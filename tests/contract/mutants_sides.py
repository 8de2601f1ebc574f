"""Seeded faults in sides that seats choose for themselves. Part of `tests.contract.mutants`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from protocols.judges import panel as bench
from protocols.phased import state as table
from tests.contract.seeding import HERE, mutant

DUEL, PLEDGE = (HERE / "protocols" / f"{name}.yaml" for name in ("duel", "pledge"))


@mutant(DUEL, "chat has", table.Table, "_commit")
def rival_argues_the_same(commit: Any) -> Any:
    def broken(self: Any, seat: str, claim: Any) -> None:
        commit(self, seat, claim)
        for rival, chooser in self.rules.opposes.items():
            if chooser == seat and seat in self.sides:
                self.sides[rival] = self.sides[seat]
                self._values[rival] |= self._side_values(rival)

    return broken


@mutant(PLEDGE, "play went on", table.Table, "_commit")
def forfeit_overlooked(commit: Any) -> Any:
    return lambda self, seat, claim: commit(self, seat, self.task.choices[0] if claim is None else claim)


@mutant(DUEL, "a forfeit is ok with score 0.0", table.Table, "_forfeited")
def forfeit_is_a_loss(forfeited: Any) -> Any:
    return lambda self, metrics: replace(forfeited(self, metrics), score=0.0)


@mutant(DUEL, "what is chosen in secret shows", bench.Juror, "_claims")
def choice_told_to_every_judge(claims: Any) -> Any:
    def broken(self: Any, order: Any) -> dict[str, str]:
        right = claims(self, order)
        return {**right, "question": f"{right['question']} {self.cast.sides.get('cid')}"}

    return broken


@mutant(PLEDGE, "chat has", bench.Juror, "_entry")
def label_of_the_wrong_claim(entry: Any) -> Any:
    return lambda self, seat, role, text, order: entry(self, seat, role, text, order[::-1])


@mutant(PLEDGE, "argued", table.Table, "_counts")
def chosen_sides_unrecorded(counts: Any) -> Any:
    return lambda self: {name: n for name, n in counts(self).items() if not name.startswith("side/")}
