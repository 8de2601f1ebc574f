"""What serves and trains a policy: itself, the one whose checkpoints it holds, or the one whose processes it shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from configs.schema.run import (
    OPPONENT_RULES,
    EngineConfig,
    LearnerConfig,
    OpponentsConfig,
    PolicyConfig,
    StageConfig,
)

PAST = "past"


def as_served(policies: Mapping[str, PolicyConfig], policy: PolicyConfig) -> PolicyConfig:
    """What the engines of a policy serve: of opponent checkpoints, the model and sampling of the policies they were."""
    origin = policies.get(policy.of[0]) if policy.kind == PAST and policy.of else None
    if origin is None:
        return policy
    return replace(origin, engine=policy.engine, trained=False, warm_start=None, init_from="")


def rules_of(opponents: OpponentsConfig) -> dict[str, float]:
    """The shares of the mix that are opponent checkpoints."""
    return {rule: share for rule, share in opponents.mix.items() if rule in OPPONENT_RULES and share > 0}


def opponents_in(stage: StageConfig) -> list[str]:
    """Policies that play in a stage without having a role: opponents, and those who audit."""
    auditors = [] if stage.audit is None else [*stage.audit.roles.values()]
    opponents = stage.opponents
    return auditors if opponents is None else [*filter(None, [opponents.past]), *opponents.fixed, *auditors]


RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM takes as max_lora_rank (vllm/config/lora.py)."""


def group_of(policies: Mapping[str, PolicyConfig], host: str) -> list[str]:
    """The policies that the engines of `host` serve, itself first; none where nobody shares them."""
    guests = [name for name, policy in policies.items() if policy.kind == "lm" and policy.engine.share == host]
    return [host, *guests] if guests else []


def adapter_of(policies: Mapping[str, PolicyConfig], name: str) -> str:
    """Under which name shared engines know the adapter of a policy; "" for one that plays with the base as it is."""
    policy = policies.get(name)
    shared = policy is not None and bool(group_of(policies, policy.engine.share or name))
    return name if shared and policy is not None and policy.trained else ""


def with_adapters(policies: Mapping[str, PolicyConfig], host: str, engine: EngineConfig) -> EngineConfig:
    """The engine of `host` with room for the adapters of its group, and one more: without an empty one, vLLM 0.32 gives
    requests without adapter the last one's."""
    learners = [policies[name].learner for name in group_of(policies, host) if adapter_of(policies, name)]
    ranks = [learner.lora.rank for learner in learners if learner.lora is not None]
    if not ranks:
        return engine
    most = next(rank for rank in RANKS if rank >= max(ranks))
    own = {"enable_lora": True, "max_loras": len(ranks) + 1, "max_lora_rank": most}
    return replace(engine, extra={**own, **engine.extra})


def apart(policies: Mapping[str, PolicyConfig]) -> dict[str, PolicyConfig]:
    """The same policies, each with engines of its own: for merged weights, of which an engine holds one set."""
    hosts = {name: policies[policy.engine.share or name].engine for name, policy in policies.items()}
    return {name: replace(policy, engine=hosts[name]) for name, policy in policies.items()}


OF_THE_PROCESS = ("ranks", "device", "gpus", "dtype", "zero_stage", "offload", "threads")
"""Settings of a learner that all learners in the same processes have in common."""


def learner_of(policies: Mapping[str, PolicyConfig], name: str) -> LearnerConfig:
    """The learner of a policy, with the settings of the processes that it shares."""
    learner = policies[name].learner
    if not learner.share:
        return learner
    host = policies[learner.share].learner
    return replace(learner, **{field: getattr(host, field) for field in OF_THE_PROCESS})
