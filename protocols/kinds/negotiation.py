"""The kind `negotiation`: a seller and a buyer, each with a private limit, agree on a price or not (after Fu et al.
2023, arXiv 2305.10142). The rules decide the outcome, nobody judges."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from protocols.base import Play, Protocol
from protocols.chat import Chat, as_reply, hidden_values
from protocols.errors import UserError
from protocols.prompts import RolePrompt, begin_chat, prompt_problems
from protocols.rewards.record import Move, Record, RewardTerm
from protocols.rewards.registry import pay, reward_problems
from protocols.templates import literals, quote, render
from protocols.types import Outcome, Task, TurnRequest

SELLER, BUYER = "seller", "buyer"
LIMITS = {SELLER: "cost", BUYER: "value"}
"""role -> key of `Task.hidden` with its limit, a whole number: what the thing costs the seller, what it is worth to the
buyer. The value is above the cost, so that there is something to gain."""
_OFFER = re.compile(r"OFFER\s+(\d{1,12})")


def last_move(text: str, standing: bool) -> int | str | None:
    """What a turn does, by its last line that is not blank: OFFER and a whole number, ACCEPT where an offer of the
    other side is `standing`, LEAVE. None where it is none of these."""
    line = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    offer = _OFFER.fullmatch(line)
    if offer:
        return int(offer[1])
    return line if line == "LEAVE" or (line == "ACCEPT" and standing) else None


def shares(price: int, cost: int, value: int) -> dict[str, float]:
    """Each side's share of the gain from a trade at `price`. They sum to 1; a price outside of the limits costs one
    side something. No share is below -1, so that one absurd price does not outweigh a batch."""
    sellers = max(-1.0, min(2.0, (price - cost) / (value - cost)))
    return {SELLER: sellers, BUYER: 1.0 - sellers}


@dataclass(frozen=True)
class Negotiation(Protocol):
    """Outcome.score: 1 for a deal that leaves neither side worse off, 0 for another or none."""

    kind: ClassVar[str] = "negotiation"
    prompts: dict[str, RolePrompt]
    """seller and buyer. Names: question, seat, role, turns, and those listed in `hidden` (cost, value)."""
    turns: int = 4
    """Of each seat."""
    first: str = SELLER
    prices: list[int] = field(default_factory=list)
    """Where given, nobody talks: a turn is one of the offers at these prices, ACCEPT or LEAVE."""
    rewards: list[RewardTerm] = field(default_factory=lambda: [RewardTerm("game_result")])
    rejected: str = "(no offer)"
    """With `prices`: what is heard of a reply that is no legal move."""
    joiner: str = "\n\n"
    max_tokens: int | None = None
    name: str = ""

    def play(self, task: Task, rng: random.Random) -> Play:
        cost, value = self._limits(task)
        seats = (self.first, BUYER if self.first == SELLER else SELLER)
        turns = str(self.turns)
        chats = {seat: begin_chat(self.prompts[seat], task, seat, self.joiner, turns=turns) for seat in seats}
        moves: list[Move] = []
        offer: int | None = None
        deal: int | None = None
        for turn in range(2 * self.turns):
            seat, other = seats[:: 1 if turn % 2 == 0 else -1]
            legal = self._legal(offer is not None)
            reply = as_reply((yield [self._request(seat, chats[seat], legal)])[0])
            text = reply.text.strip() if legal else reply.text
            done = last_move(text, offer is not None) if not legal or text in legal else None
            moves.append(Move(
                seat, chats[seat].turns, rejected=done is None, unfinished=reply.truncated or not text.strip()
            ))  # fmt: skip
            chats[seat].said(reply.text)
            if isinstance(done, str):
                deal = offer if done == "ACCEPT" else None
                break
            offer = done  # which the other side may accept; a turn without an offer leaves it nothing to accept
            heard = self.rejected if legal and text not in legal else text
            values = {"seat": seat, "role": seat, "text": heard, "quoted": quote(heard)}
            chats[other].hear(render(self.prompts[other].heard, values))
        results = {SELLER: 0.0, BUYER: 0.0} if deal is None else shares(deal, cost, value)
        metrics = {"turns": float(len(moves)), "deal": float(deal is not None)}
        if deal is not None:
            metrics |= {"price": float(deal), "sellers_share": results[SELLER]}
        score = float(deal is not None and cost <= deal <= value)
        record = Record(self.roles(), moves, results=results)
        return Outcome("ok", (), pay(self.rewards, record), score, metrics)

    def _limits(self, task: Task) -> tuple[int, int]:
        texts = [hidden_values(task, role, [name])[name] for role, name in LIMITS.items()]
        if not all(text.isdecimal() for text in texts) or int(texts[0]) >= int(texts[1]):
            raise UserError(
                f"protocol {self.name}: task {task.id} needs a cost and a value above it, both whole numbers"
            )
        return int(texts[0]), int(texts[1])

    def _legal(self, standing: bool) -> tuple[str, ...]:
        if not self.prices:
            return ()
        return (*(f"OFFER {price}" for price in self.prices), *(["ACCEPT"] if standing else []), "LEAVE")

    def _request(self, seat: str, chat: Chat, legal: tuple[str, ...]) -> TurnRequest:
        place = "first" if seat == self.first else "second"
        return TurnRequest(
            seat=seat, role=seat, messages=chat.ask(""), turn=chat.turns, phase="bargain", choices=legal,
            situation=place, max_tokens=self.max_tokens,
        )  # fmt: skip

    @property
    def success(self) -> str:
        return "a deal that leaves nobody worse off"

    def roles(self) -> Mapping[str, str]:
        return {SELLER: SELLER, BUYER: BUYER}

    def literal_texts(self) -> list[str]:
        """Every fixed text that a seat may be sent: the words that a small vocabulary must hold."""
        texts = ["OFFER ACCEPT LEAVE", " ".join(map(str, self.prices)), self.rejected]
        for prompt in self.prompts.values():
            texts += [prompt.system, prompt.opening, prompt.heard]
        return [literals(text) for text in texts if literals(text).strip()]

    def problems(self) -> list[tuple[str, str]]:
        found = list(prompt_problems(self.prompts, (SELLER, BUYER), ("turns",)))
        for role, other in ((SELLER, BUYER), (BUYER, SELLER)):
            if role in self.prompts and LIMITS[other] in self.prompts[role].hidden:
                found.append((f"prompts.{role}.hidden", f"the {role} must not know the {LIMITS[other]}"))
        if self.first not in LIMITS:
            found.append(("first", f"there is no seat {self.first!r}; valid: {SELLER}, {BUYER}"))
        if self.turns < 1:
            found.append(("turns", "must be at least 1"))
        if any(price < 0 for price in self.prices) or len(set(self.prices)) < len(self.prices):
            found.append(("prices", "must be different whole numbers of at least 0"))
        if self.prices and self.max_tokens is not None:
            found.append(("max_tokens", "has no effect where turns are picked from prices"))
        if self.max_tokens is not None and self.max_tokens < 1:
            found.append(("max_tokens", "must be at least 1"))
        return found + reward_problems(self.rewards, {"turns", "result", "legal moves"}, self.roles())
