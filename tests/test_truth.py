"""Trained judges: what a judge's own polls teach it. Numbers by hand; gradients against scores written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import AdvantageConfig, LossConfig, SignalConfig
from learners.batching import check, collate
from learners.losses import token_loss, token_weights
from learners.samples import build_samples
from learners.truth import UNKNOWN_VERSION, Answers, legal_tokens, truth_samples
from learners.types import Sample
from protocols.types import Episode, Message, Outcome, Reward, Task, TokenTrace, Turn
from tasks.trust import trusted

CODES = {"A": (7,), "B": (8,), "yes": (5, 1), "no": (5, 2, 9), "perhaps": (6,)}
MANY = ("yes", "no", "perhaps")


def encode(choices: tuple[str, ...]) -> list[tuple[int, ...]]:
    return [CODES[choice] for choice in choices]


def poll(index: int, probs: tuple[float, ...], target: str | None, **fields: Any) -> Turn:
    trace = TokenTrace((1, 2, 3 + index), (), (), (4,))
    fields = {"choices": ("A", "B"), "policy": "j", "read": True, "fresh": True, "trace": trace, **fields}
    fields |= {"probs": probs, "target": target}
    return Turn("jay", fields.pop("role", "judge"), fields.pop("policy"), index, "judge", (Message("user", "?"),), "A", **fields)


def episode(*turns: Turn, id: str = "e", task: str = "t", parent: str | None = None, **outcome: Any) -> Episode:
    return Episode(id, "debate", Task(task, "?", parent=parent), 0, turns, Outcome(**outcome))


def learn(*turns: Turn, consistency: float = 0.0, **answers: Any) -> tuple[list[Sample], dict[str, float]]:
    return truth_samples([episode(*turns)], "j", consistency, Answers(encode=encode, **answers))


def test_the_right_choice_is_a_sample_of_the_prompt_that_was_seen() -> None:
    (sample,), figures = learn(poll(0, (0.8, 0.2), "B"))
    assert sample.token_ids_S == [1, 2, 3, 8] and sample.positions_L == [3]
    assert sample.allowed_L == [(7, 8)] and sample.advantages_L == [1.0] and sample.versions_L == [4]
    assert sample.logprobs_L == [pytest.approx(math.log(0.2))] and sample.segments_L == [0]
    assert sample.tags == {"episode": "e", "seat": "jay", "role": "judge"}
    assert figures["polls"] == figures["polls_trained"] == figures["samples"] == figures["loss_tokens"] == 1


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
    samples, figures = learn(turn)
    assert samples == [] and figures[counted] == 1 == figures["polls"]


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
    samples, figures = truth_samples(plays, "j", 0.0, Answers(trusted=share, encode=encode))
    known = [str(i) for i, (image, _) in enumerate(tasks) if trusted(f"img{image}", share)]
    assert [sample.tags["episode"] for sample in samples] == known, "lies about one image are trusted together"
    assert figures["polls"] == len(tasks) and figures["polls_trained"] == len(known)
    assert ("accuracy/others" in figures) == (len(known) < len(tasks)), "the others are measured all the same"


def votes(value: dict[int, float], task: str) -> Episode:
    trace = TokenTrace((1, 2), (7,), (-0.5,), (4,), ((7, 8),))
    turns = [poll(i, (), "A", read=False, trace=trace) for i in value]
    rewards = tuple(Reward("jay", i, v, "right_verdict") for i, v in value.items())
    return episode(*turns, id=task, task=task, rewards=rewards)


def test_rewards_for_votes_never_reach_untrusted_tasks() -> None:
    names = [f"t{i}" for i in range(40)]
    plays = [votes({0: 1.0, 1: 0.0}, name) for name in names]
    config = AdvantageConfig(kind="reinforce")
    samples, figures = build_samples(plays, "j", config, answers=Answers(trusted=0.3))
    inside = {name for name in names if trusted(name, 0.3)}
    assert 0 < len(inside) < 40
    assert {sample.tags["episode"] for sample in samples} == inside
    assert figures["turns_without_reward"] == figures["rewards_untrusted"] == 2 * (40 - len(inside))
    everywhere, figures = build_samples(plays, "j", config)
    assert {sample.tags["episode"] for sample in everywhere} == set(names) and figures["rewards_untrusted"] == 0


# -- both orders


def pair(given: tuple[float, ...], reversed_: tuple[float, ...], target: str, other: str) -> tuple[Turn, Turn]:
    return poll(0, given, target, situation="given"), poll(1, reversed_, other, situation="reversed")


def test_figures_by_hand() -> None:
    # The first claim is A when given, B when reversed: .7 for it, then .4.
    _, figures = learn(*pair((0.7, 0.3), (0.6, 0.4), "A", "B"))
    assert figures["accuracy/trusted"] == 0.5 and figures["swap_flip_rate"] == 1.0
    assert figures["swap_gap"] == pytest.approx(0.3)
    assert figures["log_score/trusted"] == pytest.approx(-(math.log(0.7) + math.log(0.4)) / 2)
    assert figures["brier/trusted"] == pytest.approx((0.3**2 + 0.6**2) / 2)
    assert "accuracy/others" not in figures
    _, figures = learn(*pair((0.5, 0.5), (0.5, 0.5), "A", "B"))
    assert figures["accuracy/trusted"] == 0.5, "a tie is a guess"


def test_consistency_draws_each_order_to_the_other() -> None:
    samples, _ = learn(*pair((0.7, 0.3), (0.6, 0.4), "A", "B"), consistency=0.5, every_choice=True)
    # (y + q / 2) / 1.5, q what the other order said of the same claim
    expected = [(1 + 0.2) / 1.5, 0.3 / 1.5, 0.15 / 1.5, (1 + 0.35) / 1.5]
    assert [s.advantages_L[0] for s in samples] == pytest.approx(expected)
    alone, _ = learn(poll(0, (0.7, 0.3), "A", situation="given"), consistency=0.5)
    assert [s.advantages_L for s in alone] == [[1.0]]
    later = [poll(0, (0.7, 0.3), "A", situation="reversed"), poll(1, (0.6, 0.4), "A", situation="given")]
    assert [s.advantages_L for s in learn(*later, consistency=0.5)[0]] == [[1.0], [1.0]], "another poll"


# -- gradients: logits of the choices as parameters, the scores written out


def gradient(samples: list[Sample], kind: str, logits_QC: torch.Tensor) -> torch.Tensor:
    """Of what the learner would minimise, over the logits of each question's two choices. Questions are told by the
    last token of their prompt."""
    logits_QC = logits_QC.clone().requires_grad_()
    config = LossConfig(kind=kind)
    batch = collate(samples, range(len(samples)), torch.device("cpu"))
    rows = [sample.token_ids_S[2] - 3 for sample in samples]
    cols = [sample.token_ids_S[3] - 7 for sample in samples]
    logprobs_L = torch.log_softmax(logits_QC, 1)[rows, cols]
    zeros_L = torch.zeros_like(logprobs_L)
    loss_L, _ = token_loss(kind, config, logprobs_L, zeros_L, batch.advantages_L, zeros_L, batch.segments_L)
    weights_L = token_weights(config, batch.segments_L, len(samples), len(samples))
    (loss_L * weights_L).sum().mul(len(samples)).backward()
    assert logits_QC.grad is not None
    return logits_QC.grad


@pytest.mark.parametrize("consistency", [0.0, 0.5])
def test_the_brier_loss_has_the_gradient_of_the_score_and_the_disagreement(consistency: float) -> None:
    logits_QC = torch.tensor([[0.8, -0.3], [0.2, 0.5]])
    probs_QC = torch.softmax(logits_QC, 1).tolist()
    turns = pair(tuple(probs_QC[0]), tuple(probs_QC[1]), "A", "B")
    samples, _ = learn(*turns, consistency=consistency, every_choice=True)
    for sample in samples:
        check(sample)
    found = gradient(samples, "brier", logits_QC) * (1 + consistency)

    free = logits_QC.clone().requires_grad_()
    p, q = torch.softmax(free, 1)
    score = (p - torch.tensor([1.0, 0.0])).square().sum() + (q - torch.tensor([0.0, 1.0])).square().sum()
    (score + consistency * (p - q.flip(0)).square().sum()).backward()
    torch.testing.assert_close(found, free.grad)


def test_the_log_score_is_the_cross_entropy() -> None:
    logits_QC = torch.tensor([[0.8, -0.3], [0.2, 0.5]])
    samples, _ = learn(*pair((0.75, 0.25), (0.4, 0.6), "A", "B"))
    free = logits_QC.clone().requires_grad_()
    torch.nn.functional.cross_entropy(free, torch.tensor([0, 1]), reduction="sum").backward()
    torch.testing.assert_close(gradient(samples, "log_score", logits_QC), free.grad)


def test_a_choice_of_several_tokens_is_scored_as_one() -> None:
    logprobs = torch.tensor([math.log(0.5), math.log(0.4), math.log(0.9)], requires_grad=True)
    segments, target = torch.tensor([0, 0, 1]), torch.tensor([1.0, 1.0, 0.0])
    loss_L, _ = token_loss("brier", LossConfig("brier"), logprobs, logprobs, target, logprobs, segments)
    assert loss_L.tolist() == pytest.approx([0.64, 0.64, 0.81])
    weights_L = token_weights(LossConfig("brier"), segments, 3, 2)
    assert float((loss_L * weights_L).sum()) == pytest.approx((0.64 + 0.81) / 2)
    loss_L, _ = token_loss("log_score", LossConfig("log_score"), logprobs, logprobs, target, logprobs)
    assert loss_L.tolist() == pytest.approx([-math.log(0.18), -math.log(0.18), 0.0]), "no segments: one reply"


@given(st.floats(0.02, 0.98), st.sampled_from(["brier", "log_score"]), st.floats(0, 2))
def test_scores_are_least_at_the_true_probability(truth: float, kind: str, consistency: float) -> None:
    """A judge that says `truth` in both orders where a share `truth` of tasks is right has no gradient left."""
    logits_QC = torch.tensor([[math.log(truth), math.log(1 - truth)], [math.log(1 - truth), math.log(truth)]]).double()
    total = torch.zeros(2, 2, dtype=torch.float64)
    for target, other, share in (("A", "B", truth), ("B", "A", 1 - truth)):
        turns = pair((truth, 1 - truth), (1 - truth, truth), target, other)
        samples, _ = learn(*turns, consistency=consistency, every_choice=True)
        total += share * gradient(samples, kind, logits_QC).double()
    assert total.abs().max() < 1e-5


def test_the_signal_is_reached_through_build_samples() -> None:
    signal = SignalConfig("truth", consistency=1.0)
    play = episode(*pair((0.7, 0.3), (0.6, 0.4), "A", "B"))
    samples, _ = build_samples([play], "j", AdvantageConfig(), {}, signal, Answers(encode=encode))
    assert [s.advantages_L[0] for s in samples] == pytest.approx([0.7, 0.15, 0.2, 0.85])
