"""Scores of a judge's probabilities as losses, over logits of choices: gradients against the scores written out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st

from configs.schema.run import LossConfig
from learners.batches.batching import check, collate
from learners.losses.policy_gradient import token_loss, token_weights
from learners.types import Sample
from tests.learners.credit.test_truth import learn, pair
from tests.support.loss_inputs import micro_batch


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
    loss_L, _ = token_loss(logprobs_L, zeros_L, replace(batch, old_logprobs_L=zeros_L), config)
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
    batch = micro_batch(logprobs, target, segments)
    loss_L, _ = token_loss(logprobs, logprobs, batch, LossConfig("brier"))
    assert loss_L.tolist() == pytest.approx([0.64, 0.64, 0.81])
    weights_L = token_weights(LossConfig("brier"), segments, 3, 2)
    assert float((loss_L * weights_L).sum()) == pytest.approx((0.64 + 0.81) / 2)
    loss_L, _ = token_loss(logprobs, logprobs, micro_batch(logprobs, target), LossConfig("log_score"))
    assert loss_L.tolist() == pytest.approx([-math.log(0.18), -math.log(0.18), 0.0]), "all of one reply"


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
