"""Advantages: how the rewards of one group are compared with each other.

Each function maps `rewards_G` (axis G: the members of one group) to `advantages_G`. What a group *is* is
not decided here but by `group_by` in the config: with `group_by: []` the whole batch is one group, so
`dr_grpo` is then REINFORCE with the batch mean as baseline. The learner never knows which of these ran.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

STD_EPSILON = 1e-6
FLAT = 1e-9
"""Rewards that differ by less than this share of their size differ by rounding alone."""


def is_flat(rewards_G: Floats) -> bool:
    """Whether the group has nothing to tell: one member, or no variance."""
    return float(np.ptp(rewards_G)) <= FLAT * max(1.0, float(np.abs(rewards_G).max()))


def _centred(rewards_G: Floats) -> Floats:
    """r - mean; exactly 0 in a flat group, where the difference would be rounding noise."""
    if is_flat(rewards_G):
        return np.zeros_like(rewards_G)
    centred_G: Floats = rewards_G - rewards_G.mean()
    return centred_G


def grpo(rewards_G: Floats) -> Floats:
    """(r - mean) / (std + 1e-6). DeepSeekMath, arXiv 2402.03300, section 4.1.2 (outcome supervision).

    The paper leaves the estimator open; this is the population standard deviation (ddof 0), so that the
    advantages of a group have mean 0 and variance 1 at any group size.
    """
    advantages_G: Floats = _centred(rewards_G) / (rewards_G.std() + STD_EPSILON)
    return advantages_G


def dr_grpo(rewards_G: Floats) -> Floats:
    """r - mean. "Understanding R1-Zero-Like Training", arXiv 2503.20783, section 3.2.

    Dividing by the standard deviation weights a question by how nearly all its answers agree; this does not.
    """
    return _centred(rewards_G)


def rloo(rewards_G: Floats) -> Floats:
    """r_i minus the mean of the others. "Back to Basics", arXiv 2402.14740, section 3.3 (Kool et al. 2019).

    The baseline of a member does not depend on its own reward, so it is unbiased. Since
    r_i - (sum - r_i) / (G - 1) = (r_i - mean) G / (G - 1), it is computed from the mean. A single member
    has no others to be compared with: 0.
    """
    size = len(rewards_G)
    return np.multiply(_centred(rewards_G), size / max(size - 1, 1))


def reinforce(rewards_G: Floats) -> Floats:
    """r, without a baseline. Williams 1992, "Simple statistical gradient-following algorithms", section 4."""
    return rewards_G.copy()


ADVANTAGES: dict[str, Callable[[Floats], Floats]] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce": reinforce,
}
