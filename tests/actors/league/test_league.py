"""The league: who is kept, who is met, and what a play says."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest
from hypothesis import given, strategies as st

from actors.league.pool import DECAY, RULES, League, Snapshot, meetings
from configs.schema.run import AdvantageConfig
from learners.credit.samples import build_samples
from protocols.types import Episode, Message, Outcome, Reward, Status, Task, TokenTrace, Turn


def snap(version: int, policy: str = "p") -> Snapshot:
    return Snapshot(policy, version, f"models/{policy}/past-{version}")


def league(*versions: int, keep: int = 99) -> League:
    found = League()
    for version in versions:
        found.add(snap(version), keep)
    return found


def fading(score: float, plays: int) -> float:
    """The win rate after `plays` equal scores, summed by hand."""
    weights = [DECAY**age for age in range(plays)]
    return (score * sum(weights) + 1) / (sum(weights) + 2)


# ---- who is kept


def test_what_is_kept_is_spread_over_the_run() -> None:
    found = League()
    left = [[gone.version for gone in found.add(snap(version), 4)] for version in range(0, 160, 20)]
    assert left == [[], [], [], [], [20], [60], [100], [120]]
    assert [kept.version for kept in found.pool] == [0, 40, 80, 140]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 9))
def test_first_and_newest_stay(steps: list[int], keep: int) -> None:
    found, version, everything = League(), 0, []
    for step in steps:
        version += step
        everything.append(version)
        left = found.add(snap(version), keep)
        versions = [kept.version for kept in found.pool]
        assert versions == sorted(set(versions)) and len(versions) == min(keep, len(everything))
        assert versions[-1] == version and set(versions) <= set(everything)
        assert keep == 1 or versions[0] == everything[0]
        assert not {gone.version for gone in left} & set(versions)


def test_policies_do_not_crowd_each_other_out() -> None:
    found = league(0, 1, keep=2)
    found.add(snap(0, "exploiter"), 2)
    assert [one.name for one in found.pool] == ["p@0", "p@1", "exploiter@0"]
    assert [one.name for one in found.of(["exploiter"])] == ["exploiter@0"]


def test_a_opponent_checkpoint_is_newer_than_the_last() -> None:
    with pytest.raises(ValueError, match="p@3 is not newer than p@3"):
        league(3, 3)


# ---- how the learner fares


def test_who_was_never_met_is_even() -> None:
    assert league(0).win_rate("p", "p@0") == 0.5


def test_win_rates_forget() -> None:
    found = league(0)
    for _ in range(30):
        found.record("p", "p@0", 1.0)
    assert found.win_rate("p", "p@0") == pytest.approx(fading(1.0, 30))
    assert found.win_rate("q", "p@0") == 0.5, "another learner has luck of its own"
    for _ in range(1000):
        found.record("p", "p@0", 0.0)
    assert found.win_rate("p", "p@0") == pytest.approx(fading(0.0, 1000), abs=1e-4)
    with pytest.raises(ValueError):
        found.record("p", "p@0", 1.5)


def test_who_leaves_is_forgotten() -> None:
    found = league(0, 1)
    found.record("p", "p@1", 0.0)
    (gone,) = found.add(snap(2), 2)
    assert gone.version == 1 and found.win_rate("p", "p@1") == 0.5
    assert found.state()["tallies"] == []


# ---- who is met


def test_the_rules_by_hand() -> None:
    """Rates .5, .75 and .25: one win or loss more than the two made up."""
    rates_N = [0.5, 0.75, 0.25]
    assert RULES["latest"](rates_N, 1) == [0, 0, 1]
    assert RULES["uniform"](rates_N, 1) == [1, 1, 1]
    assert RULES["pfsp"](rates_N, 1) == [0.5, 0.25, 0.75]
    assert RULES["pfsp"](rates_N, 2) == [0.25, 0.0625, 0.5625]
    assert RULES["pfsp_even"](rates_N, 1) == [0.25, 0.1875, 0.1875]


rates = st.lists(st.floats(0, 1), min_size=1, max_size=8)


@given(rates, st.sampled_from(sorted(RULES)), st.floats(0.1, 4))
def test_chances_are_chances(scores: list[float], rule: str, power: float) -> None:
    found = league(*range(len(scores)))
    for version, score in enumerate(scores):
        for _ in range(20):
            found.record("p", f"p@{version}", score)
    chances = found.chances(rule, ["p"], found.pool, power)
    assert sum(chances) == pytest.approx(1.0) and min(chances) >= 0
    if rule == "pfsp":
        hardest = min(range(len(scores)), key=scores.__getitem__)
        assert chances[hardest] == pytest.approx(max(chances))


def test_where_all_are_beaten_for_certain_all_are_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    found = league(0, 1)
    monkeypatch.setattr(found, "win_rate", lambda learner, opponent: 1.0)
    assert found.chances("pfsp", ["p"], found.pool) == [0.5, 0.5]
    assert found.chances("pfsp_even", ["p"], found.pool) == [0.5, 0.5]


def test_draws_follow_the_shares_and_the_chances() -> None:
    found, rng = league(0, 1, 2, 3), random.Random(0)
    shares = {"latest": 0.5, "uniform": 0.5}
    drawn = Counter(found.draw(rng, shares, ["p"], found.pool).version for _ in range(4000))
    assert abs(drawn[3] - 2500) < 150 and all(abs(drawn[version] - 500) < 100 for version in range(3))
    with pytest.raises(IndexError):
        found.draw(rng, shares, ["p"], [])


def test_a_restored_league_goes_on_alike() -> None:
    found = league(0, 5, 9)
    found.record("p", "p@5", 0.0)
    found.results.add("p@0", "p@5", 1.0, "q")
    twin = League.restore(json.loads(json.dumps(found.state())))
    assert twin.state() == found.state() and twin.pool == found.pool
    draws = [
        [one.draw(random.Random(i), {"pfsp": 1.0}, ["p"], one.pool).name for i in range(50)] for one in (found, twin)
    ]
    assert draws[0] == draws[1] and len(set(draws[0])) == 3
    assert twin.results.met("p@0", "p@5")


# ---- what a play says


def turn(seat: str, policy: str, index: int = 0) -> Turn:
    trace = TokenTrace((1, 2), (3,), (-0.5,), (7,))
    return Turn(seat, "player", policy, index, "", (Message("user", "?"),), "3", situation="s", trace=trace)


def play(policies: dict[str, str], rewards: list[tuple[str, float]], status: Status = "ok") -> Episode:
    paid = tuple(Reward(seat, None, value, "win") for seat, value in rewards)
    turns = tuple(turn(seat, policy) for seat, policy in policies.items())
    return Episode("e", "game", Task("t", "?"), 0, turns, Outcome(status, rewards=paid))


@pytest.mark.parametrize(("rewards", "score"), [
    ([("a", 1.0), ("b", -1.0)], 1.0),
    ([("a", -2.0), ("b", 2.0)], 0.0),
    ([("a", 0.1), ("a", 0.2), ("b", 0.3)], 0.5),
])  # fmt: skip
def test_who_is_paid_more_has_won(rewards: list[tuple[str, float]], score: float) -> None:
    episode = play({"a": "p", "b": "p@3"}, rewards)
    assert list(meetings(episode, ["p"], ["p@3"])) == [("p", "p@3", score)]
    swapped = play({"b": "p", "a": "p@3"}, rewards)
    assert list(meetings(swapped, ["p"], ["p@3"])) == [("p", "p@3", 1 - score)]


def test_what_says_nothing() -> None:
    paid = [("a", 1.0), ("b", -1.0)]
    assert not list(meetings(play({"a": "p", "b": "p"}, paid), ["p"], ["p", "p@3"])), "self-play"
    assert not list(meetings(play({"a": "p", "b": "p@3"}, paid, "invalid"), ["p"], ["p@3"]))
    assert not list(meetings(play({"a": "p", "b": "p@3"}, [("a", 1.0)]), ["p"], ["p@3"])), "one was not paid"
    assert not list(meetings(play({"a": "p", "b": "p@4"}, paid), ["p"], ["p@3"])), "somebody else"


def test_a_learner_learns_from_its_own_turns_and_is_compared_per_opponent() -> None:
    """The baseline's `opponent` is the opponent checkpoint by name; in self-play it is the policy itself."""
    plays = [play({"a": "p", "b": "p@3"}, [("a", 1.0), ("b", -1.0)]),
             play({"a": "p@3", "b": "p"}, [("a", 1.0), ("b", -1.0)]),
             play({"a": "p", "b": "p"}, [("a", 1.0), ("b", -1.0)])]  # fmt: skip
    config = AdvantageConfig("role_ema", baseline_by=["opponent"], decay=0.5)
    baselines: dict[str, float] = {}
    samples, metrics = build_samples(plays, "p", config, baselines)
    assert [sample.tags["seat"] for sample in samples] == ["a", "b", "a", "b"] and metrics["turns"] == 4
    assert [sample.advantages_L for sample in samples] == [[1.0], [-1.5], [1.0], [-1.5]]
    assert baselines == {"p@3": -0.25, "p": -0.25}
