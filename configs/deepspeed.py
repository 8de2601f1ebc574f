"""The JSON that DeepSpeed gets from a LearnerConfig. No DeepSpeed here: `launch.py plan` checks it too."""

from __future__ import annotations

import copy
from typing import Any

from configs.methods import LearnerConfigError
from configs.schema.run import LearnerConfig

BETAS = (0.9, 0.999)
EPS = 1e-8


def resolve_dtype(config: LearnerConfig, device: str) -> str:
    """`auto` is bfloat16 on CUDA from ZeRO stage 1 on (which keeps float32 masters), float32 otherwise.

    Raises LearnerConfigError for bfloat16 at stage 0: DeepSpeed's first Adam update is wrong there.
    """
    if config.dtype == "auto":
        return "bfloat16" if device == "cuda" and config.zero_stage > 0 else "float32"
    if config.dtype not in ("float32", "bfloat16"):
        raise LearnerConfigError(f"dtype: {config.dtype!r} is none of auto, float32, bfloat16")
    if config.dtype == "bfloat16" and config.zero_stage == 0:
        raise LearnerConfigError(
            "dtype: bfloat16 at zero_stage 0 makes a wrong first Adam update in DeepSpeed; "
            "set zero_stage to 1 or more"
        )
    return config.dtype


def deepspeed_json(config: LearnerConfig, device: str) -> dict[str, Any]:
    """DeepSpeed's JSON: `config.deepspeed` plus the keys that the fields above it set.

    Raises LearnerConfigError naming every key of `config.deepspeed` that a field already sets.
    """
    if config.zero_stage not in (0, 1, 2, 3):
        raise LearnerConfigError(f"zero_stage: {config.zero_stage} is none of 0, 1, 2, 3")
    bfloat16 = resolve_dtype(config, device) == "bfloat16"
    ours: dict[str, Any] = {
        # Nominal: with unmanaged accumulation every backward counts as it comes.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        # At stage 0 the optimizer clips (learners/models/optimizer.py), so that it can skip a broken step.
        "gradient_clipping": config.grad_clip if config.zero_stage > 0 else 0.0,
        "bf16": {"enabled": bfloat16, "check_grad_overflow": True} if bfloat16 else {"enabled": False},
        "zero_optimization": {"stage": config.zero_stage},
    }
    extra = copy.deepcopy(config.deepspeed)
    refused = ("train_batch_size", "fp16", "amp", "optimizer", "scheduler")
    taken = [key for key in extra if key in refused or (key in ours and key != "zero_optimization")]
    zero = extra.pop("zero_optimization", {})
    if not isinstance(zero, dict):
        raise LearnerConfigError("deepspeed.zero_optimization: must be a mapping")
    offload = _offload(config, device)
    taken += [f"zero_optimization.{key}" for key in zero if key in {"stage", *offload}]
    if taken:
        raise LearnerConfigError(
            f"deepspeed: {', '.join(taken)}: set by the learner from dtype, zero_stage, lr, grad_clip, micro_tokens"
        )
    # Offload with torch's own AdamW is what we mean: DeepSpeed's CPU Adam compiles at start.
    return {
        "zero_force_ds_cpu_optimizer": False,
        **extra,
        **ours,
        "zero_optimization": {**zero, "stage": config.zero_stage, **offload},
    }


def _offload(config: LearnerConfig, device: str) -> dict[str, Any]:
    """DeepSpeed's keys below zero_optimization."""
    least = {"none": 0, "optimizer": 1, "parameters": 3}[config.offload]
    if config.zero_stage < least:
        raise LearnerConfigError(f"offload: {config.offload} needs zero_stage {least}{' or more' * (least < 3)}")
    keys = ("optimizer", "param")[: ("none", "optimizer", "parameters").index(config.offload)]
    pinned = {"pin_memory": True} if device == "cuda" else {}
    return {f"offload_{key}": {"device": "cpu", **pinned} for key in keys}
