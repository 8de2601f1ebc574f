"""The parts together: real Ray, vLLM and DeepSpeed. A run from the command line that is interrupted and goes on;
weights that reach the engines, and one that does not; an engine that is killed in the middle of play."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors.concurrency import gather_or_cancel
from actors.players.base import Seated, UniformPlayer
from actors.players.chat import ChatCodec
from actors.rollout import records
from actors.rollout.loop import play_all
from actors.system import System
from configs.load import load_protocol
from configs.schema.run import EngineConfig, LearnerConfig, LoraConfig, ModelConfig, PolicyConfig
from driver import checkpoint
from learners.credit.samples import imitation_samples
from learners.models.tiny import materialise
from learners.ranks.group import LearnerGroup
from learners.types import Sample
from protocols.phased.interpreter import Phased
from protocols.types import Episode, Message, TurnRequest
from reporting.tracker import read_metrics
from tasks.kinds.pixels import Pixels
from tests.support.rigs import ROOT, Rig, rigged

PROTOCOLS = ROOT / "configs" / "protocol"
TOLERANCE = 1e-4
"""Nats between vLLM and the learner, both in float32 on CPU."""

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


# ---- a run from the command line ---------------------------------------------------------------------


def launch(*args: str | Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "launch.py"), *map(str, args)],
            cwd=log.parent, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip


def ended(process: subprocess.Popen[bytes], log: Path, code: int) -> str:
    try:
        found = process.wait(timeout=400)
    finally:
        process.kill()
    text = log.read_text()
    assert found == code, f"exit code {found}, not {code}:\n{text}"
    return text


def learner_lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    lines = read_metrics(path) if path.exists() else ()
    return [line for line in lines if line["kind"].startswith("learner/")]


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


class Interrupted:
    """A run of the smoke config that was sent SIGINT after its first learner step."""

    def __init__(self, folder: Path):
        self.folder, self.run_dir = folder, folder / "run"
        self.log = folder / "first.log"
        # More steps than there is time for: the run cannot end before it is interrupted.
        process = launch(
            "train", ROOT / "configs" / "smoke.yaml", f"run_dir={self.run_dir}", "stages.debate.steps=100000",
            "track.wandb=offline", "eval.ceiling_episodes=2", log=self.log,
        )  # fmt: skip
        try:
            while process.poll() is None and not learner_lines(self.run_dir):
                time.sleep(0.1)
            process.send_signal(signal.SIGINT)
            self.screen = ended(process, self.log, 130)
        finally:
            process.kill()
        self.summary = summary(self.run_dir)
        newest = checkpoint.newest_valid(self.run_dir / "checkpoints")
        assert newest is not None, "no checkpoint was written, or it does not verify"
        self.state = json.loads((newest / "run.json").read_text())
        self.trained = sorted({path.parent.parent.name for path in newest.glob("*/hf/model.safetensors")})
        self.plays = {episode.id for episode in records.read(self.run_dir / "episodes.jsonl")}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    return Interrupted(tmp_path_factory.mktemp("cli"))


@pytest.fixture(scope="module")
def resumed(interrupted: Interrupted) -> Interrupted:
    """The same run, continued until two more steps are done."""
    steps = interrupted.state["progress"]["debate"]["step"] + 2
    log = interrupted.folder / "second.log"
    process = launch("train", interrupted.run_dir, "--resume", f"stages.debate.steps={steps}", log=log)
    ended(process, log, 0)
    return interrupted


def test_ctrl_c_saves_and_ends_with_130(interrupted: Interrupted) -> None:
    assert interrupted.summary["finished"] is False
    assert interrupted.state["progress"]["debate"]["step"] >= 1
    assert interrupted.state["updates"] == interrupted.summary["policy_updates"] > 0
    assert interrupted.trained == ["debater", "proposer"]
    assert set(interrupted.summary["judge_accuracy"]) == {"random_evidence", "untrained"}
    assert "--resume" in interrupted.screen and "Traceback" not in interrupted.screen


def test_the_run_goes_on_and_ends(resumed: Interrupted) -> None:
    done = summary(resumed.run_dir)
    assert done["finished"] is True and done["lost_episodes"] == 0 and done["wall_s"] > 0
    assert set(done["judge_accuracy"]) == {
        "random_evidence", "untrained", "trained", "consultancy", "minimax_ceiling"
    }  # fmt: skip
    for name, arm in done["judge_accuracy"].items():
        assert 0 <= arm["low"] <= arm["mean"] <= arm["high"] <= 1, name
        assert arm["n"] == (2 if name == "minimax_ceiling" else 8), name
    # What was measured before the interruption stands.
    for name, arm in resumed.summary["judge_accuracy"].items():
        assert done["judge_accuracy"][name] == arm
    steps = resumed.state["progress"]["debate"]["step"]
    assert done["stages"]["debate"]["step"] == steps + 2 and done["stages"]["consultancy"]["step"] == 1
    assert done["policy_updates"] > resumed.summary["policy_updates"]
    assert "minimax" in (resumed.run_dir / "report.html").read_text()


def test_every_episode_is_recorded_once(resumed: Interrupted) -> None:
    episodes = list(records.read(resumed.run_dir / "episodes.jsonl"))
    ids = [episode.id for episode in episodes]
    done = summary(resumed.run_dir)
    assert len(ids) == len(set(ids)) == done["episodes"]
    assert resumed.plays <= set(ids), "an episode of the first session is gone"
    traces = [turn.trace for episode in episodes for turn in episode.turns if turn.trace is not None]
    assert sum(len(trace.output_ids_T) for trace in traces) == done["tokens"] > 0
    # Every image of an arm is held out, every image trained on is not.
    held = {task.id for task in Pixels().heldout(500, seed=0)}
    for episode in episodes:
        stage = episode.id.split("-")[0]
        assert ((episode.task.parent or episode.task.id) in held) == (stage not in ("debate", "consultancy"))


def test_learners_and_engines_agreed_in_every_step(resumed: Interrupted) -> None:
    lines = learner_lines(resumed.run_dir)
    assert {line["kind"] for line in lines} == {"learner/debater", "learner/proposer", "learner/consultant"}
    # The proposer's rewards may all be equal; then it has nothing to learn from in this step.
    lines = [line for line in lines if "empty" not in line["values"]]
    assert {line["kind"] for line in lines} >= {"learner/debater", "learner/consultant"}
    for line in lines:
        assert line["values"]["sampler_gap_max"] < TOLERANCE, line
    versions = [line["values"]["version"] for line in lines if line["kind"] == "learner/debater"]
    assert versions == [float(version) for version in range(1, len(versions) + 1)], "a version was skipped"


def test_what_the_run_left_can_be_replayed_and_measured(resumed: Interrupted) -> None:
    for folder in checkpoint.checkpoints(resumed.run_dir / "checkpoints"):
        checkpoint.verify(folder)
    log = resumed.folder / "replay.log"
    text = ended(launch("replay", resumed.run_dir, "trained-0", "--seat", "alice", log=log), log, 0)
    assert "image" in text
    log = resumed.folder / "eval.log"
    # One arm only: the other is declared to belong to the start.
    process = launch("eval", resumed.run_dir, "eval.arms.consultancy.when=start", log=log)
    ended(process, log, 0)
    found = summary(resumed.run_dir / "eval")["judge_accuracy"]
    assert set(found) == {"trained", "minimax_ceiling"}
    assert found["minimax_ceiling"] == summary(resumed.run_dir)["judge_accuracy"]["minimax_ceiling"]


# ---- weights and engines -----------------------------------------------------------------------------


class Learning(Rig):
    """One policy with an engine and a learner, and plays against a judge that always says half and half."""

    def __init__(self, folder: Path, lora: LoraConfig | None = None):
        super().__init__()
        self.source = Pixels()
        self.choosing, free = (
            load_protocol(PROTOCOLS / f"{n}.yaml") for n in ("pixel_debate", "pixel_debate_free")
        )
        assert isinstance(free, Phased)
        phases = [replace(phase, temperature=1.4) for phase in free.phases]
        self.writing = replace(free, phases=phases)
        model = ModelConfig(hidden_size=64, layers=2, heads=2, kv_heads=1, max_len=256, tie_embeddings=True)
        engine = EngineConfig(kv_cache_mb=32)
        self.policy = PolicyConfig(
            model=model,
            engine=engine,
            trained=True,
            learner=LearnerConfig(lr=1e-2, epochs=2, lora=lora),
            temperature=0.7,
        )
        sides = [f"{side}={label}" for side in ("for", "not") for label in range(10)]
        words = [*self.source.words(), "image", "they", "none", *sides]
        self.model_dir = model_dir = str(materialise(model, words, folder))
        self.codec = ChatCodec.from_pretrained(model_dir)
        self.system = System({"p": self.policy}, seed=0)
        self.learner = LearnerGroup("p", model_dir, self.policy.learner)
        self(gather_or_cancel([self.learner.ready(), self.system.serve("p", model_dir, self.codec)]))
        self.served = self.system.served["p"]
        self.players = {"debater": Seated("p", self.served.player), "judge": Seated("u", UniformPlayer())}

    def stop(self) -> None:
        self.learner.stop()
        super().stop()

    def play(self, seed: int, count: int = 6) -> list[list[Episode]]:
        """Debates of both kinds: one limited to choices at temperature 0.7, one in free text at 1.4."""
        tasks = self.source.derived_heldout(count, seed)
        return [
            play
            for protocol in (self.choosing, self.writing)
            for play in self(play_all(protocol, tasks, self.players, "test", seed))
        ]

    def samples(self, plays: list[list[Episode]], seed: int) -> list[Sample]:
        """Every sampled token, with made-up advantages."""
        rng = random.Random(seed)
        samples = imitation_samples([episode for play in plays for episode in play], ["debater"])
        for sample in samples:
            sample.advantages_L = [rng.gauss(0, 1) for _ in sample.positions_L]
        return samples

    def gap(self, samples: list[Sample]) -> float:
        """Largest difference between what the engine said when it sampled and what the learner says now."""
        found = self(self.learner.logprobs(samples))
        return max(abs(a - b) for sample, own in zip(samples, found) for a, b in zip(sample.logprobs_L, own))

    def learn(self, samples: list[Sample]) -> dict[str, float]:
        return self(self.learner.step(samples, version=self.served.version))

    def push(self) -> int:
        version = self.served.version + 1
        self(self.system.push("p", version, self(self.learner.export_ref())))
        return version


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Learning]:
    with rigged(lambda: Learning(tmp_path_factory.mktemp("model")), actors=3) as rig:
        yield rig


def versions(samples: list[Sample]) -> set[int]:
    return {version for sample in samples for version in sample.versions_L}


def test_engine_and_learner_agree_after_every_push(rig: Learning) -> None:
    for version in range(4):
        samples = rig.samples(rig.play(version), version)
        assert versions(samples) == {version}
        assert {(s.temperature, s.allowed_L is None) for s in samples} == {(0.7, False), (1.4, True)}
        assert rig.gap(samples) < TOLERANCE
        figures = rig.learn(samples)
        assert figures["sampler_gap_max"] < TOLERANCE and figures["updates"] == 2
        assert rig.gap(samples) > 100 * TOLERANCE, "the learner has not moved: nothing was tested"
        assert rig.push() == version + 1
    assert rig(rig.system.statuses())["p"][0]["version"] == 4


def test_reads_are_forgotten_with_the_weights(rig: Learning) -> None:
    request = TurnRequest("j", "judge", (Message("user", "image"),), 0, choices=("1", "2"), read=True)
    player = rig.served.player
    before = rig(player(request, ()))
    hits = rig.served.router.counters.memo_hits
    assert rig(player(request, ())).probs == before.probs and sum(before.probs) == pytest.approx(1, abs=1e-5)
    assert rig.served.router.counters.memo_hits == hits + 1
    rig.learn(rig.samples(rig.play(20), 20))
    version = rig.push()
    after = rig(player(request, ()))
    assert after.probs != before.probs
    assert before.trace and after.trace and after.trace.versions_T == (version,)
    assert before.trace.versions_T == (version - 1,)


def test_a_sync_that_brings_old_weights_is_noticed(rig: Learning) -> None:
    old = rig(rig.learner.export_ref())
    rig.learn(rig.samples(rig.play(30), 30))
    rig(rig.system.push("p", rig.served.version + 1, old))
    samples = rig.samples(rig.play(31), 31)
    assert versions(samples) == {rig.served.version}, "the engine claims to have the new weights"
    assert rig.gap(samples) > 10 * TOLERANCE
    assert rig.learn(samples)["sampler_gap_max"] > 10 * TOLERANCE
    rig.push()
    assert rig.gap(rig.samples(rig.play(32), 32)) < TOLERANCE


def test_an_engine_killed_in_the_middle_of_play_costs_nothing(rig: Learning) -> None:
    before = rig(rig.system.statuses())["p"][0]
    judge = UniformPlayer()
    asked = 0

    async def killing_judge(request: TurnRequest, history: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 150:  # 120 questions before the first reveals, then 15 answers of the engine, two each
            os.kill(before["pid"], signal.SIGKILL)
        return await judge(request, history)

    players = {**rig.players, "judge": Seated("u", killing_judge)}
    tasks = rig.source.derived_heldout(60, seed=5)
    plays = rig(play_all(rig.choosing, tasks, players, "killed", 5))
    assert len(plays) == 60 and all(play[0].status == "ok" and len(play[0].turns) == 14 for play in plays)
    counters = rig.served.router.counters
    assert counters.restarts == 1 and counters.retried >= 1
    (now,) = rig(rig.system.statuses())["p"]
    assert now["pid"] != before["pid"] and now["version"] == before["version"] == rig.served.version > 0
    # The folder on disk has version 0; both engines, the killed and the new one, had the current weights.
    samples = rig.samples(plays, 5)
    assert versions(samples) == {rig.served.version} and rig.gap(samples) < TOLERANCE
    rig.learn(samples)
    rig.push()
    assert rig.gap(rig.samples(rig.play(6), 6)) < TOLERANCE


def test_an_engine_that_died_while_nobody_asked_answers_with_the_current_weights(rig: Learning) -> None:
    """Ray has brought it back with the weights of the disk before anybody could notice."""
    request = TurnRequest("j", "judge", (Message("user", "image"),), 0, choices=("1", "2"), read=True)
    rig.served.player.forget()
    before = rig(rig.served.player(request, ()))
    (status,) = rig(rig.system.statuses())["p"]
    restarts = rig.served.router.counters.restarts
    os.kill(status["pid"], signal.SIGKILL)
    (now,) = rig(back(rig, status["pid"]))
    assert now["version"] == 0 < rig.served.version, "it has the current weights by itself: nothing was tested"
    rig.served.player.forget()
    after = rig(rig.served.player(request, ()))
    assert before.trace and after.trace and after.trace.versions_T == before.trace.versions_T
    assert after.probs == pytest.approx(before.probs, abs=1e-5)
    assert rig.served.router.counters.restarts == restarts + 1


async def back(rig: Learning, pid: int) -> list[dict[str, Any]]:
    """Waits until another process than `pid` answers for the engine."""
    from ray.exceptions import RayActorError

    while True:
        try:
            found = (await rig.system.statuses())["p"]
            if found[0]["pid"] != pid:
                return found
        except RayActorError:
            pass
        await asyncio.sleep(0.2)


def test_an_engine_that_dies_after_its_learner_has_ended_gets_the_last_weights(rig: Learning) -> None:
    """The last test of this file: the learner owns what it pushed, and is gone afterwards."""
    request = TurnRequest("j", "judge", (Message("user", "image"),), 0, choices=("1", "2"), read=True)
    rig.served.player.forget()
    before = rig(rig.served.player(request, ()))
    rig(rig.system.keep("p"))
    rig.learner.stop()
    (status,) = rig(rig.system.statuses())["p"]
    os.kill(status["pid"], signal.SIGKILL)
    rig.served.player.forget()
    after = rig(rig.served.player(request, ()))
    assert before.trace and after.trace and after.trace.versions_T == before.trace.versions_T
    assert after.trace.versions_T[0] == rig.served.version > 0
    assert after.probs == pytest.approx(before.probs, abs=1e-5)
    (now,) = rig(rig.system.statuses())["p"]
    assert now["pid"] != status["pid"]
