"""Supervised warm starts: what a run does before anyone plays for rewards. Functions of a `Run` (driver/run.py).

Policies learn side by side, each from plays by teachers. Most of the start of an engine or a learner is imports:
they start meanwhile where they can.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from typing import Any

from actors.concurrency import gather_or_cancel
from actors.players.base import Seated, UniformPlayer
from actors.rollout.loop import play_all, trusted_task
from actors.system import on_gpu
from configs.load import load_task_source
from configs.policies import group_of
from configs.schema.run import PolicyConfig, RunConfig, StageConfig, WarmStartConfig
from driver.run import Run, Stopped
from learners.credit.samples import imitation_samples
from learners.ranks.group import resolve_device
from learners.types import Sample
from reporting.console import Progress


async def warm_starts(run: Run) -> None:
    """SFT of every policy that asks for it, side by side; then those that start from another's result. Meanwhile what
    waits for nobody's lessons starts."""
    policies = {name: policy for name, policy in run.config.policies.items() if policy.kind == "lm"}
    warmed = [name for name, policy in policies.items() if policy.warm_start is not None]
    here = [name for name in warmed if resolve_device(policies[name].learner) == "cpu"]
    await gather_or_cancel([run.learner(name) for name in here])  # before all else: the lessons wait for them
    await gather_or_cancel([*(_warm_and_serve(run, name) for name in warmed), _start_ahead(run, bool(warmed))])
    for name, policy in policies.items():
        if policy.init_from:
            run.models[name] = run.models[policy.init_from]


async def _warm_and_serve(run: Run, name: str) -> None:
    await warm_start(run, name)
    if name in players(run.config) and can_start_ahead(run.config.policies, name):
        await run.serve([name])


async def _start_ahead(run: Run, taught: bool) -> None:
    """Engines and learners that start on untrained weights: the engines of the first stage or, where others are being
    taught meanwhile, of all stages and one after another, since teaching needs the cores as well. `plan` counts all of
    them as held at once."""
    policies = run.config.policies
    await run.serve(name for name in unwarmed(run.config) if not (taught and can_start_ahead(policies, name)))
    for stage in run.config.stages.values() if taught else ():
        for name in unwarmed(run.config, stage):
            if can_start_ahead(policies, name):
                await run.serve([name])
        for name in run.trained_in(stage):
            if name in unwarmed(run.config, stage) and resolve_device(policies[name].learner) == "cpu":
                await run.learner(name)


def players(config: RunConfig, stage: StageConfig | None = None) -> list[str]:
    """Who plays in a stage. None: in the first one."""
    stage = stage or next(iter(config.stages.values()), StageConfig())  # none: a config that only measures
    return list(dict.fromkeys(stage.roles.values()))


def unwarmed(config: RunConfig, stage: StageConfig | None = None) -> list[str]:
    """The players of a stage (None: the first one) that start on weights nobody has trained."""
    policies = {name: config.policies[name] for name in players(config, stage)}
    return [name for name, policy in policies.items() if policy.warm_start is None and not policy.init_from]


def can_start_ahead(policies: Mapping[str, PolicyConfig], name: str) -> bool:
    """Whether an engine may start while warm starts run: not where one of them may need its GPU, or others its base."""
    policy = policies[name]
    return policy.kind == "lm" and not (policy.engine.share or group_of(policies, name) or on_gpu(policy.engine))


async def warm_start(run: Run, name: str) -> None:
    """SFT on plays by teachers: the right reply where the protocol knows it, else a random legal one. The
    learning rate rises over the first twentieth of the steps, holds, and falls to zero over the last half."""
    warm = run.config.policies[name].warm_start
    assert warm is not None
    learner = await run.learner(name)
    taught = lessons(run, name, warm)
    running: asyncio.Future[Any] | None = None
    for step in range(1, warm.steps + 1):
        batch = [await anext(taught) for _ in range(warm.batch)]  # while the learner takes the last one
        if running is not None:
            _warmed(run, name, step - 1, await running)
        if run.stop.is_set():
            raise Stopped
        lr = warm.lr * min(1.0, 20 * step / warm.steps, 2 * (warm.steps - step + 1) / warm.steps)
        running = asyncio.ensure_future(learner.step(batch, loss="sft", lr=lr))
        await asyncio.sleep(0)
    if running is not None:
        _warmed(run, name, warm.steps, await running)
    run.models[name] = str(run.dir / "models" / name / "warm")
    await learner.save_hf(run.models[name])
    if run.config.policies[name].trained:
        await learner.reset_optimizer()
    else:
        run.dismiss(name)


def _warmed(run: Run, name: str, step: int, metrics: dict[str, float]) -> None:
    run.tracker.log(f"warm/{name}", step, metrics)
    steps = run.config.policies[name].warm_start.steps  # type: ignore[union-attr]
    if step % 50 == 0 or step == steps:
        run.tracker.screen.progress(Progress(f"warm {name}", step, steps, metrics={"loss": metrics["loss"]}))


async def lessons(run: Run, name: str, warm: WarmStartConfig) -> AsyncIterator[Sample]:
    """Sequences to imitate, without end."""
    protocol = run.protocols[warm.protocol]
    teacher = UniformPlayer(run.codecs[name], run.config.seed, teacher=True)
    other = UniformPlayer(None, run.config.seed + 1, teacher=True)  # no trace: nobody learns from it
    roles = set(protocol.roles().values())
    seeded = run.config.deterministic
    teachers = {role: Seated("teacher", teacher if role in warm.roles else other, seeded) for role in roles}
    rng = random.Random(f"{run.config.seed}/warm/{name}")
    source = load_task_source(run.config.tasks, warm.tasks)
    trusted = run.config.policies[name].learner.trusted
    while True:
        tasks = [trusted_task(source, protocol, rng, trusted) for _ in range(warm.batch)]
        kept: list[Sample] = []
        for play in await play_all(protocol, tasks, teachers, "warm", seed=rng.randrange(2**31)):
            samples = imitation_samples(play, warm.roles)
            kept += rng.sample(samples, min(warm.per_play, len(samples))) if warm.per_play else samples
        rng.shuffle(kept)
        for sample in kept:
            yield sample
