"""Intervals and judge metrics. NumPy only; no knowledge of protocols beyond `Task.choices` and judgments."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from protocols.types import Episode, Judgment, Task

Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95% interval over `n` values."""

    mean: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def wilson(successes: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927; Brown, Cai and DasGupta 2001, eq. 4), 95% unless told."""
    if n == 0:
        return float("nan"), float("nan")
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def proportion(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, seed: int = 0, resamples: int = 2000
) -> Interval:
    """Mean of values in [0, 1] with a 95% interval.

    Where no cluster (image, question) repeats: Wilson. Where clusters repeat their debates are not
    independent: percentile bootstrap over whole clusters (Cameron, Gelbach and Miller 2008), seeded. Where all
    values agree the bootstrap has width zero, so Wilson with n = number of clusters stands in for it.
    """
    values_N = np.asarray(values, float)
    if len(values_N) == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    mean = float(values_N.mean())
    _, cluster_N = _index(clusters if clusters is not None else range(len(values_N)))
    n_clusters = int(cluster_N.max()) + 1
    if n_clusters == len(values_N) or values_N.min() == values_N.max():
        low, high = wilson(mean * n_clusters, n_clusters)
    else:
        low, high = _bootstrap(values_N, cluster_N, seed, resamples)
    return Interval(mean, low, high, len(values_N))


def mean_interval(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, seed: int = 0, resamples: int = 2000
) -> Interval:
    """Mean of any values with a 95% percentile-bootstrap interval over clusters."""
    values_N = np.asarray(values, float)
    if len(values_N) == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    _, cluster_N = _index(clusters if clusters is not None else range(len(values_N)))
    return Interval(float(values_N.mean()), *_bootstrap(values_N, cluster_N, seed, resamples), len(values_N))


def _bootstrap(values_N: np.ndarray, cluster_N: np.ndarray, seed: int, resamples: int) -> tuple[float, float]:
    sums_C = np.bincount(cluster_N, values_N)
    sizes_C = np.bincount(cluster_N)
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        drawn_C = rng.integers(len(sums_C), size=len(sums_C))
        means.append(sums_C[drawn_C].sum() / sizes_C[drawn_C].sum())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _index(labels: Iterable[Hashable]) -> tuple[list[Hashable], np.ndarray]:
    numbers: dict[Hashable, int] = {}
    index_N = np.asarray([numbers.setdefault(label, len(numbers)) for label in labels])
    return list(numbers), index_N


def brier(probs_NK: Sequence[Sequence[float]], truth_N: Sequence[int]) -> float:
    """Half the squared distance between forecast and truth, averaged (Brier 1950, halved: for two choices this is
    the familiar mean of (p - y)^2; 0 best, 1 worst, .25 for always one half)."""
    probs = np.asarray(probs_NK, float)
    truth = np.eye(probs.shape[1])[np.asarray(truth_N)]
    return float(((probs - truth) ** 2).sum(1).mean() / 2)


@dataclass(frozen=True, slots=True)
class Bin:
    """Forecasts of similar confidence: their mean confidence, the share that was right, how many."""

    confidence: float
    accuracy: float
    n: int


def reliability(confidence_N: Sequence[float], correct_N: Sequence[float], bins: int = 15) -> list[Bin]:
    """Non-empty bins (k/bins, (k+1)/bins] of the confidence in the chosen answer (Guo et al. 2017, eq. 2)."""
    confidence, correct = np.asarray(confidence_N, float), np.asarray(correct_N, float)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    return [
        Bin(float(confidence[place == k].mean()), float(correct[place == k].mean()), int((place == k).sum()))
        for k in np.unique(place)
    ]


def ece(confidence_N: Sequence[float], correct_N: Sequence[float], bins: int = 15) -> float:
    """Expected calibration error: mean distance of confidence and accuracy over bins (Guo et al. 2017, eq. 3)."""
    found = reliability(confidence_N, correct_N, bins)
    total = sum(entry.n for entry in found)
    return (
        sum(abs(entry.confidence - entry.accuracy) * entry.n for entry in found) / total
        if total
        else float("nan")
    )


def mcc(truth_N: Sequence[Hashable], verdict_N: Sequence[Hashable]) -> float:
    """Matthews correlation of truth and verdict, for any number of classes (Gorodkin 2004); 0 where undefined."""
    names, index = _index([*truth_N, *verdict_N])
    matrix_KK = np.zeros((len(names), len(names)))
    np.add.at(matrix_KK, (index[: len(truth_N)], index[len(truth_N) :]), 1)
    n, hits = matrix_KK.sum(), matrix_KK.trace()
    true_K, said_K = matrix_KK.sum(1), matrix_KK.sum(0)
    spread = (n**2 - said_K @ said_K) * (n**2 - true_K @ true_K)
    return float((hits * n - true_K @ said_K) / np.sqrt(spread)) if spread > 0 else 0.0


@dataclass(frozen=True, slots=True)
class JudgeVerdict:
    """A judge's last word on one episode."""

    probs_K: tuple[float, ...]
    truth: int
    cluster: str
    flipped: bool | None
    """Whether the two claim orders, asked alone, gave different verdicts; None where both were not asked."""

    @property
    def choice(self) -> int:
        return int(np.argmax(self.probs_K))

    @property
    def correct(self) -> float:
        """1 or 0; a tie at the top counts as a guess (1 / number of tied choices)."""
        top = [index for index, value in enumerate(self.probs_K) if value == max(self.probs_K)]
        return float(self.truth in top) / len(top)


def truth_index(task: Task) -> int | None:
    """Which of the task's choices is right; None where that is not known."""
    return task.choices.index(task.answer) if task.answer in task.choices else None


def cluster_of(task: Task) -> str:
    """What makes debates dependent: the source task (the image) that a task was derived from, else the task."""
    return task.parent or task.id


def verdicts(episodes: Iterable[Episode]) -> list[JudgeVerdict]:
    """The last valid judgment of each episode that decided it, whose scores are a distribution over two or more
    choices of which the right one is known."""
    found = []
    for episode in episodes:
        truth = truth_index(episode.task)
        judgments = [
            judgment for judgment in episode.outcome.judgments if judgment.valid and judgment.decides
        ]
        if truth is None or not judgments or len(judgments[-1].scores) < 2:
            continue
        scores = judgments[-1].scores
        if len(scores) == len(episode.task.choices) and min(scores) >= 0 and abs(sum(scores) - 1) < 1e-3:
            found.append(JudgeVerdict(scores, truth, cluster_of(episode.task), _flipped(episode, judgments[-1])))
    return found


def _flipped(episode: Episode, judgment: Judgment) -> bool | None:
    """Whether the last poll's two readings lean to different claims. A judge asked in both orders is read twice
    per poll, the second time with the claims exchanged; a reading of exactly one half leans to neither."""
    reads = [
        turn for turn in episode.turns if turn.seat == judgment.seat and turn.read and len(turn.probs) == 2
    ]
    polls = [entry for entry in episode.outcome.judgments if entry.seat == judgment.seat]
    if len(reads) != 2 * len(polls):
        return None
    lean, lean_exchanged = (turn.probs[0] - turn.probs[1] for turn in reads[-2:])
    return lean * -lean_exchanged < 0


def score_interval(episodes: Iterable[Episode]) -> Interval:
    """Mean score of the episodes that are `ok` and have one (truth won, answer right), clustered by source task."""
    scored = [entry for entry in episodes if entry.status == "ok" and entry.outcome.score is not None]
    return proportion(
        [entry.outcome.score or 0.0 for entry in scored], [cluster_of(entry.task) for entry in scored]
    )


def judge_health(episodes: Sequence[Episode]) -> dict[str, Any]:
    """Everything about a judge's last verdicts: accuracy (Interval), brier, ece, mcc, swap_flip_rate, honest win
    rate when the truth is argued by the first and by the second side (Intervals; `Task.choices[0]` belongs to the
    first side), accuracy_by_round, unreadable share, reliability (list of Bin), n. Empty where nobody judged."""
    found = verdicts(episodes)
    if not found:
        return {}
    confidence = [max(verdict.probs_K) for verdict in found]
    correct = [verdict.correct for verdict in found]
    flips = [float(verdict.flipped) for verdict in found if verdict.flipped is not None]
    sides = {side: [verdict for verdict in found if verdict.truth == side] for side in (0, 1)}
    judgments = [judgment for episode in episodes for judgment in episode.outcome.judgments]
    same_width = [verdict for verdict in found if len(verdict.probs_K) == len(found[0].probs_K)]
    return {
        "n": len(found),
        "accuracy": proportion(correct, [verdict.cluster for verdict in found]),
        "brier": brier(
            [verdict.probs_K for verdict in same_width], [verdict.truth for verdict in same_width]
        ),
        "ece": ece(confidence, correct),
        "mcc": mcc([verdict.truth for verdict in found], [verdict.choice for verdict in found]),
        "swap_flip_rate": float(np.mean(flips)) if flips else None,
        "honest_first": _share(sides[0]),
        "honest_second": _share(sides[1]),
        "accuracy_by_round": accuracy_by_round(episodes),
        "unreadable": float(np.mean([not judgment.valid for judgment in judgments])),
        "reliability": reliability(confidence, correct),
    }


def _share(found: Sequence[JudgeVerdict]) -> Interval:
    return proportion([verdict.correct for verdict in found], [verdict.cluster for verdict in found])


def beside(episodes: Iterable[Episode]) -> dict[str, dict[str, Any]]:
    """The judges asked beside the one that decides (held-out judges, members of a panel): seat -> n; accuracy and
    agreement with what was decided (Intervals; ties broken at random, in the mean); brier; belief_gap, by how much more
    the deciding judge believes the truth. What debaters gain on their own judge alone shows in a gap that grows."""
    pairs: dict[str, list[tuple[JudgeVerdict, JudgeVerdict]]] = defaultdict(list)
    for episode in episodes:
        decided = verdicts([episode])
        last = {j.seat: j for j in episode.outcome.judgments if j.valid and not j.decides}
        for seat, judgment in last.items() if decided else ():
            if len(judgment.scores) == len(decided[0].probs_K):
                own = JudgeVerdict(judgment.scores, decided[0].truth, decided[0].cluster, None)
                pairs[seat].append((own, decided[0]))
    return {seat: _compared(found) for seat, found in pairs.items()}


def _compared(pairs: Sequence[tuple[JudgeVerdict, JudgeVerdict]]) -> dict[str, Any]:
    own, clusters = [mine for mine, _ in pairs], [mine.cluster for mine, _ in pairs]
    gaps = [decided.probs_K[mine.truth] - mine.probs_K[mine.truth] for mine, decided in pairs]
    width = len(own[0].probs_K)
    same = [verdict for verdict in own if len(verdict.probs_K) == width]
    return {
        "n": len(pairs),
        "accuracy": proportion([verdict.correct for verdict in own], clusters),
        "agreement": proportion([_agree(mine.probs_K, decided.probs_K) for mine, decided in pairs], clusters),
        "brier": brier([verdict.probs_K for verdict in same], [verdict.truth for verdict in same]),
        "belief_gap": float(np.mean(gaps)),
    }


def _agree(one: Sequence[float], two: Sequence[float]) -> float:
    """Probability that both name the same choice, each drawing among its likeliest ones."""
    tops = [{i for i, p in enumerate(probs) if p == max(probs)} for probs in (one, two)]
    return len(tops[0] & tops[1]) / (len(tops[0]) * len(tops[1]))


def health_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Of `judge_health` and `beside`, the plain numbers: for metrics and the summary. Empty where nobody judged."""
    health = judge_health(episodes)
    found = {
        name: float(health[name])
        for name in ("brier", "ece", "mcc", "swap_flip_rate", "unreadable")
        if health.get(name) is not None
    }
    for seat, own in beside(episodes).items() if health else ():
        found |= {f"{seat}/agreement": own["agreement"].mean, f"{seat}/accuracy": own["accuracy"].mean}
        found |= {f"{seat}/brier": own["brier"], f"{seat}/belief_gap": own["belief_gap"]}
    return found


def accuracy_by_round(episodes: Iterable[Episode]) -> dict[int, float]:
    """Judge accuracy after 0, 1, 2, ... public turns; ties count one half."""
    right: dict[int, list[float]] = defaultdict(list)
    for episode in episodes:
        truth = truth_index(episode.task)
        for judgment in episode.outcome.judgments:
            readable = judgment.valid and judgment.decides
            belief = len(judgment.scores) == len(episode.task.choices) and abs(sum(judgment.scores) - 1) < 1e-3
            if truth is not None and readable and belief:  # grades of seats are none
                verdict = JudgeVerdict(judgment.scores, truth, "", None)
                right[judgment.after_turn].append(verdict.correct)
    return {turn: float(np.mean(values)) for turn, values in sorted(right.items())}
