"""Rewards that rest on an exact check."""

from __future__ import annotations

import math
from collections.abc import Iterator

from protocols.rewards.record import Param, Params, Record, above_0, reward
from protocols.types import Reward


@reward("correct", "verifier")
def correct(record: Record, params: Params) -> Iterator[Reward]:
    """1 for a right answer, 0 for a wrong one, as the exact verifier says."""
    assert record.score is not None, "the verifier has not spoken"
    for move in record.moves:
        yield Reward(move.seat, move.turn, record.score, "correct")


@reward("partly_correct", "verifier")
def partly_correct(record: Record, params: Params) -> Iterator[Reward]:
    """How much of the answer is right, in [0, 1], as the exact verifier grades it: a task too hard to be solved by
    chance still tells better tries from worse ones."""
    assert record.score is not None, "the verifier has not spoken"
    for move in record.moves:
        yield Reward(move.seat, move.turn, record.grade, "partly_correct")


@reward("right_choice", "choices")
def right_choice(record: Record, params: Params) -> Iterator[Reward]:
    """1 for each choice of the right answer, 0 for another or for none of the choices."""
    for move in record.moves:
        if move.right is not None:
            yield Reward(move.seat, move.turn, float(move.right), "right_choice")


@reward("right_verdict", "verdicts")
def right_verdict(record: Record, params: Params) -> Iterator[Reward]:
    """1 for each vote of a judge for the right answer, 0 for another; nothing for a vote that could not be read, or of
    a judge that is held out. How to train a judge that writes; the probabilities of one that is read are trained by
    the signal `truth`. A policy is credited with it on its trusted tasks only (LearnerConfig.trusted)."""
    for verdict in record.verdicts:
        yield Reward(verdict.seat, verdict.turn, float(verdict.right), "right_verdict")


@reward("learnability", "sub-plays", source="arXiv 2508.05004")
def learnability(record: Record, params: Params) -> Iterator[Reward]:
    """4p(1 - p), p the mean score of the sub-plays: 1 where they are won half of the time, 0 where always or never.

    Paid for valid proposals (the shape of R-Zero, arXiv 2508.05004, and of Sukhbaatar's learning frontier).
    """
    if record.proposal_valid and record.sub_scores:
        p = math.fsum(record.sub_scores) / len(record.sub_scores)
        for move in record.moves:
            yield Reward(move.seat, move.turn, 4.0 * p * (1.0 - p), "learnability")


@reward("invalid_proposal", "sub-plays")
def invalid_proposal(record: Record, params: Params) -> Iterator[Reward]:
    """-1 for a proposal that describes no task."""
    if not record.proposal_valid:
        for move in record.moves:
            yield Reward(move.seat, move.turn, -1.0, "invalid_proposal")


@reward("game_return", "game", zero_sum=True, forfeit=Param(1.0, above_0, "above 0 (as the game pays)"))
def game_return(record: Record, params: Params) -> Iterator[Reward]:
    """What the rules of the game pay. Of a game that was not played to its end, each seat that forfeited it pays
    `forfeit` and the others share that in equal parts; nobody pays where all forfeited."""
    for seat, value in record.returns.items():
        yield Reward(seat, None, value, "game_return")
    others = [seat for seat in record.roles if seat not in record.forfeited]
    if record.forfeited and others:
        for seat in record.forfeited:
            yield Reward(seat, None, -params["forfeit"], "game_return")
        for seat in others:
            yield Reward(seat, None, params["forfeit"] * len(record.forfeited) / len(others), "game_return")
