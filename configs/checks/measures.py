"""What keeps an exact measurement from being made: the minimax ceiling, and NashConv."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from configs.reading.source import KeyPath
from configs.schema.run import ArmConfig, RunConfig
from protocols.base import Protocol

Problem = tuple[KeyPath, str, str]
"""(setting, message, what would be valid)"""


def measure_problems(config: RunConfig, protocols: Mapping[str, Protocol | None]) -> Iterator[Problem]:
    """`protocols`: name -> protocol, None for those that could not be built."""
    for name, arm in config.eval.arms.items():
        if arm.measure == "nash_conv":
            yield from _nash_conv_problems(config, protocols.get(arm.protocol), arm, ("eval", "arms", name))
    ceiling: Any = protocols.get(config.eval.ceiling)
    if ceiling is not None:
        yield from _ceiling_problems(config, ceiling, config.eval.ceiling)


def _nash_conv_problems(
    config: RunConfig, protocol: Any, arm: ArmConfig, path: KeyPath
) -> Iterator[Problem]:
    """NashConv is of policies whose odds can be read, in a game of which every position can be asked about."""
    for role, name in arm.roles.items():
        if name in config.policies and config.policies[name].kind == "remote":
            yield (*path, "roles", role), f"the odds of remote policy {name!r} cannot be read", "another policy"
    exact_problem = getattr(protocol, "exact_problem", None)
    problem = "it is no game" if exact_problem is None else exact_problem()
    if protocol is not None and problem:
        yield (*path, "measure"), f"protocol {arm.protocol!r}: {problem}", ""


def _ceiling_problems(config: RunConfig, built: Any, protocol: str) -> Iterator[Problem]:
    """The exact search knows one kind of game: reveals before the probabilities of one judge. It is run on the judge of
    the first arm with this protocol, by its own weights."""
    search_problem = getattr(built, "search_problem", None)
    problem = "it has no reveals to search over" if search_problem is None else search_problem()
    if problem:
        yield ("eval", "ceiling"), f"protocol {protocol!r}: {problem}", ""
        return
    arms = [(name, arm) for name, arm in config.eval.arms.items() if arm.protocol == protocol]
    if not arms:
        playing = ", ".join(sorted({arm.protocol for arm in config.eval.arms.values()})) or "none are defined"
        yield ("eval", "ceiling"), f"no arm plays {protocol!r}, whose judge would be searched", playing
        return
    name, arm = arms[0]
    role = built.seats[built.judge.seat]
    policy = config.policies.get(arm.roles.get(role, ""))
    if policy is not None and policy.kind != "lm":
        message = f"the judge is {arm.roles[role]!r} of kind {policy.kind}: no weights to be searched"
        yield ("eval", "arms", name, "roles", role), message, "a policy of kind: lm, or no eval.ceiling"
