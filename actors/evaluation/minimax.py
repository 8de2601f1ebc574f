"""Exact value of the game of alternating reveals before a given judge, in few evaluations of that judge.

Two sides reveal statements in a fixed turn order; the judge then gives the probability of the first claim. It
sees the revealed statements in canonical order, so a position is a *set* and both players know it: a finite
game of perfect information with one winner, whose value exists in pure strategies (Zermelo). Truth wins when
its probability is above one half, so a value says whether an honest player can force that against every liar.
Judges whose verdict depends on the order of reveals, or that are sampled, are another game.

The search is depth-first over win and loss with a memo of sets. What keeps it cheap is the order of moves:
each statement's effect is measured once on its own, and effects are taken to add up. A wrong guess costs
evaluations, never exactness. With four reveals from 33 statements there are 40,920 final positions; a proof
that the first player wins needs nearly C(31, 2) = 465 of them, one that the last player wins far fewer (see
`_reply_order`).

A search is a generator: it yields positions and is sent the judge's probabilities, so that `solve` can merge
the questions of many searches into large batches.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass

Position = tuple[int, ...]
"""Indices of the revealed statements, ascending."""
Question = tuple[int, Position]
"""(index of the game, position)"""
Search = Generator[list[Position], list[float], bool]
"""Yields positions, is sent the probability of the first claim in each, returns whether truth wins."""
Evaluate = Callable[[list[Question]], list[float]]

SAFE_LOGIT = 1.0
"""How clearly the sum of effects must favour a final reply before it is chosen for covering other moves as
well. Only the number of evaluations depends on it: flat between 0.5 and 3 on judges of the digits."""
_CHUNKS = (1, 4)
"""Final replies asked for at once: the most promising, then four, then all the rest."""


@dataclass(frozen=True)
class RevealGame:
    """`statements` statements, revealed one by one by the sides in `sides` (0 or 1); claim `truth` is the
    true one."""

    statements: int
    sides: tuple[int, ...]
    truth: int

    def __post_init__(self) -> None:
        if self.truth not in (0, 1) or any(side not in (0, 1) for side in self.sides):
            raise ValueError(f"sides are 0 or 1, not {self.sides} and {self.truth}")
        if len(self.sides) > self.statements:
            raise ValueError(f"{len(self.sides)} reveals need as many statements, not {self.statements}")


@dataclass(frozen=True)
class Solution:
    """Who wins, and how many different positions the judge was asked about."""

    truth_wins: bool
    evaluations: int


def exact(game: RevealGame) -> Search:
    """Whether truth wins when both sides play perfectly."""
    return _Exact(game).run()


def greedy(game: RevealGame) -> Search:
    """Whether truth wins when both sides always reveal what helps them most at once (one-ply search; no
    bound)."""
    position: frozenset[int] = frozenset()
    probability = 0.5
    if not game.sides:
        [probability] = yield [()]
    for side in game.sides:
        reached = [position | {i} for i in range(game.statements) if i not in position]
        probabilities = yield [tuple(sorted(p)) for p in reached]
        best = (max if side == 0 else min)(range(len(reached)), key=probabilities.__getitem__)
        position, probability = reached[best], probabilities[best]
    return _truth_wins(game, probability)


def solve(
    games: Sequence[RevealGame], evaluate: Evaluate, search: Callable[[RevealGame], Search] = exact, width: int = 512
) -> list[Solution]:
    """Solves `games` side by side, at most `width` at a time. `evaluate` is asked for the probability of the
    first claim (both orders of the claims averaged, for judges that have a preference) in batches of about
    `width`.
    """
    batches = batched(games, search, width)
    try:
        batch = next(batches)
        while True:
            batch = batches.send(evaluate(batch))
    except StopIteration as stop:
        solutions: list[Solution] = stop.value
        return solutions


async def solve_async(
    games: Sequence[RevealGame],
    evaluate: Callable[[list[Question]], Awaitable[list[float]]],
    search: Callable[[RevealGame], Search] = exact,
    width: int = 512,
) -> list[Solution]:
    """`solve` for an `evaluate` that must be awaited."""
    batches = batched(games, search, width)
    try:
        batch = next(batches)
        while True:
            batch = batches.send(await evaluate(batch))
    except StopIteration as stop:
        solutions: list[Solution] = stop.value
        return solutions


def batched(
    games: Sequence[RevealGame], search: Callable[[RevealGame], Search], width: int
) -> Generator[list[Question], list[float], list[Solution]]:
    """The merged searches: yields questions of several games, is sent the answers, returns the solutions."""
    if width < 1:
        raise ValueError(f"width must be at least 1, not {width}")
    solutions: dict[int, Solution] = {}
    waiting = list(range(len(games)))[::-1]
    running: dict[int, tuple[Search, list[Position], int]] = {}

    def advance(index: int, search: Search, answers: list[float] | None, asked: int) -> None:
        try:
            positions = next(search) if answers is None else search.send(answers)
        except StopIteration as stop:
            running.pop(index, None)
            solutions[index] = Solution(stop.value, asked)
        else:
            running[index] = search, positions, asked + len(positions)

    while running or waiting:
        while waiting and len(running) < width:
            index = waiting.pop()
            advance(index, search(games[index]), None, 0)
        if not running:
            continue
        batch = [(index, position) for index, (_, positions, _) in running.items() for position in positions]
        answers = yield batch
        if len(answers) != len(batch) or not all(0 <= p <= 1 for p in answers):
            got = f"{len(answers)} values: {answers[:3]}..."
            raise ValueError(f"asked for {len(batch)} probabilities, got {got}")
        taken = 0
        for index, (one, positions, asked) in list(running.items()):
            advance(index, one, answers[taken : taken + len(positions)], asked)
            taken += len(positions)
    return [solutions[index] for index in range(len(games))]


class _Exact:
    """One depth-first search. Sets of statements are bit masks; the number of bits set is the ply."""

    def __init__(self, game: RevealGame) -> None:
        self.game = game
        self.truth_moves = [side == game.truth for side in game.sides]
        self.values: dict[int, bool] = {}
        """Inner positions: does truth win?"""
        self.finals: dict[int, bool] = {}
        """Judged final positions: did truth win?"""
        self.replies: dict[int, int] = {}
        """Winning final reply at positions one ply before the end."""
        self.prior = 0.0
        self.effects: list[float] = []
        """Of each statement alone on truth's logit."""

    def run(self) -> Search:
        alone = [(i,) for i in range(self.game.statements)]
        probabilities = yield [(), *alone]
        if not self.game.sides:
            return _truth_wins(self.game, probabilities[0])
        if len(self.game.sides) == 1:
            self.finals = {1 << i: _truth_wins(self.game, p) for i, p in enumerate(probabilities[1:])}
        self.prior, *logits = (_truth_logit(self.game, p) for p in probabilities)
        self.effects = [logit - self.prior for logit in logits]
        return (yield from self._value(0))

    def _value(self, revealed: int, covers: int = 0) -> Search:
        """Whether truth wins from here. `covers`: final replies that would save the other side's search
        too."""
        known = self.values.get(revealed)
        if known is not None:
            return known
        ply = revealed.bit_count()
        if ply == len(self.game.sides) - 1:
            value = yield from self._last(revealed, covers)
        elif ply == len(self.game.sides) - 2:
            value = yield from self._last_but_one(revealed)
        else:
            value = yield from self._inner(revealed)
        self.values[revealed] = value
        return value

    def _inner(self, revealed: int) -> Search:
        truth_moves = self.truth_moves[revealed.bit_count()]
        moves = self._moves(revealed, truth_moves)
        if any(self.values.get(revealed | 1 << i) is truth_moves for i in moves):
            return truth_moves
        for i in moves:
            value = yield from self._value(revealed | 1 << i)
            if value is truth_moves:
                return truth_moves
        return not truth_moves

    def _last_but_one(self, revealed: int) -> Search:
        """As `_inner`, and tells the replier which moves it still has to answer."""
        truth_moves, truth_replies = self.truth_moves[-2:]
        moves = self._moves(revealed, truth_moves)
        if any(self.values.get(revealed | 1 << i) is truth_moves for i in moves):
            return truth_moves
        unanswered = sum(1 << i for i in moves) if truth_replies is not truth_moves else 0
        for i in moves:
            unanswered &= ~(1 << i)
            value = yield from self._value(revealed | 1 << i, unanswered)
            if value is truth_moves:
                return truth_moves
            if unanswered:
                unanswered &= ~(1 << self.replies[revealed | 1 << i])
        return not truth_moves

    def _last(self, revealed: int, covers: int) -> Search:
        truth_moves = self.truth_moves[-1]
        moves = self._moves(revealed, truth_moves)
        for i in moves:
            if self.finals.get(revealed | 1 << i) is truth_moves:
                self.replies[revealed] = i
                return truth_moves
        moves = [i for i in moves if revealed | 1 << i not in self.finals]
        if covers:
            moves = self._reply_order(revealed, moves, truth_moves, covers)
        sizes = iter(_CHUNKS)
        while moves:
            size = next(sizes, len(moves))
            chunk, moves = moves[:size], moves[size:]
            probabilities = yield [_position(revealed | 1 << i) for i in chunk]
            for i, probability in zip(chunk, probabilities, strict=True):
                self.finals[revealed | 1 << i] = _truth_wins(self.game, probability)
            for i in chunk:
                if self.finals[revealed | 1 << i] is truth_moves:
                    self.replies[revealed] = i
                    return truth_moves
        return not truth_moves

    def _moves(self, revealed: int, truth_moves: bool) -> list[int]:
        """Legal moves, most helpful to the mover first."""
        moves = [i for i in range(self.game.statements) if not revealed >> i & 1]
        return sorted(moves, key=self.effects.__getitem__, reverse=truth_moves)

    def _reply_order(self, revealed: int, moves: list[int], truth_moves: bool, covers: int) -> list[int]:
        """One final set that the replier wins answers move a with reply b and move b with reply a. So among
        replies that should win safely, those that are themselves unanswered moves come first, and of these
        the least helpful to the replier: the opponent's strongest moves are then answered in pairs.
        """
        sign = 1 if truth_moves else -1
        here = self.prior + sum(effect for i, effect in enumerate(self.effects) if revealed >> i & 1)
        safe = [i for i in moves if sign * (here + self.effects[i]) > SAFE_LOGIT]
        safe.sort(key=lambda i: (not covers >> i & 1, sign * self.effects[i]))
        return safe + moves[len(safe) :]


def _position(revealed: int) -> Position:
    return tuple(i for i in range(revealed.bit_length()) if revealed >> i & 1)


def _truth_wins(game: RevealGame, probability: float) -> bool:
    return probability > 0.5 if game.truth == 0 else probability < 0.5


def _truth_logit(game: RevealGame, probability: float) -> float:
    tiny = 1e-9
    logit = math.log((probability + tiny) / (1 - probability + tiny))
    return logit if game.truth == 0 else -logit
