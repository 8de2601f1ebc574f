"""Adapters: what is merged, saved and taken out again is what peft says; plain torch. The learner with DeepSpeed:
tests/learners/ranks/test_learner_parity.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.methods import LearnerConfigError
from configs.schema.run import LoraConfig
from learners.models.lora import (
    ADAPTER,
    adapter_parameters,
    add_adapter,
    leave_out_frozen,
    merge,
    pieces,
    save_adapter,
    save_plain,
    take_out,
)
from learners.models.token_model import Recomputation, TokenModel, check_head, probe

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])
CONFIG = LoraConfig(rank=3, alpha=12.0, target_modules=["q_proj", "o_proj", "down_proj"])


def tiny() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, max_position_embeddings=32, tie_word_embeddings=True,
            initializer_range=0.3,
        )
    ).eval()  # fmt: skip


def adapted(seed: int = 0) -> tuple[Any, Any]:
    """A model with an adapter that has learned something, and peft's view of it."""
    lm = tiny()
    view = add_adapter(lm, CONFIG, seed)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_parameters(lm):
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return lm, view


def merged(lm: Any) -> dict[str, torch.Tensor]:
    return {piece.name: piece.value() for piece in pieces(lm)}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_new_adapter_changes_nothing_and_is_all_that_trains() -> None:
    plain, lm = tiny(), tiny()
    add_adapter(lm, CONFIG, 0)
    assert torch.equal(plain(IDS).logits, lm(IDS).logits)
    assert len(adapter_parameters(lm)) == 2 * 3 * 2  # A and B of three layers in two blocks
    model = TokenModel(lm)
    leave_out_frozen(model)
    assert len(model.state_dict()) == 12 and all("lora_" in name for name in model.state_dict())
    assert same(merged(lm), {name: p.detach() for name, p in plain.named_parameters()})
    check_head(TokenModel(lm))
    one, two, other = (adapter_parameters(m)[0] for m in (adapted()[0], adapted()[0], adapted(seed=5)[0]))
    assert torch.equal(one, two) and not torch.equal(one, other), "its start depends on the seed and nothing else"


def test_merged_weights_are_pefts() -> None:
    lm, view = adapted()
    logits, found = lm(IDS).logits.detach(), merged(lm)
    plain = view.merge_and_unload()
    expected = {name: p.detach() for name, p in plain.named_parameters()}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)
    fresh = tiny()
    assert not torch.allclose(fresh(IDS).logits, logits, atol=0.1), "the adapter did nothing"
    missing = fresh.load_state_dict(found, strict=False)
    assert missing.missing_keys in ([], ["lm_head.weight"]) and not missing.unexpected_keys
    torch.testing.assert_close(fresh(IDS).logits, logits, rtol=0, atol=1e-4)


def test_what_is_saved_can_be_loaded_by_transformers_and_peft(tmp_path: Path) -> None:
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    base, out = tmp_path / "base", tmp_path / "out"
    tiny().save_pretrained(base)
    (base / "tokenizer.json").write_text("{}")
    lm, view = adapted()
    logits = lm(IDS).logits.detach()
    save_plain(lm, out, {name: tensor.clone() for name, tensor in merged(lm).items()}, str(base))
    save_adapter(view, out / ADAPTER)
    assert (out / "tokenizer.json").read_text() == "{}"
    assert same(load_file(out / "model.safetensors"), merged(lm))
    whole = AutoModelForCausalLM.from_pretrained(out).eval()
    torch.testing.assert_close(whole(IDS).logits, logits, rtol=0, atol=1e-4)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), out / ADAPTER).eval()
    torch.testing.assert_close(loaded(IDS).logits, logits, rtol=0, atol=1e-5)
    with loaded.disable_adapter():
        torch.testing.assert_close(loaded(IDS).logits, tiny()(IDS).logits, rtol=0, atol=1e-5)
    merge(base, out / ADAPTER, tmp_path / "again")
    assert same(load_file(tmp_path / "again" / "model.safetensors"), merged(lm)), "engines had other bits"


@pytest.mark.parametrize("lora", [True, False])
def test_weights_are_taken_out_of_a_checkpoint(tmp_path: Path, lora: bool) -> None:
    from safetensors.torch import load_file

    base, policy, out = tmp_path / "base", tmp_path / "step-1" / "p", tmp_path / "out"
    tiny().save_pretrained(base)
    lm, view = adapted()
    (policy / "state").mkdir(parents=True)
    facts = {"lora": {"rank": 3} if lora else None, "base": str(base)}
    (policy / "state" / "learner.json").write_text(json.dumps(facts))
    if lora:
        save_adapter(view, policy / "state" / ADAPTER)
    else:
        tiny().save_pretrained(policy / "hf")
    assert take_out(policy, out) == str(base if lora else out)
    expected = merged(lm) if lora else load_file(base / "model.safetensors")
    assert same(load_file(out / "model.safetensors"), expected)


@pytest.mark.parametrize("wrong", ["q_prog", "embed_tokens", "lm_head"])
def test_layers_that_cannot_have_one_are_named(wrong: str) -> None:
    message = rf"lora\.target_modules: Qwen3ForCausalLM has no linear {wrong}; valid: down_proj, gate_proj"
    with pytest.raises(LearnerConfigError, match=message):
        add_adapter(tiny(), LoraConfig(target_modules=["q_proj", wrong]), 0)


def test_activations_computed_again_give_the_same_gradients() -> None:
    def gradients(again: bool) -> tuple[list[torch.Tensor], int]:
        lm = tiny()
        for layer in lm.model.layers:
            layer.self_attn.attention_dropout = 0.9  # must stay off
        calls = 0

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1

        lm.model.layers[0].mlp.register_forward_pre_hook(count)
        if again:
            Recomputation(lm, True)
        probe_sum = TokenModel(lm)(IDS, *(torch.tensor([i]) for i in (0, 6, 6)), torch.ones(1))[0].sum()
        probe_sum.backward()
        probe(TokenModel(lm))
        return [p.grad for p in lm.parameters()], calls

    plain, once = gradients(again=False)
    again, twice = gradients(again=True)
    assert (once, twice) == (2, 3), "computed again on the way back, and not where there is none"
    assert all(torch.equal(a, b) for a, b in zip(plain, again))
