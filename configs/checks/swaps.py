"""Where it makes no difference how new weights come to requests under way (`engine.swap`)."""

from __future__ import annotations

from collections.abc import Iterator

from configs.checks.groups import updated
from configs.policies import PAST, group_of
from configs.reading.source import KeyPath
from configs.schema.run import RunConfig


def no_swap(config: RunConfig, name: str) -> Iterator[tuple[str, KeyPath]]:
    """(why `engine.swap` of this policy has no effect, the setting that is to blame). Nothing about policies that have
    no engines of their own: there every setting of the engine is refused."""
    policy, policies = config.policies[name], config.policies
    if policy.kind == PAST:
        yield "on opponent checkpoints: they are exchanged when nobody plays against them", ("policies", name, "kind")
        return
    if policy.kind != "lm" or policy.engine.share:
        return
    learners = {one for one in group_of(policies, name) or [name] if policies[one].trained}
    if not learners:
        yield "on engines whose weights never change: the policy is not trained", ("policies", name, "trained")
        return
    stages = {key: stage for key, stage in config.stages.items() if learners & {*updated(config, stage)}}
    if stages and not any(stage.max_staleness for stage in stages.values()):
        # Between the last play of a step and the new weights no other play begins (actors/rollout/loop.py).
        why = f"with max_staleness: 0 where the policy learns ({', '.join(stages)}): no request is under way then"
        yield why, ("stages", next(iter(stages)), "max_staleness")
