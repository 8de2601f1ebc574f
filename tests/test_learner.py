"""The learner group against plain PyTorch: full logits, one unpadded sequence at a time, torch's own AdamW.

Tolerances are float32 rounding: sums in another order, amplified by Adam where a gradient is nearly zero.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
from collections.abc import Awaitable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import pytest
import torch

from configs.schema import LearnerConfig, LossConfig, ReferenceConfig
from learners import batching
from learners.batching import BadSample, balance, split_by_length
from learners.group import LearnerDied, LearnerGroup
from learners.learner import LearnerRank
from learners.settings import LearnerConfigError, deepspeed_json, resolve_dtype
from learners.tally import Tally, merge
from learners.types import Pair, Sample
from learners.weights import bucket_names, pack, unpack

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 50
CONFIG = LearnerConfig(
    lr=1e-3,
    weight_decay=0.1,
    grad_clip=0.05,
    micro_tokens=40,
    device="cpu",
    loss=LossConfig(clip_low=0.1, clip_high=0.2, entropy=0.02),
)
T = TypeVar("T")


def slow(*values: Any) -> Any:
    """A case that only `make test-slow` runs."""
    return pytest.param(*values, marks=pytest.mark.slow)


def tiny_model(seed: int = 0) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # far from uniform, so that masks and temperatures matter
    return model


def make_samples(count: int, seed: int = 0) -> list[Sample]:
    """All kinds at once: 5 to 14 tokens, one or three of them with loss, masks here and there, temperatures."""
    rng = random.Random(seed)
    samples = []
    for i in range(count):
        ids = [rng.randrange(VOCABULARY) for _ in range(rng.randint(5, 14))]
        positions = sorted(rng.sample(range(1, len(ids)), rng.choice((1, 3))))
        allowed = [
            tuple(rng.sample(range(VOCABULARY), 6)) + (ids[p],) if rng.random() < 0.7 else ()
            for p in positions
        ]
        samples.append(
            Sample(
                token_ids_S=ids,
                positions_L=positions,
                advantages_L=[rng.gauss(0, 1) for _ in positions],
                logprobs_L=[rng.uniform(-3, -1) for _ in positions],
                versions_L=[i % 2 for _ in positions],
                allowed_L=allowed if i % 3 else None,
                temperature=(1.0, 0.7)[i % 2],
                tags={"role": ("alice", "bob")[i % 2]},
            )
        )
    return samples


# ---- the reference: nothing from learners/ but the Sample itself ---------------------------------------


def reference_tokens(model: Any, sample: Sample) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(log-probability, entropy) of every loss token: probabilities of the legal tokens, renormalised."""
    logits = model(input_ids=torch.tensor([sample.token_ids_S])).logits[0].double()
    found = []
    for i, position in enumerate(sample.positions_L):
        legal = (
            list(sample.allowed_L[i]) if sample.allowed_L and sample.allowed_L[i] else list(range(VOCABULARY))
        )
        weights = torch.exp(logits[position - 1] / sample.temperature)
        probs = {token: weights[token] / sum(weights[t] for t in set(legal)) for token in legal}
        found.append((probs[sample.token_ids_S[position]].log(), -sum(p * p.log() for p in probs.values())))
    return found


def reference_step(model: Any, optimizer: torch.optim.Optimizer, samples: list[Sample]) -> dict[str, float]:
    terms, entropies = [], []
    for sample in samples:
        for (logprob, entropy), old, advantage in zip(
            reference_tokens(model, sample), sample.logprobs_L, sample.advantages_L
        ):
            ratio = torch.exp(logprob - old)
            gain = torch.min(ratio * advantage, ratio.clamp(0.9, 1.2) * advantage)
            terms.append(-gain - 0.02 * entropy)
            entropies.append(entropy.item())
    loss = torch.stack(terms).mean()
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    optimizer.step()
    return {"loss": loss.item(), "grad_norm": norm.item(), "entropy": float(np.mean(entropies))}


# ---- parts that need neither Ray nor DeepSpeed -------------------------------------------------------------


def test_deepspeed_keys_that_fields_set_are_refused_by_name() -> None:
    config = LearnerConfig(
        deepspeed={
            "gradient_clipping": 1,
            "optimizer": {},
            "zero_optimization": {"stage": 2},
            "wall_clock_breakdown": True,
        }
    )
    with pytest.raises(LearnerConfigError, match=r"gradient_clipping, optimizer, zero_optimization\.stage:"):
        deepspeed_json(config, "cpu")


def test_other_deepspeed_keys_pass_through() -> None:
    offload = {"offload_optimizer": {"device": "cpu"}}
    config = LearnerConfig(
        zero_stage=2, deepspeed={"zero_optimization": offload, "wall_clock_breakdown": True}
    )
    settings = deepspeed_json(config, "cpu")
    assert (
        settings["zero_optimization"] == {"stage": 2, **offload} and settings["wall_clock_breakdown"] is True
    )
    assert settings["gradient_clipping"] == config.grad_clip


@pytest.mark.parametrize(
    ("dtype", "device", "stage", "resolved"),
    [("auto", "cpu", 2, "float32"), ("auto", "cuda", 2, "bfloat16"), ("auto", "cuda", 0, "float32")],
)
def test_dtype_auto(dtype: str, device: str, stage: int, resolved: str) -> None:
    assert resolve_dtype(LearnerConfig(dtype=dtype, zero_stage=stage), device) == resolved


@pytest.mark.parametrize("wrong", [{"dtype": "bfloat16"}, {"dtype": "float16"}, {"zero_stage": 4}])
def test_settings_that_cannot_run_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(LearnerConfigError, match=next(iter(wrong))):
        deepspeed_json(LearnerConfig(**wrong), "cpu")


def test_micro_batches_hold_every_sample_once_and_fit() -> None:
    samples = make_samples(40)
    parts = split_by_length(samples, 40)
    assert sorted(i for part in parts for i in part) == list(range(40))
    assert all(max(len(samples[i].token_ids_S) for i in part) * len(part) <= 40 for part in parts)
    assert [len(part) for part in split_by_length(samples, 1)] == [1] * 40
    assert split_by_length([], 40) == []


def test_ranks_get_about_the_same_tokens() -> None:
    samples = make_samples(41)
    parts = balance(samples, 3)
    loads = [sum(len(samples[i].token_ids_S) for i in part) for part in parts]
    assert sorted(i for part in parts for i in part) == list(range(41))
    assert max(loads) - min(loads) <= 14


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions_L": [0]}, "position 0"),
        ({"positions_L": [3]}, "position 3 of 3"),
        ({"advantages_L": []}, "lengths"),
        ({"allowed_L": [(1, 2)]}, "token 7 at 2"),
        ({"temperature": 0.0}, "temperature"),
        ({"segments_L": [0, 0]}, "lengths"),
        ({"reference_logprobs_L": []}, "lengths"),
    ],
)
def test_unsound_samples_are_named(change: dict[str, Any], message: str) -> None:
    sound = Sample([5, 6, 7], [2], [1.0], [-1.0], [0], [(7, 8)], group="debate/alice")
    batching.check(sound)
    with pytest.raises(BadSample, match=f"debate/alice.*{message}"):
        batching.check(replace(sound, **change))


def test_tally_weighs_ranks_by_tokens() -> None:
    one, two = Tally(), Tally()
    one.mean("loss", 10.0, 4)
    two.mean("loss", 2.0, 2)
    one.total("tokens", 4)
    two.total("tokens", 2)
    one.peak("ratio_max", 1.5)
    two.peak("ratio_max", 1.1)
    two.mean("never", 0.0, 0)
    assert merge([one, two]) == {"loss": 2.0, "tokens": 6, "ratio_max": 1.5}


def test_buckets_round_trip_and_notice_damage() -> None:
    named = [("a", torch.randn(3, 2)), ("b", torch.randn(5).bfloat16()), ("c", torch.tensor(2.0))]
    bucket = pack(named)
    assert bucket["sha256"] == hashlib.sha256(bucket["data"].tobytes()).hexdigest()
    assert [entry[3:] for entry in bucket["entries"]] == [(0, 24), (24, 10), (34, 4)]
    for (name, tensor), (got_name, got) in zip(named, unpack(bucket)):
        assert name == got_name and got.dtype == tensor.dtype and torch.equal(got, tensor)
    bucket["data"][30] ^= 1
    with pytest.raises(ValueError, match="checksum"):
        unpack(bucket)
    assert bucket_names([("a", 6), ("b", 4), ("c", 1), ("d", 99)], limit=10) == [["a", "b"], ["c"], ["d"]]


# ---- real groups ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    import ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()
    ray.shutdown()


class Rig:
    """A group, and plain calls of its methods."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, model_dir: Path, stage: int, ranks: int, **settings: Any
    ):
        self.loop, self.model_dir = loop, str(model_dir)
        config = replace(CONFIG, zero_stage=stage, ranks=ranks, **settings)
        self.group = LearnerGroup(f"stage {stage} ranks {ranks}", str(model_dir), config, timeout_s=60)
        self(self.group.ready())

    def __call__(self, awaitable: Awaitable[T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(awaitable, 120))

    def fresh(self) -> LearnerGroup:
        self(self.group.load_weights_from(self.model_dir))
        return self.group

    def weights(self) -> dict[str, torch.Tensor]:
        return dict(pair for bucket in self(self.group.export()) for pair in unpack(bucket))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(
    scope="module", params=[(0, 1), (2, 1), (0, 2), (2, 2), (3, 2)], ids=lambda p: f"zero{p[0]}x{p[1]}"
)
def rig(request: pytest.FixtureRequest, loop: asyncio.AbstractEventLoop, model_dir: Path) -> Iterator[Rig]:
    rig = Rig(loop, model_dir, *request.param)
    yield rig
    rig.group.stop()


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.engine
def test_five_steps_equal_plain_adamw(rig: Rig) -> None:
    group = rig.fresh()
    model = tiny_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for step in range(5):
        samples = make_samples(13, seed=step)
        expected = reference_step(model, optimizer, samples)
        figures = rig(group.step(samples, seed=step))
        for name, value in expected.items():
            assert figures[name] == pytest.approx(value, rel=1e-4, abs=1e-5), (step, name)
        assert figures["tokens"] == sum(len(s.positions_L) for s in samples)
        assert figures["grad_norm"] > CONFIG.grad_clip, "clipping must be part of what is compared"
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
    figures = rig(group.step(broken))
    assert figures["skipped"] == 1 and figures["updates"] == 0 and "loss" not in figures
    assert same(before, rig.weights())
    figures = rig(group.step(good))
    assert figures["skipped"] == 0 and figures["updates"] == 1
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
    figures = rig(group.step(samples, version=0))
    tokens = sum(len(s.positions_L) for s in samples[::2])
    assert figures["sampler_gap_max"] == pytest.approx(0.25, abs=1e-5)
    assert figures["sampler_gap"] == pytest.approx(0.25 / tokens, abs=1e-5)
    assert figures["ratio_max"] == pytest.approx(np.exp(0.25), abs=1e-4)


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
    figures = rig(group.step(samples))
    assert figures["updates"] == 6 and figures["tokens"] == 2 * sum(len(s.positions_L) for s in samples)
    assert figures["lr"] == pytest.approx(1e-3 * (1 + 2 + 3 + 4 + 5 + 6) / 10 / 6)
    assert rig(group.step(samples))["lr"] == pytest.approx(1e-3 * (7 + 8 + 9 + 10 + 10 + 10) / 10 / 6)
    figures = rig(group.step(samples, loss="sft", lr=5e-4))
    assert figures["lr"] == pytest.approx(5e-4) and figures["updates"] == 1
    weights = {"alice": 0, "bob": 0}
    for sample in samples:
        weights[sample.tags["role"]] += len(sample.positions_L)
    mixed = sum(figures[f"entropy/{role}"] * weight for role, weight in weights.items()) / sum(
        weights.values()
    )
    assert mixed == pytest.approx(figures["entropy"], rel=1e-5)
    assert figures["entropy/alice"] != pytest.approx(figures["entropy/bob"], rel=1e-3)
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
        figures = follow(rig, drawn, 30)
        end = rig(rig.group.logprobs(samples))
        moved[kl] = np.mean([abs(e - s) for ends, starts in zip(end, start) for e, s in zip(ends, starts)])
        if kl:
            assert figures[0]["reference_kl"] == pytest.approx(0.0, abs=1e-6), "equal weights, equal log-probabilities"
            assert 0.0005 < figures[-1]["reference_kl"] < 0.005  # 0.0013 at log r = 0.05
        rig.group.stop()
    assert moved[20.0] == pytest.approx(1 / 20, abs=0.02) and moved[0.0] > 0.5


@pytest.mark.engine
@pytest.mark.parametrize(("stage", "ranks"), [slow(0, 1), (2, 2), slow(3, 2)])
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
        figures = rig(rig.group.step(pairs, seed=step))
        assert figures["loss"] == pytest.approx(expected, rel=1e-4, abs=1e-5), step
        assert figures["sequences"] == 10 and figures["updates"] == 1
    one = rig(rig.group.step(make_pairs(1, seed=9)))  # fewer pairs than ranks
    assert one["updates"] == 1 and one["preference_accuracy"] in (0.0, 1.0)
    rig.group.stop()


def test_state_of_another_shape_is_refused(tmp_path: Path) -> None:
    (tmp_path / "learner.json").write_text('{"ranks": 1, "zero_stage": 2, "dtype": "float32"}')
    with mock.patch.dict(os.environ):
        rank = LearnerRank(0, 1, "unused", CONFIG)
    with pytest.raises(LearnerConfigError, match="zero_stage 2, this learner has 0"):
        rank.load(str(tmp_path))


@pytest.mark.engine
def test_models_that_cannot_be_scored_are_refused() -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from learners.token_model import TokenModel, check_head

    check_head(TokenModel(tiny_model()))
    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, final_logit_softcapping=0.5,
    )  # fmt: skip
    with pytest.raises(LearnerConfigError, match="plain linear head"):
        check_head(TokenModel(Gemma2ForCausalLM(config).eval()))


@pytest.mark.engine
def test_scorer_equals_the_full_model(model_dir: Path) -> None:
    from learners.scorer import ChoiceScorer

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
