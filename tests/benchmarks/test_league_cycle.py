"""The demonstration: exploitability by hand, and what self-play and a league come to on games with a cycle."""

from __future__ import annotations

import numpy as np
import pytest

from actors.evaluation.nash import average_strategy
from actors.league.ratings import table
from benchmarks.league_cycle import SETUPS, Kuhn, RockPaperScissors, cross_play, train

RPS, KUHN = RockPaperScissors(), Kuhn()


def logits(*chances: float) -> np.ndarray:
    chance = np.array(chances).clip(1e-9, 1 - 1e-9)
    return np.log(chance) - np.log1p(-chance)


def test_exploitability_of_rock_paper_scissors_by_hand() -> None:
    assert RPS.exploitability(np.log([0.25, 0.5, 0.25])) == pytest.approx(0.0)
    assert RPS.exploitability(np.zeros(3)) == pytest.approx(2 / 3), "rock wins 1/3 of the uniform policy, in both seats"
    assert RPS.exploitability(np.log([1e-9, 1.0, 1e-9])) == pytest.approx(2.0), "paper loses 1 to scissors"


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1 / 3])
def test_the_equilibria_of_kuhn_poker_cannot_be_exploited(alpha: float) -> None:
    """Kuhn 1950: a family of equilibria, of value -1/18 to the first player."""
    first = (alpha, 0, 3 * alpha, 0, alpha + 1 / 3, 1)
    policy = logits(*first, 1 / 3, 0, 1, 0, 1 / 3, 1)
    assert KUHN.exploitability(policy) == pytest.approx(0.0, abs=1e-6)
    assert KUHN.first_gains(*KUHN.parts(policy)).sum() / 6 == pytest.approx(-1 / 18, abs=1e-6)


def test_the_uniform_policy_of_kuhn_poker() -> None:
    assert KUHN.exploitability(np.zeros(12)) == pytest.approx(11 / 12)


def test_gradients_are_those_of_the_value() -> None:
    """The natural gradient is the plain one without the factor p(1 - p); 24 = 6 deals, 2 seats, scaled by 2."""
    rng = np.random.default_rng(0)
    mine, other = rng.normal(size=12), rng.normal(size=12)
    chance = 1 / (1 + np.exp(-mine))
    step = 1e-6 * np.eye(12)
    numeric = [(KUHN.value(mine + e, other) - KUHN.value(mine - e, other)) / 2e-6 for e in step]
    assert KUHN.gradient(mine, other) * chance * (1 - chance) / 24 == pytest.approx(numeric, abs=1e-8)


def test_the_average_is_what_drawing_one_per_play_comes_to() -> None:
    """Values are linear in the mixture: against anybody, the average is worth the mean of its members' values."""
    rng = np.random.default_rng(1)
    members, other = [rng.normal(size=12) for _ in range(3)], rng.normal(size=12)
    mean = np.mean([KUHN.value(member, other) for member in members])
    assert KUHN.value(KUHN.average(members), other) == pytest.approx(mean)


def late(curve: list[tuple[float, float]]) -> list[float]:
    return [value for _, value in curve[len(curve) * 3 // 4 :]]


def test_self_play_goes_in_circles_and_the_league_arrives() -> None:
    found = {name: train(RPS, *SETUPS[name], steps=2000) for name in ("self-play", "league, uniform", "magnet")}
    assert min(late(found["self-play"].last)) > 0.4 and max(late(found["self-play"].last)) > 1.0
    assert found["league, uniform"].average[-1][1] < 0.1
    assert max(late(found["magnet"].last)) < 0.05
    kept = dict(list(found["self-play"].tables.items())[-12:])
    says = table(cross_play(RPS, kept))
    assert says["cycles"] and says["cyclic_share"] > 0.8


def test_the_same_on_kuhn_poker() -> None:
    found = {name: train(KUHN, *SETUPS[name], steps=2000) for name in ("self-play", "league, pfsp", "magnet")}
    assert min(late(found["self-play"].last)) > 0.05 and np.mean(late(found["self-play"].last)) > 0.15
    assert found["league, pfsp"].average[-1][1] < 0.03 and max(late(found["magnet"].last)) < 0.02


def test_the_average_strategy_of_a_game_tree_is_that_of_kuhn_poker() -> None:
    """The general rule of the league against the formula written out for this game above."""
    rng = np.random.default_rng(2)
    members = [2 * rng.normal(size=12) for _ in range(4)]
    names = [f"{part}{card}" for part in "abcd" for card in "JQK"]
    strategies = [{name: {"bet": p, "pass": 1 - p} for name, p in zip(names, 1 / (1 + np.exp(-logits)))}
                  for logits in members]  # fmt: skip
    paths = {name: [(f"a{name[1]}", "pass")] if name[0] == "b" else [] for name in names}
    average = average_strategy(strategies, paths)
    expected = 1 / (1 + np.exp(-KUHN.average(members)))
    assert [average[name]["bet"] for name in names] == pytest.approx(expected.tolist())
    assert all(sum(moves.values()) == pytest.approx(1.0) for moves in average.values())
    plain = {name: np.mean([strategy[name]["bet"] for strategy in strategies]) for name in names}
    assert max(abs(average[name]["bet"] - plain[name]) for name in ("bJ", "bQ", "bK")) > 0.01, "the weights matter"


def test_where_nobody_comes_the_plain_mean_stands_in() -> None:
    never = {"first": {"go": 0.0, "stop": 1.0}}
    strategies = [{**never, "later": {"x": share, "y": 1 - share}} for share in (0.2, 0.6)]
    average = average_strategy(strategies, {"first": [], "later": [("first", "go")]})
    assert average["later"] == pytest.approx({"x": 0.4, "y": 0.6})


def test_openspiel_agrees_on_kuhn_poker_and_on_averages_over_its_tree() -> None:
    pytest.importorskip("pyspiel")
    from actors.evaluation.nash import average_nash_conv
    from protocols.types import Task
    from tasks.kinds.spiel import SpielGame

    game, rng = SpielGame("kuhn_poker"), np.random.default_rng(3)
    parts = {"": 0, "pass bet": 1, "pass": 2, "bet": 3}

    def strategy(logits: np.ndarray) -> dict[str, dict[str, float]]:
        chances, found = 1 / (1 + np.exp(-logits)), {}
        for name, (position, player) in game.information_states().items():
            _, card, *moves = position.known(player).split()
            chance = float(chances[3 * parts[" ".join(moves)] + "JQK".index(card)])
            found[name] = {"bet": chance, "pass": 1 - chance}
        return found

    members = [2 * rng.normal(size=12) for _ in range(4)]
    for member in members:
        assert game.nash_conv(strategy(member)) == pytest.approx(KUHN.exploitability(member))
    value = average_nash_conv(Task("kuhn", "", game=game), [strategy(member) for member in members])
    assert value == pytest.approx(KUHN.exploitability(KUHN.average(members)))
    plain = strategy(np.mean(members, axis=0))
    assert abs(game.nash_conv(plain) - value) > 0.01, "the mean of the logits is another policy"


def test_openspiel_agrees_on_rock_paper_scissors() -> None:
    """Its own pays 1 for every win: the uniform policy cannot be exploited, rock alone by 1 in either seat."""
    pytest.importorskip("pyspiel")
    from tasks.kinds.spiel import SpielGame

    game = SpielGame("turn_based_simultaneous_game(game=matrix_rps())")
    states = game.information_states()
    assert len(states) == 2, "the second player does not learn what the first has chosen"
    even = {name: dict.fromkeys(("Rock", "Paper", "Scissors"), 1 / 3) for name in states}
    rock = {name: {"Rock": 1.0, "Paper": 0.0, "Scissors": 0.0} for name in states}
    assert game.nash_conv(even) == pytest.approx(0.0) and game.nash_conv(rock) == pytest.approx(2.0)
