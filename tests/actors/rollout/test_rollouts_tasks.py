"""Rollouts: which tasks are drawn, for siblings, arms, warm starts and replays."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from actors.players.base import Seated
from actors.rollout.ledger import Ledger
from actors.rollout.loop import NoTrustedTask, play_all, training_task, trusted_task
from protocols.proposals import carried_proposal
from tasks.trusted import trusted
from tests.support.rollout_stage import (
    DEBATE,
    PROPOSED,
    SOURCE,
    OneTurn,
    Running,
    Scripted,
    Uniform,
    rollouts,
    run,
)


def test_siblings_have_the_same_task_whatever_ran_before(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        one, two = (rollouts(ledger, Scripted(), repeats=3) for _ in range(2))
        forth = {index: one.draw(index) for index in range(60)}
        back = {index: two.draw(index) for index in reversed(range(60))}
        assert forth == back
        groups = [{forth[3 * group + i].id for i in range(3)} for group in range(20)]
        assert all(len(group) == 1 for group in groups)
        assert len(set.union(*groups)) > 15
        assert all(len(task.choices) == 2 and task.answer in task.choices for task in forth.values())

    run(tmp_path, scenario)


def test_training_never_draws_a_held_out_image(tmp_path: Path) -> None:
    held = {task.parent for task in SOURCE.derived_heldout(2000, seed=20_240_601)}

    async def scenario(ledger: Ledger) -> None:
        for protocol in (OneTurn(), PROPOSED):
            subject = rollouts(ledger, Scripted(), protocol)
            drawn = {(task.parent or task.id) for task in map(subject.draw, range(5000))}
            assert len(drawn) > 1000 and not drawn & held

    run(tmp_path, scenario)


def test_proposals_are_archived_and_replayed(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        player = Uniform()
        subject = rollouts(ledger, player, PROPOSED, plays_per_step=2, archive=1.0)
        assert carried_proposal(subject.draw(0)) is None, "an empty archive has nothing to replay"
        async with Running(subject, ledger):
            plays = await ledger.batch(2)
        assert len(subject.archive) == 2
        said = {(play[0].task.id, play[0].turns[0].text) for play in plays}
        replayed = {(task.id, carried_proposal(task)) for task in map(subject.draw, range(50))}
        assert replayed == said
        rates = {play[0].outcome.metrics["solve_rate"] for play in plays}
        assert rates == {sum(e.outcome.score or 0 for e in play[1:]) / 8 for play in plays}

    run(tmp_path, scenario)


def test_plays_of_an_arm_depend_on_their_place_and_not_on_how_many_run(tmp_path: Path) -> None:
    tasks = SOURCE.derived_heldout(6, seed=1)

    async def arm(width: int) -> list[tuple[str, int]]:
        players = {"r": Seated("p", Scripted())}
        plays = await play_all(OneTurn(), tasks, players, "arm", seed=3, width=width)
        assert [play[0].task.id for play in plays] == [task.id for task in tasks]
        return [(play[0].id, play[0].seed) for play in plays]

    narrow, wide = asyncio.run(arm(1)), asyncio.run(arm(6))
    assert narrow == wide and len({seed for _, seed in wide}) == 6
    assert [id for id, _ in wide] == [f"arm-{index}" for index in range(6)]


def test_a_warm_start_keeps_to_the_trusted_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    images = {trusted_task(SOURCE, DEBATE, rng, 0.2).parent for _ in range(200)}
    assert len(images) > 100 and all(trusted(str(image), 0.2) for image in images)
    same = [random.Random(1), random.Random(1)]
    assert trusted_task(SOURCE, PROPOSED, same[0], 1.0) == training_task(SOURCE, PROPOSED, same[1], warm=True)
    monkeypatch.setattr("actors.rollout.loop.MAX_DRAWS", 50)
    with pytest.raises(NoTrustedTask, match="none of 50 tasks"):
        trusted_task(SOURCE, DEBATE, rng, 1e-12)
