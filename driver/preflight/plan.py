"""What a run would do, before anything starts: who plays what, on which devices, with how much work."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from configs.machine import Machine, Need, needs, peak
from configs.memory import parameters
from configs.policies import as_served
from configs.schedule import says
from configs.schema.run import ModelConfig, PolicyConfig, RemoteConfig, RunConfig, StageConfig
from protocols.base import Answer, Protocol, SubPlay
from protocols.kinds.propose_solve import ProposeSolve
from protocols.types import Domain, Hidden, Outcome, Reply, Task, TurnRequest

if TYPE_CHECKING:
    from rich.console import RenderableType

Requests = Mapping[str, int]
"""role -> generations in one root play."""


@dataclass(frozen=True, slots=True)
class PolicyPlan:
    """One policy with the processes that serve and train it."""

    name: str
    roles: tuple[str, ...]
    model: str
    parameters: int | None
    trained: bool
    needs: tuple[Need, ...]
    key: str = ""
    """Remote policies: whether the API key is there."""
    share: str = ""
    """Whose engines it uses."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage of training, or one measurement or the audits of a stage (then `steps` is 0)."""

    name: str
    protocol: str
    steps: int
    plays: int
    """Root plays in all."""
    requests: Requests | None
    """Per play; None where a dry play with made-up replies cannot tell."""
    trains: tuple[str, ...]

    @property
    def total(self) -> int | None:
        """Generations in all."""
        return None if self.requests is None else self.plays * sum(self.requests.values())


@dataclass(frozen=True, slots=True)
class Plan:
    """`memory` and `gpus`: the most held at once, bytes and devices (configs/machine.py, `peak`)."""

    policies: tuple[PolicyPlan, ...]
    stages: tuple[StagePlan, ...]
    arms: tuple[StagePlan, ...]
    machine: Machine
    memory: int
    gpus: float


def make_plan(config: RunConfig, protocols: Mapping[str, Protocol], machine: Machine) -> Plan:
    """The plan of a checked configuration."""
    found = needs(config, machine)
    policies = tuple(_policy(config, name, policy, found) for name, policy in config.policies.items())
    counts = {name: count_requests(protocol) for name, protocol in protocols.items()}
    stages = []
    for name, stage in config.stages.items():
        chosen = stage.trained(config.policies)
        when = {name: says(stage.update[name]) for name in chosen if name in stage.update}
        trains = tuple(f"{name} ({when[name]})" if when.get(name) else name for name in chosen)
        plays = stage.steps * stage.plays_per_step
        stages.append(StagePlan(name, stage.protocol, stage.steps, plays, counts[stage.protocol], trains))
    arms = tuple(
        StagePlan(name, arm.protocol, 0, arm.episodes, counts[arm.protocol], ())
        if arm.measure == "score" else StagePlan(name, arm.protocol, 0, 0, {}, ())
        for name, arm in config.eval.arms.items()
    )
    arms += tuple(
        _audits(name, stage, protocols[stage.protocol], counts) for name, stage in config.stages.items() if stage.audit
    )
    memory = int(peak(found, "cpu", "memory"))
    return Plan(policies, tuple(stages), arms, machine, memory, peak(found, "cuda", "gpus"))


def _audits(
    name: str, stage: StageConfig, protocol: Protocol, counts: Mapping[str, Requests | None]
) -> StagePlan:
    """The audits of a stage, on average: a share of the real tasks and of the proposals, were all of them valid.
    Replays are not audited (actors/rollout/loop.py)."""
    assert stage.audit is not None and isinstance(protocol, ProposeSolve)
    audited = stage.real + (1 - stage.archive - stage.real) * protocol.batch
    plays = round(stage.audit.share * stage.steps * stage.plays_per_step * audited)
    return StagePlan(f"audit@{name}", stage.audit.protocol, 0, plays, counts[stage.audit.protocol], ())


def _policy(config: RunConfig, name: str, policy: PolicyConfig, found: list[Need]) -> PolicyPlan:
    bound = [s.roles for s in config.stages.values()] + [a.roles for a in config.eval.arms.values()]
    bound += [s.audit.roles for s in config.stages.values() if s.audit]
    roles = tuple(dict.fromkeys(role for roles in bound for role, player in roles.items() if player == name))
    own = tuple(need for need in found if need.policy == name)
    if policy.kind == "uniform":
        return PolicyPlan(name, roles, "uniform", 0, False, own)
    if policy.kind == "remote":
        host = urlsplit(policy.remote.url).netloc
        return PolicyPlan(
            name, roles, f"{policy.remote.model} at {host}", 0, False, own, key_state(policy.remote)
        )
    if policy.kind == "past":
        model = as_served(config.policies, policy).model
        seats = [s.opponents.seats for s in config.stages.values() if s.opponents and s.opponents.past == name]
        taken = tuple(dict.fromkeys([*roles, *(seat for some in seats for seat in some)]))
        return PolicyPlan(name, taken, f"past {', '.join(policy.of)}", parameters(model), False, own)
    size, share = parameters(policy.model), policy.engine.share
    return PolicyPlan(name, roles, _model(policy.model), size, policy.trained, own, share=share)


def key_state(remote: RemoteConfig) -> str:
    """Whether the key of a remote policy is set, in words."""
    if not remote.api_key_env:
        return "no key is sent"
    state = "is set" if os.environ.get(remote.api_key_env) else "is NOT set: train will refuse to start"
    return f"key: {remote.api_key_env} {state}"


def _model(model: ModelConfig) -> str:
    return model.path or f"tiny {model.arch}, {model.layers} x {model.hidden_size}"


def count_requests(protocol: Protocol, seed: int = 0) -> Requests | None:
    """role -> generations in one play, found by a dry play with made-up replies on a made-up task.

    None where the protocol makes nothing of such replies.
    """
    counts: Counter[str] = Counter()
    roles = tuple(protocol.roles().values())
    hidden = {name: Hidden("hidden", roles) for name in _hidden_names(protocol)}
    try:
        outcome = _dry_play(protocol, replace(_DRY_TASK, hidden=hidden), random.Random(seed), counts)
    except (ValueError, LookupError):
        return None  # it needs replies or tasks with a meaning
    return dict(counts) if outcome.status == "ok" else None


def _hidden_names(part: object) -> set[str]:
    """Names of the hidden material that the definition of a protocol mentions anywhere."""
    if isinstance(part, (list, tuple)):
        return {name for item in part for name in _hidden_names(item)}
    if isinstance(part, dict):
        return _hidden_names(list(part.values()))
    if not is_dataclass(part):
        return set()
    own = {*getattr(part, "hidden", ()), *getattr(part, "quotes", ()), *getattr(part, "share", ())}
    return own.union(*(_hidden_names(getattr(part, field.name)) for field in fields(part)))


def _dry_play(protocol: Protocol, task: Task, rng: random.Random, counts: Counter[str]) -> Outcome:
    def answer(ask: TurnRequest | SubPlay) -> Answer:
        if isinstance(ask, SubPlay):
            return _dry_play(ask.protocol, ask.task, random.Random(ask.seed), counts)
        counts[ask.role] += 1
        even = tuple(1 / len(ask.choices) for _ in ask.choices)
        return Reply(rng.choice(ask.choices) if ask.choices else "some words", even if ask.read else ())

    play = protocol.play(task, rng)
    try:
        asks = next(play)
        while True:
            asks = play.send([answer(ask) for ask in asks])
    except StopIteration as stop:
        outcome: Outcome = stop.value
        return outcome


class _DryDomain(Domain):
    def derive(self, task: Task, proposal: str) -> Task:
        return task

    def check(self, task: Task, answer: str) -> bool:
        return True


_DRY_TASK = Task(
    id="dry", question="question", answer="yes", choices=("yes", "no"),
    evidence=tuple(f"statement{i}" for i in range(64)), proposals=("proposal",), domain=_DryDomain(),
)  # fmt: skip


def render(plan: Plan) -> RenderableType:
    """The plan as tables for a terminal."""
    from rich.console import Group

    machine = plan.machine
    gpu = f" of {_gib(machine.gpu_memory)}" if machine.gpu_memory else ""
    there = f"This machine: {machine.cpus} cores, {_gib(machine.memory)} memory, {machine.gpus} GPUs{gpu}."
    asked = f"The run holds about {_gib(plan.memory)} of memory and {plan.gpus:g} GPUs at once."
    parts: list[RenderableType] = [_policy_table(plan)]
    if plan.stages:
        parts.append(_work_table("stages", plan.stages))
    if plan.arms:
        parts.append(_work_table("measurements", plan.arms))
    return Group(*parts, there, asked)


def _policy_table(plan: Plan) -> RenderableType:
    from rich.table import Table

    table = Table(title="policies", title_justify="left")
    for column in ("policy", "roles", "model", "parameters", "processes"):
        table.add_column(column, justify="right" if column == "parameters" else "left")
    for policy in plan.policies:
        size = "" if not policy.parameters else _count(policy.parameters)
        idle = "played in the driver" if policy.model == "uniform" else "nothing to do"
        shared = [f"engine: that of {policy.share}"] if policy.share else []
        processes = policy.key or "\n".join([*shared, *(_need(need) for need in policy.needs)]) or idle
        roles = ", ".join(policy.roles) or "none"
        size = "unknown" if policy.parameters is None else size
        name = policy.name + (" (trained)" if policy.trained else "")
        table.add_row(name, roles, policy.model, size, processes)
    return table


def _work_table(title: str, rows: tuple[StagePlan, ...]) -> RenderableType:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    training = title == "stages"
    steps = ["steps"] if training else []
    for column in ("name", "protocol", *steps, "plays", "requests per play", "requests"):
        table.add_column(column, justify="right" if column in ("steps", "plays", "requests") else "left")
    if training:
        table.add_column("trains")
    for row in rows:
        each = "depends on the replies"
        if row.requests is not None:
            each = ", ".join(f"{role} {count}" for role, count in row.requests.items())
        total = "?" if row.total is None else f"{row.total:,}"
        count = [str(row.steps)] if training else []
        trains = [", ".join(row.trains)] if training else []
        table.add_row(row.name, row.protocol, *count, f"{row.plays:,}", each, total, *trains)
    return table


def _need(need: Need) -> str:
    times = f"{need.count} x " if need.count > 1 else ""
    gpus = f" {need.gpus:g}" if need.gpus else ""
    memory = f", {_gib(need.memory)}" if need.memory else ""
    return f"{times}{need.part}: {need.device}{gpus}{memory}"


def _count(parameters: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if parameters >= size / 10:
            return f"{parameters / size:.2f}{unit}"
    return f"{parameters:,}"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
