"""Adapters in real vLLM engines, against Hugging Face models with peft's layers in them: merged on arrival, and several
side by side. Without Ray and DeepSpeed; with them: tests/actors/engine/test_lora_push.py."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from actors.serving.messages import GenRequest, WeightBucket
from configs.schema.run import EngineConfig, LoraConfig
from learners.models.lora import adapter_parameters, add_adapter, parts
from learners.weights import pack
from tests.actors.engine.test_engine import STOP, TOLERANCE, VOCAB, mixed_batch, sampled
from tests.support.engine_oracle import Serving, buckets, in_this_process, worst_gap

pytestmark = pytest.mark.engine

LORA = LoraConfig(rank=3, alpha=12.0, target_modules=["q_proj", "o_proj", "up_proj"])
"""Of the fused layers (q, k, v; gate, up) one part each."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=256, tie_word_embeddings=True,
        initializer_range=0.15, eos_token_id=STOP, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("base")
    Qwen3ForCausalLM(config).eval().save_pretrained(folder)
    return folder


@pytest.fixture(scope="class")
def serving(request: pytest.FixtureRequest, folder: Path) -> Iterator[Serving]:
    """The engine of a class of tests, which names its settings."""
    from transformers import Qwen3ForCausalLM

    config = EngineConfig(max_num_seqs=16, kv_cache_mb=32, extra=request.cls.settings)
    with in_this_process(folder, Qwen3ForCausalLM.from_pretrained(folder).eval(), config) as serving:
        yield serving


def adapted(base: Any, seed: int, config: LoraConfig = LORA) -> Any:
    """The base with an adapter that has learned something."""
    lm = copy.deepcopy(base)
    add_adapter(lm, config, seed)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_parameters(lm):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=noise))
    return lm


def sent(lm: Any, base: Path | str, config: LoraConfig = LORA) -> list[WeightBucket]:
    """As the learner packs it, in two buckets that tear an A from its B."""
    named, about = parts(lm), {"base": str(base), "scaling": config.alpha / config.rank}
    return [WeightBucket(**pack(some), **about) for some in (named[:5], named[5:])]


def one_of_each(seed: int) -> list[GenRequest]:
    """Free text, choices, reads."""
    return mixed_batch(seed)[:6]


def gap(serving: Serving, model: Any, version: int, adapter: str = "", seed: int = 7) -> float:
    """Largest difference to `model` over a mixed batch, twice: the second time from the prefix cache."""
    found = 0.0
    for _ in range(2):
        batch = one_of_each(seed)
        for request in batch:
            request.adapter = adapter
        results = serving.generate(batch)
        assert {v for result in results for v in result.versions} == {version}
        serving.models[version] = model
        found = max(found, worst_gap(serving, *sampled(batch, results)))
    return found


class TestMerged:
    """Design: W + alpha / rank B A in the place of W (`lora.push: adapter`)."""

    settings: ClassVar[dict[str, Any]] = {}

    def test_updates_are_exact_and_small(self, serving: Serving, folder: Path) -> None:
        for version in (1, 2, 3):
            lm = adapted(serving.base, version)
            report = serving.run(serving.engine.update_weights(version, sent(lm, folder)))
            assert report["bytes"] == 4 * sum(p.numel() for p in adapter_parameters(lm))
            assert report["bytes"] * 4 < 4 * sum(p.numel() for p in serving.base.parameters())
            assert gap(serving, lm, version) < TOLERANCE
        assert gap(serving, adapted(serving.base, 2), 3) > 100 * TOLERANCE, "the check tells adapters apart"

    def test_whatever_was_there_before_is_replaced(self, serving: Serving, folder: Path) -> None:
        other = serving.perturbed(5)  # embeddings too, which no adapter touches
        serving.run(serving.engine.update_weights(4, buckets(other)))
        assert gap(serving, other, 4) < TOLERANCE
        for version, config in ((5, LORA), (6, LoraConfig(rank=2, target_modules=["v_proj", "down_proj"]))):
            lm = adapted(serving.base, version, config)
            serving.run(serving.engine.update_weights(version, sent(lm, folder, config)))
            assert gap(serving, lm, version) < TOLERANCE

    def test_bad_ones_are_refused_and_the_old_one_keeps_serving(
        self, serving: Serving, folder: Path, tmp_path: Path
    ) -> None:
        lm = adapted(serving.base, 7)
        serving.run(serving.engine.update_weights(7, sent(lm, folder)))
        flipped, torn, nowhere, moved = (sent(adapted(serving.base, 8), folder) for _ in range(4))
        flipped[1].data[17] ^= 1  # type: ignore[index]
        nowhere[0].base = nowhere[1].base = str(tmp_path)
        moved[1].base = str(tmp_path)
        for refused, message in (
            (flipped, "checksum"), (torn[:1], "is missing"), (nowhere, "holds no"), (moved, "different adapters"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=message):
                serving.run(serving.engine.update_weights(8, refused))
        with pytest.raises(ValueError, match="older"):
            serving.run(serving.engine.update_weights(6, sent(lm, folder)))
        assert gap(serving, lm, 7) < TOLERANCE

    def test_a_request_in_flight_goes_on_with_the_new_adapter(self, serving: Serving, folder: Path) -> None:
        old, new = adapted(serving.base, 9), adapted(serving.base, 10)
        serving.run(serving.engine.update_weights(9, sent(old, folder)))
        result = serving.run(under_way(serving, [GenRequest(0, [30, 31], max_tokens=200)], 10, sent(new, folder)))[0]
        serving.models.update({9: old, 10: new})
        assert set(result.versions) == {9, 10} and result.versions == sorted(result.versions)
        assert worst_gap(serving, [GenRequest(0, [30, 31], max_tokens=200)], [result]) < TOLERANCE


async def under_way(serving: Serving, batch: list[GenRequest], *update: Any) -> Any:
    """The results of `batch`, whose generation an update interrupts."""
    task = asyncio.ensure_future(serving.engine.generate(batch))
    states = serving.engine._llm.output_processor.request_states
    while len(states) < len(batch) or any(state.is_prefilling for state in list(states.values())):
        await asyncio.sleep(0.001)
    await serving.engine.update_weights(*update)
    return await task


class TestSideBySide:
    """Design: vLLM's own LoRA, the adapter chosen per request (`engine.share`)."""

    settings: ClassVar[dict[str, Any]] = {"enable_lora": True, "max_loras": 3, "max_lora_rank": 8}

    def test_each_request_gets_its_own(self, serving: Serving, folder: Path) -> None:
        assert gap(serving, serving.base, 0, "alice") < TOLERANCE, "before its first push an adapter is zero"
        models = {("alice", 1): adapted(serving.base, 1), ("bob", 4): adapted(serving.base, 2)}
        for (name, version), lm in models.items():
            serving.run(serving.engine.update_weights(version, sent(lm, folder), name))
        # All in one batch, the same prompts: cached activations must not be taken from another adapter.
        names = [("alice", 1), ("bob", 4), ("", 0)]
        for _ in range(2):
            batches = [one_of_each(11) for _ in names]
            for batch, (name, _) in zip(batches, names):
                for request in batch:
                    request.adapter = name
            results = iter(serving.generate([request for batch in batches for request in batch]))
            for batch, key in zip(batches, names):
                found = [next(results) for _ in batch]
                assert {v for result in found for v in result.versions} == {key[1]}
                serving.models[key[1]] = models.get(key, serving.base)
                assert worst_gap(serving, *sampled(batch, found)) < TOLERANCE, key
        assert serving.run(serving.engine.status())["adapters"] == {"alice": 1, "bob": 4}

    def test_updates_of_one_leave_the_other(self, serving: Serving, folder: Path) -> None:
        bob = adapted(serving.base, 2)
        for version in (2, 3):
            alice = adapted(serving.base, 10 + version)
            serving.run(serving.engine.update_weights(version, sent(alice, folder), "alice"))
            assert gap(serving, alice, version, "alice") < TOLERANCE
            assert gap(serving, bob, 4, "bob") < TOLERANCE
            assert gap(serving, serving.base, 0) < TOLERANCE
        assert gap(serving, bob, 3, "alice") > 100 * TOLERANCE

    def test_requests_in_flight_carry_versions_of_their_own(self, serving: Serving, folder: Path) -> None:
        models = {("alice", 3): adapted(serving.base, 13), ("alice", 5): adapted(serving.base, 5),
                  ("bob", 4): adapted(serving.base, 2)}  # fmt: skip
        batch = [GenRequest(0, [40, 41], max_tokens=200, adapter="alice"),
                 GenRequest(1, [40, 41], max_tokens=200, adapter="bob")]  # fmt: skip
        new = sent(models["alice", 5], folder)
        alice, bob = serving.run(under_way(serving, batch, 5, new, "alice"))
        assert set(alice.versions) == {3, 5} and set(bob.versions) == {4}
        for request, result in zip(batch, (alice, bob)):
            serving.models.update({v: lm for (name, v), lm in models.items() if name == request.adapter})
            assert worst_gap(serving, [request], [result]) < TOLERANCE

    def test_adapters_of_another_base_are_refused(self, serving: Serving, folder: Path, tmp_path: Path) -> None:
        serving.base.save_pretrained(tmp_path / "other")
        new = sent(adapted(serving.base, 6), tmp_path / "other")
        with pytest.raises(ValueError, match=r"policy 'bob': its adapter is not one of"):
            serving.run(serving.engine.update_weights(6, new, "bob"))
        with pytest.raises(ValueError, match=r"policy 'bob': version 3 is older than 4"):
            serving.run(serving.engine.update_weights(3, sent(adapted(serving.base, 6), folder), "bob"))
        assert gap(serving, adapted(serving.base, 2), 4, "bob") < TOLERANCE
