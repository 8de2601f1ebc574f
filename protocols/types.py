"""The vocabulary of Dissoi: one dataclass per noun, used with the same meaning everywhere.

Nothing here knows about models, tokens, Ray or files. ARCHITECTURE.md has the table of terms.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


class InvalidProposal(ValueError):
    """A proposer's text does not describe a task of this domain. Costs the proposer; trains no solver."""


class IllegalMove(ValueError):
    """A reply is no legal move of a game; the message says what would be, for the seat that wrote it."""


class VerifierError(RuntimeError):
    """A verifier could not decide (crashed, ran out of time). Missing data: never a reward of zero."""


PROPOSAL = "proposal"
"""Key of `Task.hidden`, shown to no role, under which a task brings its proposal along: no proposer is asked."""
EXAMPLE = "example"
"""Key of `Task.hidden`, shown to no role, of a proposal that a supervised warm start of the proposer imitates."""


@dataclass(frozen=True, slots=True)
class Hidden:
    """Material of a task that only some roles may see."""

    text: str
    roles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """One problem instance. `answer` is for verifiers and rewards; no seat is ever shown it by its name."""

    id: str
    question: str
    answer: str | None = None
    choices: tuple[str, ...] = ()
    """The competing answers. Index 0 belongs to the first side, index 1 to the second."""
    evidence: tuple[str, ...] = ()
    """Every true statement that a seat may reveal, in canonical order (the order a judge sees them in)."""
    hidden: Mapping[str, Hidden] = field(default_factory=dict)
    proposals: tuple[str, ...] = ()
    """What a proposer may propose about this task; empty where proposals are free text."""
    domain: Domain | None = None
    """Derives tasks from proposals and checks answers. Not part of the record."""
    game: Game | None = None
    """The rules that the kind `game` plays by. Not part of the record."""
    parent: str | None = None


class Domain(ABC):
    """What a protocol may ask of the subject matter. Implemented in `tasks/`."""

    @abstractmethod
    def derive(self, task: Task, proposal: str) -> Task:
        """The task that `proposal` describes. Raises `InvalidProposal`."""

    @abstractmethod
    def check(self, task: Task, answer: str) -> bool:
        """Whether `answer` is right. Raises `VerifierError` when that cannot be decided."""

    def grade(self, task: Task, answer: str) -> float:
        """How much of `answer` is right, in [0, 1], and 1 for right answers only. All or nothing unless a domain
        knows better. Raises `VerifierError`."""
        return float(self.check(task, answer))


class Game(ABC):
    """Formal rules by which players, numbered from 0, move in turn or at once. Implemented in `tasks/`."""

    @property
    @abstractmethod
    def players(self) -> int:
        """How many there are."""

    @abstractmethod
    def start(self, rng: random.Random) -> GameState:
        """The first position. `rng` is for games that draw within themselves: a play must depend on nothing else."""


class GameState(ABC):
    """A position of one play, changed in place. Moves are texts."""

    @property
    @abstractmethod
    def over(self) -> bool:
        """Whether the game has ended; then there are `returns`."""

    @abstractmethod
    def chances(self) -> Sequence[float]:
        """At a chance node, the probability of each outcome; empty elsewhere."""

    @abstractmethod
    def draw(self, outcome: int) -> None:
        """Chance takes its outcome of that index."""

    @abstractmethod
    def movers(self) -> Sequence[int]:
        """The players who move now, all at once."""

    @abstractmethod
    def legal(self, player: int) -> tuple[str, ...]:
        """Every move that a player may make now; empty where it is free text."""

    @abstractmethod
    def known(self, player: int) -> str:
        """All that a player knows, in words: its information state. Positions that it can tell apart for its
        purposes differ in it, and positions that it cannot tell apart do not: what the others hold is not in it."""

    def news(self, player: int) -> str:
        """What a player has not been told yet, for a chat that goes on. Asked once for each of its moves."""
        return self.known(player)

    def read(self, player: int, text: str) -> str:
        """The move that a reply means. Raises `IllegalMove`, with a message for the player."""
        move = text.strip()
        if move not in self.legal(player):
            raise IllegalMove(f"{move[:40]!r} is not legal")
        return move

    @abstractmethod
    def apply(self, moves: Mapping[int, str]) -> None:
        """The move of each of `movers`."""

    @abstractmethod
    def returns(self) -> tuple[float, ...]:
        """What the game pays each player, at its end. Raises `VerifierError` where it does not say: missing data."""


Speaker = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One entry of a seat's chat, as that seat sees it."""

    speaker: Speaker
    text: str


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """What the protocol asks of a seat. Built before any reply of the same yield exists."""

    seat: str
    role: str
    messages: tuple[Message, ...]
    """The whole chat of this seat; starts with system or user, alternates, ends with user."""
    turn: int
    """Index of this turn among the turns of this seat in this episode, from 0."""
    phase: str = ""
    choices: tuple[str, ...] = ()
    """The legal replies; empty means free text."""
    enforce: bool = True
    """With choices: decoding is limited to them. False: the model writes freely, the protocol verifies
    the text against them (and teachers of warm starts draw from them)."""
    read: bool = False
    """With choices: do not sample, read the probability of each choice (a judge's verdict)."""
    grades: tuple[tuple[str, float, float], ...] = ()
    """A judge's reply is to end in a number for each of these names, from the lowest to the highest that is legal."""
    target: str | None = None
    """The right reply where the protocol knows it (supervised warm starts, trusted slices). Never shown."""
    fresh: bool = False
    """The chat was rendered anew for this turn: it does not continue the seat's earlier chat."""
    situation: str = ""
    """Names what the seat's reward may be compared with besides task, role and turn: for example
    which side it argues and whether it spoke first. Part of the group key; never shown."""
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    """Set by whoever runs the play, for players that are to draw the same every time."""


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """How a reply was produced. Axes: P prompt tokens, T reply tokens."""

    prompt_ids_P: tuple[int, ...]
    output_ids_T: tuple[int, ...]
    logprobs_T: tuple[float, ...]
    """Natural-log probability of each sampled token, after temperature and mask; empty for reads."""
    versions_T: tuple[int, ...]
    """Step of the policy whose weights sampled each token."""
    allowed_T: tuple[tuple[int, ...], ...] = ()
    """Token ids that were legal at each step; empty when decoding was free."""
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Reply:
    """What a seat said. `probs` aligns with the request's choices when those were read or are known."""

    text: str
    probs: tuple[float, ...] = ()
    trace: TokenTrace | None = None
    truncated: bool = False
    unreadable: str = ""
    """Why no legal reply could be read from what was said. Missing data: it ends the play as invalid."""


@dataclass(frozen=True, slots=True)
class Judgment:
    """A judge's scores, aligned with `Task.choices`. Unreadable verdicts are `valid=False`, never a score."""

    seat: str
    scores: tuple[float, ...]
    valid: bool
    after_turn: int
    """How many public turns had been taken when the judge was asked."""
    rationale: str = ""
    decides: bool = True
    """Whether the play's score and rewards rest on it: not, for one member of a panel or a held-out judge."""


@dataclass(frozen=True, slots=True)
class Reward:
    """A signal for one turn of one seat. `turn` is the seat's own turn index; None is the whole episode."""

    seat: str
    turn: int | None
    value: float
    name: str


Status = Literal["ok", "invalid", "lost", "filtered", "cancelled"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a protocol concludes. Status `invalid`: missing data somewhere, `reason` says what; trains nothing.
    Whoever runs the play may set others: `lost` with its engine, `filtered` or `cancelled` with its
    group."""

    status: Status = "ok"
    judgments: tuple[Judgment, ...] = ()
    rewards: tuple[Reward, ...] = ()
    score: float | None = None
    """Success of the play in [0, 1] against ground truth (truth won, answer right); None when unknown."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    answer: str = field(default="", compare=False)
    """What a play without claims came to in words, for the play that asked for it. Not part of the record."""


@dataclass(frozen=True, slots=True)
class Turn:
    """The record of one request and its reply."""

    seat: str
    role: str
    policy: str
    turn: int
    phase: str
    messages: tuple[Message, ...]
    text: str
    choices: tuple[str, ...] = ()
    probs: tuple[float, ...] = ()
    read: bool = False
    fresh: bool = False
    target: str | None = None
    situation: str = ""
    truncated: bool = False
    trace: TokenTrace | None = None


@dataclass(frozen=True, slots=True)
class Episode:
    """One play of a protocol on one task. Sub-plays are episodes of their own with `parent` set."""

    id: str
    protocol: str
    task: Task
    seed: int
    turns: tuple[Turn, ...]
    outcome: Outcome
    parent: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> Status:
        return self.outcome.status
