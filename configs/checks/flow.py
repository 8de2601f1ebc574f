"""What is wrong with which tasks a stage plays, and with which of its plays are to train."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from configs.checks.groups import updated
from configs.methods import comparing, comparing_kinds
from configs.reading.source import KeyPath
from configs.schema.run import AdvantageConfig, PolicyConfig, RunConfig, StageConfig
from protocols.base import Protocol
from protocols.kinds.propose_solve import ProposeSolve

Problem = tuple[KeyPath, str, str]
"""(setting, message, what would be valid)"""
GROUP = tuple(AdvantageConfig().group_by)
"""What `actors.rollout.filters.alike` compares within."""


def flow_problems(config: RunConfig, protocols: Mapping[str, Protocol | None]) -> Iterator[Problem]:
    """`protocols`: name -> protocol, None for those that could not be built."""
    for name, stage in config.stages.items():
        protocol = protocols.get(stage.protocol)
        yield from _timed(config, stage, ("stages", name))
        yield from _curriculum(stage, protocol, ("stages", name))
        yield from _carried_over(config, name, ("stages", name, "archive_of"))
        if stage.audit is not None:
            yield from _audit(config, stage, protocols.get(stage.audit.protocol), ("stages", name, "audit"))
        if stage.keep is not None:
            yield from _keep(config, stage, protocol, ("stages", name, "keep"))


def _timed(config: RunConfig, stage: StageConfig, path: KeyPath) -> Iterator[Problem]:
    """What depends on which play ends first."""
    depends = {"oversample": stage.oversample > 1, "distinct": stage.distinct, "audit": stage.audit}
    for key, used in depends.items():
        if used and config.deterministic:
            yield (*path, key), "depends on which plays end first (deterministic: true)", "remove it"


def _curriculum(stage: StageConfig, protocol: Protocol | None, path: KeyPath) -> Iterator[Problem]:
    """Where proposed tasks, replayed ones and real ones come from."""
    settings = {"real": stage.real > 0, "distinct": stage.distinct is not None, "audit": stage.audit is not None}
    for key, used in settings.items():
        if used and protocol is not None and not isinstance(protocol, ProposeSolve):
            yield (*path, key), f"has no effect on a protocol of kind {protocol.kind}", "propose_solve"
    if stage.archive + stage.real > 1:
        message = f"archive {stage.archive:g} and real {stage.real:g} are more than all plays"
        yield (*path, "real"), message, f"0 to {1 - stage.archive:g}"
    if stage.archive_rates:
        yield from _band(stage.archive_rates, (*path, "archive_rates"))


def _carried_over(config: RunConfig, name: str, path: KeyPath) -> Iterator[Problem]:
    """Only a stage that is over by then has an archive to begin with."""
    other = config.stages[name].archive_of
    before = list(config.stages)[: list(config.stages).index(name)]
    if other and other not in before:
        yield path, f"there is no earlier stage {other!r}", ", ".join(before) or "none comes before"


def _band(band: list[float], path: KeyPath) -> Iterator[Problem]:
    if len(band) != 2 or not 0 <= band[0] <= band[1] <= 1:
        yield path, f"{band} is no range of solve rates", "[least, most], both from 0 to 1"
    elif band == [0, 1]:
        yield path, "has no effect: every solve rate lies in [0, 1]", "a narrower range"


def _audit(config: RunConfig, stage: StageConfig, protocol: Protocol | None, path: KeyPath) -> Iterator[Problem]:
    """Who audits must not learn from the very answers, and must be there while the stage is played."""
    assert stage.audit is not None
    if isinstance(protocol, ProposeSolve):
        yield (*path, "protocol"), "would propose tasks of its own instead of answering these", "the child's protocol"
    for role, name in stage.audit.roles.items():
        if name in updated(config, stage):
            message = f"policy {name!r} learns in this stage: it would agree with what it has been taught"
            yield (*path, "roles", role), message, "a policy of its own, frozen or init_from another"
        elif name in config.policies and config.policies[name].kind == "past":
            yield (*path, "roles", role), f"{name!r} is of kind past: its engines play opponents", "another policy"


def _keep(config: RunConfig, stage: StageConfig, protocol: Protocol | None, path: KeyPath) -> Iterator[Problem]:
    assert stage.keep is not None
    band = stage.keep.solve_rate
    if not stage.keep.signal and not band:
        yield path, "keeps every group", "signal: true, solve_rate: [0.3, 0.8], or both"
        return
    if band:
        yield from _band(band, (*path, "solve_rate"))
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
    kind, needs = comparing(learner)
    if "group" not in needs:
        return f"{kind} does not compare the members of a group with each other", ", ".join(comparing_kinds())
    missing = [part for part in GROUP if part not in learner.advantage.group_by]
    if missing:
        return f"its group_by lacks {', '.join(missing)}, so that others are compared", ", ".join(GROUP)
    return None


def _repeats(protocol: Protocol) -> bool:
    """Whether one play of it plays the same task several times."""
    return isinstance(protocol, ProposeSolve) and protocol.repeats > 1
