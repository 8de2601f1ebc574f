"""Debater, judge and proposer trained in one run: each policy changes through its own samples alone, and what guards
do to it. Players of no model stand in for engines. Learners are real ones (Ray, DeepSpeed), and once more, for the fast
tests, stand-ins whose weights are a checksum of all that they were taught."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from actors.players.base import Seated, UniformPlayer
from actors.rollout.ledger import Ledger
from configs.load import load
from configs.schema.run import GuardConfig, UpdateConfig
from driver import loop as loop_module, run as run_module
from driver.guards import Guards
from driver.loop import Trainer
from driver.run import Run, Stopped
from learners.dump import load as load_dump
from protocols.types import Episode, Reply, TokenTrace, Turn, TurnRequest
from tasks.archive import Archive

ROOT = Path(__file__).resolve().parent.parent.parent
POLICIES = ("debater", "judge", "proposer")
SMALL = [f"policies.{name}.model.{key}" for name in ("judge", "debater") for key in ("hidden_size=32", "layers=1")]
T = TypeVar("T")


class Words:
    """A tokenizer for players: one id per word, chats without any frame."""

    end_id = 0

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        return [self.ids.setdefault(word, len(self.ids) + 1) for word in text.split()]

    def prompt(self, messages: Sequence[Any], history: Any = ()) -> list[int]:
        return [token for message in messages for token in self.encode(f"{message.speaker} {message.text}")]

    def choices(self, texts: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(self.encode(text)) for text in texts)


class Checksum:
    """A learner whose weights are a checksum of its samples, in order. A step that is no number changes nothing."""

    def __init__(self, policy: str, model_dir: str, config: Any, seed: int = 0, **settings: Any):
        self.config = config
        self.weights = hashlib.sha256(policy.encode()).hexdigest()

    async def ready(self) -> None:
        pass

    async def step(self, samples: Sequence[Any], lr: Any, seed: int, version: int) -> dict[str, float]:
        await asyncio.sleep(0)
        if any(value != value for sample in samples for value in sample.advantages_L):
            return {"updates": 0.0, "skipped": 1.0}
        self.weights = hashlib.sha256(f"{self.weights}{list(samples)}{lr}{seed}".encode()).hexdigest()
        return {"updates": 1.0, "skipped": 0.0, "approx_kl": 0.01, "loss": 0.5}

    async def export(self) -> list[dict[str, str]]:
        return [{"sha256": self.weights}]

    async def export_ref(self) -> None:
        return None

    async def save(self, folder: str) -> None:
        path = Path(folder, "weights")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.weights)

    async def load(self, folder: str) -> None:
        self.weights = Path(folder, "weights").read_text()

    async def save_hf(self, folder: str) -> None:
        await self.save(folder)

    def stop(self) -> None:
        pass


class Opinionated(UniformPlayer):
    """Moves at random; as a judge it has an opinion on every question, so that debates are won and lost."""

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        if not request.read:
            return await super().__call__(request, history)
        assert self.codec is not None
        text = f"{request.messages[-1].text} {sorted(request.choices)}"
        p = random.Random(hashlib.sha256(text.encode()).digest()).uniform(0.05, 0.95)
        probs = (p, 1 - p) if request.choices[0] < request.choices[1] else (1 - p, p)
        trace = TokenTrace(tuple(self.codec.prompt(request.messages, history)), (), (), (0,))
        return Reply(request.choices[0], probs, trace)


class Players:
    """What a run uses of `System`. Weights that are pushed are only counted."""

    def __init__(self) -> None:
        self.served: dict[str, Any] = {}
        self.pushed: list[tuple[str, int]] = []

    async def serve(self, name: str, model_dir: str, codec: Any, version: int = 0) -> None:
        counters = SimpleNamespace(metrics=lambda name: {})
        self.served[name] = SimpleNamespace(
            name=name, version=version, player=Opinionated(codec, 7), router=SimpleNamespace(counters=counters),
            sync_seconds=0.0, sync_bytes=0, drain_seconds=0.0,
        )  # fmt: skip

    async def refresh(self) -> None:
        pass

    async def keep(self, name: str) -> None:
        pass

    async def push(self, name: str, version: int, weights: Any) -> None:
        self.served[name].version = version
        self.pushed.append((name, version))

    def players(self, roles: dict[str, str], temperature: float | None = None) -> dict[str, Seated]:
        return {role: Seated(name, self.served[name].player) for role, name in roles.items()}


class Notes:
    """What a run uses of `Tracker`."""

    def __init__(self) -> None:
        self.logged: list[tuple[str, int, dict[str, float]]] = []
        self.notes: list[str] = []
        self.screen = SimpleNamespace(note=lambda text, style="": self.notes.append(text), progress=lambda now: None)

    def log(self, kind: str, step: int, values: dict[str, float]) -> None:
        self.logged.append((kind, step, dict(values)))

    def transcripts_due(self, step: int) -> bool:
        return False


class Rig:
    """A run whose learners outlive its stages, and what each learner step changed."""

    def __init__(self, folder: Path, real: bool):
        self.loop = asyncio.new_event_loop()
        overrides = [
            f"run_dir={folder}", *SMALL, "guards=[]", "track.save_every=0", "stages.debate.eval_every=0",
            "stages.debate.steps=6", "stages.debate.plays_per_step=6",
            "stages.debate.update={debater: {every: 3}, judge: {every: 3, after: 1}, proposer: {every: 3, after: 2}}",
        ]  # fmt: skip
        config = load(ROOT / "configs" / "pixel_debate_three.yaml", overrides).config
        self.notes, self.players = Notes(), Players()
        notes: Any = self.notes
        self.run = Run(config, notes, Ledger(folder))
        self.run.system = self.players  # type: ignore[assignment]
        self.run.dismiss = lambda name: None  # type: ignore[method-assign]
        self.steps: list[tuple[str, dict[str, Any], dict[str, Any], list[Episode]]] = []
        if real:
            self(self.run.prepare())
        else:
            words: Any = Words()
            self.run.codecs = dict.fromkeys(POLICIES, words)
            self.run.models = dict.fromkeys(POLICIES, "")
        self.trainer = Trainer(self.run)
        self.learn = self.trainer.learn
        self.trainer.learn = self.noted  # type: ignore[method-assign]
        self(self.trainer.train_stage("debate"))

    def __call__(self, awaitable: Awaitable[T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(awaitable, 300))

    async def noted(self, policy: str, episodes: list[Episode], step: int, left: float) -> dict[str, float]:
        before = await self.weights()
        report = await self.learn(policy, episodes, step, left)
        self.steps.append((policy, before, await self.weights(), episodes))
        return report

    async def weights(self) -> dict[str, Any]:
        """policy -> checksums of all its weights."""
        return {
            name: tuple(bucket["sha256"] for bucket in await learner.export())
            for name, learner in self.run.learners.items()
        }

    def after(self, policy: str, episodes: list[Episode], folder: Path) -> tuple[Any, dict[str, float]]:
        """The weights of `policy` after one step on `episodes`, and its report; then it is as it was."""
        learner = self.run.learners[policy]
        folder.mkdir(parents=True, exist_ok=True)
        self(learner.save(str(folder)))
        report = self(self.learn(policy, episodes, 0, 1.0))
        found = self(self.weights())[policy]
        self(learner.load(str(folder)))
        return found, report


REAL = pytest.param(True, marks=[pytest.mark.engine, pytest.mark.timeout(600)], id="deepspeed")


@pytest.fixture(scope="module", params=[pytest.param(False, id="checksum"), REAL])
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    folder = tmp_path_factory.mktemp("three")
    with pytest.MonkeyPatch.context() as patch:
        if request.param:
            import ray

            ray.init(
                num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False,
                runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
            )  # fmt: skip
        else:
            patch.setattr(run_module, "LearnerGroup", Checksum)
        try:
            rig = Rig(folder, request.param)
            yield rig
            for learner in rig.run.learners.values():
                learner.stop()
            rig.run.ledger.close()
            rig.loop.close()
        finally:
            if request.param:
                ray.shutdown()


def without(episodes: Sequence[Episode], policies: Sequence[str], scale: float = 1.0) -> list[Episode]:
    """The same episodes, but what these policies said is not on record, and they are paid `scale` times as much."""
    found = []
    for episode in episodes:
        theirs = {turn.seat for turn in episode.turns if turn.policy in policies}
        turns = [replace(t, trace=None, probs=(), target=None) if t.seat in theirs else t for t in episode.turns]
        paid = [replace(r, value=scale * r.value) if r.seat in theirs else r for r in episode.outcome.rewards]
        found.append(replace(episode, turns=tuple(turns), outcome=replace(episode.outcome, rewards=tuple(paid))))
    return found


def test_in_turns_each_step_changes_one_policy_and_no_other(rig: Rig) -> None:
    assert [policy for policy, *_ in rig.steps[:6]] == ["debater", "judge", "proposer"] * 2
    for i, (policy, before, after, _) in enumerate(rig.steps[:6]):
        changed = {name for name in POLICIES if before[name] != after[name]}
        assert changed == {policy}, f"step {i}"
    assert rig.players.pushed[:6] == [(name, version) for version in (1, 2) for name in POLICIES]


def test_each_policy_s_objective_is_reported(rig: Rig) -> None:
    lines = {kind: values for kind, _, values in rig.notes.logged}
    assert {"credit_mean/debater", "approx_kl", "updates"} <= set(lines["learner/debater"])
    assert {"credit_mean/proposer", "updates"} <= set(lines["learner/proposer"])
    judge = lines["learner/judge"]
    assert {"accuracy/trusted", "accuracy/others", "brier/trusted", "swap_gap", "loss"} <= set(judge)
    assert 0 < judge["polls_trained"] < judge["polls"] and judge["updates"] == 1
    assert {"reward/debater/belief_change", "reward/proposer/learnability"} <= set(lines["rollout/debate"])


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_learns_the_same_whatever_becomes_of_the_others(rig: Rig, policy: str, tmp_path: Path) -> None:
    episodes = rig.steps[-1][3]
    others = [name for name in POLICIES if name != policy]
    start = rig(rig.weights())
    alone, _ = rig.after(policy, without(episodes, others, scale=-3.0), tmp_path / "a")
    beside, _ = rig.after(policy, episodes, tmp_path / "b")
    assert alone == beside != start[policy]
    nothing, report = rig.after(policy, without(episodes, [policy]), tmp_path / "c")
    assert nothing == start[policy] and report["empty"] == 1.0, "without samples of its own it must not move"
    assert rig(rig.weights()) == start


def test_a_judge_that_is_trusted_with_nothing_does_not_move(rig: Rig, tmp_path: Path) -> None:
    learner = rig.run.config.policies["judge"].learner
    whole, learner.trusted = learner.trusted, 1e-9
    found, report = rig.after("judge", rig.steps[-1][3], tmp_path)
    learner.trusted = whole
    assert found == rig(rig.weights())["judge"] and report["empty"] == 1.0
    assert report["polls"] > 0 and "accuracy/others" in report and "accuracy/trusted" not in report


def test_a_batch_that_is_no_number_is_skipped_counted_and_dumped(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop_module.build_training_batch

    def poisoned(*arguments: Any) -> Any:
        samples, figures = real(*arguments)
        samples[0].advantages_L[0] = float("nan")
        return samples, figures

    monkeypatch.setattr(loop_module, "build_training_batch", poisoned)
    found, report = rig.after("proposer", rig.steps[-1][3], tmp_path)
    assert report["skipped"] == 1 and report["updates"] == 0 and rig.run.skipped == 1
    assert found == rig(rig.weights())["proposer"]
    (path,) = (rig.run.dir / "dumps").glob("proposer-*.json")
    values = [value for sample in load_dump(path) for value in sample.advantages_L]
    assert sum(value != value for value in values) == 1


def test_a_guard_rolls_back_once_and_then_stops(rig: Rig) -> None:
    run = rig.run
    run.config.guards = [GuardConfig("learner/debater/approx_kl", above=-1.0, action="roll_back")]
    run.guards = Guards(run.config.guards)
    run.config.stages["again"] = replace(
        run.config.stages["debate"], steps=5, max_staleness=1, update={"judge": UpdateConfig(after=4)}
    )
    run.archives["again"] = Archive()
    start, begun, pushed = rig(rig.weights()), len(rig.steps), len(rig.players.pushed)
    with pytest.raises(Stopped):
        rig(rig.trainer.train_stage("again"))
    first, second = [step for step in rig.steps[begun:] if step[0] == "debater"]
    assert first[1]["debater"] == start["debater"] != first[2]["debater"]
    assert second[1]["debater"] == start["debater"], "it must begin again from the checkpoint"
    assert first[3][0].meta["index"] != second[3][0].meta["index"], "with other plays"
    assert [alarm["action"] for alarm in run.guards.history] == ["roll_back", "stop"]
    assert run.progress["again"].step == 2
    debater = [version for name, version in rig.players.pushed[pushed:] if name == "debater"]
    assert debater == list(range(debater[0], debater[0] + 3)), "learned, rolled back, learned"
    assert any(kind == "guards" and values.get("rolled_back_steps") == 1.0 for kind, _, values in rig.notes.logged)
