"""A run from its first line on screen to its last: start Ray, run the loop, save, report, whatever happens."""

from __future__ import annotations

import asyncio
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from actors import process as garbage
from actors.evaluation.nash import curve_summary
from actors.league.ratings import table
from actors.players.remote import BudgetSpent, check_keys
from actors.rollout.ledger import Ledger
from actors.system import start_ray
from configs.machine import Machine, resolve_device
from configs.memory import object_store_bytes
from configs.policies import as_served, opponents_in
from configs.schema.run import RunConfig
from driver import checkpoint
from driver.checkpoint import CHECKPOINTS
from driver.loop import Trainer
from driver.run import RUN_DIR, Run, Stopped, stored
from protocols.errors import UserError
from reporting.console import Seating
from reporting.tracker import Tracker


class NoCheckpoint(UserError):
    """A run directory without a checkpoint that verifies."""


def train(config: RunConfig, folder: Path, resume: bool = False) -> int:
    """Trains as `config` says, into `folder`. Returns the exit code: 0 done, 130 stopped and saved."""
    check_keys(config)
    return asyncio.run(_train(config, folder, _newest(folder) if resume else None))


def evaluate(config: RunConfig, folder: Path, best: bool = False) -> int:
    """Measures the arms at the end, and the ceiling, again with the weights that the run in `folder` ended with, or its
    best ones (track.best). Writes into `folder`/eval."""
    check_keys(config)
    return asyncio.run(_evaluate(config, folder, _best(folder) if best else _newest(folder)))


def _best(folder: Path) -> Path:
    name = checkpoint.best(folder / CHECKPOINTS)
    if name is None:
        raise NoCheckpoint(f"{folder / CHECKPOINTS} has no best checkpoint: it needs track.best")
    checkpoint.verify(folder / CHECKPOINTS / name)
    return folder / CHECKPOINTS / name


def _newest(folder: Path) -> Path:
    found = checkpoint.newest_valid(folder / CHECKPOINTS)
    if found is None:
        raise NoCheckpoint(f"{folder / CHECKPOINTS} holds no checkpoint that verifies: train without --resume")
    return found


async def _train(config: RunConfig, folder: Path, resume: Path | None) -> int:
    from reporting.report.page import write_report

    begun = time.monotonic()
    run = _open(config, folder, folder)
    screen = run.tracker.screen
    screen.start(config.name, str(folder), _seatings(config), run.tracker.wandb_line)
    finished = False
    try:
        await Trainer(run).go(resume)
        finished = True
    except (Stopped, BudgetSpent) as end:
        screen.note("stopping", "yellow")
        if run.warmed:
            await run.save()
        if isinstance(end, BudgetSpent):
            raise
    finally:
        _close(run)
        summary = summarise(run, time.monotonic() - begun, finished)
        run.tracker.summary(summary)
        run.tracker.close(0 if finished else 1)
    write_report(folder)
    commands = {"replay": f"python launch.py replay {folder}"}
    if not finished and run.warmed:
        commands["resume"] = f"python launch.py train {folder} --resume"
    screen.final(config.name, summary, str(folder), commands)
    return 0 if finished else 130


async def _evaluate(config: RunConfig, folder: Path, found: Path) -> int:
    begun = time.monotonic()
    run = _open(config, folder / "eval", folder)
    finished = False
    try:
        await Trainer(run).measure(found)
        finished = True
    except Stopped:
        run.tracker.screen.note("stopped", "yellow")
    finally:
        _close(run)
        summary = summarise(run, time.monotonic() - begun, finished)
        run.tracker.summary(summary)
        run.tracker.close(0 if finished else 1)
    run.tracker.screen.final(f"{config.name} eval", summary, str(folder / "eval"), {})
    return 0 if finished else 130


def _open(config: RunConfig, folder: Path, run_dir: Path) -> Run:
    """Everything a run needs, started in the order that Ray's signal handling asks for. `folder`: where it records.
    `run_dir`: where its models and checkpoints are."""
    garbage.settle()
    folder.mkdir(parents=True, exist_ok=True)
    saved = folder / "config.yaml"
    tracker = Tracker(folder, config, saved.read_text() if saved.exists() else "")
    ledger = Ledger(folder)
    actors = 2 + sum(1 + policy.engine.replicas for policy in config.policies.values())
    start_ray(config.cluster, actors, object_store_bytes(config.policies.values()))
    run = Run(config, tracker, ledger, run_dir)
    _stop_on_signals(run.stop)
    return run


def _close(run: Run) -> None:
    import ray

    for name in list(run.learners):
        run.dismiss(name)
    run.system.stop()
    ray.shutdown()
    run.ledger.close()


def summarise(run: Run, seconds: float, finished: bool) -> dict[str, Any]:
    """What `summary.json` holds."""
    judged = any(getattr(protocol, "judge", None) is not None for protocol in run.protocols.values())
    counts = run.ledger.counts
    found: dict[str, Any] = {
        "name": run.config.name, "seed": run.config.seed, "finished": finished, "wall_s": round(seconds, 1),
        "judge_accuracy" if judged else "accuracy": run.accuracy, "scores": _scores(run),
        "episodes": counts["episodes"], "tokens": counts["tokens"], "policy_updates": run.updates,
        "skipped_updates": run.skipped, "lost_episodes": counts["lost"], "invalid_episodes": counts["invalid"],
        "stages": {name: asdict(done) for name, done in run.progress.items()},
        "policies": {name: {"model": _named(path, run.dir)} for name, path in run.models.items()},
    }  # fmt: skip
    if any(run.health.values()):
        found["arms"] = run.health
    if any(run.idle.values()):
        found["not_updated"] = {stage: why for stage, why in run.idle.items() if why}
    if run.guards.configs:
        found["guards"] = {"alarms": run.guards.history, "never_seen": run.guards.unseen}
    if run.exact:
        found["nash_conv"] = {name: curve_summary(points) for name, points in run.exact.items()}
    if len(run.league.results):
        found["league"] = table(run.league.results)
    if any(run.buckets.values()):
        found["accuracy_by_length"] = run.buckets
    return found


def _named(model: str, run_dir: Path) -> str:
    """A model as the summary names it: inside the run directory as "RUN/models/...", else as it is."""
    inside = stored(model, run_dir)
    return inside.replace(RUN_DIR, run_dir.resolve().name, 1) if inside.startswith(f"{RUN_DIR}/") else model


def _scores(run: Run) -> dict[str, str]:
    """Arm -> what its score says."""
    found = {name: run.protocols[arm.protocol].success for name, arm in run.config.eval.arms.items()}
    if run.config.eval.ceiling:
        found["minimax_ceiling"] = run.protocols[run.config.eval.ceiling].success
    return {name: words for name, words in found.items() if name in run.accuracy}


def _seatings(config: RunConfig) -> list[Seating]:
    """Every role of every stage: who plays it, on what."""
    machine, found = Machine.here(), {}
    for name, stage in config.stages.items():
        for role, policy_name in [*stage.roles.items(), *(("opponent", name) for name in opponents_in(stage))]:
            policy = as_served(config.policies, config.policies[policy_name])
            device = "driver"
            if policy.kind == "lm":
                engine = config.policies[policy.engine.share].engine if policy.engine.share else policy.engine
                device = f"{resolve_device(engine.device, machine)} x{engine.replicas}"
            if policy.kind == "remote":
                device = urlsplit(policy.remote.url).netloc
            note = "trained" if policy.trained else "frozen"
            found[name, role, policy_name] = Seating(f"{name}/{role}", policy_name, device, note)
    return list(found.values())


def _stop_on_signals(stop: asyncio.Event) -> None:
    """Ctrl-C and SIGTERM ask for a clean end; a second one is not waited for."""
    loop = asyncio.get_running_loop()

    def ask(number: int) -> None:
        stop.set()
        loop.remove_signal_handler(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask, number)
