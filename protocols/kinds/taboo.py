"""The kind `taboo`: an attacker leads a defender to say a word that only the attacker knows (Adversarial Taboo; SPAG,
Cheng et al. 2024, arXiv 2404.10642). The rules decide the outcome, nobody judges."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from protocols.base import Play, Protocol
from protocols.chat import as_reply, hidden_values
from protocols.prompts import RolePrompt, begin_chat, prompt_problems
from protocols.rewards.record import Move, Record, RewardTerm
from protocols.rewards.registry import pay, reward_problems
from protocols.templates import literals, quote, render
from protocols.types import Outcome, Task, TurnRequest as Request

ATTACKER, DEFENDER = "attacker", "defender"
WORD = "word"
"""Key of `Task.hidden` that holds the word. The attacker is shown it."""


def names_word(text: str, word: str) -> bool:
    """Whether `word` stands in `text` as a word of its own, whatever its case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def winner(word: str, speaker: str, text: str, guess: str) -> str:
    """Who wins by this turn; empty while the game goes on.

    The attacker loses by saying the word. The defender wins by a right guess, once; it loses by a wrong one, and by
    saying the word in any other way.
    """
    if speaker == ATTACKER:
        return DEFENDER if names_word(text, word) else ""
    _, said, guessed = text.partition(guess)
    if said:
        right = re.match(rf"\W*{re.escape(word)}(?!\w)", guessed, re.IGNORECASE) is not None
        return DEFENDER if right else ATTACKER
    return ATTACKER if names_word(text, word) else ""


@dataclass(frozen=True)
class Taboo(Protocol):
    """Outcome.score: 1 where the attacker wins, 0 where the defender does, 0.5 where nobody has after all turns."""

    kind: ClassVar[str] = "taboo"
    prompts: dict[str, RolePrompt]
    """attacker and defender. Names: question, seat, role, turns, and those listed in `hidden`; the attacker's lists
    `word`. In `heard`: seat, role, text, quoted."""
    turns: int = 5
    """Of each seat. The attacker begins."""
    guess: str = "My guess is:"
    """How the defender begins a guess; the word follows."""
    rewards: list[RewardTerm] = field(default_factory=lambda: [RewardTerm("game_result")])
    joiner: str = "\n\n"
    max_tokens: int | None = None
    name: str = ""

    def play(self, task: Task, rng: random.Random) -> Play:
        (word,) = hidden_values(task, ATTACKER, [WORD]).values()
        turns = str(self.turns)
        chats = {
            seat: begin_chat(self.prompts[seat], task, seat, self.joiner, turns=turns)
            for seat in (ATTACKER, DEFENDER)
        }
        moves: list[Move] = []
        won = ""
        for turn in range(2 * self.turns):
            seat, other = (ATTACKER, DEFENDER)[:: 1 if turn % 2 == 0 else -1]
            chat = chats[seat]
            request = Request(
                seat=seat, role=seat, messages=chat.ask(""), turn=chat.turns, phase="talk", max_tokens=self.max_tokens
            )  # fmt: skip
            reply = as_reply((yield [request])[0])
            moves.append(Move(seat, chat.turns, unfinished=reply.truncated or not reply.text.strip()))
            chat.said(reply.text)
            won = winner(word, seat, reply.text, self.guess)
            if won:
                break
            values = {"seat": seat, "role": seat, "text": reply.text, "quoted": quote(reply.text)}
            chats[other].hear(render(self.prompts[other].heard, values))
        sign = {ATTACKER: 1.0, DEFENDER: -1.0, "": 0.0}[won]
        record = Record(self.roles(), moves, results={ATTACKER: sign, DEFENDER: 0.0 - sign})
        metrics = {"turns": float(len(moves)), "attacker_won": float(sign > 0), "defender_won": float(sign < 0)}
        return Outcome("ok", (), pay(self.rewards, record), (1.0 + sign) / 2.0, metrics)

    @property
    def success(self) -> str:
        return "attacker wins"

    def roles(self) -> Mapping[str, str]:
        return {ATTACKER: ATTACKER, DEFENDER: DEFENDER}

    def literal_texts(self) -> list[str]:
        """Every fixed text that a seat may be sent: the words that a small vocabulary must hold."""
        texts = [self.guess]
        for prompt in self.prompts.values():
            texts += [prompt.system, prompt.opening, prompt.heard]
        return [literals(text) for text in texts if literals(text).strip()]

    def problems(self) -> list[tuple[str, str]]:
        found = list(prompt_problems(self.prompts, (ATTACKER, DEFENDER), ("turns",)))
        if ATTACKER in self.prompts and WORD not in self.prompts[ATTACKER].hidden:
            found.append((f"prompts.{ATTACKER}.hidden", f"the attacker must know the word: list {WORD}"))
        if DEFENDER in self.prompts and WORD in self.prompts[DEFENDER].hidden:
            found.append((f"prompts.{DEFENDER}.hidden", "the defender must not know the word"))
        if self.turns < 1:
            found.append(("turns", "must be at least 1"))
        if not self.guess.strip():
            found.append(("guess", "must not be blank: every turn would be a guess"))
        if self.max_tokens is not None and self.max_tokens < 1:
            found.append(("max_tokens", "must be at least 1"))
        return found + reward_problems(self.rewards, {"turns", "result"}, self.roles())
