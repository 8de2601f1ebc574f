"""The kind `revision`: a text is written, commented on and rewritten, and its first and last version are graded.

The grader is a rater (a scale, read as probabilities) or the exact verifier of the task's domain. Aligner, gated
inspectors, Stable Alignment's social round and ontology alignment are YAML over this.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from protocols.base import Answer, Ask, Play, Protocol
from protocols.chat import Chat, as_reply, hidden_values
from protocols.errors import UserError
from protocols.judges.rating import RaterRules
from protocols.judges.reading import UnreadableVerdict
from protocols.prompts import RolePrompt
from protocols.rewards.record import Move, Record, RewardTerm
from protocols.rewards.registry import pay, reward_problems
from protocols.speech import says
from protocols.templates import literals, quote, render, template_problems
from protocols.types import Outcome, Task, TurnRequest, VerifierError


@dataclass(frozen=True)
class RevisionStep:
    """Comments on the text as it stands, by all reviewers at once, and one revision of it."""

    name: str
    reviser: str
    """The seat that rewrites the text. It reads the comments, and the text where it did not write it."""
    revise: str
    """What it is asked. Names: question, seat, role, and those of its role's `hidden`."""
    reviewers: list[str] = field(default_factory=list)
    """Seats that comment first. None hears another's comment."""
    comment: str = ""
    """What they are asked. Names as in `revise`."""
    passes: str = ""
    """Said by a reviewer on a line of its own: it finds nothing to change. Where all do, nothing is rewritten."""
    max_tokens: int | None = None
    """Of each comment and of the revision."""


@dataclass(frozen=True)
class Revision(Protocol):
    """Outcome.score: the grade of the last version, with `verifier`; None with a rater, whose opinion is no truth."""

    kind: ClassVar[str] = "revision"
    seats: dict[str, str]
    """seat -> role, without the rater."""
    author: str
    """The seat that writes the first version."""
    prompts: dict[str, RolePrompt]
    """role -> prompts. Names: question, seat, role, and those listed in `hidden`."""
    draft: str = ""
    """What the author is asked. Names as in the prompts."""
    steps: list[RevisionStep] = field(default_factory=list)
    rater: RaterRules | None = None
    """Rates the first and the last version. Either this or `verifier`."""
    verifier: bool = False
    """The task's domain grades them."""
    rewards: list[RewardTerm] = field(default_factory=lambda: [RewardTerm("rating")])
    joiner: str = "\n\n"
    max_tokens: int | None = None
    """Of the first version."""
    name: str = ""

    def play(self, task: Task, rng: random.Random) -> Play:
        if self.verifier and task.domain is None:
            raise UserError(f"protocol {self.name}: task {task.id} has no domain that could grade an answer")
        desk = _Desk(self, task)
        yield from desk.write(self.author, "draft", self.draft, self.max_tokens)
        for step in self.steps:
            passed = yield from desk.comments(step)
            if not passed:
                yield from desk.write(step.reviser, step.name, step.revise, step.max_tokens)
        versions = list(dict.fromkeys((desk.versions[0], desk.versions[-1])))
        try:
            if self.rater is None:
                grades = [_grade(task, version) for version in versions]
            else:
                values = {"question": task.question}
                replies = yield [self.rater.request(values, text, i) for i, text in enumerate(versions)]
                grades = [self.rater.read(as_reply(reply)) for reply in replies]
        except (VerifierError, UnreadableVerdict) as error:
            who = "verifier" if self.rater is None else self.rater.seat
            return Outcome("invalid", reason=f"{who}: {error}")
        metrics = {"rating_first": grades[0], "rating_last": grades[-1], "revisions": len(desk.versions) - 1.0}
        record = Record(self.seats, desk.moves, ratings=(grades[0], grades[-1]))
        return Outcome("ok", (), pay(self.rewards, record), grades[-1] if self.verifier else None, metrics)

    @property
    def success(self) -> str:
        return "grade of the last version" if self.verifier else "score"

    def roles(self) -> Mapping[str, str]:
        return {**self.seats, **({} if self.rater is None else {self.rater.seat: self.rater.role})}

    def literal_texts(self) -> list[str]:
        """Every fixed text that a seat may be sent: the words that a small vocabulary must hold."""
        texts = [self.draft]
        for step in self.steps:
            texts += [step.comment, step.revise, step.passes]
        for prompt in self.prompts.values():
            texts += [prompt.system, prompt.opening, prompt.heard]
        if self.rater is not None:
            texts += [self.rater.system, self.rater.prompt, *self.rater.scale]
        return [literals(text) for text in texts if literals(text).strip()]

    def problems(self) -> list[tuple[str, str]]:
        return list(_problems(self))


class _Desk:
    """The state of one play: the versions of the text, and who has read what."""

    def __init__(self, rules: Revision, task: Task) -> None:
        self.rules, self.task = rules, task
        self.versions: list[str] = []
        self.moves: list[Move] = []
        self._author = rules.author
        self._read: set[str] = set()
        """Seats that know the version as it stands."""
        self._values: dict[str, dict[str, str]] = {}
        self._chats: dict[str, Chat] = {}
        for seat, role in rules.seats.items():
            prompt = rules.prompts[role]
            values = {"question": task.question, "seat": seat, "role": role}
            values |= hidden_values(task, role, prompt.hidden)
            self._values[seat] = values
            self._chats[seat] = Chat.begun(
                render(prompt.system, values), render(prompt.opening, values), rules.joiner
            )

    def write(
        self, seat: str, phase: str, prompt: str, limit: int | None
    ) -> Generator[list[Ask], list[Answer], None]:
        """A new version. A blank one changes nothing."""
        self._show(seat)
        text = self._take(seat, (yield [self._request(seat, phase, prompt, limit)])[0])
        if text.strip() or not self.versions:
            self.versions.append(text)
            self._author, self._read = seat, {seat}

    def comments(self, step: RevisionStep) -> Generator[list[Ask], list[Answer], bool]:
        """What the reviewers say, told to the reviser. Whether all of them find nothing to change."""
        if not step.reviewers:
            return False
        for seat in step.reviewers:
            self._show(seat)
        asks: list[Ask] = [
            self._request(seat, step.name, step.comment, step.max_tokens) for seat in step.reviewers
        ]
        answers = yield asks
        said = [(seat, self._take(seat, answer)) for seat, answer in zip(step.reviewers, answers)]
        if step.passes and all(says(text, step.passes) for _, text in said):
            return True
        self._show(step.reviser)
        for seat, text in said:
            self._tell(step.reviser, seat, text)
        return False

    def _show(self, seat: str) -> None:
        if self.versions and seat not in self._read:
            self._read.add(seat)
            self._tell(seat, self._author, self.versions[-1])

    def _tell(self, seat: str, speaker: str, text: str) -> None:
        seats = self.rules.seats
        values = {"seat": speaker, "role": seats[speaker], "text": text, "quoted": quote(text)}
        self._chats[seat].hear(render(self.rules.prompts[seats[seat]].heard, values))

    def _request(self, seat: str, phase: str, prompt: str, limit: int | None) -> TurnRequest:
        chat = self._chats[seat]
        return TurnRequest(
            seat=seat, role=self.rules.seats[seat], messages=chat.ask(render(prompt, self._values[seat])),
            turn=chat.turns, phase=phase, max_tokens=limit,
        )  # fmt: skip

    def _take(self, seat: str, answer: Answer) -> str:
        reply, chat = as_reply(answer), self._chats[seat]
        unfinished = reply.truncated or not reply.text.strip()
        self.moves.append(Move(seat, chat.turns, unfinished=unfinished))
        chat.said(reply.text)
        return reply.text


def _grade(task: Task, text: str) -> float:
    assert task.domain is not None
    return task.domain.grade(task, text)


def _problems(rules: Revision) -> Iterator[tuple[str, str]]:
    if (rules.rater is None) != rules.verifier:
        yield "rater", "needs either rater, who rates the versions, or verifier: true"
    if rules.rater is not None:
        yield from rules.rater.problems("rater", dict.fromkeys([*rules.seats, *rules.seats.values()]))
    valid = ", ".join(rules.seats)
    asked = {rules.author}
    named = [("author", rules.author)]
    for i, step in enumerate(rules.steps):
        named += [(f"steps.{i}.reviser", step.reviser)]
        named += [(f"steps.{i}.reviewers", seat) for seat in step.reviewers]
        asked |= {step.reviser, *step.reviewers}
        if step.reviser in step.reviewers or len(set(step.reviewers)) < len(step.reviewers):
            yield f"steps.{i}.reviewers", "a seat comments once, and not on what it is about to rewrite"
        for key in ("comment", "passes"):
            if bool(getattr(step, key)) and not step.reviewers:
                yield f"steps.{i}.{key}", "has no effect without reviewers"
        if step.max_tokens is not None and step.max_tokens < 1:
            yield f"steps.{i}.max_tokens", "must be at least 1"
        names = [rules.seats[seat] for seat in (step.reviser, *step.reviewers) if seat in rules.seats]
        for key, text, roles in (("revise", step.revise, names[:1]), ("comment", step.comment, names[1:])):
            for role in roles:
                yield from template_problems(f"steps.{i}.{key}", text, _names(rules, role))
    for key, seat in named:
        if seat not in rules.seats:
            yield key, f"there is no seat {seat!r}; valid: {valid}"
    for seat, role in rules.seats.items():
        if seat not in asked:
            yield f"seats.{seat}", f"seat {seat!r} never writes: name it as author, reviewer or reviser"
        if role not in rules.prompts:
            yield "prompts", f"role {role!r} has no prompts; valid: an entry for each role"
    yield from _prompt_problems(rules)
    if rules.max_tokens is not None and rules.max_tokens < 1:
        yield "max_tokens", "must be at least 1"
    yield from reward_problems(rules.rewards, {"turns", "ratings"}, rules.seats)


def _prompt_problems(rules: Revision) -> Iterator[tuple[str, str]]:
    for role, prompt in rules.prompts.items():
        path = f"prompts.{role}"
        if role not in rules.seats.values():
            there = ", ".join(dict.fromkeys(rules.seats.values()))
            yield path, f"there is no role {role!r}; valid: {there}"
        for key, text in (("system", prompt.system), ("opening", prompt.opening)):
            yield from template_problems(f"{path}.{key}", text, _names(rules, role))
        yield from template_problems(f"{path}.heard", prompt.heard, ("seat", "role", "text", "quoted"))
        if {"question", "seat", "role"} & {*prompt.hidden}:
            yield f"{path}.hidden", "question, seat and role are already names of their own"
    if rules.author in rules.seats and rules.seats[rules.author] in rules.prompts:
        yield from template_problems("draft", rules.draft, _names(rules, rules.seats[rules.author]))


def _names(rules: Revision, role: str) -> list[str]:
    """The placeholders that prompts of this role may use."""
    hidden = rules.prompts[role].hidden if role in rules.prompts else []
    return ["question", "seat", "role", *hidden]
