"""What a run measures on held-out tasks: arms, the points of a stage's curve, the exact ceiling.

Functions of a `Run` (driver/run.py), which keeps what they find: `run.accuracy` and `run.buckets`.
"""

from __future__ import annotations

import os
import random

from actors.evaluation.arms import arm_metrics, heldout_tasks, play_arm, score, score_by
from actors.evaluation.ceiling import ceiling
from actors.evaluation.nash import average_nash_conv, nash_conv, strategy
from configs.schema.run import ArmConfig, StageConfig
from driver.league import arm_with_past, cross_play, each_past, plays_past
from driver.run import Run
from learners.models.scorer import ChoiceScorer
from protocols.types import Episode

EVAL_SEED = 20_240_601
"""Held-out tasks and their draws are the same in every run and arm, so that arms are compared on equal terms."""


async def measure_arms(run: Run, when: str) -> None:
    """Plays the evaluation arms of this moment on held-out tasks; those measured before the run was resumed stand."""
    for name, arm in run.config.eval.arms.items():
        if arm.when == when and arm.measure == "nash_conv":
            await run.or_stop(measure_exact(run, name, arm))
            run.tracker.screen.note(f"{name}: NashConv {run.exact[name][str(run.updates)]:.4f}")
        elif arm.when == when and name not in run.accuracy:
            plays = await run.or_stop(heldout_plays(run, name, arm, arm.episodes))
            run.accuracy[name] = score(plays, run.source.cluster).as_dict()
            run.buckets[name] = score_by(plays, run.source.bucket)
            run.health[name] = arm_metrics(plays)
            run.tracker.log(f"eval/{name}", run.updates, run.accuracy[name] | run.health[name])
            run.tracker.screen.note(f"{name}: {run.accuracy[name]['mean']:.3f} of {len(plays)} held-out plays")


async def measure_end(run: Run) -> None:
    """All that is measured when the stages are over; the ceiling last, since it ends the engines."""
    await measure_arms(run, "end")
    await cross_play(run, EVAL_SEED)
    await measure_ceiling(run)


async def heldout_plays(run: Run, name: str, arm: ArmConfig, episodes: int) -> list[list[Episode]]:
    """Held-out plays of an arm, recorded but never trained on."""
    await run.serve(arm.roles.values())
    tasks = heldout_tasks(run.source, run.protocols[arm.protocol], episodes, EVAL_SEED)
    if plays_past(run, arm):
        plays = await arm_with_past(run, name, arm, tasks, EVAL_SEED)
    else:
        players = run.system.players(arm.roles, arm.temperature)
        plays = await play_arm(run.protocols[arm.protocol], tasks, players, name, EVAL_SEED)
    for play in plays:
        run.ledger.commit(play[0].id, play, train=False)
    return plays


async def measure_progress(run: Run, stage: StageConfig) -> None:
    """A small evaluation during training: a point of the curve."""
    arm = run.config.eval.arms[stage.eval_arm]
    if arm.measure == "nash_conv":
        await measure_exact(run, stage.eval_arm, arm)
        return
    plays = await heldout_plays(run, f"{stage.eval_arm}@{run.updates}", arm, stage.eval_episodes)
    metrics = {"score": score(plays, run.source.cluster).mean, **arm_metrics(plays)}
    run.measured = {(stage.eval_arm, run.updates): metrics["score"]}
    run.log(f"eval/{stage.eval_arm}", run.updates, metrics)


async def measure_exact(run: Run, name: str, arm: ArmConfig) -> None:
    """The exact NashConv of an arm's policies as they are now, of opponent checkpoints that of their average: a
    point of its curve."""
    await run.serve(arm.roles.values())
    protocol, task = run.protocols[arm.protocol], run.source.train(random.Random(0))
    if plays_past(run, arm):
        found = [await strategy(protocol, task, players) async for _, _, players in each_past(run, arm)]
        value = average_nash_conv(task, found)
    else:
        value = await nash_conv(protocol, task, run.system.players(arm.roles, arm.temperature))
    run.exact.setdefault(name, {})[str(run.updates)] = value
    run.log(f"eval/{name}", run.updates, {"nash_conv": value})


async def measure_ceiling(run: Run) -> None:
    """The exact minimax value on the same judge and held-out tasks, where the config asks for it."""
    settings = run.config.eval
    if not settings.ceiling or "minimax_ceiling" in run.accuracy:
        return
    protocol = run.protocols[settings.ceiling]
    arm = next(arm for arm in settings.arms.values() if arm.protocol == settings.ceiling)
    judge = arm.roles[protocol.seats[protocol.judge.seat]]
    tasks = run.source.derived_heldout(settings.ceiling_episodes, EVAL_SEED)
    for name in list(run.system.served):
        run.system.retire(name)
    interval, judged = await run.or_stop(
        ceiling(protocol, tasks, run.models[judge], ChoiceScorer, os.cpu_count() or 1)
    )
    run.accuracy["minimax_ceiling"] = interval.as_dict()
    run.tracker.log("eval/minimax_ceiling", run.updates, interval.as_dict() | {"positions_per_task": judged})
