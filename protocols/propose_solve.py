"""The kind `propose_solve`: a proposer describes a task, and a child protocol is played on it several times.

The proposer is paid for tasks that are neither hopeless nor easy (learnability). A task that brings its proposal
along (`PROPOSAL`: replay from an archive, controls, held-out sets) is played without asking the proposer.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from protocols.base import Answer, Ask, Play, Protocol, SubPlay
from protocols.rewards import Move, Record, RewardTerm, pay, reward_problems
from protocols.templates import literals, render, template_problems
from protocols.types import (
    EXAMPLE,
    PROPOSAL,
    InvalidProposal,
    Outcome,
    Reward,
    Task,
    Turn,
    TurnRequest,
    VerifierError,
)  # fmt: skip
from protocols.views import as_reply, fresh_chat, hidden_values


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a proposal is played."""

    valid: bool = True
    ratings: tuple[float, ...] = ()
    """For `Record.ratings`."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""
    """Why that could not be decided: missing data."""


_COMPARE = ("learnability", "azr", "r_zero")


@dataclass(frozen=True)
class ProposeSolve(Protocol):
    """Outcome.score: mean score of the child plays. Children without a score are missing data: with fewer than
    half of them (at least 2) left, the outcome is `invalid` and the proposer is not paid."""

    kind: ClassVar[str] = "propose_solve"
    child: Protocol
    """Played on each derived task: a YAML file, or a definition with `kind:`."""
    repeats: int = 8
    """Child plays per proposal."""
    seat: str = "proposer"
    role: str = "proposer"
    system: str = ""
    prompt: str = "{{ question }}"
    """Names: question, proposals, and those listed in `hidden`."""
    hidden: list[str] = field(default_factory=list)
    """Hidden material of the task shown to the proposer; the task must allow it."""
    proposals: Literal["choices", "free"] = "free"
    """choices: one of `Task.proposals`. free: any text; the task's domain says whether it describes a task."""
    enforce: bool = True
    """With choices: decoding is limited to them. false: written freely and verified afterwards."""
    rewards: list[RewardTerm] = field(
        default_factory=lambda: [RewardTerm("learnability"), RewardTerm("invalid_proposal")])  # fmt: skip
    """For the proposer; the seats of the child are paid by the child."""
    max_tokens: int | None = None
    temperature: float | None = None
    name: str = ""

    def play(self, task: Task, rng: random.Random) -> Play:
        domain = task.domain
        if domain is None:
            raise ValueError(f"protocol {self.name}: task {task.id} has no domain that could derive a task")
        brought = task.hidden.get(PROPOSAL)
        moves: list[Move] = []
        if brought is not None:
            proposal, legal = brought.text, True
        else:
            reply = as_reply((yield [self._request(task)])[0])
            proposal = reply.text.strip()
            legal = self.proposals == "free" or proposal in task.proposals
            moves.append(Move(self.seat, 0, unfinished=reply.truncated or not proposal))
        # Taken off, so that tasks derived from this one do not seem to bring a proposal of their own.
        task = replace(task, hidden={k: v for k, v in task.hidden.items() if k not in (PROPOSAL, EXAMPLE)})
        try:
            derived = domain.derive(task, proposal) if legal else None
        except InvalidProposal:
            derived = None
        except VerifierError as error:
            return Outcome("invalid", reason=f"verifier: {error}")
        admission = (yield from self._admit(task, derived, moves)) if derived else Admission(False)
        if admission.failure:
            return Outcome("invalid", reason=admission.failure)
        if derived is None or not admission.valid:
            metrics = {"proposal_valid": 0.0, **admission.metrics}
            return Outcome("ok", rewards=self._pay(moves, admission), metrics=metrics)
        plays: list[Ask] = [
            SubPlay(self.child, derived, rng.getrandbits(63), str(i)) for i in range(self.repeats)
        ]
        return self._conclude(moves, (yield plays), admission)

    def _admit(self, task: Task, derived: Task, moves: Sequence[Move]) -> Generator[list[Ask], list[Answer], Admission]:
        """Whether the derived task is played. `moves`: the proposer's, none where the proposal was brought along."""
        return Admission()
        yield []  # a generator, like those that ask somebody

    def _pay(self, moves: Sequence[Move], admission: Admission, scores: Sequence[float] = ()) -> tuple[Reward, ...]:
        record = Record(
            self.roles(), moves, sub_scores=scores, proposal_valid=admission.valid, ratings=admission.ratings
        )
        return pay(self.rewards, record)

    def _request(self, task: Task) -> TurnRequest:
        values = {"question": task.question, "proposals": ", ".join(task.proposals)}
        values |= hidden_values(task, self.role, self.hidden)
        choices = task.proposals if self.proposals == "choices" else ()
        if self.proposals == "choices" and not choices:
            raise ValueError(f"protocol {self.name}: task {task.id} lists no proposals to choose from")
        example = task.hidden.get(EXAMPLE)
        return TurnRequest(
            seat=self.seat,
            role=self.role,
            messages=fresh_chat(render(self.system, values), render(self.prompt, values)),
            turn=0,
            phase="propose",
            choices=choices,
            enforce=self.enforce,
            target=None if example is None else example.text,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
        )

    def _conclude(self, moves: Sequence[Move], answers: Sequence[Answer], admission: Admission) -> Outcome:
        scores = []
        for answer in answers:
            assert isinstance(answer, Outcome), f"a sub-play was answered with {type(answer).__name__}"
            if answer.status == "ok" and answer.score is not None:
                scores.append(answer.score)
        needed = min(self.repeats, max(2, (self.repeats + 1) // 2))
        metrics = {"proposal_valid": 1.0, "children_scored": float(len(scores)), **admission.metrics}
        if len(scores) < needed:
            reason = f"{len(scores)} of {self.repeats} sub-plays have a score; at least {needed} are needed"
            return Outcome("invalid", metrics=metrics, reason=reason)
        p = sum(scores) / len(scores)
        metrics["solve_rate"] = p
        return Outcome("ok", (), self._pay(moves, admission, scores), p, metrics)

    def proposal(self, task: Task, turns: Sequence[Turn]) -> str | None:
        """What was proposed in a recorded play: for the archive. None where nothing was."""
        brought = task.hidden.get(PROPOSAL)
        if brought is not None:
            return brought.text
        return next((turn.text.strip() for turn in turns if turn.seat == self.seat), None)

    def roles(self) -> Mapping[str, str]:
        return {self.seat: self.role, **self.child.roles()}

    def problems(self) -> list[tuple[str, str]]:
        valid = ("question", "proposals", *self.hidden)
        found = template_problems("prompt", self.prompt, valid) + template_problems(
            "system", self.system, valid
        )
        child = self.child.roles()
        if self.seat in child:
            found.append(
                ("seat", f"the child protocol has a seat {self.seat!r} too; taken: {', '.join(child)}")
            )
        if PROPOSAL in self.hidden or {"question", "proposals"} & {*self.hidden}:
            found.append(
                ("hidden", f"question, proposals and {PROPOSAL} are no names for shown hidden material")
            )
        if self.repeats < 1:
            found.append(("repeats", "must be at least 1"))
        if self.repeats < 2 and any(term.name in _COMPARE for term in self.rewards):
            message = "learnability, azr and r_zero compare sub-plays of one proposal; needs at least 2"
            found.append(("repeats", message))
        if self.proposals == "free" and not self.enforce:
            found.append(("enforce", "has no effect on free proposals; valid with proposals: choices"))
        if self.max_tokens is not None and self.max_tokens < 1:
            found.append(("max_tokens", "must be at least 1"))
        if self.temperature is not None and self.temperature < 0:
            found.append(("temperature", "must be at least 0"))
        found += reward_problems(self.rewards, {"turns", "sub-plays"}, {self.seat: self.role})
        return found + [(f"child.{path}", message) for path, message in self.child.problems()]

    def literal_texts(self) -> list[str]:
        """Every fixed text that a seat may be sent: the words that a small vocabulary must hold."""
        own = [text for text in map(literals, (self.system, self.prompt)) if text.strip()]
        return own + list(getattr(self.child, "literal_texts", list)())
