"""What a protocol pays, by the rewards that its YAML lists."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from protocols.rewards import belief, form, judged, social, verified
from protocols.rewards.record import _LACKING, REWARDS, Record, RewardTerm, Source
from protocols.types import Reward

__all__ = ["REWARDS", "belief", "form", "judged", "pay", "reward_problems", "social", "verified"]


def pay(terms: Sequence[RewardTerm], record: Record) -> tuple[Reward, ...]:
    """All rewards of a play. The rewards of one turn add up; one with `turn=None` is for the whole episode."""
    paid = []
    for term in terms:
        rule = REWARDS[term.name]
        params = {**rule.params, **term.params} if term.params else rule.params
        for r in rule.pay(record, params):
            if not term.to or r.seat in term.to or record.roles[r.seat] in term.to:
                paid.append(Reward(r.seat, r.turn, r.value * term.weight, r.name))
    return tuple(paid)


def reward_problems(
    terms: Sequence[RewardTerm], has: set[Source], roles: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Mistakes in a `rewards:` list of a protocol that has these sources and seats, as (path, message)."""
    found = []
    possible = sorted(name for name, rule in REWARDS.items() if rule.needs in has)
    addressees = sorted({*roles, *roles.values()})
    for i, term in enumerate(terms):
        rule = REWARDS.get(term.name)
        if rule is None:
            found.append(
                (f"rewards.{i}.name", f"unknown reward {term.name!r}; valid here: {', '.join(possible)}")
            )
            continue
        if rule.needs not in has:
            message = (f"reward {term.name!r} needs {_LACKING[rule.needs]}, which this protocol does not have; "
                       f"valid here: {', '.join(possible)}")  # fmt: skip
            found.append((f"rewards.{i}.name", message))
        for key in sorted(set(term.params) - set(rule.params)):
            valid = ", ".join(rule.params) or "none"
            found.append(
                (f"rewards.{i}.params.{key}", f"{term.name!r} has no setting {key!r}; valid: {valid}")
            )
        for key, param in rule.settings.items():
            if not param.valid(term.params.get(key, param.default)):
                found.append((f"rewards.{i}.params.{key}", f"must be {param.says}"))
        if not math.isfinite(term.weight) or term.weight == 0.0:
            found.append((f"rewards.{i}.weight", "must be finite and not 0"))
        for who in term.to:
            if who not in addressees:
                found.append((f"rewards.{i}.to", f"no seat or role {who!r}; valid: {', '.join(addressees)}"))
    return found
