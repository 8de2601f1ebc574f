"""Two engines of one policy on Ray: plays reach both, weights too; one that dies loses no play."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from actors.players.base import Seated, UniformPlayer
from actors.players.chat import ChatCodec
from actors.rollout.loop import play_all
from actors.system import ServedPolicy, System
from configs.load import load_protocol
from configs.schema.run import EngineConfig, ModelConfig, PolicyConfig
from learners.models.tiny import materialise
from learners.weights import read_folder
from protocols.types import TurnRequest
from tasks.kinds.pixels import Pixels
from tests.support.rigs import ROOT, Rig, rigged

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


class Served(Rig):
    """One policy on two engines, which debates before a judge that says half and half."""

    def __init__(self, folder: Path):
        super().__init__()
        self.source, self.protocol = Pixels(), load_protocol(ROOT / "configs" / "protocol" / "pixel_debate.yaml")
        model = ModelConfig(hidden_size=32, layers=1, heads=2, kv_heads=1, intermediate_size=64, max_len=256)
        policy = PolicyConfig(model=model, engine=EngineConfig(replicas=2, kv_cache_mb=32))
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


def test_both_engines_play(rig: Served) -> None:
    rig.play("plain", 20)
    requests = [status["requests"] for status in rig(rig.system.statuses())["p"]]
    assert min(requests) > 10, "one engine was not asked"
    assert sum(requests) == rig.served.router.counters.requests
    assert rig.served.router.counters.restarts == 0


def test_weights_reach_both(rig: Served) -> None:
    import ray

    rig(rig.system.push("p", 3, ray.put(read_folder(Path(rig.model_dir)))))
    (play, *_) = rig.play("pushed", 2)
    assert {v for turn in play[0].turns if turn.role == "debater" for v in turn.trace.versions_T} == {3}
    assert [status["version"] for status in rig(rig.system.statuses())["p"]] == [3, 3]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_one_killed_in_the_middle_of_play_comes_back_with_the_current_weights(rig: Served, how: signal.Signals) -> None:
    before, other = rig(rig.system.statuses())["p"]
    restarts = rig.served.router.counters.restarts
    rig.play(f"engine {how}", 60, 150, lambda: os.kill(before["pid"], how))
    rig(until_up(rig))
    assert rig.served.router.counters.restarts == restarts + 1
    now, same = rig(rig.system.statuses())["p"]
    assert now["pid"] != before["pid"] and same["pid"] == other["pid"]
    assert now["version"] == same["version"] == 3


async def until_up(rig: Served) -> None:
    while not all(replica.up for replica in rig.served.router.replicas):
        await asyncio.sleep(0.1)


def test_a_connection_that_breaks_costs_nothing(rig: Served) -> None:
    """Ray knows nothing of it: the engine ends its process, and that Ray tells."""
    before, _ = rig(rig.system.statuses())["p"]
    port = int(rig.served.channels[0]._hub.address.rpartition(":")[2])
    rig.play("broken", 60, 150, lambda: cut(before["pid"], port))
    rig(until_up(rig))
    now, _ = rig(rig.system.statuses())["p"]
    assert now["pid"] != before["pid"] and now["version"] == 3


def cut(pid: int, port: int) -> None:
    """Ends the connection of that process to a port of this one, as a network may."""
    theirs = {one.laddr.port for one in psutil.Process(pid).net_connections() if one.raddr and one.raddr.port == port}
    ours = [one for one in psutil.Process().net_connections() if one.raddr and one.raddr.port in theirs]
    assert len(theirs) == len(ours) == 1
    with socket.socket(fileno=os.dup(ours[0].fd)) as connection:
        connection.shutdown(socket.SHUT_RDWR)


def test_engines_end_when_their_policy_is_retired(rig: Served) -> None:
    """The last test of this file."""
    from ray.exceptions import RayActorError

    engines = [channel.engine for channel in rig.served.channels]
    rig.system.retire("p")
    for engine in engines:
        with pytest.raises(RayActorError):
            for _ in range(100):  # what has been killed may still answer a moment later
                rig(engine.ready.remote())
                rig(asyncio.sleep(0.1))
