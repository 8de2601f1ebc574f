"""How many tokens fit into one forward pass, from what the model at hand keeps of each."""

from __future__ import annotations

import ctypes
import sys
from typing import TYPE_CHECKING

from configs.machine import Machine
from configs.memory import LOGIT_BYTES, MOST_TOKENS, activation_bytes
from configs.schema.run import LearnerConfig

if TYPE_CHECKING:
    from torch import Tensor

    from learners.models.token_model import TokenModel

PROBE_TOKENS = 64
SPARE = 0.8
"""CUDA: share of the free memory that activations may take; the rest is for what comes and goes inside kernels."""


def saved_bytes(model: TokenModel, tokens: int = PROBE_TOKENS) -> float:
    """Bytes that the model keeps of each token from the forward for the backward pass, found by one forward pass of
    `tokens` tokens, all of which carry loss. Weights and what several layers share count once."""
    import torch

    limit = getattr(model.lm.config.get_text_config(), "max_position_embeddings", None) or tokens
    tokens = max(2, min(tokens, limit))
    first = next(model.parameters())
    ids_T = torch.arange(tokens, device=first.device) * 7919 % model.lm.config.get_text_config().vocab_size
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    rows_L = torch.zeros(tokens - 1, dtype=torch.long, device=first.device)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = model(ids_T[None], rows_L, torch.arange(tokens - 1, device=first.device), ids_T[1:], rows_L + 1.0)
    del found
    return sum(kept.values()) / tokens


def fit_tokens(model: TokenModel, config: LearnerConfig, device: str) -> int:
    """`config.micro_tokens`, or for `auto` as many tokens as fit beside the weights, gradients and optimizer."""
    if config.micro_tokens != "auto":
        return config.micro_tokens
    room = activation_bytes(Machine.here().memory, config.ranks) if device == "cpu" else _free_cuda(model, config)
    return max(1, min(MOST_TOKENS[device], int(room / saved_bytes(model))))


def _free_cuda(model: TokenModel, config: LearnerConfig) -> float:
    """Bytes for activations on this rank's GPU, of which Ray lends it the share `config.gpus`."""
    import torch

    free, whole = (float(size) for size in torch.cuda.mem_get_info())
    held = whole - free
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    # Gradients, and two moments in float32 with masters in bfloat16, where ZeRO does not divide them.
    coming = trained * (1 + (2 if next(model.parameters()).dtype == torch.float32 else 6))
    ours = min(free, whole * min(1.0, config.gpus) - held) if config.gpus < 1 else free
    room: float = max(0.0, SPARE * (ours - coming) - 4 * LOGIT_BYTES["cuda"])
    return room


def return_memory() -> None:
    """Gives the pages that nothing uses back to the system: glibc keeps what was freed between what was not, and
    activations, optimizer and export would add up although they never live at once."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
