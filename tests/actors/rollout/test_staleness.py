"""No play lags more than `max_staleness`, whatever ends first; what is oversampled is cancelled and recorded."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from actors.rollout import records
from actors.rollout.ledger import Ledger
from actors.rollout.staleness import choose, due_again, spare_groups
from configs.schema.run import KeepConfig
from protocols.types import Reply, Turn, TurnRequest
from tests.actors.rollout.test_filters import Share, stage
from tests.support.config_files import mistakes, write
from tests.support.rollout_stage import Running, Scripted, rollouts, run

__all__ = ["write"]

# ---- the choice ---------------------------------------------------------------------------------------


def test_choices_by_hand() -> None:
    due = {0: 1, 1: 1, 2: 1, 3: 2, 4: 2}
    assert choose(due, [3, 1], 1, 2) is None, "0 and 2 are due now, and only one of the two that leave is"
    assert choose(due, [3, 1, 0], 1, 2) is None, "2 would be left behind"
    assert choose(due, [3, 1, 0], 1, 2, spare=1) == [1, 0], "2 is given up"
    assert choose({1: 1, 2: 1, 3: 2, 4: 2}, [4, 2, 1], 1, 2) == [2, 1], "in the order they ended, those due first"
    assert choose({0: 2, 1: 2, 2: 2, 3: 3}, [3, 0], 1, 2) == [0, 3], "two can still go with the next step"
    assert choose({0: 2, 1: 2, 2: 2, 3: 3}, [3], 1, 2) is None
    assert choose({0: 2, 1: 2, 2: 2, 3: 2, 4: 3}, [4, 0], 1, 2) is None, "three would be due at once, of which two fit"


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=12), st.integers(0, 3), st.integers(1, 4),
       st.integers(0, 2))  # fmt: skip
def test_what_is_left_can_leave_in_time(
    groups: list[tuple[int, bool]], step: int, size: int, spare: int
) -> None:
    """None is late already. The oracle lets every later step take those due first, and counts who misses it."""
    due = {group: step + ahead for group, (ahead, _) in enumerate(groups)}
    finished = [group for group, (_, done) in enumerate(groups) if done]
    taken = choose(due, finished, step, size, spare)
    first = sorted(finished, key=due.__getitem__)[:size]
    left = sorted(deadline for group, deadline in due.items() if group not in first)
    fits = len(first) == size and missed(left, step + 1, size) <= spare
    assert taken == (first if fits else None)


def missed(deadlines: list[int], step: int, size: int) -> int:
    """How many are, when every step from this one on takes `size`, the earliest first, and leaves what is too late."""
    late = 0
    while deadlines:
        if deadlines[0] < step:
            late, deadlines = late + 1, deadlines[1:]
        else:
            deadlines, step = deadlines[size:], step + 1
    return late


def test_spare_groups() -> None:
    assert [spare_groups(o, 8) for o in (1.0, 1.01, 1.25, 1.5, 2.0)] == [0, 1, 2, 4, 8]
    assert spare_groups(1.1, 10) == 1, "rounding is no group"


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(1, 4), staleness=st.integers(0, 3), spare=st.integers(0, 3), seed=st.integers(0, 2**32),
    failing=st.sampled_from([0.0, 0.3]), stop=st.sampled_from([None, 3]),
)  # fmt: skip
def test_no_order_of_ends_makes_a_play_lag_more(
    size: int, staleness: int, spare: int, seed: int, failing: float, stop: int | None
) -> None:
    """A whole stage against random ends. The oracle keeps when each group began and counts by itself."""
    rng = random.Random(seed)
    due: dict[int, int] = {}
    began: dict[int, int] = {}
    finished: list[int] = []
    step, following = 0, 0

    def begin(count: int) -> None:
        nonlocal following
        for _ in range(count):
            due[following], began[following] = step + staleness, step
            following += 1

    begin(size * (1 + staleness) + spare)
    for _ in range(12):
        while (taken := choose(due, finished, step, size, spare)) is None:
            running = [group for group in due if group not in finished]
            assert running, "nothing runs, and yet the step waits"
            group = rng.choice(running)
            if rng.random() < failing:
                del due[group]
                begin(1)
            else:
                finished.append(group)
        assert len(set(taken)) == size and set(taken) <= set(finished)
        assert all(step - began[group] <= staleness for group in taken)
        late = [group for group in due if group not in taken and began[group] + staleness <= step]
        assert len(late) <= spare, "more is given up than was begun to spare"
        for group in (*taken, *late):
            del due[group]
        finished = [group for group in finished if group in due]
        step += 1
        begin(size + len(late))
        if step == stop:  # interrupted: what is open is begun again, with deadlines by order alone
            again = due_again([*due], step, size, spare)
            assert all(step <= again[group] <= step + staleness for group in due)
            due, finished = again, []
            began |= {group: deadline - staleness for group, deadline in again.items()}


# ---- while a stage runs --------------------------------------------------------------------------------


class Slow(Scripted):
    """Plays of the tasks in `held` end only once they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, asyncio.Event] = {}

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        reply = await super().__call__(request, history)
        if request.messages[0].text in self.held:
            await self.held[request.messages[0].text].wait()
        return reply


def test_a_slow_play_is_waited_for_before_it_lags_too_much(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        player = Slow()
        subject = rollouts(ledger, player, max_staleness=1, steps=5)
        slow = subject.draw(3).id
        player.held[slow] = asyncio.Event()
        async with Running(subject, ledger) as running:
            first = await subject.batch()
            assert 3 not in {play[0].meta["index"] for play in first} and subject.metrics()["lag_max"] == 0
            subject.release(first)
            await running.settle()
            assert ledger.waiting == 7, "enough for a step, but play 3 has to be part of it"
            waiting = asyncio.ensure_future(subject.batch())
            await running.settle()
            assert not waiting.done()
            player.held[slow].set()
            second = await waiting
            indices = [{play[0].meta["index"] for play in plays} for plays in (first, second)]
            assert set.union(*indices) == {*range(8)}, "all that began at first"
            assert subject.metrics()["lag_max"] == 1
            subject.release(second)
            for _ in range(3):
                subject.release(await subject.batch())
            assert "cancelled" not in subject.statuses and subject.state()["again"] == []

    run(tmp_path, scenario)


def test_a_step_waits_no_longer_for_a_slow_play_that_fails(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        player = Slow()
        subject = rollouts(ledger, player, max_staleness=1, steps=5)
        slow = subject.draw(3).id
        player.held[slow] = asyncio.Event()
        player.function = lambda id: "bad" if id == slow else "ok"
        async with Running(subject, ledger) as running:
            subject.release(await subject.batch())
            waiting = asyncio.ensure_future(subject.batch())
            await running.settle()
            assert not waiting.done()
            player.held[slow].set()
            assert 3 not in {play[0].meta["index"] for play in await waiting}

    run(tmp_path, scenario)


@pytest.mark.parametrize("staleness", [0, 1])
def test_what_is_oversampled_is_cancelled_and_recorded(tmp_path: Path, staleness: int) -> None:
    """Four groups of two to a step and one to spare; one play of group 1 hangs for good."""

    async def scenario(ledger: Ledger) -> None:
        player = Slow()
        options = {"plays_per_step": 8, "repeats": 2, "oversample": 1.25, "max_staleness": staleness, "steps": 4}
        subject = rollouts(ledger, player, **options)
        player.held[subject.draw(2).id] = asyncio.Event()
        seen = Counter[int]()
        async with Running(subject, ledger) as running:
            assert running.started == 4 * (1 + staleness) + 1
            for _ in range(4):
                plays = await subject.batch()
                begun = running.started
                await running.settle()
                assert running.started == begun, "a play began before the weights had arrived"
                assert len(plays) == 8 and subject.metrics()["lag_max"] <= staleness
                seen.update(play[0].meta["index"] // 2 for play in plays)
                subject.release(plays)
                await running.settle()
            metrics = subject.metrics()
        assert 1 not in seen and len(seen) == 16 and set(seen.values()) == {2}
        assert metrics["cancelled_groups"] >= 1 and subject.statuses["cancelled"] == 2 * metrics["cancelled_groups"]
        recorded = list(records.read(ledger.path))
        assert len({one.id for one in recorded}) == len(recorded) == 2 * subject.next_group, "each once"
        fates = {one.meta["index"] // 2: one.status for one in recorded}
        assert {group for group, status in fates.items() if status == "ok"} == {*seen}
        assert set(fates.values()) == {"ok", "cancelled"}
        assert all("max_staleness" in one.outcome.reason for one in recorded if one.status == "cancelled")
        hung = {one.meta["index"]: one for one in recorded if one.meta["index"] in (2, 3)}
        assert not any(one.turns for one in hung.values()), "nothing half-played is recorded"

    run(tmp_path, scenario)


def test_a_cancelled_play_may_be_played_when_the_run_is_taken_up(tmp_path: Path) -> None:
    async def first(ledger: Ledger) -> None:
        player = Slow()
        subject = rollouts(ledger, player, oversample=1.25, steps=3)
        player.held[subject.draw(0).id] = asyncio.Event()
        async with Running(subject, ledger):
            await subject.batch()
        assert ledger.counts["cancelled"] == 1

    async def second(ledger: Ledger) -> None:
        player = Scripted()
        subject = rollouts(ledger, player, state={"group": 5, "again": [0, 1, 2, 3, 4]}, oversample=1.25, steps=3)
        async with Running(subject, ledger):
            await subject.batch()
            assert sum(player.asked.values()) == 1, "only the cancelled one is played"

    run(tmp_path, first)
    run(tmp_path, second)


def test_filtered_and_oversampled_groups_together(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        share = Share()
        subject = stage(ledger, share.player, KeepConfig(signal=True), oversample=1.5, steps=2)
        share.shares = {subject.draw(0).id: 4}
        async with Running(subject, ledger) as running:
            assert running.started == 4, "three groups and a replacement"
            for _ in range(2):
                plays = await subject.batch()
                assert len(plays) == 8
                subject.release(plays)
                await running.settle()
            assert subject.metrics()["filtered_groups"] == 1 and subject.metrics()["cancelled_groups"] == 2
        statuses = Counter(one.status for one in records.read(ledger.path))
        assert statuses == {"ok": 16, "filtered": 4, "cancelled": 8}

    run(tmp_path, scenario)


def test_oversampling_is_refused_where_it_cannot_be(write: Any) -> None:
    found = mistakes(write(), "deterministic=true", "stages.main.oversample=1.25")
    assert set(found) == {"stages.main.oversample"}
    assert "which plays end first" in found["stages.main.oversample"].message
    assert "1 to 10" in str(mistakes(write(), "stages.main.oversample=0.5")["stages.main.oversample"])
