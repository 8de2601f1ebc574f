"""A judge: what it is shown, in which orders, and how its probabilities become a belief.

Adding a way of judging (votes of samples, graded scores, panels) means another reader of replies here; the
interpreter only asks a `Bench` for requests and hands it the replies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from protocols.base import Answer, Ask
from protocols.rewards import Belief
from protocols.templates import quote, render, template_problems
from protocols.types import Judgment, Message, Reply, Task, TurnRequest
from protocols.views import Chat, as_reply, fresh_chat

PROBABILITY_TOLERANCE = 1e-3
"""How far the probabilities of a verdict may sum from 1: rounding in bfloat16, not a missing choice."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class UnreadableVerdict(ValueError):
    """A judge's reply that holds no probability distribution over its labels. Missing data, never a score."""


@dataclass(frozen=True)
class JudgeRules:
    """The `judge:` section of a protocol. A verdict is the probability that the judge gives to each label."""

    seat: str
    prompt: str
    """What it is shown. Names: question; a, b, ... (the claim under the first, second, ... label); seat_a,
    seat_b, ... (who argues it); evidence or transcript, as the view says."""
    system: str = ""
    view: Literal["evidence", "transcript", "chat"] = "evidence"
    """evidence: a fresh chat with what was revealed, in canonical order, not by whom. transcript: a fresh chat
    with all that it may hear. chat: one growing chat that opens with `prompt`."""
    entry: str = "{{ seat }}: {{ text }}"
    """One message in the transcript or chat. Names: seat, role, label (of the claim the speaker argues), text,
    quoted (the text with every line marked, so that nobody can forge an entry)."""
    ask: str = ""
    """View chat: what ends each question to the judge."""
    when: Literal["each_turn", "end"] = "each_turn"
    """each_turn: at the start and after each turn that changes what it sees. end: once."""
    orders: Literal["both", "given"] = "both"
    """both: asked once with the claims in order and once reversed, beliefs averaged (position bias)."""
    labels: list[str] = field(default_factory=lambda: ["A", "B"])
    """Names of the claims, in the order shown."""
    answers: Literal["labels", "claims"] = "labels"
    """What it may answer: a label, or the text of a claim itself. For a tiny model the latter is far easier to
    learn: it has to recognise what the evidence shows, not also which place that claim stands in."""


def read_probs(probs: Sequence[float], labels: int) -> Belief:
    """A distribution over the labels, renormalised. Raises `UnreadableVerdict` on anything else."""
    if not probs:
        raise UnreadableVerdict("the verdict came without probabilities")
    if len(probs) != labels:
        raise UnreadableVerdict(f"the verdict has {len(probs)} probabilities for {labels} labels")
    total = math.fsum(probs)
    if not all(0.0 <= p <= 1.0 + PROBABILITY_TOLERANCE for p in probs):  # NaN fails the comparison too
        raise UnreadableVerdict(f"the verdict's probabilities {tuple(probs)} are not in [0, 1]")
    if abs(total - 1.0) > PROBABILITY_TOLERANCE:
        raise UnreadableVerdict(f"the verdict's probabilities sum to {total:.4g}, not 1")
    return tuple(p / total for p in probs)


def mean_belief(orders: Sequence[tuple[int, ...]], verdicts: Sequence[Sequence[float]]) -> Belief:
    """The belief over `Task.choices`: each verdict mapped back from its order of claims, then averaged.

    `orders[i][j]` is the index of the claim under label j in request i. Raises `UnreadableVerdict`.
    """
    if len(verdicts) != len(orders):
        raise UnreadableVerdict(f"{len(verdicts)} verdicts for {len(orders)} questions")
    belief = [0.0] * len(orders[0])
    for order, probs in zip(orders, verdicts):
        for claim, p in zip(order, read_probs(probs, len(order))):
            belief[claim] += p / len(orders)
    return tuple(belief)


class Bench:
    """The judge of one play: what it has heard, and its beliefs so far."""

    def __init__(
        self, rules: JudgeRules, role: str, task: Task, sides: Mapping[str, int], joiner: str
    ) -> None:
        if len(task.choices) != len(rules.labels):
            raise ValueError(
                f"task {task.id} has {len(task.choices)} choices for the judge's "
                f"{len(rules.labels)} labels ({', '.join(rules.labels)})"
            )
        self.rules, self.role, self.task, self.sides, self.joiner = rules, role, task, sides, joiner
        given = tuple(range(len(task.choices)))
        self.orders = (given, given[::-1]) if rules.orders == "both" else (given,)
        self.beliefs: list[Belief] = []
        self.judgments: list[Judgment] = []
        self.swap_gap = 0.0
        """Largest difference so far between the two orders' probabilities of a claim."""
        self.changed = True
        """Whether it would now see something that it has not been asked about."""
        self.failure = ""
        self._entries: list[tuple[str, str, str]] = []
        self._revealed: tuple[str, ...] = ()
        self._asked = 0
        self._shown = [self._claims(order) for order in self.orders]
        self._labels = tuple(rules.labels)
        self._answers = [
            self._labels if rules.answers == "labels" else tuple(task.choices[claim] for claim in order)
            for order in self.orders
        ]
        self._targets = [
            answers[order.index(task.choices.index(task.answer))] if task.answer in task.choices else None
            for order, answers in zip(self.orders, self._answers)
        ]
        self._chat: Chat | None = None
        if rules.view == "chat":
            self._chat = Chat(rules.system, render(rules.prompt, self._shown[0]), joiner)

    def reveal(self, *statements: str) -> None:
        """Statements that the judge may now see as evidence."""
        if self.rules.view == "evidence":
            # The canonical order hides who revealed what and when.
            known = {*self._revealed, *statements}
            self._revealed = tuple(s for s in self.task.evidence if s in known)
            self.changed = True

    def hear(self, seat: str, role: str, text: str) -> None:
        """A message that the judge may see."""
        if self._chat is not None:
            self._chat.hear(self._entry(seat, role, text, self.orders[0]))
            self.changed = True
        elif self.rules.view == "transcript":
            self._entries.append((seat, role, text))
            self.changed = True

    def requests(self) -> list[Ask]:
        """One question per order of the claims, about what it sees now."""
        chats = [self._messages(i) for i in range(len(self.orders))]
        first, self._asked, self.changed = self._asked, self._asked + len(chats), False
        return [TurnRequest(
            seat=self.rules.seat, role=self.role, messages=messages, turn=first + i, phase="judge",
            choices=self._answers[i], read=True, target=self._targets[i], fresh=self._chat is None,
            situation="given" if i == 0 else "reversed",
        ) for i, messages in enumerate(chats)]  # fmt: skip

    def take(self, answers: Sequence[Answer], after_turn: int) -> None:
        """Read the verdicts. An unreadable one is recorded as invalid and sets `failure`."""
        replies = [as_reply(answer) for answer in answers]
        try:
            belief = mean_belief(self.orders, [reply.probs for reply in replies])
        except UnreadableVerdict as error:
            self.failure = f"{self.rules.seat} after turn {after_turn}: {error}"
            self.judgments.append(Judgment(self.rules.seat, (), False, after_turn, str(error)))
            return
        self.beliefs.append(belief)
        self.judgments.append(Judgment(self.rules.seat, belief, True, after_turn))
        if len(replies) == 2:
            self.swap_gap = max(self.swap_gap, *(
                abs(p - q) for p, q in zip(replies[0].probs, reversed(replies[1].probs))))  # fmt: skip
        if self._chat is not None:
            self._chat.said(_favourite(replies[0], self._answers[0]))

    def _messages(self, i: int) -> tuple[Message, ...]:
        if self._chat is not None:
            return self._chat.ask(self.rules.ask)
        values = self._shown[i]
        if self.rules.view == "evidence":
            values = {**values, "evidence": " ".join(self._revealed)}
            return fresh_chat(self.rules.system, render(self.rules.prompt, values).strip())
        entries = [self._entry(*entry, self.orders[i]) for entry in self._entries]
        values = {**values, "transcript": self.joiner.join(entries)}
        return fresh_chat(self.rules.system, render(self.rules.prompt, values))

    def _claims(self, order: tuple[int, ...]) -> dict[str, str]:
        values = {"question": self.task.question}
        for letter, claim in zip(LETTERS, order):
            values[letter] = self.task.choices[claim]
            values[f"seat_{letter}"] = ", ".join(s for s, side in self.sides.items() if side == claim)
        return values

    def _entry(self, seat: str, role: str, text: str, order: tuple[int, ...]) -> str:
        side = self.sides.get(seat)
        label = "" if side is None else self._labels[order.index(side)]
        values = {"seat": seat, "role": role, "label": label, "text": text, "quoted": quote(text)}
        return render(self.rules.entry, values)


def judge_problems(rules: JudgeRules, speaks: bool) -> list[tuple[str, str]]:
    """Mistakes of a `judge:` section taken alone, as (path, message). `speaks`: the judge is asked in a phase."""
    found = []
    labels = len(rules.labels)
    if labels < 2 or labels > len(LETTERS) or len(set(rules.labels)) < labels or "" in rules.labels:
        found.append(("judge.labels", f"needs 2 to {len(LETTERS)} different labels, for example [A, B]"))
    letters = LETTERS[:labels]
    valid = ["question", *letters, *(f"seat_{letter}" for letter in letters)]
    if rules.view != "chat":
        valid.append(rules.view)
    for path, message in template_problems("judge.prompt", rules.prompt, valid):
        found.append((path, message + " (a judge is shown no hidden material)"))
    found += template_problems("judge.system", rules.system, ())
    found += template_problems("judge.ask", rules.ask, ())
    found += template_problems("judge.entry", rules.entry, ("seat", "role", "label", "text", "quoted"))
    if rules.view == "chat" and rules.orders == "both":
        found.append(("judge.orders", "a growing chat has one order of claims; valid with view: chat: given"))
    if rules.view != "chat" and rules.ask:
        found.append(("judge.ask", f"has no effect with view: {rules.view}; write it in judge.prompt"))
    if speaks:
        found.append(
            ("judge.seat", "the judge is asked by the judge section and can take no turn in a phase")
        )
    return found


def _favourite(reply: Reply, labels: Sequence[str]) -> str:
    return labels[max(range(len(labels)), key=lambda i: reply.probs[i])]
