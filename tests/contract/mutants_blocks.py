"""Seeded faults in batches of proposals, loops over phases and protocols that delegate to themselves. Part of
`tests.contract.mutants`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from protocols import propose_solve
from tests.contract.seeding import HERE, mutant

CONTEST = HERE / "protocols" / "contest.yaml"


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
