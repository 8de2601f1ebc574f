"""Games of OpenSpiel (Lanctot et al. 2019, arXiv 1908.09453) as text, for protocols of the kind `game`.

Three are told in words of our own, few and always the same, so that a tiny tokenizer has a token for each:

    kuhn_poker    "card J pass bet"                     pass, bet
    leduc_poker   "card J call raise call table Q"      fold, call, raise
    tic_tac_toe   "you x board 1 2 o / 4 x 6 / 7 8 9"   1 to 9, a cell that still shows its number

Every other sequential or simultaneous game is told as OpenSpiel writes its information state (the board, where
everything is open) and its actions.
"""

from __future__ import annotations

import dataclasses
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from protocols.errors import UserError
from protocols.types import Game, GameState, Task
from tasks.base import TaskSource

RANKS = ("J", "Q", "K")
TRACTABLE = 100_000
"""Most positions of a game whose exact NashConv is computed: some seconds."""
PLAYOUTS = 200
"""Random plays from which the words of a game without words of our own are gathered."""


class NoSpiel(UserError):
    """OpenSpiel is not installed, or has no such game."""


def spiel() -> Any:
    """The module pyspiel. Raises `NoSpiel`."""
    try:
        import pyspiel
    except ImportError:
        raise NoSpiel("OpenSpiel is not installed: pip install 'dissoi[games]'") from None
    return pyspiel


@cache
def load_game(name: str) -> Any:
    """The pyspiel game of that name, with parameters as OpenSpiel writes them. Raises `NoSpiel`."""
    pyspiel = spiel()
    short, known = name.partition("(")[0], pyspiel.registered_names()
    if short not in known:
        near = [other for other in known if short and (short in other or other in short)]
        raise NoSpiel(f"OpenSpiel has no game {short!r}; valid: {', '.join(near or known)}")
    try:
        game = pyspiel.load_game(name)
    except pyspiel.SpielError as error:
        raise NoSpiel(f"{name!r}: {str(error).strip()}") from None
    kind = game.get_type()
    dynamics, chance = type(kind.dynamics), type(kind.chance_mode)
    if kind.dynamics not in (dynamics.SEQUENTIAL, dynamics.SIMULTANEOUS):
        raise NoSpiel(f"{name!r} is a mean-field game, which no seats can play")
    if kind.chance_mode not in (chance.DETERMINISTIC, chance.EXPLICIT_STOCHASTIC):
        raise NoSpiel(f"{name!r} draws within itself, so that no play of it could be repeated")
    return game


class Words(ABC):
    """How a game is told."""

    vocabulary: Sequence[str] = ()
    """Every word there can be; empty: gathered from random plays."""

    @abstractmethod
    def known(self, state: Any, player: int) -> str: ...

    def move(self, state: Any, player: int, action: int) -> str:
        return str(state.action_to_string(player, action)).lower()


class Kuhn(Words):
    """Own card and all moves. With more than two players the cards are numbers."""

    vocabulary = ("card", *RANKS, *map(str, range(11)), "pass", "bet")

    def known(self, state: Any, player: int) -> str:
        players = state.num_players()
        past = [entry.action for entry in state.full_history()]
        card = RANKS[past[player]] if players == 2 else str(past[player])
        return " ".join(["card", card, *(("pass", "bet")[action] for action in past[players:])])


class Leduc(Words):
    """Own card and all moves, and where it was turned the card on the table. Suits are not told: they pay nothing."""

    vocabulary = ("card", "table", *RANKS, *map(str, range(11)), "fold", "call", "raise")

    def known(self, state: Any, player: int) -> str:
        players, game = state.num_players(), state.get_game()
        suits = 1 if game.get_parameters().get("suit_isomorphism") else 2
        past = state.full_history()

        def card(number: int) -> str:
            return RANKS[number // suits] if players == 2 else str(number // suits)

        told = ["card", card(past[player].action)]
        for entry in past[players:]:
            told += ["table", card(entry.action)] if entry.player < 0 else [("fold", "call", "raise")[entry.action]]
        return " ".join(told)


class TicTacToe(Words):
    """The board by rows; a free cell shows its number, which is the move that takes it."""

    vocabulary = ("you", "x", "o", "board", "/", *map(str, range(1, 10)))

    def known(self, state: Any, player: int) -> str:
        marks = state.observation_string(player).replace("\n", "")
        cells = [str(i + 1) if mark == "." else mark for i, mark in enumerate(marks)]
        rows = [" ".join(cells[i : i + 3]) for i in (0, 3, 6)]
        return f"you {'xo'[player]} board {' / '.join(rows)}"

    def move(self, state: Any, player: int, action: int) -> str:
        return str(action + 1)


class Plain(Words):
    """As OpenSpiel writes it: the information state, or the board of a game in which everything is open."""

    def known(self, state: Any, player: int) -> str:
        kind = state.get_game().get_type()
        open_board = kind.information == type(kind.information).PERFECT_INFORMATION
        if kind.provides_observation_string and (open_board or not kind.provides_information_state_string):
            return str(state.observation_string(player)).strip()
        return str(state.information_state_string(player)).strip()

    def move(self, state: Any, player: int, action: int) -> str:
        return " ".join(str(state.action_to_string(player, action)).split())


WORDS: dict[str, Words] = {"kuhn_poker": Kuhn(), "leduc_poker": Leduc(), "tic_tac_toe": TicTacToe()}


@dataclass(frozen=True)
class SpielGame(Game):
    """A game by its OpenSpiel name; the module is loaded when it is played."""

    name: str

    @property
    def players(self) -> int:
        return int(load_game(self.name).num_players())

    @property
    def words(self) -> Words:
        return WORDS.get(self.name.partition("(")[0], Plain())

    def start(self, rng: random.Random) -> SpielState:
        return SpielState(load_game(self.name).new_initial_state(), self.words)

    def positions(self) -> Iterator[SpielState]:
        """Every position in which somebody moves, depth first."""
        todo = [load_game(self.name).new_initial_state()]
        while todo:
            state = todo.pop()
            if state.is_terminal():
                continue
            if not state.is_chance_node():
                yield SpielState(state, self.words)
            todo += [state.child(action) for action in reversed(state.legal_actions())]

    def exact_problem(self) -> str:
        """Why its NashConv cannot be computed; empty where it can."""
        kind = load_game(self.name).get_type()
        if kind.dynamics != type(kind.dynamics).SEQUENTIAL:
            return "players move at once (OpenSpiel's turn_based_simultaneous_game makes them take turns)"
        if not kind.provides_information_state_string:
            return "OpenSpiel does not tell its information states"
        for count, _ in enumerate(self.positions()):
            if count >= TRACTABLE:
                return f"it has more than {TRACTABLE:,} positions"
        return ""

    def information_states(self) -> dict[str, tuple[SpielState, int]]:
        """OpenSpiel's name of each information state -> a position of it, and who moves. For sequential games."""
        found: dict[str, tuple[SpielState, int]] = {}
        for position in self.positions():
            (player,) = position.movers()
            found.setdefault(position.state.information_state_string(player), (position, player))
        return found

    def own_path(self, position: SpielState, player: int) -> list[tuple[str, str]]:
        """What that player knew and did on the way to a position: (OpenSpiel's name of the information state, move).
        It is the same for all positions of an information state, where the game forgets nothing."""
        state, path = load_game(self.name).new_initial_state(), []
        for entry in position.state.full_history():
            if entry.player == player:
                moves = {number: move for move, number in SpielState(state, self.words).actions(player).items()}
                path.append((str(state.information_state_string(player)), moves[entry.action]))
            state.apply_action(entry.action)
        return path

    def nash_conv(self, policy: Mapping[str, Mapping[str, float]]) -> float:
        """Sum over players of what each could gain by a best response to the others, in the game's own units; 0 at
        an equilibrium. `policy`: information state -> move -> probability."""
        table = {
            name: [(action, policy[name][move]) for move, action in position.actions(player).items()]
            for name, (position, player) in self.information_states().items()
        }
        return float(spiel().nash_conv(load_game(self.name), table))


class SpielState(GameState):
    """A pyspiel state and the words it is told in."""

    def __init__(self, state: Any, words: Words) -> None:
        self.state, self.words = state, words

    @property
    def over(self) -> bool:
        return bool(self.state.is_terminal())

    def chances(self) -> Sequence[float]:
        return [p for _, p in self.state.chance_outcomes()] if self.state.is_chance_node() else ()

    def draw(self, outcome: int) -> None:
        self.state.apply_action(self.state.chance_outcomes()[outcome][0])

    def movers(self) -> Sequence[int]:
        if self.state.is_simultaneous_node():
            return range(self.state.num_players())
        return (self.state.current_player(),)

    def actions(self, player: int) -> dict[str, int]:
        """move -> OpenSpiel's number of it, in OpenSpiel's order."""
        numbers = self.state.legal_actions(player)
        texts = [self.words.move(self.state, player, number) for number in numbers]
        doubled = len(set(texts)) < len(texts)
        return {f"{text} ({n})" if doubled else text: n for text, n in zip(texts, numbers)}

    def legal(self, player: int) -> tuple[str, ...]:
        return tuple(self.actions(player))

    def known(self, player: int) -> str:
        return self.words.known(self.state, player)

    def apply(self, moves: Mapping[int, str]) -> None:
        chosen = [self.actions(player)[move] for player, move in sorted(moves.items())]
        if self.state.is_simultaneous_node():
            self.state.apply_actions(chosen)
        else:
            self.state.apply_action(chosen[0])

    def returns(self) -> tuple[float, ...]:
        return tuple(map(float, self.state.returns()))


@dataclass(frozen=True)
class OpenSpiel(TaskSource):
    """The game, again and again. Chance is drawn in the play, so held-out plays are of the same game."""

    kind: ClassVar[str] = "open_spiel"

    game: str = "kuhn_poker"
    """OpenSpiel's name of it, with parameters if any: leduc_poker, tic_tac_toe, liars_dice(numdice=1), ..."""

    def train(self, rng: random.Random) -> Task:
        """Named apart, so that plays drawn together (`repeats`) can be compared with each other (group_by: task)."""
        return dataclasses.replace(self.root(self.game), id=f"{self.game}/{rng.getrandbits(32):08x}")

    def heldout(self, n: int, seed: int) -> list[Task]:
        """Numbered, so that plays of the same game are counted as independent of each other: their draws are."""
        task = self.root(self.game)
        return [dataclasses.replace(task, id=f"{self.game}#{i}") for i in range(n)]

    def derived_heldout(self, n: int, seed: int) -> list[Task]:
        return self.heldout(n, seed)

    def root(self, task_id: str) -> Task:
        if task_id != self.game:
            raise KeyError(task_id)
        return Task(self.game, load_game(self.game).get_type().long_name, game=SpielGame(self.game))

    def words(self) -> list[str]:
        told = SpielGame(self.game).words
        return list(told.vocabulary) or sorted(self._gathered())

    def problems(self) -> list[tuple[str, str]]:
        try:
            load_game(self.game)
        except NoSpiel as error:
            return [("game", str(error))]
        return []

    def exact_problem(self) -> str:
        return SpielGame(self.game).exact_problem()

    def _gathered(self) -> set[str]:
        rng, found = random.Random(0), set()
        for _ in range(PLAYOUTS):
            state = SpielGame(self.game).start(rng)
            while not state.over:
                if chances := state.chances():
                    state.draw(rng.choices(range(len(chances)), chances)[0])
                    continue
                moves = {player: rng.choice(state.legal(player)) for player in state.movers()}
                for player in moves:
                    found |= {*state.known(player).split(), *" ".join(state.legal(player)).split()}
                state.apply(moves)
        return found
