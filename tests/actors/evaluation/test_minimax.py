import asyncio
import random
from collections.abc import Callable
from itertools import combinations

import pytest
from hypothesis import given, settings, strategies as st

from actors.evaluation.minimax import Position, Question, RevealGame, exact, greedy, solve, solve_async

Judge = Callable[[frozenset[int]], float]


def brute_force(game: RevealGame, judge: Judge, order: tuple[int, ...] = ()) -> bool:
    """Plain minimax over orders of play: no memo, no ordering, no pruning, no sets until the end."""
    if len(order) == len(game.sides):
        probability = judge(frozenset(order))
        return probability > 0.5 if game.truth == 0 else probability < 0.5
    values = [brute_force(game, judge, (*order, i)) for i in range(game.statements) if i not in order]
    return max(values) if game.sides[len(order)] == game.truth else min(values)


def random_judge(seed: int, size: int, additive: float) -> Judge:
    """Noise plus an additive part; `additive` 0 is pure noise. Values on a coarse grid, so that 0.5
    occurs."""
    weights = [random.Random(f"{seed} {i}").gauss(0, 1) for i in range(size)]

    def judge(revealed: frozenset[int]) -> float:
        noise = random.Random(f"{seed} {sorted(revealed)}").uniform(-1, 1)
        value = additive * sum(weights[i] for i in revealed) + (1 - additive) * noise
        return min(max(round(8 * (0.5 + value / 4)) / 8, 0.0), 1.0)

    return judge


@st.composite
def games(draw: st.DrawFn) -> tuple[RevealGame, Judge]:
    plies = draw(st.integers(0, 4))
    statements = draw(st.integers(max(plies, 1), 7))
    alternating = st.sampled_from([(0, 1, 0, 1), (1, 0, 1, 0), (0, 0, 0, 0), (1, 1, 1, 1)])
    free = st.tuples(*[st.integers(0, 1)] * 4)
    sides = draw(st.one_of(alternating, free))[:plies]
    game = RevealGame(statements, sides, truth=draw(st.integers(0, 1)))
    return game, random_judge(draw(st.integers(0, 10**6)), statements, draw(st.sampled_from([0.0, 0.5, 0.9])))


class Asked:
    """An evaluator that remembers what it was asked."""

    def __init__(self, judges: list[Judge]) -> None:
        self.judges = judges
        self.questions: list[Question] = []
        self.batches: list[int] = []

    def __call__(self, questions: list[Question]) -> list[float]:
        self.questions += questions
        self.batches.append(len(questions))
        return [self.judges[index](frozenset(position)) for index, position in questions]


@settings(max_examples=300, deadline=None)
@given(st.lists(games(), min_size=1, max_size=5), st.integers(1, 4))
def test_exact_agrees_with_brute_force(batch: list[tuple[RevealGame, Judge]], width: int) -> None:
    asked = Asked([judge for _, judge in batch])
    solutions = solve([game for game, _ in batch], asked, width=width)
    assert [s.truth_wins for s in solutions] == [brute_force(game, judge) for game, judge in batch]
    assert len(asked.questions) == len(set(asked.questions)), "a position is judged once"
    assert all(list(position) == sorted(set(position)) for _, position in asked.questions)
    for index, solution in enumerate(solutions):
        assert solution.evaluations == sum(1 for i, _ in asked.questions if i == index)


@pytest.mark.parametrize("truth", [0, 1])
@pytest.mark.parametrize("sides", [(0, 1, 0, 1), (1, 0, 1, 0)])
def test_both_values_occur_in_larger_games(sides: tuple[int, ...], truth: int) -> None:
    values = []
    for seed in range(12):
        judge = random_judge(seed, 9, additive=0.6)
        game = RevealGame(9, sides, truth)
        [solution] = solve([game], Asked([judge]))
        assert solution.truth_wins == brute_force(game, judge)
        values.append(solution.truth_wins)
    assert len(set(values)) == 2


def test_half_is_a_loss_for_truth() -> None:
    for truth in (0, 1):
        [solution] = solve([RevealGame(4, (0, 1), truth)], lambda questions: [0.5] * len(questions))
        assert not solution.truth_wins


def test_consultancy_is_won_by_whoever_speaks_alone() -> None:
    """One winning set of four among 495, and the judge gives no hint where: the search must find it."""
    needle = frozenset({1, 4, 7, 10})
    for truth in (0, 1):
        [solution] = solve([RevealGame(12, (0,) * 4, truth)], Asked([lambda s: 0.9 if s == needle else 0.1]))
        assert solution.truth_wins == (truth == 0)


@pytest.mark.parametrize("sides", [(0, 1, 0, 1), (1, 0, 1, 0)])
def test_needs_a_small_part_of_the_game(sides: tuple[int, ...]) -> None:
    statements = 20
    finals = len(list(combinations(range(statements), 4)))
    judges = [random_judge(seed, statements, additive=0.8) for seed in range(10)]
    solutions = solve([RevealGame(statements, sides, truth=0)] * 10, Asked(judges))
    assert all(solution.evaluations < finals / 2 for solution in solutions)
    assert sum(solution.evaluations for solution in solutions) / 10 < finals / 8


@pytest.mark.parametrize("truth", [0, 1])
def test_a_clear_win_of_the_last_player_is_proved_by_pairs(truth: int) -> None:
    """Effects add up and the last player is far ahead: each final set answers two moves of the opponent, so
    far fewer than the C(18, 2) = 153 sets are needed that answer every move with the same best reply."""
    asked = Asked([lambda revealed: 0.1 + 0.001 * sum(revealed)])
    [solution] = solve([RevealGame(20, (0, 1, 0, 1), truth)], asked)
    assert solution.truth_wins == (truth == 1)
    assert solution.evaluations - 21 < 120


def test_searches_share_batches_within_the_width() -> None:
    judges = [random_judge(seed, 8, additive=0.5) for seed in range(30)]
    asked = Asked(judges)
    together = solve([RevealGame(8, (0, 1, 0, 1), 0)] * 30, asked, width=30)
    assert asked.batches[0] == 30 * 9
    alone = Asked(judges)
    assert solve([RevealGame(8, (0, 1, 0, 1), 0)] * 30, alone, width=1) == together
    assert len(asked.batches) * 10 < len(alone.batches)
    assert sorted(asked.questions) == sorted(alone.questions)


def test_async_is_the_same() -> None:
    judges = [random_judge(seed, 7, additive=0.5) for seed in range(5)]
    batch = [RevealGame(7, (0, 1, 0, 1), seed % 2) for seed in range(5)]
    asked = Asked(judges)

    async def evaluate(questions: list[Question]) -> list[float]:
        await asyncio.sleep(0)
        return asked(questions)

    assert asyncio.run(solve_async(batch, evaluate)) == solve(batch, Asked(judges))


@settings(max_examples=100, deadline=None)
@given(games())
def test_greedy_takes_the_best_next_position(case: tuple[RevealGame, Judge]) -> None:
    game, judge = case
    order: Position = ()
    for side in game.sides:
        rest = [i for i in range(game.statements) if i not in order]
        favours = [judge(frozenset({*order, i})) * (1 if side == 0 else -1) for i in rest]
        order = (*order, rest[favours.index(max(favours))])
    final = judge(frozenset(order))
    [solution] = solve([game], Asked([judge]), search=greedy)
    assert solution.truth_wins == (final > 0.5 if game.truth == 0 else final < 0.5)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="as many statements"):
        RevealGame(3, (0, 1, 0, 1), 0)
    with pytest.raises(ValueError, match="0 or 1"):
        RevealGame(5, (0, 2), 0)
    with pytest.raises(ValueError, match="width"):
        solve([RevealGame(2, (0,), 0)], lambda questions: [0.5] * len(questions), width=0)
    for bad in ([float("nan")] * 3, [0.5], [1.5] * 3):
        with pytest.raises(ValueError, match="probabilities"):
            solve([RevealGame(2, (0,), 0)], lambda questions, bad=bad: bad)
    assert solve([], lambda questions: []) == []
    assert exact(RevealGame(2, (0,), 0)).send(None) == [(), (0,), (1,)]
