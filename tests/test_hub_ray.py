"""Two engines behind a hub, on Ray: plays reach them, weights too; a dead hub or a dead engine loses none."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors.chat import ChatCodec
from actors.hub import Line
from actors.players import UniformPlayer
from actors.rollouts import play_all
from actors.runner import Seated
from actors.system import ServedPolicy, System
from configs.load import load_protocol
from configs.schema import EngineConfig, ModelConfig, PolicyConfig
from learners.models import materialise
from learners.weights import read_folder
from protocols.types import TurnRequest
from tasks.pixels import Pixels
from tests.rigs import ROOT, Rig, rigged

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


class Served(Rig):
    """One policy on two engines with a hub, which debates before a judge that says half and half."""

    def __init__(self, folder: Path):
        super().__init__()
        self.source, self.protocol = Pixels(), load_protocol(ROOT / "configs" / "protocol" / "pixel_debate.yaml")
        model = ModelConfig(hidden_size=32, layers=1, heads=2, kv_heads=1, intermediate_size=64, max_len=256)
        policy = PolicyConfig(model=model, engine=EngineConfig(replicas=2, kv_cache_mb=32, hub=True))
        sides = [f"{side}={label}" for side in ("for", "not") for label in range(10)]
        self.model_dir = str(materialise(model, [*self.source.words(), "image", "they", *sides], folder))
        self.system = System({"p": policy}, seed=0)
        codec = ChatCodec.from_pretrained(self.model_dir)
        self.served: ServedPolicy = self(self.system.serve("p", self.model_dir, codec))

    def play(self, name: str, count: int, at: int = 0, then: Any = None) -> list[Any]:
        """Debates; `then` is called when the judge has been asked `at` times."""
        judge, asked = UniformPlayer(), 0

        async def watching(request: TurnRequest, history: Any) -> Any:
            nonlocal asked
            asked += 1
            if asked == at:
                then()
            return await judge(request, history)

        players = {"debater": Seated("p", self.served.player), "judge": Seated("u", watching)}
        plays = self(play_all(self.protocol, self.source.derived_heldout(count, 3), players, name, 3))
        assert len(plays) == count and all(play[0].status == "ok" for play in plays)
        return list(plays)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with rigged(lambda: Served(tmp_path_factory.mktemp("model")), actors=2) as rig:
        yield rig


def test_both_engines_play_through_one_hub(rig: Served) -> None:
    (trunk,) = rig.served.trunks
    assert all(isinstance(replica.handle, Line) for replica in rig.served.router.replicas)
    rig.play("plain", 20)
    requests = [status["requests"] for status in rig(rig.system.statuses())["p"]]
    assert min(requests) > 10, "one engine was not asked"
    assert sum(requests) == rig.served.router.counters.requests
    assert len(trunk.lines) == 2 and rig.served.router.counters.restarts == 0


def test_weights_reach_every_engine_behind_it(rig: Served) -> None:
    import ray

    rig(rig.system.push("p", 3, ray.put(read_folder(Path(rig.model_dir)))))
    (play, *_) = rig.play("pushed", 2)
    assert {v for turn in play[0].turns if turn.role == "debater" for v in turn.trace.versions_T} == {3}
    assert [status["version"] for status in rig(rig.system.statuses())["p"]] == [3, 3]


def test_a_hub_killed_in_the_middle_of_play_costs_nothing(rig: Served) -> None:
    import ray

    before = rig.served.router.counters.restarts
    (trunk,) = rig.served.trunks
    rig.play("hub", 60, 150, lambda: ray.kill(trunk.hub, no_restart=False))
    assert rig.served.router.counters.restarts > before, "the hub was not missed: nothing was tested"
    assert all(replica.up for replica in rig.served.router.replicas)
    rig.play("after", 10)


def test_an_engine_killed_behind_it_comes_back_with_the_current_weights(rig: Served) -> None:
    before, other = rig(rig.system.statuses())["p"]
    rig.play("engine", 60, 150, lambda: os.kill(before["pid"], signal.SIGKILL))
    rig(until_up(rig))
    now, same = rig(rig.system.statuses())["p"]
    assert now["pid"] != before["pid"] and same["pid"] == other["pid"]
    assert now["version"] == same["version"] == 3


async def until_up(rig: Served) -> None:
    while not all(replica.up for replica in rig.served.router.replicas):
        await asyncio.sleep(0.1)


def test_the_hub_ends_with_its_engines(rig: Served) -> None:
    """The last test of this file."""
    from ray.exceptions import RayActorError

    (trunk,) = rig.served.trunks
    rig(trunk.hub.ready.remote())
    rig.system.retire("p")
    for actor in (trunk.hub, *rig.served.handles):
        with pytest.raises(RayActorError):
            for _ in range(100):  # what has been killed may still answer a moment later
                rig(actor.ready.remote())
                rig(asyncio.sleep(0.1))
