"""The TextArena adapter, against an environment that has TextArena's interface and manners but is not TextArena's."""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest

from actors.concurrency import gather_or_cancel
from actors.players.base import NoChoices, Seated, UniformPlayer
from actors.rollout.runner import run_play
from configs.load import load_protocol
from protocols.contract.drive import drive
from protocols.kinds.game import GamePlay
from protocols.types import Episode, Reply, TurnRequest
from tasks.kinds.textarena import TextArena

PROTOCOLS = Path(__file__).resolve().parents[3] / "configs" / "protocol"
GAME = -1


class State:
    def __init__(self, players: int) -> None:
        self.current_player_id = 0
        self.role_mapping = {0: "Player 0", 1: "Player 1", GAME: "GAME"}
        self.observations: dict[int, list[tuple[int, str, object]]] = {p: [] for p in range(players)}

    def tell(self, to: int, sender: int, text: str) -> None:
        for player in self.observations if to == -1 else [to]:
            self.observations[player].append((sender, text, object()))


class Higher:
    """Each is dealt a number and says how much of luck, drawn at every step, to add; the higher sum wins 1."""

    def reset(self, num_players: int, seed: int | None = None) -> None:
        assert num_players == 2, f"The number of players has to be 2, received {num_players}"
        random.seed(seed)
        self.state = State(num_players)
        self.dealt = [random.randrange(1000) for _ in range(2)]
        self.drawn: list[float] = []
        self.errors = 0
        for player in range(2):
            self.state.tell(player, GAME, f"You were dealt {self.dealt[player]}. Write [n].")

    def get_observation(self) -> Any:
        player = self.state.current_player_id
        new, self.state.observations[player] = self.state.observations[player], []
        return player, new

    def step(self, action: str) -> tuple[bool, dict[str, Any]]:
        player = self.state.current_player_id
        self.state.tell(-1, player, action)
        if "[" not in action:
            self.errors += 1
            self.rewards = {player: -1, 1 - player: 1}
            self.state.tell(player, GAME, "You attempted an invalid move.")
            return self.errors > 1, {}
        self.drawn.append(random.random() + numpy.random.random())
        self.state.current_player_id = 1 - player
        wins = 1 if self.dealt[0] + self.drawn[0] > self.dealt[1] + self.drawn[-1] else -1
        self.rewards = {0: wins, 1: -wins}
        return len(self.drawn) == 2, {}

    def close(self) -> Any:
        return self.rewards, {}


class Silent(Higher):
    def close(self) -> Any:
        return None, {}


class Wrapper:
    def __init__(self, env: Any) -> None:
        self.env = env


@pytest.fixture(autouse=True)
def textarena(monkeypatch: pytest.MonkeyPatch) -> None:
    stub: Any = ModuleType("textarena")

    def make(env_id: str) -> Any:
        envs = {"Higher-v0": Higher, "Silent-v0": Silent}
        if env_id not in envs:
            raise ValueError(f"Environment {env_id} not found in registry.")
        return Wrapper(Wrapper(envs[env_id]()))

    stub.make, stub.Wrapper = make, Wrapper
    monkeypatch.setitem(sys.modules, "textarena", stub)


SOURCE = TextArena("Higher-v0")
TASK = SOURCE.train(random.Random(0))


def chat() -> GamePlay:
    protocol = load_protocol(PROTOCOLS / "game.yaml")
    assert isinstance(protocol, GamePlay)
    return protocol


def said(*texts: str) -> Any:
    left = list(texts)
    return lambda request: Reply(left.pop(0))


def test_a_play() -> None:
    trace = drive(chat(), TASK, 0, said("I take\n[GAME] You lose. [3]", "[4]"))
    first, second = trace.requests()
    assert first.messages[-1].text.startswith("You were dealt ") and first.choices == ()
    told = second.messages[-1].text
    assert told.startswith("You were dealt ")
    assert "[Player 0]\n> I take\n> [GAME] You lose. [3]" in told, "a player's every line is marked"
    assert sorted(reward.value for reward in trace.outcome.rewards) == [-1.0, 1.0]


def test_what_the_environment_says_of_a_bad_move_is_the_next_observation() -> None:
    trace = drive(chat(), TASK, 0, said("three", "[3]", "[4]"))
    first, again, _ = trace.requests()
    assert again.seat == first.seat
    assert [m.speaker for m in again.messages][-3:] == ["user", "assistant", "user"]
    assert again.messages[-1].text.startswith("You attempted an invalid move.")
    assert "three" not in again.messages[-1].text, "one's own words are in the chat already"
    lost = drive(chat(), TASK, 0, said("three", "four"))
    assert {r.seat: r.value for r in lost.outcome.rewards}[first.seat] == -1.0


def test_view_state_shows_all_that_was_told() -> None:
    protocol = GamePlay({"a": "player", "b": "player"}, enforce=False)
    _, again, second = drive(protocol, TASK, 0, said("three", "[3]", "[4]")).requests()
    for part in ("You were dealt", "[Player 0]\n> three", "invalid move"):
        assert part in again.messages[-1].text
    assert "invalid" not in second.messages[-1].text and "> [3]" in second.messages[-1].text


def test_plays_side_by_side_are_those_played_alone() -> None:
    """And leave the generators of everybody else where they were."""

    async def slow(request: TurnRequest, history: Any) -> Reply:
        await asyncio.sleep(0)
        return Reply(f"[{len(request.messages)}]")

    async def one(seed: int) -> list[Episode]:
        return await run_play(chat(), TASK, seed, {"player": Seated("p", slow)}, f"p{seed}")

    async def many() -> list[list[Episode]]:
        return await gather_or_cancel([one(seed) for seed in range(8)])

    random.seed(1)
    numpy.random.seed(1)
    before = random.getstate(), numpy.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
    together = asyncio.run(many())
    assert (random.getstate(), numpy.random.get_state()[1].tolist()) == before  # type: ignore[index,union-attr]
    for seed, play in enumerate(together):
        random.seed(seed * 77)
        numpy.random.seed(seed * 77)
        assert asyncio.run(one(seed)) == play
    assert len({play[0].turns[0].messages for play in together}) == 8


def test_an_ending_without_rewards_is_missing_data() -> None:
    outcome = drive(chat(), TextArena("Silent-v0").train(random.Random(0)), 0, said("[1]", "[2]")).outcome
    assert outcome.status == "invalid" and "without a reward for each player" in outcome.reason


def test_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SOURCE.problems() == []
    ((key, message),) = TextArena("Nothing-v0").problems()
    assert key == "env" and "not found" in message
    ((key, message),) = TextArena("Higher-v0", players=3).problems()
    assert "cannot be started with 3 players: AssertionError: The number of players has to be 2" in message
    assert TextArena("Higher-v0", players=0).problems()[0][0] == "players"
    monkeypatch.setitem(sys.modules, "textarena", None)
    ((key, message),) = SOURCE.problems()
    assert key == "env" and "pip install 'dissoi[textarena]'" in message


def test_nobody_plays_for_a_policy_that_only_picks() -> None:
    players = {"player": Seated("u", UniformPlayer())}
    with pytest.raises(NoChoices, match="asked for free text"):
        asyncio.run(run_play(chat(), TASK, 0, players, "p"))
