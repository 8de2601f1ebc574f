"""Ratings against hand numbers and a logistic regression written here; cycles against brute force."""

from __future__ import annotations

import itertools
import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from actors.league.ratings import (
    POINTS,
    NoFiniteRating,
    Results,
    beats,
    bradley_terry,
    cycles,
    cyclic_share,
    payoff,
    rate,
    reachable,
    table,
    worth,
)


def matrix(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array(rows, float)


def filled(shares: dict[tuple[str, str], tuple[int, int, int]], questions: int = 50) -> Results:
    """Results with so many wins, draws and losses per pair, spread over questions in turn."""
    results = Results()
    for (a, b), counts in shares.items():
        for index, score in enumerate(score for score, n in zip((1.0, 0.5, 0.0), counts) for _ in range(n)):
            results.add(a, b, score, f"q{index % questions}")
    return results


# ---- Bradley-Terry


def test_two_players_have_the_log_odds_between_them() -> None:
    ratings_N = bradley_terry(matrix((0, 30), (10, 0)))
    assert ratings_N == pytest.approx([math.log(3) / 2, -math.log(3) / 2])


def test_a_chain_adds_up() -> None:
    """a beats b 3:1 and b beats c 4:1; a and c never met. Without circles the odds are met exactly."""
    ratings_N = bradley_terry(matrix((0, 3, 0), (1, 0, 8), (0, 2, 0)))
    assert ratings_N[0] - ratings_N[1] == pytest.approx(math.log(3))
    assert ratings_N[1] - ratings_N[2] == pytest.approx(math.log(4))
    assert ratings_N.sum() == pytest.approx(0.0)


def test_a_circle_of_equals_has_equal_ratings() -> None:
    assert bradley_terry(matrix((0, 9, 1), (1, 0, 9), (9, 1, 0))) == pytest.approx([0, 0, 0])


def logistic_regression(wins_NN: np.ndarray) -> np.ndarray:
    """The same maximum by plain gradient ascent on one row per play, first coefficient fixed at 0."""
    rows, outcomes, weights = [], [], []
    for i, j in itertools.permutations(range(len(wins_NN)), 2):
        design = np.zeros(len(wins_NN))
        design[i], design[j] = 1.0, -1.0
        rows.append(design)
        outcomes.append(1.0)
        weights.append(wins_NN[i, j])
    X, y, w = np.array(rows)[:, 1:], np.array(outcomes), np.array(weights)
    beta = np.zeros(X.shape[1])
    step = 4.0 / np.linalg.eigvalsh((X.T * w) @ X)[-1]  # one over the largest curvature
    for _ in range(3000):
        beta += step * X.T @ (w * (y - 1.0 / (1.0 + np.exp(-X @ beta))))
    full = np.concatenate([[0.0], beta])
    return full - full.mean()


@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_a_logistic_regression(seed: int) -> None:
    rng = np.random.default_rng(seed)
    wins_NN = rng.integers(1, 20, (4, 4)).astype(float)
    np.fill_diagonal(wins_NN, 0)
    assert bradley_terry(wins_NN) == pytest.approx(logistic_regression(wins_NN), abs=1e-6)


def test_who_never_lost_has_a_rating_only_with_a_prior() -> None:
    wins_NN = matrix((0, 7), (0, 0))
    with pytest.raises(NoFiniteRating):
        bradley_terry(wins_NN)
    ratings_N = bradley_terry(wins_NN, prior=0.5)
    assert ratings_N[0] - ratings_N[1] == pytest.approx(math.log(7.5 / 0.5))


def test_players_who_never_met_are_rated_apart() -> None:
    wins_NN = np.zeros((5, 5))
    wins_NN[0, 1], wins_NN[1, 0], wins_NN[2, 3], wins_NN[3, 2] = 3, 1, 1, 9
    ratings_N = bradley_terry(wins_NN)
    assert ratings_N == pytest.approx([math.log(3) / 2, -math.log(3) / 2, -math.log(9) / 2, math.log(9) / 2, 0])


counts = st.lists(st.integers(0, 30), min_size=9, max_size=9)


@settings(deadline=None)
@given(counts, st.permutations([0, 1, 2]), st.integers(2, 5))
def test_names_order_and_repetition_do_not_matter(flat: list[int], order: list[int], times: int) -> None:
    wins_NN = np.array(flat, float).reshape(3, 3) * (1 - np.eye(3)) + 0.25 * (1 - np.eye(3))
    ratings_N = bradley_terry(wins_NN)
    assert ratings_N.sum() == pytest.approx(0.0, abs=1e-9)
    assert bradley_terry(wins_NN[np.ix_(order, order)]) == pytest.approx(ratings_N[order], abs=1e-7)
    assert bradley_terry(wins_NN * times) == pytest.approx(ratings_N, abs=1e-7)
    assert bradley_terry(wins_NN.T) == pytest.approx(-ratings_N, abs=1e-7)
    chance_NN = 1 / (1 + np.exp(ratings_N[None, :] - ratings_N[:, None]))
    expected_N = ((wins_NN + wins_NN.T) * chance_NN).sum(1)
    assert expected_N == pytest.approx(wins_NN.sum(1)), "at the maximum everyone wins as often as expected"


# ---- intervals


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of a known pair, over many data sets: about 95%."""
    rng, hits = np.random.default_rng(0), 0
    truth = math.log(0.7 / 0.3) / 2 * POINTS
    for trial in range(60):
        results = Results()
        for question in range(60):
            results.add("a", "b", float(rng.random() < 0.7), str(question))
        found = rate(results, resamples=60, seed=trial)["a"]
        hits += found.low <= truth <= found.high
    assert 51 <= hits <= 60


def test_plays_on_one_question_are_not_independent() -> None:
    """Ten plays of each of 12 questions that all end alike say as much as 12 plays."""
    once, often = Results(), Results()
    for question in range(12):
        for times, results in ((1, once), (10, often)):
            for _ in range(times):
                results.add("a", "b", float(question % 3 > 0), str(question))
    widths = [found.high - found.low for found in (rate(once, 0.01, 300)["a"], rate(often, 0.01, 300)["a"])]
    assert widths[0] == pytest.approx(widths[1], rel=0.3) and widths[1] > 100
    alone = Results()
    for index in range(120):
        alone.add("a", "b", float(index % 3 > 0), str(index))
    found = rate(alone, 0.01, 300)["a"]
    assert found.high - found.low < widths[1] / 2


def test_with_one_question_plays_are_drawn_again() -> None:
    results = filled({("a", "b"): (30, 0, 30)}, questions=1)
    found = rate(results)["a"]
    assert found.low < -20 and found.high > 20 and found.plays == 60


def test_rating_without_results() -> None:
    assert rate(Results()) == {}
    assert table(Results()) == {
        "ratings": {}, "payoff": [], "cycles": [], "cyclic_share": pytest.approx(float("nan"), nan_ok=True), "plays": 0
    }  # fmt: skip


# ---- results


def test_results_count_wins_draws_and_losses_from_both_sides() -> None:
    results = Results()
    results.add("a", "b", 1.0, "q1")
    results.add("b", "a", 1.0, "q2")
    results.add("b", "a", 0.5, "q2")
    results.add("c", "a", 0.0, "q1")
    assert results.players == ["a", "b", "c"] and len(results) == 4
    assert results.met("b", "a") and not results.met("b", "c")
    wins_CNN = results.wins()
    assert wins_CNN[0].tolist() == [[0, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert wins_CNN[1].tolist() == [[0, 0.5, 0], [1.5, 0, 0], [0, 0, 0]]
    scores_NN = payoff(wins_CNN.sum(0))
    assert scores_NN[0, 1] == 0.5 and scores_NN[0, 2] == 1.0 and math.isnan(scores_NN[1, 2])
    again = Results.restore(json.loads(json.dumps(results.state())))
    assert again.state() == results.state() and (again.wins() == wins_CNN).all()


def test_mistakes_in_results() -> None:
    with pytest.raises(ValueError, match="itself"):
        Results().add("a", "a", 1.0, "q")
    with pytest.raises(ValueError, match=r"not 0\.7"):
        Results().add("a", "b", 0.7, "q")


# ---- who beats whom


def test_the_worth_of_plays() -> None:
    even = np.array([1.0, 0.0, 1.0, 0.0])
    assert worth(even, 1 - even) == pytest.approx(0.25 / (4 / 3 * 4 * 0.25 / 16))  # 3: the variance is unbiased
    assert worth(even * 10, (1 - even) * 10) == pytest.approx(3.0), "ten plays that agree are one"
    assert worth(np.array([5.0]), np.array([2.0])) == 7.0
    assert worth(np.array([5.0, 5.0]), np.zeros(2)) == 2.0
    assert worth(np.full(9, 1.0), np.full(9, 1.0)) == 9.0, "alike on every question: at most one play each"


def test_many_even_pairs_do_not_look_decided() -> None:
    """Among 45 pairs of equals, 5% would seem decided each time without correction."""
    rng, seen = random.Random(0), 0
    for _ in range(20):
        results = Results()
        for a, b in itertools.combinations("abcdefghij", 2):
            for question in range(40):
                results.add(a, b, float(rng.random() < 0.5), str(question))
        seen += int(beats(results).any())
    assert seen <= 3


def test_rock_paper_scissors_is_a_cycle() -> None:
    results = filled({("rock", "scissors"): (70, 10, 20), ("scissors", "paper"): (70, 10, 20),
                      ("paper", "rock"): (70, 10, 20), ("paper", "stone"): (40, 0, 60),
                      ("lamb", "rock"): (5, 0, 95), ("lamb", "paper"): (5, 0, 95)})  # fmt: skip
    players = results.players
    (cycle,) = cycles(beats(results), players)
    start = cycle.index("rock")
    assert cycle[start:] + cycle[:start] == ["rock", "scissors", "paper"]
    found = table(results)
    assert list(found["ratings"])[-1] == "lamb" and found["payoff"][0][0] is None


def brute_cycles(edges: np.ndarray) -> set[frozenset[int]]:
    """Strongly connected sets of two or more, by walking from everyone."""

    def walk(start: int) -> set[int]:
        seen, todo = {start}, [start]
        while todo:
            here = todo.pop()
            for there in range(len(edges)):
                if edges[here, there] and there not in seen:
                    seen.add(there)
                    todo.append(there)
        return seen

    ways = [walk(i) for i in range(len(edges))]
    sets = {frozenset(j for j in range(len(edges)) if j in ways[i] and i in ways[j]) for i in range(len(edges))}
    return {members for members in sets if len(members) > 1}


@settings(deadline=None)
@given(st.integers(1, 7).flatmap(lambda n: st.lists(st.sampled_from([-1, 0, 1]), min_size=n * n, max_size=n * n)))
def test_cycles_are_those_of_strongly_connected_sets(flat: list[int]) -> None:
    size = math.isqrt(len(flat))
    signs = np.triu(np.array(flat).reshape(size, size), 1)
    edges = (signs - signs.T) > 0
    found = cycles(edges, [str(i) for i in range(size)])
    sets = brute_cycles(edges)
    assert len(found) == len(sets)
    for cycle in found:
        members = [int(name) for name in cycle]
        assert len(set(members)) == len(members) >= 3
        assert all(edges[a, b] for a, b in zip(members, members[1:] + members[:1]))
        assert any(set(members) <= group for group in sets)
    paths = reachable(edges)
    assert all(paths[i, i] for i in range(size))


# ---- how much is cyclic


def test_the_share_that_is_cyclic() -> None:
    rps = matrix((0.5, 1, 0), (0, 0.5, 1), (1, 0, 0.5))
    assert cyclic_share(rps) == pytest.approx(1.0)
    strengths = np.array([0.2, 0.1, -0.05, -0.25])
    assert cyclic_share(0.5 + strengths[:, None] - strengths[None, :]) == pytest.approx(0.0, abs=1e-12)
    ladder = matrix((0.5, 1, 1), (0, 0.5, 1), (0, 0, 0.5))  # r = 1/3, 0, -1/3: residuals 1/6, 1/6, -1/6
    assert cyclic_share(ladder) == pytest.approx((3 * (1 / 6) ** 2) / (3 * 0.5**2))
    assert math.isnan(cyclic_share(matrix((0.5, np.nan), (np.nan, 0.5))))
    assert cyclic_share(np.full((3, 3), 0.5)) == 0.0
