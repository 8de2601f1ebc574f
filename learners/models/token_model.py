"""A causal language model that answers only where a loss is: log-probability and entropy of single tokens.

Axes: B sequences, T padded length, L tokens that carry loss, D hidden width.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.methods import LearnerConfigError
from learners.models.head import head_logprobs


def load_lm(model: str | Path, dtype: torch.dtype, trust_remote_code: bool = False) -> nn.Module:
    """A Hugging Face causal LM (folder or name) without dropout: the sampler has none either."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # one bar per rank says nothing

    lm = AutoModelForCausalLM.from_pretrained(
        str(model), dtype=dtype, attn_implementation="sdpa", trust_remote_code=trust_remote_code
    )
    lm.config.use_cache = False
    for parameter in lm.parameters():
        # Memory of its own: a file is mapped at any address, and kernels may round differently there.
        parameter.data = parameter.data.clone()
    return lm.eval()


class Recomputation:
    """Gradient checkpointing (arXiv 1604.06174) of `lm`, switched for each forward pass, and without training mode,
    which would bring dropout back: only the layers themselves are told that they train, nothing inside them. To be made
    after the last `eval()`.

    `wanted`: the setting `gradient_checkpointing`. Raises LearnerConfigError where true and the model's layers cannot.
    """

    def __init__(self, lm: nn.Module, wanted: bool | str) -> None:
        from torch.utils.checkpoint import checkpoint
        from transformers.modeling_layers import GradientCheckpointingLayer

        self.wanted = wanted
        self.layers: list[Any] = [layer for layer in lm.modules() if isinstance(layer, GradientCheckpointingLayer)]
        if wanted is True and not self.layers:
            raise LearnerConfigError(f"gradient_checkpointing: {type(lm).__name__} has no layers that can do it")
        for layer in self.layers:
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
        self.switch(wanted is True)

    def switch(self, on: bool) -> None:
        for layer in self.layers:
            layer.gradient_checkpointing = layer.training = on

    def before(self, tokens: int, micro_tokens: int) -> bool:
        """Call before a forward pass of `tokens` tokens: with `auto` it computes again what is more than fits, which is
        a single sequence that is longer than `micro_tokens`. Returns whether it does."""
        if self.wanted == "auto":
            self.switch(tokens > micro_tokens)
        return bool(self.layers) and (self.wanted is True or (self.wanted == "auto" and tokens > micro_tokens))


class TokenModel(nn.Module):
    """Hidden states of whole sequences, but log-probabilities at the loss positions only (learners/models/head.py).

    Sequences are padded on the right and no attention mask is given: in a causal model no real token
    attends to later padding, so real positions are exact.
    """

    def __init__(self, lm: nn.Module, value_head: nn.Module | None = None) -> None:
        super().__init__()
        self.lm, self.value_head = lm, value_head

    def forward(
        self,
        input_ids_BT: Tensor,
        rows_L: Tensor,
        cols_L: Tensor,
        targets_L: Tensor,
        temperature_L: Tensor,
        legal_rows_K: Tensor | None = None,
        legal_tokens_K: Tensor | None = None,
        entropy_grad: bool = False,
        position_ids_BT: Tensor | None = None,
        mask_B1TT: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Log-probability of `targets_L` and the entropy (nats) of its distribution, both [L], float32; with a value
        head (learners/losses/critic.py) also the value before each target.

        (rows_L, cols_L) is the position that *predicts* the target. The distribution is that of the
        sampler's processed log-probabilities: logits over temperature, then the legal tokens only.
        `legal_rows_K`, `legal_tokens_K` list (index into L, legal token); an index that does not occur
        is free. `position_ids_BT`: of packed rows (learners/batches/packing.py); `mask_B1TT`: what a token of rows with
        shared beginnings sees (learners/batches/prefixes.py).
        """
        packed = {} if position_ids_BT is None else {"position_ids": position_ids_BT}
        if mask_B1TT is not None:
            packed["attention_mask"] = mask_B1TT
        hidden_BTD = self.lm.base_model(input_ids=input_ids_BT, use_cache=False, **packed).last_hidden_state
        hidden_LD = hidden_BTD[rows_L, cols_L]
        head = self.lm.get_output_embeddings()
        logprobs_L, entropy_L = head_logprobs(
            hidden_LD, head.weight, getattr(head, "bias", None), targets_L, temperature_L,
            legal_rows_K, legal_tokens_K, entropy_grad,
        )  # fmt: skip
        if self.value_head is None:
            return logprobs_L, entropy_L
        return logprobs_L, entropy_L, self.value_head(hidden_LD)


def probe(model: nn.Module) -> Tensor:
    """Log-probabilities of six arbitrary tokens, followed by padding that must not matter."""
    inner = model.module if hasattr(model, "module") else model
    device = next(inner.parameters()).device
    ids_T = probe_ids(inner.lm).to(device)
    padded_T = torch.cat([ids_T, ids_T.new_zeros(3)])
    with torch.no_grad():
        logprobs_T, *_ = model(
            padded_T[None],
            torch.zeros_like(ids_T),
            torch.arange(len(ids_T), device=device),
            ids_T.roll(-1),
            torch.ones(len(ids_T), device=device),
        )
    return logprobs_T


def probe_ids(lm: nn.Module) -> Tensor:
    return torch.arange(1, 7) * 7919 % lm.config.get_text_config().vocab_size


def check_head(model: TokenModel) -> None:
    """Compares the shortcut through `base_model` and the output embeddings with the model's own logits.

    Raises LearnerConfigError for architectures that do more than a linear head (soft-capped or scaled
    logits) or that are not causal without an attention mask: their log-probabilities would be wrong.
    """
    first = next(model.parameters())
    ids_T = probe_ids(model.lm).to(first.device)
    with torch.no_grad():
        full_TV = torch.log_softmax(model.lm(input_ids=ids_T[None], use_cache=False).logits[0].float(), -1)
    expected_T = full_TV.gather(1, ids_T.roll(-1)[:, None]).squeeze(1)
    gap = float((expected_T - probe(model)).abs().max())
    if not gap <= (1e-3 if first.dtype == torch.float32 else 0.2):
        raise LearnerConfigError(
            f"model {type(model.lm).__name__}: log-probabilities at single positions differ from the model's "
            f"own by {gap:.3g}; only causal models with a plain linear head can be trained"
        )
