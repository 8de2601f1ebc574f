"""AdamW (arXiv 1711.05101) for DeepSpeed."""

from __future__ import annotations

import torch
from torch import nn


class SafeAdamW(torch.optim.AdamW):
    """Clips by global norm and leaves everything as it is when that norm is not finite.

    ZeRO's optimizers do both themselves. DeepSpeed's stage 0 clips without telling the norm and never
    skips; it does read these two attributes. `max_norm` 0: no clipping.
    """

    def __init__(self, parameters: list[dict[str, list[nn.Parameter]]], max_norm: float, **settings: object) -> None:
        super().__init__(parameters, **settings)  # type: ignore[arg-type]
        self.max_norm = max_norm
        self._global_grad_norm = 0.0
        self.overflow = False

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
        self._global_grad_norm = float(norm)
        self.overflow = not bool(torch.isfinite(norm))
        if self.overflow:
            return
        if self.max_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.max_norm, norm)
        super().step()


def make_adamw(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float],
    eps: float,
    max_norm: float | None,
) -> torch.optim.AdamW:
    """SafeAdamW when `max_norm` is given, else torch's own (ZeRO clips). Fused: one kernel per tensor. A value head has
    a group of its own, the second, for its learning rate."""
    head = getattr(model, "value_head", None)
    apart = [] if head is None else list(head.parameters())
    own = {id(p) for p in apart}
    parameters = [{"params": [p for p in model.parameters() if p.requires_grad and id(p) not in own]}]
    parameters += [{"params": apart}] if apart else []
    settings = {"lr": lr, "weight_decay": weight_decay, "betas": betas, "eps": eps, "fused": True}
    if max_norm is None:
        return torch.optim.AdamW(parameters, **settings)  # type: ignore[arg-type]
    return SafeAdamW(parameters, max_norm, **settings)
