"""Advantage estimators: how the credits of turns are compared with each other.

An estimator maps the credits of a batch to advantages. Most treat each group by itself: a function `credits_G ->
advantages_G` (axis G: the members of one group), registered with `@per_group`. Others also look at the whole batch, at
each level of play, or at moving averages that outlive the batch: a function of a `CreditBatch`, registered with
`@ADVANTAGES.register`. What a group is, `group_by` in the config decides: with `group_by: []` the whole batch is one
group, so `dr_grpo` is then REINFORCE with the batch mean as baseline. Axis B: all turns of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import wraps

import numpy as np
import numpy.typing as npt

from configs.methods import ADVANTAGES, EACH_GROUP, SIGNALS
from configs.schema.run import AdvantageConfig

Floats = npt.NDArray[np.float64]
Key = tuple[str, ...]
GroupFunction = Callable[[Floats], Floats]

STD_EPSILON = 1e-6
FLAT = 1e-9
"""Credits that differ by less than this share of their size differ by rounding alone."""


@dataclass(frozen=True, slots=True)
class CreditBatch:
    """The credited turns of one policy in one batch, in the order of the batch."""

    credits_B: Floats
    keys_B: Sequence[Key]
    """Turns with equal keys form a group: values of `group_by`, or of `baseline_by` where the estimator reads it."""
    trajectories_B: Sequence[Hashable]
    """Turns with equal entries, side by side, are one seat's in one episode."""
    levels_B: Sequence[Key]
    """Turns with equal entries are on the same level of play: one role in one protocol."""
    baselines: MutableMapping[str, float] = field(default_factory=dict)
    """Group key joined by " / " -> moving average, which `role_ema` reads and moves. Keep it from batch to batch."""


def members(keys_B: Sequence[Key]) -> dict[Key, list[int]]:
    """key -> the indices of its group, both in the order of the batch."""
    indices: dict[Key, list[int]] = {}
    for i, key in enumerate(keys_B):
        indices.setdefault(key, []).append(i)
    return indices


def apply(function: GroupFunction, values_B: Floats, keys_B: Sequence[Key]) -> Floats:
    """`function` of the values of each group by itself."""
    results_B = np.zeros_like(values_B)
    for index in members(keys_B).values():
        results_B[index] = function(values_B[index])
    return results_B


def per_group(
    name: str, *, reads: Iterable[str] = EACH_GROUP, needs: Iterable[str] = ("group",), source: str = ""
) -> Callable[[GroupFunction], GroupFunction]:
    """Decorator that registers `credits_G -> advantages_G` as an estimator which treats each group by itself."""

    def add(function: GroupFunction) -> GroupFunction:
        @wraps(function)
        def estimate(batch: CreditBatch, config: AdvantageConfig) -> Floats:
            return apply(function, batch.credits_B, batch.keys_B)

        ADVANTAGES.register(name, reads=reads, needs=needs, source=source)(estimate)
        return function

    return add


def is_flat(credits_G: Floats) -> bool:
    """Whether comparing the group tells nothing: it has one member, or no variance."""
    return float(np.ptp(credits_G)) <= FLAT * max(1.0, float(np.abs(credits_G).max()))


@SIGNALS.register("advantage", needs={"advantage"})
def by_advantage(batch: CreditBatch, config: AdvantageConfig) -> Floats:
    """Policy gradient: every turn weighs its advantage, by the estimator `advantage.kind`."""
    advantages_B: Floats = ADVANTAGES[config.kind](batch, config)
    return advantages_B


@per_group("grpo", source="DeepSeekMath, arXiv 2402.03300, section 4.1.2 (outcome supervision)")
def grpo(credits_G: Floats) -> Floats:
    """(r - mean) / (std + 1e-6).

    The paper leaves the estimator of the standard deviation open; this is the population's (ddof 0), so that the
    advantages of a group have mean 0 and variance 1 at any group size.
    """
    advantages_G: Floats = dr_grpo(credits_G) / (credits_G.std() + STD_EPSILON)
    return advantages_G


@per_group("dr_grpo", source="Understanding R1-Zero-Like Training, arXiv 2503.20783, section 3.2")
def dr_grpo(credits_G: Floats) -> Floats:
    """r - mean; exactly 0 in a flat group, where the difference would be rounding noise.

    Dividing by the standard deviation weights a question by how nearly all its answers agree; this does not.
    """
    if is_flat(credits_G):
        return np.zeros_like(credits_G)
    centred_G: Floats = credits_G - credits_G.mean()
    return centred_G


@per_group("rloo", source="Back to Basics, arXiv 2402.14740, section 3.3 (Kool et al. 2019)")
def rloo(credits_G: Floats) -> Floats:
    """r_i minus the mean of the others.

    The baseline of a member does not depend on its own reward, so it is unbiased. Since
    r_i - (sum - r_i) / (G - 1) = (r_i - mean) G / (G - 1), it is computed from the mean. A single member
    has no others to be compared with: 0.
    """
    size = len(credits_G)
    return np.multiply(dr_grpo(credits_G), size / max(size - 1, 1))


@per_group("reinforce", needs=(), source="Williams 1992, section 4")
def reinforce(credits_G: Floats) -> Floats:
    """r, without a baseline."""
    return credits_G.copy()


def scale(advantages_B: Floats) -> Floats:
    """a / (std + 1e-6); exact zeros stay exactly 0."""
    scaled_B: Floats = advantages_B / (advantages_B.std() + STD_EPSILON) if len(advantages_B) else advantages_B
    return scaled_B


@ADVANTAGES.register("reinforce_pp", reads={"credit", "discount"}, source="REINFORCE++, arXiv 2501.03262")
def reinforce_pp(batch: CreditBatch, config: AdvantageConfig) -> Floats:
    """(r - mean) / (std + 1e-6) over the whole batch (global advantage normalisation); exactly 0 where it is flat.

    A member is a turn, whatever its length. GRPO divides by the standard deviation of a few siblings, which
    depends on each of them; that of a whole batch hardly does.
    """
    return grpo(batch.credits_B) if len(batch.credits_B) else batch.credits_B


@ADVANTAGES.register(
    "reinforce_pp_baseline", reads=EACH_GROUP, needs={"group"}, source="REINFORCE++, arXiv 2501.03262"
)
def reinforce_pp_baseline(batch: CreditBatch, config: AdvantageConfig) -> Floats:
    """a / (std of a over the whole batch + 1e-6), with a = r - mean of the group."""
    return scale(apply(dr_grpo, batch.credits_B, batch.keys_B))


@ADVANTAGES.register(
    "hierarchical", reads=EACH_GROUP, needs={"group", "parent"},
    source="hierarchical advantage estimation, arXiv 2602.16165, with nested groups as in arXiv 2505.10978",
)  # fmt: skip
def hierarchical(batch: CreditBatch, config: AdvantageConfig) -> Floats:
    """a / (std of a over its level of play + 1e-6), with a = r - mean over its siblings.

    For plays within plays (a proposal and the tries at it). Groups are nested: siblings are also of the same parent
    play, so that a try is compared with the tries at the same proposal, and a proposal with other proposals, never a
    try with a proposal. That is the paper's two-level baseline (the executor's is conditional on the planner's
    choice), with groups in place of critics. Each level has a scale of its own, or a policy that is paid p(1 - p) as
    proposer and 0 or 1 as solver would hardly learn to propose: arXiv 2505.03335 (TRR++) normalises for each task and
    role likewise, without nesting.
    """
    return apply(scale, apply(dr_grpo, batch.credits_B, batch.keys_B), batch.levels_B)


@ADVANTAGES.register(
    "role_ema", reads={"credit", "discount", "baseline_by", "decay"},
    source="SPIRAL, arXiv 2506.24119, role-conditioned advantage estimation",
)  # fmt: skip
def role_ema(batch: CreditBatch, config: AdvantageConfig) -> Floats:
    """r - b, with b an exponential moving average for each combination of `baseline_by`, 0 at the start.

    b is subtracted before the credit moves it, so that no turn is compared with itself: A_i = r_i - b, then
    b = decay b + (1 - decay) r_i, in the order of the batch. The turns of one trajectory meet the same b and move it
    once, by their mean.
    """
    advantages_B = np.zeros_like(batch.credits_B)
    for key, index in members(batch.keys_B).items():
        name = " / ".join(key)
        baseline = batch.baselines.get(name, 0.0)
        for turns in _runs(index, batch.trajectories_B):
            advantages_B[turns] = batch.credits_B[turns] - baseline
            mean = float(batch.credits_B[turns].mean())
            baseline = config.decay * baseline + (1.0 - config.decay) * mean
        batch.baselines[name] = baseline
    return advantages_B


def _runs(index: Sequence[int], trajectories_B: Sequence[Hashable]) -> list[list[int]]:
    """The indices of a group, cut where the trajectory changes."""
    runs: list[list[int]] = []
    for i in index:
        if runs and trajectories_B[runs[-1][-1]] == trajectories_B[i]:
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs
