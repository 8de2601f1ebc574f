"""Tiny language models from scratch, in Hugging Face format: transformers and vLLM load them like any other.

A tiny model knows a fixed list of words, one token each, and spells everything else in bytes, so every text
is possible and short games cost few tokens.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.schema.run import ModelConfig
from protocols.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, END = "<|pad|>", "<|end|>"
SPEAKERS = ("<|system|>", "<|user|>", "<|assistant|>")

# The next speaker's token already ends a system or user message; only replies need an end of their own,
# because the model has to be able to say it.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message.role + '|>' + message.content }}"
    "{% if message.role == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

WORD_SCORE, BYTE_SCORE = -1.0, -20.0  # a word beats its spelling in bytes, whatever its length

COPIED = {".json", ".jinja", ".txt", ".model"}
"""What else than weights a model's folder holds: the tokenizer."""

HEAD_DIMS = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)
"""Head sizes that vLLM's CPU attention has kernels for (v1/attention/backends/cpu_attn.py)."""


class ModelError(UserError):
    """A `model:` section describes no model that can be built."""


def build_tokenizer(words: Iterable[str]) -> PreTrainedTokenizerFast:
    """Unigram tokenizer (Kudo 2018, 1804.10959) over bytes, with every known word as one token.

    `words` may be texts: they are cut at white space, duplicates dropped, order of first appearance kept. A
    word is one token after a space and at the start of a text; after any other character it is spelled in
    bytes. Decoding an encoded text gives exactly that text.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    known = dict.fromkeys(word for text in words for word in text.split())
    pieces = [(byte, BYTE_SCORE) for byte in sorted(pre_tokenizers.ByteLevel.alphabet())]
    pieces += [(byte_level.pre_tokenize_str(" " + word)[0][0], WORD_SCORE) for word in known]

    backend = Tokenizer(models.Unigram(pieces, unk_id=None, byte_fallback=False))
    backend.normalizer = normalizers.Prepend(" ")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "merged_with_next"), byte_level]
    )
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(SPEAKERS),
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(config: ModelConfig, tokenizer: PreTrainedTokenizerFast, out_dir: str | Path) -> Path:
    """Writes a randomly initialised model and its tokenizer to `out_dir` (safetensors, float32).

    The weights depend on `config` and the vocabulary only. Raises `ModelError`.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # a tiny model is written in a moment
    out_dir = Path(out_dir)
    hf_config = _hf_config(config, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = AutoModelForCausalLM.from_config(hf_config, dtype=torch.float32)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    tokenizer.model_max_length = config.max_len
    # transformers asks accelerate here, which imports deepspeed, which would look for a GPU and warn about none on
    # the screen. Learners choose their own device, in processes of their own.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    model.save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)
    return out_dir


def _hf_config(config: ModelConfig, tokenizer: PreTrainedTokenizerFast) -> Any:
    from transformers import LlamaConfig, Qwen3Config

    archs = {"qwen3": Qwen3Config, "llama": LlamaConfig}
    if config.arch not in archs:
        raise ModelError(f"arch: {config.arch!r} is not known; valid: {', '.join(archs)}")
    if config.heads % config.kv_heads:
        raise ModelError(f"heads: {config.heads} is not a multiple of kv_heads ({config.kv_heads})")
    return archs[config.arch](
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=head_dim(config),
        max_position_embeddings=config.max_len,
        tie_word_embeddings=config.tie_embeddings,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def head_dim(config: ModelConfig) -> int:
    """Width of one attention head: hidden_size / heads, rounded up to a size that vLLM's CPU kernels have."""
    wanted = -(-config.hidden_size // config.heads)
    for size in HEAD_DIMS:
        if size >= wanted:
            return size
    raise ModelError(
        f"heads: {config.heads} heads of hidden_size {config.hidden_size} are wider than {HEAD_DIMS[-1]}"
    )


def materialise(config: ModelConfig, words: Iterable[str], out_dir: str | Path) -> Path:
    """Where the model lies: `config.path` as it is (a name or a folder), or a tiny one built in `out_dir`."""
    if config.path:
        return Path(config.path)
    return build_model(config, build_tokenizer(words), out_dir)


def copy_tokenizer(source: str, folder: Path) -> None:
    """The tokenizer of the model `source` (folder or name) into the folder of another; what is there stays."""
    if not Path(source).is_dir():
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
        return
    for path in Path(source).iterdir():
        weights = path.name.endswith(".index.json")
        if path.is_file() and path.suffix in COPIED and not weights and not (folder / path.name).exists():
            shutil.copy(path, folder)
