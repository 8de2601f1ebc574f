"""Rewards for the form of a turn."""

from __future__ import annotations

from collections.abc import Iterator

from protocols.rewards.record import Param, Params, Record, above_0, reward
from protocols.types import Reward


@reward("illegal", "legal moves")
def illegal(record: Record, params: Params) -> Iterator[Reward]:
    """-1 for each rejected move."""
    for move in record.moves:
        if move.rejected:
            yield Reward(move.seat, move.turn, -1.0, "illegal")


@reward("format", "turns")
def format_(record: Record, params: Params) -> Iterator[Reward]:
    """-1 for each reply that is blank, was cut off by its token limit or lacks the parts it should have."""
    for move in record.moves:
        if move.unfinished or move.unparsed:
            yield Reward(move.seat, move.turn, -1.0, "format")


@reward("length", "word limits", cap=Param(1.0, above_0, "above 0 (share of the limit)"))
def length(record: Record, params: Params) -> Iterator[Reward]:
    """Minus the share by which a turn is longer than its soft_words or shorter than its min_words, at most `cap`."""
    for move in record.moves:
        if move.off_length:
            yield Reward(move.seat, move.turn, -min(move.off_length, params["cap"]), "length")
