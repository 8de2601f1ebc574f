"""A package outside of the repository adds a kind of task, a kind of protocol and a reward."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import launch
from actors.players.base import Seated
from actors.rollout.runner import run_play
from configs.load import load, load_task_source
from configs.reading.errors import ConfigErrors
from protocols.extension import Registry
from protocols.registry import KINDS
from protocols.rewards.registry import REWARDS
from tasks.registry import SOURCES

MODULE = '''
import random
from dataclasses import dataclass
from typing import ClassVar

from protocols.kinds.solve import Solve
from protocols.registry import KINDS
from protocols.rewards.record import reward
from protocols.types import Domain, InvalidProposal, Reward, Task
from tasks.base import TaskSource
from tasks.registry import SOURCES


@dataclass(frozen=True)
class Coin(Domain):
    def derive(self, task, proposal):
        raise InvalidProposal("a coin is a coin")

    def check(self, task, answer):
        return answer == task.answer


@SOURCES.register("coins", reads={"sides"}, source="nobody 2026")
@dataclass(frozen=True)
class Coins(TaskSource):
    """Which side is up."""

    kind: ClassVar[str] = "coins"
    sides: int = 2

    def train(self, rng):
        return self.root(f"coin{rng.randrange(10)}")

    def heldout(self, n, seed):
        return [self.root(f"coin{10 + i}") for i in range(n)]

    derived_heldout = heldout

    def root(self, task_id):
        return Task(task_id, "heads or tails ?", "heads", ("heads", "tails"), domain=Coin())

    def words(self):
        return ["heads", "or", "tails", "?"]


@KINDS.register("guess")
@dataclass(frozen=True)
class Guess(Solve):
    """Solve, under a name of its own."""

    kind: ClassVar[str] = "guess"


@reward("twice", "verifier")
def twice(record, params):
    """Twice the score."""
    for seat in record.roles:
        yield Reward(seat, None, 2 * (record.score or 0.0), "twice")
'''
CONFIG = """
name: outside
plugins: [outside_package]
tasks: {kind: coins, sides: 2}
protocols:
  g: {kind: guess, prompt: "{{ question }}", rewards: [{name: twice}]}
policies:
  p:
    model: {hidden_size: 32, layers: 1, heads: 2, kv_heads: 2, intermediate_size: 64, max_len: 64}
    trained: true
    max_tokens: 4
stages:
  s: {protocol: g, roles: {solver: p}, steps: 1, plays_per_step: 4, repeats: 4}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "outside_package.py").write_text(MODULE)
    (tmp_path / "c.yaml").write_text(CONFIG)
    monkeypatch.syspath_prepend(str(tmp_path))
    registries: tuple[Registry, ...] = (KINDS, SOURCES, REWARDS)
    before = [dict(one.entries) for one in registries]
    yield tmp_path / "c.yaml"
    for one, entries in zip(registries, before):
        one.entries = entries
    sys.modules.pop("outside_package", None)


def test_what_a_plugin_registers_is_planned_and_played(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["plan", str(config)]) == 0
    assert "solver" in capsys.readouterr().out
    loaded = load(config)
    task = load_task_source(loaded.config.tasks).train(random.Random(0))

    async def heads(*asked: object) -> object:
        from protocols.types import Reply

        return Reply("heads")

    players = {"solver": Seated("p", heads)}  # type: ignore[arg-type]
    (episode,) = asyncio.run(run_play(loaded.protocols["g"], task, 0, players, "e"))
    assert episode.outcome.score == 1.0
    assert [(reward.name, reward.value) for reward in episode.outcome.rewards] == [("twice", 2.0)]


def test_settings_of_a_plugin_are_checked_like_ours(config: Path) -> None:
    with pytest.raises(ConfigErrors, match=r"tasks\.sidez.*did you mean sides"):
        load(config, ["tasks.sidez=3"])


def test_a_module_that_is_not_there_is_one_line(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch.main(["plan", str(config), "plugins=[not_here]"]) == 2
    assert "not_here" in capsys.readouterr().err
