"""Opponent checkpoints on a real engine: what it says after an exchange is what an engine started on that snapshot
says."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.league.pool import Snapshot
from actors.players.chat import ChatCodec
from actors.system import System, start_ray
from configs.schema.run import ClusterConfig, EngineConfig, ModelConfig, PolicyConfig
from driver.league import start_slots
from learners.models.tiny import materialise
from protocols.types import Message, TurnRequest

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

MODEL = ModelConfig(hidden_size=64, layers=2, heads=2, kv_heads=1, max_len=64, tie_embeddings=True)
ENGINE = EngineConfig(kv_cache_mb=32)
READ = TurnRequest("a", "player", (Message("user", "rock or paper"),), 0, choices=("rock", "paper"), read=True)
MOVE = TurnRequest("a", "player", (Message("user", "rock or paper"),), 0, choices=("rock", "paper"))


async def scenario(folder: Path) -> None:
    folders = [materialise(replace(MODEL, seed=seed), ["rock or paper"], folder / f"m{seed}") for seed in range(3)]
    codec = ChatCodec.from_pretrained(str(folders[0]))
    policies = {"p": PolicyConfig(model=MODEL, engine=ENGINE, trained=True),
                "past": PolicyConfig(kind="past", of=["p"], engine=ENGINE)}  # fmt: skip
    system = System(policies, seed=0)
    run: Any = SimpleNamespace(
        dir=folder, system=system, config=SimpleNamespace(policies=policies, seed=0, deterministic=False),
        models={"p": str(folders[0])}, codecs={"p": codec},
    )  # fmt: skip
    try:
        (slot,) = await start_slots(run, "past")
        found = []
        for version in (1, 2, 1):  # back to an older one, too
            await slot.hold(Snapshot("p", version, f"m{version}"))
            async with slot.playing() as past:
                assert past.policy == f"p@{version}"
                found.append((await past.player(READ, ())).probs)
                moved = await past.player(MOVE, ())
                assert moved.trace is not None and set(moved.trace.versions_T) == {version}
        assert found[0] == pytest.approx(found[2], abs=1e-6) and abs(found[0][0] - found[1][0]) > 1e-4
        for version, probs in ((1, found[0]), (2, found[1])):
            fresh = await system.serve(f"fresh{version}", str(folders[version]), codec, config=policies["p"])
            assert (await fresh.player(READ, ())).probs == pytest.approx(probs, abs=1e-5)
    finally:
        system.stop()
        await asyncio.sleep(0.1)


def test_an_engine_says_what_the_opponent_checkpoint_that_it_holds_would_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    start_ray(ClusterConfig(), actors=4)
    try:
        asyncio.run(asyncio.wait_for(scenario(tmp_path), 300))
    finally:
        ray.shutdown()
