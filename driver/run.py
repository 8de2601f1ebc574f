"""One run: what it holds, and how that is saved and restored. What acts on it is `driver/loop.py`."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from actors.concurrency import gather_or_cancel, unless
from actors.league.pool import League
from actors.players.chat import ChatCodec
from actors.rollout.ledger import Ledger
from actors.system import System
from configs.load import build_protocols, load_task_source
from configs.policies import adapter_of, apart, learner_of
from configs.schema.run import RunConfig, StageConfig
from driver import checkpoint
from driver.checkpoint import CHECKPOINTS
from driver.guards import Guards
from driver.vocabulary import words_in_play
from learners.models.lora import take_out
from learners.models.tiny import materialise
from learners.ranks.group import LearnerGroup
from protocols.errors import UserError
from reporting.tracker import Tracker
from tasks.archive import Archive
from tasks.base import TaskSource


class Stopped(Exception):
    """Ctrl-C, SIGTERM or a guard: end cleanly, saved."""


class MissingModel(UserError):
    """A model that a checkpoint names is not there any more."""


FILE = "run.json"
RUN_DIR = "${run_dir}"
"""In `run.json`: the folder that the run lies in now."""
Metrics = dict[str, dict[str, float]]


class TooOld(UserError):
    """A checkpoint that this version cannot read."""


@dataclass
class StageProgress:
    """How far a stage has come."""

    step: int = 0
    """Steps that have been learned."""
    group: int = 0
    """The next group of plays to begin."""
    again: list[int] = field(default_factory=list)
    """Groups that were begun before the run stopped and that no step has learned from."""
    updates_before: int | None = None
    """Policy updates of the whole run when the stage began; None before it has."""

    def note(self, rollouts: Mapping[str, Any], step: int) -> None:
        """After a step: `rollouts` is what `Rollouts.state` says."""
        self.group, self.again, self.step = rollouts["group"], list(rollouts["again"]), step


@dataclass
class RunState:
    """What a resumed run needs besides weights. Fields without a default stand in every `run.json` ever written."""

    models: dict[str, str]
    """policy -> the folder or name that its engines and its learner load, as `stored` writes it."""
    versions: dict[str, int]
    """policy -> optimizer steps behind its weights."""
    updates: int
    progress: dict[str, StageProgress]
    """stage -> how far it has come."""
    accuracy: Metrics
    """evaluation arm -> mean score and interval."""
    archives: dict[str, Any]
    """stage -> the archive of its proposals."""
    learners: list[str]
    """The policies whose learners the checkpoint holds."""
    buckets: Metrics
    baselines: Metrics = field(default_factory=dict)
    exact: Metrics = field(default_factory=dict)
    bases: dict[str, str] = field(default_factory=dict)
    """policy with an adapter -> the model that its adapter belongs to."""
    skipped: int = 0
    guards: dict[str, Any] = field(default_factory=dict)
    health: Metrics = field(default_factory=dict)
    league: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Writes `folder/run.json`."""
        (folder / FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> RunState:
        """Reads `folder/run.json`. Raises TooOld where a field is missing that has no default."""
        raw = json.loads((folder / FILE).read_text(encoding="utf-8"))
        known = {one.name for one in fields(cls)}
        try:
            state = cls(**{key: value for key, value in raw.items() if key in known})
        except TypeError:
            raise TooOld(
                f"{folder / FILE} was written by a version that is too old to be resumed or measured"
            ) from None
        state.progress = {stage: StageProgress(**done) for stage, done in raw["progress"].items()}
        return state


class Run:
    """One training run: everything that lives from its first second to its last."""

    def __init__(self, config: RunConfig, tracker: Tracker, ledger: Ledger, folder: Path | None = None):
        """`folder`: the run directory, wherever it lies now; None: where `config.run_dir` says."""
        self.config, self.tracker, self.ledger = config, tracker, ledger
        self.protocols: dict[str, Any] = dict(build_protocols(config))
        self.source: TaskSource = load_task_source(config.tasks)
        self.dir = Path(self.config.run_dir) if folder is None else folder
        self.system = System(self.config.policies, self.config.seed, self.config.deterministic)
        self.learners: dict[str, LearnerGroup] = {}
        self.starting: dict[str, asyncio.Lock] = {}
        """policy -> held while its learner starts, which others that share it may ask for as well."""
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
        self.progress: dict[str, StageProgress] = {}
        self.updates = 0
        self.skipped = 0
        """Optimizer steps that were not made, since the loss or its gradient was no number."""
        self.idle: dict[str, dict[str, str]] = {}
        """stage -> policies that it was to update and did not, and why."""
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
        policies = self.config.policies
        async with self.starting.setdefault(name, asyncio.Lock()):
            if name not in self.learners:
                policy, config = policies[name], learner_of(policies, name)
                host = await self.learner(config.share, base) if config.share else None
                learner = LearnerGroup(
                    name, base or self.models[name], config, self.config.seed,
                    trust_remote_code=policy.model.trust_remote_code, plugins=self.config.plugins, host=host,
                )  # fmt: skip
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

    def begin(self, name: str) -> StageProgress:
        """How far a stage has come. One that begins takes over the archive that it is to begin with."""
        if name not in self.progress:
            self.progress[name] = StageProgress()
            if other := self.config.stages[name].archive_of:
                self.archives[name] = Archive.restore(self.archives[other].state())
        return self.progress[name]

    def trained_in(self, stage: StageConfig) -> list[str]:
        """The policies that a stage updates."""
        return stage.trained(self.config.policies)

    def log(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Metrics for the tracker, and for the guards."""
        self.tracker.log(kind, step, values)
        self.guards.log(kind, step, values)

    async def save(self) -> None:
        """A checkpoint: every trained policy in Hugging Face format with its optimizer, and where the run is."""
        root, name, track = self.dir / CHECKPOINTS, f"step-{self.updates}", self.config.track
        with checkpoint.writing(root, name, track.keep) as folder:
            for policy in self.learning():
                learner = self.learners[policy]
                await learner.save(str(folder / policy / "state"))
                if learner.config.lora is None:  # an adapter is small: what it was put into is not saved again
                    await learner.save_hf(str(folder / policy / "hf"))
            self.state().write(folder)
        if (track.best, self.updates) in self.measured:
            checkpoint.mark_best(root, name, self.measured[track.best, self.updates])
        sweep(self, self.dir / CHECKPOINTS)

    def learning(self) -> list[str]:
        """Whose learners have something to save: not those that were only started ahead, for a later stage."""
        begun = {policy for name in self.progress for policy in self.trained_in(self.config.stages[name])}
        return [name for name in self.learners if name in begun or self.config.policies[name].warm_start]

    def state(self) -> RunState:
        """What a resumed run needs besides weights."""
        bases = {name: one.model_dir for name, one in self.learners.items() if one.config.lora is not None}
        return RunState(
            models={name: stored(model, self.dir) for name, model in self.models.items()}, versions=self.versions,
            bases={name: stored(base, self.dir) for name, base in bases.items()}, updates=self.updates,
            progress=self.progress, accuracy=self.accuracy,
            archives={name: archive.state() for name, archive in self.archives.items()},
            learners=self.learning(), buckets=self.buckets, baselines=self.baselines, exact=self.exact,
            skipped=self.skipped, guards=self.guards.state(), health=self.health, league=self.league.state(),
        )  # fmt: skip

    async def or_stop(self, awaitable: Any) -> Any:
        """Awaits, but raises Stopped as soon as a stop is asked for."""
        return await unless(self.stop, awaitable, Stopped)

    async def restore(self, folder: Path, learners: bool = True) -> None:
        """Takes up where the checkpoint in `folder` was written; without learners: to measure it."""
        state = RunState.read(folder)
        self.versions, self.progress = state.versions, state.progress
        self.models = {name: self._located(model) for name, model in state.models.items() if name not in state.learners}
        self.updates, self.skipped, self.baselines = state.updates, state.skipped, state.baselines
        self.accuracy, self.buckets, self.health, self.exact = state.accuracy, state.buckets, state.health, state.exact
        self.guards.restore(state.guards)
        self.league = League.restore(state.league) if state.league else League()
        self.archives = {name: Archive.restore(archive) for name, archive in state.archives.items()}
        settle(self, state.learners if learners else ())
        for name in state.learners:
            # Out of the checkpoint, which is removed when newer ones have been written.
            copy = self.dir / "models" / name / f"resumed-{self.updates}"
            trust = self.config.policies[name].model.trust_remote_code
            base = take_out(folder / name, copy, self._located(state.bases.get(name, "")), trust)
            self.models[name] = base if adapter_of(self.config.policies, name) else str(copy)
            if learners:
                await (await self.learner(name, base)).load(str(folder / name / "state"), str(self.dir))

    def _located(self, model: str) -> str:
        return located(model, self.dir, self.config.run_dir)


def stored(model: str, run_dir: Path) -> str:
    """How `run.json` names a model: a folder inside the run directory relative to it ("${run_dir}/models/p/init"), so
    that the run can be moved and copied; anything else as it is."""
    inside = Path(model).resolve()
    if inside.is_relative_to(run_dir.resolve()):
        return f"{RUN_DIR}/{inside.relative_to(run_dir.resolve()).as_posix()}"
    return model


def located(model: str, run_dir: Path, old_run_dir: str = "") -> str:
    """What `stored` wrote, for a run directory that is `run_dir` now. Versions before wrote the path below
    `old_run_dir`, the `run_dir` of the config. Raises MissingModel where an absolute path leads nowhere."""
    for prefix in filter(None, (RUN_DIR, old_run_dir)):
        if model.startswith(f"{prefix}/"):
            model = str(run_dir / model.removeprefix(f"{prefix}/"))
    if Path(model).is_absolute() and not Path(model).exists():
        raise MissingModel(f"{model} is missing: the run in {run_dir} needs this model")
    return model


async def serve(run: Run, names: Iterable[str]) -> None:
    """Starts the engines of these policies where they have not started yet: first those whose engines others share.
    A learner that goes on gives shared engines its adapter, which no folder of theirs holds."""
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


def settle(run: Run, going_on: Iterable[str]) -> None:
    """When a run is taken up: engines can be shared as long as every adapter of theirs is that of a learner which goes
    on. Else (measuring a checkpoint, a stage that is over) they are merged, and each policy has engines of its own."""
    policies, going_on = run.config.policies, set(going_on)
    if any(adapter_of(policies, name) and run.versions.get(name) and name not in going_on for name in policies):
        run.config.policies = run.system.policies = apart(policies)


def sweep(run: Run, checkpoints: Path) -> None:
    """Removes the weights of opponent checkpoints that have left, unless a run resumed from a checkpoint would
    need them."""
    states = [RunState.read(folder) for folder in checkpoint.checkpoints(checkpoints)]
    pools = [run.league.state()["pool"], *(state.league.get("pool", []) for state in states)]
    kept = {(run.dir / entry["folder"]).resolve() for pool in pools for entry in pool}
    for folder in (run.dir / "models").glob("*/past-*"):
        if folder.resolve() not in kept:
            shutil.rmtree(folder)
