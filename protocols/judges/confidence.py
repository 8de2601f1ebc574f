"""How sure somebody is, as something that can be picked: levels of confidence, and what a vote weighs by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LEVELS = tuple(f"{percent}%" for percent in range(0, 101, 10))
"""What a seat may answer in a phase with moves: confidence, and a forecaster at any time."""


def share(level: str) -> float:
    """'70%' -> 0.7."""
    return int(level.removesuffix("%")) / 100


def weight(level: str) -> float:
    """What a vote weighs whose seat is so sure: models are surer than they are right, so middling confidence counts
    little (ReConcile, arXiv 2309.13007, section 3: 1 -> 1, from 0.9 -> 0.8, from 0.8 -> 0.5, above 0.6 -> 0.3, else
    0.1)."""
    p = share(level)
    for least, weighs in ((1.0, 1.0), (0.9, 0.8), (0.8, 0.5), (0.61, 0.3)):
        if p >= least:
            return weighs
    return 0.1


def vote_shares(votes: Mapping[str, int], levels: Mapping[str, str] | None, claims: int) -> Sequence[float]:
    """The share of votes for each claim; by weight where there are `levels` (seat -> confidence). A seat without a
    level has then no vote. Empty where nobody has."""
    weights = {s: 1.0 if levels is None else weight(levels[s]) for s in votes if levels is None or s in levels}
    total = sum(weights.values())
    if not total:
        return ()
    return tuple(sum(w for s, w in weights.items() if votes[s] == claim) / total for claim in range(claims))
