"""The kind `game`, on games small enough to work out by hand."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from actors.players.base import ScriptedPlayer, Seated
from actors.rollout.runner import run_play
from protocols.contract.drive import drive
from protocols.kinds.game import GamePlay
from protocols.rewards.record import RewardTerm
from protocols.types import Game, GameState, Reply, Task, TurnRequest

PLAY = {"first": "player", "second": "player"}


@dataclass
class Pennies(GameState):
    """Matching pennies, after a coin that only player 0 sees: both choose at once, equal ones pay player 0."""

    coin: str = ""
    chosen: dict[int, str] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        return bool(self.chosen)

    def chances(self) -> Sequence[float]:
        return () if self.coin else (0.25, 0.75)

    def draw(self, outcome: int) -> None:
        self.coin = ("sun", "moon")[outcome]

    def movers(self) -> Sequence[int]:
        return (0, 1)

    def legal(self, player: int) -> tuple[str, ...]:
        return ("heads", "tails")

    def known(self, player: int) -> str:
        return f"coin {self.coin}" if player == 0 else "no coin"

    def apply(self, moves: Mapping[int, str]) -> None:
        self.chosen = dict(moves)

    def returns(self) -> tuple[float, ...]:
        pays = 1.0 if self.chosen[0] == self.chosen[1] else -1.0
        return (pays, -pays)


@dataclass(frozen=True)
class PenniesGame(Game):
    state: type[Pennies] = Pennies

    @property
    def players(self) -> int:
        return 2

    def start(self, rng: random.Random) -> Pennies:
        return self.state()


TASK = Task("pennies", "matching pennies", game=PenniesGame())


def said(*texts: str) -> Any:
    """A player who says these in order of being asked."""
    left = list(texts)
    return lambda request: Reply(left.pop(0))


def protocol(**settings: Any) -> GamePlay:
    made = GamePlay(**{"seats": PLAY, "name": "p", **settings})
    assert made.problems() == []
    return made


def paid(outcome: Any) -> dict[tuple[str, str], float]:
    found: Counter[tuple[str, str]] = Counter()
    for reward in outcome.rewards:
        found[reward.seat, reward.name] += reward.value
    return dict(found)


def test_a_play_with_legal_moves() -> None:
    trace = drive(protocol(zero_sum=True, score="second"), TASK, 0, said("heads", " tails\n"))
    (one,) = trace.rounds  # both are asked at once, before either has answered
    first, second = (ask for ask, _ in one)
    assert isinstance(first, TurnRequest) and isinstance(second, TurnRequest)
    assert first.messages[-1].text in ("coin sun", "coin moon")
    assert second.messages[-1].text == "no coin"
    assert first.choices == ("heads", "tails") and first.enforce and first.fresh
    assert first.situation == f"player 0: {first.messages[-1].text}"
    assert paid(trace.outcome) == {("first", "game_return"): -1.0, ("second", "game_return"): 1.0}
    assert trace.outcome.score == 1.0
    assert trace.outcome.metrics == {"moves": 2.0, "illegal": 0.0, "forfeits": 0.0}


def test_chance_has_the_odds_of_the_game() -> None:
    drawn = Counter(
        drive(protocol(), TASK, seed, said("heads", "tails")).requests()[0].messages[-1].text for seed in range(2000)
    )
    assert abs(drawn["coin sun"] / 2000 - 0.25) < 0.04  # four standard deviations


def test_who_is_which_player_is_drawn() -> None:
    drawn = Counter(
        drive(protocol(order="shuffled"), TASK, seed, said("heads", "tails")).requests()[0].seat
        for seed in range(200)
    )
    assert set(drawn) == set(PLAY) and min(drawn.values()) > 60


def test_only_who_was_illegal_is_asked_again() -> None:
    free = protocol(enforce=False, retries=2, rewards=[RewardTerm("game_return"), RewardTerm("illegal", 0.5)])
    trace = drive(free, TASK, 0, said("edge", "tails", "no", "tails"))
    assert [[ask.seat for ask, _ in asks] for asks in trace.rounds] == [["first", "second"], ["first"], ["first"]]  # type: ignore[union-attr]
    again = trace.requests()[2]
    assert again.messages[-1].text.endswith("\n\n'edge' is not legal; legal moves: heads, tails")
    assert again.situation.endswith(" (try 2)") and again.turn == 1
    assert paid(trace.outcome) == {
        ("first", "game_return"): 1.0, ("second", "game_return"): -1.0, ("first", "illegal"): -1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("replies", "pays"),
    [
        (("edge", "tails", "edge"), {("first", "game_return"): -1.5, ("second", "game_return"): 1.5}),
        (("heads", "", "edge"), {("first", "game_return"): 1.5, ("second", "game_return"): -1.5}),
        (("edge", "", "edge", ""), {}),  # both at once
    ],
)
def test_a_forfeited_game(replies: tuple[str, ...], pays: dict[tuple[str, str], float]) -> None:
    terms = [RewardTerm("game_return", params={"forfeit": 1.5})]
    outcome = drive(protocol(enforce=False, retries=1, rewards=terms, zero_sum=True), TASK, 0, said(*replies)).outcome
    assert outcome.status == "ok" and paid(outcome) == pays


def test_three_players_share_a_forfeit() -> None:
    from protocols.rewards.record import Record
    from protocols.rewards.registry import pay

    seats = {"a": "r", "b": "r", "c": "r"}
    one = pay([RewardTerm("game_return", 2.0)], Record(seats, forfeited=["b"]))
    assert {r.seat: r.value for r in one} == {"b": -2.0, "a": 1.0, "c": 1.0}
    two = pay([RewardTerm("game_return")], Record(seats, forfeited=["a", "b"]))
    assert {r.seat: r.value for r in two} == {"a": -1.0, "b": -1.0, "c": 2.0}


def test_a_move_is_drawn_for_who_makes_none() -> None:
    free = protocol(enforce=False, illegal="random")
    drawn = {drive(free, TASK, seed, said("edge", "heads")).outcome.rewards[0].value for seed in range(20)}
    assert drawn == {1.0, -1.0}


class Endless(Pennies):
    @property
    def over(self) -> bool:
        return False


def test_a_game_that_does_not_end_is_missing_data() -> None:
    task = replace(TASK, game=PenniesGame(Endless))
    outcome = drive(protocol(max_moves=6), task, 0, said(*["heads"] * 6)).outcome
    assert (outcome.status, outcome.rewards, outcome.reason) == ("invalid", (), "not over after 6 moves")


class Charity(Pennies):
    def returns(self) -> tuple[float, ...]:
        return (1.0, 1.0)


def test_a_game_that_is_not_zero_sum_breaks_the_promise() -> None:
    with pytest.raises(ValueError, match="promises zero_sum, and a play of pennies paid 2 in all"):
        drive(protocol(zero_sum=True), replace(TASK, game=PenniesGame(Charity)), 0, said("heads", "tails"))


@pytest.mark.parametrize(
    ("settings", "key", "says"),
    [
        ({"retries": 1}, "retries", "no effect with enforce: true"),
        ({"prompt": "move"}, "prompt", "shows nothing of the game"),
        ({"prompt": "{{ state }} {{ cards }}"}, "prompt", "unknown placeholder {{ cards }}"),
        ({"system": "{{ state }}"}, "system", "unknown placeholder {{ state }}"),
        ({"score": "third"}, "score", "valid: first, second"),
        ({"max_moves": 0}, "max_moves", "at least 1"),
        ({"rewards": [RewardTerm("win")]}, "rewards.0.name", "valid here: format, game_return, illegal"),
        ({"zero_sum": True, "rewards": [RewardTerm("illegal")]}, "rewards.0", "valid: game_return"),
        ({"rewards": [RewardTerm("game_return", params={"forfeit": -1})]}, "rewards.0.params.forfeit", "above 0"),
        ({"seats": {}}, "seats", "needs a seat"),
    ],
)  # fmt: skip
def test_problems(settings: dict[str, Any], key: str, says: str) -> None:
    found = dict(GamePlay(**{"seats": PLAY, **settings}).problems())
    assert says in found[key]


def test_it_needs_a_game_for_as_many_players() -> None:
    assert "is no game" in protocol().unplayable(Task("t", "q"))
    assert protocol(seats={"a": "r"}).unplayable(TASK) == "pennies has 2 players, and there are 1 seats"
    with pytest.raises(ValueError, match="protocol p: task t is no game"):
        drive(protocol(), Task("t", "q"), 0, said())


async def _played() -> Any:
    player = Seated("policy", ScriptedPlayer(lambda request: request.choices[0]))
    return await run_play(protocol(), TASK, 7, {"player": player}, "id")


def test_the_record_holds_no_code() -> None:
    import asyncio

    from actors.rollout.records import decode_line, encode

    episodes = asyncio.run(_played())
    assert episodes[0].task.game is None
    assert decode_line(encode(episodes).splitlines()[0]) == episodes[0]
