"""Rewards that rest on what the judge believes."""

from __future__ import annotations

import math
from collections.abc import Iterator

from protocols.rewards.record import Belief, Param, Params, Record, above_0, reward
from protocols.types import Reward


def log_odds(belief: Belief, side: int, clip: float) -> float:
    """log(p / (1 - p)) of the claim `side` in nats, clipped to [-clip, clip]: a certain judge stays finite.

    1 - p is summed from the other claims, so with two claims the two sides are exactly opposed.
    """
    mine, theirs = belief[side], math.fsum(p for i, p in enumerate(belief) if i != side)
    if mine <= 0.0 or theirs <= 0.0:
        return clip if mine > theirs else -clip if mine < theirs else 0.0
    return min(clip, max(-clip, math.log(mine) - math.log(theirs)))


@reward("belief_change", "beliefs", clip=Param(8.0, above_0, "above 0 (nats)"))
def belief_change(record: Record, params: Params) -> Iterator[Reward]:
    """Per turn: how far it moved the judge's log odds of the speaker's own claim (nats).

    The summands of the zero-sum game over the final log odds, each credited to the turn that caused it: for
    two opposed sides, sum(first side) - sum(second side) = final - initial log odds of the first claim.
    Several seats of a simultaneous round share its change. Measured for pixel debate in the docs; the idea of
    paying for the change of a judge's belief is that of market making (Hubinger 2020).
    """
    for move in record.moves:
        side = record.sides.get(move.seat)
        if side is None or move.before is None or move.after is None:
            continue
        before = log_odds(record.beliefs[move.before], side, params["clip"])
        after = log_odds(record.beliefs[move.after], side, params["clip"])
        yield Reward(move.seat, move.turn, after - before, "belief_change")


@reward("win", "final belief", zero_sum=True)
def win(record: Record, params: Params) -> Iterator[Reward]:
    """+1 for the side that the judge's final belief favours, -1 for the other, 0 on a tie (Irving 2018)."""
    for seat, side, team in _sided(record):
        lead = _lead(record.beliefs[-1], side)
        yield Reward(seat, None, ((lead > 0) - (lead < 0)) / team, "win")


@reward("win_probability", "final belief", zero_sum=True)
def win_probability(record: Record, params: Params) -> Iterator[Reward]:
    """2p - 1, p the judge's final probability of the seat's claim."""
    for seat, side, team in _sided(record):
        yield Reward(seat, None, _lead(record.beliefs[-1], side) / team, "win_probability")


@reward("win_logit", "final belief", zero_sum=True, clip=Param(8.0, above_0, "above 0 (nats)"))
def win_logit(record: Record, params: Params) -> Iterator[Reward]:
    """The judge's final log odds of the seat's claim (nats), clipped to plus or minus `clip`."""
    for seat, side, team in _sided(record):
        yield Reward(seat, None, log_odds(record.beliefs[-1], side, params["clip"]) / team, "win_logit")


def _sided(record: Record) -> Iterator[tuple[str, int, int]]:
    """(seat, its side, seats on that side): a team shares its pay, so sides stay balanced."""
    sides = list(record.sides.values())
    for seat, side in record.sides.items():
        yield seat, side, sides.count(side)


def _lead(belief: Belief, side: int) -> float:
    """p of the claim minus p of its strongest rival; with two claims 2p - 1, exactly opposed for the two."""
    return belief[side] - max(p for i, p in enumerate(belief) if i != side)
