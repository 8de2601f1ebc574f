"""The kind `solve`: one seat answers the question and an exact verifier checks it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from protocols.base import Play, Protocol
from protocols.chat import as_reply, fresh_chat, hidden_values
from protocols.errors import UserError
from protocols.rewards.record import Move, Record, RewardTerm
from protocols.rewards.registry import pay, reward_problems
from protocols.templates import literals, render, template_problems
from protocols.types import Outcome, Task, TurnRequest, VerifierError


@dataclass(frozen=True)
class Solve(Protocol):
    """Outcome.score: 1 for a right answer, 0 for a wrong one; `invalid` where the verifier cannot decide."""

    kind: ClassVar[str] = "solve"
    seat: str = "solver"
    role: str = "solver"
    system: str = ""
    prompt: str = "{{ question }}"
    """Names: question, and those listed in `hidden`."""
    hidden: list[str] = field(default_factory=list)
    """Hidden material of the task shown to the solver; the task must allow it."""
    rewards: list[RewardTerm] = field(default_factory=lambda: [RewardTerm("correct")])
    max_tokens: int | None = None
    temperature: float | None = None
    name: str = ""

    def play(self, task: Task, rng: random.Random) -> Play:
        if task.domain is None:
            raise UserError(f"protocol {self.name}: task {task.id} has no domain that could check an answer")
        values = {"question": task.question, **hidden_values(task, self.role, self.hidden)}
        chat = fresh_chat(render(self.system, values), render(self.prompt, values))
        answers = yield [TurnRequest(
            seat=self.seat, role=self.role, messages=chat, turn=0, phase="solve", target=task.answer,
            max_tokens=self.max_tokens, temperature=self.temperature,
        )]  # fmt: skip
        reply = as_reply(answers[0])
        try:
            right = task.domain.check(task, reply.text)
            grade = task.domain.grade(task, reply.text)
        except VerifierError as error:
            return Outcome("invalid", reason=f"verifier: {error}")
        move = Move(self.seat, 0, unfinished=reply.truncated or not reply.text.strip())
        score = 1.0 if right else 0.0
        rewards = pay(self.rewards, Record(self.roles(), [move], score=score, grade=grade))
        return Outcome("ok", rewards=rewards, score=score, metrics={"unfinished": float(move.unfinished)})

    @property
    def success(self) -> str:
        return "answer is right"

    def roles(self) -> Mapping[str, str]:
        return {self.seat: self.role}

    def problems(self) -> list[tuple[str, str]]:
        valid = ("question", *self.hidden)
        found = template_problems("prompt", self.prompt, valid) + template_problems(
            "system", self.system, valid
        )
        if "question" in self.hidden:
            found.append(
                ("hidden", "'question' is already a name of its own; call the hidden material otherwise")
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            found.append(("max_tokens", "must be at least 1"))
        if self.temperature is not None and self.temperature < 0:
            found.append(("temperature", "must be at least 0"))
        return found + reward_problems(self.rewards, {"turns", "verifier"}, self.roles())

    def literal_texts(self) -> list[str]:
        """Every fixed text that the solver may be sent: the words that a small vocabulary must hold."""
        return [text for text in map(literals, (self.system, self.prompt)) if text.strip()]
