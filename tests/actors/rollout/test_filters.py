"""Which groups reach the learners (`stages.X.keep`): told by hand, replaced at once, recorded, never without end."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from actors.players.base import Seated
from actors.rollout import records
from actors.rollout.filters import Filter, TooManyFiltered, alike, solve_rate
from actors.rollout.ledger import Ledger
from actors.rollout.loop import Rollouts
from configs.schema.run import KeepConfig, StageConfig
from protocols.base import Play, Protocol
from protocols.types import Episode, Message, Outcome, Reply, Reward, Task, Turn, TurnRequest
from tasks.archive import Archive
from tests.support.config_files import mistakes, read, write
from tests.support.rollout_stage import SOURCE, Running, Scripted, run

__all__ = ["write"]


def episode(*rewards: tuple[str, int | None, float], policy: str = "p", score: float | None = None, task: str = "t",
            situations: Mapping[str, str] | None = None, parent: str | None = None) -> Episode:  # fmt: skip
    """Seats a and b take one turn each, as the same role."""
    turns = tuple(
        Turn(seat, "r", {"a": policy}.get(seat, "other"), 0, "", (), "x", situation=(situations or {}).get(seat, seat))
        for seat in "ab"
    )
    paid = tuple(Reward(seat, turn, value, "w") for seat, turn, value in rewards)
    return Episode("e", "d", Task(task, "?"), 0, turns, Outcome(rewards=paid, score=score), parent)


def group(*plays: Episode) -> list[list[Episode]]:
    return [[play] for play in plays]


# ---- what is alike ------------------------------------------------------------------------------------


def test_alike_by_hand() -> None:
    won, lost = episode(("a", 0, 1.0), ("b", 0, -1.0)), episode(("a", 0, -1.0), ("b", 0, 1.0))
    assert alike(group(won, won)) and not alike(group(won, lost))
    assert alike(group(episode(("a", 0, 0.1 + 0.2)), episode(("a", 0, 0.3)))), "rounding is no signal"
    assert not alike(group(episode(("a", 0, 0.0)), episode())), "not paid is not paid nothing"
    late = [episode(("a", None, value)) for value in (0.0, 1.0)]
    assert not alike(group(*late)), "what is paid for the whole episode counts"


def test_only_seats_of_learners_count() -> None:
    one, other = episode(("a", 0, 1.0), ("b", 0, 0.0)), episode(("a", 0, 1.0), ("b", 0, 1.0))
    assert not alike(group(one, other)) and not alike(group(one, other), {"other"}) and alike(group(one, other), {"p"})


def test_seats_in_the_same_situation_are_compared_and_others_are_not() -> None:
    split = [("a", 0, 1.0), ("b", 0, -1.0)]
    assert alike(group(episode(*split), episode(*split)))
    same = {"a": "", "b": ""}
    assert not alike(group(episode(*split, situations=same), episode(*split, situations=same)))


def test_sub_plays_are_compared_with_those_of_the_same_task() -> None:
    def play(*kids: tuple[str, float]) -> list[Episode]:
        return [episode(), *(episode(("a", 0, value), task=task, parent="e") for task, value in kids)]

    assert not alike([play(("x", 0.0), ("x", 1.0))])
    assert alike([play(("x", 0.0), ("x", 0.0)), play(("y", 1.0), ("y", 1.0))]), "two proposals are two tasks"


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=2, max_size=2), min_size=2, max_size=5))
def test_alike_means_that_no_baseline_leaves_an_advantage(paid: list[list[float]]) -> None:
    """The oracle is the definition: by seat, every reward less the mean of the group is zero."""
    plays = group(*(episode(("a", 0, one), ("b", 0, two)) for one, two in paid))
    means = [sum(seat) / len(seat) for seat in zip(*paid)]
    advantages = [value - mean for row in paid for value, mean in zip(row, means)]
    assert alike(plays) == all(abs(advantage) < 1e-9 for advantage in advantages)


# ---- the band -----------------------------------------------------------------------------------------


def test_the_band_of_solve_rates() -> None:
    subject = Filter("s", KeepConfig(solve_rate=[0.25, 0.75]), None, 4)

    def reason(*scores: float | None) -> str:
        return subject.reason(group(*(episode(score=score) for score in scores)))

    assert [reason(1, 0), reason(1, 0, 0, 0), reason(1, 1, 1, 0)] == ["", "", ""], "ends included"
    assert reason(1, 1) == "solve rate 1 is not in [0.25, 0.75]" and reason(0, 0, 1, 0, 0)
    assert reason(None, None) == "", "what nobody scored is not known to be hard"
    assert solve_rate(group(episode(score=1), episode(score=None))) == 1.0
    assert subject.metrics() == {
        "filtered_groups": 2.0, "filtered_alike": 0.0, "filtered_easy": 1.0, "filtered_hard": 1.0,
        "unscored_groups": 1.0, "solve_rate_before_filter": pytest.approx((0.5 + 0.25 + 0.75 + 1.0 + 0.2) / 5),
    }  # fmt: skip
    assert "solve_rate_before_filter" not in subject.metrics(), "each group is told once"


# ---- while a stage runs --------------------------------------------------------------------------------


class Guess(Protocol):
    """One seat says "win" or something else, and is paid 1 or 0 for it."""

    kind, name = "test", "guess"

    def play(self, task: Task, rng: random.Random) -> Play:
        (reply,) = yield [TurnRequest("a", "r", (Message("user", task.id),), 0)]
        assert isinstance(reply, Reply)
        if reply.text == "bad":
            return Outcome("invalid", reason="unreadable")
        won = float(reply.text == "win")
        return Outcome(score=won, rewards=(Reward("a", 0, won, "won"),))

    def roles(self) -> Mapping[str, str]:
        return {"a": "r"}

    def literal_texts(self) -> list[str]:
        return []


class Share:
    """Of every task's plays, `shares[task]` in four are won, the first ones; of other tasks, half of them."""

    def __init__(self) -> None:
        self.shares: dict[str, int] = {}
        self.said = Counter[str]()
        self.player = Scripted(self.say)

    def say(self, id: str) -> str:
        self.said[id] += 1
        return "win" if (self.said[id] - 1) % 4 < self.shares.get(id, 2) else "lose"


def stage(ledger: Ledger, player: Any, keep: KeepConfig | None, state: Any = None, **settings: Any) -> Rollouts:
    made = StageConfig(**{"plays_per_step": 8, "repeats": 4, "keep": keep, **settings})
    return Rollouts("s", made, Guess(), SOURCE, {"r": Seated("p", player)}, ledger, 7, Archive(), state)


KEEP = {"signal": KeepConfig(signal=True), "band": KeepConfig(solve_rate=[0.3, 0.7])}


@pytest.mark.parametrize("keep", KEEP.values(), ids=KEEP)
def test_filtered_groups_are_replaced_at_once_and_recorded(tmp_path: Path, keep: KeepConfig) -> None:
    async def scenario(ledger: Ledger) -> None:
        share = Share()
        subject = stage(ledger, share.player, keep)
        share.shares = {subject.draw(4 * 0).id: 4, subject.draw(4 * 2).id: 0}
        async with Running(subject, ledger) as running:
            assert running.started == 4, "two groups of a step, and one for each that was filtered"
            plays = await ledger.batch(2)
            assert sorted(play[0].meta["index"] for play in plays) == [*range(4, 8), *range(12, 16)]
            assert subject.state() == {"group": 4, "again": [1, 3]}
            subject.release(plays)
        assert subject.statuses == {"ok": 16, "filtered": 8}
        metrics = subject.metrics()
        assert metrics["filtered_groups"] == 2 and metrics["solve_rate_before_filter"] == 0.5
        recorded = {one.meta["index"]: one for one in records.read(ledger.path)}
        assert {index for index, one in recorded.items() if one.status == "filtered"} == {*range(4), *range(8, 12)}
        assert all(one.outcome.reason and one.outcome.score is not None and one.turns
                   for one in recorded.values() if one.status == "filtered")  # fmt: skip
        assert ledger.counts["filtered"] == 8 and len(recorded) == 16

    run(tmp_path, scenario)


def test_a_stage_in_which_nothing_passes_ends(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        with pytest.raises(TooManyFiltered, match=r"stage 's': 7 groups .* \(so far 7 alike\); keep.limit allows 6"):
            await stage(ledger, Scripted(lambda id: "win"), KeepConfig(signal=True, limit=3.0)).run()
        assert ledger.counts["filtered"] >= 28, "also the last one is recorded"

    run(tmp_path, scenario)


def test_filtered_groups_stay_filtered_when_the_run_is_taken_up(tmp_path: Path) -> None:
    """A crash before any step: what was filtered is not played again, and reaches no learner."""
    easy: list[str] = []

    async def first(ledger: Ledger) -> None:
        share = Share()
        subject = stage(ledger, share.player, KEEP["signal"])
        easy.append(subject.draw(0).id)
        share.shares = {easy[0]: 4}
        async with Running(subject, ledger):
            assert ledger.waiting == 8

    run(tmp_path, first)

    async def second(ledger: Ledger) -> None:
        player = Scripted(lambda id: "bad")
        subject = stage(ledger, player, KEEP["signal"], state={"group": 0, "again": []})
        async with Running(subject, ledger):
            plays = await ledger.batch(2)
            assert sorted(play[0].meta["index"] for play in plays) == [*range(4, 12)]
            assert all(play[0].status == "ok" for play in plays)
            assert player.asked[easy[0]] == 0 and subject.metrics()["filtered_groups"] == 1
            assert ledger.counts["duplicates"] == 0

    run(tmp_path, second)


def test_invalid_plays_are_no_part_of_what_is_compared(tmp_path: Path) -> None:
    """win, bad, win, win: the sound ones are alike, so the group is filtered; the invalid one stays invalid."""

    async def scenario(ledger: Ledger) -> None:
        share, words = Share(), ["win", "bad", "win", "win"]
        player = Scripted(lambda id: words.pop() if id == first else share.say(id))
        subject = stage(ledger, player, KEEP["signal"])
        first = subject.draw(0).id
        async with Running(subject, ledger):
            assert ledger.waiting == 8
        statuses = {one.meta["index"]: one.status for one in records.read(ledger.path) if one.meta["index"] < 4}
        assert sorted(statuses.values()) == ["filtered", "filtered", "filtered", "invalid"]

    run(tmp_path, scenario)


# ---- what is refused before anything starts -------------------------------------------------------------

GRPO = "policies.debater.learner.advantage.kind=grpo"
FOUR = ["stages.main.plays_per_step=8", "stages.main.repeats=4"]


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        (["stages.main.keep={}"], "stages.main.keep", "keeps every group"),
        (["stages.main.keep={solve_rate: [0.8, 0.3]}"], "stages.main.keep.solve_rate", "no range of solve rates"),
        (["stages.main.keep={solve_rate: [0.3]}"], "stages.main.keep.solve_rate", "[least, most]"),
        (["stages.main.keep={solve_rate: [0, 1]}"], "stages.main.keep.solve_rate", "has no effect"),
        (["stages.main.keep={signal: true, limit: 0}"], "stages.main.keep.limit", "more than 0"),
        (["stages.main.keep={signal: true, sovle_rate: [0.1, 0.9]}"], "stages.main.keep.sovle_rate", "did you mean"),
        (["stages.main.keep={signal: true}", "policies.debater.learner.advantage.kind=reinforce"],
         "stages.main.keep.signal", "reinforce does not compare"),
        (["stages.main.keep={signal: true}", "policies.debater.learner.advantage.group_by=[task, role]"],
         "stages.main.keep.signal", "lacks protocol, situation, turn"),
    ],
)  # fmt: skip
def test_filters_that_mislead_are_refused(write: Any, overrides: list[str], key: str, says: str) -> None:
    found = mistakes(write(), GRPO, *FOUR, *overrides)
    assert set(found) == {key} and says in str(found[key])


def test_sound_filters_are_taken(write: Any) -> None:
    path = write()
    for keep in ("{signal: true}", "{signal: true, solve_rate: [0.1, 0.9], limit: 5}"):
        kept = read(path, GRPO, *FOUR, f"stages.main.keep={keep}").config.stages["main"].keep
        assert kept is not None and kept.signal
    alone = [GRPO, "policies.debater.learner.advantage.group_by=[role]", "stages.main.keep={solve_rate: [0.1, 0.9]}"]
    found = mistakes(path, *alone)
    assert set(found) == {"stages.main.keep"} and "nothing to compare" in found["stages.main.keep"].message


def test_a_proposer_needs_to_see_what_its_proposals_are_worth() -> None:
    root = Path(__file__).resolve().parent.parent.parent.parent / "configs" / "propose_solve.yaml"
    keep = "stages.proposed.keep={solve_rate: [0.3, 0.8]}"
    found = mistakes(root, keep)
    assert set(found) == {"stages.proposed.keep"}
    assert "'proposer' is paid for proposals" in found["stages.proposed.keep"].message
