"""What a model keeps of each token, what `plan` thinks it keeps, and what is done about sequences that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from configs import memory
from configs.memory import activation_bytes, shape
from configs.schema.run import LearnerConfig, LoraConfig, ModelConfig
from learners.models import fitting
from learners.models.fitting import fit_tokens, saved_bytes
from learners.models.lora import add_adapter
from learners.models.token_model import Recomputation, TokenModel

SIZES = {
    "vocab_size": 300, "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 6, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip
ARCHITECTURES = ["llama", "qwen2", "qwen3", "mistral", "gemma", "phi3"]


def model(arch: str, dtype: torch.dtype = torch.float32, folder: Path | None = None) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(arch, **SIZES)
    if folder is not None:
        config.save_pretrained(folder)
    return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("lora", [False, True])
def test_plan_knows_what_a_model_keeps_of_a_token(arch: str, lora: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    lm = model(arch, dtype, tmp_path)
    if lora:
        linear = {name.rpartition(".")[2] for name, m in lm.named_modules() if isinstance(m, torch.nn.Linear)}
        add_adapter(lm, LoraConfig(rank=2, target_modules=sorted(linear - {"lm_head"})), 0)
    form = shape(ModelConfig(path=str(tmp_path)))
    assert form is not None
    kept = saved_bytes(TokenModel(lm), 128)
    assert form.activations(dtype == torch.bfloat16, lora) == pytest.approx(kept, rel=0.2)


def test_what_is_kept_was_counted_by_hand() -> None:
    """One linear map of 8 numbers to 4 and a head of 4 x 10, in float32: of each token its id (8 bytes; targets are the
    same ids) and what goes into the map (32) are kept, of each prediction its row and column (8 each), what goes into
    the head (16), and temperature, norm and entropy (4 each)."""

    class Base(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.map = torch.nn.Embedding(10, 8), torch.nn.Linear(8, 4, bias=False)
            self.head = torch.nn.Linear(4, 10, bias=False)
            self.config = self

        def get_text_config(self) -> Any:
            return type("Text", (), {"vocab_size": 10, "max_position_embeddings": 64})

        def get_output_embeddings(self) -> torch.nn.Linear:
            return self.head

        def base_model(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            return type("Output", (), {"last_hidden_state": self.map(self.embed(input_ids))})

    tokens = 64
    expected = tokens * (8 + 32) + (tokens - 1) * (8 + 8 + 16 + 4 + 4 + 4)
    assert saved_bytes(TokenModel(Base()), tokens) * tokens == expected


@pytest.mark.parametrize(
    ("machine", "ranks", "expected"),
    [(64 * 2**30, 1, memory.ACTIVATIONS), (2 * 2**30, 1, 2**28), (2 * 2**30, 4, 2**26)],
)
def test_all_ranks_together_take_an_eighth_of_the_machine(machine: int, ranks: int, expected: int) -> None:
    assert activation_bytes(machine, ranks) == expected


def test_auto_takes_what_fits_and_a_number_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = TokenModel(model("llama"))
    assert fit_tokens(lm, LearnerConfig(micro_tokens=7), "cpu") == 7
    assert fit_tokens(lm, LearnerConfig(), "cpu") == memory.MOST_TOKENS["cpu"]
    monkeypatch.setattr(fitting, "activation_bytes", lambda *_: int(100.5 * saved_bytes(lm)))
    assert fit_tokens(lm, LearnerConfig(), "cpu") == 100


def test_only_a_sequence_that_is_too_long_is_computed_again() -> None:
    lm = model("llama")
    recomputation = Recomputation(lm, "auto")
    token_model = TokenModel(lm)
    ids_BT = torch.arange(1, 41)[None]
    place = (torch.zeros(39, dtype=torch.long), torch.arange(39), ids_BT[0, 1:], torch.ones(39))
    gradients, kept = [], []
    for micro_tokens, again in ((40, False), (39, True)):
        assert recomputation.before(40, micro_tokens) is again
        lm.zero_grad()
        token_model(ids_BT, *place)[0].sum().backward()
        gradients.append([p.grad.clone() for p in lm.parameters()])
        kept.append(saved_bytes(token_model))
    assert kept[1] < kept[0] / 2
    assert all(torch.equal(one, other) for one, other in zip(*gradients))
    assert Recomputation(lm, False).before(40, 1) is False and Recomputation(lm, True).before(1, 40) is True
    assert json.dumps(lm.training) == "false", "dropout stays off"
