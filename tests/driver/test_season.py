"""A whole run with a league, engines and learners replaced by stand-ins: the driver's own code from first to last."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from actors.players.base import Seated
from actors.rollout import records
from actors.rollout.ledger import Ledger
from actors.serving.router import Counters
from configs.load import load
from driver import run as loop
from driver.loop import Trainer
from protocols.types import Reply, TokenTrace, Turn, TurnRequest

PROTOCOL = Path(__file__).resolve().parent.parent.parent / "configs" / "protocol" / "pixel_debate.yaml"
CONFIG = f"""\
tasks: {{kind: pixels}}
protocols: {{debate: {PROTOCOL}}}
policies:
  judge: {{model: {{max_len: 128}}}}
  debater: {{trained: true, learner: {{advantage: {{kind: reinforce}}}}}}
  past: {{kind: past, of: [debater], engine: {{replicas: 2}}}}
stages:
  main:
    protocol: debate
    roles: {{debater: debater, judge: judge}}
    opponents: {{seats: [alice, bob], mix: {{self: 0.3, pfsp: 0.7}}, past: past, every: 2, keep: 3}}
    steps: 6
    plays_per_step: 6
eval:
  cross_play: main
  cross_play_episodes: 8
  arms:
    average: {{protocol: debate, roles: {{debater: past, judge: judge}}, episodes: 10}}
track: {{wandb: disabled, save_every: 2}}
"""


class Engines:
    """`actors.system.System` as the driver sees it. A served policy is its weights: one number."""

    def __init__(self, policies: Any, seed: int, *more: Any):
        self.served: dict[str, Any] = {}
        self.seeds: dict[str, int | None] = {}

    async def serve(self, name: str, model_dir: str, codec: Any, version: int = 0, config: Any = None,
                    seed: int | None = None) -> None:  # fmt: skip
        served = SimpleNamespace(name=name, version=version, weights=0.0, sync_seconds=0.0, sync_bytes=0,
                                 drain_seconds=0.0)  # fmt: skip
        if (Path(model_dir) / "model.safetensors").exists():
            served.weights = float(load_file(Path(model_dir) / "model.safetensors")["w"][0])
        served.router, served.player = SimpleNamespace(counters=Counters()), Player(served)
        self.served[name], self.seeds[name] = served, seed

    async def push(self, name: str, version: int, weights: Any) -> None:
        served = self.served[name]
        assert version > served.version, "engines take no older version than they have"
        if isinstance(weights, list):
            (bucket,) = weights
            weights = float(bucket["data"].view(np.float32)[0])
        served.version, served.weights = version, weights

    async def refresh(self) -> None:
        pass

    async def keep(self, name: str) -> None:
        pass

    def players(self, roles: dict[str, str], temperature: float | None = None) -> dict[str, Seated]:
        return {role: Seated(policy, self.served[policy].player) for role, policy in roles.items()}


class Player:
    """Replies that depend on chat and weights alone."""

    def __init__(self, served: Any):
        self.served = served

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        await asyncio.sleep(0)
        text = f"{[message.text for message in request.messages]} {self.served.weights}"
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        versions_T = (self.served.version,)
        if request.read:
            share = number / 2**32
            return Reply(request.choices[0], (share, 1 - share), TokenTrace((1,), (), (), versions_T))
        trace = TokenTrace((1, int(self.served.weights)), (3,), (-0.5,), versions_T)
        return Reply(request.choices[number % len(request.choices)], trace=trace)


class Learner:
    """`learners.ranks.group.LearnerGroup`: its weights count its steps."""

    def __init__(self, policy: str, model_dir: str, *more: Any, **settings: Any):
        self.steps = 0.0
        self.config = SimpleNamespace(lora=None)

    async def ready(self) -> None:
        pass

    async def step(self, samples: Sequence[Any], **settings: Any) -> dict[str, float]:
        self.steps += 1
        return {"updates": 1.0, "loss": 0.0}

    async def export_ref(self) -> float:
        return self.steps

    async def save(self, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "steps").write_text(str(self.steps))
        (Path(folder) / "learner.json").write_text("{}")

    async def load(self, folder: str, scratch: str = "") -> None:
        self.steps = float((Path(folder) / "steps").read_text())

    async def save_hf(self, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file({"w": np.array([self.steps], np.float32)}, Path(folder) / "model.safetensors")

    def stop(self) -> None:
        pass


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    import ray

    async def no_words(*anything: Any) -> list[str]:
        return []

    def made(model: Any, words: Any, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    monkeypatch.setattr(loop, "System", Engines)
    monkeypatch.setattr(loop, "LearnerGroup", Learner)
    monkeypatch.setattr(loop, "words_in_play", no_words)
    monkeypatch.setattr(loop, "materialise", made)
    monkeypatch.setattr(loop, "ChatCodec", MagicMock())
    monkeypatch.setattr(ray, "put", lambda value: value)

    def _make(folder: str) -> loop.Run:
        path = tmp_path / "c.yaml"
        path.write_text(CONFIG)
        config = load(path, [f"run_dir={tmp_path / folder}"]).config
        tracker = MagicMock()
        tracker.transcripts_due.return_value = False
        return loop.Run(config, tracker, Ledger(tmp_path / folder))

    return _make


def trained(run: loop.Run) -> list[Any]:
    return [episode for episode in records.read(run.ledger.path) if episode.meta.get("stage")]


def test_a_run_with_a_league(make: Any, tmp_path: Path) -> None:
    run = make("one")
    asyncio.run(Trainer(run).go(None))
    run.ledger.close()
    assert [one.version for one in run.league.pool] == [0, 4, 6]
    assert {"past.0", "past.1"} < set(run.system.served) and "past" not in run.system.served
    assert len({run.system.seeds["past.0"], run.system.seeds["past.1"], None}) == 3, "engines draw for themselves"

    plays = trained(run)
    assert len(plays) == 36
    for episode in plays:
        seats = {turn.seat: turn.policy for turn in episode.turns}
        past = [seat for seat, policy in seats.items() if "@" in policy]
        assert seats["judge"] == "judge" and past in ([], ["alice" if episode.meta["index"] % 2 == 0 else "bob"])
        for turn in episode.turns:
            if "@" in turn.policy:
                version = int(turn.policy.partition("@")[2])
                assert turn.trace.versions_T == (version,) and turn.trace.prompt_ids_P == (1, version), "its weights"
    met = {turn.policy for episode in plays for turn in episode.turns if "@" in turn.policy}
    assert met == {"debater@0", "debater@2", "debater@4"}, "the last snapshot is of the end"

    arm = [episode for episode in records.read(run.ledger.path) if episode.meta.get("arm") == "average"]
    assert run.accuracy["average"]["n"] == 10 and sorted(e.id for e in arm) == sorted(f"average-{i}" for i in range(10))
    shares = [{turn.policy for turn in episode.turns if turn.role == "debater"} for episode in arm]
    assert all(len(share) == 1 for share in shares) and sorted(
        [shares.count({f"debater@{v}"}) for v in (0, 4, 6)]) == [3, 3, 4]  # fmt: skip

    wins_CNN = run.league.results.wins()
    assert sorted(run.league.results.players) == ["debater@0", "debater@4", "debater@6"]
    assert (wins_CNN.sum(0) + wins_CNN.sum(0).T)[~np.eye(3, dtype=bool)].tolist() == [8.0] * 6
    assert len(wins_CNN) <= 4, "both orders meet the same tasks, and those of one image are one question"


def test_a_resumed_league_ends_as_if_nothing_had_happened(make: Any, tmp_path: Path) -> None:
    """Resumed from the checkpoint in the middle, with nothing recorded after it."""
    whole = make("whole")
    asyncio.run(Trainer(whole).go(None))
    whole.ledger.close()
    shutil.copytree(tmp_path / "whole", tmp_path / "part")
    (tmp_path / "part" / "episodes.jsonl").unlink()
    for folder in (tmp_path / "part" / "models" / "debater").glob("past-6"):
        shutil.rmtree(folder)
    part = make("part")
    asyncio.run(Trainer(part).go(tmp_path / "part" / "checkpoints" / "step-4"))
    part.ledger.close()
    assert part.league.state() == whole.league.state()
    assert part.accuracy == whole.accuracy
    late = {e.id: e for e in trained(whole) if e.meta["index"] >= 24}
    again = {e.id: e for e in trained(part)}
    assert again.keys() == late.keys() and all(again[id].turns == late[id].turns for id in late)


def test_weights_that_nobody_needs_are_removed(make: Any, tmp_path: Path) -> None:
    run = make("one")
    asyncio.run(Trainer(run).go(None))
    run.ledger.close()
    kept = {path.name for path in (tmp_path / "one" / "models" / "debater").glob("past-*")}
    assert kept == {"past-0", "past-2", "past-4", "past-6"}, "past-2 has left, but the checkpoint before names it"
    (tmp_path / "one" / "checkpoints" / "step-4" / "run.json").unlink()
    shutil.rmtree(tmp_path / "one" / "checkpoints" / "step-4")
    asyncio.run(run.save())
    kept = {path.name for path in (tmp_path / "one" / "models" / "debater").glob("past-*")}
    assert kept == {"past-0", "past-4", "past-6"}
