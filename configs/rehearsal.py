"""Rehearsals: plays with made-up replies on the stage's own tasks, to see what a protocol asks of each role.

Whether a policy could learn anything depends on rules, tasks and rewards together. Instead of a second copy of the
rules of every kind of protocol, the checks play it, as `launch.py protocol check` does, and look.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from protocols.base import Protocol
from protocols.contract.drive import Endless, Trace, drive
from protocols.errors import UserError
from protocols.kinds.propose_solve import ProposeSolve
from protocols.proposals import carried_proposal
from protocols.types import Reply, Task, TurnRequest
from tasks.base import TaskSource, real_task, training_task

PLAYS = 48
"""Plays of one rehearsal, unless it has seen enough before."""
SIBLINGS = 4
"""Plays of one task in a row."""
YIELDS = 2_000
"""Of one play; one that is longer is left undecided."""
RARE = 0.2
"""How often a made-up reply is blank, cut off, illegal or wordy: what rewards for form pay for."""


@dataclass
class Rehearsal:
    """What was seen in the plays that came to an end. All sets hold roles."""

    roles: frozenset[str] = frozenset()
    """All that the protocol has."""
    ended: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """Protocol -> why a play of it was invalid."""
    sound: set[str] = field(default_factory=set)
    """Protocols of which some play came to an end."""
    sampled: set[str] = field(default_factory=set)
    """Who took turns that engines sample."""
    paid: set[str] = field(default_factory=set)
    """Who took such turns and was paid for one of them or for the play."""
    read: set[str] = field(default_factory=set)
    """Whose probabilities were read."""
    answered: set[str] = field(default_factory=set)
    """Who was read where the right answer was known."""
    free: set[str] = field(default_factory=set)
    """Who was asked for a reply without a list of legal ones."""
    untaught: set[str] = field(default_factory=set)
    """Who was asked for free text to which no right reply is known: no teacher can give one."""
    taught: set[str] = field(default_factory=set)
    """Who was asked for something that a teacher can show: a right reply, or one of several legal ones."""
    paired: set[str] = field(default_factory=set)
    """Who was paid for a turn that it took, after the very same messages, in another play of the task too."""
    begun: set[str] = field(default_factory=set)
    """Who was paid in a play and took some turn after the same messages in another play of the task."""
    amounts: dict[str, set[float]] = field(default_factory=dict)
    """What seats of a role were paid in all, over all plays."""
    scored: bool = False
    """Whether some play has a score."""
    refusal: str = ""
    """Why the protocol cannot be played on these tasks."""
    _heard: set[tuple[object, ...]] = field(default_factory=set)
    """What was asked in earlier plays of the same task."""

    def enough(self) -> bool:
        """Whether more plays would hardly show more: everybody met was paid, or read where the truth is known."""
        met = self.roles <= self.sampled | self.read
        return met and self.ended > 7 and self.sampled <= self.paid & self.paired and self.read <= self.answered

    def look(self, trace: Trace, name: str) -> None:
        """Adds one play and its sub-plays."""
        for child in trace.children:
            self.look(child, f"sub-play of {name}")
        asked = [ask for asks in trace.rounds for ask, _ in asks if isinstance(ask, TurnRequest)]
        for ask in asked:
            can_be_shown = ask.target is not None or (not ask.read and len(ask.choices) > 1)
            (self.taught if can_be_shown else set[str]()).add(ask.role)
            if not ask.choices:
                self.free.add(ask.role)
                self.untaught |= {ask.role} if ask.target is None else set()
        if trace.outcome.status != "ok":
            self.failed[name] = trace.outcome.reason
            return
        self.sound.add(name)
        self.ended += 1
        self.scored |= trace.outcome.score is not None
        paid = {reward.seat for reward in trace.outcome.rewards}
        turns = {(reward.seat, reward.turn) for reward in trace.outcome.rewards}
        heard = {(ask.role, ask.situation, ask.turn, ask.messages): ask for ask in asked if not ask.read}
        for key, ask in heard.items():
            if key in self._heard and ask.seat in paid:
                self.begun.add(ask.role)
                if turns & {(ask.seat, None), (ask.seat, ask.turn)}:
                    self.paired.add(ask.role)
        self._heard |= {*heard}
        for ask in asked:
            if ask.read:
                self.read.add(ask.role)
                self.answered |= {ask.role} if ask.target in ask.choices else set()
            else:
                self.sampled.add(ask.role)
                total = sum(reward.value for reward in trace.outcome.rewards if reward.seat == ask.seat)
                self.amounts.setdefault(ask.role, set()).add(round(total, 9))
                self.paid |= {ask.role} if ask.seat in paid else set()


Purpose = Literal["train", "warm", "heldout"]
Rehearse = Callable[[str, Mapping[str, Any], Purpose, frozenset[str]], Rehearsal | None]
"""(protocol, own settings of the task source, what its tasks are for, `even`) -> what was seen; None: nothing can be
said."""


def no_rehearsal(*_: object) -> None:
    """Says nothing."""


def rehearse(
    protocol: Protocol, source: TaskSource, purpose: Purpose = "train", even: frozenset[str] = frozenset()
) -> Rehearsal:
    """Plays `protocol` on tasks of `source`. `even`: roles that are played by uniform policies."""
    seen, heldout = Rehearsal(frozenset(protocol.roles().values())), purpose == "heldout"
    for number in range(PLAYS):
        rng = random.Random(f"rehearsal {number}")
        try:
            task = _task(protocol, source, purpose, number // SIBLINGS)
            player = Pretender(rng, hints(task, source), even)
            seen.look(drive(protocol, task, number, player, YIELDS), f"play of {protocol.name}")
        except UserError as error:
            seen.refusal = str(error)
            return seen
        except Endless:
            return seen
        if seen.enough() or heldout:
            break
    seen._heard.clear()
    for name in [] if heldout else sorted({*seen.failed} - seen.sound):
        seen.refusal = f"no {name} came to an end, each is invalid: {seen.failed[name]}"
    return seen


def _task(protocol: Protocol, source: TaskSource, purpose: Purpose, number: int) -> Task:
    proposes, rng = isinstance(protocol, ProposeSolve), random.Random(f"rehearsed task {number}")
    if purpose == "heldout":
        return (source.heldout if proposes else source.derived_heldout)(1, 0)[0]
    if proposes and number % 2:  # with a proposal, so that sub-plays are seen
        try:
            return real_task(source, rng)
        except LookupError:
            pass
    return training_task(source, protocol, rng, purpose == "warm")


def hints(task: Task, source: TaskSource) -> tuple[str, ...]:
    """Replies that mean something on this task."""
    try:
        proposal = carried_proposal(real_task(source, random.Random(task.id)))
    except LookupError:
        proposal = None
    hidden = [material.text for material in task.hidden.values()]
    return (*task.proposals, *task.choices, *hidden, *filter(None, (task.answer, proposal)))


@dataclass
class Pretender:
    """Answers at random in whatever form is asked for, sometimes badly."""

    rng: random.Random
    hints: tuple[str, ...] = ()
    even: frozenset[str] = frozenset()
    """Roles whose probabilities are always even."""

    def __call__(self, request: TurnRequest) -> Reply:
        rng = self.rng
        if request.read:
            weights = [1.0 if request.role in self.even else rng.random() + 0.01 for _ in request.choices]
            return Reply(rng.choice(request.choices), tuple(weight / sum(weights) for weight in weights))
        if request.grades:
            return Reply(json.dumps({name: rng.uniform(low, high) for name, low, high in request.grades}))
        badly = rng.random() < RARE
        if request.target is not None and rng.random() < 0.5:
            return Reply(request.target)
        if request.choices and (request.enforce or not badly):
            return Reply(rng.choice(request.choices))
        if badly:
            return Reply(rng.choice(["", "no such move", "<quote>made up</quote>", "words " * 200]), truncated=True)
        if self.hints and rng.random() < 0.5:
            return Reply(rng.choice(self.hints))
        return Reply(rng.choice(["some words", "OFFER 3", "ACCEPT", "7"]))
