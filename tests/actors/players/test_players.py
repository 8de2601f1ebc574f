"""Players without a model: uniform, reproducible, and with the trace an engine would leave."""

import asyncio
import math
import random
from collections import Counter
from dataclasses import replace

import pytest

from actors.players.base import AtTemperature, NoChoices, ScriptedPlayer, UniformPlayer, walk
from actors.players.chat import ChatCodec
from learners.models.tiny import build_tokenizer
from protocols.types import Message, Reply, Turn, TurnRequest

CODEC = ChatCodec(build_tokenizer(["claim A B C"]))
ASK = TurnRequest("alice", "debater", (Message("user", "claim"),), 0, choices=("A", "B", "C"))


def play(player, request=ASK, history=()):
    return asyncio.run(player(request, history))


def test_picks_are_legal_uniform_and_reproducible():
    player, again = UniformPlayer(seed=3), UniformPlayer(seed=random.Random(3))
    picks = [play(player).text for _ in range(600)]
    assert picks == [play(again).text for _ in range(600)]
    assert set(picks) == {"A", "B", "C"} and min(Counter(picks).values()) > 150
    assert play(player).probs == pytest.approx((1 / 3, 1 / 3, 1 / 3)) and play(player).trace is None


def test_the_trace_is_what_an_engine_would_leave():
    reply = play(UniformPlayer(CODEC, 0))
    trace = reply.trace
    assert trace.prompt_ids_P == tuple(CODEC.prompt(ASK.messages))
    assert trace.output_ids_T == CODEC.encode(reply.text) and trace.versions_T == (0,)
    assert trace.logprobs_T == pytest.approx((-math.log(3),))
    assert trace.allowed_T == (tuple(sorted(CODEC.encode(text)[0] for text in "ABC")),)


def test_free_writing_ends_with_the_end_token_and_has_no_mask():
    trace = play(UniformPlayer(CODEC, 0), replace(ASK, enforce=False)).trace
    assert trace.output_ids_T[-1] == CODEC.end_id and len(trace.output_ids_T) == 2
    assert trace.allowed_T == () and trace.logprobs_T == pytest.approx((-math.log(3), 0.0))


def test_history_is_continued():
    first = play(UniformPlayer(CODEC, 0))
    turn = Turn("alice", "debater", "u", 0, "", ASK.messages, first.text, trace=first.trace)
    messages = (*ASK.messages, Message("assistant", first.text), Message("user", "claim"))
    second = play(UniformPlayer(CODEC, 0), replace(ASK, messages=messages, turn=1), (turn,))
    before = first.trace.prompt_ids_P + first.trace.output_ids_T
    assert second.trace.prompt_ids_P[: len(before)] == before


def test_reads_carry_tokens_only_for_teachers():
    read = replace(ASK, read=True, target="B")
    plain = play(UniformPlayer(CODEC, 0), read)
    assert plain.trace.output_ids_T == () and plain.probs == pytest.approx((1 / 3,) * 3)
    taught = play(UniformPlayer(CODEC, 0, teacher=True), read)
    assert taught.text == "B" and taught.trace.output_ids_T == CODEC.encode("B")
    assert taught.trace.logprobs_T == () and len(taught.trace.allowed_T[0]) == 3
    assert taught.probs == pytest.approx((1 / 3,) * 3), "a teacher's reply says nothing about its belief"


def test_a_teacher_tells_the_target_and_picks_where_there_is_none():
    teacher = UniformPlayer(CODEC, 0, teacher=True)
    assert {play(teacher, replace(ASK, target="C")).text for _ in range(20)} == {"C"}
    assert len({play(teacher).text for _ in range(50)}) == 3
    free = play(teacher, replace(ASK, choices=(), target="claim A")).trace
    assert free.output_ids_T == (*CODEC.encode("claim A"), CODEC.end_id)


def test_free_text_cannot_be_picked():
    with pytest.raises(NoChoices, match="'debater' is asked for free text"):
        play(UniformPlayer(), replace(ASK, choices=()))


def test_walk_by_hand():
    sequences = ((1, 5, 9), (1, 5, 8), (1, 6), (2,))
    allowed, logprobs = walk(sequences, (1, 5, 8))
    assert allowed == ((1, 2), (5, 6), (8, 9))
    assert logprobs == pytest.approx((math.log(3 / 4), math.log(2 / 3), math.log(1 / 2)))
    assert sum(logprobs) == pytest.approx(-math.log(4))
    allowed, logprobs = walk(((1, 2, 3), (1, 2, 4)), (1, 2, 3))
    assert allowed[:2] == ((1,), (2,)) and logprobs[:2] == (0.0, 0.0)


def test_scripted_players_say_what_they_are_told():
    assert play(ScriptedPlayer(lambda request: request.choices[1])).text == "B"
    assert play(ScriptedPlayer(lambda request: Reply("x", truncated=True))).truncated


def test_an_arm_may_set_the_temperature_of_every_reply():
    asked = []

    async def player(request, history):
        asked.append((request.temperature, request.seat, history))
        return Reply("A")

    greedy = AtTemperature(player, 0.0)
    assert play(greedy).text == "A"
    play(greedy, replace(ASK, temperature=0.7))
    assert asked == [(0.0, "alice", ()), (0.0, "alice", ())]
