"""Advantages by a critic: generalised advantage estimation over all tokens that a seat sampled in an episode.

NumPy, in the process that holds the whole batch: a trajectory may lie in several samples and on several ranks, and
advantages are normalised over all of them. The critic itself is in learners/losses/critic.py. Axes: T the sampled
tokens of a trajectory in order, without what lies between them (prompts, forced tokens and other seats); L those of
one sample; N all of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from configs.methods import ADVANTAGES
from configs.schema.run import AdvantageConfig
from learners.credit.advantages import Floats, grpo
from learners.types import Sample


@ADVANTAGES.register("gae", reads={"gamma", "lam"}, needs={"critic"}, source="arXiv 1506.02438, eq. 16")
def gae(rewards_T: Floats, values_T: Floats, config: AdvantageConfig) -> tuple[Floats, Floats]:
    """A_t = sum over l of (gamma lam)^l delta_{t+l}, with delta_t = r_t + gamma V_{t+1} - V_t (Schulman et al.).

    `rewards_T`: what was paid after each token; `values_T`: the critic's V before it. V is 0 after the last token.
    Returns (advantages_T, returns_T); the returns are what the critic aims at, A_t + V_t: TD(lam).
    """
    gamma, lam = config.gamma, config.lam
    advantages_T = np.zeros(len(rewards_T))
    ahead, following = 0.0, 0.0  # A and V of the next token
    for t in range(len(rewards_T) - 1, -1, -1):
        ahead = rewards_T[t] + gamma * following - values_T[t] + gamma * lam * ahead
        following = values_T[t]
        advantages_T[t] = ahead
    return advantages_T, advantages_T + values_T


def trajectories(samples: Sequence[Sample]) -> list[list[int]]:
    """Indices of the samples of each seat in each episode, in order; a sample without tags stands for itself."""
    indices: dict[tuple[str, str], list[int]] = {}
    for i, sample in enumerate(samples):
        key = (sample.tags.get("episode", f"sample {i}"), sample.tags.get("seat", ""))
        indices.setdefault(key, []).append(i)
    return list(indices.values())


def with_advantages(
    samples: Sequence[Sample], values: Sequence[Sequence[float]], config: AdvantageConfig
) -> tuple[list[Sample], dict[str, float]]:
    """The samples with advantages, values and returns per token, and metrics about them.

    `samples` carry `rewards_L`; `values`: of each sample, the critic's before each of its loss tokens. Advantages are
    normalised over all tokens of the batch, (A - mean) / (std + 1e-6), as implementations of PPO do (Huang et al.,
    arXiv 2403.17031); the returns are not. Metrics: explained_variance, 1 - Var(R - V) / Var(R) with R the returns
    (left out where they are all alike), value_mean, return_mean, advantage_std before it is normalised.
    """
    if not samples:
        return [], {}
    assert all(sample.rewards_L is not None for sample in samples), "samples for a critic carry rewards"
    results: dict[int, tuple[Floats, Floats]] = {}
    for members in trajectories(samples):
        cuts = np.cumsum([len(samples[i].positions_L) for i in members])[:-1]
        rewards_T = np.concatenate([np.asarray(samples[i].rewards_L, dtype=float) for i in members])
        values_T = np.concatenate([np.asarray(values[i], dtype=float) for i in members])
        advantages_T, returns_T = ADVANTAGES[config.kind](rewards_T, values_T, config)
        results |= dict(zip(members, zip(np.split(advantages_T, cuts), np.split(returns_T, cuts))))
    raw_N, returns_N = (np.concatenate([results[i][part] for i in range(len(samples))]) for part in (0, 1))
    values_N = np.concatenate([np.asarray(one, dtype=float) for one in values])
    normalised = np.split(grpo(raw_N), np.cumsum([len(sample.positions_L) for sample in samples])[:-1])
    done = [
        replace(s, advantages_L=a.tolist(), values_L=list(v), returns_L=results[i][1].tolist())
        for i, (s, a, v) in enumerate(zip(samples, normalised, values))
    ]
    metrics = {"value_mean": values_N.mean(), "return_mean": returns_N.mean(), "advantage_std": raw_N.std()}
    if returns_N.var() > 0:
        metrics["explained_variance"] = 1.0 - (returns_N - values_N).var() / returns_N.var()
    return done, {name: float(value) for name, value in metrics.items()}
