"""Advantages: how the rewards of one group are compared with each other.

A kind is made of up to three small functions: what happens within a group (`ADVANTAGES`: `rewards_G` to
`advantages_G`, axis G: the members of one group), over the whole batch or each level of it afterwards (`OVER_BATCH`,
`OVER_LEVEL`), or against a moving average that outlives the batch (`role_ema`). What a group *is* is not decided
here but by `group_by` in the config: with `group_by: []` the whole batch is one group, so `dr_grpo` is then REINFORCE
with the batch mean as baseline. The learner never knows which of these ran. Axis B: all members of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, MutableMapping, Sequence

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


def whiten(rewards_B: Floats) -> Floats:
    """(r - mean) / (std + 1e-6) over the whole batch: global advantage normalisation, REINFORCE++,
    arXiv 2501.03262. Exactly 0 where the batch is flat.

    A member is a turn, whatever its length. GRPO divides by the standard deviation of a few siblings, which
    depends on each of them; that of a whole batch hardly does.
    """
    return grpo(rewards_B)


def scale(advantages_B: Floats) -> Floats:
    """a / (std + 1e-6), std over the whole batch: REINFORCE++ with a baseline, arXiv 2501.03262, after each
    group's mean has been subtracted. The mean is 0 already; members of flat groups stay exactly 0.
    """
    scaled_B: Floats = advantages_B / (advantages_B.std() + STD_EPSILON)
    return scaled_B


def role_ema(
    rewards_G: Floats, trajectories_G: Sequence[Hashable], baseline: float, decay: float
) -> tuple[Floats, float]:
    """r - b, b an exponential moving average per role, and the b to go on with. SPIRAL, arXiv 2506.24119,
    role-conditioned advantage estimation, with decay .95 and 0 at the start.

    b is subtracted *before* the reward moves it, so that no member is compared with itself:
    A_i = r_i - b, then b = decay b + (1 - decay) r_i, in the order of the batch. The members of one trajectory
    (equal entries, side by side: a seat's turns in an episode) meet the same b and move it once, by their mean.
    """
    advantages_G = np.zeros_like(rewards_G)
    start = 0
    for end in range(1, len(rewards_G) + 1):
        if end < len(rewards_G) and trajectories_G[end] == trajectories_G[start]:
            continue
        advantages_G[start:end] = rewards_G[start:end] - baseline
        baseline = decay * baseline + (1.0 - decay) * float(rewards_G[start:end].mean())
        start = end
    return advantages_G, baseline


GroupAdvantage = Callable[[Floats], Floats]

ADVANTAGES: dict[str, GroupAdvantage] = {
    "grpo": grpo,
    "dr_grpo": dr_grpo,
    "rloo": rloo,
    "reinforce": reinforce,
    "reinforce_pp": reinforce,
    "reinforce_pp_baseline": dr_grpo,
    "hierarchical": dr_grpo,
    "role_ema": reinforce,
    "gae": reinforce,
}
"""What each kind does within a group. `role_ema` has a baseline from elsewhere: see `compare`. For `gae` the rewards
are handed on to the learner, whose critic makes advantages of them (learners/credit/gae.py)."""

OVER_BATCH: dict[str, GroupAdvantage] = {"reinforce_pp": whiten, "reinforce_pp_baseline": scale}
"""What some kinds do with all groups together afterwards."""

OVER_LEVEL: dict[str, GroupAdvantage] = {"hierarchical": scale}
"""What some kinds do afterwards with all groups of one level of play: turns of one role in one protocol.

`hierarchical`, for plays within plays (a proposal and the tries at it): A = a / (std of a over its level + 1e-6), with
a = r - mean over its siblings. Groups are nested: siblings are also of the same parent play, so that a try is compared
with the tries at the same proposal, and a proposal with other proposals, never a try with a proposal. That is the
two-level baseline of hierarchical advantage estimation, arXiv 2602.16165 (the executor's is conditional on the
planner's choice), with groups in place of critics, one inside the other, as in arXiv 2505.10978. Each level has a scale
of its own, or a policy that is paid p(1 - p) as proposer and 0 or 1 as solver would hardly learn to propose: arXiv
2505.03335 (TRR++) normalises for each task and role likewise, without nesting. Members of flat groups stay exactly 0.
"""

Key = tuple[str, ...]


def compare(
    kind: str,
    rewards_B: Floats,
    keys_B: Sequence[Key],
    trajectories_B: Sequence[Hashable],
    decay: float,
    baselines: MutableMapping[str, float],
    levels_B: Sequence[Key] = (),
) -> Floats:
    """Advantages of a whole batch. Members with equal keys are a group; `trajectories_B` as in `role_ema`; members with
    equal `levels_B` are a level (`OVER_LEVEL`; none given: all are).

    `baselines`: key joined by " / " -> moving average. Read and moved by `role_ema`, ignored by all others; whoever
    calls this keeps it between batches.
    """
    advantages_B = np.zeros_like(rewards_B)
    for key, members in groups(keys_B).items():
        if kind == "role_ema":
            name = " / ".join(key)
            ids = [trajectories_B[i] for i in members]
            old = baselines.get(name, 0.0)
            advantages_B[members], baselines[name] = role_ema(rewards_B[members], ids, old, decay)
        else:
            advantages_B[members] = ADVANTAGES[kind](rewards_B[members])
    if kind in OVER_LEVEL:
        for members in groups(levels_B or [()] * len(rewards_B)).values():
            advantages_B[members] = OVER_LEVEL[kind](advantages_B[members])
    over_batch = OVER_BATCH.get(kind)
    return advantages_B if over_batch is None or not len(rewards_B) else over_batch(advantages_B)


def groups(keys_B: Sequence[Key]) -> dict[Key, list[int]]:
    """key -> its members' indices, both in the order of the batch."""
    found: dict[Key, list[int]] = {}
    for i, key in enumerate(keys_B):
        found.setdefault(key, []).append(i)
    return found
