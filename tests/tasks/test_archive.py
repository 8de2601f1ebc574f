import json
import random
from collections import Counter

import pytest

from tasks.archive import Archive


def filled() -> Archive:
    archive = Archive()
    archive.add("1 2", "reverse", 1.0)
    archive.add("1 2 3", "reverse", 0.5)
    archive.add("1 2 3 4", "reverse", 0.0)
    return archive


def test_duplicates_are_counted_and_keep_the_newest_rate() -> None:
    archive = filled()
    assert archive.add("1 2", "reverse", 0.75) is False
    assert archive.add("1 2", "sort", 0.25) is True
    assert (len(archive), archive.added, archive.duplicates, archive.duplicate_share) == (4, 5, 1, 0.2)
    [again] = [e for e in archive.state()["entries"] if e["proposal"] == "1 2" and e["task_id"] == "reverse"]
    assert (again["solve_rate"], again["count"]) == (0.75, 2)


def test_the_stalest_makes_room() -> None:
    archive = Archive(capacity=3)
    for proposal in "abc":
        archive.add(proposal, "t", 0.5)
    archive.add("a", "t", 0.5)
    archive.add("d", "t", 0.5)
    assert [e["proposal"] for e in archive.state()["entries"]] == ["c", "a", "d"]
    archive.update("b", "t", 1.0)
    assert len(archive) == 3, "a dropped proposal does not come back through a replay"
    archive.update("c", "t", 1.0)
    assert (archive.added, archive.duplicates) == (5, 1), "replays are no duplicates"
    archive.add("e", "t", 0.5)
    assert [e["proposal"] for e in archive.state()["entries"]] == ["d", "c", "e"]


def test_draw_is_uniform_or_keeps_to_the_frontier() -> None:
    archive, rng = filled(), random.Random(0)
    uniform = Counter(archive.draw(rng).proposal for _ in range(3000))
    assert all(850 < count < 1150 for count in uniform.values()) and len(uniform) == 3
    assert {archive.draw(rng, frontier=1.0).proposal for _ in range(100)} == {"1 2 3"}
    mixed = Counter(archive.draw(rng, frontier=0.5).proposal for _ in range(4000))  # weights .5, 1, .5
    assert abs(mixed["1 2 3"] - 2000) < 200


def test_draw_without_a_frontier_falls_back_to_uniform() -> None:
    archive = Archive()
    archive.add("a", "t", 0.0)
    archive.add("b", "t", 1.0)
    rng = random.Random(0)
    assert {archive.draw(rng, frontier=1.0).proposal for _ in range(50)} == {"a", "b"}


def test_restored_archive_goes_on_alike() -> None:
    archive = filled()
    archive.add("1 2", "reverse", 0.5)
    twin = Archive.restore(json.loads(json.dumps(archive.state())))
    assert twin.state() == archive.state()
    draws = [[a.draw(random.Random(i), frontier=0.3) for i in range(20)] for a in (archive, twin)]
    assert draws[0] == draws[1]


def test_histogram() -> None:
    archive = filled()
    archive.add("x", "t", 0.95)
    assert archive.histogram(4) == [1, 0, 1, 2]


def test_mistakes() -> None:
    with pytest.raises(IndexError):
        Archive().draw(random.Random(0))
    with pytest.raises(ValueError):
        Archive(capacity=0)
    with pytest.raises(ValueError):
        Archive().add("a", "t", 1.5)
    with pytest.raises(ValueError):
        filled().draw(random.Random(0), frontier=2.0)


def test_a_proposal_without_a_solve_rate_is_replayed_as_one_that_is_half_solved() -> None:
    archive = Archive()
    archive.add("Sing.", "arts", None)
    archive.add("Count.", "sums", 1.0)
    assert {entry.proposal for entry in archive.within(0.0, 1.0)} == {"Sing.", "Count."}
    assert [entry.proposal for entry in archive.within(0.5, 1.0)] == ["Count."], "its rate is in no band"
    assert archive.draw(random.Random(0), frontier=1.0).proposal == "Sing.", "what is solved weighs nothing"
    assert sum(archive.histogram()) == 1
    again = Archive.restore(json.loads(json.dumps(archive.state())))
    assert again.state() == archive.state()
