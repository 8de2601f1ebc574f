"""The reference beside a learner: which weights it has when, what it answers, and what comes of it in a step."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from configs.checks.learner import check_learner
from configs.memory import learner_memory
from configs.methods import LearnerConfigError
from configs.schema.run import LearnerConfig, LoraConfig, LossConfig, PolicyConfig, ReferenceConfig
from learners.models.reference import Reference
from learners.models.token_model import TokenModel
from learners.ranks.rank import LearnerRank
from learners.types import Sample
from tests.learners.ranks.test_learner_step import Base, Engine, flat, make_samples


class One(nn.Module):
    """A policy of one number, and one that does not train."""

    def __init__(self, value: float = 0.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([value], dtype=dtype))
        self.frozen = nn.Parameter(torch.tensor([5.0], dtype=dtype), requires_grad=False)


def trail(config: ReferenceConfig, values: list[float]) -> list[float]:
    """The reference's weight in each learner step of a policy that goes through `values`."""
    policy = One()
    reference = Reference(policy, config)
    found = []
    for value in values:
        with torch.no_grad():
            policy.w.fill_(value)
        reference.advance(policy)
        found.append(reference.model.w.item())
    return found


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (ReferenceConfig("initial"), [1.0, 1.0, 1.0, 1.0, 1.0]),
        (ReferenceConfig("previous", every=1), [1.0, 3.0, 7.0, 9.0, 2.0]),
        (ReferenceConfig("previous", every=2), [1.0, 1.0, 7.0, 7.0, 2.0]),
        # .75 * 1 + .25 * 3, .75 * 1.5 + .25 * 7, .75 * 2.875 + .25 * 9, ...
        (ReferenceConfig("ema", decay=0.75), [1.0, 1.5, 2.875, 4.40625, 3.8046875]),
        (ReferenceConfig("ema", decay=0.0), [1.0, 3.0, 7.0, 9.0, 2.0]),
    ],
)
def test_weights_by_hand(config: ReferenceConfig, expected: list[float]) -> None:
    # The policy was 0 when the copy was made and 1 before the first step: a warm start lay between.
    assert trail(config, [1.0, 3.0, 7.0, 9.0, 2.0]) == expected


def test_an_average_of_bfloat16_is_kept_in_float32() -> None:
    policy = One(1.0, torch.bfloat16)
    reference = Reference(policy, ReferenceConfig("ema", decay=0.9))
    reference.advance(policy)
    with torch.no_grad():
        policy.w.fill_(1.0078125)  # the next number after 1: a tenth of the way rounds back to 1
    for _ in range(10):
        reference.advance(policy)
    assert reference.weights["w"].item() == pytest.approx(1.0 + 0.0078125 * (1 - 0.9**10), abs=1e-6)
    assert reference.model.w.dtype == torch.bfloat16 and reference.model.w.item() == 1.0078125


def test_weights_that_do_not_train_are_shared_where_asked() -> None:
    policy = One(1.0)
    shared, apart = (Reference(policy, ReferenceConfig(), share) for share in (True, False))
    assert shared.model.frozen is policy.frozen and shared.model.w is not policy.w
    assert apart.model.frozen is not policy.frozen
    assert policy.w.requires_grad and not any(p.requires_grad for p in shared.model.parameters())
    assert list(shared.weights) == ["w"]


def test_parameters_are_read_only_while_they_are_whole() -> None:
    # As at ZeRO stage 3: outside of the context a parameter holds nothing.
    policy, gathered = One(), []
    reference = Reference(policy, ReferenceConfig("previous", every=2))
    policy.w.data = torch.zeros(0)

    @contextmanager
    def gather(parameters: list[Any]) -> Iterator[None]:
        assert parameters == [policy.w]
        gathered.append(policy.w)
        policy.w.data = torch.tensor([4.0])
        yield
        policy.w.data = torch.zeros(0)

    # Sizes are those of the reference's own copies.
    for _ in range(3):
        reference.advance(policy, gather)
    assert reference.model.w.item() == 4.0 and len(gathered) == 2, "no gathering in a step that copies nothing"


@pytest.mark.parametrize("kind", ["initial", "previous", "ema"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resume_is_bit_exact(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    config = ReferenceConfig(kind, every=3, decay=0.9)
    values = torch.rand(9, generator=torch.Generator().manual_seed(0)).tolist()

    def go(reference: Reference, policy: One, steps: list[float]) -> list[float]:
        found = []
        for value in steps:
            with torch.no_grad():
                policy.w.fill_(value)
            reference.advance(policy)
            found.append(reference.model.w.item())
        return found

    policy = One(0.0, dtype)
    reference = Reference(policy, config)
    go(reference, policy, values[:4])
    reference.save(tmp_path)
    facts = json.loads(json.dumps(reference.facts()))
    straight = go(reference, policy, values[4:])
    again = Reference(One(8.0, dtype), config)
    again.load(tmp_path, facts)
    assert go(again, One(0.0, dtype), values[4:]) == straight


def test_a_reference_without_a_step_needs_no_file(tmp_path: Path) -> None:
    reference = Reference(One(), ReferenceConfig())
    reference.save(tmp_path)
    assert not list(tmp_path.iterdir())
    reference.load(tmp_path, reference.facts())
    assert reference.steps == 0


# -- what it answers


def oracle(model: TokenModel, sample: Sample, i: int) -> Tensor:
    """Log-probability of the i-th loss token among the legal ones, in float64."""
    position = sample.positions_L[i]
    hidden = model.lm.embed[torch.tensor(sample.token_ids_S[:position])].sum(0).tanh()
    logits = model.lm.head(hidden).double() / sample.temperature
    legal = list((sample.allowed_L or [()] * len(sample.positions_L))[i]) or list(range(len(logits)))
    return logits[sample.token_ids_S[position]] - torch.logsumexp(logits[legal], 0)


def masked(samples: list[Sample]) -> list[Sample]:
    """Every second sample with masks, every third at another temperature."""
    found = []
    for n, sample in enumerate(samples):
        targets = [sample.token_ids_S[position] for position in sample.positions_L]
        allowed = [(target, (target + 3) % 11, (target + 5) % 11) for target in targets] if n % 2 else None
        found.append(replace(sample, allowed_L=allowed, temperature=0.6 if n % 3 == 0 else 1.0))
    return found


@pytest.mark.parametrize("micro_tokens", [1, 10_000])
def test_logprobs_under_the_masks_and_temperatures_of_the_policy(micro_tokens: int) -> None:
    policy, samples = TokenModel(Base()), masked(make_samples(7))
    reference = Reference(policy, ReferenceConfig())
    reference.advance(policy)
    with torch.no_grad():
        policy.lm.embed.mul_(3.0)  # the reference must not follow
    for sample, logprobs_L in zip(samples, reference.logprobs(samples, micro_tokens)):
        start = TokenModel(Base())
        expected = [oracle(start, sample, i).item() for i in range(len(sample.positions_L))]
        assert logprobs_L == pytest.approx(expected, abs=1e-5)


# -- a learner with one


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    with mock.patch.dict(os.environ):  # a rank writes RANK and its like
        yield


def rank(config: LearnerConfig) -> LearnerRank:
    made = LearnerRank(0, 1, "", config)
    made.engine, made.device = Engine(config.lr), torch.device("cpu")
    made.engine.module = made.engine.model
    made.reference = Reference(made.engine.model, config.reference)
    return made


def term(log_ratio: Tensor, ratio: Tensor, estimator: str) -> Tensor:
    """Schulman's estimates of KL(policy || reference) from log(policy / reference), made unbiased."""
    if estimator == "k1":
        return ratio * log_ratio
    if estimator == "k2":
        return ratio.detach() * log_ratio**2 / 2
    return ratio * ((-log_ratio).exp() - 1 + log_ratio)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("micro_tokens", [1, 10_000])
def test_gradient_of_a_step_is_that_of_the_formula(estimator: str, micro_tokens: int) -> None:
    samples = masked(make_samples(7))
    loss = LossConfig(kind="reinforce", kl=0.3, kl_estimator=estimator)
    learner = rank(LearnerConfig(lr=0.3, micro_tokens=micro_tokens, loss=loss))
    start = TokenModel(Base())
    for _ in range(2):  # in the first step policy and reference are the same
        now = copy.deepcopy(learner.engine.model)
        metrics = learner.step(samples).result()
    losses, terms = [], []
    for sample in samples:
        for i in range(len(sample.positions_L)):
            new = oracle(now, sample, i)
            ratio = (new - sample.logprobs_L[i]).exp()
            terms.append(term(new - oracle(start, sample, i).detach(), ratio, estimator))
            losses.append(-ratio * sample.advantages_L[i] + 0.3 * terms[-1])
    now.zero_grad()
    torch.stack(losses).mean().backward()
    expected = flat([p.grad for p in now.parameters()])
    torch.testing.assert_close(learner.engine.steps[1], expected, rtol=1e-3, atol=1e-5)
    assert metrics["reference_kl"] == pytest.approx(float(torch.stack(terms).mean().detach()), rel=1e-4)


def test_the_divergence_holds_the_policy_at_its_reference() -> None:
    # Sampled by the reference and always rewarded: -r + kl r (1/r - 1 + log r) is least at log r = 1 / kl.
    samples = [replace(s, advantages_L=[1.0] * len(s.advantages_L)) for s in make_samples(1)]
    samples = [replace(s, positions_L=[3], advantages_L=[1.0], logprobs_L=[0.0], versions_L=[0], segments_L=[0])
               for s in samples]  # fmt: skip
    moved = {}
    for kl in (0.0, 4.0):
        learner = rank(LearnerConfig(lr=0.05, loss=LossConfig(kind="reinforce", kl=kl)))
        ((start,),) = learner.logprobs(samples)
        drawn = [replace(s, logprobs_L=[start]) for s in samples]
        for _ in range(200):
            metrics = learner.step(drawn).result()
        ((end,),) = learner.logprobs(samples)
        moved[kl] = end - start
        assert ("reference_kl" in metrics) == (kl > 0)
    assert moved[4.0] == pytest.approx(0.25, abs=1e-3) and moved[0.0] > 1.0


def test_a_warm_start_neither_needs_nor_moves_the_reference() -> None:
    learner = rank(LearnerConfig(loss=LossConfig(kl=0.1)))
    samples = [replace(s, advantages_L=[1.0] * len(s.advantages_L)) for s in make_samples(5)]
    learner.step(samples, loss="sft")
    assert learner.reference is not None and learner.reference.steps == 0
    warmed = learner.logprobs(samples)
    learner.step(samples)
    assert learner.reference.steps == 1
    assert learner.reference.logprobs(samples, 10_000) == warmed, "the reference is what the warm start left"


@pytest.mark.parametrize(
    ("saved", "config", "says"),
    [
        (None, LearnerConfig(loss=LossConfig(kl=0.1)), "saved with no reference, this learner has initial"),
        ({"kind": "ema", "steps": 2}, LearnerConfig(loss=LossConfig(kl=0.1)), "saved with reference ema"),
    ],
)
def test_state_with_another_reference_is_refused(
    tmp_path: Path, saved: Any, config: LearnerConfig, says: str
) -> None:
    facts = {"ranks": 1, "zero_stage": 0, "dtype": "float32", "reference": saved}
    (tmp_path / "learner.json").write_text(json.dumps(facts))
    with pytest.raises(LearnerConfigError, match=says):
        rank(config).load(str(tmp_path))


def test_a_divergence_from_the_policy_itself_is_refused() -> None:
    config = LearnerConfig(device="cpu", loss=LossConfig(kl=0.1), reference=ReferenceConfig("previous", every=1))
    with pytest.raises(LearnerConfigError, match=r"reference.every: 1 "):
        check_learner(config, "cpu")
    check_learner(replace(config, minibatches=2), "cpu")
    check_learner(replace(config, reference=ReferenceConfig("previous", every=2)), "cpu")


def test_memory_by_hand() -> None:
    # 7e9 parameters: 2 bytes for the copy, 4 more for the average; in float32 4 and none.
    def extra(device: str, kind: str, stage: int, lora: LoraConfig | None = None) -> float:
        policy = PolicyConfig(trained=True)
        policy.model.path = "some/model-7B"
        learner = LearnerConfig(zero_stage=stage, reference=ReferenceConfig(kind), lora=lora)
        with_kl = replace(learner, loss=LossConfig(kl=0.1))
        return learner_memory(policy, with_kl, device) - learner_memory(policy, learner, device)

    assert extra("cuda", "initial", 2) == 14e9 and extra("cuda", "ema", 2) == 42e9
    assert extra("cpu", "ema", 0) == extra("cpu", "initial", 0) == 28e9
    # Beside an adapter only what ZeRO 3 cuts into slices is copied.
    assert extra("cuda", "ema", 2, LoraConfig()) == 0 and extra("cuda", "ema", 3, LoraConfig()) == 14e9
