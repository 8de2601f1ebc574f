"""Seeded faults in batches of proposals, loops over phases and protocols that delegate to themselves. Part of
`tests.contract.mutants`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from protocols.kinds import propose_solve
from protocols.phased import interpreter as phased, state as table, subplays
from tests.contract.seeding import HERE, mutant

CONTEST, SEMINAR, CIRCLE, TREE = (
    HERE / "protocols" / f"{name}.yaml" for name in ("contest", "seminar", "circle", "tree")
)


@mutant(CONTEST, "the proposer was paid", propose_solve, "shares")
def nobody_repeats_anybody(shares: Any) -> Any:
    return lambda texts: [1 / len(texts)] * len(texts)


@mutant(CONTEST, "the proposer was paid", propose_solve.ProposeSolve, "_pay")
def one_solve_rate_for_all(pay: Any) -> Any:
    def broken(self: Any, tried: Any, scores: Any = None) -> Any:
        together = [score for own in (scores or {}).values() for score in own]
        return pay(self, tried, dict.fromkeys(scores or {}, together))

    return broken


@mutant(CONTEST, "proposals were asked for", propose_solve.ProposeSolve, "_propose")
def one_proposal_after_the_other(propose: Any) -> Any:
    def broken(self: Any, task: Any) -> Any:
        one = yield from propose(replace(self, batch=1), task)
        return one * self.batch

    return broken


@mutant(SEMINAR, "asked [", table.Table, "begin")
def ended_once_ended_for_good(begin: Any) -> Any:
    return lambda self, phase: not self.ended(phase)


@mutant(SEMINAR, "asked [", phased.Phased, "_course")
def each_phase_by_itself(course: Any) -> Any:
    return lambda self: sorted(course(self), key=lambda each: self.phases.index(each[0]))


@mutant(SEMINAR, "asked [", phased.Phased, "_rounds")
def every_lap_begins_alike(rounds: Any) -> Any:
    def broken(self: Any, phase: Any, lap: int, places: Any) -> Any:
        odd = replace(self, phases=[replace(p, repeat=1) for p in self.phases])
        return [*rounds(odd, replace(phase, repeat=1), 0, places)] * phase.repeat

    return broken


@mutant(CIRCLE, "asked [", table.Table, "_said_to_end")
def a_loop_runs_on(said: Any) -> Any:
    def broken(self: Any, phase: Any, seat: str, statement: str) -> bool:
        ended: bool = said(self, phase, seat, statement)
        self.left.clear()
        return ended

    return broken


@mutant(CIRCLE, "play ended before", phased.Phased, "choosers")
def agreed_among_one(choosers: Any) -> Any:
    return lambda self, loop: choosers(self, loop)[:1]


@mutant(TREE, "asked [", subplays.Purse, "below")
def never_any_deeper(below: Any) -> Any:
    def broken(self: Any, phase: Any) -> Any:
        delegate = below(self, phase)
        same = [replace(p, delegate=None) for p in delegate.protocol.phases]
        return replace(delegate, protocol=replace(delegate.protocol, phases=same))

    return broken


@mutant(TREE, "questions are recorded", subplays.Purse, "pay")
def copies_spend_nothing(pay: Any) -> Any:
    def broken(self: Any, phase: Any, outcome: Any) -> None:
        pay(self, phase, replace(outcome, metrics={"questions": 0.0}))

    return broken


@mutant(SEMINAR, "temperature is", table, "TurnRequest")
def one_temperature_for_all(request: Any) -> Any:
    return lambda **fields: request(**{**fields, "temperature": None})
