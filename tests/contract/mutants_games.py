"""Faults seeded into the kind `game`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from protocols.kinds import game
from tests.contract.seeding import HERE, mutant

POKER, PARLOUR = (HERE / "protocols" / f"{name}.yaml" for name in ("poker", "parlour"))


@mutant(POKER, "is shown to", game.GamePlay, "request")
def shown_the_cards_of_another_too(request: Any) -> Any:
    def broken(self: Any, task: Any, state: Any, player: int, seat: str) -> Any:
        asked, other = (request(self, task, state, p, seat) for p in (player, (player + 1) % 3))
        return replace(asked, messages=(*asked.messages, other.messages[-1]))

    return broken


@mutant(POKER, "is player 0 in all", game.Match, "__init__")
def order_not_drawn(init: Any) -> Any:
    return lambda self, rules, task, rng: init(self, replace(rules, order="fixed"), task, rng)


@mutant(POKER, "paid", game.Match, "outcome")
def paid_to_the_wrong_seats(outcome: Any) -> Any:
    def broken(self: Any) -> Any:
        self.seats = (*self.seats[1:], self.seats[0])
        return outcome(self)

    return broken


@mutant(POKER, "has two situations", game.GamePlay, "_request")
def situations_of_the_turn_not_of_what_is_known(request: Any) -> Any:
    return lambda self, *args: replace(request(self, *args), situation=f"turn {args[4]}")


@mutant(PARLOUR, "play ended before", game.Match, "_reject")
def forfeits_at_the_first_illegal_move(reject: Any) -> Any:
    def broken(self: Any, player: int, reason: str) -> None:
        self._tries[player] = self.rules.retries
        reject(self, player, reason)

    return broken


@mutant(PARLOUR, "paid", game, "pay")
def forfeiting_costs_nothing(pay: Any) -> Any:
    return lambda terms, record: pay(terms, replace(record, forfeited=()))


@mutant(PARLOUR, "read", game.Match, "ask")
def illegal_moves_are_told_to_all(ask: Any) -> Any:
    def broken(self: Any) -> Any:
        for why in filter(None, self._open.values()):
            for chat in self._chats.values():
                chat.hear(why)
        return ask(self)

    return broken
