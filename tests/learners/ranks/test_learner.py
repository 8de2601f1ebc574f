"""The learner group against plain PyTorch: full logits, one unpadded sequence at a time, torch's own AdamW.

Tolerances are float32 rounding: sums in another order, amplified by Adam where a gradient is nearly zero.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.methods import LearnerConfigError
from configs.schema.run import LossConfig, ReferenceConfig
from learners.batches.batching import BadSample
from learners.ranks.group import LearnerDied
from learners.types import Pair, Sample
from tests.support.learner_oracle import (
    CONFIG,
    VOCABULARY,
    Rig,
    loop,
    make_samples,
    model_dir,
    reference_step,
    reference_tokens,
    same,
    slow,
    tiny_model,
)

__all__ = ["loop", "model_dir"]  # fixtures



@pytest.fixture(
    scope="module", params=[(0, 1), (2, 1), (0, 2), (2, 2), (3, 2)], ids=lambda p: f"zero{p[0]}x{p[1]}"
)
def rig(request: pytest.FixtureRequest, loop: asyncio.AbstractEventLoop, model_dir: Path) -> Iterator[Rig]:
    rig = Rig(loop, model_dir, *request.param)
    yield rig
    rig.group.stop()


@pytest.mark.engine
def test_five_steps_equal_plain_adamw(rig: Rig) -> None:
    group = rig.fresh()
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for step in range(5):
        samples = make_samples(13, seed=step)
        expected = reference_step(model, optimizer, samples)
        metrics = rig(group.step(samples, seed=step))
        for name, value in expected.items():
            assert metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-5), (step, name)
        assert metrics["tokens"] == sum(len(s.positions_L) for s in samples)
        assert metrics["grad_norm"] > CONFIG.grad_clip, "clipping must be part of what is compared"
    moved = dict(tiny_model().named_parameters())
    trained = rig.weights()
    for name, parameter in model.named_parameters():
        assert (parameter - moved[name]).abs().max() > 2e-3
        torch.testing.assert_close(trained[name], parameter.detach(), rtol=0, atol=5e-5)


@pytest.mark.engine
def test_export_is_the_saved_model(rig: Rig, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    group = rig.fresh()
    rig(group.step(make_samples(4)))
    rig(group.save_hf(str(tmp_path)))
    exported = rig.weights()
    assert same(exported, load_file(tmp_path / "model.safetensors"))
    assert "lm_head.weight" not in exported and not same(exported, dict(tiny_model().named_parameters()))
    assert (tmp_path / "tokenizer.json").read_text() == "{}"
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(model.lm_head.weight, exported["model.embed_tokens.weight"])
    rig(group.load_weights_from(str(tmp_path)))
    rig(group.step(make_samples(4)))
    rig(group.save_hf(str(tmp_path)))  # over the very files it was loaded from
    exported = rig.weights()
    assert same(exported, load_file(tmp_path / "model.safetensors"))
    import ray

    assert [b["sha256"] for b in ray.get(rig(group.export_ref()))] == [
        b["sha256"] for b in rig(group.export())
    ]


@pytest.mark.engine
def test_resume_is_bit_exact(rig: Rig, tmp_path: Path) -> None:
    group = rig.fresh()
    rig(group.step(make_samples(6, 1)))
    rig(group.save(str(tmp_path), {"buckets": [1, 2]}))
    rig(group.step(make_samples(6, 2)))
    straight = rig.weights()
    rig(group.step(make_samples(6, 3)))
    assert not same(straight, rig.weights())
    assert rig(group.load(str(tmp_path))) == {"buckets": [1, 2]}
    rig(group.step(make_samples(6, 2)))
    assert same(straight, rig.weights())


@pytest.mark.engine
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(rig: Rig, bad: float) -> None:
    group = rig.fresh()
    good = make_samples(6, 1)
    broken = make_samples(6, 2)
    broken[0].advantages_L[0] = bad
    before = rig.weights()
    metrics = rig(group.step(broken))
    assert metrics["skipped"] == 1 and metrics["updates"] == 0 and "loss" not in metrics
    assert same(before, rig.weights())
    metrics = rig(group.step(good))
    assert metrics["skipped"] == 0 and metrics["updates"] == 1
    after = rig.weights()
    rig.fresh()
    rig(group.step(good))
    assert same(after, rig.weights()), "the broken step left something in the optimizer"


@pytest.mark.engine
def test_reset_forgets_the_optimizer_and_nothing_else(rig: Rig, tmp_path: Path) -> None:
    group = rig.fresh()
    for seed in range(3):
        rig(group.step(make_samples(6, seed)))
    rig(group.save_hf(str(tmp_path)))
    rig(group.reset_optimizer())
    rig(group.step(make_samples(6, 9)))
    reset = rig.weights()
    rig(group.load_weights_from(str(tmp_path)))
    rig(group.step(make_samples(6, 9)))
    assert same(reset, rig.weights())


@pytest.mark.engine
def test_logprobs_and_gap(rig: Rig) -> None:
    group = rig.fresh()
    samples = make_samples(9)
    found = rig(group.logprobs(samples))
    model = tiny_model()
    for sample, logprobs_L in zip(samples, found):
        expected = [float(logprob) for logprob, _ in reference_tokens(model, sample)]
        np.testing.assert_allclose(logprobs_L, expected, atol=2e-5)
        sample.logprobs_L = list(logprobs_L)
    assert rig(group.step(samples))["sampler_gap_max"] < 1e-5
    rig.fresh()
    samples[0].logprobs_L[0] -= 0.25  # version 0
    samples[1].logprobs_L[0] += 0.5  # version 1
    metrics = rig(group.step(samples, version=0))
    tokens = sum(len(s.positions_L) for s in samples[::2])
    assert metrics["sampler_gap_max"] == pytest.approx(0.25, abs=1e-5)
    assert metrics["sampler_gap"] == pytest.approx(0.25 / tokens, abs=1e-5)
    assert metrics["ratio_max"] == pytest.approx(np.exp(0.25), abs=1e-4)


@pytest.mark.engine
def test_sft_learns_by_heart(rig: Rig) -> None:
    group = rig.fresh()
    samples = make_samples(8)
    for sample in samples:
        sample.advantages_L = [1.0] * len(sample.positions_L)
    losses = [rig(group.step(samples, loss="sft", lr=1e-2))["loss"] for _ in range(25)]
    assert losses[-1] < 0.25 * losses[0]


@pytest.mark.engine
def test_fewer_samples_than_ranks(rig: Rig) -> None:
    group = rig.fresh()
    before = rig.weights()
    assert rig(group.step([]))["updates"] == 0 and same(before, rig.weights())
    model = tiny_model()
    expected = reference_step(model, torch.optim.AdamW(model.parameters(), lr=1e-3), make_samples(1))
    assert rig(group.step(make_samples(1)))["loss"] == pytest.approx(expected["loss"], abs=1e-5)
    with pytest.raises(BadSample):
        rig(group.step([Sample([1], [1], [0.0], [0.0], [0])]))
    assert rig(group.step(make_samples(1)))["updates"] == 1, "an unsound sample must not end the group"


@pytest.mark.engine
def test_schedule_and_roles(loop: asyncio.AbstractEventLoop, model_dir: Path) -> None:
    rig = Rig(loop, model_dir, 0, 1, epochs=2, minibatches=3, warmup_steps=10)
    group = rig.group
    samples = make_samples(9)
    metrics = rig(group.step(samples))
    assert metrics["updates"] == 6 and metrics["tokens"] == 2 * sum(len(s.positions_L) for s in samples)
    assert metrics["lr"] == pytest.approx(1e-3 * (1 + 2 + 3 + 4 + 5 + 6) / 10 / 6)
    assert rig(group.step(samples))["lr"] == pytest.approx(1e-3 * (7 + 8 + 9 + 10 + 10 + 10) / 10 / 6)
    metrics = rig(group.step(samples, loss="sft", lr=5e-4))
    assert metrics["lr"] == pytest.approx(5e-4) and metrics["updates"] == 1
    weights = {"alice": 0, "bob": 0}
    for sample in samples:
        weights[sample.tags["role"]] += len(sample.positions_L)
    mixed = sum(metrics[f"entropy/{role}"] * weight for role, weight in weights.items()) / sum(
        weights.values()
    )
    assert mixed == pytest.approx(metrics["entropy"], rel=1e-5)
    assert metrics["entropy/alice"] != pytest.approx(metrics["entropy/bob"], rel=1e-3)
    rig(group.reset_optimizer())
    assert rig(group.step(samples[:1]))["lr"] == pytest.approx(1e-3 * (1 + 2) / 10 / 2)
    group.stop()
    with pytest.raises(LearnerDied, match=r"ranks 1.*stopped"):
        rig(group.step(samples))


@pytest.mark.engine
def test_a_dead_rank_is_named_and_a_new_group_goes_on(
    loop: asyncio.AbstractEventLoop, model_dir: Path, tmp_path: Path
) -> None:
    import ray

    rig = Rig(loop, model_dir, 2, 2)
    rig(rig.group.step(make_samples(6, 1)))
    rig(rig.group.save(str(tmp_path)))
    rig(rig.group.step(make_samples(6, 2)))
    expected = rig.weights()
    ray.kill(rig.group.ranks[1])
    with pytest.raises(LearnerDied, match=r"stage 2 ranks 2.*rank 1 died"):
        rig(rig.group.step(make_samples(6, 3)))
    with pytest.raises(LearnerDied, match="rank 1 died"):
        rig(rig.group.logprobs(make_samples(6)))
    again = Rig(loop, model_dir, 2, 2)
    rig(again.group.load(str(tmp_path)))
    rig(again.group.step(make_samples(6, 2)))
    assert same(expected, again.weights())
    again.group.stop()


def follow(rig: Rig, samples: list[Sample], steps: int) -> list[dict[str, float]]:
    return [rig(rig.group.step(samples, seed=seed)) for seed in range(steps)]


@pytest.mark.engine
@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), slow(2, 2), slow(3, 2)])
def test_a_divergence_holds_the_policy_at_its_reference(
    loop: asyncio.AbstractEventLoop, model_dir: Path, stage: int, ranks: int
) -> None:
    # Every reply is rewarded. With KL the loss -r + kl r (1/r - 1 + log r) is least at log r = 1 / kl.
    samples = [replace(s, advantages_L=[1.0] * len(s.advantages_L)) for s in make_samples(6)]
    moved = {}
    for kl in (0.0, 20.0):
        rig = Rig(loop, model_dir, stage, ranks, lr=2e-5, loss=LossConfig(kind="reinforce", kl=kl))
        start = rig(rig.group.logprobs(samples))
        drawn = [replace(s, logprobs_L=p) for s, p in zip(samples, start)]
        metrics = follow(rig, drawn, 30)
        end = rig(rig.group.logprobs(samples))
        moved[kl] = np.mean([abs(e - s) for ends, starts in zip(end, start) for e, s in zip(ends, starts)])
        if kl:
            assert metrics[0]["reference_kl"] == pytest.approx(0.0, abs=1e-6), "equal weights, equal log-probabilities"
            assert 0.0005 < metrics[-1]["reference_kl"] < 0.005  # 0.0013 at log r = 0.05
        rig.group.stop()
    assert moved[20.0] == pytest.approx(1 / 20, abs=0.02) and moved[0.0] > 0.5


@pytest.mark.engine
@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), slow(2, 2), slow(3, 2)])
def test_a_magnet_trails_the_policy_and_is_resumed_bit_by_bit(
    loop: asyncio.AbstractEventLoop, model_dir: Path, tmp_path: Path, stage: int, ranks: int
) -> None:
    magnet = ReferenceConfig("ema", decay=0.5)
    settings = {"loss": LossConfig(kind="reinforce", kl=0.1), "reference": magnet}
    rig = Rig(loop, model_dir, stage, ranks, **settings)
    samples = make_samples(6)
    follow(rig, samples, 3)
    rig(rig.group.save(str(tmp_path)))
    straight = follow(rig, samples, 3)
    expected = rig.weights()
    assert straight[-1]["reference_kl"] > 0
    rig.group.stop()
    again = Rig(loop, model_dir, stage, ranks, **settings)
    rig(again.group.load(str(tmp_path)))
    found = follow(again, samples, 3)
    assert [f["reference_kl"] for f in found] == [f["reference_kl"] for f in straight]
    assert same(expected, again.weights())
    again.group.stop()


def make_pairs(count: int, seed: int) -> list[Pair]:
    """Neighbours of `make_samples` as if they answered one prompt: the loss never looks at the prompt."""
    samples = make_samples(2 * count, seed)
    return [Pair(samples[2 * i], samples[2 * i + 1], 0.6 + 0.05 * i) for i in range(count)]


def reference_pair_step(
    model: Any, start: Any, optimizer: torch.optim.Optimizer, pairs: list[Pair], weight: float
) -> float:
    """Smoothed DPO with beta 0.3 and `weight` times the chosen reply's mean negative log-likelihood."""

    def whole(of: Any, sample: Sample) -> torch.Tensor:
        return torch.stack([logprob for logprob, _ in reference_tokens(of, sample)]).sum()

    terms = []
    for pair in pairs:
        chosen, rejected = (whole(model, s) - whole(start, s).detach() for s in (pair.chosen, pair.rejected))
        margin = 0.3 * (chosen - rejected)
        likely, unlikely = torch.sigmoid(margin).log(), torch.sigmoid(-margin).log()
        imitation = -whole(model, pair.chosen) / len(pair.chosen.positions_L)
        terms.append(-pair.probability * likely - (1 - pair.probability) * unlikely + weight * imitation)
    loss = torch.stack(terms).mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    optimizer.step()
    return loss.item()


@pytest.mark.engine
@pytest.mark.parametrize(("stage", "ranks"), [slow(0, 1), slow(0, 2), (2, 2), slow(3, 2)])
def test_steps_on_pairs_equal_plain_adamw(
    loop: asyncio.AbstractEventLoop, model_dir: Path, stage: int, ranks: int
) -> None:
    rig = Rig(loop, model_dir, stage, ranks, loss=LossConfig(kind="smoothed_dpo", beta=0.3, sft=0.2))
    model, start = tiny_model(), tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for step in range(4):
        pairs = make_pairs(5, seed=step)
        expected = reference_pair_step(model, start, optimizer, pairs, 0.2)
        metrics = rig(rig.group.step(pairs, seed=step))
        assert metrics["loss"] == pytest.approx(expected, rel=1e-4, abs=1e-5), step
        assert metrics["sequences"] == 10 and metrics["updates"] == 1
    one = rig(rig.group.step(make_pairs(1, seed=9)))  # fewer pairs than ranks
    assert one["updates"] == 1 and one["preference_accuracy"] in (0.0, 1.0)
    rig.group.stop()


@pytest.mark.engine
def test_models_that_cannot_be_scored_are_refused() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from learners.models.token_model import TokenModel, check_head

    check_head(TokenModel(tiny_model()))
    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, final_logit_softcapping=0.5,
    )  # fmt: skip
    with pytest.raises(LearnerConfigError, match="plain linear head"):
        check_head(TokenModel(Gemma2ForCausalLM(config).eval()))


@pytest.mark.engine
def test_scorer_equals_the_full_model(model_dir: Path) -> None:
    from learners.models.scorer import ChoiceScorer

    scorer = ChoiceScorer(model_dir, batch=4)
    rng = random.Random(0)
    prompts = [[rng.randrange(VOCABULARY) for _ in range(rng.choice((3, 8)))] for _ in range(30)]
    probs_NC = scorer.score(prompts, [[5], [11], [2]])
    model = tiny_model()
    for prompt, probs_C in zip(prompts, probs_NC):
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].double()
        weights = [float(torch.exp(logits[token])) for token in (5, 11, 2)]
        np.testing.assert_allclose(probs_C, np.array(weights) / sum(weights), atol=1e-5)
    assert np.array_equal(scorer.score(prompts, [5, 11, 2]), probs_NC)
    assert scorer.score([], [1]).shape == (0, 1)
    for wrong in ([[1, 2]], [[]]):
        with pytest.raises(ValueError, match="exactly one token"):
            scorer.score(prompts, wrong)
    with pytest.raises(ValueError, match="0 to 8 tokens"):
        scorer.score([*prompts, []], [1])
