"""How much the proposals of one batch repeat each other: the repetition penalty of R-Zero (arXiv 2508.05004).

Two texts are 1 - BLEU apart. Clusters are merged by the mean distance between their members (average linkage), nearest
first, as long as that is below `THRESHOLD`; a proposal's share is the size of its cluster over the size of the batch.

Two things differ from the paper. BLEU is the mean of both directions, so that the order of proposals does not matter;
and it looks at no longer runs of words than both texts have, so that equal texts are 0 apart however short they are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations

THRESHOLD = 0.5
"""The paper's: clusters that are at least so far apart stay apart."""
LONGEST = 4
"""Words of the longest runs that BLEU compares (Papineni et al. 2002)."""
SMOOTHING = 0.1
"""What no match counts in place of 0 (method 1 of Chen and Cherry 2014, as in the paper's implementation)."""


def shares(texts: Sequence[str]) -> list[float]:
    """For each text the share of all texts that lie in its cluster, itself included: from 1 / len(texts) to 1."""
    clusters = clustered([[distance(a, b) for b in texts] for a in texts])
    share = {member: len(cluster) / len(texts) for cluster in clusters for member in cluster}
    return [share[i] for i in range(len(texts))]


def clustered(apart: Sequence[Sequence[float]]) -> list[list[int]]:
    """Clusters of indices by average linkage. `apart`: symmetric distances."""
    clusters = [[i] for i in range(len(apart))]
    while len(clusters) > 1:
        gap, first, second = min(
            (math.fsum(apart[a][b] for a in one for b in other) / (len(one) * len(other)), i, j)
            for (i, one), (j, other) in combinations(enumerate(clusters), 2)
        )
        if gap >= THRESHOLD:
            break
        clusters[first] = sorted(clusters[first] + clusters.pop(second))
    return clusters


def distance(a: str, b: str) -> float:
    """1 minus the mean of the BLEU of `a` against `b` and of `b` against `a`, in [0, 1]."""
    one, other = a.split(), b.split()
    return 0.0 if one == other else 1.0 - (bleu(one, other) + bleu(other, one)) / 2


def bleu(words: Sequence[str], reference: Sequence[str]) -> float:
    """The geometric mean of the shares of runs of 1 to 4 words that the reference has too, each counted no more often
    than there, times exp(1 - r / c) for a text of c words that is shorter than the reference of r."""
    orders = min(LONGEST, len(words), len(reference))
    if not orders:
        return float(list(words) == list(reference))
    logs = 0.0
    for n in range(1, orders + 1):
        own, there = _runs(words, n), _runs(reference, n)
        found = sum(min(count, there[run]) for run, count in own.items())
        logs += math.log((found or SMOOTHING) / sum(own.values()))
    return math.exp(logs / orders + min(0.0, 1 - len(reference) / len(words)))


def _runs(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
