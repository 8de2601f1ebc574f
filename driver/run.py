"""The training loop: joins actors and learners, which know nothing of each other.

    prepare ─► warm starts ─► engines ─► arms at start ─► stages ─► arms at end ─► ceiling ─► report

    within a stage     rollout_loop (actors/rollout/loop.py) ──► ledger ──► learn_loop (here)
                            ▲ slots                                        │ samples, step
                            └────────────── release ◄── weights pushed ◄───┘
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from actors.concurrency import gather_or_cancel, unless
from actors.league.pool import League
from actors.players.chat import ChatCodec
from actors.rollout.audit import audit_of
from actors.rollout.ledger import Ledger
from actors.rollout.loop import Rollouts
from actors.rollout.metrics import step_figures
from actors.system import System
from configs.load import build_protocols, load_task_source
from configs.policies import adapter_of, apart
from configs.schedule import due_in
from configs.schema.run import RunConfig, StageConfig
from driver import checkpoint
from driver.checkpoint import CHECKPOINTS, Stopped
from driver.evaluation import measure_arms, measure_end, measure_progress
from driver.guards import Guards
from driver.league import Season, forget_results, sweep
from driver.rollback import RollBack, heed, roll_back
from driver.vocabulary import words_in_play
from driver.warm_start import warm_starts
from learners.batches.training_batch import build_training_batch, sequences
from learners.credit.truth import Answers
from learners.dump import dump
from learners.models.lora import take_out
from learners.models.tiny import materialise
from learners.ranks.group import LearnerGroup
from protocols.types import Episode
from reporting.console import Progress
from reporting.tracker import Tracker
from tasks.archive import Archive
from tasks.base import TaskSource


class NothingLearned(RuntimeError):
    """A stage went by without updating any policy."""


class Run:
    """One training run: everything that lives from its first second to its last."""

    def __init__(self, config: RunConfig, tracker: Tracker, ledger: Ledger):
        self.config, self.tracker, self.ledger = config, tracker, ledger
        self.protocols: dict[str, Any] = dict(build_protocols(config))
        self.source: TaskSource = load_task_source(config.tasks)
        self.dir = Path(self.config.run_dir)
        self.system = System(self.config.policies, self.config.seed, self.config.deterministic)
        self.learners: dict[str, LearnerGroup] = {}
        self.codecs: dict[str, ChatCodec] = {}
        self.models: dict[str, str] = {}  # policy -> folder or name that its engines and learner load
        self.versions: dict[str, int] = {}
        self.archives = {name: Archive() for name in self.config.stages}
        self.league = League()
        self.baselines: dict[str, dict[str, float]] = {}  # policy -> moving averages of its rewards (role_ema)
        self.accuracy: dict[str, dict[str, float]] = {}
        """evaluation arm -> mean score on held-out tasks and its interval."""
        self.buckets: dict[str, dict[str, float]] = {}
        """evaluation arm -> mean score by difficulty, where the tasks have such."""
        self.measured: dict[tuple[str, int], float] = {}  # (arm, updates) -> its newest score during training
        self.health: dict[str, dict[str, float]] = {}
        """evaluation arm -> mean rewards by role, and how good its judges were."""
        self.exact: dict[str, dict[str, float]] = {}  # exact measurement -> policy updates -> its value then
        self.progress: dict[str, dict[str, Any]] = {}
        self.updates = 0
        self.skipped = 0
        """Optimizer steps that were not made, since the loss or its gradient was no number."""
        self.guards = Guards(config.guards)
        self.warmed = False  # before, there is nothing to save: the run would start afresh
        self.stop = asyncio.Event()

    async def prepare(self) -> None:
        """Model folders and codecs of every language model; tiny models get a tokenizer of all words in play."""
        words: list[str] = []
        for name, policy in self.config.policies.items():
            if policy.kind != "lm":
                continue
            if not policy.model.path and not words:
                words = await words_in_play(self.source, self.protocols.values())
            folder = self.dir / "models" / (policy.engine.share or name) / "init"
            self.models[name] = str(materialise(policy.model, words, folder))
            self.codecs[name] = ChatCodec.from_pretrained(self.models[name], policy.model.trust_remote_code)

    async def learner(self, name: str, base: str = "") -> LearnerGroup:
        """The learner of a policy, started when first needed, on the weights in `base` or those of the policy."""
        if name not in self.learners:
            policy = self.config.policies[name]
            remote_code = policy.model.trust_remote_code
            learner = LearnerGroup(
                name, base or self.models[name], policy.learner, self.config.seed, trust_remote_code=remote_code
            )
            await learner.ready()
            self.learners[name] = learner
        return self.learners[name]

    def dismiss(self, name: str) -> None:
        """Ends a learner that is not needed any more."""
        if name in self.learners:
            self.learners.pop(name).stop()

    async def serve(self, names: Iterable[str]) -> None:
        """Starts the engines of these policies, where they have not started yet."""
        await serve(self, names)

    def trained_in(self, stage: StageConfig) -> list[str]:
        """The policies that a stage updates."""
        players = [name for name in dict.fromkeys(stage.roles.values()) if self.config.policies[name].trained]
        return [name for name in players if not stage.train or name in stage.train]

    async def train_stage(self, name: str) -> None:
        """rollout_loop and learn_loop of one stage side by side, until its steps are done."""
        stage = self.config.stages[name]
        done = self.progress.setdefault(name, {"step": 0, "group": 0, "again": []})
        if done["step"] >= stage.steps:
            return
        playing = [*stage.roles.values(), *(stage.audit.roles.values() if stage.audit else ())]
        await gather_or_cancel([self.serve(playing), *map(self.learner, self.trained_in(stage))])
        if any(guard.action == "roll_back" for guard in self.config.guards):
            await self.save()  # so that there is something to go back to
        season = Season(self, name, stage)
        await season.begin(done["step"])
        while True:
            try:
                await self._play_and_learn(name, stage, done, season)
                break
            except RollBack:
                await roll_back(self, name)
        await season.end()
        for policy in self.trained_in(stage):
            self.models[policy] = str(self.dir / "models" / policy / name)
            await self.learners[policy].save_hf(self.models[policy])
            await self.system.keep(policy)
            self.dismiss(policy)
        await self.save()

    async def _play_and_learn(self, name: str, stage: StageConfig, done: dict[str, Any], season: Season) -> None:
        """The two loops until one ends; then the other is ended."""
        source = load_task_source({**self.config.tasks, **stage.tasks})
        rollouts = Rollouts(
            name, stage, self.protocols[stage.protocol], source, self.system.players(stage.roles),
            self.ledger, self.config.seed, self.archives[name], done, self.config.deterministic, self.trained_in(stage),
        )  # fmt: skip
        rollouts.seating = season.seating
        rollouts.audit = audit_of(name, stage, self.protocols, self.system.players, self.ledger, self.config.seed)
        learning = self.learn_loop(name, stage, rollouts, season)
        loops = [asyncio.ensure_future(rollouts.run()), asyncio.ensure_future(learning)]
        try:
            finished, _ = await asyncio.wait(loops, return_when=asyncio.FIRST_COMPLETED)
            for loop in finished:
                loop.result()
        except RollBack:
            done.update(group=rollouts.next_group, again=[])  # what was begun is given up
            raise
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)

    async def learn_loop(self, name: str, stage: StageConfig, rollouts: Rollouts, season: Season) -> None:
        """Consumes finished groups from the ledger. Waits for a step's worth of them. Unblocks the rollouts once
        every engine has acknowledged the new weights. Produces policy versions, and past selves for the season."""
        trained = self.trained_in(stage)
        done, tried = self.progress[name], False
        updates_before = done.setdefault("updates_before", self.updates)  # also where it is taken up again
        for step in range(done["step"], stage.steps):
            begun = time.monotonic()
            plays = await self.or_stop(rollouts.batch())
            plays.sort(key=lambda play: play[0].meta["index"])  # whatever finished first: same batch, same sums
            waited = time.monotonic() - begun
            episodes = [episode for play in plays for episode in play]
            left = 1.0 - step / stage.steps
            due = [policy for policy in trained if due_in(stage, policy, step)]
            tried = tried or bool(due)
            reports = await gather_or_cancel([self.learn(policy, episodes, step, left) for policy in due])
            learned = dict(zip(due, reports))
            await season.after(step + 1, plays)
            rollouts.release(plays)
            done.update(rollouts.state(), step=step + 1)
            seconds = {"wait_s": waited, "step_s": time.monotonic() - begun}
            self._report(name, step + 1, plays, rollouts, learned, seconds)
            if stage.eval_every and (step + 1) % stage.eval_every == 0:
                await measure_progress(self, stage)
            heed(self)
            saving = self.config.track.save_every and (step + 1) % self.config.track.save_every == 0
            if saving and not self.guards.alarmed:
                await self.save()
        if tried and self.updates == updates_before:
            raise NothingLearned(f"stage {name!r} made no update: in every group all rewards were equal")

    async def learn(self, policy: str, episodes: list[Episode], step: int, left: float) -> dict[str, float]:
        """One learner step of one policy, and its weights to the engines. `left`: share of the stage to come."""
        config = self.config.policies[policy].learner
        baselines = self.baselines.setdefault(policy, {})
        codec = self.codecs[policy].choices
        answers = Answers(config.trusted, self.source.cluster, codec)
        examples, figures = build_training_batch(episodes, policy, config, baselines, answers)
        if not examples:
            return {**figures, "empty": 1.0}
        served, learner = self.system.served[policy], self.learners[policy]
        begun = time.monotonic()
        lr = config.lr * left if config.schedule == "linear" else None
        metrics = await learner.step(examples, lr=lr, seed=step, version=served.version)
        seconds = time.monotonic() - begun
        self.updates += int(metrics.get("updates", 0))
        if metrics.get("skipped"):
            self.skipped += int(metrics["skipped"])
            path = dump(self.dir / "dumps", policy, served.version + 1, sequences(examples), metrics)
            self.tracker.screen.note(f"{policy}: a step was skipped, it is no number; {path or 'not dumped'}", "yellow")
        await self.system.push(policy, served.version + 1, await learner.export_ref())
        self.versions[policy] = served.version
        sync = {"sync_s": served.sync_seconds, "drain_s": served.drain_seconds, "sync_bytes": float(served.sync_bytes)}
        return {**figures, **metrics, **sync, "step_s": seconds, "version": float(served.version)}

    def _report(self, name: str, step: int, plays: list[list[Episode]], rollouts: Rollouts,
                learned: dict[str, dict[str, float]], figures: dict[str, float]) -> None:  # fmt: skip
        """Figures of one step to the tracker; the live line; a sample of transcripts now and then."""
        episodes = [episode for play in plays for episode in play]
        means = step_figures(episodes)
        figures = figures | means | rollouts.figures()
        for policy in self.system.served.values():
            figures |= policy.router.counters.metrics(policy.name)
        figures["episodes"] = float(self.ledger.counts["episodes"])
        self.log(f"rollout/{name}", step, figures)
        for policy_name, metrics in learned.items():
            self.log(f"learner/{policy_name}", step, metrics)
        shown = {key: value for key, value in means.items() if key.startswith("score/")}
        seconds = figures["step_s"]
        self.tracker.screen.progress(Progress(
            name, step, self.config.stages[name].steps, self.ledger.counts["episodes"],
            len(episodes) / seconds, means["tokens"] / seconds, shown,
        ))  # fmt: skip
        if self.tracker.transcripts_due(step):
            self.tracker.transcripts(episodes, step)

    def log(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Figures for the tracker, and for the guards."""
        self.tracker.log(kind, step, values)
        self.guards.tell(kind, step, values)

    async def save(self) -> None:
        """A checkpoint: every trained policy in Hugging Face format with its optimizer, and where the run is."""
        root, name, track = self.dir / CHECKPOINTS, f"step-{self.updates}", self.config.track
        with checkpoint.writing(root, name, track.keep) as folder:
            for policy in self.learning():
                learner = self.learners[policy]
                await learner.save(str(folder / policy / "state"))
                if learner.config.lora is None:  # an adapter is small: what it was put into is not saved again
                    await learner.save_hf(str(folder / policy / "hf"))
            (folder / "run.json").write_text(json.dumps(self.state()))
        if (track.best, self.updates) in self.measured:
            checkpoint.mark_best(root, name, self.measured[track.best, self.updates])
        sweep(self, self.dir / CHECKPOINTS)

    def learning(self) -> list[str]:
        """Whose learners have something to save: not those that were only started ahead, for a later stage."""
        begun = {policy for name in self.progress for policy in self.trained_in(self.config.stages[name])}
        return [name for name in self.learners if name in begun or self.config.policies[name].warm_start]

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides weights."""
        return {
            "models": self.models, "versions": self.versions, "updates": self.updates, "progress": self.progress,
            "accuracy": self.accuracy, "archives": {name: archive.state() for name, archive in self.archives.items()},
            "learners": self.learning(), "buckets": self.buckets, "baselines": self.baselines, "exact": self.exact,
            "skipped": self.skipped, "guards": self.guards.state(), "health": self.health,
            "league": self.league.state(),
        }  # fmt: skip

    async def or_stop(self, awaitable: Any) -> Any:
        """Awaits, but raises Stopped as soon as a stop is asked for."""
        return await unless(self.stop, awaitable, Stopped)

    def _check_stop(self) -> None:
        if self.stop.is_set():
            raise Stopped

    async def restore(self, folder: Path, learners: bool = True) -> None:
        """Takes up where the checkpoint in `folder` was written; without learners: to measure it."""
        state = json.loads((folder / "run.json").read_text())
        for key in ("models", "versions", "updates", "progress", "accuracy", "buckets"):
            setattr(self, key, state[key])
        self.baselines, self.skipped = state.get("baselines", {}), state.get("skipped", 0)
        self.guards.restore(state.get("guards", {}))
        self.health, self.exact = state.get("health", {}), state.get("exact", {})
        self.league = League.restore(state["league"]) if "league" in state else League()
        self.archives = {name: Archive.restore(archive) for name, archive in state["archives"].items()}
        settle(self, state["learners"] if learners else ())
        for name in state["learners"]:
            # Out of the checkpoint, which is removed when newer ones have been written.
            copy = self.dir / "models" / name / f"resumed-{self.updates}"
            base = take_out(folder / name, copy, self.config.policies[name].model.trust_remote_code)
            self.models[name] = base if adapter_of(self.config.policies, name) else str(copy)
            if learners:
                await (await self.learner(name, base)).load(str(folder / name / "state"), str(self.dir))

    async def go(self, resume: Path | None) -> None:
        """All phases in order."""
        await self.prepare()
        if resume is not None:
            await self.restore(resume)
        else:
            await warm_starts(self)
        self.warmed = True
        if not any(done["step"] for done in self.progress.values()):
            await measure_arms(self, "start")
        for name in self.config.stages:
            await self.train_stage(name)
        await measure_end(self)
        await self.save()

    async def measure(self, folder: Path) -> None:
        """Plays the arms at the end again with the weights of a checkpoint."""
        await self.prepare()
        await self.restore(folder, learners=False)
        self.accuracy, self.buckets, self.health, self.exact = {}, {}, {}, {}
        forget_results(self)
        await measure_end(self)


async def serve(run: Any, names: Iterable[str]) -> None:
    """Starts the engines of these policies of a run (driver/run.py), where they have not started yet: first of those whose
    engines others share. A learner that goes on gives shared engines its adapter, which no folder of theirs holds."""
    policies, system = run.config.policies, run.system
    names = [name for name in dict.fromkeys(names) if name in run.models]
    hosts = dict.fromkeys(policies[name].engine.share or name for name in names)
    for some in (hosts, names):
        await gather_or_cancel([
            system.serve(name, run.models[name], run.codecs[name], run.versions.get(name, 0))
            for name in some if name not in system.served
        ])  # fmt: skip
    for name, learner in run.learners.items():
        served = system.served.get(name)
        if served is not None and adapter_of(policies, name) and served.version and served.weights is None:
            await system.push(name, served.version, await learner.export_ref())
    await system.refresh()


def settle(run: Any, going_on: Iterable[str]) -> None:
    """When a run is taken up: engines can be shared as long as every adapter of theirs is that of a learner which goes
    on. Else (measuring a checkpoint, a stage that is over) they are merged, and each policy has engines of its own."""
    policies, going_on = run.config.policies, set(going_on)
    if any(adapter_of(policies, name) and run.versions.get(name) and name not in going_on for name in policies):
        run.config.policies = run.system.policies = apart(policies)


