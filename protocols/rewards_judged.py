"""Rewards that rest on what judges make of seats or come to know. Listed in `protocols/rewards.py`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from protocols.types import Reward

if TYPE_CHECKING:
    from protocols.rewards import Params, Record


def grade(record: Record, params: Params) -> Iterator[Reward]:
    """The last grade of each graded seat, from 0 to 1 (a judge's score as reward: Lee et al. 2023, RLAIF,
    arXiv 2309.00267, section on direct rewards)."""
    for seat, value in zip(record.graded, record.beliefs[-1] if record.beliefs else ()):
        yield Reward(seat, None, value, "grade")


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
