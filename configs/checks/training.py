"""Whether what is to be trained could learn anything: signals, schedules, trusted slices, judges held out, guards.

Each mistake is (path, message, what would be valid). A protocol of a kind that is not known here is taken to be fine.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from configs.checks.groups import repeated_roles, updated
from configs.methods import SIGNALS, comparing, is_preference
from configs.reading.source import KeyPath
from configs.rehearsal import Rehearsal, Rehearse
from configs.schedule import ALWAYS, due
from configs.schema.run import GuardConfig, PolicyConfig, RunConfig, StageConfig, WarmStartConfig
from protocols.base import Protocol
from protocols.judges.reading import JudgeRules
from protocols.phased.interpreter import Phased

Mistake = tuple[KeyPath, str, str]
Protocols = Mapping[str, Protocol | None]


def training_problems(config: RunConfig, protocols: Protocols, rehearse: Rehearse) -> Iterator[Mistake]:
    for name, stage in config.stages.items():
        yield from _schedule(config, stage, ("stages", name, "update"))
        even = frozenset(role for role, player in stage.roles.items() if _uniform(config, player))
        seen = rehearse(stage.protocol, stage.tasks, "train", even)
        if seen is not None and seen.refusal:
            yield ("stages", name, "protocol"), seen.refusal, ""
        if seen is not None:
            yield from _wordless(config, seen, stage.roles, ("stages", name, "roles"))
            learning = {role for role, policy in stage.roles.items() if policy in updated(config, stage)}
            yield from _even(seen, even, learning & seen.paid, ("stages", name, "roles"))
            for player in updated(config, stage):
                yield from _learns(config, stage, seen, player, ("stages", name, "roles"))
        yield from _held_out(protocols.get(stage.protocol), stage.roles, ("stages", name, "roles"))
    for arm, plays in config.eval.arms.items():
        seen = rehearse(plays.protocol, {}, "heldout", frozenset()) if plays.measure == "score" else None
        if seen is not None and seen.refusal:
            yield ("eval", "arms", arm, "protocol"), seen.refusal, ""
        if seen is not None:
            yield from _wordless(config, seen, plays.roles, ("eval", "arms", arm, "roles"))
        yield from _held_out(protocols.get(plays.protocol), plays.roles, ("eval", "arms", arm, "roles"))
    for name, policy in config.policies.items():
        if policy.kind == "lm" and (policy.trained or policy.warm_start):
            yield from _unread(config, protocols, name, policy)
            yield from _flat(config, protocols, name, policy)
            warm = policy.warm_start
            seen = None if warm is None else rehearse(warm.protocol, warm.tasks, "warm", frozenset())
            if warm is not None and seen is not None:
                yield from _warm(seen, warm, ("policies", name, "warm_start"))
    for i, guard in enumerate(config.guards):
        yield from _guard(config, guard, ("guards", i))


# -- schedules


def _schedule(config: RunConfig, stage: StageConfig, path: KeyPath) -> Iterator[Mistake]:
    there = updated(config, stage)
    for name, update in stage.update.items():
        if name not in there:
            yield (*path, name), f"policy {name!r} is not updated in this stage", ", ".join(there) or "none is"
        elif update.span > update.every:
            yield (*path, name, "span"), f"{update.span} is more than every: {update.every}", f"1 to {update.every}"
        elif stage.steps > 0 and not any(due(update, step) for step in range(stage.steps)):
            last = f"before step {update.until}" if update.until else f"of {stage.steps} steps"
            message = f"policy {name!r} would never be updated: no step from {update.after} on lies {last}"
            yield (*path, name), message, f"after: less than {min(stage.steps, update.until or stage.steps)}"
    begins = min((stage.update.get(name, ALWAYS).after for name in there), default=0)
    if begins:
        yield path, f"every policy is frozen before step {begins}: those plays would teach nobody", "one with after: 0"


# -- signals


def judges(protocol: Protocol) -> Iterator[tuple[Mapping[str, str], JudgeRules]]:
    """(seat -> role, rules) of every judge section, also of the protocols inside this one."""
    if isinstance(protocol, Phased) and protocol.judge is not None:
        yield protocol.seats, protocol.judge
    for inner in vars(protocol).values():
        if isinstance(inner, Protocol):
            yield from judges(inner)


def read_roles(protocol: Protocol) -> dict[str, JudgeRules]:
    """Roles of judges whose probabilities are read: nothing of theirs is sampled."""
    return {
        seats[seat]: rules for seats, rules in judges(protocol) if not rules.samples for seat in rules.seats
    }


def _learns(
    config: RunConfig, stage: StageConfig, seen: Rehearsal, name: str, path: KeyPath
) -> Iterator[Mistake]:
    """A policy that would go through a whole stage without one sample, as far as a rehearsal can tell."""
    roles = {role for role, policy in stage.roles.items() if policy == name}
    if seen.ended == 0:
        return
    if not roles & (seen.read | seen.sampled):
        message = f"policy {name!r} would learn nothing: none of its roles was asked for anything in a rehearsal"
        yield path, message, _names(seen.read | seen.sampled)
        return
    signal = config.policies[name].learner.signal.kind
    if "polls" in SIGNALS.needs(signal):
        learns = f"policy {name!r} learns from the signal {signal}"
        if not roles & seen.read:
            valid = f"a role out of: {', '.join(sorted(seen.read)) or 'none in this protocol'}"
            yield path, f"{learns}, and none of its roles is read", valid
        elif not roles & seen.answered:
            message = f"{learns}, and to none of the questions that it is asked is a right answer known"
            valid = f"a role out of: {', '.join(sorted(seen.answered)) or 'none in this protocol'}"
            yield path, message, valid
    elif not roles & seen.sampled:
        message = f"policy {name!r} would learn nothing: it is only asked for probabilities, and nothing is sampled"
        yield path, message, f"policies.{name}.learner: {{signal: {{kind: truth}}, loss: {{kind: log_score}}}}"
    elif not roles & seen.paid:
        message = f"policy {name!r} would learn nothing: no reward of protocol {stage.protocol!r} is for its roles"
        yield path, message, f"rewards for {', '.join(sorted(roles))}; there are some for: {_names(seen.paid)}"
    elif is_preference(config.policies[name].learner.loss.kind):
        advantage = config.policies[name].learner.advantage
        paired = seen.paired if advantage.credit == "turn" and not advantage.discount else seen.begun
        if not roles & paired:
            message = f"policy {name!r} would learn nothing: no two of its replies that are paid answer the same prompt"
            yield path, message, "a loss of tokens, or a protocol that pays a turn before which nothing is written"


def _even(seen: Rehearsal, even: frozenset[str], roles: set[str], path: KeyPath) -> Iterator[Mistake]:
    """Rewards that rest on the probabilities of a uniform policy alone never differ."""
    blamed = sorted(even & seen.read)
    if blamed and all(len(seen.amounts.get(role, ())) < 2 for role in roles):
        message = f"role {blamed[0]!r} is read, and a uniform policy has even odds always: all rewards would be equal"
        yield (*path, blamed[0]), message, "a policy of another kind"


def _wordless(config: RunConfig, seen: Rehearsal, roles: Mapping[str, str], path: KeyPath) -> Iterator[Mistake]:
    """Uniform policies that are asked for more than a choice."""
    for role, name in roles.items():
        if role in seen.free and _uniform(config, name):
            message = f"role {role!r} is asked for free text, and the uniform policy {name!r} only picks among choices"
            yield (*path, role), message, "a policy of another kind"


def _warm(seen: Rehearsal, warm: WarmStartConfig, path: KeyPath) -> Iterator[Mistake]:
    """A warm start whose teachers could not reply, or would show nothing."""
    if seen.refusal:
        yield (*path, "protocol"), seen.refusal, ""
    elif seen.untaught:
        message = f"role {min(seen.untaught)!r} is asked for free text whose right reply nobody knows"
        yield (*path, "protocol"), message, "a protocol whose turns list their choices or have a right reply"
    met = seen.taught | seen.read | seen.sampled
    for index, role in enumerate(warm.roles if not seen.untaught else ()):
        if role in met - seen.taught:
            message = f"role {role!r} takes no turn that a teacher could show: it is read, and no right answer is known"
            yield (*path, "roles", index), message, _names(seen.taught)


def _uniform(config: RunConfig, name: str) -> bool:
    return name in config.policies and config.policies[name].kind == "uniform"


def _names(roles: Iterable[str]) -> str:
    return ", ".join(sorted(roles)) or "none"


def _flat(config: RunConfig, protocols: Protocols, name: str, policy: PolicyConfig) -> Iterator[Mistake]:
    """Advantages over a hierarchy for a policy that is never on its lower level."""
    learner = policy.learner
    kind, needs = comparing(learner)
    if "parent" not in needs:
        return
    stages = [stage for stage in config.stages.values() if name in updated(config, stage)]
    for stage in stages:
        protocol = protocols.get(stage.protocol)
        if protocol is None or any(stage.roles.get(role) == name for role in repeated_roles(protocol)):
            return
    if stages:
        message = f"{kind} has nothing to nest: policy {name!r} takes no part in sub-plays that are repeated"
        valid = "reinforce_pp_baseline, which is the same without nesting"
        yield ("policies", name, "learner", "advantage", "kind"), message, valid


def _unread(config: RunConfig, protocols: Protocols, name: str, policy: PolicyConfig) -> Iterator[Mistake]:
    """Settings for judges that nothing of this policy's stages reads."""
    path: KeyPath = ("policies", name, "learner")
    learner = policy.learner
    mine = [
        (protocol, {role for role, player in stage.roles.items() if player == name})
        for stage in config.stages.values()
        if (protocol := protocols.get(stage.protocol)) is not None and name in updated(config, stage)
    ]
    if learner.signal.kind == "truth" and learner.signal.consistency and mine:
        read = [(roles, read_roles(protocol)) for protocol, roles in mine]
        orders = {rules.orders for roles, there in read for role, rules in there.items() if role in roles}
        if orders == {"given"}:
            message = "has no effect: the claims are shown in one order only"
            yield (*path, "signal", "consistency"), message, "judge.orders: both in the protocol"
    if learner.trusted < 1.0 and learner.signal.kind != "truth" and not policy.warm_start:
        votes = {
            seats[seat]
            for protocol, roles in mine
            for seats, rules in judges(protocol)
            if rules.votes
            for seat in rules.deciding
        }
        if not any(roles & votes for _, roles in mine):
            message = "has no effect on a policy that learns from no right answers"
            yield (*path, "trusted"), message, "signal: {kind: truth}, or a judge that writes its verdicts"


def _held_out(protocol: Protocol | None, roles: Mapping[str, str], path: KeyPath) -> Iterator[Mistake]:
    """A held-out judge that is the very judge it is to be compared with."""
    for seats, rules in judges(protocol) if protocol is not None else ():
        deciding = {roles.get(seats.get(seat, "")) for seat in rules.deciding} - {None}
        for seat in rules.held_out:
            role = seats.get(seat, "")
            if roles.get(role) in deciding:
                message = f"the held-out judge {seat!r} is policy {roles[role]!r}, which decides: it measures nothing"
                yield (*path, role), message, "a policy of its own, frozen or init_from the judge's"


# -- guards


def _guard(config: RunConfig, guard: GuardConfig, path: KeyPath) -> Iterator[Mistake]:
    for key in ("metric", "against"):
        name = getattr(guard, key)
        if name or key == "metric":
            yield from _figure(config, name, (*path, key))
    if guard.above is None and guard.below is None:
        yield path, "has no bound, so it could never sound", "above, below, or both"
    elif guard.above is not None and guard.below is not None and guard.above <= guard.below:
        yield (*path, "above"), f"{guard.above:g} is not more than below: {guard.below:g}: it would always sound", ""
    if guard.action != "roll_back" and guard.times != GuardConfig.times:
        yield (*path, "times"), f"has no effect with action: {guard.action}", "action: roll_back"
    if guard.action == "roll_back" and not config.track.save_every:
        yield (*path, "action"), "there would be no checkpoint to go back to", "track.save_every: 1 or more"


def _figure(config: RunConfig, name: str, path: KeyPath) -> Iterator[Mistake]:
    """A figure is named by what is measured, where, and its own name."""
    learning = {policy for stage in config.stages.values() for policy in updated(config, stage)}
    measured = {stage.eval_arm for stage in config.stages.values() if stage.eval_every}
    families = {"learner": learning, "rollout": {*config.stages}, "eval": measured}
    family, _, rest = name.partition("/")
    where, _, figure = rest.partition("/")
    if family not in families or not figure:
        yield path, f"{name!r} names no figure", "learner/POLICY/NAME, rollout/STAGE/NAME, eval/ARM/NAME"
    elif where not in families[family]:
        what = {"learner": "updated policy", "rollout": "stage", "eval": "arm measured during training"}[family]
        yield path, f"there is no {what} {where!r}", ", ".join(sorted(families[family])) or "none"
