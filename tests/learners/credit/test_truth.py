"""Trained judges: what a judge's own polls teach it, and on which tasks. Numbers by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, strategies as st

from configs.schema.run import AdvantageConfig, SignalConfig
from learners.credit.samples import build_samples
from learners.credit.truth import UNKNOWN_VERSION, Answers, legal_tokens, truth_samples
from learners.types import Sample
from protocols.types import Episode, Message, Outcome, Reward, Task, TokenTrace, Turn
from tasks.trusted import trusted

CODES = {"A": (7,), "B": (8,), "yes": (5, 1), "no": (5, 2, 9), "perhaps": (6,)}
MANY = ("yes", "no", "perhaps")


def encode(choices: tuple[str, ...]) -> list[tuple[int, ...]]:
    return [CODES[choice] for choice in choices]


def poll(index: int, probs: tuple[float, ...], target: str | None, **fields: Any) -> Turn:
    trace = TokenTrace((1, 2, 3 + index), (), (), (4,))
    fields = {"role": "judge", "policy": "j", "choices": ("A", "B"), "read": True, "trace": trace, **fields}
    said = {"turn": index, "phase": "judge", "messages": (Message("user", "?"),), "text": "A"}
    return Turn(seat="jay", probs=probs, target=target, **said, **fields)


def episode(*turns: Turn, id: str = "e", task: str = "t", parent: str | None = None, **outcome: Any) -> Episode:
    return Episode(id, "debate", Task(task, "?", parent=parent), 0, turns, Outcome(**outcome))


def learn(*turns: Turn, consistency: float = 0.0, **answers: Any) -> tuple[list[Sample], dict[str, float]]:
    return truth_samples([episode(*turns)], "j", consistency, Answers(encode=encode, **answers))


def test_the_right_choice_is_a_sample_of_the_prompt_that_was_seen() -> None:
    (sample,), metrics = learn(poll(0, (0.8, 0.2), "B"))
    assert sample.token_ids_S == [1, 2, 3, 8] and sample.positions_L == [3]
    assert sample.allowed_L == [(7, 8)] and sample.advantages_L == [1.0] and sample.versions_L == [4]
    assert sample.logprobs_L == [pytest.approx(math.log(0.2))] and sample.segments_L == [0]
    assert sample.tags == {"episode": "e", "seat": "jay", "role": "judge"}
    assert metrics["polls"] == metrics["polls_trained"] == metrics["samples"] == metrics["loss_tokens"] == 1


def test_the_brier_score_is_taught_every_choice() -> None:
    samples, _ = learn(poll(0, (0.8, 0.2), "B"), every_choice=True)
    assert [(s.token_ids_S[-1], s.advantages_L) for s in samples] == [(7, [0.0]), (8, [1.0])]


def test_choices_of_several_tokens_train_where_there_was_a_choice() -> None:
    samples, _ = learn(poll(0, (0.5, 0.3, 0.2), "no", choices=MANY), every_choice=True)
    yes, no, perhaps = samples
    assert (yes.token_ids_S, yes.positions_L) == ([1, 2, 3, 5, 1], [3, 4])
    assert yes.allowed_L == [(5, 6), (1, 2)] and yes.versions_L == [UNKNOWN_VERSION] * 2
    assert no.token_ids_S == [1, 2, 3, 5, 2], "what follows without alternative is left out"
    assert (perhaps.positions_L, perhaps.logprobs_L) == ([3], [pytest.approx(math.log(0.2))])
    assert legal_tokens(encode(MANY), CODES["no"]) == [(5, 6), (1, 2), (9,)]


@pytest.mark.parametrize(
    ("turn", "counted"),
    [
        (poll(0, (0.8, 0.2), None), "polls_without_answer"),
        (poll(0, (0.8, 0.2), "C"), "polls_without_answer"),
        (poll(0, (0.8, 0.2), "A", trace=None), "polls_without_trace"),
    ],
)
def test_what_cannot_teach_is_counted(turn: Turn, counted: str) -> None:
    samples, metrics = learn(turn)
    assert samples == [] and metrics[counted] == 1 == metrics["polls"]


def test_other_policies_sampled_turns_and_unreadable_verdicts_teach_nothing() -> None:
    others = [poll(0, (0.8, 0.2), "A", policy="k"), poll(1, (0.8, 0.2), "A", read=False), poll(2, (), "A")]
    assert learn(*others)[1]["polls"] == 0
    lost = episode(poll(0, (0.8, 0.2), "A"), status="invalid")
    assert truth_samples([lost], "j", 0.0, Answers(encode=encode))[0] == []


# -- the trusted slice


@given(st.text(max_size=8), st.floats(0.001, 1), st.floats(0.001, 1))
def test_slices_are_nested(name: str, one: float, two: float) -> None:
    assert trusted(name, 1.0)
    if one <= two and trusted(name, one):
        assert trusted(name, two)


def test_a_slice_is_about_its_share_and_the_same_everywhere() -> None:
    inside = [i for i in range(4000) if trusted(f"img{i}", 0.2)]
    assert 0.17 < len(inside) / 4000 < 0.23
    assert inside[:5] == [1, 14, 16, 18, 20], "a run in another process would trust other tasks"


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=20), st.floats(0.01, 0.99))
def test_nothing_of_an_untrusted_task_reaches_the_judge(tasks: list[tuple[int, int]], share: float) -> None:
    plays = [
        episode(poll(0, (0.6, 0.4), "B"), id=str(i), task=f"img{image}/{lie}", parent=f"img{image}")
        for i, (image, lie) in enumerate(tasks)
    ]
    samples, metrics = truth_samples(plays, "j", 0.0, Answers(trusted=share, encode=encode))
    known = [str(i) for i, (image, _) in enumerate(tasks) if trusted(f"img{image}", share)]
    assert [sample.tags["episode"] for sample in samples] == known, "lies about one image are trusted together"
    assert metrics["polls"] == len(tasks) and metrics["polls_trained"] == len(known)
    assert ("accuracy/others" in metrics) == (len(known) < len(tasks)), "the others are measured all the same"


def votes(value: dict[int, float], task: str) -> Episode:
    trace = TokenTrace((1, 2), (7,), (-0.5,), (4,), ((7, 8),))
    turns = [poll(i, (), "A", read=False, trace=trace) for i in value]
    rewards = tuple(Reward("jay", i, v, "right_verdict") for i, v in value.items())
    return episode(*turns, id=task, task=task, rewards=rewards)


def test_rewards_for_votes_never_reach_untrusted_tasks() -> None:
    names = [f"t{i}" for i in range(40)]
    plays = [votes({0: 1.0, 1: 0.0}, name) for name in names]
    config = AdvantageConfig(kind="reinforce")
    samples, metrics = build_samples(plays, "j", config, answers=Answers(trusted=0.3))
    inside = {name for name in names if trusted(name, 0.3)}
    assert 0 < len(inside) < 40
    assert {sample.tags["episode"] for sample in samples} == inside
    assert metrics["turns_without_reward"] == metrics["rewards_untrusted"] == 2 * (40 - len(inside))
    everywhere, metrics = build_samples(plays, "j", config)
    assert {sample.tags["episode"] for sample in everywhere} == set(names) and metrics["rewards_untrusted"] == 0


# -- both orders


def pair(given: tuple[float, ...], reversed_: tuple[float, ...], target: str, other: str) -> tuple[Turn, Turn]:
    return poll(0, given, target, situation="given"), poll(1, reversed_, other, situation="reversed")


def test_figures_by_hand() -> None:
    # The first claim is A when given, B when reversed: .7 for it, then .4.
    _, metrics = learn(*pair((0.7, 0.3), (0.6, 0.4), "A", "B"))
    assert metrics["accuracy/trusted"] == 0.5 and metrics["swap_flip_rate"] == 1.0
    assert metrics["swap_gap"] == pytest.approx(0.3)
    assert metrics["log_score/trusted"] == pytest.approx(-(math.log(0.7) + math.log(0.4)) / 2)
    assert metrics["brier/trusted"] == pytest.approx((0.3**2 + 0.6**2) / 2)
    assert "accuracy/others" not in metrics
    _, metrics = learn(*pair((0.5, 0.5), (0.5, 0.5), "A", "B"))
    assert metrics["accuracy/trusted"] == 0.5, "a tie is a guess"


def test_consistency_draws_each_order_to_the_other() -> None:
    samples, _ = learn(*pair((0.7, 0.3), (0.6, 0.4), "A", "B"), consistency=0.5, every_choice=True)
    # (y + q / 2) / 1.5, q what the other order said of the same claim
    expected = [(1 + 0.2) / 1.5, 0.3 / 1.5, 0.15 / 1.5, (1 + 0.35) / 1.5]
    assert [s.advantages_L[0] for s in samples] == pytest.approx(expected)
    alone, _ = learn(poll(0, (0.7, 0.3), "A", situation="given"), consistency=0.5)
    assert [s.advantages_L for s in alone] == [[1.0]]
    later = [poll(0, (0.7, 0.3), "A", situation="reversed"), poll(1, (0.6, 0.4), "A", situation="given")]
    assert [s.advantages_L for s in learn(*later, consistency=0.5)[0]] == [[1.0], [1.0]], "another poll"


def test_the_signal_is_reached_through_build_samples() -> None:
    signal = SignalConfig("truth", consistency=1.0)
    play = episode(*pair((0.7, 0.3), (0.6, 0.4), "A", "B"))
    samples, _ = build_samples([play], "j", AdvantageConfig(), {}, signal, Answers(encode=encode))
    assert [s.advantages_L[0] for s in samples] == pytest.approx([0.7, 0.3, 0.15, 0.85])
