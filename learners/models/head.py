"""Log-probability and entropy of single tokens under a linear output layer, in little memory at any vocabulary.

The logits of L tokens over a vocabulary of V fill L x V numbers, gigabytes for a thousand tokens. Here they exist for a
few tokens at a time, in the forward pass and once more in the backward pass (the chunked cross-entropy of
arXiv 2410.10989, section 3.2, for any loss of log-probability and entropy). Tokens that are drawn from a few legal ones
compute only those columns.

Axes: L tokens that carry loss, C tokens of one chunk, D hidden width, V vocabulary, U legal tokens of any row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from configs.memory import LOGIT_BYTES


@dataclass(frozen=True, slots=True)
class Legal:
    """The legal tokens of each row. Of row l: `columns_K[starts[l]:starts[l + 1]]`, as columns of the logits."""

    starts: list[int]
    columns_K: Tensor

    def illegal(self, start: int, end: int, width: int) -> Tensor:
        """True where a token is not legal, for the rows from `start` to `end`: [end - start, width]."""
        counts = [self.starts[i + 1] - self.starts[i] for i in range(start, end)]
        device = self.columns_K.device
        rows_K = torch.repeat_interleave(torch.arange(end - start, device=device), torch.tensor(counts, device=device))
        illegal_CU = torch.ones(end - start, width, dtype=torch.bool, device=device)
        illegal_CU[rows_K, self.columns_K[self.starts[start] : self.starts[end]]] = False
        return illegal_CU


def head_logprobs(
    hidden_LD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    targets_L: Tensor,
    temperature_L: Tensor,
    legal_rows_K: Tensor | None = None,
    legal_tokens_K: Tensor | None = None,
    entropy_grad: bool = False,
) -> tuple[Tensor, Tensor]:
    """(logprobs_L, entropy_L): of `targets_L`, and of the distribution that they are drawn from; nats, float32.

    The distribution is the softmax of (hidden weight^T + bias) / temperature, over the legal tokens where there are
    some: `legal_rows_K`, `legal_tokens_K` list pairs (index into L, ascending; legal token); a row that does not occur
    is free. `entropy_grad`: whether a gradient flows through the entropy.
    """
    settings = (temperature_L.float(), entropy_grad)
    if legal_rows_K is None or legal_tokens_K is None:
        return _apply(hidden_LD, weight_VD, bias_V, targets_L, None, *settings)
    masked_M, counts_M = torch.unique_consecutive(legal_rows_K, return_counts=True)
    used_U, columns_K = torch.unique(torch.cat([legal_tokens_K, targets_L[masked_M]]), return_inverse=True)
    legal = Legal([0, *counts_M.cumsum(0).tolist()], columns_K[: len(legal_tokens_K)])
    bias_U = None if bias_V is None else bias_V[used_U]
    few = (hidden_LD[masked_M], weight_VD[used_U], bias_U, columns_K[len(legal_tokens_K) :], legal)
    masked = _apply(*few, temperature_L[masked_M].float(), entropy_grad)
    if len(masked_M) == len(targets_L):
        return masked
    free_L = torch.ones(len(targets_L), dtype=torch.bool, device=targets_L.device)
    free_L[masked_M] = False
    free_N = free_L.nonzero().squeeze(1)
    free = _apply(
        hidden_LD[free_N], weight_VD, bias_V, targets_L[free_N], None, temperature_L[free_N].float(), entropy_grad
    )
    order_L = torch.cat([masked_M, free_N]).argsort()
    logprobs_L, entropy_L = (torch.cat(both)[order_L] for both in zip(masked, free))
    return logprobs_L, entropy_L


def _apply(*arguments: Any) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = _ChunkedHead.apply(*arguments)  # type: ignore[no-untyped-call]
    return found


def chunk_rows(vocabulary: int, device: str) -> int:
    """How many tokens' logits are made at once."""
    return max(1, LOGIT_BYTES[device] // (4 * vocabulary))


class _ChunkedHead(torch.autograd.Function):  # type: ignore[misc]
    """Keeps the hidden states and two numbers per token; the backward pass makes the logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_LD: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_L: Tensor,
        legal: Legal | None,
        temperature_L: Tensor,
        entropy_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        logprobs_L, entropy_L, norm_L = (torch.empty_like(temperature_L) for _ in range(3))
        rows = chunk_rows(len(weight_VD), hidden_LD.device.type)
        for start in range(0, len(hidden_LD), rows):
            part = slice(start, min(start + rows, len(hidden_LD)))
            logits_CV = _logits(hidden_LD[part], weight_VD, bias_V, temperature_L[part])
            if legal is not None:
                illegal_CV = legal.illegal(part.start, part.stop, len(weight_VD))
                logits_CV.masked_fill_(illegal_CV, -torch.inf)
            norm_L[part] = logits_CV.logsumexp(-1)
            logprobs_CV = logits_CV.sub_(norm_L[part, None])
            logprobs_L[part] = logprobs_CV.gather(1, targets_L[part, None]).squeeze(1)
            probs_CV = logprobs_CV.exp()
            if legal is not None:
                logprobs_CV.masked_fill_(illegal_CV, 0.0)  # an illegal token has p log p = 0, not 0 times -inf
            entropy_L[part] = -torch.linalg.vecdot(probs_CV, logprobs_CV)
        ctx.save_for_backward(hidden_LD, weight_VD, bias_V, targets_L, temperature_L, norm_L, entropy_L)
        ctx.legal = legal
        ctx.set_materialize_grads(False)
        if not entropy_grad:
            ctx.mark_non_differentiable(entropy_L)
        return logprobs_L, entropy_L

    @staticmethod
    def backward(ctx: Any, gradient_L: Tensor | None, entropy_gradient_L: Tensor | None) -> Any:  # type: ignore[override]
        hidden_LD, weight_VD, bias_V, targets_L, temperature_L, norm_L, entropy_L = ctx.saved_tensors
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        hidden_gradient_LD = torch.zeros_like(hidden_LD) if for_hidden else None
        # float32: in bfloat16 the sum over chunks would round at each of them.
        weight_gradient_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if for_weight else None
        bias_gradient_V = torch.zeros_like(bias_V, dtype=torch.float32) if for_bias else None
        rows = chunk_rows(len(weight_VD), hidden_LD.device.type)
        for start in range(0, len(hidden_LD), rows):
            part = slice(start, min(start + rows, len(hidden_LD)))
            logprobs_CV = _logits(hidden_LD[part], weight_VD, bias_V, temperature_L[part]).sub_(norm_L[part, None])
            if ctx.legal is not None:
                illegal_CV = ctx.legal.illegal(part.start, part.stop, len(weight_VD))
                logprobs_CV.masked_fill_(illegal_CV, -torch.inf)
            delta_CV = logprobs_CV.exp()
            entropy_part_CV = None
            if entropy_gradient_L is not None:  # d entropy / d logit = -p (log p + entropy)
                if ctx.legal is not None:
                    logprobs_CV.masked_fill_(illegal_CV, 0.0)
                entropy_part_CV = logprobs_CV.add_(entropy_L[part, None]).mul_(delta_CV)
                entropy_part_CV.mul_(-entropy_gradient_L[part, None])
            if gradient_L is None:
                delta_CV.zero_()
            else:  # d logprob / d logit = 1 at the target - p
                delta_CV.mul_(-gradient_L[part, None])
                delta_CV.scatter_add_(1, targets_L[part, None], gradient_L[part, None])
            if entropy_part_CV is not None:
                delta_CV.add_(entropy_part_CV)
            delta_CV.div_(temperature_L[part, None])
            if bias_gradient_V is not None:
                bias_gradient_V.add_(delta_CV.sum(0))
            delta_CV = delta_CV.to(weight_VD.dtype)
            if hidden_gradient_LD is not None:
                hidden_gradient_LD[part] = delta_CV @ weight_VD
            if weight_gradient_VD is not None:
                _add_product(weight_gradient_VD, delta_CV.T, hidden_LD[part])
        if weight_gradient_VD is not None:
            weight_gradient_VD = weight_gradient_VD.to(weight_VD.dtype)
        if bias_gradient_V is not None:
            bias_gradient_V = bias_gradient_V.to(bias_V.dtype)
        return hidden_gradient_LD, weight_gradient_VD, bias_gradient_V, None, None, None, None


def _logits(hidden_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, temperature_C: Tensor) -> Tensor:
    """In float32 after a product in the dtype of the model, as engines make them."""
    return linear(hidden_CD, weight_VD, bias_V).float().div_(temperature_C[:, None])


def _add_product(total_VD: Tensor, left_VC: Tensor, right_CD: Tensor) -> None:
    """total += left @ right, in float32 whatever the dtype of the factors."""
    if left_VC.dtype == torch.float32:
        total_VD.addmm_(left_VC, right_CD)
    else:
        total_VD.add_(left_VC @ right_CD)
