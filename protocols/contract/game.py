"""A game made of markers, on which protocols of the kind `game` are driven: what a player knows is found by search.

Everybody holds a card that nobody else may see. All move at once, each alone in turn, chance turns a card for all, and
the first player makes a move of which the others hear only that it was made. What it pays is a hash of what happened,
and sums to 0.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from protocols.types import Game, GameState

CARDS = 3
"""Outcomes of each chance node."""
SECRET = "moved in secret"


@dataclass(frozen=True)
class MarkerGame(Game):
    """`altered`: a player whose card reads otherwise, by which nothing that the others know may change."""

    seats: int
    seed: int
    altered: int | None = None

    @property
    def players(self) -> int:
        return self.seats

    def start(self, rng: random.Random) -> MarkerState:
        return MarkerState(self)

    def card(self, player: int | None, outcome: int) -> str:
        """What a drawn card reads; None: the one that is turned for all."""
        other = " other" if player is not None and player == self.altered else ""
        return self._mark("cd", player, outcome, other)

    def moves(self, player: int, node: int) -> tuple[str, ...]:
        return tuple(self._mark("mv", player, node, i) for i in range(2 + (node + player) % 2))

    def returns(self, past: Sequence[object]) -> tuple[int, ...]:
        values = [int(self._mark("", player, *past), 16) % 11 - 5 for player in range(self.seats - 1)]
        return (*values, -sum(values))

    def _mark(self, prefix: str, *parts: object) -> str:
        return prefix + hashlib.sha256(repr((self.seed, *parts)).encode()).hexdigest()[:8]


@dataclass
class MarkerState(GameState):
    game: MarkerGame
    seen: dict[int, list[str]] = field(default_factory=dict)
    past: list[object] = field(default_factory=list)
    told: dict[int, int] = field(default_factory=dict)
    node: int = 0

    def __post_init__(self) -> None:
        self.seen = {player: [] for player in range(self.game.seats)}
        self.told = dict.fromkeys(self.seen, 0)
        self._nodes = list(self._script())

    def _script(self) -> Iterator[tuple[str, Sequence[int]]]:
        """(what happens, to or by whom) at each node."""
        everyone = range(self.game.seats)
        yield from (("deal", (player,)) for player in everyone)
        yield "move", everyone
        yield from (("move", (player,)) for player in everyone)
        yield "turn", ()
        yield "secret", (0,)
        yield from (("move", (player,)) for player in reversed(everyone))

    @property
    def over(self) -> bool:
        return self.node == len(self._nodes)

    def chances(self) -> Sequence[float]:
        return (0.5, 0.25, 0.25) if self._nodes[self.node][0] in ("deal", "turn") else ()

    def draw(self, outcome: int) -> None:
        what, players = self._nodes[self.node]
        for player in players if what == "deal" else self.seen:
            self.seen[player].append(self.game.card(player if what == "deal" else None, outcome))
        self._next(outcome)

    def movers(self) -> Sequence[int]:
        return self._nodes[self.node][1]

    def legal(self, player: int) -> tuple[str, ...]:
        return self.game.moves(player, self.node)

    def known(self, player: int) -> str:
        return " ".join(self.seen[player])

    def news(self, player: int) -> str:
        new, self.told[player] = self.seen[player][self.told[player] :], len(self.seen[player])
        return " ".join(new)

    def apply(self, moves: Mapping[int, str]) -> None:
        secret = self._nodes[self.node][0] == "secret"
        assert set(moves) == set(self.movers()) and all(m in self.legal(p) for p, m in moves.items())
        for mover in sorted(moves):
            for player in self.seen:
                self.seen[player].append(SECRET if secret and player != mover else f"p{mover} {moves[mover]}")
        self._next(sorted(moves.items()))

    def returns(self) -> tuple[float, ...]:
        return tuple(map(float, self.game.returns(self.past)))

    def _next(self, what: object) -> None:
        self.past.append(what)
        self.node += 1
