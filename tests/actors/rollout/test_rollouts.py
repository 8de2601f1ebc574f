"""Rollouts: slots bound staleness, nothing is played twice, and what goes wrong is recorded."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from actors.rollout import records
from actors.rollout.ledger import Ledger
from actors.rollout.loop import MAX_ATTEMPTS, TooManyInvalid
from actors.rollout.metrics import step_metrics
from actors.serving.messages import EngineLost
from protocols.types import Episode, Outcome, Reply, Task, TokenTrace, Turn, TurnRequest
from tests.support.rollout_stage import DEBATE, Running, Scripted, Uniform, rollouts, run

# ---- slots -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_no_more_plays_run_than_staleness_allows(tmp_path: Path, staleness: int) -> None:
    slots = 4 * (1 + staleness)

    async def scenario(ledger: Ledger) -> None:
        async with Running(rollouts(ledger, Scripted(), max_staleness=staleness), ledger) as running:
            assert (running.started, ledger.waiting) == (slots, slots)
            for step in range(1, 4):
                plays = await ledger.batch(4)
                await running.settle()
                assert running.started == slots + 4 * (step - 1), (
                    "a play began before the weights had arrived"
                )
                running.rollouts.release(plays[:1])
                await running.settle()
                assert running.started == slots + 4 * (step - 1) + 1
                running.rollouts.release(plays[1:])
                await running.settle()
                assert running.started == slots + 4 * step
            assert not running.task.done()

    run(tmp_path, scenario)


def test_an_invalid_play_is_replaced_at_once(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        subject = rollouts(ledger, Scripted(lambda id: "bad" if id in bad else "ok"))
        bad = {subject.draw(1).id, subject.draw(4).id}
        async with Running(subject, ledger) as running:
            plays = await ledger.batch(4)
            assert sorted(play[0].meta["index"] for play in plays) == [0, 2, 3, 5]
            assert running.started == 6 and ledger.waiting == 0
            assert subject.statuses == {"ok": 4, "invalid": 2}
            assert subject.state() == {"group": 6, "again": [0, 2, 3, 5]}
            running.rollouts.release(plays)
            assert subject.state() == {"group": 6, "again": []}
        assert {e.id for e in records.read(ledger.path) if e.status == "invalid"} == {"s-1", "s-4"}

    run(tmp_path, scenario)


def test_a_stage_of_nothing_but_invalid_plays_ends(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        with pytest.raises(TooManyInvalid, match=r"stage 's': 17 of 17 plays"):
            await rollouts(ledger, Scripted(lambda id: "bad")).run()

    run(tmp_path, scenario)


def test_a_defect_in_a_player_ends_the_stage_and_its_plays(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        def player(id: str) -> str:
            if id == third:
                raise ZeroDivisionError
            return "ok"

        subject = rollouts(ledger, Scripted(player))
        third = subject.draw(2).id
        with pytest.raises(ZeroDivisionError):
            await subject.run()

    run(tmp_path, scenario)


# ---- groups ------------------------------------------------------------------------------------------


class Late:
    """Answers "bad" or "ok" as told per call, after so many turns of the event loop."""

    def __init__(self, calls: Callable[[int], tuple[str, int]]):
        self.calls, self.asked = calls, 0

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        self.asked += 1
        text, turns = self.calls(self.asked - 1)
        for _ in range(turns):
            await asyncio.sleep(0)
        return Reply(text)


@pytest.mark.parametrize("seed", range(5))
def test_a_batch_never_separates_siblings(tmp_path: Path, seed: int) -> None:
    """Plays end in any order, some are invalid, and yet every batch holds whole groups."""
    rng = random.Random(seed)

    async def scenario(ledger: Ledger) -> None:
        player = Late(lambda call: ("bad" if rng.random() < 0.2 else "ok", rng.randrange(60)))
        subject = rollouts(ledger, player, plays_per_step=12, repeats=3, max_staleness=1, steps=6)
        seen: dict[int, int] = {}
        async with Running(subject, ledger) as running:
            for step in range(6):
                plays = await ledger.batch(4)
                groups = Counter(play[0].meta["index"] // 3 for play in plays)
                assert len(groups) == 4 and all(2 <= size <= 3 for size in groups.values())
                assert not groups.keys() & seen.keys(), "siblings in two batches"
                assert len({play[0].task.id for play in plays}) == 4
                seen |= dict.fromkeys(groups, step)
                subject.release(plays)
            await running.settle()
            assert subject.state()["again"] == [] and ledger.waiting == 0
            assert len(seen) == 24
        by_group: dict[int, list[str]] = {}
        for episode in records.read(ledger.path):
            by_group.setdefault(episode.meta["index"] // 3, []).append(episode.status)
        assert all(len(statuses) == 3 for statuses in by_group.values())
        left = [statuses for group, statuses in by_group.items() if group not in seen]
        assert all(statuses.count("ok") < 2 for statuses in left)
        assert subject.statuses["alone"] == sum(statuses.count("ok") for statuses in left)

    run(tmp_path, scenario)


def test_a_resumed_group_is_completed_and_not_played_twice(tmp_path: Path) -> None:
    """A crash leaves two of three siblings in the record: the third is played, and the learner gets all three."""

    async def first(ledger: Ledger) -> None:
        player = Late(lambda call: ("ok", 10_000 if call == 1 else 0))  # the middle one does not come back
        subject = rollouts(ledger, player, plays_per_step=3, repeats=3)
        async with Running(subject, ledger):
            assert ledger.waiting == 0 and ledger.counts["ok"] == 2
            assert subject.state() == {"group": 1, "again": [0]}

    run(tmp_path, first)

    async def second(ledger: Ledger) -> None:
        player = Late(lambda call: ("ok", 0))
        state = {"group": 1, "again": [0]}
        async with Running(rollouts(ledger, player, state=state, plays_per_step=3, repeats=3), ledger):
            plays = await ledger.batch(1)
            assert [play[0].id for play in plays] == ["s-0", "s-1", "s-2"]
            assert player.asked == 1 and ledger.counts["duplicates"] == 0

    run(tmp_path, second)


# ---- lost plays --------------------------------------------------------------------------------------


def test_a_lost_play_is_recorded_and_played_again(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        def function(id: str) -> str:
            if id == unlucky and player.asked[id] < MAX_ATTEMPTS:
                raise EngineLost("the machine is gone")
            return "ok"

        player = Scripted(function)
        subject = rollouts(ledger, player)
        unlucky = subject.draw(2).id
        async with Running(subject, ledger) as running:
            plays = await ledger.batch(4)
            assert running.started == 4
        assert {play[0].meta["index"]: play[0].id for play in plays} == {
            0: "s-0",
            1: "s-1",
            2: "s-2.2",
            3: "s-3",
        }
        assert subject.statuses == {"ok": 4, "lost": 2} and ledger.counts["lost"] == 2
        lost = [episode for episode in records.read(ledger.path) if episode.status == "lost"]
        assert [(e.id, e.outcome.reason, e.outcome.rewards) for e in lost] == [
            ("s-2", "the machine is gone", ()), ("s-2.1", "the machine is gone", ())
        ]  # fmt: skip
        assert {episode.task.id for episode in lost} == {unlucky}

    run(tmp_path, scenario)


def test_a_play_that_is_always_lost_ends_the_stage(tmp_path: Path) -> None:
    def function(id: str) -> str:
        raise EngineLost("gone")

    async def scenario(ledger: Ledger) -> None:
        with pytest.raises(EngineLost, match=rf"lost {MAX_ATTEMPTS} times"):
            await rollouts(ledger, Scripted(function), plays_per_step=1).run()

    run(tmp_path, scenario)


# ---- resuming ----------------------------------------------------------------------------------------


def test_a_resumed_stage_plays_nothing_twice(tmp_path: Path) -> None:
    """Checkpoint after the first step of two plays; two more plays end, one is torn away; then a crash."""

    async def first(ledger: Ledger) -> str:
        player = Uniform()
        subject = rollouts(ledger, player, DEBATE, plays_per_step=2, max_staleness=1)
        async with Running(subject, ledger) as running:
            subject.release(await ledger.batch(2))
            saved = json.dumps(subject.state())
            await running.settle()
            assert running.started == 6 and ledger.waiting == 4
        return saved

    saved = json.loads(run(tmp_path, first))
    assert saved["group"] == 4 and len(saved["again"]) == 2
    file = tmp_path / "episodes.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:5]) + lines[5][:40])  # the last play was being written
    before = {episode.meta["index"]: episode for episode in records.read(file)}
    assert len(before) == 5

    async def second(ledger: Ledger) -> None:
        player = Uniform()
        subject = rollouts(ledger, player, DEBATE, saved, plays_per_step=2, max_staleness=1)
        async with Running(subject, ledger):
            plays = await ledger.batch(4)
        found = {play[0].meta["index"]: play[0] for play in plays}
        kept = [index for index in found if index in before]
        assert sorted(found) == sorted([*saved["again"], 4, 5]) and len(kept) == 3
        assert all(found[index] == before[index] for index in kept)
        assert player.asked == 4 + 10, (
            "only the torn play may be played again"
        )  # reveals, and reads of the judge
        (again,) = found.keys() - kept
        assert found[again].task.id == subject.draw(again).id
        assert (found[again].id, ledger.counts["duplicates"]) == (f"s-{again}", 0)

    run(tmp_path, second)


def test_lengths_are_of_what_was_sampled() -> None:
    def said(tokens: int, role: str = "r", read: bool = False) -> Turn:
        trace = TokenTrace((1,), tuple(range(tokens)), (), (0,))
        return Turn("a", role, "p", 0, "", (), "x", read=read, trace=trace)

    turns = (said(2), said(4), said(9, read=True), said(1, "other"), replace(said(7), trace=None))
    figures = step_metrics([Episode("e", "p", Task("t", "?"), 0, turns, Outcome())])
    assert figures["length/r"] == 3.0 and figures["length/other"] == 1.0
