"""Opponents: one opponent checkpoint per engine and play, exchanged between plays only; and what a season keeps."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from actors.league.opponents import Opponents, OpponentSlot
from actors.league.pool import League, Snapshot
from actors.players.base import PastPlayer, ScriptedPlayer, Seated
from actors.rollout.ledger import Ledger
from actors.rollout.loop import Rollouts, play_all
from configs.schema.run import OpponentsConfig, StageConfig
from driver.league import StageLeague, snapshot
from driver.run import RunState, sweep
from protocols.base import Play, Protocol
from protocols.types import Message, Outcome, Reply, Reward, Task, TokenTrace, Turn, TurnRequest
from tasks.archive import Archive
from tasks.kinds.pixels import Pixels

SEATS = {"left": "player", "right": "player"}


class Duel(Protocol):
    """Two seats speak at once, twice; "win" beats anything else."""

    kind, name = "test", "duel"

    def play(self, task: Task, rng: random.Random) -> Play:
        for turn in range(2):
            replies = yield [TurnRequest(seat, "player", (Message("user", "?"),), turn) for seat in SEATS]
        wins = [reply.text == "win" for reply in replies if isinstance(reply, Reply)]
        paid = [float(wins[0]) - float(wins[1]), float(wins[1]) - float(wins[0])]
        return Outcome(rewards=tuple(Reward(seat, None, value, "win") for seat, value in zip(SEATS, paid)))

    def roles(self) -> Mapping[str, str]:
        return SEATS

    def literal_texts(self) -> list[str]:
        return []


class Slow:
    """An engine: answers with what it held when asked first, after some turns of the event loop."""

    def __init__(self) -> None:
        self.held = "nothing"

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        for _ in range(5):
            await asyncio.sleep(0)
        return Reply(self.held)


def snap(version: int) -> Snapshot:
    return Snapshot("p", version, f"past-{version}")


def slot() -> tuple[OpponentSlot, list[str]]:
    engine, log = Slow(), []

    async def load(one: Snapshot) -> Seated:
        await asyncio.sleep(0)
        engine.held = one.name
        log.append(one.name)
        return Seated(one.name, engine)

    return OpponentSlot(load), log


def opponents(league: League, slots: list[OpponentSlot], **settings: Any) -> Opponents:
    config = OpponentsConfig(**{"seats": ["left", "right"], "past": "past", **settings})
    fixed = {name: Seated(name, ScriptedPlayer(lambda request: "lose")) for name in config.fixed}
    return Opponents("s", config, league, slots, fixed, ["p"], ["p"], seed=3)


def league(*versions: int) -> League:
    found = League()
    for version in versions:
        found.add(snap(version), 99)
    return found


async def sat(subject: Opponents, groups: int) -> list[tuple[str, str]]:
    """(seat, policy) of every group's opponent; self-play is ("", "")."""
    found = []
    for group in range(groups):
        async with subject.seating(group) as seats:
            found.append(next(((seat, one.policy) for seat, one in seats.items()), ("", "")))
    return found


# ---- who sits where


def test_seats_take_turns_and_shares_are_kept() -> None:
    async def scenario() -> None:
        engine, _ = slot()
        mix = {"self": 0.5, "fixed": 0.25, "pfsp": 0.25}
        subject = opponents(league(0), [engine], mix=mix, fixed=["a", "b"])
        await subject.redraw(0)
        found = await sat(subject, 800)
        kinds = Counter(policy for _, policy in found)
        assert abs(kinds[""] - 400) < 60 and abs(kinds["p@0"] - 200) < 50
        assert abs(kinds["a"] - 100) < 40 and abs(kinds["b"] - 100) < 40
        for group, (seat, policy) in enumerate(found):
            assert seat == ("" if not policy else ["left", "right"][group % 2])
        assert await sat(subject, 800) == found, "a group that is played again meets the same opponent"

    asyncio.run(scenario())


def test_engines_hold_independent_draws_of_the_rules() -> None:
    async def scenario() -> None:
        engines = [slot()[0] for _ in range(2)]
        subject = opponents(league(0, 1, 2), engines, mix={"latest": 0.5, "uniform": 0.5})
        held: Counter[tuple[str, ...]] = Counter()
        for step in range(300):
            await subject.redraw(step)
            held[tuple(engine.held for engine in engines)] += 1
        newest = sum(count for pair, count in held.items() for name in pair if name == "p@2")
        assert abs(newest / 600 - (0.5 + 0.5 / 3)) < 0.07
        assert len(held) == 9, "every pair comes up"

    asyncio.run(scenario())


# ---- exchange


def test_a_opponent_checkpoint_is_exchanged_between_plays_only() -> None:
    """While one play is under way the exchange waits, and the next play waits for the exchange."""

    async def scenario() -> None:
        engine, log = slot()
        await engine.hold(snap(0))
        seen: list[str] = []

        async def play() -> None:
            async with engine.playing() as seated:
                for turn in range(4):
                    reply = await seated.player(TurnRequest("left", "player", (), turn), ())
                    seen.append(f"{seated.policy}:{reply.text}")

        first = asyncio.ensure_future(play())
        await asyncio.sleep(0)
        exchange = asyncio.ensure_future(engine.hold(snap(1)))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(play())
        for _ in range(6):
            await asyncio.sleep(0)
        assert log == ["p@0"] and not exchange.done() and engine.held == "p@0"
        await asyncio.wait_for(asyncio.gather(first, exchange, second), 5)
        assert seen == ["p@0:p@0"] * 4 + ["p@1:p@1"] * 4
        await engine.hold(snap(1))
        assert log == ["p@0", "p@1"], "what is held already is not brought again"

    asyncio.run(scenario())


def test_a_load_that_fails_is_raised_and_nobody_waits_for_ever() -> None:
    async def scenario() -> None:
        async def load(one: Snapshot) -> Seated:
            if one.version == 1:
                raise OSError("gone")
            return Seated(one.name, Slow())

        engine = OpponentSlot(load)
        await engine.hold(snap(0))
        with pytest.raises(OSError):
            await engine.hold(snap(1))
        async with engine.playing() as seated:
            assert seated.policy == "p@0"

    asyncio.run(scenario())


def test_a_opponent_checkpoint_is_recorded_under_its_own_version() -> None:
    def replies(*versions: int) -> Reply:
        return Reply("x", trace=TokenTrace((1,), (2, 3), (-1.0, -1.0), versions))

    request = TurnRequest("left", "player", (), 0)
    for given, expected in (((12, 12), (40, 40)), ((), ())):
        player = PastPlayer(ScriptedPlayer(lambda request, given=given: replies(*given)), 40)
        reply = asyncio.run(player(request, ()))
        assert reply.trace is not None and reply.trace.versions_T == expected
    with pytest.raises(AssertionError, match="exchanged while"):
        asyncio.run(PastPlayer(ScriptedPlayer(lambda request: replies(12, 13)), 40)(request, ()))
    assert asyncio.run(PastPlayer(ScriptedPlayer(lambda request: "plain"), 40)(request, ())) == Reply("plain")


# ---- with rollouts


def test_siblings_meet_one_opponent_in_one_seat_and_redraw_never_cuts_in(tmp_path: Path) -> None:
    """Plays of groups of two at staleness 1 while the engine is exchanged again and again: within a play, and a group,
    the opponent and its replies are of one opponent checkpoint."""

    async def scenario() -> None:
        engine, log = slot()
        subject = opponents(league(*range(9)), [engine], mix={"self": 0.3, "uniform": 0.7})
        await subject.redraw(0)
        stage = StageConfig(plays_per_step=4, repeats=2, max_staleness=1, steps=30)
        ledger = Ledger(tmp_path)
        players = {"player": Seated("p", ScriptedPlayer(lambda request: "me"))}
        rollouts = Rollouts("s", stage, Duel(), Pixels(), players, ledger, 7, Archive())
        rollouts.seating = subject.seating
        running = asyncio.ensure_future(rollouts.run())
        groups: dict[int, set[tuple[tuple[str, str], ...]]] = {}
        for step in range(30):
            plays = await ledger.batch(2)
            for (episode,) in plays:
                policies = tuple((turn.seat, turn.policy) for turn in episode.turns)
                for turn in episode.turns:
                    assert turn.text == ("me" if turn.policy == "p" else turn.policy)
                    if turn.policy != "p":
                        assert turn.seat == ["left", "right"][episode.meta["index"] // 2 % 2]
                groups.setdefault(episode.meta["index"] // 2, set()).add(policies)
            await subject.redraw(step + 1)
            rollouts.release(plays)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        ledger.close()
        assert len(groups) == 60 and all(len(found) == 1 for found in groups.values())
        met = {policy for found in groups.values() for (pairs,) in [tuple(found)] for _, policy in pairs}
        assert len(met) >= 7 and "p" in met and len(log) >= 20

    asyncio.run(scenario())


def test_play_all_in_given_seats_and_places() -> None:
    players = {"player": Seated("p", ScriptedPlayer(lambda request: "me"))}
    seats = {"right": Seated("q", ScriptedPlayer(lambda request: "win"))}
    tasks = [Task(str(index), "?") for index in range(7)]
    plays = asyncio.run(play_all(Duel(), tasks, players, "x", 0, seats=seats, only=range(1, 7, 3)))
    assert [play[0].id for play in plays] == ["x-1", "x-4"]
    for (episode,) in plays:
        assert {turn.seat: turn.policy for turn in episode.turns} == {"left": "p", "right": "q"}
        assert [reward.value for reward in episode.outcome.rewards] == [-1.0, 1.0]
    everything = asyncio.run(play_all(Duel(), tasks, players, "x", 0))
    assert [play[0].seed for play in plays] == [everything[1][0].seed, everything[4][0].seed]


# ---- a season


class Learner:
    """Saves as a learner does."""

    async def save_hf(self, folder: str) -> None:
        Path(folder).mkdir(parents=True)
        (Path(folder) / "model.safetensors").write_bytes(b"weights")


class FakeRun:
    """What a season asks of a Run."""

    def __init__(self, folder: Path):
        self.dir, self.league = folder, League()
        self.models, self.versions = {"p": str(folder / "models" / "p" / "init")}, {"p": 0}
        self.learners: dict[str, Any] = {"p": Learner()}
        self.logged: list[dict[str, float]] = []
        self.tracker = self

    def log(self, prefix: str, step: int, values: dict[str, float]) -> None:
        self.logged.append(values)

    def trained_in(self, stage: StageConfig) -> list[str]:
        return ["p"]


def test_snapshots_are_folders_and_taken_once(tmp_path: Path) -> None:
    run: Any = FakeRun(tmp_path)
    for version in (0, 0, 5, 5):
        run.versions["p"] = version
        asyncio.run(snapshot(run, "p", 8))
    assert [one.name for one in run.league.pool] == ["p@0", "p@5"]
    assert all((run.dir / one.folder / "model.safetensors").exists() for one in run.league.pool)
    run.learners, run.versions = {}, {"p": 6}
    asyncio.run(snapshot(run, "p", 8))
    assert run.league.pool[-1].folder == "models/p/init", "a policy without a learner is what its folder says"


def state(**fields: Any) -> RunState:
    return RunState({}, {}, 0, {}, {}, {}, [], {}, **fields)


def test_weights_stay_while_a_checkpoint_names_them(tmp_path: Path) -> None:
    run: Any = FakeRun(tmp_path)
    for version in (0, 1, 2):
        run.versions["p"] = version
        asyncio.run(snapshot(run, "p", 2))
        saved = tmp_path / "checkpoints" / f"step-{version}"
        saved.mkdir(parents=True)
        state(league=run.league.state()).write(saved)
    assert [one.version for one in run.league.pool] == [0, 2]
    sweep(run, tmp_path / "checkpoints")
    folders = sorted(path.name for path in (tmp_path / "models" / "p").iterdir())
    assert folders == ["past-0", "past-1", "past-2"], "step-1 still names past-1"
    state().write(tmp_path / "checkpoints" / "step-1")  # from before there were leagues
    sweep(run, tmp_path / "checkpoints")
    assert sorted(path.name for path in (tmp_path / "models" / "p").iterdir()) == ["past-0", "past-2"]


def test_after_a_step_results_count_and_opponent_checkpoints_change(tmp_path: Path) -> None:
    async def scenario() -> None:
        run: Any = FakeRun(tmp_path)
        await snapshot(run, "p", 8)
        settings = OpponentsConfig(seats=["left", "right"], past="past", mix={"uniform": 1.0}, every=2)
        season = StageLeague(run, "s", StageConfig(opponents=settings, steps=4))
        engine, log = slot()
        season.past_of, season.opponents = ["p"], opponents(run.league, [engine], mix={"uniform": 1.0})
        await season.opponents.redraw(0)
        players = {"player": Seated("p", ScriptedPlayer(lambda request: "win"))}
        for step in (1, 2, 3, 4):
            async with season.seating(step) as seats:
                plays = await play_all(Duel(), [Task("t", "?")], players, "x", 0, seats=seats)
            run.versions["p"] = step
            await season.after(step, plays)
        assert [one.version for one in run.league.pool] == [0, 2, 4]
        assert [metrics["opponent_checkpoints"] for metrics in run.logged] == [1, 1, 2, 2]
        assert run.logged[0]["win_rate/p/p@0"] == pytest.approx(2 / 3), "one win, and one of each made up"
        assert run.logged[-1]["win_rate_lowest"] >= 0.5
        assert set(log) <= {"p@0", "p@2"}, "the last step needs no opponents"
        run.versions["p"] = 5
        await season.end()
        assert run.league.pool[-1].version == 5

    asyncio.run(scenario())


def test_a_stage_without_opponents_is_as_it_was(tmp_path: Path) -> None:
    async def scenario() -> None:
        run: Any = FakeRun(tmp_path)
        season = StageLeague(run, "s", StageConfig())
        await season.begin(0)
        async with season.seating(0) as seats:
            assert seats == {}
        await season.after(1, [])
        await season.end()
        assert not run.league.pool and not run.logged

    asyncio.run(scenario())
