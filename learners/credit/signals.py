"""Signals that imitate: which turns are worth repeating, and how much, instead of by how much each was better.

Each function maps the credits of one group, `credits_G`, to weights of at least 0, `weights_G`; a turn of weight 0
trains nothing. The loss `sft` then takes -w log p. Credits and groups are those of advantages.
"""

from __future__ import annotations

import numpy as np

from configs.methods import SIGNALS
from configs.schema.run import SignalConfig
from learners.credit.advantages import Floats, is_flat


@SIGNALS.register("winners", reads={"threshold"}, source="winners-only SFT; STaR, arXiv 2203.14465")
def winners(credits_G: Floats, config: SignalConfig) -> Floats:
    """1 where the credit is above `threshold`, else 0.

    With the reward `win` (+1, 0, -1) the policy imitates the winning side of each game, with a verifier's reward the
    right answers.
    """
    return (credits_G > config.threshold).astype(np.float64)


@SIGNALS.register("rejection", reads={"best"}, needs={"group"}, source="RAFT, arXiv 2304.06767")
def rejection(credits_G: Floats, config: SignalConfig) -> Floats:
    """1 for the `best` members of the group, 0 for the others.

    Members that tie with the last one kept are kept; a group in which all credits are alike has no best.
    """
    if is_flat(credits_G):
        return np.zeros_like(credits_G)
    last = np.sort(credits_G)[-min(config.best, len(credits_G))]
    weights_G: Floats = (credits_G >= last).astype(np.float64)
    return weights_G


@SIGNALS.register(
    "reward_weighted", reads={"temperature"}, needs={"group"},
    source="reward-weighted regression, Peters and Schaal 2007",
)  # fmt: skip
def reward_weighted(credits_G: Floats, config: SignalConfig) -> Floats:
    """G softmax_G(r / temperature): weights of mean 1 in each group.

    Advantage-weighted regression (arXiv 1910.00177) subtracts a baseline, which cancels here. A group of equal
    credits teaches nothing.
    """
    if is_flat(credits_G):
        return np.zeros_like(credits_G)
    raw_G = np.exp((credits_G - credits_G.max()) / config.temperature)
    weights_G: Floats = raw_G / raw_G.mean()
    return weights_G
