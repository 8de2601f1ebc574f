"""An adapter that is merged in the engine: the parts that know no vLLM.
With vLLM: tests/actors/engine/test_engine_lora.py."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.engine.actor import check_adapter_buckets, check_sums
from actors.engine.adapter import Base, check_adapter, layers_of, local_folder
from actors.serving.messages import WeightBucket
from configs.schema.run import LoraConfig
from learners.models.lora import parts
from learners.weights import pack
from tests.learners.models.test_lora import CONFIG, IDS, adapted, merged, same, tiny

SCALING = CONFIG.alpha / CONFIG.rank


@pytest.fixture
def base(tmp_path: Path) -> str:
    tiny().save_pretrained(tmp_path / "base", max_shard_size="8KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1, "one file: nothing was tested of several"
    return str(tmp_path / "base")


def found(lm: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in parts(lm)}


def test_what_the_engine_merges_has_the_bits_of_what_the_learner_merges(base: str) -> None:
    lm, _ = adapted()
    sent, cpu = found(lm), torch.device("cpu")
    assert len(sent) == 2 * 3 * 2
    weights = dict(Base(base).merged(None, sent, SCALING, cpu))
    assert same(weights, merged(lm))
    plain = tiny()
    plain.load_state_dict(weights, strict=False)
    torch.testing.assert_close(plain(IDS).logits, lm(IDS).logits, rtol=0, atol=1e-4)
    assert not torch.allclose(plain(IDS).logits, tiny()(IDS).logits, atol=0.1), "the adapter did nothing"


def test_only_what_is_fused_with_the_layers_is_loaded_again(base: str) -> None:
    around = Base(base).around(["model.layers.1.self_attn.q_proj"])
    attention = "model.layers.1.self_attn."
    expected = {attention + f"{one}.weight" for one in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")}
    assert set(around) == expected
    lm, _ = adapted()
    some = dict(Base(base).merged(Base(base).around(layers_of(found(lm))), found(lm), SCALING, torch.device("cpu")))
    whole = merged(lm)
    assert all(torch.equal(some[name], whole[name]) for name in some)
    unchanged = {name for name, tensor in tiny().named_parameters() if torch.equal(tensor, whole[name])}
    assert whole.keys() - some.keys() < unchanged and "model.embed_tokens.weight" not in some


def test_bytes_are_those_of_the_adapter_and_a_checksum_covers_them() -> None:
    lm, _ = adapted()
    bucket = pack(parts(lm))
    assert bucket["data"].nbytes == sum(p.numel() * 4 for p in lm.parameters() if p.requires_grad)
    assert bucket["sha256"] == hashlib.sha256(bucket["data"].tobytes()).hexdigest()
    bucket["data"] = bucket["data"].copy()
    bucket["data"][5] ^= 1
    with pytest.raises(ValueError, match="checksum"):
        check_sums([WeightBucket(**bucket)])


Q = "model.layers.0.self_attn.q_proj"
SHAPES = {Q + ".weight": (16, 8)}
A, B = Q + ".lora_A.weight", Q + ".lora_B.weight"


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({A: (2, 8)}, "of the adapter of .*q_proj B is missing"),
        ({B: (16, 2)}, "of the adapter of .*q_proj A is missing"),
        ({A: (2, 8), B: (16, 3)}, r"A \(2, 8\) and B \(16, 3\) do not fit .*shape \(16, 8\)"),
        ({A: (2, 16), B: (8, 2)}, "do not fit"),
        ({Q + ".weight": (16, 8)}, "no part of an adapter: .*q_proj.weight"),
        ({A.replace("q_", "x_"): (2, 8), B.replace("q_", "x_"): (16, 2)}, "has no layer .*x_proj"),
    ],
)
def test_adapters_that_do_not_fit_are_refused(sent: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_adapter(SHAPES, sent)
    check_adapter(SHAPES, {A: (2, 8), B: (16, 2)})


def test_a_plain_model_that_cannot_be_read_is_refused(base: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model 'there/is-none' on this machine"):
        local_folder("there/is-none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \*\.safetensors; valid with it: learner\.lora\.push: merged"):
        local_folder(str(tmp_path / "empty"))
    assert local_folder(base) == Path(base)
    shapes = {name: tuple(p.shape) for name, p in tiny().named_parameters()}
    bucket = WeightBucket(**pack(parts(adapted()[0])), base=base, scaling=SCALING)
    check_adapter_buckets(shapes, [bucket])
    check_adapter_buckets({**shapes, "lm_head.weight": (20, 16)}, [bucket])
    for other in ({**shapes, "model.norm.weight": (17,)}, {**shapes, "more": (1,)}, {"less": (1,)}):
        with pytest.raises(ValueError, match="no model of this engine's shape"):
            check_adapter_buckets(other, [bucket])
    with pytest.raises(ValueError, match="different adapters"):
        check_adapter_buckets(shapes, [bucket, WeightBucket(**pack(parts(adapted()[0])), base=base, scaling=1.0)])


def test_how_an_adapter_travels_may_change_between_a_run_and_its_resumption() -> None:
    from types import SimpleNamespace

    from configs.schema.run import LearnerConfig
    from learners.ranks.saving import Saving

    def facts(lora: LoraConfig | None) -> Any:
        rank = SimpleNamespace(config=LearnerConfig(lora=lora), world=1, dtype_name="float32")
        return Saving._facts(rank)["lora"]  # type: ignore[arg-type]

    assert facts(LoraConfig(push="merged")) == facts(LoraConfig(push="adapter")) != facts(LoraConfig(rank=2))
    assert facts(None) is None
