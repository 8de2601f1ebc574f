"""Whether the turns that a learner compares with each other have siblings to be compared with."""

from __future__ import annotations

from collections.abc import Iterator

from configs.methods import comparing
from configs.reading.source import KeyPath
from configs.schema.run import RunConfig, StageConfig
from protocols.base import Protocol
from protocols.kinds.propose_solve import ProposeSolve


def group_problems(config: RunConfig, stage: StageConfig, protocol: Protocol) -> Iterator[tuple[KeyPath, str, str]]:
    """(setting of the stage, message, what would be valid) where groups would have one member: its advantage, and so
    the gradient, would be zero."""
    if stage.plays_per_step % stage.repeats:
        message = f"{stage.plays_per_step} plays are no whole number of groups of {stage.repeats}"
        yield ("plays_per_step",), message, f"a multiple of {stage.repeats}"
    if stage.repeats > 1:
        return
    repeated, batched = repeated_roles(protocol), batched_roles(protocol)
    for name in sorted(updated(config, stage)):
        learner = config.policies[name].learner
        compared = {*repeated} if "turn" in learner.advantage.group_by else repeated | batched
        alone = [role for role, policy in stage.roles.items() if policy == name and role not in compared]
        kind, needs = comparing(learner)
        if alone and "group" in needs and "task" in learner.advantage.group_by:
            message = (
                f"groups of one: {kind} compares the plays of {name!r} as {', '.join(sorted(alone))} with others "
                f"of the same task, and each task is played once"
            )
            without = "turn" if {*alone} <= batched else "task"
            yield ("repeats",), message, f"2 or more, or policies.{name}.learner.advantage.group_by without {without}"


def updated(config: RunConfig, stage: StageConfig) -> list[str]:
    """Trained language models with a role in the stage that it updates."""
    return [name for name in stage.trained(config.policies) if config.policies[name].kind == "lm"]


def repeated_roles(protocol: Protocol) -> set[str]:
    """Roles of the protocols inside this one, where it plays them several times."""
    found: set[str] = set()
    for inner in vars(protocol).values():
        if isinstance(inner, Protocol):
            repeated = getattr(protocol, "repeats", 1) > 1
            found |= set(inner.roles().values()) if repeated else repeated_roles(inner)
    return found


def batched_roles(protocol: Protocol) -> set[str]:
    """Roles that make several proposals at once, each a turn to be compared with the others."""
    return {protocol.role} if isinstance(protocol, ProposeSolve) and protocol.batch > 1 else set()
