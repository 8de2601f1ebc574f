"""How large a model is, and how much memory an engine or a learner of it takes. Without torch: `plan` is quick."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.methods import REFERENCES, needs_reference
from configs.schema.run import LearnerConfig, ModelConfig, PolicyConfig

TINY_VOCABULARY = 600
"""Words and bytes of a tiny model's tokenizer, roughly: it is built from the job's tasks at the start."""
LOGIT_BYTES = {"cpu": 2**26, "cuda": 2**28}
"""Most that one chunk of float32 logits takes (learners/models/head.py). A CPU gains nothing from more, a GPU runs
fewer and larger kernels."""
MOST_TOKENS = {"cpu": 4096, "cuda": 16384}
"""With `micro_tokens: auto`: beyond so many tokens in one forward pass a device gets no faster."""
ACTIVATIONS = 3 * 2**28
"""With `micro_tokens: auto`, CPU: bytes of activations of one rank, where the machine has them to spare."""
IDLE_ENGINE = int(0.9 * 2**30)
"""A vLLM CPU engine without a model, measured."""
IDLE_RANK = {"cpu": int(0.7 * 2**30), "cuda": 2**30}
"""A rank without a model, measured: torch, transformers and DeepSpeed, or CUDA."""
ADAPTER_HEAP = 1.5
"""CPU: the heap holds so many times the activations of a model with adapters, whose many short-lived tensors leave
holes (SmolLM2, glibc 2.36; 1.0 where all weights are trained)."""
_SIZE_IN_NAME = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)b(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder-only transformer whose feed-forward layers have a gate."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    head_dim: int
    tied: bool

    @property
    def parameters(self) -> int:
        layer = self.hidden * self.head_dim * 2 * (self.heads + self.kv_heads) + 3 * self.hidden * self.mlp
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return tables + self.layers * (layer + 2 * self.hidden) + self.hidden

    def activations(self, half: bool, lora: bool) -> int:
        """Bytes that one token keeps from the forward for the backward pass.

        Per layer: inputs and outputs of both norms and the input of the projections (not where only adapters need
        gradients), queries, keys and values as attention takes them, its output twice, and four times the width of
        the feed-forward layer. In half precision norms keep float32 copies. Within a fifth of what torch keeps for
        six architectures (tests/learners/models/test_fitting.py).
        """
        numbers = (4 if lora else 6) * self.hidden + 2 * (self.heads + self.kv_heads) * self.head_dim + 4 * self.mlp
        return self.layers * ((4 * numbers + 9 * self.hidden) // 2 if half else 4 * numbers)


def engine_memory(policy: PolicyConfig, device: str, gpu_memory: int) -> int:
    """Bytes of one engine: on CUDA the share of `gpu_memory` that vLLM takes; on CPU the process, weights and KV
    cache. 0 where the model's size is unknown."""
    if device == "cuda":
        return int(policy.engine.gpu_memory_utilization * gpu_memory)
    count = parameters(policy.model)
    width = 2 if policy.engine.dtype in ("bfloat16", "float16") else 4
    return 0 if count is None else IDLE_ENGINE + width * count + policy.engine.kv_cache_mb * 2**20


def learner_memory(policy: PolicyConfig, learner: LearnerConfig, device: str, machine_memory: int = 0) -> int:
    """Bytes that one rank holds at its peak; 0 where the model's size is unknown.

    Weights, gradients and Adam's two moments (ZeRO, Rajbhandari 2020, figure 1), of a critic's head too; a whole
    reference where the loss compares with one; the activations and logits of one forward pass; the few numbers of an
    adapter are left out. `machine_memory`: bytes of the machine that the rank runs on, 0 when unknown.
    """
    count = parameters(policy.model)
    if count is None:
        return 0
    half = _half(learner, device)
    weights, grads, states, flat = _bytes(half, learner.zero_stage)
    head = width(policy.model) + 1 if learner.critic else 0
    frozen, trained = (count, head) if learner.lora else (0, count + head)
    shard = [learner.ranks if learner.zero_stage >= stage else 1 for stage in (3, 2, 1)]
    total = IDLE_RANK[device] + step_memory(policy.model, learner, device, machine_memory) + trained * flat
    if policy.trained and needs_reference(learner.loss):
        total += trained * (weights + (4 if half and "average" in REFERENCES.needs(learner.reference.kind) else 0))
        if learner.zero_stage == 3:  # below, the frozen weights of both are the same ones
            total += frozen * weights
    return total + (frozen + trained) * weights // shard[0] + trained * grads // shard[1] + trained * states // shard[2]


def object_store_bytes(policies: Iterable[PolicyConfig]) -> int:
    """Ray's object store on this machine, in /dev/shm: twice what each learner pushes, since engines still read the
    last weights while the next ones are written. At least 512 MiB."""
    pushed = 0
    for policy in policies:
        learner = policy.learner
        whole = learner.lora is None or learner.lora.push == "merged"
        if policy.kind == "lm" and policy.trained and whole:
            pushed += (parameters(policy.model) or 0) * (2 if learner.dtype == "bfloat16" else 4)
    return max(512 * 2**20, 2 * pushed + 64 * 2**20)


def _bytes(half: bool, zero_stage: int) -> tuple[int, int, int, int]:
    """Per trained parameter: weights, gradients, the optimizer's state, and copies that ZeRO makes on every rank. It
    keeps masters also of float32 weights (measured: SmolLM2, one rank, float32)."""
    if half:
        return 2, 2, 12, 0
    return (4, 4, 8, 0) if zero_stage == 0 else (4, 4, 12, 8 if zero_stage == 3 else 4)


def step_memory(model: ModelConfig, learner: LearnerConfig, device: str, machine_memory: int) -> int:
    """Bytes that come and go with each forward and backward pass."""
    form = shape(model)
    if form is None:
        return 0
    token = form.activations(_half(learner, device), learner.lora is not None)
    most = MOST_TOKENS[device]
    if learner.micro_tokens != "auto":
        tokens = learner.micro_tokens
    elif device == "cpu":
        tokens = min(most, activation_bytes(machine_memory, learner.ranks) // token)
    else:
        tokens = most
    if device == "cpu" and learner.lora is not None:
        token = int(ADAPTER_HEAP * token)
    # Four chunks: logits, probabilities, their gradient, and its copy for the product with the weights.
    return tokens * token + 4 * min(LOGIT_BYTES[device], 4 * tokens * form.vocabulary)


def activation_bytes(machine_memory: int, ranks: int) -> int:
    """With `micro_tokens: auto`, on a CPU: at most ACTIVATIONS, and all ranks together an eighth of the machine. The
    same on every start, so that a run can be repeated bit by bit. `machine_memory` 0: unknown."""
    return min(ACTIVATIONS, machine_memory // 8 // ranks) if machine_memory else ACTIVATIONS


def _half(learner: LearnerConfig, device: str) -> bool:
    auto_half = learner.dtype == "auto" and device == "cuda" and learner.zero_stage > 0
    return learner.dtype == "bfloat16" or auto_half


def shape(model: ModelConfig) -> ModelShape | None:
    """Of a tiny model, or of one whose config.json is on this machine; None for others and mixtures of experts."""
    if not model.path:
        heads, kv_heads, width = model.heads, model.kv_heads, model.hidden_size // max(model.heads, 1)
        return ModelShape(
            TINY_VOCABULARY, model.hidden_size, model.layers, heads, kv_heads, model.intermediate_size, width,
            model.tie_embeddings,
        )  # fmt: skip
    hf = _read_config(model.path)
    if "hidden_size" not in hf or "vocab_size" not in hf or any("expert" in key for key in hf):
        return None
    heads = hf["num_attention_heads"]
    return ModelShape(
        hf["vocab_size"], hf["hidden_size"], hf["num_hidden_layers"], heads, hf.get("num_key_value_heads") or heads,
        hf["intermediate_size"], hf.get("head_dim") or hf["hidden_size"] // max(heads, 1),
        hf.get("tie_word_embeddings", False),
    )  # fmt: skip


def parameters(model: ModelConfig) -> int | None:
    """Number of parameters: computed for tiny and local models, else read off the name ("7B"), else None."""
    form = shape(model)
    if form is not None:
        return form.parameters
    named = _SIZE_IN_NAME.search(Path(model.path).name)
    return int(float(named[1]) * 1e9) if named else None


def width(model: ModelConfig) -> int:
    """Numbers in a hidden state; 0 where nothing but the model's name is known."""
    return int(_read_config(model.path).get("hidden_size", 0)) if model.path else model.hidden_size


def _read_config(path: str) -> dict[str, Any]:
    """What `_find_config` finds; {} where that is nothing."""
    config = _find_config(path)
    return {} if config is None else json.loads(config.read_text())


def _find_config(path: str) -> Path | None:
    """config.json of a local folder, or of a model in the Hugging Face cache."""
    local = Path(path).expanduser() / "config.json"
    if local.is_file():
        return local
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    snapshots = home / "hub" / ("models--" + path.strip("/").replace("/", "--")) / "snapshots"
    return next(iter(sorted(snapshots.glob("*/config.json"))), None)
