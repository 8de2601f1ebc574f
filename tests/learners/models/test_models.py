"""Tiny models: the tokenizer gives back every text, and the folder is a model like any other."""

from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from configs.schema.run import ModelConfig
from learners.models.tiny import ModelError, build_model, build_tokenizer, head_dim, materialise

WORDS = ["r3c5=2", "r3c5=3", "A B claim", "claim", "é漢", "<|end|>x"]
TOKENIZER = build_tokenizer(WORDS)


@settings(deadline=None)
@given(st.lists(st.one_of(st.sampled_from([" ", "\n", *WORDS]), st.text()), max_size=6).map("".join))
def test_every_text_survives_encoding(text):
    backend = TOKENIZER.backend_tokenizer
    specials = [token.content for token in TOKENIZER.added_tokens_decoder.values()]
    if any(special in text for special in specials):
        return  # ChatCodec's business
    assert backend.decode(backend.encode(text).ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("word", ["r3c5=2", "A", "B", "claim", "é漢"])
def test_a_known_word_is_one_token_wherever_it_stands_alone(word):
    at_start = TOKENIZER.encode(word)
    assert len(at_start) == 1
    assert TOKENIZER.encode(f"{word} {word}") == at_start * 2
    assert TOKENIZER.encode(f"x {word}")[-1:] == at_start


def test_the_vocabulary_is_bytes_words_and_specials():
    # A B claim r3c5=2 r3c5=3 é漢 <|end|>x, and pad, end and three speakers
    assert len(TOKENIZER) == 256 + 7 + 5


def test_unknown_words_are_spelled_in_bytes():
    assert len(TOKENIZER.encode("r3c5=9")) == len(" r3c5=9")


def test_the_chat_template_is_frugal():
    chat = [
        {"role": "system", "content": "claim"},
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "B"},
        {"role": "user", "content": "A"},
    ]
    ids = TOKENIZER.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
    names = "<|system|> Ġclaim <|user|> ĠA <|assistant|> ĠB <|end|> <|user|> ĠA <|assistant|>"
    assert TOKENIZER.convert_ids_to_tokens(ids) == names.split()


@pytest.mark.parametrize("arch", ["qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_transformers_loads_the_folder(tmp_path, arch, tied):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = ModelConfig(arch=arch, hidden_size=32, layers=1, heads=2, kv_heads=1, tie_embeddings=tied)
    folder = build_model(config, TOKENIZER, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "claim é漢 <r3c5=2\n  A"
    assert tokenizer.encode(text) == TOKENIZER.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.chat_template == TOKENIZER.chat_template

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.model_type == arch and model.dtype == torch.float32
    assert model.config.max_position_embeddings == tokenizer.model_max_length == config.max_len
    assert model.generation_config.eos_token_id == model.config.eos_token_id == tokenizer.eos_token_id
    assert model(torch.tensor([tokenizer.encode(text)])).logits.shape[-1] == len(tokenizer)
    same = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert same == tied


def test_weights_follow_the_seed_and_nothing_else(tmp_path):
    import torch

    def weights(seed, name):
        config = ModelConfig(hidden_size=32, layers=1, heads=2, kv_heads=2, seed=seed)
        return (build_model(config, TOKENIZER, tmp_path / name) / "model.safetensors").read_bytes()

    torch.manual_seed(1)
    first = weights(0, "a")
    state = torch.get_rng_state()
    torch.rand(7)
    outside = torch.get_rng_state()
    assert weights(0, "b") == first
    assert weights(1, "c") != first
    assert torch.equal(torch.get_rng_state(), outside) and not torch.equal(state, outside)


def test_a_path_is_taken_as_it_is(tmp_path):
    assert str(materialise(ModelConfig(path="Qwen/Qwen3-0.6B"), WORDS, tmp_path)) == "Qwen/Qwen3-0.6B"
    assert list(tmp_path.iterdir()) == []
    built = materialise(ModelConfig(hidden_size=32, layers=1), WORDS, tmp_path / "tiny")
    assert built == Path(tmp_path / "tiny") and (built / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("hidden", "heads", "width"), [(64, 4, 32), (128, 2, 64), (96, 1, 96), (200, 2, 112)]
)
def test_heads_have_a_width_that_vllm_has_kernels_for(hidden, heads, width):
    assert head_dim(ModelConfig(hidden_size=hidden, heads=heads)) == width


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (ModelConfig(arch="gpt5"), "qwen3, llama"),
        (ModelConfig(heads=4, kv_heads=3), "kv_heads"),
        (ModelConfig(hidden_size=1024, heads=1, kv_heads=1), "wider than 256"),
    ],
)
def test_impossible_models_are_refused(tmp_path, config, named):
    with pytest.raises(ModelError, match=named):
        build_model(config, TOKENIZER, tmp_path)
