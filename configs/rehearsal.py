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
from protocols.types import Reply, Task, TurnRequest
from tasks.base import TaskSource, training_task

PLAYS = 48
"""Plays of one rehearsal, unless it has seen enough before."""
YIELDS = 2_000
"""Of one play; one that is longer is left undecided."""
RARE = 0.2
"""How often a made-up reply is blank, cut off, illegal or wordy: what rewards for form pay for."""


@dataclass
class Rehearsal:
    """What was seen in the plays that came to an end. All sets hold roles."""

    ended: int = 0
    sampled: set[str] = field(default_factory=set)
    """Who took turns that engines sample."""
    paid: set[str] = field(default_factory=set)
    """Who took such turns and was paid for one of them or for the play."""
    read: set[str] = field(default_factory=set)
    """Whose probabilities were read."""
    answered: set[str] = field(default_factory=set)
    """Who was read where the right answer was known."""
    untaught: set[str] = field(default_factory=set)
    """Who was asked for free text to which no right reply is known: no teacher can give one."""
    taught: set[str] = field(default_factory=set)
    """Who was asked for something that a teacher can show: a right reply, or one of several legal ones."""
    scored: bool = False
    """Whether some play has a score."""
    refusal: str = ""
    """Why the protocol cannot be played on these tasks."""

    def enough(self) -> bool:
        """Whether more plays would hardly show more: everybody met was paid, or read where the truth is known."""
        return self.ended > 7 and self.sampled <= self.paid and self.read <= self.answered

    def look(self, trace: Trace) -> None:
        """Adds one play and its sub-plays."""
        for child in trace.children:
            self.look(child)
        asked = [ask for asks in trace.rounds for ask, _ in asks if isinstance(ask, TurnRequest)]
        for ask in asked:
            can_be_shown = ask.target is not None or (not ask.read and len(ask.choices) > 1)
            (self.taught if can_be_shown else set[str]()).add(ask.role)
            if ask.target is None and not ask.choices:
                self.untaught.add(ask.role)
        if trace.outcome.status != "ok":
            return
        self.ended += 1
        self.scored |= trace.outcome.score is not None
        paid = {reward.seat for reward in trace.outcome.rewards}
        for ask in asked:
            if ask.read:
                self.read.add(ask.role)
                self.answered |= {ask.role} if ask.target in ask.choices else set()
            else:
                self.sampled.add(ask.role)
                self.paid |= {ask.role} if ask.seat in paid else set()


Purpose = Literal["train", "warm", "heldout"]
Rehearse = Callable[[str, Mapping[str, Any], Purpose], Rehearsal | None]
"""(protocol, own settings of the task source, what its tasks are for) -> what was seen; None: nothing can be said."""


def rehearse(protocol: Protocol, source: TaskSource, purpose: Purpose = "train") -> Rehearsal:
    """Plays `protocol` on tasks of `source`."""
    seen, heldout = Rehearsal(), purpose == "heldout"
    for number in range(PLAYS):
        rng = random.Random(f"rehearsal {number}")
        try:
            task = _heldout(protocol, source) if heldout else training_task(source, protocol, rng, purpose == "warm")
            seen.look(drive(protocol, task, number, _Pretender(rng), YIELDS))
        except UserError as error:
            seen.refusal = str(error)
            return seen
        except Endless:
            return seen
        if seen.enough() or heldout:
            return seen
    return seen


def _heldout(protocol: Protocol, source: TaskSource) -> Task:
    proposes = protocol.kind.startswith("propose_solve")
    return (source.heldout if proposes else source.derived_heldout)(1, 0)[0]


@dataclass
class _Pretender:
    """Answers at random in whatever form is asked for, sometimes badly."""

    rng: random.Random

    def __call__(self, request: TurnRequest) -> Reply:
        rng = self.rng
        if request.read:
            weights = [rng.random() + 0.01 for _ in request.choices]
            return Reply(rng.choice(request.choices), tuple(weight / sum(weights) for weight in weights))
        if request.grades:
            return Reply(json.dumps({name: rng.uniform(low, high) for name, low, high in request.grades}))
        badly = rng.random() < RARE
        if request.target is not None and rng.random() < 0.5:
            return Reply(request.target)
        if request.choices and (request.enforce or not badly):
            return Reply(rng.choice(request.choices))
        if badly:
            return Reply(rng.choice(["", "no such move", "<quote>made up</quote>", "words " * 400]), truncated=True)
        return Reply(rng.choice(["some words", "OFFER 3", "ACCEPT", "7"]))
