"""From what happened to what each seat is paid: small pure functions, listed in `REWARDS`, composed in YAML.

A rule reads one `Record` and yields unweighted Rewards; `pay` applies weights and addressees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from protocols.extension import Registry
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
class Param:
    """A setting of a reward (`params` in YAML): its default, which values it may have, and how to say that."""

    default: float
    valid: Callable[[float], bool]
    says: str


def above_0(value: float) -> bool:
    return value > 0.0


def at_least_0(value: float) -> bool:
    return value >= 0.0


def is_flag(value: float) -> bool:
    return value in (0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Rule:
    """A reward, what it reads, its settings, and whether two opposed sides sum to 0."""

    pay: Callable[[Record, Params], Iterator[Reward]]
    needs: Source
    params: Params = field(default_factory=dict)
    """Its settings at their defaults."""
    zero_sum: bool = False
    """`game_return`: where the returns of the game do."""
    settings: Mapping[str, Param] = field(default_factory=dict)


REWARDS: Registry[Rule] = Registry("reward")
"""Every reward there is, by its name in YAML; `protocols/rewards/registry.py` imports the files that fill it."""
Pay = Callable[[Record, Params], Iterator[Reward]]


def reward(
    name: str, needs: Source, *, zero_sum: bool = False, source: str = "", **settings: Param
) -> Callable[[Pay], Pay]:
    """Decorator that registers a function of a play's record and of its settings, which yields rewards.

    `needs`: what a protocol must have for it. `source`: paper and equation. A reward of an outside package
    registers itself the same way (`plugins:` in a config).
    """

    def add(pay: Pay) -> Pay:
        params = {key: param.default for key, param in settings.items()}
        rule = Rule(pay, needs, params, zero_sum, settings)
        REWARDS.register(name, reads=settings, needs=(needs,), source=source)(rule)
        return pay

    return add


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
