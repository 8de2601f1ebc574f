"""Which finished groups the next learner step takes, so that no play ever lags more than `max_staleness` steps. Pure.

A group that began when the weights had v steps behind them is due at step v + max_staleness. Slots alone do not see to
that: with several steps' worth of them, a slow group could be overtaken for ever.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence


def spare_groups(oversample: float, groups_per_step: int) -> int:
    """How many groups more than a step needs are begun: at least one where any are asked for."""
    return math.ceil(round((oversample - 1.0) * groups_per_step, 9))


def choose(due: Mapping[int, int], finished: Sequence[int], step: int, size: int, spare: int = 0) -> list[int] | None:
    """`size` of the `finished` groups (in the order they ended) for step `step`, those due soonest first; None: wait.

    `due`: open group -> the step at which it is due, of finished and running ones. What is left must be able to
    reach a step in time: of it, at most `size` times j groups may be due within j steps (earliest deadline first is
    feasible exactly then), `spare` of them aside, which may be given up.
    """
    if len(finished) < size:
        return None
    taken = sorted(finished, key=due.__getitem__)[:size]
    left = Counter(due.values())  # asked at each play's end, with all that are under way: a look at every one is dear
    left.subtract(due[group] for group in taken)
    until = 0
    for deadline, groups in sorted(left.items()):
        until += groups
        if groups and until > size * (deadline - step) + spare:
            return None
    return taken


def due_again(groups: Sequence[int], step: int, size: int, spare: int) -> dict[int, int]:
    """When groups are due that were under way when a run was interrupted at `step`: in their order, as early as
    `choose` can have them."""
    return {group: step + max(0, place - spare) // size for place, group in enumerate(sorted(groups))}
