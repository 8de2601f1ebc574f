"""One learner step without DeepSpeed: an engine of plain autograd shows which gradient a rank asks for.

The oracle is a loss written out reply by reply, on one unpadded sequence at a time.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from configs.methods import LOSSES
from configs.schema.run import LearnerConfig, LossConfig
from learners.batches.batching import count
from learners.models.token_model import TokenModel
from learners.ranks.rank import LearnerRank
from learners.ranks.training import LearnerOutOfMemory
from learners.types import Sample

VOCABULARY = 11


class Base(nn.Module):
    """A causal language model without attention: the hidden state is the running sum of embeddings."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Parameter(torch.randn(VOCABULARY, 4, generator=generator))
        self.head = nn.Linear(4, VOCABULARY, bias=False)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(VOCABULARY, 4, generator=generator))

    def base_model(self, input_ids: Tensor, use_cache: bool) -> Any:
        return mock.Mock(last_hidden_state=self.embed[input_ids].cumsum(1).tanh())

    def get_output_embeddings(self) -> nn.Linear:
        return self.head


class Engine:
    """What `LearnerRank` uses of DeepSpeed's, with one step of plain gradient descent."""

    def __init__(self, lr: float = 0.5) -> None:
        self.model = TokenModel(Base())
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=lr)
        self.steps: list[Tensor] = []

    def __call__(self, **inputs: Any) -> tuple[Tensor, Tensor]:
        return self.model(**inputs)

    def backward(self, loss: Tensor, scale_wrt_gas: bool) -> None:
        loss.backward()

    def step(self) -> None:
        self.steps.append(flat([p.grad for p in self.model.parameters()]))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def was_step_applied(self) -> bool:
        return True

    def get_global_grad_norm(self) -> float:
        return float(self.steps[-1].norm())


def flat(tensors: list[Any]) -> Tensor:
    return torch.cat([torch.zeros(1) if t is None else t.detach().reshape(-1) for t in tensors])


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    with mock.patch.dict(os.environ):  # a rank writes RANK and its like
        yield


def rank(config: LearnerConfig, world: int = 1) -> LearnerRank:
    made = LearnerRank(0, world, "", config)
    made.engine, made.device = Engine(config.lr), torch.device("cpu")
    return made


def make_samples(number: int, seed: int = 0) -> list[Sample]:
    """One to three replies each, of one to four tokens, between prompts."""
    rng = random.Random(seed)
    samples = []
    for _ in range(number):
        ids, positions, segments = [rng.randrange(VOCABULARY)], [], []
        for reply in range(rng.randint(1, 3)):
            length = rng.randint(1, 4)
            positions += range(len(ids) + 2, len(ids) + 2 + length)
            segments += [reply] * length
            ids += [rng.randrange(VOCABULARY) for _ in range(2 + length)]
        advantages = [float((-1) ** reply) * rng.uniform(0.5, 2) for reply in segments]
        old = [rng.uniform(-4, -1) for _ in positions]
        samples.append(Sample(ids, positions, advantages, old, [0] * len(old), segments_L=segments))
    return samples


def logprob(model: TokenModel, sample: Sample, position: int) -> Tensor:
    logits = model.lm.head(model.lm.embed[torch.tensor(sample.token_ids_S[:position])].sum(0).tanh())
    return torch.log_softmax(logits, 0)[sample.token_ids_S[position]]


def expected_gradient(samples: list[Sample], how: str, constant: int) -> Tensor:
    """Of the clipped surrogate, bounds 0.2, averaged as `how` says."""
    model = TokenModel(Base())
    sums, sizes = [], []
    for sample in samples:
        for reply in sorted(set(sample.segments_L or ())):
            here = [i for i, segment in enumerate(sample.segments_L or ()) if segment == reply]
            losses = []
            for i in here:
                ratio = torch.exp(logprob(model, sample, sample.positions_L[i]) - sample.logprobs_L[i])
                advantage = sample.advantages_L[i]
                losses.append(-torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage))
            sums.append(torch.stack(losses).sum())
            sizes.append(len(here))
    if how == "token":
        loss = torch.stack(sums).sum() / sum(sizes)
    elif how == "sequence":
        loss = torch.stack([s / n for s, n in zip(sums, sizes)]).mean()
    else:
        loss = torch.stack(sums).mean() / constant
    loss.backward()
    return flat([p.grad for p in model.parameters()])


@pytest.mark.parametrize("how", ["token", "sequence", "constant"])
@pytest.mark.parametrize("micro_tokens", [1, 30, 10_000])
def test_gradients_are_those_of_the_formula_for_any_micro_batch(how: str, micro_tokens: int) -> None:
    samples = make_samples(9)
    config = LearnerConfig(micro_tokens=micro_tokens, loss=LossConfig(normalise=how, constant=6))
    learner = rank(config)
    learner.step(samples)
    (found,) = learner.engine.steps
    torch.testing.assert_close(found, expected_gradient(samples, how, 6), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("how", ["token", "sequence", "constant"])
def test_ranks_average_to_the_gradient_of_the_whole_batch(how: str) -> None:
    samples = make_samples(9)
    config = LearnerConfig(loss=LossConfig(normalise=how, constant=6))
    tokens, replies = count(samples)
    gradients = []
    for share in (samples[:2], samples[2:], []):
        learner = rank(config, world=3)
        with mock.patch.object(learner, "_agree", lambda *mine: (tokens, replies, max(mine[2], 1))):
            learner.step(share)
        gradients += learner.engine.steps
    average = sum(gradients[1:], gradients[0]) / 3
    torch.testing.assert_close(average, expected_gradient(samples, how, 6), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("minibatches", [1, 3])
def test_corrected_ratios_start_from_the_weights_at_the_start_of_the_step(minibatches: int) -> None:
    samples = make_samples(9)
    seen: list[tuple[Any, Any, Any]] = []
    from learners.losses import policy_gradient as losses

    def spy(new: Tensor, entropy: Tensor, batch: Any, config: LossConfig) -> Any:
        seen.append((new.detach(), batch.old_logprobs_L, batch.proximal_logprobs_L))
        return real(new, entropy, batch, config)

    real = losses.token_loss
    config = LearnerConfig(lr=5.0, minibatches=minibatches, loss=LossConfig(correction="mask"))
    learner = rank(config)
    at_start = {
        round(old, 5): float(logprob(learner.engine.model, sample, position).detach())
        for sample in samples
        for position, old in zip(sample.positions_L, sample.logprobs_L)
    }
    with mock.patch.object(losses, "token_loss", spy):
        tally = learner.step(samples)
    assert len(seen) == minibatches and math.isfinite(tally.result()["correction_weight"])
    for new, old, proximal in seen:
        expected = torch.tensor([at_start[round(float(value), 5)] for value in old])
        torch.testing.assert_close(new if proximal is None else proximal, expected, rtol=1e-4, atol=1e-5)
    if minibatches > 1:
        assert not torch.allclose(seen[-1][0], seen[-1][2], atol=1e-2), "the weights must have moved"


def test_a_loss_by_name_is_normalised_as_its_paper_says() -> None:
    samples = [replace(s, advantages_L=[1.0] * len(s.advantages_L)) for s in make_samples(5)]
    gradients = []
    for loss in (LossConfig(), LossConfig(normalise="constant", constant=50, correction="mask")):
        learner = rank(LearnerConfig(loss=loss))
        learner.step(samples, loss="sft")
        gradients += learner.engine.steps
    assert torch.equal(*gradients) and gradients[0].abs().max() > 0


@pytest.mark.parametrize("kind", ["clip", "reinforce", "gspo", "cispo", "sft", "log_score", "brier"])
@pytest.mark.parametrize("correction", ["none", "truncate", "mask", "reject"])
def test_a_loss_that_is_no_number_reaches_the_gradient_and_is_counted(kind: str, correction: str) -> None:
    samples = make_samples(6)
    samples[3].advantages_L[0] = math.nan
    correction = correction if "correction" in LOSSES.reads(kind) else "none"
    config = LossConfig(kind=kind, correction=correction, normalise="sequence")
    learner = rank(LearnerConfig(loss=config))
    learner.engine.was_step_applied = lambda: bool(torch.isfinite(learner.engine.steps[-1]).all())
    metrics = learner.step(samples).result()
    assert math.isnan(learner.engine.get_global_grad_norm()), "all ranks must see that this step is broken"
    assert (metrics["skipped"], metrics["updates"]) == (1, 0) and "loss" not in metrics


class FullGpu(Engine):
    """Has no memory for more than `room` tokens, `times` times."""

    def __init__(self, room: int, times: int) -> None:
        super().__init__()
        self.room, self.times = room, times

    def __call__(self, **inputs: Any) -> tuple[Tensor, Tensor]:
        if self.times and inputs["input_ids_BT"].numel() > self.room:
            self.times -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return super().__call__(**inputs)

    def was_step_applied(self) -> bool:
        return bool(torch.isfinite(self.steps[-1]).all())

    def step(self) -> None:
        self.steps.append(flat([p.grad for p in self.model.parameters()]))
        if self.was_step_applied():
            self.optimizer.step()
        self.optimizer.zero_grad()


def test_what_does_not_fit_is_repeated_in_halves_and_nothing_is_lost() -> None:
    config = LearnerConfig(micro_tokens=100, loss=LossConfig("reinforce"))
    samples = make_samples(12)
    calm, full = rank(config), rank(config)
    full.engine = FullGpu(room=50, times=1)
    expected, found = calm.step(samples).result(), full.step(samples).result()
    assert found["out_of_memory"] == 1 and found["micro_tokens"] == 50 and "out_of_memory" in expected
    assert (found["updates"], found["skipped"]) == (1, 0)
    torch.testing.assert_close(full.engine.steps[-1], calm.engine.steps[-1], rtol=1e-5, atol=1e-6)
    for key in ("loss", "entropy", "tokens"):
        assert found[key] == pytest.approx(expected[key], rel=1e-5)


@pytest.mark.parametrize(("world", "room"), [(1, 1), (2, 50)])
def test_where_halves_cannot_help_the_settings_that_can_are_named(world: int, room: int) -> None:
    full = rank(LearnerConfig(micro_tokens=100), world)
    full.engine = FullGpu(room, times=100)
    with mock.patch.object(full, "_agree", lambda *counts: counts):
        with pytest.raises(LearnerOutOfMemory, match=r"longest sequence has \d+; set learner.micro_tokens lower"):
            full.step(make_samples(12))
