"""Table: the state of one phased play. Who has said what, what has been revealed, and what it came to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from protocols.base import Answer, Ask
from protocols.chat import Cast, Chat, MaterialError, as_reply, hidden_values
from protocols.errors import UserError
from protocols.judges.confidence import LEVELS, vote_shares
from protocols.judges.panel import Bench
from protocols.judges.reading import won
from protocols.phased.rules import Phase, PhasedRules, Stop
from protocols.phased.subplays import Purse, posed
from protocols.rewards.record import Move, Record
from protocols.rewards.registry import pay
from protocols.speech import first_words, off_length, says, shown_parts, tag_quotes, words
from protocols.templates import quote, render
from protocols.types import Outcome, Task, TurnRequest

if TYPE_CHECKING:
    import random



@dataclass(frozen=True, slots=True)
class Speaker:
    """A seat as it takes part in a phase."""

    seat: str
    role: str
    situation: str
    audience: tuple[str, ...]
    """Seats that hear it, the judge among them."""


MOVES: dict[str, Callable[[Task, Mapping[str, None]], tuple[str, ...]]] = {
    "free": lambda task, revealed: (),
    "evidence": lambda task, revealed: tuple([s for s in task.evidence if s not in revealed]),
    "choices": lambda task, revealed: task.choices,
    "confidence": lambda task, revealed: LEVELS,
}
"""Phase.moves -> the legal moves, given what has been revealed. Free text has none."""


class Table:
    """One play of a `Phased`, between its yields."""

    def __init__(
        self, rules: PhasedRules, task: Task, bench: Bench | None, cast: Cast
    ) -> None:
        self.rules, self.task, self.bench, self.cast = rules, task, bench, cast
        self.sides = cast.sides
        """Grows as seats commit; the bench looks at the same."""
        self.forfeits: list[str] = []
        """Seats that were to commit to a claim and named none."""
        self.revealed: dict[str, None] = {}
        self.stopped: set[str] = set()
        """Phases that were ended early, in their current lap of a loop."""
        self.left: set[tuple[str, ...]] = set()
        """The loops that were, by their phases."""
        self._ends = 0
        """Early ends of phases in earlier laps."""
        self.public_turns = 0
        """Turns taken so far that the judge could see; all turns where there is no judge."""
        self._values: dict[str, dict[str, str]] = {}
        self._chats: dict[str, Chat] = {}
        self._moves: list[Move] = []
        self._cuts = 0
        self._questions: list[tuple[str, str]] = []
        """(seat, question) of this round."""
        self._purse = Purse(rules)
        self._delegated = [0, 0]
        """Questions without an answer and with one."""
        self._last = ""
        """What was last said for others to hear, and not as a question."""
        self._quotes = [0, 0]
        """Unverified and verified."""
        self._choices: dict[str, str] = {}
        """seat -> its last legal choice."""
        self._votes: dict[str, int] = {}
        """seat -> index of the claim that it voted for last."""
        self._levels: dict[str, str] = {}
        """seat -> how sure of its vote it last said to be."""
        self._pending: list[Move] = []
        self._asked: list[tuple[Speaker, tuple[str, ...]]] = []
        judges = () if rules.judge is None else rules.judge.seats
        for seat, role in rules.seats.items():
            if seat not in judges:
                self._values[seat] = {**self._seat_values(seat, role), **cast.shared}
                self._chats[seat] = Chat(rules.joiner)
        for phase in rules.phases:
            for name in (*phase.quotes, *(phase.delegate.share if phase.delegate is not None else ())):
                if name not in task.hidden:
                    there = ", ".join(sorted(task.hidden)) or "none"
                    message = f"task {task.id} has no hidden material {name!r} for {phase.name}; it has: {there}"
                    raise MaterialError(message)

    @property
    def over(self) -> bool:
        """Whether nothing that is said could count any more."""
        return bool(self.forfeits) or (self.bench is not None and bool(self.bench.failure))

    def begin(self, phase: Phase) -> bool:
        """Whether the phase is played now: not, where its loop is over, or where nothing is below that it could
        delegate to. What ended it in an earlier lap is past."""
        self._ends += phase.name in self.stopped
        self.stopped.discard(phase.name)
        return not self.ended(phase) and not (phase.delegate is not None and phase.delegate.bottom)

    def ended(self, phase: Phase) -> bool:
        loop = self.rules.loop_of.get(phase.name)
        return phase.name in self.stopped or (loop is not None and tuple(loop.over) in self.left)

    def ask(self, phase: Phase, speakers: Sequence[Speaker]) -> list[Ask]:
        """The requests of one round. All are built here, before any of its replies exists."""
        legal = MOVES[phase.moves](self.task, self.revealed)
        self._asked = [(speaker, legal) for speaker in speakers if legal or phase.moves == "free"]
        requests: list[Ask] = []
        for speaker, _ in self._asked:
            chat, values = self._chats[speaker.seat], self._values[speaker.seat]
            if not chat.opened:  # only now: what it argues may have been chosen meanwhile
                prompt = self.rules.prompts[speaker.role]
                chat.open(render(prompt.system, values), render(prompt.opening, values))
            messages = chat.ask(render(phase.prompt, values))
            request = TurnRequest(
                seat=speaker.seat,
                role=speaker.role,
                messages=messages,
                turn=chat.turns,
                phase=phase.name,
                choices=legal,
                enforce=phase.enforce,
                target=self._target(phase, speaker),
                situation=self._situation(speaker),
                max_tokens=phase.max_tokens,
                temperature=phase.temperature,
            )
            requests.append(request)
        return requests

    def take(self, phase: Phase, answers: Sequence[Answer]) -> None:
        """The replies of the round that was asked for; only now does anyone hear them."""
        heard, truth = [], self._truth()
        for (speaker, legal), answer in zip(self._asked, answers, strict=True):
            reply = as_reply(answer)
            chat = self._chats[speaker.seat]
            parsed = shown_parts(reply.text, phase.parts, self.rules.joiner) if phase.parts else reply.text
            statement = reply.text if parsed is None else parsed.strip() if legal else parsed
            rejected = bool(legal) and statement not in legal
            silenced = rejected or parsed is None
            move = Move(
                speaker.seat, chat.turns, rejected,
                unfinished=reply.truncated or not reply.text.strip(),
                unparsed=parsed is None,
                off_length=0.0 if silenced else self._off_length(phase, statement),
                right=statement == self.task.answer if phase.moves == "choices" and truth is not None else None,
            )  # fmt: skip
            chat.said(reply.text)
            if phase.commits:
                self._commit(speaker.seat, statement if statement in legal else None)
            if legal and not silenced and phase.moves == "choices":
                self._choices[speaker.seat] = statement
            if silenced:
                chat.hear(self.rules.rejected)
            elif phase.moves == "evidence":
                self.revealed[statement] = None
            elif phase.name == self.rules.vote:
                self._votes[speaker.seat] = self.task.choices.index(statement)
            elif phase.name == self.rules.vote_weights:
                self._levels[speaker.seat] = statement
            elif phase.max_words is not None:
                statement = self._cut(statement, phase.max_words)
            if phase.quotes and not silenced:
                statement, move = self._verified(phase, statement, move)
            self._note(move, speaker)
            last_word = not silenced and self._said_to_end(phase, speaker.seat, statement)
            if phase.delegate is not None and not silenced and not last_word:
                self._questions.append((speaker.seat, statement))
            if phase.visible_to and phase.delegate is None and not silenced:
                self._last = statement
            heard.append((speaker, silenced, statement))
        for speaker, silenced, statement in heard:
            self._tell(phase, speaker, silenced, statement)

    def delegated(self, phase: Phase, rng: random.Random) -> list[Ask]:
        """The plays that are to answer what was asked in this round. Draws nothing where there are none."""
        if not self._questions:
            return []
        delegate, first = self._purse.below(phase), sum(self._delegated)
        return [
            posed(delegate, self.task, question, f"{phase.name}{n}", rng.getrandbits(63))
            for n, (_, question) in enumerate(self._questions, first)
        ]

    def answered(self, phase: Phase, answers: Sequence[Answer]) -> None:
        """Each who asked hears what came of it; a play that is invalid, or came to nothing, gives no answer."""
        assert phase.delegate is not None
        for (seat, _), outcome in zip(self._questions, answers, strict=True):
            assert isinstance(outcome, Outcome), f"a sub-play was answered with {type(outcome).__name__}"
            text = outcome.answer if outcome.status == "ok" else ""
            self._delegated[bool(text)] += 1
            self._purse.pay(phase, outcome)
            text = text or self.rules.rejected
            self._chats[seat].hear(render(phase.delegate.heard, {"text": text, "quoted": quote(text)}))
        self._questions.clear()

    def settle(self) -> None:
        """The round is over: its moves get the belief that followed (the same, where nothing new was to be seen)."""
        after = -1 if self.bench is None else len(self.bench.beliefs) - 1
        self._moves += [replace(move, after=after) for move in self._pending]
        self._pending.clear()

    def check_end(self, phase: Phase) -> None:
        """After a round and the judge's word on it: the phase may be over."""
        loop = self.rules.loop_of.get(phase.name)
        if self._reached(phase.stop, phase.seats):
            self.stopped.add(phase.name)
        if loop is not None and self._reached(loop.stop, self.rules.choosers(loop)):
            self.left.add(tuple(loop.over))

    def _reached(self, stop: Stop | None, seats: Iterable[str]) -> bool:
        """Whether these seats agree, or the judge is sure enough."""
        if stop is None:
            return False
        chosen = {self._choices.get(seat) for seat in seats}
        belief = self.bench.beliefs[-1] if self.bench is not None and self.bench.beliefs else ()
        sure = stop.belief_above is not None and max(belief, default=0.0) > stop.belief_above
        return sure or (stop.agreed and len(chosen) == 1 and None not in chosen)

    def _said_to_end(self, phase: Phase, seat: str, statement: str) -> bool:
        """Whether the phase or its loop is over by what was said just now."""
        loop = self.rules.loop_of.get(phase.name)
        stops = (phase.stop, None if loop is None else loop.stop)
        own, whole = (stop is not None and stop.seat == seat and says(statement, stop.says) for stop in stops)
        if own:
            self.stopped.add(phase.name)
        if loop is not None and whole:
            self.left.add(tuple(loop.over))
        return own or whole

    def outcome(self) -> Outcome:
        bench = self.bench
        metrics = self._counts()
        if self.forfeits:
            return self._forfeited(metrics)
        if bench is None:
            return self._voted(metrics)
        judgments = tuple(bench.judgments)
        if bench.failure:
            return Outcome("invalid", judgments, metrics=metrics, reason=bench.failure)
        graded = bench.rules.graded
        metrics |= {f"grade/{seat}": grade for seat, grade in zip(graded, bench.beliefs[-1])}
        truth = None if graded else self._truth()
        score = None if truth is None else won(bench.beliefs[-1], truth)
        if truth is not None:
            if len(bench.beliefs) > 1:
                metrics["belief_truth_first"] = bench.beliefs[0][truth]
            metrics["belief_truth"] = bench.beliefs[-1][truth]
            for judgment in judgments:  # the last of each wins
                if judgment.valid and not judgment.decides:
                    metrics[f"belief_truth/{judgment.seat}"] = judgment.scores[truth]
        if bench.rules.orders == "both":
            metrics["swap_gap"] = bench.swap_gap
        answer = self._last if graded else ""
        return Outcome(
            "ok", judgments, pay(self.rules.rewards, self._record()), score, metrics, answer=answer
        )

    def _voted(self, metrics: dict[str, float]) -> Outcome:
        """What a play without a judge came to."""
        score, record = None, self._record()
        if self.rules.vote:
            levels = self._levels if self.rules.vote_weights else None
            shares = vote_shares(self._votes, levels, len(self.task.choices))
            if not shares:
                return Outcome(
                    "invalid", metrics=metrics, reason=f"no vote in phase {self.rules.vote!r} is readable"
                )
            metrics["agreement"] = max(shares)
            if (truth := self._truth()) is not None:
                score, metrics["votes_truth"] = won(shares, truth), shares[truth]
                record = replace(record, votes_truth=shares[truth])
        rewards = pay(self.rules.rewards, record)
        return Outcome("ok", (), rewards, score, metrics, answer="" if self.rules.vote else self._last)

    def _forfeited(self, metrics: dict[str, float]) -> Outcome:
        """What a play came to that a seat left without a claim. No side exists that could have won or lost."""
        moves = [replace(move, before=None, after=None) for move in (*self._moves, *self._pending)]
        rewards = pay(self.rules.rewards, Record(self.rules.seats, moves))
        judgments = () if self.bench is None else tuple(self.bench.judgments)
        return Outcome("ok", judgments, rewards, None, {**metrics, "forfeit": 1.0})

    def _counts(self) -> dict[str, float]:
        counts = {"turns": float(self.public_turns), "rejected": float(sum(m.rejected for m in self._moves))}
        if any(phase.parts for phase in self.rules.phases):
            counts["unparsed"] = float(sum(move.unparsed for move in self._moves))
        if any(phase.max_words is not None for phase in self.rules.phases):
            counts["cut"] = float(self._cuts)
        if any(stop is not None for stop in self.rules.stops):
            counts["stopped"] = float(self._ends + len(self.stopped) + len(self.left))
        if any(phase.delegate for phase in self.rules.phases):
            counts["unanswered"], counts["answered"] = map(float, self._delegated)
            counts |= self._purse.counts()
        if any(phase.quotes for phase in self.rules.phases):
            counts["quotes_unverified"], counts["quotes_verified"] = map(float, self._quotes)
        for seat, side in self.sides.items():
            if seat not in self.rules.sides:
                counts[f"side/{seat}"] = float(side)
        return counts

    def _commit(self, seat: str, claim: str | None) -> None:
        """`seat` argues `claim` from now on, and whoever opposes it the other one. None: it forfeits."""
        if claim is None:
            self.forfeits.append(seat)
            return
        side = self.task.choices.index(claim)
        self.sides[seat] = side
        self.sides |= {rival: 1 - side for rival, chooser in self.rules.opposes.items() if chooser == seat}
        for sided in self.sides.keys() & self._values.keys():
            self._values[sided] |= self._side_values(sided)

    def _situation(self, speaker: Speaker) -> str:
        chosen = speaker.seat not in self.rules.sides and speaker.seat in self.sides
        return f"side {self.sides[speaker.seat]} {speaker.situation}" if chosen else speaker.situation

    def _off_length(self, phase: Phase, statement: str) -> float:
        if phase.soft_words is None and phase.min_words is None:
            return 0.0
        return off_length(words(statement), phase.min_words, phase.soft_words)

    def _verified(self, phase: Phase, statement: str, move: Move) -> tuple[str, Move]:
        tagged, found = tag_quotes(statement, [self.task.hidden[name].text for name in phase.quotes])
        for verified in found:
            self._quotes[verified] += 1
        return tagged, replace(move, unverified=found.count(False))

    def _cut(self, statement: str, limit: int) -> str:
        kept = first_words(statement, limit)
        self._cuts += kept != statement
        return kept

    def _tell(self, phase: Phase, speaker: Speaker, silenced: bool, statement: str) -> None:
        # What was rejected is never repeated: a false statement must not reach anyone, nor a private thought.
        text = self.rules.rejected if silenced else statement
        name = self.cast.name(speaker.seat)
        values = {"seat": name, "role": speaker.role, "text": text, "quoted": quote(text)}
        for seat in speaker.audience:
            if seat in self._chats:
                self._chats[seat].hear(render(self.rules.prompts[self.rules.seats[seat]].heard, values))
            elif self.bench is not None:
                self.bench.jurors[seat].hear(speaker.seat, speaker.role, text)
                if phase.moves == "evidence" and not silenced:
                    self.bench.jurors[seat].reveal(statement)

    def _note(self, move: Move, speaker: Speaker) -> None:
        bench = self.bench
        public = bench is None or bench.sees(speaker.audience)
        self.public_turns += public
        if bench is None or not public or not bench.beliefs:
            self._moves.append(move)
        else:
            self._pending.append(replace(move, before=len(bench.beliefs) - 1))

    def _target(self, phase: Phase, speaker: Speaker) -> str | None:
        """Only a seat that argues no side is to name the right answer."""
        free_to_choose = phase.moves == "choices" and speaker.seat not in self.rules.sides
        return self.task.answer if free_to_choose and self.task.answer in self.task.choices else None

    def _record(self) -> Record:
        truth = self._truth()
        if self.bench is None:
            return Record(self.rules.seats, self._moves, self.sides, truth=truth)
        votes = [vote for juror in self.bench.deciding for vote in juror.votes]
        return Record(
            self.rules.seats, self._moves, self.sides, self.bench.beliefs, verdicts=votes,
            graded=self.bench.rules.graded, truth=truth,
        )  # fmt: skip

    def _truth(self) -> int | None:
        answer, choices = self.task.answer, self.task.choices
        return choices.index(answer) if answer is not None and answer in choices else None

    def _seat_values(self, seat: str, role: str) -> dict[str, str]:
        task, prompt = self.task, self.rules.prompts[role]
        values = {"question": task.question, "choices": ", ".join(task.choices), "role": role}
        values["seat"] = self.cast.name(seat)
        return {**values, **self._side_values(seat), **hidden_values(task, role, prompt.hidden)}

    def _side_values(self, seat: str) -> dict[str, str]:
        """What a seat is told of the side that it argues: nothing, as long as it argues none."""
        side, choices = self.sides.get(seat), self.task.choices
        if side is None:
            return {}
        if side >= len(choices):
            raise UserError(f"task {self.task.id} has {len(choices)} choices; {seat} argues number {side}")
        return {"claim": choices[side], "other": ", ".join(c for i, c in enumerate(choices) if i != side)}
