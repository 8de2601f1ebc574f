"""Signals that imitate: which turns are worth repeating, and how much, instead of by how much each was better.

Each function maps the credits of one group, `credits_G`, to weights of at least 0, `weights_G`; a turn of weight 0
trains nothing. With the loss `sft`, -w log p. What a group and a credit are is decided as for advantages.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from configs.schema.run import SignalConfig
from learners.credit.advantages import Floats, is_flat


def winners(credits_G: Floats, config: SignalConfig) -> Floats:
    """1 where the credit is above `threshold`, else 0: imitate those who won, whoever they played against.

    With the reward `win` (+1, 0, -1) the winning side of each game; with a verifier's, right answers (STaR, arXiv
    2203.14465).
    """
    return (credits_G > config.threshold).astype(np.float64)


def rejection(credits_G: Floats, config: SignalConfig) -> Floats:
    """1 for the `best` members of the group, 0 for the others: RAFT, arXiv 2304.06767. Members that tie with the
    last one kept are kept; a group in which all are alike has no best."""
    if is_flat(credits_G):
        return np.zeros_like(credits_G)
    last = np.sort(credits_G)[-min(config.best, len(credits_G))]
    return (credits_G >= last).astype(np.float64)


def reward_weighted(credits_G: Floats, config: SignalConfig) -> Floats:
    """G softmax(r / temperature): reward-weighted regression, Peters and Schaal 2007, with weights of mean 1 in each
    group. Advantage-weighted regression (arXiv 1910.00177) subtracts a baseline, which cancels here. A flat group
    teaches nothing."""
    if is_flat(credits_G):
        return np.zeros_like(credits_G)
    raw_G = np.exp((credits_G - credits_G.max()) / config.temperature)
    weights_G: Floats = raw_G / raw_G.mean()
    return weights_G


SIGNALS: dict[str, Callable[[Floats, SignalConfig], Floats]] = {
    "winners": winners,
    "rejection": rejection,
    "reward_weighted": reward_weighted,
}
"""Besides `advantage`, the policy gradient's (learners/credit/advantages.py)."""
