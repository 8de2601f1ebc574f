"""run_play: what happens at once, what waits for what, and what is left when something fails."""

from __future__ import annotations

import asyncio
import pickle
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from actors.concurrency import gather_or_cancel
from actors.players.base import PLAY, ScriptedPlayer, Seated
from actors.rollout.runner import MissingPlayer, run_play
from protocols.base import Play, Protocol, SubPlay
from protocols.types import Episode, Hidden, Message, Outcome, Reply, Task, Turn, TurnRequest
from tasks.kinds.pixels import PixelDomain

TASK = Task("t", "which", domain=PixelDomain(), hidden={"image": Hidden("x", ("r",))})


class Rules(Protocol):
    """A protocol out of a generator function."""

    kind = "test"

    def __init__(self, function: Callable[[Task, random.Random], Play], name: str = "rules"):
        self.function, self.name = function, name

    def play(self, task: Task, rng: random.Random) -> Play:
        return self.function(task, rng)

    def roles(self) -> Mapping[str, str]:
        return {}

    def literal_texts(self) -> list[str]:
        return []


def ask(seat: str, turn: int = 0, **settings: Any) -> TurnRequest:
    return TurnRequest(seat, "r", (Message("user", f"{seat}{turn}"),), turn, **settings)


def run(protocol: Protocol, player: Callable[..., Awaitable[Reply]], **arguments: Any) -> list[Episode]:
    """The play, which fails instead of hanging."""
    players = {"r": Seated("policy", player)}

    async def bounded() -> list[Episode]:
        return await asyncio.wait_for(run_play(protocol, TASK, 5, players, "p", **arguments), 10)

    return asyncio.run(bounded())


def echo(request: TurnRequest) -> str:
    return f"reply to {request.seat}{request.turn}"


def test_turns_of_one_yield_proceed_side_by_side_and_are_answered_in_order() -> None:
    def rules(task: Task, rng: random.Random) -> Play:
        answers = yield [ask("a"), ask("b"), ask("c")]
        assert [answer.text for answer in answers if isinstance(answer, Reply)] == ["a", "b", "c"]
        return Outcome()

    order: list[str] = []

    async def main() -> None:
        everyone = asyncio.Barrier(3)

        async def player(request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
            await everyone.wait()  # passes only when all three are asked at the same time
            for _ in range("cba".index(request.seat)):
                await asyncio.sleep(0)
            order.append(request.seat)
            return Reply(request.seat)

        play = run_play(Rules(rules), TASK, 0, {"r": Seated("policy", player)}, "p")
        episodes = await asyncio.wait_for(play, 10)
        assert [turn.seat for turn in episodes[0].turns] == ["a", "b", "c"]

    asyncio.run(main())
    assert order[-1] == "a"


def test_sub_plays_do_not_wait_for_each_others_turns() -> None:
    said: list[str] = []

    def child(seat: str) -> Rules:
        def rules(task: Task, rng: random.Random) -> Play:
            for turn in range(3):
                yield [ask(seat, turn)]
            return Outcome(reason=seat)

        return Rules(rules)

    def root(task: Task, rng: random.Random) -> Play:
        outcomes = yield [SubPlay(child("slow"), TASK, 1, "0"), SubPlay(child("fast"), TASK, 2, "1")]
        return Outcome(reason=" ".join(o.reason for o in outcomes if isinstance(o, Outcome)))

    fast_is_done = asyncio.Event()

    async def player(request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        if request.seat == "slow":
            await fast_is_done.wait()
        elif request.turn == 2:
            fast_is_done.set()
        said.append(request.seat)
        return Reply("x")

    episodes = run(Rules(root), player)
    assert said == ["fast"] * 3 + ["slow"] * 3
    assert episodes[0].outcome.reason == "slow fast"  # in the order asked, not in that of ending


def test_history_is_the_seats_own_turns_that_are_not_fresh() -> None:
    heard: dict[str, list[str]] = {}

    def rules(task: Task, rng: random.Random) -> Play:
        yield [ask("a", 0), ask("b", 0)]
        yield [ask("a", 1, fresh=True)]
        yield [ask("a", 2)]
        yield [ask("b", 1), ask("a", 3)]
        return Outcome()

    async def player(request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        heard[f"{request.seat}{request.turn}"] = [turn.text for turn in history]
        return Reply(f"{request.seat}{request.turn}")

    run(Rules(rules), player)
    assert heard == {"a0": [], "b0": [], "a1": [], "a2": ["a0"], "b1": ["b0"], "a3": ["a0", "a2"]}


def test_a_child_has_no_part_of_its_parents_history() -> None:
    heard: list[int] = []

    def child(task: Task, rng: random.Random) -> Play:
        yield [ask("a", 0)]
        return Outcome()

    def root(task: Task, rng: random.Random) -> Play:
        yield [ask("a", 0)]
        yield [SubPlay(Rules(child), TASK, 1, "0")]
        yield [ask("a", 1)]
        return Outcome()

    async def player(request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        heard.append(len(history))
        return Reply("x")

    run(Rules(root), player)
    assert heard == [0, 0, 1]


def test_a_failing_player_ends_everything_that_the_play_had_begun() -> None:
    cancelled: list[str] = []

    def child(seat: str) -> Rules:
        def rules(task: Task, rng: random.Random) -> Play:
            yield [ask(seat), ask(seat + "'")]
            return Outcome()

        return Rules(rules)

    def root(task: Task, rng: random.Random) -> Play:
        yield [SubPlay(child("good"), TASK, 1, "0"), SubPlay(child("bad"), TASK, 2, "1"), ask("other")]
        return Outcome()

    async def main() -> None:
        waiting = asyncio.Barrier(5)

        async def player(request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
            await waiting.wait()
            if request.seat == "bad":
                raise OSError("no engine")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(request.seat)
                raise
            raise AssertionError("unreachable")

        play = run_play(Rules(root), TASK, 0, {"r": Seated("policy", player)}, "p")
        with pytest.raises(OSError, match="no engine"):
            await asyncio.wait_for(play, 10)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert sorted(cancelled) == ["bad'", "good", "good'", "other"]


def test_gather_or_cancel_waits_until_the_cancelled_have_ended() -> None:
    ended: list[str] = []

    async def slow_to_end() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append("slow")

    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("x")

    async def main() -> None:
        with pytest.raises(KeyError):
            await gather_or_cancel([slow_to_end(), fails()])
        assert ended == ["slow"]

    asyncio.run(main())


def test_a_role_that_nobody_plays_is_named_with_those_there_are() -> None:
    def rules(task: Task, rng: random.Random) -> Play:
        yield [TurnRequest("a", "ghost", (Message("user", "x"),), 0)]
        return Outcome()

    with pytest.raises(MissingPlayer, match=r"'ghost' \(bound roles: r\)") as caught:
        run(Rules(rules), ScriptedPlayer(echo))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert "none" in str(MissingPlayer("ghost", ()))


def test_episodes_root_first_then_sub_plays_with_their_parents() -> None:
    def leaf(task: Task, rng: random.Random) -> Play:
        yield [ask("leaf")]
        return Outcome(score=rng.random())

    def middle(task: Task, rng: random.Random) -> Play:
        answers = yield [
            SubPlay(Rules(leaf, "leaf"), TASK, 7, "x"),
            SubPlay(Rules(leaf, "leaf"), TASK, 8, "y"),
        ]
        return Outcome(score=sum(a.score or 0.0 for a in answers if isinstance(a, Outcome)))

    def root(task: Task, rng: random.Random) -> Play:
        yield [ask("a", 0)]
        answers = yield [SubPlay(Rules(middle, "middle"), TASK, 6, "0")]
        assert isinstance(answers[0], Outcome)
        return Outcome(score=answers[0].score, metrics={"draw": rng.random()})

    episodes = run(Rules(root, "root"), ScriptedPlayer(echo), meta={"arm": "m"})
    found = [(episode.id, episode.parent, episode.protocol, episode.seed) for episode in episodes]
    assert found == [
        ("p", None, "root", 5), ("p/0", "p", "middle", 6), ("p/0/x", "p/0", "leaf", 7), ("p/0/y", "p/0", "leaf", 8)
    ]  # fmt: skip
    assert [episode.meta for episode in episodes] == [{"arm": "m"}, {}, {}, {}]
    assert [[turn.text for turn in episode.turns] for episode in episodes] == [
        ["reply to a0"], [], ["reply to leaf0"], ["reply to leaf0"]
    ]  # fmt: skip
    draws = [random.Random(seed).random() for seed in (5, 7, 8)]
    assert episodes[0].outcome.metrics == {"draw": draws[0]}
    assert episodes[0].outcome.score == pytest.approx(draws[1] + draws[2])


def test_a_recorded_turn_has_all_of_the_request_and_the_reply() -> None:
    request = TurnRequest(
        "a", "r", (Message("user", "q"),), 3, phase="f", choices=("x", "y"), read=True, target="y", fresh=True,
        situation="side 0",
    )  # fmt: skip

    def rules(task: Task, rng: random.Random) -> Play:
        yield [request]
        return Outcome(status="invalid", reason="why")

    reply = Reply("x", probs=(0.25, 0.75), truncated=True)
    (episode,) = run(Rules(rules), ScriptedPlayer(lambda _: reply))
    (turn,) = episode.turns
    assert turn == Turn(
        "a",
        "r",
        "policy",
        3,
        "f",
        request.messages,
        "x",
        ("x", "y"),
        (0.25, 0.75),
        True,
        True,
        "y",
        "side 0",
        True,
    )
    assert episode.task.domain is None and episode.task.hidden == TASK.hidden
    assert (episode.status, episode.outcome.reason) == ("invalid", "why")


@pytest.mark.parametrize("children", [1, 2])
def test_players_can_ask_which_play_they_are_asked_for(children: int) -> None:
    def child(task: Task, rng: random.Random) -> Play:
        yield [ask("c")]
        yield [ask("c", 1)]
        return Outcome()

    def rules(task: Task, rng: random.Random) -> Play:
        yield [ask("a"), ask("b")]
        yield [SubPlay(Rules(child), task, i, f"k{i}") for i in range(children)]
        yield [ask("a", 1)]
        return Outcome()

    heard: list[tuple[str, str]] = []

    async def player(request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        heard.append((request.seat, PLAY.get()))
        await asyncio.sleep(0)
        return Reply("")

    run(Rules(rules), player)
    subplays = [("c", f"p/k{i}") for i in range(children)]
    assert heard == [("a", "p"), ("b", "p"), *subplays, *subplays, ("a", "p")]
