"""The critic of a policy: a value head on its own last hidden state. Axis: L tokens that carry loss.

The head is one linear map beside the language model, in the same module, and no critic model of its own. So one
DeepSpeed engine holds, partitions (ZeRO 1 to 3), saves and loads both, and the head costs a row of weights instead of
a second model and optimizer. Exports (learners/models/lora.py, `pieces`) contain the language model only. In return
the critic's loss moves the policy's features as well; `coef` bounds by how much.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from configs.schema.run import CriticConfig
from learners.batches.batching import MicroBatch


class ValueHead(nn.Module):
    """V = w h + b, in float32. Zero at first: then advantages are what REINFORCE would take, and nothing about the
    start is random."""

    def __init__(self, width: int, like: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, width, dtype=like.dtype, device=like.device))
        self.bias = nn.Parameter(torch.zeros(1, dtype=like.dtype, device=like.device))

    def forward(self, hidden_LD: Tensor) -> Tensor:
        return nn.functional.linear(hidden_LD.float(), self.weight.float(), self.bias.float()).squeeze(-1)


def make_head(lm: nn.Module) -> ValueHead:
    """A head for the hidden states of `lm`, in its dtype and on its device."""
    like = next(lm.parameters())
    return ValueHead(lm.config.get_text_config().hidden_size, like)


def value_loss(values_L: Tensor, old_values_L: Tensor, returns_L: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """(loss_L, clipped_L). max((V - R)^2, (V_clip - R)^2) / 2, V_clip = V within `clip` of what it was at the start of
    the step: the value function's loss of PPO (arXiv 1707.06347, eq. 9) as its implementations clip it (Huang et al.,
    arXiv 2403.17031; TRL: cliprange_value). `clip` 0: (V - R)^2 / 2. `clipped_L` is 1 where the bound took effect."""
    free_L = (values_L - returns_L).square()
    if not clip:
        return 0.5 * free_L, torch.zeros_like(free_L)
    near_L = old_values_L + (values_L - old_values_L).clamp(-clip, clip)
    bounded_L = (near_L - returns_L).square()
    return 0.5 * torch.maximum(free_L, bounded_L), (bounded_L > free_L).detach().to(free_L.dtype)


def value_term(
    config: CriticConfig, values_L: Tensor, batch: MicroBatch, tokens: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """This micro-batch's share of `coef` times the mean of the critic's loss over the `tokens` of the whole minibatch,
    and its metrics. Without returns (a warm start) the share is 0 but depends on the head: ZeRO wants a gradient of
    each parameter on every rank or on none."""
    if batch.returns_L is None or batch.values_L is None:
        return 0.0 * values_L.sum(), {}
    loss_L, clipped_L = value_loss(values_L, batch.values_L, batch.returns_L, config.clip)
    real_L = batch.index_L >= 0  # padding weighs nothing
    metrics = {"value_loss": loss_L.detach(), "value_clip_fraction": clipped_L}
    return config.coef * (loss_L * real_L).sum() / tokens, metrics
