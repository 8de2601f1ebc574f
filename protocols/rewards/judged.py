"""Rewards that rest on what judges make of seats or come to know. Listed in `protocols/rewards/record.py`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from protocols.rewards.record import Param, at_least_0, is_flag, reward
from protocols.types import Reward

if TYPE_CHECKING:
    from protocols.rewards.record import Move, Params, Record


@reward("grade", "grades", source="arXiv 2309.00267")
def grade(record: Record, params: Params) -> Iterator[Reward]:
    """The last grade of each graded seat, from 0 to 1 (a judge's score as reward: Lee et al. 2023, RLAIF,
    arXiv 2309.00267, section on direct rewards)."""
    for seat, value in zip(record.graded, record.beliefs[-1] if record.beliefs else ()):
        yield Reward(seat, None, value, "grade")


@reward("revision_gain", "two judgments", source="arXiv 2206.05802")
def revision_gain(record: Record, params: Params) -> Iterator[Reward]:
    """The last judgment of a seat minus the first: of its grade, or of the probability of the claim that it argues.

    A seat that is neither graded nor argues a claim, a critic for example, gets the mean gain of those that are: its
    critique is worth what the revision gains by it (Saunders et al. 2022, arXiv 2206.05802, judge critiques by how
    helpful they are).
    """
    if not record.beliefs:
        return
    first, last = record.beliefs[0], record.beliefs[-1]
    places = dict(record.sides) if not record.graded else {seat: i for i, seat in enumerate(record.graded)}
    gains = {seat: last[place] - first[place] for seat, place in places.items()}
    if not gains:
        return
    mean = math.fsum(gains.values()) / len(gains)
    for seat in dict.fromkeys(move.seat for move in record.moves):
        yield Reward(seat, None, gains.get(seat, mean), "revision_gain")


@reward("unverified_quotes", "quotes")
def unverified_quotes(record: Record, params: Params) -> Iterator[Reward]:
    """-1 for each quote that does not stand in what it was to be taken from."""
    for move in record.moves:
        if move.unverified:
            yield Reward(move.seat, move.turn, -float(move.unverified), "unverified_quotes")


@reward("brier_change", "beliefs")
def brier_change(record: Record, params: Params) -> Iterator[Reward]:
    """Per turn: how much nearer it brought the judge to the truth, the fall of the Brier score sum_i (p_i - y_i)^2 of
    its belief (Brier 1950: proper; paid for the change since the turn before, as in the market scoring rules of Hanson
    2003). Every seat that the judge hears is paid, whatever it argues; nothing is paid where the truth is not known."""
    for move in record.moves:
        if record.truth is not None and move.before is not None and move.after is not None:
            before, after = (
                math.fsum((p - (i == record.truth)) ** 2 for i, p in enumerate(record.beliefs[at]))
                for at in (move.before, move.after)
            )
            yield Reward(move.seat, move.turn, before - after, "brier_change")


@reward(
    "src_sides",
    "final belief",
    helpful=Param(1.0, is_flag, "1 (a helpful prover) or 0 (a sneaky one)"),
    source="arXiv 2407.13692",
)
def src_sides(record: Record, params: Params) -> Iterator[Reward]:
    """Provers before a verifier (Kirchner et al. 2024, arXiv 2407.13692): (2c - 1)(2h - 1) v where v > 0, else -1.

    v: the judge's probability of the seat's claim minus that of its strongest rival; c: 1 if the claim is right; h: 1
    for a helpful prover, 0 for a sneaky one, who is to convince of what is wrong (`helpful`, with `to`). Nothing is
    paid where the truth is not known.
    """
    if record.truth is None or not record.beliefs:
        return
    for seat, side in record.sides.items():
        belief = record.beliefs[-1]
        lead = belief[side] - max(p for i, p in enumerate(belief) if i != side)
        aligned = (side == record.truth) == (params["helpful"] == 1.0)
        yield Reward(seat, None, -1.0 if lead <= 0 else lead if aligned else -lead, "src_sides")


@reward("azr", "sub-plays", source="arXiv 2505.03335")
def azr(record: Record, params: Params) -> Iterator[Reward]:
    """1 - p for a proposal whose sub-plays are won with share p > 0, 0 where none is (Zhao et al. 2025, Absolute Zero,
    arXiv 2505.03335, the proposer's reward): the hardest task that can be solved at all pays most."""
    for move, p in _proposed(record):
        yield Reward(move.seat, move.turn, 1.0 - p if p > 0.0 else 0.0, "azr")


@reward(
    "r_zero",
    "sub-plays",
    duplicates=Param(1.0, at_least_0, "at least 0 (weight of the share of duplicates)"),
    source="arXiv 2508.05004",
)
def r_zero(record: Record, params: Params) -> Iterator[Reward]:
    """min(p, 1 - p) - `duplicates` * d: p the share of sub-plays that are won, d the share of the batch's proposals
    that are like this one, itself included. The uncertainty reward is that of R-Zero's implementation, half of the
    paper's 1 - |2p - 1| (Huang et al. 2025, arXiv 2508.05004), the fine its repetition penalty |C_k| / B
    (protocols/kinds/duplicates.py).
    A play with one proposal (`batch: 1`) knows of no others: nothing is taken off."""
    for move, p in _proposed(record):
        alike = 0.0 if record.duplicates is None else params["duplicates"] * record.duplicates
        yield Reward(move.seat, move.turn, min(p, 1.0 - p) - alike, "r_zero")


def _proposed(record: Record) -> Iterator[tuple[Move, float]]:
    """Each turn of a proposer whose proposal was played, with the mean score of the sub-plays."""
    if record.proposal_valid and record.sub_scores:
        p = math.fsum(record.sub_scores) / len(record.sub_scores)
        yield from ((move, p) for move in record.moves)
