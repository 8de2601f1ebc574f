"""What a league is for: two games in which self-play goes in circles, with exact exploitability.

    python benchmarks/league_cycle.py [--out FOLDER]     # about ten seconds; pictures as SVG, metrics on screen

The learner is a table of logits that follows the exact policy gradient, so nothing here is noise. Snapshots, opponents
and their results go through the league that training uses (actors/league/pool.py), ratings through
actors/league/ratings.py.

    self-play   the table against itself
    league      half self-play, half opponent checkpoints out of a pool (pfsp or uniform)
    magnet      self-play with a KL penalty towards a moving average of the table's logits

The average of a pool is the policy that draws one of its members for each play.
"""

from __future__ import annotations

import argparse
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from actors.league.pool import League, Snapshot
from actors.league.ratings import Results, table
from reporting.report import charts

Floats = npt.NDArray[np.float64]
STEPS, EVERY, KEEP, ENGINES = 3000, 20, 100, 2
RATE, ENTROPY = 0.1, 0.02  # too large a rate for so small an entropy bonus: self-play overshoots for ever
KL, MAGNET_DECAY = 0.2, 0.99


class Game(ABC):
    """A two-player zero-sum game. A policy is a vector of logits that serves both seats."""

    name: str
    start: Floats
    """Logits before training, off the equilibrium."""

    @abstractmethod
    def gradient(self, logits: Floats, other: Floats) -> Floats:
        """Natural policy gradient (Kakade 2001) against a fixed opponent, both seats: each logit rises by the gain of
        its action, weighted by how likely chance and the opponent let the decision come up."""

    @abstractmethod
    def value(self, logits: Floats, other: Floats) -> float:
        """Mean over both seats of what the first policy is paid, scaled into [-1, 1]."""

    @abstractmethod
    def average(self, tables: Sequence[Floats]) -> Floats:
        """Logits of the policy that draws one of these for each play."""

    @abstractmethod
    def exploitability(self, logits: Floats) -> float:
        """What best responses in both seats win against this policy in both seats together (NashConv)."""


def softmax(logits: Floats) -> Floats:
    shifted = np.exp(logits - logits.max())
    probabilities: Floats = shifted / shifted.sum()
    return probabilities


class RockPaperScissors(Game):
    """Rock against scissors pays 2, the others 1: the equilibrium is (1/4, 1/2, 1/4), not the uniform policy."""

    name = "rock paper scissors"
    start = np.array([1.0, 0.0, -1.0])
    payoff = np.array([[0.0, -1.0, 2.0], [1.0, 0.0, -1.0], [-2.0, 1.0, 0.0]])

    def gradient(self, logits: Floats, other: Floats) -> Floats:
        gains: Floats = self.payoff @ softmax(other)
        return gains

    def value(self, logits: Floats, other: Floats) -> float:
        return float(softmax(logits) @ self.payoff @ softmax(other)) / 2

    def average(self, tables: Sequence[Floats]) -> Floats:
        mean_logits: Floats = np.log(np.mean([softmax(logits) for logits in tables], axis=0) + 1e-300)
        return mean_logits

    def exploitability(self, logits: Floats) -> float:
        return 2 * float((self.payoff @ softmax(logits)).max())  # the game is symmetric and its value 0


class Kuhn(Game):
    """Kuhn poker (1950): three cards, one bet. Twelve decisions, each a logit of betting or calling, for every card
    (jack, queen, king): the first player's first move `a` and its answer to a bet `b`; the second player's move
    after a pass `c` and its answer to a bet `d`."""

    name = "Kuhn poker"
    start = np.zeros(12)
    win = np.sign(np.arange(3)[:, None] - np.arange(3)[None, :])
    """+1 where the first player's card (row) is higher; 0 on the diagonal, which is never dealt."""

    def parts(self, logits: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        a, b, c, d = (1.0 / (1.0 + np.exp(-logits))).reshape(4, 3)
        return a, b, c, d

    def first_gains(self, a: Floats, b: Floats, c: Floats, d: Floats) -> Floats:
        """What the first player is paid for each deal, chance not counted."""
        w, a, b = self.win, a[:, None], b[:, None]
        passed = (1 - c) * w + c * (b * 2 * w - (1 - b))
        gains: Floats = ((1 - a) * passed + a * ((1 - d) + d * 2 * w)) * (w != 0)
        return gains

    def gradient(self, logits: Floats, other: Floats) -> Floats:
        (a, b, *_), (oa, ob, oc, od), w = self.parts(logits), self.parts(other), self.win
        dealt, a_, b_, oa_, ob_ = w != 0, a[:, None], b[:, None], oa[:, None], ob[:, None]
        slope_a = (((1 - od) + od * 2 * w) - ((1 - oc) * w + oc * (b_ * 2 * w - (1 - b_)))) * dealt
        slope_b = (1 - a_) * oc * (2 * w + 1) * dealt
        slope_c = -(1 - oa_) * (ob_ * 2 * w - (1 - ob_) - w) * dealt
        slope_d = -oa_ * (2 * w - 1) * dealt
        slopes: Floats = np.concatenate([slope_a.sum(1), slope_b.sum(1), slope_c.sum(0), slope_d.sum(0)])
        return slopes

    def value(self, logits: Floats, other: Floats) -> float:
        (a, b, c, d), (oa, ob, oc, od) = self.parts(logits), self.parts(other)
        first, second = self.first_gains(a, b, oc, od).sum(), -self.first_gains(oa, ob, c, d).sum()
        return float(first + second) / 6 / 2 / 2

    def average(self, tables: Sequence[Floats]) -> Floats:
        a, b, c, d = (np.array(part) for part in zip(*map(self.parts, tables)))
        reached = 1 - a  # the first player answers a bet only where it had passed
        mean_b = (reached * b).sum(0) / np.maximum(reached.sum(0), 1e-12)
        chance = np.concatenate([a.mean(0), mean_b, c.mean(0), d.mean(0)]).clip(1e-12, 1 - 1e-12)
        log_odds: Floats = np.log(chance) - np.log1p(-chance)
        return log_odds

    def exploitability(self, logits: Floats) -> float:
        a, b, c, d = self.parts(logits)
        zero, one = np.zeros(3), np.ones(3)
        plans = [(x, y) for x in (zero, one) for y in (zero, one)]
        best = np.max([self.first_gains(x, y, c, d).sum(1) for x, y in plans], axis=0).sum()
        worst = np.min([self.first_gains(a, b, x, y).sum(0) for x, y in plans], axis=0).sum()
        return float(best - worst) / 6


class Curves:
    """Exploitability over steps, of the newest weights and of the average of the opponent checkpoints kept."""

    def __init__(self) -> None:
        self.last: list[tuple[float, float]] = []
        self.average: list[tuple[float, float]] = []
        self.tables: dict[str, Floats] = {}
        """Opponent checkpoints that are kept, by name."""


def train(game: Game, mix: Mapping[str, float], kl: float = 0.0, steps: int = STEPS, seed: int = 0) -> Curves:
    """A table against itself and opponent checkpoints, in the shares of `mix`, as `stages.X.opponents` would have
    it."""
    league, rng, curves = League(), random.Random(seed), Curves()
    logits, magnet = game.start.copy(), game.start.copy()
    tables: dict[str, Floats] = {}
    share = mix.get("self", 0.0)
    rules = {rule: weight for rule, weight in mix.items() if rule != "self"}
    for step in range(steps + 1):
        if step % EVERY == 0:
            one = Snapshot("table", step, "")
            league.add(one, KEEP)
            tables[one.name] = logits.copy()
            curves.last.append((step, game.exploitability(logits)))
            pool = [tables[kept.name] for kept in league.pool]
            curves.average.append((step, game.exploitability(game.average(pool))))
        gradient = share * game.gradient(logits, logits)
        for _ in range(ENGINES if rules else 0):
            held = league.draw(rng, rules, ["table"], league.pool)
            other = tables[held.name]
            league.record("table", held.name, 0.5 + game.value(logits, other) / 2)
            gradient = gradient + (1 - share) / ENGINES * game.gradient(logits, other)
        gradient = gradient - ENTROPY * logits - kl * (logits - magnet)
        magnet = MAGNET_DECAY * magnet + (1 - MAGNET_DECAY) * logits
        logits = logits + RATE * gradient
    curves.tables = {kept.name: tables[kept.name] for kept in league.pool}
    return curves


def cross_play(game: Game, tables: Mapping[str, Floats], plays: int = 3000, seed: int = 0) -> Results:
    """Drawn plays of every pair of opponent checkpoints; a play is won with the chance that its mean value says."""
    rng, results, names = np.random.default_rng(seed), Results(), list(tables)
    for i, one in enumerate(names):
        for other in names[:i]:
            chance = 0.5 + game.value(tables[one], tables[other]) / 2
            for question, won in enumerate(rng.random(plays) < chance):
                results.add(one, other, float(won), str(question))
    return results


SETUPS: Mapping[str, tuple[Mapping[str, float], float]] = {
    "self-play": ({"self": 1.0}, 0.0),
    "league, pfsp": ({"self": 0.5, "pfsp": 0.5}, 0.0),
    "league, uniform": ({"self": 0.5, "uniform": 0.5}, 0.0),
    "magnet": ({"self": 1.0}, KL),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/league_cycle"), help="where the pictures go")
    out: Path = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    print(f"{'NashConv over the last quarter':<42}{'newest: mean':>14}{'highest':>10}{'average of past':>17}")
    for game in (RockPaperScissors(), Kuhn()):
        found = {name: train(game, mix, kl) for name, (mix, kl) in SETUPS.items()}
        for name, curves in found.items():
            late = [value for step, value in curves.last if step >= 0.75 * STEPS]
            shown = f"{np.mean(late):>14.4f}{max(late):>10.4f}{curves.average[-1][1]:>17.4f}"
            print(f"{game.name + ', ' + name:<42}{shown}")
        lines = {"self-play, newest": found["self-play"].last, "magnet, newest": found["magnet"].last,
                 "league (uniform), average": found["league, uniform"].average,
                 "league (pfsp), average": found["league, pfsp"].average}  # fmt: skip
        stem = game.name.lower().replace(" ", "_")
        (out / f"{stem}.svg").write_text(charts.lines(lines, salt=stem))
        for name in ("self-play", "magnet"):
            kept = dict(list(found[name].tables.items())[-12:])
            says = table(cross_play(game, kept))
            circle = " beats ".join(says["cycles"][0]) if says["cycles"] else "none"
            print(f"  last twelve checkpoints of {name}: cyclic share {says['cyclic_share']:.2f}, cycle: {circle}")


if __name__ == "__main__":
    main()
