"""Rewards of votes, ratings, games, markets and provers. `rewards.py` lists them; every one reads a `Record`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from protocols.rewards.record import reward
from protocols.types import Reward

if TYPE_CHECKING:
    from protocols.rewards.record import Params, Record


@reward("team_right", "vote", source="arXiv 2411.00053")
def team_right(record: Record, params: Params) -> Iterator[Reward]:
    """The share of votes for the right answer, to everyone who took a turn: a critic or a questioner who votes on
    nothing is paid by what its talk came to (the shared reward of ACC-Collab, arXiv 2411.00053)."""
    if record.votes_truth is not None:
        for seat in _speakers(record):
            yield Reward(seat, None, record.votes_truth, "team_right")


@reward("correction_gain", "choices", source="arXiv 2402.02416")
def correction_gain(record: Record, params: Params) -> Iterator[Reward]:
    """For a choice made after another seat's: 1 if it turned wrong into right, -1 if right into wrong, else 0.

    A corrector that repeats what stands there gets nothing for it, right or wrong (Aligner, arXiv 2402.02416,
    teaches the same by pairs of answer and correction).
    """
    before = None
    for move in record.moves:
        if move.right is None:
            continue
        if before is not None and before.seat != move.seat:
            yield Reward(move.seat, move.turn, float(move.right) - float(before.right or 0), "correction_gain")
        before = move


@reward("rating", "ratings")
def rating(record: Record, params: Params) -> Iterator[Reward]:
    """The last rating, in [0, 1], to everyone who took a turn; nothing where nothing was rated."""
    for seat in _speakers(record) if record.ratings else ():
        yield Reward(seat, None, record.ratings[-1], "rating")


@reward("improvement", "ratings", source="arXiv 2305.16960")
def improvement(record: Record, params: Params) -> Iterator[Reward]:
    """The last rating minus the first, in [-1, 1], to everyone who took a turn: what the revision was worth (Stable
    Alignment, arXiv 2305.16960, ranks a draft and its revisions by an observer's ratings)."""
    for seat in _speakers(record) if record.ratings else ():
        yield Reward(seat, None, record.ratings[-1] - record.ratings[0], "improvement")


@reward("game_result", "result")
def game_result(record: Record, params: Params) -> Iterator[Reward]:
    """What the game's own rules give each seat: 1, 0 or -1 in taboo, the share of the gain in a negotiation."""
    for seat, value in record.results.items():
        yield Reward(seat, None, value, "game_result")


@reward("forecast", "forecasts")
def forecast(record: Record, params: Params) -> Iterator[Reward]:
    """-(p - b)^2 for each forecast p of the probability b that the judge came to: a proper score (Brier 1950), best
    where p is the expected b."""
    for move in record.moves:
        if move.before is None and move.after is not None:
            error = record.beliefs[move.after][0] - record.verdict[0]
            yield Reward(move.seat, move.turn, -(error * error), "forecast")


@reward("market_move", "forecasts")
def market_move(record: Record, params: Params) -> Iterator[Reward]:
    """|p' - p|: how far an argument moved the forecast, either way (market making, Hubinger 2020)."""
    for move in record.moves:
        if move.before is not None and move.after is not None:
            change = record.beliefs[move.after][0] - record.beliefs[move.before][0]
            yield Reward(move.seat, move.turn, abs(change), "market_move")


@reward("src", "verdict on an answer", source="arXiv 2407.13692")
def src(record: Record, params: Params) -> Iterator[Reward]:
    """(2c - 1)(2h - 1)v if v > 0, else -1, for a prover: c whether its answer is right, h whether it was to help, and
    v = 2p - 1 of the verifier's probability p that it is right. Convincing counts for a helpful prover when it is
    right and for a sneaky one when it is wrong (SRC of Kirchner et al. 2024, arXiv 2407.13692, appendix).
    """
    assert record.score is not None, "the verifier has not spoken"
    convincing = 2.0 * record.verdict[0] - 1.0
    for seat, side in record.sides.items():
        kept_to_role = (2.0 * record.score - 1.0) * (1.0 if side == 0 else -1.0)
        yield Reward(seat, None, kept_to_role * convincing if convincing > 0 else -1.0, "src")


@reward("verdict_score", "verdict on an answer")
def verdict_score(record: Record, params: Params) -> Iterator[Reward]:
    """-(p - c)^2 for the seat that was asked whether the answer is right: p its probability, c 1 or 0 as it is."""
    assert record.score is not None, "the verifier has not spoken"
    error = record.verdict[0] - record.score
    for move in record.moves:
        if move.seat not in record.sides:
            yield Reward(move.seat, move.turn, -(error * error), "verdict_score")


def _speakers(record: Record) -> list[str]:
    return list(dict.fromkeys(move.seat for move in record.moves))
