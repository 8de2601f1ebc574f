"""The training loop: joins actors and learners, which know nothing of each other.

    prepare ─► warm starts ─► engines ─► arms at start ─► stages ─► arms at end ─► ceiling ─► report

    within a stage     rollout_loop (actors/rollout/loop.py) ──► ledger ──► learn_loop (here)
                            ▲ slots                                        │ samples, step
                            └────────────── release ◄── weights pushed ◄───┘
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from pathlib import Path

from actors.concurrency import gather_or_cancel
from actors.rollout.audit import audit_of
from actors.rollout.loop import Rollouts
from actors.rollout.metrics import step_metrics
from configs.load import load_task_source
from configs.schedule import due_in
from configs.schema.run import StageConfig
from driver.evaluation import measure_arms, measure_end, measure_progress
from driver.league import StageLeague, forget_results
from driver.rollback import RollBack, apply_alerts, roll_back
from driver.run import Run, StageProgress
from driver.warm_start import warm_starts
from learners.batches.training_batch import build_training_batch, sequences
from learners.credit.truth import Answers
from learners.dump import dump
from learners.idle import Idle, NothingLearned
from protocols.types import Episode
from reporting.console import Progress


class Trainer:
    """Takes a run from its first phase to its last."""

    def __init__(self, run: Run):
        self.run = run

    async def go(self, resume: Path | None) -> None:
        """All phases in order."""
        await self.run.prepare()
        if resume is not None:
            await self.run.restore(resume)
        else:
            await warm_starts(self.run)
        self.run.warmed = True
        if not any(done.step for done in self.run.progress.values()):
            await measure_arms(self.run, "start")
        for name in self.run.config.stages:
            await self.train_stage(name)
        await measure_end(self.run)
        await self.run.save()

    async def measure(self, folder: Path) -> None:
        """Plays the arms at the end again with the weights of a checkpoint."""
        await self.run.prepare()
        await self.run.restore(folder, learners=False)
        run = self.run
        run.accuracy, run.buckets, run.health, run.exact = {}, {}, {}, {}
        forget_results(self.run)
        await measure_end(self.run)

    async def train_stage(self, name: str) -> None:
        """rollout_loop and learn_loop of one stage side by side, until its steps are done."""
        stage = self.run.config.stages[name]
        done = self.run.begin(name)
        if done.step >= stage.steps:
            return
        playing = [*stage.roles.values(), *(stage.audit.roles.values() if stage.audit else ())]
        await gather_or_cancel([self.run.serve(playing), *map(self.run.learner, self.run.trained_in(stage))])
        if any(guard.action == "roll_back" for guard in self.run.config.guards):
            await self.run.save()  # so that there is something to go back to
        league = StageLeague(self.run, name, stage)
        await league.begin(done.step)
        while True:
            try:
                await self._play_and_learn(name, stage, done, league)
                break
            except RollBack:
                await roll_back(self.run, name)
        await league.end()
        for policy in self.run.trained_in(stage):
            self.run.models[policy] = str(self.run.dir / "models" / policy / name)
            await self.run.learners[policy].save_hf(self.run.models[policy])
            await self.run.system.keep(policy)
        for policy in self.run.trained_in(stage):  # now: some may share one process
            self.run.dismiss(policy)
        await self.run.save()

    async def _play_and_learn(self, name: str, stage: StageConfig, done: StageProgress, league: StageLeague) -> None:
        """The two loops until one ends; then the other is ended."""
        run, config = self.run, self.run.config
        source, players = load_task_source(config.tasks, stage.tasks), run.system.players(stage.roles)
        rollouts = Rollouts(
            name, stage, run.protocols[stage.protocol], source, players, run.ledger, config.seed,
            run.archives[name], asdict(done), config.deterministic, run.trained_in(stage),
        )  # fmt: skip
        rollouts.seating = league.seating
        rollouts.audit = audit_of(name, stage, run.protocols, run.system.players, run.ledger, config.seed)
        learning = self.learn_loop(name, stage, rollouts, league)
        loops = [asyncio.ensure_future(rollouts.run()), asyncio.ensure_future(learning)]
        try:
            finished, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            for loop in finished:
                loop.result()
        except RollBack:
            done.group, done.again = rollouts.next_group, []  # what was begun is given up
            raise
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

    async def learn_loop(self, name: str, stage: StageConfig, rollouts: Rollouts, league: StageLeague) -> None:
        """Consumes finished groups from the ledger. Waits for a step's worth of them. Unblocks the rollouts once
        every engine has acknowledged the new weights. Produces policy versions, and opponent checkpoints for the
        league."""
        trained = self.run.trained_in(stage)
        done, idle = self.run.progress[name], Idle()
        if done.updates_before is None:
            done.updates_before = self.run.updates  # kept where the stage is resumed
        for step in range(done.step, stage.steps):
            begun = time.monotonic()
            plays = await self.run.or_stop(rollouts.batch())
            plays.sort(key=lambda play: play[0].meta["index"])  # whatever finished first: same batch, same sums
            waited = time.monotonic() - begun
            episodes = [episode for play in plays for episode in play]
            left = 1.0 - step / stage.steps
            due = [policy for policy in trained if due_in(stage, policy, step)]
            reports = await gather_or_cancel([self.learn(policy, episodes, step, left) for policy in due])
            learned = dict(zip(due, reports))
            idle.add(learned)
            await league.after(step + 1, plays)
            rollouts.release(plays)
            done.note(rollouts.state(), step + 1)
            seconds = {"wait_s": waited, "step_s": time.monotonic() - begun}
            self._report(name, step + 1, plays, rollouts, learned, seconds)
            if stage.eval_every and (step + 1) % stage.eval_every == 0:
                await measure_progress(self.run, stage)
            apply_alerts(self.run)
            saving = self.run.config.track.save_every and (step + 1) % self.run.config.track.save_every == 0
            if saving and not self.run.guards.alarmed:
                await self.run.save()
        self.run.idle[name] = idle.reasons()
        why = "; ".join(f"{policy}: {reason}" for policy, reason in self.run.idle[name].items())
        if why and self.run.updates == done.updates_before:
            raise NothingLearned(f"stage {name!r} made no update. {why}")
        if why:
            self.run.tracker.screen.note(f"stage {name!r} left a policy as it was. {why}", "yellow")

    async def learn(self, policy: str, episodes: list[Episode], step: int, left: float) -> dict[str, float]:
        """One learner step of one policy, and its weights to the engines. `left`: share of the stage to come."""
        config = self.run.config.policies[policy].learner
        baselines = self.run.baselines.setdefault(policy, {})
        codec = self.run.codecs[policy].choices
        answers = Answers(config.trusted, self.run.source.cluster, codec)
        examples, figures = build_training_batch(episodes, policy, config, baselines, answers)
        if not examples:
            return {**figures, "empty": 1.0}
        served, learner = self.run.system.served[policy], self.run.learners[policy]
        begun = time.monotonic()
        lr = config.lr * left if config.schedule == "linear" else None
        metrics = await learner.step(examples, lr=lr, seed=step, version=served.version)
        seconds = time.monotonic() - begun
        self.run.updates += int(metrics.get("updates", 0))
        if metrics.get("skipped"):
            self.run.skipped += int(metrics["skipped"])
            path = dump(self.run.dir / "dumps", policy, served.version + 1, sequences(examples), metrics)
            note = f"{policy}: a step was skipped, it is no number; {path or 'not dumped'}"
            self.run.tracker.screen.note(note, "yellow")
        await self.run.system.push(policy, served.version + 1, await learner.export_ref())
        self.run.versions[policy] = served.version
        sync = {"sync_s": served.sync_seconds, "drain_s": served.drain_seconds, "sync_bytes": float(served.sync_bytes)}
        return {**figures, **metrics, **sync, "step_s": seconds, "version": float(served.version)}

    def _report(self, name: str, step: int, plays: list[list[Episode]], rollouts: Rollouts,
                learned: dict[str, dict[str, float]], figures: dict[str, float]) -> None:  # fmt: skip
        """Figures of one step to the tracker; the live line; a sample of transcripts now and then."""
        episodes = [episode for play in plays for episode in play]
        means = step_metrics(episodes)
        figures = figures | means | rollouts.metrics()
        for policy in self.run.system.served.values():
            figures |= policy.router.counters.metrics(policy.name)
        figures["episodes"] = float(self.run.ledger.counts["episodes"])
        self.run.log(f"rollout/{name}", step, figures)
        for policy_name, metrics in learned.items():
            self.run.log(f"learner/{policy_name}", step, metrics)
        shown = {key: value for key, value in means.items() if key.startswith("score/")}
        seconds = figures["step_s"]
        self.run.tracker.screen.progress(Progress(
            name, step, self.run.config.stages[name].steps, self.run.ledger.counts["episodes"],
            len(episodes) / seconds, means["tokens"] / seconds, shown,
        ))  # fmt: skip
        if self.run.tracker.transcripts_due(step):
            self.run.tracker.transcripts(episodes, step)
