"""Games of TextArena (Guertler et al. 2025, arXiv 2504.11442), for protocols of the kind `game`.

Moves are free text, which the environment reads itself; what it says of a move that it cannot read is the player's next
observation. Environments draw from Python's and NumPy's global generators: here every call to one runs on generators
of its own, seeded from the play, so that plays side by side do not disturb each other and can be repeated.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from protocols.errors import UserError
from protocols.templates import quote
from protocols.types import Game, GameState, Task, VerifierError
from tasks.base import TaskSource


class NoTextArena(UserError):
    """TextArena is not installed, or has no such environment."""


def make(env: str) -> Any:
    """A fresh environment without the wrappers that would write its observations for it. Raises `NoTextArena`."""
    try:
        import textarena
    except ImportError as error:
        raise NoTextArena(f"TextArena is not installed ({error}): pip install 'dissoi[textarena]'") from None
    try:
        made = textarena.make(env)
    except ValueError as error:
        raise NoTextArena(str(error)) from None
    while isinstance(made, textarena.Wrapper):
        made = made.env
    return made


class OwnDice:
    """The state of the global generators as one play sees it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._states: Any = None

    @contextlib.contextmanager
    def rolled(self) -> Iterator[None]:
        """Within, the global generators go on from where this play left them; afterwards they are as before."""
        import numpy

        before = random.getstate(), numpy.random.get_state()
        if self._states is None:
            random.seed(self.seed)
            numpy.random.seed(self.seed % 2**32)
        else:
            random.setstate(self._states[0])
            numpy.random.set_state(self._states[1])
        try:
            yield
        finally:
            self._states = random.getstate(), numpy.random.get_state()
            random.setstate(before[0])
            numpy.random.set_state(before[1])


@dataclass(frozen=True)
class TextArenaGame(Game):
    env: str
    seats: int

    @property
    def players(self) -> int:
        return self.seats

    def start(self, rng: random.Random) -> TextArenaState:
        return TextArenaState(self.env, self.seats, rng.getrandbits(32))


class TextArenaState(GameState):
    """One environment and what it has told each player."""

    def __init__(self, env: str, players: int, seed: int) -> None:
        self._dice, self._done = OwnDice(seed), False
        self._told: dict[int, list[tuple[int, str]]] = {player: [] for player in range(players)}
        """player -> (who said it, what)"""
        self._new: dict[int, int] = dict.fromkeys(self._told, 0)
        with self._dice.rolled():
            self.env = make(env)
            self.env.reset(num_players=players, seed=seed)
            self._listen()

    @property
    def over(self) -> bool:
        return self._done

    def chances(self) -> Sequence[float]:
        return ()

    def draw(self, outcome: int) -> None:
        raise AssertionError("TextArena draws within itself")

    def movers(self) -> Sequence[int]:
        return (self._mover,)

    def legal(self, player: int) -> tuple[str, ...]:
        return ()

    def known(self, player: int) -> str:
        return self._text(self._told[player])

    def news(self, player: int) -> str:
        """Without the player's own words, which its chat holds already."""
        new = self._told[player][self._new[player] :]
        self._new[player] = len(self._told[player])
        return self._text([said for said in new if said[0] != player])

    def read(self, player: int, text: str) -> str:
        return text

    def apply(self, moves: Mapping[int, str]) -> None:
        with self._dice.rolled():
            self._done, _ = self.env.step(action=moves[self._mover])
            if not self._done:
                self._listen()

    def returns(self) -> tuple[float, ...]:
        """Raises `VerifierError` where the environment does not say."""
        with self._dice.rolled():
            rewards, _ = self.env.close()
        if rewards is None or set(rewards) != set(self._told):
            raise VerifierError(f"the game ended without a reward for each player: {rewards}")
        return tuple(float(rewards[player]) for player in self._told)

    def _listen(self) -> None:
        """An environment tells whoever moves next what is new to them."""
        self._mover, observations = self.env.get_observation()
        self._told[self._mover] += [(sender, text) for sender, text, *_ in observations]

    def _text(self, said: Sequence[tuple[int, str]]) -> str:
        """One paragraph for each message. Every line that a player wrote is marked: nobody can speak for the game."""
        names = self.env.state.role_mapping
        return "\n\n".join(
            f"[{names.get(sender, f'Player {sender}')}]\n{quote(text)}" if sender in self._told else text.strip()
            for sender, text in said
        )


@dataclass(frozen=True)
class TextArena(TaskSource):
    """One task: the environment. It draws in the play, so held-out plays are of the same game."""

    kind: ClassVar[str] = "textarena"

    env: str = "KuhnPoker-v0"
    """Its id in TextArena. Wrappers of an id are left away."""
    players: int = 2

    def train(self, rng: random.Random) -> Task:
        return self.root(self.env)

    def heldout(self, n: int, seed: int) -> list[Task]:
        task = self.root(self.env)
        return [dataclasses.replace(task, id=f"{self.env}#{i}") for i in range(n)]

    def derived_heldout(self, n: int, seed: int) -> list[Task]:
        return self.heldout(n, seed)

    def root(self, task_id: str) -> Task:
        if task_id != self.env:
            raise KeyError(task_id)
        return Task(self.env, self.env, game=TextArenaGame(self.env, self.players))

    def words(self) -> list[str]:
        """None: environments write prose, which tiny tokenizers spell."""
        return []

    def problems(self) -> list[tuple[str, str]]:
        """Found by starting the game once."""
        if self.players < 1:
            return [("players", "must be at least 1")]
        try:
            TextArenaGame(self.env, self.players).start(random.Random(0))
        except NoTextArena as error:
            return [("env", str(error))]
        except Exception as error:  # environments assert, raise and fail to download in their own ways
            said = f"{type(error).__name__}: {error}"
            return [("env", f"{self.env} cannot be started with {self.players} players: {said}")]
        return []
