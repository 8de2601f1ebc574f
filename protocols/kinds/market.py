"""The kind `market`: market making (Hubinger 2020, "AI safety via market making", AI Alignment Forum). A predictor
forecasts what a judge will believe in the end, an adversary argues to move the forecast, and then the judge, who has
heard all the arguments, is asked."""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from protocols.base import Answer, Ask, Play, Protocol
from protocols.chat import Cast, Chat, as_reply, hidden_values
from protocols.judges.confidence import LEVELS, share
from protocols.judges.panel import Bench
from protocols.judges.reading import JudgeRules, favourites, judge_problems
from protocols.prompts import RolePrompt, prompt_problems
from protocols.rewards.record import Belief, Move, Record, RewardTerm
from protocols.rewards.registry import pay, reward_problems
from protocols.templates import literals, quote, render, template_problems
from protocols.types import Outcome, Task, TurnRequest

PREDICTOR, ADVERSARY = "predictor", "adversary"
NAMES = ("claim", "other", "choices")


@dataclass(frozen=True)
class Market(Protocol):
    """Outcome.score: 1 where the judge believes the right claim most, 0.5 on a tie, else 0."""

    kind: ClassVar[str] = "market"
    prompts: dict[str, RolePrompt]
    """predictor and adversary. Names: question, seat, role, choices, claim (the first claim, which forecasts are
    about), other (its rivals), and those listed in `hidden`."""
    judge: JudgeRules
    """Asked once, in the end, about what the adversary wrote."""
    rounds: int = 3
    """Arguments of the adversary; a forecast stands before the first and after each."""
    forecast: str = ""
    """What the predictor is asked, in addition to what it hears. Names: question, seat, role, claim, other, choices."""
    argue: str = ""
    """What the adversary is asked. Names as in `forecast`."""
    rewards: list[RewardTerm] = field(
        default_factory=lambda: [RewardTerm("forecast"), RewardTerm("market_move")])  # fmt: skip
    rejected: str = "(no forecast)"
    """What is heard of a reply that is no forecast; the forecast before it stands, or even odds."""
    joiner: str = "\n\n"
    max_tokens: int | None = None
    """Of an argument."""
    name: str = ""

    def play(self, task: Task, rng: random.Random) -> Play:
        bench = Bench(self.judge, self.roles(), task, Cast({}), self.joiner)
        market = _Exchange(self, task)
        yield from market.forecast()
        for _ in range(self.rounds):
            text = yield from market.argue()
            for juror in bench.jurors.values():
                juror.hear(ADVERSARY, ADVERSARY, text)
            yield from market.forecast()
        yield from bench.poll(self.rounds)
        judgments = tuple(bench.judgments)
        if bench.failure:
            return Outcome("invalid", judgments, reason=bench.failure)
        belief, last = bench.beliefs[-1], market.forecasts[-1][0]
        metrics = {"forecast_first": market.forecasts[0][0], "forecast_last": last, "belief": belief[0],
                   "forecast_error": abs(last - belief[0])}  # fmt: skip
        score = None
        if task.answer in task.choices:
            truth, best = task.choices.index(task.answer), favourites(belief)
            score = 0.0 if truth not in best else 1.0 / min(2, len(best))
            metrics["belief_truth"] = belief[truth]
        record = Record(self.roles(), market.moves, beliefs=market.forecasts, verdict=belief)
        return Outcome("ok", judgments, pay(self.rewards, record), score, metrics)

    @property
    def success(self) -> str:
        return "judge is right"

    def roles(self) -> Mapping[str, str]:
        return {PREDICTOR: PREDICTOR, ADVERSARY: ADVERSARY, **dict.fromkeys(self.judge.seats, "judge")}

    def literal_texts(self) -> list[str]:
        """Every fixed text that a seat may be sent: the words that a small vocabulary must hold."""
        judge = self.judge
        texts = [self.forecast, self.argue, self.rejected, *LEVELS]
        texts += [judge.system, judge.prompt, judge.ask, judge.entry, *judge.labels]
        for prompt in self.prompts.values():
            texts += [prompt.system, prompt.opening, prompt.heard]
        return [literals(text) for text in texts if literals(text).strip()]

    def problems(self) -> list[tuple[str, str]]:
        found = list(prompt_problems(self.prompts, (PREDICTOR, ADVERSARY), NAMES))
        names = ("question", "seat", "role", *NAMES)
        found += template_problems("forecast", self.forecast, names)
        found += template_problems("argue", self.argue, names)
        found += judge_problems(self.judge, self.roles(), {PREDICTOR, ADVERSARY})
        if self.judge.view == "evidence":
            found.append(("judge.view", "nothing is revealed in a market; valid: transcript, chat"))
        if self.judge.when != "end":
            found.append(("judge.when", "the judge is asked once; valid: end"))
        if self.rounds < 1:
            found.append(("rounds", "must be at least 1"))
        if self.max_tokens is not None and self.max_tokens < 1:
            found.append(("max_tokens", "must be at least 1"))
        return found + reward_problems(self.rewards, {"turns", "legal moves", "forecasts"}, self.roles())


class _Exchange:
    """The state of one play: what was forecast and argued so far."""

    def __init__(self, rules: Market, task: Task) -> None:
        self.rules = rules
        self.forecasts: list[Belief] = []
        """(p, 1 - p) of the first claim against all others."""
        self.moves: list[Move] = []
        self._argued: Move | None = None
        self._values: dict[str, dict[str, str]] = {}
        self._chats: dict[str, Chat] = {}
        for seat in (PREDICTOR, ADVERSARY):
            prompt = rules.prompts[seat]
            values = {
                "question": task.question, "seat": seat, "role": seat, "choices": ", ".join(task.choices),
                "claim": task.choices[0], "other": ", ".join(task.choices[1:]),
                **hidden_values(task, seat, prompt.hidden),
            }  # fmt: skip
            self._values[seat] = values
            self._chats[seat] = Chat.begun(
                render(prompt.system, values), render(prompt.opening, values), rules.joiner
            )

    def forecast(self) -> Generator[list[Ask], list[Answer], None]:
        """The predictor says what the judge will believe; the adversary hears it."""
        chat = self._chats[PREDICTOR]
        request = TurnRequest(
            seat=PREDICTOR, role=PREDICTOR, messages=chat.ask(self._prompt(PREDICTOR, self.rules.forecast)),
            turn=chat.turns, phase="forecast", choices=LEVELS,
        )  # fmt: skip
        reply = as_reply((yield [request])[0])
        said = reply.text.strip()
        legal = said in LEVELS
        p = share(said) if legal else self.forecasts[-1][0] if self.forecasts else 0.5
        self.forecasts.append((p, 1.0 - p))
        newest = len(self.forecasts) - 1
        if self._argued is not None:
            before = newest - 1
            argued = self._argued
            self.moves.append(
                Move(argued.seat, argued.turn, unfinished=argued.unfinished, before=before, after=newest)
            )
        # A forecast that could not be read is fined as illegal and scored by none.
        self.moves.append(Move(PREDICTOR, chat.turns, rejected=not legal, after=newest if legal else None))
        chat.said(reply.text)
        self._tell(ADVERSARY, PREDICTOR, said if legal else self.rules.rejected)

    def argue(self) -> Generator[list[Ask], list[Answer], str]:
        """The adversary's argument, which the predictor hears."""
        chat = self._chats[ADVERSARY]
        request = TurnRequest(
            seat=ADVERSARY, role=ADVERSARY, messages=chat.ask(self._prompt(ADVERSARY, self.rules.argue)),
            turn=chat.turns, phase="argue", max_tokens=self.rules.max_tokens,
        )  # fmt: skip
        reply = as_reply((yield [request])[0])
        self._argued = Move(ADVERSARY, chat.turns, unfinished=reply.truncated or not reply.text.strip())
        chat.said(reply.text)
        self._tell(PREDICTOR, ADVERSARY, reply.text)
        return reply.text

    def _prompt(self, seat: str, text: str) -> str:
        return render(text, self._values[seat])

    def _tell(self, seat: str, speaker: str, text: str) -> None:
        values = {"seat": speaker, "role": speaker, "text": text, "quoted": quote(text)}
        self._chats[seat].hear(render(self.rules.prompts[seat].heard, values))
