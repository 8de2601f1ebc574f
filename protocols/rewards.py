"""From what happened to what each seat is paid: small pure functions, listed in `REWARDS`, composed in YAML.

A rule reads one `Record` and yields unweighted Rewards; `pay` applies weights and addressees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from protocols import rewards_judged as judged, rewards_social as social
from protocols.types import Reward

Belief = tuple[float, ...]
Params = Mapping[str, float]
Source = Literal[
    "turns", "word limits", "legal moves", "choices", "beliefs", "final belief", "verdicts", "verifier", "sub-plays",
    "game", "vote", "ratings", "result", "forecasts", "verdict on an answer", "grades", "two judgments", "quotes",
]  # fmt: skip
"""What a reward reads, and what a protocol may have to offer."""


@dataclass(frozen=True)
class RewardTerm:
    """One line of a protocol's `rewards:`."""

    name: str
    """A key of `REWARDS`."""
    weight: float = 1.0
    params: dict[str, float] = field(default_factory=dict)
    """That reward's own settings, by name."""
    to: list[str] = field(default_factory=list)
    """Seats or roles that get it; empty: all that it speaks about."""


@dataclass(frozen=True, slots=True)
class Move:
    """One turn of a seat that is no judge."""

    seat: str
    turn: int
    rejected: bool = False
    """An illegal or false move, which had no effect."""
    unfinished: bool = False
    """Cut off by the token limit, or blank."""
    unparsed: bool = False
    """Not written in the parts that its phase asks for: nobody heard it."""
    off_length: float = 0.0
    """By what share of the limit the words that were to be heard are more than soft_words or fewer than min_words."""
    unverified: int = 0
    """How many of its quotes do not stand in what it was to quote from."""
    right: bool | None = None
    """Whether it chose the right answer; None where it was not to choose, or which is right is not known."""
    before: int | None = None
    """Index into `Record.beliefs` of the last belief before the move; None where the judge did not see it."""
    after: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One written vote of a judge that decides: whether it named the right answer. An unreadable one is none."""

    seat: str
    turn: int
    right: bool


@dataclass(frozen=True, slots=True)
class Record:
    """What a finished play knows. `roles`: seat -> role; `sides`: seat -> index of the claim it argues."""

    roles: Mapping[str, str]
    moves: Sequence[Move] = ()
    sides: Mapping[str, int] = field(default_factory=dict)
    beliefs: Sequence[Belief] = ()
    score: float | None = None
    """Of an exact verifier: 1 right, 0 wrong."""
    grade: float = 0.0
    """Of an exact verifier: how much of the answer is right, in [0, 1]."""
    sub_scores: Sequence[float] = ()
    """Scores of the sub-plays that have one."""
    proposal_valid: bool = True
    duplicates: float | None = None
    """The share of the proposals of this play that are like this one; None where it is the only one."""
    returns: Mapping[str, float] = field(default_factory=dict)
    """seat -> what a game that was played to its end pays it."""
    forfeited: Sequence[str] = ()
    """Seats whose illegal moves ended a game."""
    verdicts: Sequence[Verdict] = ()
    """Where the right answer is known."""
    votes_truth: float | None = None
    """The share of votes for the right answer; None without a vote, or where which is right is not known."""
    ratings: Sequence[float] = ()
    """Of the first and the last version of what was written, in [0, 1]."""
    results: Mapping[str, float] = field(default_factory=dict)
    """seat -> what a game's own rules give it."""
    verdict: Belief = ()
    """What a judge came to, where `beliefs` are forecasts of it; or the probability that an answer is right."""
    truth: int | None = None
    """Index of the right claim, where it is known."""
    graded: Sequence[str] = ()
    """Seats that a judge grades: then `beliefs` are their grades in [0, 1], in this order."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A reward, what it reads, its settings with their defaults, and whether two opposed sides sum to 0."""

    pay: Callable[[Record, Params], Iterator[Reward]]
    needs: Source
    params: Params = field(default_factory=dict)
    zero_sum: bool = False
    """`game_return`: where the returns of the game do."""


def log_odds(belief: Belief, side: int, clip: float) -> float:
    """log(p / (1 - p)) of the claim `side` in nats, clipped to [-clip, clip]: a certain judge stays finite.

    1 - p is summed from the other claims, so with two claims the two sides are exactly opposed.
    """
    mine, theirs = belief[side], math.fsum(p for i, p in enumerate(belief) if i != side)
    if mine <= 0.0 or theirs <= 0.0:
        return clip if mine > theirs else -clip if mine < theirs else 0.0
    return min(clip, max(-clip, math.log(mine) - math.log(theirs)))


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


def win(record: Record, params: Params) -> Iterator[Reward]:
    """+1 for the side that the judge's final belief favours, -1 for the other, 0 on a tie (Irving 2018)."""
    for seat, side, team in _sided(record):
        lead = _lead(record.beliefs[-1], side)
        yield Reward(seat, None, ((lead > 0) - (lead < 0)) / team, "win")


def win_probability(record: Record, params: Params) -> Iterator[Reward]:
    """2p - 1, p the judge's final probability of the seat's claim."""
    for seat, side, team in _sided(record):
        yield Reward(seat, None, _lead(record.beliefs[-1], side) / team, "win_probability")


def win_logit(record: Record, params: Params) -> Iterator[Reward]:
    """The judge's final log odds of the seat's claim (nats), clipped to plus or minus `clip`."""
    for seat, side, team in _sided(record):
        yield Reward(seat, None, log_odds(record.beliefs[-1], side, params["clip"]) / team, "win_logit")


def illegal(record: Record, params: Params) -> Iterator[Reward]:
    """-1 for each rejected move."""
    for move in record.moves:
        if move.rejected:
            yield Reward(move.seat, move.turn, -1.0, "illegal")


def format_(record: Record, params: Params) -> Iterator[Reward]:
    """-1 for each reply that is blank, was cut off by its token limit or lacks the parts it should have."""
    for move in record.moves:
        if move.unfinished or move.unparsed:
            yield Reward(move.seat, move.turn, -1.0, "format")


def length(record: Record, params: Params) -> Iterator[Reward]:
    """Minus the share by which a turn is longer than its soft_words or shorter than its min_words, at most `cap`."""
    for move in record.moves:
        if move.off_length:
            yield Reward(move.seat, move.turn, -min(move.off_length, params["cap"]), "length")


def correct(record: Record, params: Params) -> Iterator[Reward]:
    """1 for a right answer, 0 for a wrong one, as the exact verifier says."""
    assert record.score is not None, "the verifier has not spoken"
    for move in record.moves:
        yield Reward(move.seat, move.turn, record.score, "correct")


def partly_correct(record: Record, params: Params) -> Iterator[Reward]:
    """How much of the answer is right, in [0, 1], as the exact verifier grades it: a task too hard to be solved by
    chance still tells better tries from worse ones."""
    assert record.score is not None, "the verifier has not spoken"
    for move in record.moves:
        yield Reward(move.seat, move.turn, record.grade, "partly_correct")


def right_choice(record: Record, params: Params) -> Iterator[Reward]:
    """1 for each choice of the right answer, 0 for another or for none of the choices."""
    for move in record.moves:
        if move.right is not None:
            yield Reward(move.seat, move.turn, float(move.right), "right_choice")


def right_verdict(record: Record, params: Params) -> Iterator[Reward]:
    """1 for each vote of a judge for the right answer, 0 for another; nothing for a vote that could not be read, or of
    a judge that is held out. How to train a judge that writes; the probabilities of one that is read are trained by
    the signal `truth`. A policy is credited with it on its trusted tasks only (LearnerConfig.trusted)."""
    for verdict in record.verdicts:
        yield Reward(verdict.seat, verdict.turn, float(verdict.right), "right_verdict")


def learnability(record: Record, params: Params) -> Iterator[Reward]:
    """4p(1 - p), p the mean score of the sub-plays: 1 where they are won half of the time, 0 where always or never.

    Paid for valid proposals (the shape of R-Zero, arXiv 2508.05004, and of Sukhbaatar's learning frontier).
    """
    if record.proposal_valid and record.sub_scores:
        p = math.fsum(record.sub_scores) / len(record.sub_scores)
        for move in record.moves:
            yield Reward(move.seat, move.turn, 4.0 * p * (1.0 - p), "learnability")


def invalid_proposal(record: Record, params: Params) -> Iterator[Reward]:
    """-1 for a proposal that describes no task."""
    if not record.proposal_valid:
        for move in record.moves:
            yield Reward(move.seat, move.turn, -1.0, "invalid_proposal")


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


_CLIP = {"clip": 8.0}

REWARDS: dict[str, Rule] = {
    "belief_change": Rule(belief_change, "beliefs", _CLIP),
    "win": Rule(win, "final belief", zero_sum=True),
    "win_probability": Rule(win_probability, "final belief", zero_sum=True),
    "win_logit": Rule(win_logit, "final belief", _CLIP, zero_sum=True),
    "grade": Rule(judged.grade, "grades"),
    "revision_gain": Rule(judged.revision_gain, "two judgments"),
    "brier_change": Rule(judged.brier_change, "beliefs"),
    "src_sides": Rule(judged.src_sides, "final belief", {"helpful": 1.0}),
    "azr": Rule(judged.azr, "sub-plays"),
    "r_zero": Rule(judged.r_zero, "sub-plays", {"duplicates": 1.0}),
    "unverified_quotes": Rule(judged.unverified_quotes, "quotes"),
    "illegal": Rule(illegal, "legal moves"),
    "format": Rule(format_, "turns"),
    "length": Rule(length, "word limits", {"cap": 1.0}),
    "right_choice": Rule(right_choice, "choices"),
    "right_verdict": Rule(right_verdict, "verdicts"),
    "correct": Rule(correct, "verifier"),
    "partly_correct": Rule(partly_correct, "verifier"),
    "learnability": Rule(learnability, "sub-plays"),
    "invalid_proposal": Rule(invalid_proposal, "sub-plays"),
    "game_return": Rule(game_return, "game", {"forfeit": 1.0}, zero_sum=True),
    "team_right": Rule(social.team_right, "vote"),
    "correction_gain": Rule(social.correction_gain, "choices"),
    "rating": Rule(social.rating, "ratings"),
    "improvement": Rule(social.improvement, "ratings"),
    "game_result": Rule(social.game_result, "result"),
    "forecast": Rule(social.forecast, "forecasts"),
    "market_move": Rule(social.market_move, "forecasts"),
    "src": Rule(social.src, "verdict on an answer"),
    "verdict_score": Rule(social.verdict_score, "verdict on an answer"),
}


def pay(terms: Sequence[RewardTerm], record: Record) -> tuple[Reward, ...]:
    """All rewards of a play. The rewards of one turn add up; one with `turn=None` is for the whole episode."""
    paid = []
    for term in terms:
        rule = REWARDS[term.name]
        params = {**rule.params, **term.params} if term.params else rule.params
        for r in rule.pay(record, params):
            if not term.to or r.seat in term.to or record.roles[r.seat] in term.to:
                paid.append(Reward(r.seat, r.turn, r.value * term.weight, r.name))
    return tuple(paid)


def reward_problems(
    terms: Sequence[RewardTerm], has: set[Source], roles: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Mistakes in a `rewards:` list of a protocol that has these sources and seats, as (path, message)."""
    found = []
    possible = sorted(name for name, rule in REWARDS.items() if rule.needs in has)
    addressees = sorted({*roles, *roles.values()})
    for i, term in enumerate(terms):
        rule = REWARDS.get(term.name)
        if rule is None:
            found.append(
                (f"rewards.{i}.name", f"unknown reward {term.name!r}; valid here: {', '.join(possible)}")
            )
            continue
        if rule.needs not in has:
            message = (f"reward {term.name!r} needs {_LACKING[rule.needs]}, which this protocol does not have; "
                       f"valid here: {', '.join(possible)}")  # fmt: skip
            found.append((f"rewards.{i}.name", message))
        for key in sorted(set(term.params) - set(rule.params)):
            valid = ", ".join(rule.params) or "none"
            found.append(
                (f"rewards.{i}.params.{key}", f"{term.name!r} has no setting {key!r}; valid: {valid}")
            )
        for key, unit in (("clip", "nats"), ("cap", "share of the limit"), ("forfeit", "as the game pays")):
            if not term.params.get(key, 1.0) > 0.0:
                found.append((f"rewards.{i}.params.{key}", f"must be above 0 ({unit})"))
        if not term.params.get("duplicates", 0.0) >= 0.0:
            found.append((f"rewards.{i}.params.duplicates", "must be at least 0 (weight of the share of duplicates)"))
        if term.params.get("helpful", 1.0) not in (0.0, 1.0):
            found.append((f"rewards.{i}.params.helpful", "must be 1 (a helpful prover) or 0 (a sneaky one)"))
        if not math.isfinite(term.weight) or term.weight == 0.0:
            found.append((f"rewards.{i}.weight", "must be finite and not 0"))
        for who in term.to:
            if who not in addressees:
                found.append((f"rewards.{i}.to", f"no seat or role {who!r}; valid: {', '.join(addressees)}"))
    return found


_LACKING: dict[Source, str] = {
    "turns": "turns",
    "word limits": "a phase with soft_words or min_words",
    "legal moves": "a phase that lists its legal moves (moves: evidence or choices)",
    "choices": "a phase in which seats choose (moves: choices)",
    "beliefs": "a judge polled at the start and after each turn (judge.when: each_turn)",
    "final belief": "the judgment of a judge",
    "verdicts": "judges that write their verdicts (judge.votes: 1 or more)",
    "verifier": "an exact verifier",
    "sub-plays": "sub-plays",
    "game": "the rules of a game (kind: game)",
    "vote": "a vote among the seats",
    "ratings": "a rater or a verifier of versions (kind revision), or a rater of proposals",
    "result": "a game with a result (kinds taboo, negotiation)",
    "forecasts": "forecasts of a judge's belief (kind market)",
    "verdict on an answer": "a verifier who is asked about a prover's answer (kind prover_verifier)",
    "quotes": "a phase whose quotes are checked (quotes: [MATERIAL])",
    "grades": "a judge that grades seats (judge.grade.of: seats)",
    "two judgments": "a judge who is asked more than once (judge.when: each_turn, or phases with two in after)",
}


def _sided(record: Record) -> Iterator[tuple[str, int, int]]:
    """(seat, its side, seats on that side): a team shares its pay, so sides stay balanced."""
    sides = list(record.sides.values())
    for seat, side in record.sides.items():
        yield seat, side, sides.count(side)


def _lead(belief: Belief, side: int) -> float:
    """p of the claim minus p of its strongest rival; with two claims 2p - 1, exactly opposed for the two."""
    return belief[side] - max(p for i, p in enumerate(belief) if i != side)
