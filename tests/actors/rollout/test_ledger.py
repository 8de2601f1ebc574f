"""The episode record: exact round trip, exactly once, nothing torn."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math

import pytest
from hypothesis import given, settings, strategies as st

from actors.rollout import records
from actors.rollout.ledger import Ledger, LedgerInUse
from protocols.types import (
    Domain,
    Episode,
    Hidden,
    Judgment,
    Message,
    Outcome,
    Reward,
    Task,
    TokenTrace,
    Turn,
)

# ---- any episode at all ------------------------------------------------------------------------------

text = st.text(max_size=8)
number = st.floats(allow_nan=False)
numbers = st.lists(number, max_size=3).map(tuple)
ids = st.lists(st.integers(0, 5), max_size=6).map(tuple)
words = st.lists(st.sampled_from(["r0c1=2", "r3c3=1", "a", "b", "c", "d"]), max_size=6, unique=True).map(
    tuple
)
tasks = st.builds(
    Task,
    id=text,
    question=text,
    answer=st.none() | text,
    choices=words,
    evidence=words,
    hidden=st.dictionaries(text, st.builds(Hidden, text, words), max_size=2),
    proposals=words,
    domain=st.none(),
    parent=st.none() | text,
)
traces = st.builds(
    TokenTrace, ids, ids, numbers, ids, st.lists(ids, max_size=2).map(tuple), st.sampled_from([1.0, 0.5])
)
messages = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.sampled_from("xyz")), max_size=4
).map(tuple)
turns = st.builds(
    Turn,
    seat=st.sampled_from(["alice", "bob"]),
    role=st.sampled_from(["debater", "judge"]),
    policy=st.sampled_from(["p", "q"]),
    turn=st.integers(0, 9),
    phase=text,
    messages=messages,
    text=text,
    choices=words,
    probs=numbers,
    read=st.booleans(),
    fresh=st.booleans(),
    target=st.none() | text,
    situation=text,
    truncated=st.booleans(),
    trace=st.none() | traces,
)
outcomes = st.builds(
    Outcome,
    status=st.sampled_from(["ok", "invalid", "lost"]),
    judgments=st.lists(
        st.builds(Judgment, text, numbers, st.booleans(), st.integers(0, 9), text, st.booleans()), max_size=2
    ).map(tuple),
    rewards=st.lists(st.builds(Reward, text, st.none() | st.integers(0, 9), number, text), max_size=2).map(
        tuple
    ),
    score=st.none() | number,
    metrics=st.dictionaries(text, number, max_size=2),
    reason=text,
)
episodes = st.builds(
    Episode,
    id=text,
    protocol=text,
    task=tasks,
    seed=st.integers(0, 2**63 - 1),
    turns=st.lists(turns, max_size=6).map(tuple),
    outcome=outcomes,
    parent=st.none() | text,
    meta=st.dictionaries(text, st.none() | st.integers(-5, 5) | text | st.lists(text), max_size=2),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(episodes, max_size=3))
def test_any_episode_comes_back_exactly(originals):
    lines = records.encode(originals).splitlines(keepends=True)
    assert [records.decode_line(line) for line in lines] == originals
    for line, original in zip(lines, originals, strict=True):
        json.loads(line, parse_constant=pytest.fail)  # standard JSON: no NaN, no Infinity
        head = records.decode_head(line)
        assert (head.id, head.parent, head.status) == (original.id, original.parent, original.status)


@given(st.lists(traces, min_size=2, max_size=5))
def test_prompts_come_back_when_they_do_not_continue(seat_traces):
    original = episode("e", turns=tuple(turn(i, trace=trace) for i, trace in enumerate(seat_traces)))
    assert records.decode_line(records.encode([original])) == original


def test_not_a_number_survives():
    trace = TokenTrace((1,), (2,), (math.nan, -math.inf), (0,))
    back = records.decode_line(records.encode([episode("e", turns=(turn(0, trace=trace),))]))
    assert math.isnan(back.turns[0].trace.logprobs_T[0])
    assert back.turns[0].trace.logprobs_T[1] == -math.inf


def test_domain_is_left_out():
    class Exact(Domain):
        def derive(self, task, proposal):
            return task

        def check(self, task, answer):
            return True

    original = episode("e")
    with_domain = dataclasses.replace(original, task=dataclasses.replace(original.task, domain=Exact()))
    assert records.decode_line(records.encode([with_domain])) == original


def test_growing_chat_is_stored_once():
    speech = "a long opening statement " * 20
    first = turn(
        0, messages=(Message("user", speech),), trace=TokenTrace(tuple(range(500)), (7,), (-1.0,), (0,))
    )
    grown = (*first.messages, Message("assistant", "x"), Message("user", "go on"))
    prompt = (*range(500), 7, 900)
    second = turn(1, messages=grown, trace=TokenTrace(prompt, (8,), (-1.0,), (0,)))
    original = episode("e", turns=(first, second))
    line = records.encode([original])
    assert line.count(speech.encode()) == 1
    assert len(line) - len(records.encode([episode("e", turns=(first,))])) < 400
    assert records.decode_line(line) == original


def test_choices_of_the_evidence_are_named_not_copied():
    evidence = tuple(f"r{i}c{i}=1" for i in range(8))
    original = episode(
        "e", task=Task("t", "q", evidence=evidence), turns=(turn(0, choices=evidence[1:5] + evidence[6:]),)
    )
    line = records.encode([original])
    assert json.loads(line)["turns"][0]["choices"] == ["evidence", 0, 5]
    assert records.decode_line(line) == original


def test_choices_in_another_order_are_copied():
    evidence = tuple("abcdef")
    original = episode("e", task=Task("t", "q", evidence=evidence), turns=(turn(0, choices=evidence[::-1]),))
    assert records.decode_line(records.encode([original])) == original


# ---- reading files -----------------------------------------------------------------------------------


def test_read_selects_and_tolerates_a_cut_last_line(tmp_path):
    data = records.encode([episode("a"), episode("b"), episode("c")])
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(data[:-20])
    reader = records.read(path)
    assert [entry.id for entry in reader] == ["a", "b"]
    assert reader.truncated == 1
    assert [entry.id for entry in records.read(path, ids={"b"})] == ["b"]
    assert [head.id for head, _, _ in records.heads(path)] == ["a", "b"]


def test_damage_in_the_middle_is_an_error_naming_the_line(tmp_path):
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(records.encode([episode("a")]) + b'{"id":\n' + records.encode([episode("b")]))
    with pytest.raises(records.DamagedRecord, match=r"episodes\.jsonl:2"):
        list(records.read(path))
    with pytest.raises(records.DamagedRecord, match=r"episodes\.jsonl:2"):
        list(records.heads(path))


def test_heads_say_where_episodes_lie(tmp_path):
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(records.encode([episode("a"), episode("b", parent="a"), episode("c")]))
    places = {head.id: (offset, length) for head, offset, length in records.heads(path)}
    assert list(records.read_at(path, [places["c"], places["b"]])) == [episode("c"), episode("b", parent="a")]


# ---- the ledger --------------------------------------------------------------------------------------


def test_commits_once(tmp_path):
    ledger = Ledger(tmp_path)
    assert ledger.commit("a", [episode("a")])
    assert not ledger.commit("a", [episode("a")])
    assert "a" in ledger
    assert (ledger.counts["roots"], ledger.counts["duplicates"], ledger.counts["ok"]) == (1, 1, 1)
    ledger.close()
    assert [entry.id for entry in records.read(ledger.path)] == ["a"]


def test_sub_plays_go_with_their_root(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.commit(
        "a", [episode("a"), episode("a/0", parent="a"), episode("a/1", parent="a", status="invalid")]
    )
    (play,) = asyncio.run(ledger.batch(1))
    assert [entry.id for entry in play] == ["a", "a/0", "a/1"]
    assert ledger.counts["invalid"] == 1
    assert {entry.id for entry in records.read(ledger.path)} == {"a", "a/0", "a/1"}


def test_refuses_a_play_without_its_root(tmp_path):
    ledger = Ledger(tmp_path)
    with pytest.raises(ValueError, match="'a'"):
        ledger.commit("a", [episode("a/0", parent="a")])
    with pytest.raises(ValueError, match="'a'"):
        ledger.commit("a", [episode("b")])
    assert ledger.path.read_bytes() == b""


def test_batches_hand_out_ok_roots_once_in_commit_order(tmp_path):
    async def scenario() -> list[list[str]]:
        ledger = Ledger(tmp_path)
        early = asyncio.ensure_future(ledger.batch(2))
        late = asyncio.ensure_future(ledger.batch(2))
        for number in range(6):
            await asyncio.sleep(0)
            ledger.commit(f"r{number}", [episode(f"r{number}", status="invalid" if number == 1 else "ok")])
        ledger.commit("eval", [episode("eval")], train=False)
        batches = [await early, await late]
        assert ledger.waiting == 1
        ledger.close()
        return [[play[0].id for play in batch] for batch in batches]

    assert asyncio.run(scenario()) == [["r0", "r2"], ["r3", "r4"]]


def test_a_cancelled_wait_takes_nothing(tmp_path):
    async def scenario() -> list[str]:
        ledger = Ledger(tmp_path)
        ledger.commit("a", [episode("a")])
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(ledger.batch(2), 0.01)
        return [play[0].id for play in await ledger.batch(1)]

    assert asyncio.run(scenario()) == ["a"]


def test_what_is_dropped_stays_recorded_and_trains_nobody(tmp_path):
    async def scenario() -> list[str]:
        ledger = Ledger(tmp_path)
        for id in ("a", "b"):
            ledger.commit(id, [episode(id)])
        assert ledger.drop_waiting() == 2 and ledger.waiting == 0 and ledger.drop_waiting() == 0
        ledger.commit("c", [episode("c")])
        assert not ledger.commit("a", [episode("a")]), "it was played"
        return [play[0].id for play in await ledger.batch(1)]

    assert asyncio.run(scenario()) == ["c"]
    assert [found.id for found in records.read(tmp_path / "episodes.jsonl")] == ["a", "b", "c"]


def test_a_lost_attempt_is_recorded_and_may_be_tried_again(tmp_path):
    ledger = Ledger(tmp_path)
    assert ledger.commit("a", [episode("a", status="lost")])
    assert ledger.commit("a", [episode("a")])
    assert not ledger.commit("a", [episode("a", status="lost")])
    assert (ledger.counts["lost"], ledger.counts["ok"], ledger.counts["roots"]) == (1, 1, 1)


def test_reopening_restores_what_was_committed(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.commit("a", [episode("a"), episode("a/0", parent="a")])
    ledger.commit("b", [episode("b", status="lost")])
    before = ledger.counts
    ledger.close()
    again = Ledger(tmp_path)
    assert "a" in again
    assert "a/0" not in again
    assert "b" not in again
    assert +again.counts == before
    assert not again.commit("a", [episode("a")])


def test_a_continued_run_takes_recorded_plays_once(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.commit("a", [episode("a"), episode("a/0", parent="a")])
    ledger.commit("gone", [episode("gone", status="lost")])
    ledger.commit("b", [episode("b", status="invalid")])
    ledger.commit("c", [episode("c")])
    ledger.close()
    again = Ledger(tmp_path)
    assert again.waiting == 0
    assert set(again.restored) == {"a", "b", "c"}
    assert again.recall("c") == [episode("c")]
    assert again.recall("a") == [episode("a"), episode("a/0", parent="a")]
    assert again.recall("b")[0].status == "invalid"
    with pytest.raises(KeyError):
        again.recall("a")
    assert again.waiting == 0, "what is read back is queued by whoever asked"
    assert again.counts["roots"] == 3


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_torn_commit_vanishes_whole(tmp_path, kept):
    ledger = Ledger(tmp_path)
    ledger.commit("a", [episode("a")])
    whole = ledger.path.stat().st_size
    ledger.commit("b", [episode("b"), *[episode(f"b/{i}", parent="b") for i in range(3)]])
    size = ledger.path.stat().st_size
    ledger.close()
    with ledger.path.open("r+b") as file:
        file.truncate(whole + int((size - whole) * kept))
    again = Ledger(tmp_path)
    assert "a" in again
    assert "b" not in again
    assert again.path.stat().st_size == whole
    assert again.counts["cut"] == int((size - whole) * kept)
    assert again.commit("b", [episode("b")])
    again.close()
    assert [entry.id for entry in records.read(again.path)] == ["a", "b"]


def test_a_full_disk_records_nothing(tmp_path, monkeypatch):
    import os

    ledger = Ledger(tmp_path)
    ledger.commit("a", [episode("a")])
    before = ledger.path.read_bytes()
    write = os.write

    def half(fd: int, data: memoryview) -> int:
        if len(data) < 20:
            raise OSError(28, "No space left on device")
        return write(fd, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(OSError, match="No space"):
        ledger.commit("b", [episode("b")])
    monkeypatch.undo()
    assert ledger.path.read_bytes() == before
    assert "b" not in ledger
    assert ledger.waiting == 1
    assert ledger.commit("b", [episode("b")])


def test_one_writer_at_a_time(tmp_path):
    ledger = Ledger(tmp_path)
    with pytest.raises(LedgerInUse):
        Ledger(tmp_path)
    ledger.close()
    ledger.close()
    Ledger(tmp_path).close()


# ---- helpers -----------------------------------------------------------------------------------------


def turn(index, **fields):
    defaults = {
        "seat": "alice",
        "role": "debater",
        "policy": "p",
        "turn": index,
        "phase": "",
        "messages": (),
        "text": "x",
    }
    return Turn(**{**defaults, **fields})


def episode(id, status="ok", parent=None, turns=(), task=None):
    return Episode(id, "debate", task or Task("t", "q"), 0, turns, Outcome(status), parent)
