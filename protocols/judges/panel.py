"""Bench: the judges of one play. What each has heard, what it is asked, and what they believe together.

A poll asks every judge the same, each about what it may see. A judge that decides must answer readably within
its budget of retries, or the play is invalid. One that is held out is recorded and nothing depends on it; once it
has failed, it is asked no more.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence

from protocols.base import Answer, Ask
from protocols.chat import Cast, Chat, as_reply, fresh_chat
from protocols.errors import UserError
from protocols.judges.reading import (
    LETTERS,
    JudgeRules,
    UnreadableVerdict,
    favourites,
    mean_belief,
    read_graded,
    read_probs,
    read_vote,
)
from protocols.rewards.record import Belief, Verdict
from protocols.templates import quote, render
from protocols.types import Judgment, Message, Reply, Task, TurnRequest

PANEL = "panel"
"""The seat of a judgment that several judges came to together."""


class Juror:
    """One judge of a play, for the length of a poll and over all of them."""

    def __init__(
        self, rules: JudgeRules, seat: str, role: str, task: Task, cast: Cast, joiner: str
    ) -> None:
        self.rules, self.seat, self.role, self.task = rules, seat, role, task
        self.cast, self.joiner = cast, joiner
        given = tuple(range(len(task.choices)))
        self.orders = (given, given[::-1]) if rules.orders == "both" else (given,)
        self.changed = True
        """Whether it would now see something that it has not been asked about."""
        self.open: list[int] = []
        """The order of claims of each question of this poll that has no readable answer yet."""
        self.failure = ""
        self.swap_gap = 0.0
        """Largest difference so far between the two orders' probabilities of a claim."""
        self.votes: list[Verdict] = []
        """What became of each vote that could be read, where the right answer is known."""
        self._verdicts: list[list[Belief]] = []
        self._retries = rules.retries
        self._entries: list[tuple[str, str, str]] = []
        self._revealed: tuple[str, ...] = ()
        self._asked = 0
        self._labels = tuple(rules.labels)
        self._answers = [
            self._labels if rules.answers == "labels" else tuple(task.choices[claim] for claim in order)
            for order in self.orders
        ]
        self._targets = [
            answers[order.index(task.choices.index(task.answer))]
            if task.answer in task.choices and rules.grade is None
            else None
            for order, answers in zip(self.orders, self._answers)
        ]
        self._system = render(rules.system, {"seat": seat, "role": role, **cast.shared})
        self._chat = Chat(joiner) if rules.view == "chat" else None

    def reveal(self, *statements: str) -> None:
        """Statements that the judge may now see as evidence."""
        if self.rules.view == "evidence":
            # The canonical order hides who revealed what and when.
            known = {*self._revealed, *statements}
            self._revealed = tuple(s for s in self.task.evidence if s in known)
            self.changed = True

    def hear(self, seat: str, role: str, text: str) -> None:
        """A message that the judge may see."""
        if self.rules.view != "evidence":
            self._entries.append((seat, role, text))
            self.changed = True

    def begin(self) -> None:
        """A new poll: one question per order of the claims, or `votes` of each."""
        self.open = [i for i in range(len(self.orders)) for _ in range(self.rules.samples or 1)]
        self._verdicts = [[] for _ in self.orders]
        self.changed = False

    def requests(self) -> list[TurnRequest]:
        """The open questions, about what it sees now."""
        first, self._asked = self._asked, self._asked + len(self.open)
        rules, read = self.rules, not self.rules.samples
        chats = {i: self._messages(i) for i in dict.fromkeys(self.open)}
        return [TurnRequest(
            seat=self.seat, role=self.role, messages=chats[i], turn=first + n, phase="judge",
            choices=() if rules.grade else self._answers[i], enforce=read or rules.grade is not None, read=read,
            grades=self._scales(i), target=self._targets[i], fresh=self._chat is None,
            situation="given" if i == 0 else "reversed", max_tokens=rules.max_tokens, temperature=rules.temperature,
        ) for n, i in enumerate(self.open)]  # fmt: skip

    def take(self, replies: Sequence[Reply]) -> None:
        """Read the answers. What is unreadable stays open for another try, while there is a budget for it."""
        asked, self.open, why = self.open, [], ""
        for turn, (i, reply) in enumerate(zip(asked, replies, strict=True), self._asked - len(asked)):
            try:
                self._verdicts[i].append(self._read(reply, i))
                self._note_vote(turn, i)
            except UnreadableVerdict as error:
                self.open.append(i)
                why = why or str(error)
        if len(self.open) > self._retries:
            self.failure, self.open = why, []
        self._retries -= len(self.open)
        if self._chat is not None and not self.failure:
            self._chat.said(self._answers[0][favourites(replies[0].probs)[0]])

    def belief(self) -> Belief:
        """What it believes after a poll: the mean over its votes and over the orders of the claims."""
        means = [_mean(votes) for votes in self._verdicts]
        if self.rules.graded:
            return means[0]
        if len(means) == 2:
            self.swap_gap = max(self.swap_gap, *(abs(p - q) for p, q in zip(means[0], reversed(means[1]))))
        return mean_belief(self.orders, means)

    def _scales(self, i: int) -> tuple[tuple[str, float, float], ...]:
        """The name, the lowest and the highest grade of all that is graded."""
        rules = self.rules.grade
        return () if rules is None else tuple((name, rules.min, rules.max) for name in self._graded(i))

    def _graded(self, i: int) -> Sequence[str]:
        return [self.cast.name(seat) for seat in self.rules.graded] or self._answers[i]

    def _note_vote(self, turn: int, i: int) -> None:
        target = self._targets[i]
        if self.rules.votes and target is not None:
            right = self._verdicts[i][-1][self._answers[i].index(target)] == 1.0
            self.votes.append(Verdict(self.seat, turn, right))

    def _read(self, reply: Reply, i: int) -> Belief:
        if self.rules.grade is not None:
            return read_graded(reply, self._graded(i), self.rules.grade)
        if not self.rules.votes:
            return read_probs(reply.probs, len(self._labels), reply.unreadable)
        return read_vote(reply, self._answers[i])

    def _messages(self, i: int) -> tuple[Message, ...]:
        values = self._claims(self.orders[i])
        if self._chat is not None:
            return self._continued(self._chat, values)
        if self.rules.view == "evidence":
            values = {**values, "evidence": " ".join(self._revealed)}
            return fresh_chat(self._system, render(self.rules.prompt, values).strip())
        entries = [self._entry(*entry, self.orders[i]) for entry in self._entries]
        values = {**values, "transcript": self.joiner.join(entries)}
        return fresh_chat(self._system, render(self.rules.prompt, values))

    def _continued(self, chat: Chat, values: Mapping[str, str]) -> tuple[Message, ...]:
        if not chat.opened:
            chat.open(self._system, render(self.rules.prompt, values))
        for entry in self._entries:
            chat.hear(self._entry(*entry, self.orders[0]))
        self._entries.clear()
        return chat.ask(self.rules.ask)

    def _claims(self, order: tuple[int, ...]) -> dict[str, str]:
        values = {"question": self.task.question, "seat": self.seat, "role": self.role, **self.cast.shared}
        for letter, claim in zip(LETTERS, order):
            values[letter] = self.task.choices[claim]
            argued = [self.cast.name(s) for s, side in self.cast.sides.items() if side == claim]
            values[f"seat_{letter}"] = ", ".join(argued)
        return values

    def _entry(self, seat: str, role: str, text: str, order: tuple[int, ...]) -> str:
        side = self.cast.sides.get(seat)
        label = "" if side is None or self.rules.graded else self._labels[order.index(side)]
        values = {"seat": self.cast.name(seat), "role": role, "label": label, "text": text, "quoted": quote(text)}
        return render(self.rules.entry, values)


class Bench:
    """The judges of one play and their beliefs so far."""

    def __init__(
        self, rules: JudgeRules, roles: Mapping[str, str], task: Task, cast: Cast, joiner: str
    ) -> None:
        if len(task.choices) != len(rules.labels) and not rules.graded:
            raise UserError(
                f"task {task.id} has {len(task.choices)} choices for the judge's "
                f"{len(rules.labels)} labels ({', '.join(rules.labels)})"
            )
        self.rules = rules
        self.jurors = {
            seat: Juror(rules, seat, roles[seat], task, cast, joiner)
            for seat in (*rules.held_out, *rules.deciding)  # so that the judgments that decide come last
        }
        self.deciding = [self.jurors[seat] for seat in rules.deciding]
        self.beliefs: list[Belief] = []
        self.judgments: list[Judgment] = []
        self.failure = ""

    @property
    def changed(self) -> bool:
        """Whether a judge that decides would now see something that it has not been asked about."""
        return any(juror.changed for juror in self.deciding)

    @property
    def swap_gap(self) -> float:
        return max(juror.swap_gap for juror in self.deciding)

    def sees(self, audience: Sequence[str]) -> bool:
        """Whether a judge that decides is in the audience."""
        return any(juror.seat in audience for juror in self.deciding)

    def poll(self, after_turn: int) -> Generator[list[Ask], list[Answer], None]:
        """Ask every judge, again where an answer cannot be read, and conclude what they believe."""
        present = [juror for juror in self.jurors.values() if not juror.failure]
        for juror in present:
            juror.begin()
        while asked := [juror for juror in present if juror.open]:
            asks = [juror.requests() for juror in asked]
            answers = iter((yield [ask for own in asks for ask in own]))
            for juror, own in zip(asked, asks):
                juror.take([as_reply(next(answers)) for _ in own])
            if any(juror.failure for juror in self.deciding):
                break
        self._conclude(present, after_turn)

    def _conclude(self, present: Sequence[Juror], after_turn: int) -> None:
        """Record the judgments, the one that decides last."""
        alone, beliefs = len(self.deciding) == 1, {}
        for juror in present:
            decides = alone and juror in self.deciding
            if juror.failure:
                self.judgments.append(Judgment(juror.seat, (), False, after_turn, juror.failure, decides))
            elif not juror.open:
                beliefs[juror.seat] = juror.belief()
                self.judgments.append(
                    Judgment(juror.seat, beliefs[juror.seat], True, after_turn, "", decides)
                )
        failed = [juror for juror in self.deciding if juror.failure]
        if failed:
            self.failure = f"{failed[0].seat} after turn {after_turn}: {failed[0].failure}"
        else:
            self.beliefs.append(self._together([beliefs[juror.seat] for juror in self.deciding]))
        if not alone:
            belief = () if failed else self.beliefs[-1]
            self.judgments.append(Judgment(PANEL, belief, not failed, after_turn, self.failure))

    def _together(self, beliefs: Sequence[Belief]) -> Belief:
        """The mean of the judges' beliefs, or of their votes for the claim that each believes most."""
        if self.rules.combine == "majority":
            ballots = [favourites(belief) for belief in beliefs]
            width = range(len(beliefs[0]))
            beliefs = [tuple(float(i in won) / len(won) for i in width) for won in ballots]
        return _mean(beliefs)


def _mean(beliefs: Sequence[Belief]) -> Belief:
    if len(beliefs) == 1:
        return beliefs[0]
    return tuple(math.fsum(column) / len(beliefs) for column in zip(*beliefs))
