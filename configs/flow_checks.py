"""What is wrong with which plays of a stage are to train: filters that would drop all of them, or what others need."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from configs.group_checks import updated
from configs.schema import PREFERENCE_LOSSES, AdvantageConfig, PolicyConfig, RunConfig, StageConfig
from configs.source import KeyPath
from protocols.base import Protocol
from protocols.propose_solve import ProposeSolve

Problem = tuple[KeyPath, str, str]
"""(setting, message, what would be valid)"""
COMPARED = ("grpo", "dr_grpo", "rloo", "reinforce_pp_baseline", *PREFERENCE_LOSSES)
"""Advantages and losses that learn nothing from a group in which all rewards are alike."""
GROUP = tuple(AdvantageConfig().group_by)
"""What `actors.filters.alike` compares within."""


def flow_problems(config: RunConfig, protocols: Mapping[str, Protocol | None]) -> Iterator[Problem]:
    """`protocols`: name -> protocol, None for those that could not be built."""
    for name, stage in config.stages.items():
        if config.deterministic and stage.oversample > 1:
            message = "which plays end first depends on time (deterministic: true)"
            yield ("stages", name, "oversample"), message, "1"
        if stage.keep is not None:
            yield from _keep(config, stage, protocols.get(stage.protocol), ("stages", name, "keep"))


def _keep(config: RunConfig, stage: StageConfig, protocol: Protocol | None, path: KeyPath) -> Iterator[Problem]:
    assert stage.keep is not None
    band = stage.keep.solve_rate
    if not stage.keep.signal and not band:
        yield path, "keeps every group", "signal: true, solve_rate: [0.3, 0.8], or both"
        return
    if band and (len(band) != 2 or not 0 <= band[0] <= band[1] <= 1):
        yield (*path, "solve_rate"), f"{band} is no range of solve rates", "[least, most], both from 0 to 1"
    elif band == [0, 1]:
        yield (*path, "solve_rate"), "has no effect: every solve rate lies in [0, 1]", "a narrower range"
    if stage.repeats < 2 and protocol is not None and not _repeats(protocol):
        message = f"a group is one play of {stage.protocol!r}, and there is nothing to compare"
        yield path, message, "stages.NAME.repeats: 2 or more"
    for name in updated(config, stage):
        roles = {role for role, policy in stage.roles.items() if policy == name}
        proposing = isinstance(protocol, ProposeSolve) and roles - {*protocol.child.roles().values()}
        if proposing:
            message = f"policy {name!r} is paid for proposals, and would never learn what filtered ones are worth"
            yield path, message, "train: [the solver], and the proposer in a stage of its own"
        elif stage.keep.signal and (found := _learns_from_alike(config.policies[name])):
            yield (*path, "signal"), f"policy {name!r} learns from rewards that are alike too: {found[0]}", found[1]


def _learns_from_alike(policy: PolicyConfig) -> tuple[str, str] | None:
    """(why a group of equal rewards teaches this policy something, what would be valid)"""
    learner = policy.learner
    kind = learner.advantage.kind if learner.signal.kind == "advantage" else learner.signal.kind
    kind = learner.loss.kind if learner.loss.kind in PREFERENCE_LOSSES else kind
    if kind not in COMPARED:
        return f"{kind} does not compare the members of a group with each other", ", ".join(COMPARED)
    missing = [part for part in GROUP if part not in learner.advantage.group_by]
    if missing:
        return f"its group_by lacks {', '.join(missing)}, so that others are compared", ", ".join(GROUP)
    return None


def _repeats(protocol: Protocol) -> bool:
    """Whether one play of it plays the same task several times."""
    return isinstance(protocol, ProposeSolve) and protocol.repeats > 1
