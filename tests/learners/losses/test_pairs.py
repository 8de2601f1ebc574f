"""Pairs of replies through a learner step, against the formulas of TRL and of the papers in NumPy.

The oracle's gradient is the numerical derivative of the NumPy formula by each reply's log-probability, times the
gradient of that log-probability, which plain autograd takes on one unpadded sequence at a time.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from configs.methods import LOSSES, is_preference, needs_reference
from configs.schema.run import LearnerConfig, LossConfig, ReferenceConfig
from learners.batches.training_batch import (
    build_training_batch,
    mismatches,
    sequences,
    share,
    split,
    with_reference,
)
from learners.models.reference import Reference
from learners.models.token_model import TokenModel
from learners.ranks.rank import LearnerRank
from learners.types import Pair, Sample
from tests.learners.models.test_reference import oracle
from tests.learners.ranks.test_learner_step import VOCABULARY, Base, Engine, flat

PREFERENCE_LOSSES = [kind for kind in LOSSES if is_preference(kind)]
OTHER = 3
"""Seed of a policy that has moved away from its reference."""
SETTINGS: dict[str, dict[str, float]] = {
    "dpo": {"beta": 0.3},
    "smoothed_dpo": {"beta": 0.3},
    "ipo": {"tau": 0.4},
    "kto": {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.7},
    "simpo": {"beta": 1.5, "gamma": 0.4},
    "spin": {"scale": 0.3},
    "sppo": {"eta": 2.0},
}


def reply(rng: random.Random, prompt: list[int], masked: bool) -> Sample:
    ids = prompt + [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 4))]
    positions = list(range(len(prompt), len(ids)))
    allowed = [(ids[p], (ids[p] + 2) % VOCABULARY, (ids[p] + 3) % VOCABULARY) for p in positions] if masked else None
    ones = [1.0] * len(positions)
    return Sample(ids, positions, ones, [-1.0] * len(positions), [0] * len(positions), allowed,
                  0.7 if masked else 1.0, segments_L=[0] * len(positions))  # fmt: skip


def make_pairs(number: int, seed: int = 0) -> list[Pair]:
    rng = random.Random(seed)
    pairs = []
    for i in range(number):
        prompt = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 3))]
        chosen, rejected, mismatched = (reply(rng, prompt, i % 3 == 1) for _ in range(3))
        rates = (rng.uniform(0.5, 1), rng.uniform(0, 0.5))
        pairs.append(Pair(chosen, rejected, rng.uniform(0.5, 1), rates, mismatched))
    return pairs


# -- the oracle


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def formula(
    kind: str, new_N: np.ndarray, old_N: np.ndarray, sizes_N: np.ndarray, pairs: Sequence[Pair], z: float
) -> np.ndarray:
    """Loss of each pair from log-probabilities of its replies, chosen and rejected by turns (DPO's family: TRL's
    DPOTrainer; SimPO: its CPOTrainer; KTO: its KTOTrainer, where both replies of a pair are examples)."""
    s = SETTINGS[kind]
    logits = (new_N[::2] - new_N[1::2]) - (old_N[::2] - old_N[1::2])
    ratio = new_N - old_N
    if kind in ("dpo", "spin"):
        return -np.log(sigmoid(s.get("beta", s.get("scale")) * logits))
    if kind == "smoothed_dpo":
        smoothing = 1 - np.array([pair.probability for pair in pairs])
        return -np.log(sigmoid(0.3 * logits)) * (1 - smoothing) - np.log(sigmoid(-0.3 * logits)) * smoothing
    if kind == "ipo":
        return (logits - 1 / (2 * s["tau"])) ** 2
    if kind == "simpo":
        average = new_N / sizes_N
        return -np.log(sigmoid(s["beta"] * (average[::2] - average[1::2] - s["gamma"] / s["beta"])))
    if kind == "kto":
        kl = max(z, 0.0)
        good = 1 - sigmoid(s["beta"] * (ratio[::2] - kl))
        bad = 1 - sigmoid(s["beta"] * (kl - ratio[1::2]))
        return (1.5 * good + 0.7 * bad) / 2
    targets = 2.0 * (np.array([pair.win_rates for pair in pairs]) - 0.5)
    return ((ratio[::2] - targets[:, 0]) ** 2 + (ratio[1::2] - targets[:, 1]) ** 2) / 2


def whole(model: TokenModel, sample: Sample) -> torch.Tensor:
    return torch.stack([oracle(model, sample, i) for i in range(len(sample.positions_L))]).sum()


def moved() -> TokenModel:
    model = TokenModel(Base())
    generator = torch.Generator().manual_seed(OTHER)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=generator))
    return model


def expected(kind: str, pairs: Sequence[Pair], sft: float = 0.0) -> tuple[float, torch.Tensor]:
    """Loss of the whole minibatch and its gradient: the mean over pairs."""
    start, now = TokenModel(Base()), moved()
    logprobs = [whole(now, sample) for pair in pairs for sample in (pair.chosen, pair.rejected)]
    others = [pair.mismatched for pair in pairs if pair.mismatched is not None]
    new_N, old_N = (
        np.array([whole(model, sample).item() for pair in pairs for sample in (pair.chosen, pair.rejected)])
        for model in (now, start)
    )
    z = float(np.mean([whole(now, one).item() - whole(start, one).item() for one in others])) if others else 0.0
    sizes_N = np.array([len(sample.positions_L) for pair in pairs for sample in (pair.chosen, pair.rejected)])

    def loss(values_N: np.ndarray) -> float:
        imitation_B = -values_N[::2] / sizes_N[::2]
        return float((formula(kind, values_N, old_N, sizes_N, pairs, z) + sft * imitation_B).mean())

    step = 1e-5 * np.eye(len(new_N))
    slopes = [(loss(new_N + step[n]) - loss(new_N - step[n])) / 2e-5 for n in range(len(new_N))]
    torch.stack([slope * logprob for slope, logprob in zip(slopes, logprobs)]).sum().backward()
    return loss(new_N), flat([p.grad for p in now.parameters()])


# -- the learner


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    with mock.patch.dict(os.environ):  # a rank writes RANK and its like
        yield


def rank(config: LearnerConfig, world: int = 1, away: bool = True) -> LearnerRank:
    """A learner that has moved away from its reference."""
    made = LearnerRank(0, world, "", config)
    made.engine, made.device = Engine(config.lr), torch.device("cpu")
    made.engine.module = made.engine.model
    if needs_reference(config.loss):
        made.reference = Reference(made.engine.model, config.reference)
        made.reference.advance(made.engine.model)
    if away:
        made.engine.model.load_state_dict(moved().state_dict())
    return made


def config_of(kind: str, micro_tokens: int = 10_000, sft: float = 0.0, **fields: Any) -> LearnerConfig:
    """`every`: long enough for the reference to stay where it is."""
    loss = LossConfig(kind=kind, sft=sft, **SETTINGS[kind])
    reference = ReferenceConfig("previous", every=99)
    return LearnerConfig(micro_tokens=micro_tokens, loss=loss, reference=reference, **fields)


@pytest.mark.parametrize("kind", PREFERENCE_LOSSES)
@pytest.mark.parametrize("micro_tokens", [1, 30, 10_000])
def test_gradients_are_those_of_the_formula_for_any_micro_batch(kind: str, micro_tokens: int) -> None:
    pairs = make_pairs(7)
    learner = rank(config_of(kind, micro_tokens))
    metrics = learner.step(pairs).result()
    (found,) = learner.engine.steps
    loss, gradient = expected(kind, pairs)
    torch.testing.assert_close(found, gradient, rtol=1e-3, atol=2e-5)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-4)
    assert metrics["sequences"] == 14 and metrics["updates"] == 1
    assert metrics["tokens"] == sum(len(sample.positions_L) for sample in sequences(pairs))


@pytest.mark.parametrize("kind", PREFERENCE_LOSSES)
def test_ranks_average_to_the_gradient_of_the_whole_batch(kind: str) -> None:
    pairs = make_pairs(7)
    now, start = moved(), TokenModel(Base())
    z = float(np.mean([whole(now, one).item() - whole(start, one).item() for one in mismatches(pairs)]))
    tokens = sum(len(sample.positions_L) for sample in sequences(pairs))
    gradients = []
    for part in (pairs[:2], pairs[2:], []):
        learner = rank(config_of(kind, 30), world=3)
        with (
            mock.patch.object(learner, "_agree", lambda *mine: (tokens, 2 * len(pairs), max(mine[2], 1))),
            mock.patch("learners.losses.pair_terms.kto_drift", lambda *_: z),
        ):
            learner.step(part)
        gradients += learner.engine.steps
    average = sum(gradients[1:], gradients[0]) / 3
    torch.testing.assert_close(average, expected(kind, pairs)[1], rtol=1e-3, atol=2e-5)


def test_an_auxiliary_imitation_of_the_chosen_reply() -> None:
    pairs = make_pairs(5, seed=1)
    learner = rank(config_of("smoothed_dpo", sft=0.2))
    metrics = learner.step(pairs).result()
    loss, gradient = expected("smoothed_dpo", pairs, sft=0.2)
    torch.testing.assert_close(learner.engine.steps[0], gradient, rtol=1e-3, atol=2e-5)
    assert metrics["loss"] == pytest.approx(loss, rel=1e-4)
    nll = [-whole(moved(), pair.chosen).item() / len(pair.chosen.positions_L) for pair in pairs]
    assert metrics["chosen_nll"] == pytest.approx(np.mean(nll), rel=1e-5)


def test_what_is_measured_by_the_formulas() -> None:
    pairs = make_pairs(6, seed=2)
    metrics = rank(config_of("kto")).step(pairs).result()
    now, start = moved(), TokenModel(Base())

    def ratios(samples: list[Sample]) -> np.ndarray:
        return np.array([whole(now, one).item() - whole(start, one).item() for one in samples])

    chosen, rejected = ratios([p.chosen for p in pairs]), ratios([p.rejected for p in pairs])
    assert metrics["chosen_logratio"] == pytest.approx(chosen.mean(), abs=1e-5)
    assert metrics["rejected_logratio"] == pytest.approx(rejected.mean(), abs=1e-5)
    assert metrics["preference_margin"] == pytest.approx((chosen - rejected).mean(), abs=1e-5)
    assert metrics["preference_accuracy"] == pytest.approx((chosen > rejected).mean())
    assert metrics["kto_drift"] == pytest.approx(ratios(mismatches(pairs)).mean(), abs=1e-5)


def test_kto_without_other_prompts_measures_no_drift() -> None:
    pairs = [replace(pair, mismatched=None) for pair in make_pairs(3)]
    learner = rank(config_of("kto"))
    assert learner.step(pairs).result()["kto_drift"] == 0.0
    torch.testing.assert_close(learner.engine.steps[0], expected("kto", pairs)[1], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("kind", PREFERENCE_LOSSES)
def test_preferences_are_learned(kind: str) -> None:
    pairs = [replace(pair, probability=0.99, win_rates=(0.9, 0.1)) for pair in make_pairs(4, seed=5)]
    lr = 0.01 if kind in ("ipo", "sppo") else 0.2  # squares are steep
    learner = rank(config_of(kind, lr=lr, minibatches=2), away=False)
    first = learner.step(pairs).result()
    for seed in range(30):
        last = learner.step(pairs, seed=seed).result()
    assert last["loss"] < first["loss"] and last["preference_accuracy"] == 1.0
    assert last["updates"] == 2 and last["sequences"] == 8
    if learner.reference is not None:
        start = [sum(values) for values in rank(config_of(kind), away=False).logprobs(sequences(pairs))]
        kept = [sum(values) for values in learner.reference.logprobs(sequences(pairs), 10_000)]
        assert kept == pytest.approx(start)


def test_a_warm_start_of_a_policy_with_a_preference_loss_takes_samples() -> None:
    learner = rank(config_of("dpo"))
    steps = learner.reference.steps if learner.reference else 0
    assert learner.step(sequences(make_pairs(3)), loss="sft").result()["updates"] == 1
    assert learner.reference is not None and learner.reference.steps == steps


def test_a_loss_that_is_no_number_skips_the_step() -> None:
    pairs = make_pairs(3)
    pairs[1] = replace(pairs[1], probability=math.nan)
    learner = rank(config_of("smoothed_dpo"))
    learner.engine.was_step_applied = lambda: bool(torch.isfinite(learner.engine.steps[-1]).all())
    metrics = learner.step(pairs).result()
    assert (metrics["skipped"], metrics["updates"]) == (1, 0) and "loss" not in metrics


def test_settings_that_a_file_left_over_do_not_disturb() -> None:
    # A file may set a correction and a divergence, and one above it another loss: they are of no effect.
    pairs, config = make_pairs(4), config_of("simpo", minibatches=2)
    left_over = replace(config, loss=replace(config.loss, correction="mask", kl=0.1, entropy=0.1))
    one, two = rank(config), rank(left_over)
    one.step(pairs)
    two.step(pairs)
    assert all(torch.equal(a, b) for a, b in zip(one.engine.steps, two.engine.steps)) and len(one.engine.steps) == 2


# -- cutting and sharing


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=12), st.integers(1, 60), st.integers(1, 4)
)
def test_pairs_are_never_torn(sizes: list[tuple[int, int]], micro_tokens: int, ranks: int) -> None:
    def sample(size: int) -> Sample:
        return Sample([1] * (size + 1), [size], [1.0], [0.0], [0])

    pairs = [Pair(sample(one), sample(two), 0.9) for one, two in sizes]
    parts, _ = split(pairs, micro_tokens)
    assert sorted(i for part in parts for i in part) == list(range(2 * len(pairs)))
    for part in parts:
        assert all(part[k] + 1 == part[k + 1] and part[k] % 2 == 0 for k in range(0, len(part), 2))
        width = max(len(sequences(pairs)[i].token_ids_S) for i in part)
        assert len(part) == 2 or width * len(part) <= micro_tokens
    shares = share(pairs, ranks)
    assert sorted(i for part in shares for i in part) == list(range(len(pairs)))
    loads = [sum(sum(sizes[i]) + 2 for i in part) for part in shares]
    assert max(loads) - min(loads) <= max((sum(pair) + 2 for pair in sizes), default=0)


def test_samples_are_cut_and_shared_as_ever() -> None:
    samples = sequences(make_pairs(5))
    from learners.batches.batching import balance, split_by_length

    assert split(samples, 12)[0] == split_by_length(samples, 12) and share(samples, 3) == balance(samples, 3)
    assert split([], 12) == ([], 0)


def test_the_reference_answers_for_every_reply() -> None:
    pairs = make_pairs(3)
    pairs[1] = replace(pairs[1], mismatched=None)
    done = with_reference(pairs, lambda samples: [[float(sum(s.token_ids_S))] * len(s.positions_L) for s in samples])
    for before, after in zip(pairs, done):
        assert isinstance(after, Pair)
        for name in ("chosen", "rejected", "mismatched"):
            one, two = getattr(before, name), getattr(after, name)
            assert (one is None) == (two is None)
            if one is not None:
                assert two.reference_logprobs_L == [float(sum(one.token_ids_S))] * len(one.positions_L)
                assert two.token_ids_S == one.token_ids_S


# -- settings


PAPERS: dict[str, dict[str, float]] = {
    "dpo": {"beta": 0.1},
    "smoothed_dpo": {"beta": 0.1, "label_gamma": 7.0},
    "ipo": {"tau": 0.1},
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    "simpo": {"beta": 2.0, "gamma": 1.0},
    "spin": {"scale": 0.1},
    "sppo": {"eta": 1000.0, "label_gamma": 7.0},
}


def test_every_loss_declares_the_settings_that_its_formula_reads() -> None:
    for kind in PREFERENCE_LOSSES:
        assert LOSSES.reads(kind) == {"sft", *PAPERS[kind]}


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k in PREFERENCE_LOSSES for n in sorted(LOSSES.reads(k))])
def test_every_setting_acts(kind: str, name: str) -> None:
    from tests.support.sample_episodes import answers

    episodes = answers((1, 2), [0.0, 0.3], "a") + answers((1, 3), [0.2, 0.9], "b")

    def gradient(value: float | None) -> torch.Tensor:
        config = config_of(kind)
        loss = replace(config.loss, **{name: value}) if value is not None else config.loss
        examples, _ = build_training_batch(episodes, "p", replace(config, loss=loss), {})
        small = [
            replace(pair, **{part: replace(sample, token_ids_S=[token % VOCABULARY for token in sample.token_ids_S])
                             for part, sample in (("chosen", pair.chosen), ("rejected", pair.rejected),
                                                  ("mismatched", pair.mismatched)) if sample is not None})
            for pair in examples if isinstance(pair, Pair)
        ]  # fmt: skip
        learner = rank(replace(config, loss=loss))
        learner.step(small)
        return learner.engine.steps[0]

    assert not torch.allclose(gradient(None), gradient(0.9), rtol=1e-3)


@pytest.mark.parametrize("kind", PREFERENCE_LOSSES)
def test_unset_settings_are_the_papers(kind: str) -> None:
    pairs = make_pairs(3)
    steps = []
    for loss in (LossConfig(kind=kind), LossConfig(kind=kind, **PAPERS[kind])):
        learner = rank(replace(config_of(kind), loss=loss))
        learner.step(pairs)
        steps += learner.engine.steps
    assert torch.equal(*steps)
