"""The kind `propose_solve`: a proposer describes a task, and a child protocol is played on it several times.

The proposer is paid for tasks that are neither hopeless nor easy (learnability). A task that brings its proposal
along (`PROPOSAL`: replay from an archive, controls, held-out sets) is played without asking the proposer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from protocols.base import Answer, Ask, Play, Protocol, SubPlay
from protocols.chat import as_reply, fresh_chat, hidden_values
from protocols.errors import UserError
from protocols.kinds.duplicates import shares
from protocols.rewards.record import Move, Record, RewardTerm
from protocols.rewards.registry import pay, reward_problems
from protocols.templates import literals, render, template_problems
from protocols.types import (
    EXAMPLE,
    PROPOSAL,
    Episode,
    InvalidProposal,
    Outcome,
    Reward,
    Task,
    Turn,
    TurnRequest,
    VerifierError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a proposal is played."""

    valid: bool = True
    ratings: tuple[float, ...] = ()
    """For `Record.ratings`."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""
    """Why that could not be decided: missing data."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One proposal of a play."""

    text: str
    move: Move | None
    """The proposer's turn; None where the task brought the proposal along."""
    task: Task | None = None
    """What it describes; None where that is no task."""
    admission: Admission = Admission(False)
    share: float | None = None
    """With `batch`: the share of the batch's proposals that are like this one."""

    @property
    def turn(self) -> int:
        return 0 if self.move is None else self.move.turn


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
    batch: int = 1
    """Proposals that are asked for at once, in chats that know nothing of each other: they are one play, each is paid
    by its own sub-plays, and `r_zero` fines those that are alike. To compare them with each other, leave `turn` out of
    `advantage.group_by`."""
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
            raise UserError(f"protocol {self.name}: task {task.id} has no domain that could derive a task")
        tried = yield from self._propose(task)
        # Taken off, so that tasks derived from this one do not seem to bring a proposal of their own.
        task = replace(task, hidden={k: v for k, v in task.hidden.items() if k not in (PROPOSAL, EXAMPLE)})
        failures = []
        for i, one in enumerate(tried):
            try:
                legal = one.move is None or self.proposals == "free" or one.text in task.proposals
                derived = domain.derive(task, one.text) if legal else None
                admission = (yield from self._admit(task, derived, one)) if derived else Admission(False)
            except InvalidProposal:
                derived, admission = None, Admission(False)
            except VerifierError as error:
                derived, admission = None, Admission(False, failure=f"verifier: {error}")
            tried[i] = replace(one, task=derived, admission=admission)
            failures += [admission.failure] if admission.failure else []
        known = [one for one in tried if not one.admission.failure]
        if not known:
            return Outcome("invalid", reason=failures[0])
        plays: list[Ask] = [
            SubPlay(self.child, one.task, rng.getrandbits(63), f"{one.turn}.{n}" if self.batch > 1 else str(n))
            for one in known if one.task is not None and one.admission.valid
            for n in range(self.repeats)
        ]  # fmt: skip
        if not plays:
            return Outcome("ok", rewards=self._pay(known), metrics=_metrics(known))
        return self._conclude(known, (yield plays))

    def _propose(self, task: Task) -> Generator[list[Ask], list[Answer], list[Tried]]:
        """What is proposed, by the task itself or by the proposer."""
        brought = task.hidden.get(PROPOSAL)
        if brought is not None:
            return [Tried(brought.text, None)]
        request = self._request(task)
        asked: list[Ask] = [request]
        if self.batch > 1:
            asked = [replace(request, turn=turn, fresh=True) for turn in range(self.batch)]
        replies = [as_reply(answer) for answer in (yield asked)]
        texts = [reply.text.strip() for reply in replies]
        alike: Sequence[float | None] = shares(texts) if self.batch > 1 else [None]
        return [
            Tried(text, Move(self.seat, turn, unfinished=reply.truncated or not text), share=share)
            for turn, (reply, text, share) in enumerate(zip(replies, texts, alike))
        ]

    def _admit(self, task: Task, derived: Task, tried: Tried) -> Generator[list[Ask], list[Answer], Admission]:
        """Whether the derived task is played."""
        return Admission()
        yield []  # a generator, like those that ask somebody

    def _pay(self, tried: Sequence[Tried], scores: Mapping[int, Sequence[float]] | None = None) -> tuple[Reward, ...]:
        """What the proposer gets for each proposal. `scores`: turn of a proposal -> scores of its sub-plays."""
        paid: list[Reward] = []
        for one in tried:
            record = Record(
                self.roles(), [] if one.move is None else [one.move], sub_scores=(scores or {}).get(one.turn, ()),
                proposal_valid=one.admission.valid, ratings=one.admission.ratings, duplicates=one.share,
            )  # fmt: skip
            paid += pay(self.rewards, record)
        return tuple(paid)

    def _request(self, task: Task) -> TurnRequest:
        values = {"question": task.question, "proposals": ", ".join(task.proposals)}
        values |= hidden_values(task, self.role, self.hidden)
        choices = task.proposals if self.proposals == "choices" else ()
        if self.proposals == "choices" and not choices:
            raise UserError(f"protocol {self.name}: task {task.id} lists no proposals to choose from")
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

    def _conclude(self, tried: Sequence[Tried], answers: Sequence[Answer]) -> Outcome:
        """`answers`: to the sub-plays of each valid proposal in turn. A proposal too few of whose sub-plays have a
        score is missing data: it is not paid, and the play is invalid where that is so of all."""
        left = iter(answers)
        scores: dict[int, list[float]] = {one.turn: [] for one in tried if one.admission.valid}
        for own in scores.values():
            for _ in range(self.repeats):
                answer = next(left)
                assert isinstance(answer, Outcome), f"a sub-play was answered with {type(answer).__name__}"
                if answer.status == "ok" and answer.score is not None:
                    own.append(answer.score)
        needed = min(self.repeats, max(2, (self.repeats + 1) // 2))
        rates = {i: sum(own) / len(own) for i, own in scores.items() if len(own) >= needed}
        metrics = {**_metrics(tried), "children_scored": float(sum(map(len, scores.values())))}
        if not rates:
            most = max(map(len, scores.values()))
            reason = f"{most} of {self.repeats} sub-plays have a score; at least {needed} are needed"
            return Outcome("invalid", metrics=metrics, reason=reason)
        decided = [one for one in tried if one.turn in rates or not one.admission.valid]
        p = metrics["solve_rate"] = sum(rates.values()) / len(rates)
        if self.batch > 1:
            metrics |= {f"solve_rate/{i}": rate for i, rate in rates.items()}
        return Outcome("ok", (), self._pay(decided, scores), p, metrics)

    def proposal(self, task: Task, turns: Sequence[Turn]) -> str | None:
        """What was proposed in a recorded play, first. None where nothing was."""
        brought = task.hidden.get(PROPOSAL)
        if brought is not None:
            return brought.text
        return next((turn.text.strip() for turn in turns if turn.seat == self.seat), None)

    def rates(self, play: Episode) -> list[tuple[str, float | None]]:
        """Each proposal of a recorded play that was decided, with its solve rate, None where sub-plays have no score:
        for the archive."""
        metrics, first = play.outcome.metrics, self.proposal(play.task, play.turns)
        if "solve_rate" not in metrics or first is None:
            return []
        if self.batch == 1 or PROPOSAL in play.task.hidden:
            return [(first, metrics["solve_rate"])]
        said = {turn.turn: turn.text.strip() for turn in play.turns if turn.seat == self.seat}
        return [(text, metrics[f"solve_rate/{i}"]) for i, text in said.items() if f"solve_rate/{i}" in metrics]

    @property
    def success(self) -> str:
        return "solve rate of proposals"

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
        if self.batch < 1:
            found.append(("batch", "must be at least 1"))
        if self.batch == 1:
            found += [
                (f"rewards.{i}.params.duplicates", "one proposal has none to be like; valid with batch: 2 or more")
                for i, term in enumerate(self.rewards) if "duplicates" in term.params
            ]  # fmt: skip
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


def _metrics(tried: Sequence[Tried]) -> dict[str, float]:
    """Means over the proposals of a play."""
    found: dict[str, list[float]] = {"proposal_valid": [float(one.admission.valid) for one in tried]}
    for one in tried:
        for name, value in one.admission.metrics.items():
            found.setdefault(name, []).append(value)
        if one.share is not None:
            found.setdefault("duplicates", []).append(one.share)
    return {name: math.fsum(values) / len(values) for name, values in found.items()}
