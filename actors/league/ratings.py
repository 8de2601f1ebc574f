"""Who beats whom, and by how much: results between players, Bradley-Terry ratings, cycles. NumPy only.

Axes: N players, C questions (clusters), R bootstrap resamples. A draw counts as half a win of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.evaluation.stats import wilson

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

POINTS = 400.0 / float(np.log(10.0))
"""Rating points per nat, as in chess: 100 points more is an expected score of 64%."""
PRIOR = 0.5
"""Wins added to both sides of every pair that has met, so that a player who never lost has a finite rating."""


class NoFiniteRating(ValueError):
    """Somebody won, or lost, every play that connects them with the others: the likelihood has no maximum."""


class Results:
    """Plays between pairs of players, counted by question: plays on one question are not independent."""

    def __init__(self) -> None:
        self.players: list[str] = []
        """In the order they were first met."""
        self._counts: dict[tuple[str, str], dict[str, list[int]]] = {}
        """(a, b), as first met -> question -> [a won, drawn, b won]"""

    def __len__(self) -> int:
        return sum(sum(counts) for clusters in self._counts.values() for counts in clusters.values())

    def add(self, a: str, b: str, score: float, cluster: str) -> None:
        """One play of `a` against `b`: 1, a won; 0.5, drawn; 0, b won."""
        if a == b:
            raise ValueError(f"{a!r} met itself: that says nothing about its strength")
        if score not in (0.0, 0.5, 1.0):
            raise ValueError(f"a play is won (1), drawn (0.5) or lost (0), not {score}")
        self.players += [player for player in (a, b) if player not in self.players]
        if (b, a) in self._counts:
            a, b, score = b, a, 1.0 - score
        counts = self._counts.setdefault((a, b), {}).setdefault(cluster, [0, 0, 0])
        counts[{1.0: 0, 0.5: 1, 0.0: 2}[score]] += 1

    def met(self, a: str, b: str) -> bool:
        """Whether the two have played each other."""
        return (a, b) in self._counts or (b, a) in self._counts

    def wins(self) -> Floats:
        """`wins_CNN`: on each question, how often the row's player won against the column's."""
        place = {player: index for index, player in enumerate(self.players)}
        questions = {question: None for clusters in self._counts.values() for question in clusters}
        number = {question: index for index, question in enumerate(questions)}
        wins_CNN = np.zeros((len(number), len(place), len(place)))
        for (a, b), clusters in self._counts.items():
            for cluster, (won, drawn, lost) in clusters.items():
                wins_CNN[number[cluster], place[a], place[b]] += won + drawn / 2
                wins_CNN[number[cluster], place[b], place[a]] += lost + drawn / 2
        return wins_CNN

    def state(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"players": self.players, "counts": [[a, b, found] for (a, b), found in self._counts.items()]}

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Results:
        """What `state()` described."""
        found = cls()
        found.players = list(state["players"])
        found._counts = {(a, b): {k: list(v) for k, v in counts.items()} for a, b, counts in state["counts"]}
        return found


def payoff(wins_NN: Floats) -> Floats:
    """`scores_NN`: mean score of the row's player against the column's; NaN where they never met."""
    games_NN = wins_NN + wins_NN.T
    return np.divide(wins_NN, games_NN, out=np.full_like(wins_NN, np.nan), where=games_NN > 0)


def bradley_terry(wins_NN: Floats, prior: float = 0.0) -> Floats:
    """`ratings_N` in nats, of mean 0 among players who are connected by plays: the maximum of the likelihood in which
    i beats j with probability 1 / (1 + exp(r_j - r_i)) (Bradley and Terry 1952). Unlike Elo's updates it does not
    depend on the order of the plays.

    By Newton's method with step halving; the log-likelihood is concave. `prior`: wins added to both sides of
    each pair that has met. Raises NoFiniteRating where there is no maximum (Hunter 2004, assumption 1).
    """
    met_NN = (wins_NN + wins_NN.T) > 0
    if (met_NN & ~reachable(wins_NN + prior * met_NN > 0)).any():
        raise NoFiniteRating("a player, or a group of players, won or lost all its plays against the others")
    strengths_N: Floats = _maximum(wins_NN[None], prior)[0]
    return strengths_N


def _maximum(wins_RNN: Floats, prior: float) -> Floats:
    """`ratings_RN`: that of every matrix, all at once."""
    wins_RNN = wins_RNN + prior * ((wins_RNN + wins_RNN.transpose(0, 2, 1)) > 0)
    games_RNN = wins_RNN + wins_RNN.transpose(0, 2, 1)
    ratings_RN = np.zeros(wins_RNN.shape[:2])
    here_R = _likelihood(wins_RNN, ratings_RN)
    for _ in range(100):
        chance_RNN = 1.0 / (1.0 + np.exp(-_differences(ratings_RN)))
        gradient_RN = (wins_RNN - games_RNN * chance_RNN).sum(2)
        weight_RNN = games_RNN * chance_RNN * (1.0 - chance_RNN)
        laplacian_RNN = np.eye(wins_RNN.shape[1]) * weight_RNN.sum(2)[:, :, None] - weight_RNN
        # The pseudo-inverse leaves the mean of each connected set of players where it is, at 0.
        inverse_RNN = np.linalg.pinv(laplacian_RNN, rcond=1e-12, hermitian=True)
        step_RN = (inverse_RNN @ gradient_RN[:, :, None])[:, :, 0]
        there_R = _likelihood(wins_RNN, ratings_RN + step_RN)
        while (worse_R := there_R < here_R - 1e-12 * np.abs(here_R)).any():
            step_RN[worse_R] /= 2
            there_R = _likelihood(wins_RNN, ratings_RN + step_RN)
        ratings_RN, here_R = ratings_RN + step_RN, there_R
        if np.abs(step_RN).max(initial=0.0) < 1e-9:
            break
    return ratings_RN


def _differences(ratings_RN: Floats) -> Floats:
    return ratings_RN[:, :, None] - ratings_RN[:, None, :]


def _likelihood(wins_RNN: Floats, ratings_RN: Floats) -> Floats:
    found_R: Floats = -(wins_RNN * np.logaddexp(0.0, -_differences(ratings_RN))).sum((1, 2))
    return found_R


@dataclass(frozen=True, slots=True)
class Rating:
    """Points above the average player, with a 95% interval, from so many plays."""

    points: float
    low: float
    high: float
    plays: int


def rate(results: Results, prior: float = PRIOR, resamples: int = 1000, seed: int = 0) -> dict[str, Rating]:
    """Bradley-Terry ratings of all players. The interval is a percentile bootstrap over whole questions, each of which
    brings along all plays on it (Cameron, Gelbach and Miller 2008); where there is but one question, over plays.
    `prior` is more than 0: in some resample somebody loses nothing."""
    wins_CNN = results.wins()
    if not len(wins_CNN):
        return {}
    wins_NN = wins_CNN.sum(0)
    ratings_N = bradley_terry(wins_NN, prior) * POINTS
    rng = np.random.default_rng(seed)
    drawn_RNN = np.array([_resampled(wins_CNN, results, rng) for _ in range(resamples)])
    low_N, high_N = np.quantile(_maximum(drawn_RNN, prior) * POINTS, [0.025, 0.975], axis=0)
    plays_N = (wins_NN + wins_NN.T).sum(1)
    return {
        player: Rating(float(ratings_N[i]), float(low_N[i]), float(high_N[i]), round(plays_N[i]))
        for i, player in enumerate(results.players)
    }


def _resampled(wins_CNN: Floats, results: Results, rng: np.random.Generator) -> Floats:
    if len(wins_CNN) > 1:
        times_C = rng.multinomial(len(wins_CNN), np.full(len(wins_CNN), 1 / len(wins_CNN)))
        drawn_NN: Floats = np.tensordot(times_C.astype(float), wins_CNN, 1)
        return drawn_NN
    place = {player: index for index, player in enumerate(results.players)}
    drawn_NN = np.zeros(wins_CNN.shape[1:])
    for (a, b), clusters in results._counts.items():
        for counts in clusters.values():
            won, drawn, lost = rng.multinomial(sum(counts), np.array(counts) / sum(counts))
            drawn_NN[place[a], place[b]] += won + drawn / 2
            drawn_NN[place[b], place[a]] += lost + drawn / 2
    return drawn_NN


def beats(results: Results, level: float = 0.05) -> Bools:
    """`beats_NN`: whether the row's player scores more than one half against the column's, beyond chance.

    One-sided Wilson bounds at `level` divided by the number of pairs looked at (Bonferroni), since among many pairs
    some look decided by chance. The number of plays counts as what they are worth after clustering by question
    (design effect; Korn and Graubard 1998).
    """
    wins_CNN = results.wins()
    scores_NN = payoff(wins_CNN.sum(0)) if len(wins_CNN) else np.zeros((0, 0))
    pairs = [(i, j) for i, j in zip(*np.nonzero(scores_NN > 0.5))]
    met = int(np.isfinite(scores_NN).sum()) // 2
    found_NN = np.zeros(scores_NN.shape, bool)
    for i, j in pairs:
        plays = worth(wins_CNN[:, i, j], wins_CNN[:, j, i])
        z = NormalDist().inv_cdf(1.0 - level / met)
        found_NN[i, j] = wilson(scores_NN[i, j] * plays, plays, z)[0] > 0.5
    return found_NN


def worth(won_C: Floats, lost_C: Floats) -> float:
    """How many independent plays those of a pair are worth, at most as many as there are: p (1 - p) over the variance
    of the mean score between questions. With one question, its plays; where all were won, the questions."""
    games_C = won_C + lost_C
    played_C = games_C > 0
    total, questions = games_C.sum(), int(played_C.sum())
    if questions < 2:
        return float(total)
    mean = won_C.sum() / total
    variance = questions / (questions - 1) * (((won_C - mean * games_C)[played_C] / total) ** 2).sum()
    if variance <= 0.0:
        return float(questions)
    return float(min(total, mean * (1 - mean) / variance))


def reachable(edges_NN: Bools) -> Bools:
    """Whether a path leads from row to column (of any length, 0 included)."""
    paths_NN = edges_NN | np.eye(len(edges_NN), dtype=bool)
    for _ in range(max(1, len(edges_NN)).bit_length()):
        paths_NN = (paths_NN.astype(int) @ paths_NN.astype(int)) > 0
    reachable_NN: Bools = paths_NN
    return reachable_NN


def cycles(beats_NN: Bools, players: Sequence[str]) -> list[list[str]]:
    """For each strongly connected set of players in the graph of who beats whom: one of its shortest cycles, each
    member beating the next and the last the first. No cycle: strength can be told by one number."""
    paths_NN = reachable(beats_NN)
    together_NN = paths_NN & paths_NN.T
    sets = {tuple(np.flatnonzero(row).tolist()) for row in together_NN}
    found = [min((_shortest(beats_NN, start, members) for start in members), key=len)
             for members in sorted(sets) if len(members) > 1]  # fmt: skip
    return [[players[i] for i in cycle] for cycle in found]


def _shortest(beats_NN: Bools, start: int, members: Iterable[int]) -> list[int]:
    """A shortest way from `start` back to it, among `members`; breadth first."""
    inside, ways = set(members), [[start]]
    for way in ways:  # grows while it is read
        for following in np.flatnonzero(beats_NN[way[-1]]).tolist():
            if following == start:
                return way
            if following in inside:
                inside.discard(following)
                ways.append([*way, following])
    raise AssertionError("members of a strongly connected set lie on a cycle")


def cyclic_share(scores_NN: Floats) -> float:
    """How much of the payoff matrix no rating can explain: 0, all of it is differences of strengths; 1, all is cycles.

    The part of score - 1/2 that is not r_i - r_j for the best r, in squares (the cyclic part of the Hodge
    decomposition: Balduzzi et al. 2018, arXiv 1806.02643, section 3). NaN unless all have met; 0 of an even matrix.
    """
    edge_NN = np.where(np.eye(len(scores_NN), dtype=bool), 0.0, scores_NN - 0.5)
    if not np.isfinite(edge_NN).all() or not len(edge_NN):
        return float("nan")
    strength_N = edge_NN.mean(1)
    rest_NN = edge_NN - (strength_N[:, None] - strength_N[None, :])
    whole = (edge_NN**2).sum()
    return float((rest_NN**2).sum() / whole) if whole > 0 else 0.0


def table(results: Results, seed: int = 0) -> dict[str, Any]:
    """Everything there is to say about the players, as plain values (`summary.json`): ratings, best first; the
    payoff matrix, rows and columns in that order; who beats whom in a circle."""
    ratings = rate(results, seed=seed)
    names = sorted(ratings, key=lambda name: -ratings[name].points)
    order = [results.players.index(name) for name in names]
    scores_NN = payoff(results.wins().sum(0))[np.ix_(order, order)] if names else np.zeros((0, 0))
    beats_NN = beats(results)[np.ix_(order, order)]
    return {
        "ratings": {name: asdict(ratings[name]) for name in names},
        "payoff": [[None if np.isnan(value) else float(value) for value in row] for row in scores_NN],
        "cycles": cycles(beats_NN, names),
        "cyclic_share": cyclic_share(scores_NN),
        "plays": len(results),
    }
