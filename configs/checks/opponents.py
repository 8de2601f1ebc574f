"""Opponent checkpoints and other opponents: what is wrong with their settings, and what serves them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from configs.policies import PAST, rules_of
from configs.schema.run import OPPONENT_RULES, OpponentsConfig, PolicyConfig, RunConfig, StageConfig
from protocols.base import Protocol

Problem = tuple[str, str, str]
"""(setting, message, what would be valid)"""
USED = ("kind", "of", "engine")
"""What a policy of kind past has settings for; the rest is that of the policies it is of."""
_PAST_ONLY = ("past", "against", "every", "keep", "redraw_every")


def past_problems(config: RunConfig, name: str) -> Iterator[Problem]:
    """Mistakes in a policy of kind past."""
    policies, policy = config.policies, config.policies[name]
    if not any(stage.opponents is not None and stage.opponents.past == name for stage in config.stages.values()):
        yield "kind", "has no opponent checkpoints: no stage has it among its opponents", "stages.NAME.opponents.past"
    learners = [other for other, found in policies.items() if found.kind == "lm" and found.trained]
    if not policy.of:
        yield "of", "names no policy whose opponent checkpoints it plays", _list(learners)
    for index, other in enumerate(policy.of):
        if other not in learners:
            yield f"of.{index}", f"{other!r} is no trained policy: it has no past", _list(learners)
        elif policy.of[0] in learners and not _alike(policies[other], policies[policy.of[0]]):
            valid = f"model: ${{policies.{policy.of[0]}.model}}"
            yield f"of.{index}", f"{other!r} has another model than {policy.of[0]!r}: engines hold one", valid
    engines = [f"{name}.{index}" for index in range(policy.engine.replicas)]
    for clash in sorted(set(engines) & set(policies)):
        yield "", f"its engines are called {', '.join(engines)}, and there is a policy {clash!r}", "another name"


def _alike(one: PolicyConfig, other: PolicyConfig) -> bool:
    """Whether the weights of both fit the same engine."""
    return replace(one.model, seed=0) == replace(other.model, seed=0)


def idle(opponents: OpponentsConfig) -> Iterator[tuple[str, str]]:
    """(setting, why it has no effect)"""
    rules = rules_of(opponents)
    yield from ((key, "without opponent checkpoints in the mix") for key in _PAST_ONLY if not rules)
    if "pfsp" not in rules:
        yield "power", "without pfsp in the mix"
    if not opponents.mix.get("fixed"):
        yield "fixed", "without fixed in the mix"


def opponents_problems(config: RunConfig, stage: StageConfig, protocol: Protocol | None) -> Iterator[Problem]:
    """Mistakes in the opponents of a stage, below the stage."""
    for role, name in stage.roles.items():
        if name in config.policies and config.policies[name].kind == PAST:
            message = f"{name!r} is of kind past: it takes a seat of the opponents, and in eval.arms a role"
            yield f"roles.{role}", message, f"opponents: {{past: {name}}}"
    arm = config.eval.arms.get(stage.eval_arm) if stage.eval_every else None
    for name in arm.roles.values() if arm else ():
        if name in config.policies and config.policies[name].kind == PAST:
            message = f"{name!r} plays in it: while it has opponent checkpoints, their engines cannot be measured"
            yield "eval_arm", message, "an arm without opponent checkpoints"
    if stage.opponents is not None:
        for key, message, valid in _opponents(stage, stage.opponents, config.policies, protocol):
            yield f"opponents.{key}", message, valid


def _opponents(
    stage: StageConfig, opponents: OpponentsConfig, policies: Mapping[str, PolicyConfig], protocol: Protocol | None
) -> Iterator[Problem]:
    valid = ("self", "fixed", *OPPONENT_RULES)
    for rule, share in opponents.mix.items():
        if rule not in valid:
            yield f"mix.{rule}", "there is no such opponent", ", ".join(valid)
        elif share < 0:
            yield f"mix.{rule}", f"{share:g} is out of range", "0 or more"
    if not sum(share for rule, share in opponents.mix.items() if rule != "self") > 0:
        yield "mix", "has nobody but oneself: opponents have no effect", "a share above 0 of " + ", ".join(valid[1:])
    if rules_of(opponents):
        yield from _past(opponents, policies)
    if opponents.mix.get("fixed", 0) > 0:
        yield from _fixed(opponents, policies)
    if protocol is not None:
        yield from _seats(stage, opponents, policies, protocol)


def _past(opponents: OpponentsConfig, policies: Mapping[str, PolicyConfig]) -> Iterator[Problem]:
    there = [name for name, policy in policies.items() if policy.kind == PAST]
    if opponents.past not in there:
        message = f"{opponents.past!r} is no policy of kind past" if opponents.past else "names no policy of kind past"
        yield "past", message, _list(there)
        return
    for index, name in enumerate(opponents.against):
        if name not in policies[opponents.past].of:
            valid = _list(policies[opponents.past].of)
            yield f"against.{index}", f"{opponents.past!r} has no opponent checkpoints of {name!r}", valid


def _fixed(opponents: OpponentsConfig, policies: Mapping[str, PolicyConfig]) -> Iterator[Problem]:
    there = [name for name, policy in policies.items() if policy.kind != PAST and not policy.trained]
    if not opponents.fixed:
        yield "fixed", "names no policy", _list(there)
    for index, name in enumerate(opponents.fixed):
        if name not in there:
            yield f"fixed.{index}", f"{name!r} is no policy that stays as it is", _list(there)


def _seats(
    stage: StageConfig, opponents: OpponentsConfig, policies: Mapping[str, PolicyConfig], protocol: Protocol
) -> Iterator[Problem]:
    roles = protocol.roles()
    trained = stage.trained(policies)
    learners = {seat for seat, role in roles.items() if stage.roles.get(role) in trained}
    if not opponents.seats:
        yield "seats", "names no seat that an opponent takes", _list(roles)
    for index, seat in enumerate(opponents.seats):
        if seat not in roles:
            yield f"seats.{index}", f"protocol {stage.protocol!r} has no seat {seat!r}", _list(roles)
        elif not learners - {seat}:
            yield f"seats.{index}", f"with an opponent as {seat!r} nobody is left who learns", _list(learners)


def cross_play_problems(config: RunConfig) -> Iterator[Problem]:
    """Mistakes in `eval.cross_play`, below `eval`."""
    name = config.eval.cross_play
    there = [key for key, stage in config.stages.items() if stage.opponents is not None and rules_of(stage.opponents)]
    if name not in there:
        yield "cross_play", f"{name!r} is no stage with opponent checkpoints among its opponents", _list(there)
        return
    opponents = config.stages[name].opponents
    assert opponents is not None
    if len(opponents.seats) != 2:
        message = f"opponent checkpoints play each other in two seats, and stages.{name}.opponents.seats has"
        yield "cross_play", f"{message} {len(opponents.seats)}", "a stage with two"
    past = config.policies.get(opponents.past)
    if past is not None and past.engine.replicas < 2:
        message = f"two opponent checkpoints at once need two engines, {opponents.past!r} has one"
        yield "cross_play", message, f"policies.{opponents.past}.engine.replicas: 2"


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none are defined"
