"""Prompts put together from pieces are what the protocol would have rendered; others are refused."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from actors.evaluation.judge_prompts import JudgePrompts, PromptNotCut
from actors.players.chat import ChatCodec
from configs.load import load_protocol
from learners.models.tiny import build_tokenizer
from protocols.phased.interpreter import Phased
from tasks.kinds.pixels import Pixels

PROTOCOLS = Path(__file__).resolve().parent.parent.parent.parent / "configs" / "protocol"
SOURCE = Pixels()
TASKS = SOURCE.derived_heldout(12, seed=3)


def debate(**judge: object) -> Phased:
    protocol = load_protocol(PROTOCOLS / "pixel_debate.yaml")
    assert isinstance(protocol, Phased) and protocol.judge is not None
    return replace(protocol, judge=replace(protocol.judge, **judge))  # type: ignore[arg-type]


def codec(*words: str) -> ChatCodec:
    return ChatCodec(build_tokenizer([*SOURCE.words(), *words]))


LETTERS = {"prompt": "question a {{ a }} b {{ b }} seen {{ evidence }}", "answers": "labels"}


@pytest.mark.parametrize(
    "protocol",
    [debate(), debate(orders="given"), debate(system="you judge", **LETTERS)],
    ids=["claims", "one order", "labels"],
)
@pytest.mark.parametrize("words", [("or",), ()], ids=["words", "bytes"])
def test_equal_to_the_rendered_prompt_on_any_position(protocol: Phased, words: tuple[str, ...]) -> None:
    assert protocol.judge is not None
    tokens = codec(*words)
    prompts = JudgePrompts(protocol, tokens, TASKS)
    rng = random.Random(0)
    for index, task in enumerate(TASKS):
        for size in (0, 1, 2, 3, 4, len(task.evidence)):
            position = sorted(rng.sample(range(len(task.evidence)), size))
            shown = [task.evidence[i] for i in position]
            rng.shuffle(shown)  # a judge sees the set, in canonical order
            requests = protocol.judge_requests(task, shown)
            assert len(requests) == (2 if protocol.judge.orders == "both" else 1)
            assert prompts.prompts(index, position) == [tokens.prompt(r.messages) for r in requests]
            assert prompts.answers[index] == [tokens.choices(r.choices) for r in requests]


def test_answers_follow_the_order_of_the_claims() -> None:
    tokens = codec("or")
    given, reversed_ = JudgePrompts(debate(), tokens, TASKS).answers[0]
    assert [tokens.text(answer) for answer in given] == list(TASKS[0].choices)
    assert given == reversed_[::-1] and given != reversed_


def test_belief_is_the_mean_over_both_orders_of_the_first_claim() -> None:
    prompts = JudgePrompts(debate(), codec("or"), TASKS)
    assert prompts.belief(0, [[0.8, 0.2], [0.4, 0.6]]) == pytest.approx(0.7)


@pytest.mark.parametrize(
    "prompt",
    [
        "{{ evidence }} {{ a }} or {{ b }} {{ evidence }}",  # the statements stand twice
        "{{ a }} or {{ b }}",  # and here nowhere
        "{{ a }} or {{ b }}:{{ evidence }}",  # the first statement has other tokens after a colon
        "{{ a }} {{ evidence }} or {{ b }}",  # two spaces without evidence: not the same pieces
    ],
)
def test_prompts_that_cannot_be_cut_are_refused(prompt: str) -> None:
    with pytest.raises(PromptNotCut, match=TASKS[0].id):
        JudgePrompts(debate(prompt=prompt), codec("or", ":"), TASKS)
