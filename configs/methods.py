"""What a LearnerConfig means before any weight is loaded. No torch: `plan` checks it in no time."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from configs.schema.run import PREFERENCE_LOSSES, REFERENCE_LOSSES, LearnerConfig, LossConfig
from protocols.errors import UserError

_ANY = frozenset({"normalise", "constant"})
_POLICY_GRADIENT = _ANY | {"correction", "correction_low", "correction_high", "kl", "kl_estimator", "entropy"}
LOSS_USES: dict[str, frozenset[str]] = {
    "clip": _POLICY_GRADIENT | {"clip_low", "clip_high", "dual_clip"},
    "reinforce": _POLICY_GRADIENT,
    "sft": _ANY,
    "gspo": _POLICY_GRADIENT | {"clip_low", "clip_high"},
    "cispo": _POLICY_GRADIENT | {"clip_low", "clip_high"},
    "log_score": _ANY,
    "brier": _ANY,
    "dpo": frozenset({"beta", "sft"}),
    "smoothed_dpo": frozenset({"beta", "label_gamma", "sft"}),
    "ipo": frozenset({"tau", "sft"}),
    "kto": frozenset({"beta", "desirable_weight", "undesirable_weight", "sft"}),
    "simpo": frozenset({"beta", "gamma", "sft"}),
    "spin": frozenset({"scale", "sft"}),
    "sppo": frozenset({"eta", "label_gamma", "sft"}),
}
"""Loss kind -> the fields of LossConfig that it reads. Any other field set beside it has no effect."""

CORRECTION_USES: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "truncate": frozenset({"correction_high"}),
    "mask": frozenset({"correction_low", "correction_high"}),
    "reject": frozenset({"correction_low", "correction_high"}),
}
"""LossConfig.correction -> the bounds that it reads."""

NORMALISE = {
    **dict.fromkeys(("clip", "reinforce", "sft", "cispo"), "token"),
    **dict.fromkeys(("gspo", "log_score", "brier"), "sequence"),
}
"""What `normalise: auto` is for each loss of a token; preference losses are means over pairs."""

_EACH_GROUP = frozenset({"credit", "discount", "group_by"})
ADVANTAGE_USES: dict[str, frozenset[str]] = {
    **dict.fromkeys(("grpo", "dr_grpo", "rloo", "reinforce", "reinforce_pp_baseline", "hierarchical"), _EACH_GROUP),
    "reinforce_pp": frozenset({"credit", "discount"}),
    "role_ema": frozenset({"credit", "discount", "baseline_by", "decay"}),
    "gae": frozenset({"gamma", "lam"}),
}
"""Advantage kind -> the fields of AdvantageConfig that it reads (`discount` with `credit: turn` only)."""

SIGNAL_USES: dict[str, frozenset[str]] = {
    "advantage": frozenset(),
    "winners": frozenset({"threshold"}),
    "rejection": frozenset({"best"}),
    "reward_weighted": frozenset({"temperature"}),
    "truth": frozenset({"consistency"}),
}
"""Signal kind -> the fields of SignalConfig that it reads. Of AdvantageConfig, `truth` reads nothing and the others
but `advantage` read `_EACH_GROUP` only."""

SCORES = ("log_score", "brier")
"""Losses that score a judge's probabilities (learners/losses/scoring.py): what the signal `truth` is for, and nothing else."""

REFERENCE_USES: dict[str, frozenset[str]] = {
    "initial": frozenset(),
    "previous": frozenset({"every"}),
    "ema": frozenset({"decay"}),
}
"""Reference kind -> the fields of ReferenceConfig that it reads."""

KINDS: dict[str, dict[str, frozenset[str]]] = {
    "loss": LOSS_USES,
    "signal": SIGNAL_USES,
    "advantage": ADVANTAGE_USES,
    "reference": REFERENCE_USES,
}
"""Sections of LearnerConfig that have a kind."""

BETAS = (0.9, 0.999)
EPS = 1e-8


class LearnerConfigError(UserError):
    """Settings that no learner can run."""


def idle(config: LearnerConfig) -> Iterator[tuple[str, str, str]]:
    """(setting, why it has no effect, the setting that makes it so), dotted below `learner`. Kinds are known."""
    signal = config.signal.kind
    for part, uses in KINDS.items():
        section = getattr(config, part)
        if part in ("signal", "advantage") and config.loss.kind in PREFERENCE_LOSSES:
            for name in sorted({f.name for f in fields(section)} - _EACH_GROUP):
                yield f"{part}.{name}", f"with the loss {config.loss.kind!r}, which compares replies", "loss.kind"
            continue
        if part == "advantage" and signal != "advantage":
            read = frozenset() if signal == "truth" else _EACH_GROUP
            for name in sorted({f.name for f in fields(section)} - read):
                yield f"advantage.{name}", f"with the signal {signal!r}", "signal.kind"
            continue
        if part == "reference" and not needs_reference(config.loss):
            for field in fields(section):
                yield f"reference.{field.name}", "without kl: nothing compares with a reference", "loss.kl"
            continue
        read = uses[section.kind]
        why = f"on the {part} {section.kind!r}, which reads {', '.join(sorted(read)) or 'no other setting'}"
        for name in sorted({f.name for f in fields(section)} - {"kind"} - read):
            yield f"{part}.{name}", why, f"{part}.kind"
    loss = config.loss
    used = LOSS_USES[loss.kind]  # what is not has been named above
    for name in sorted(({"correction_low", "correction_high"} & used) - CORRECTION_USES[loss.correction]):
        yield f"loss.{name}", f"with correction: {loss.correction}", "loss.correction"
    if "constant" in used and normalisation(loss) != "constant":
        yield "loss.constant", f"with normalise: {normalisation(loss)}", "loss.normalise"
    if "kl" in used and loss.kl == 0:
        yield "loss.kl_estimator", "without kl", "loss.kl"
    if config.advantage.credit == "trajectory":
        yield "advantage.discount", "with credit: trajectory", "advantage.credit"


def needs_reference(config: LossConfig) -> bool:
    """Whether the loss reads `Sample.reference_logprobs_L`."""
    return config.kind in REFERENCE_LOSSES or (config.kl > 0 and "kl" in LOSS_USES[config.kind])


def normalisation(config: LossConfig) -> str:
    """token, sequence or constant, for losses of a token."""
    return NORMALISE[config.kind] if config.normalise == "auto" else config.normalise


def check_loss(config: LossConfig) -> None:
    """Raises LearnerConfigError for settings of a loss that contradict each other."""
    if 0 < config.dual_clip <= 1:
        raise LearnerConfigError(
            f"loss.dual_clip: {config.dual_clip:g} must be more than 1, or 0 for no bound"
        )
    if config.normalise == "constant" and config.constant < 1:
        raise LearnerConfigError("loss.constant: normalise: constant needs a number of tokens, 1 or more")
    low, high = config.correction_low, config.correction_high
    if config.correction in ("mask", "reject") and not low < 1 < high:
        raise LearnerConfigError(
            f"loss.correction_{'low' if low >= 1 else 'high'}: [{low:g}, {high:g}] must have 1 inside"
        )
    if config.correction == "truncate" and high < 1:
        raise LearnerConfigError(f"loss.correction_high: {high:g} must be 1 or more")


def check_reference(config: LearnerConfig) -> None:
    """Raises LearnerConfigError for a divergence from the policy itself, which is always 0, and for a reference that
    the loss was not made for."""
    kind = config.loss.kind
    if kind in ("spin", "sppo") and config.reference.kind != "previous":
        raise LearnerConfigError(
            f"reference.kind: {kind} compares with the policy of the iteration before, "
            f"not with {config.reference.kind!r}; valid: previous"
        )
    divergence = needs_reference(config.loss) and kind not in REFERENCE_LOSSES
    each_step = config.reference.kind == "previous" and config.reference.every == 1
    if divergence and each_step and config.epochs * config.minibatches == 1:
        raise LearnerConfigError(
            "reference.every: 1 with one optimizer step per batch leaves the policy nothing to differ from; "
            "valid: 2 or more, or more epochs or minibatches"
        )


def check_learner(config: LearnerConfig, device: str) -> None:
    """Raises LearnerConfigError("setting: what is wrong") for what no learner can run on `device`."""
    deepspeed_json(config, device)
    check_loss(config.loss)
    check_reference(config)
    check_signal(config)
    check_critic(config)
    if config.offload != "none" and device == "cpu":
        raise LearnerConfigError("offload: has no effect on the CPU")
    if config.lora and not config.lora.target_modules:
        raise LearnerConfigError("lora.target_modules: names no layer that gets an adapter")
    if config.packing != "none" and config.loss.kind in PREFERENCE_LOSSES:
        raise LearnerConfigError(f"packing: the loss {config.loss.kind!r} compares rows; valid: none")


def check_signal(config: LearnerConfig) -> None:
    """Raises LearnerConfigError where signal and loss do not understand each other."""
    signal, loss = config.signal.kind, config.loss.kind
    if signal == "truth" and loss not in SCORES:
        raise LearnerConfigError(
            f"loss.kind: {loss!r} cannot learn from the signal 'truth'; valid: {', '.join(SCORES)}"
        )
    if signal != "truth" and loss in SCORES:
        raise LearnerConfigError(f"loss.kind: {loss!r} scores probabilities; valid with signal: {{kind: truth}}")


POLICY_GRADIENT = tuple(kind for kind, uses in LOSS_USES.items() if _POLICY_GRADIENT <= uses)
"""Losses that weigh what was sampled by advantages."""


def check_critic(config: LearnerConfig) -> None:
    """Raises LearnerConfigError for a critic that nothing asks, and for advantages by a critic that there is not."""
    signal, loss = config.signal.kind, config.loss.kind
    asked = signal == "advantage" and config.advantage.kind == "gae"
    if config.critic is None:
        if asked and loss not in PREFERENCE_LOSSES:
            others = ", ".join(kind for kind in ADVANTAGE_USES if kind != "gae")
            raise LearnerConfigError(
                f"advantage.kind: gae needs a critic; valid: critic: {{}} beside it, or without one: {others}"
            )
        return
    if loss not in POLICY_GRADIENT:
        valid = ", ".join(POLICY_GRADIENT)
        raise LearnerConfigError(
            f"critic: the loss {loss!r} has no use for one; valid: no critic, or loss.kind: {valid}"
        )
    if not asked:
        what = f"signal {signal!r}" if signal != "advantage" else f"advantage {config.advantage.kind!r}"
        raise LearnerConfigError(
            f"critic: the {what} does not ask it; valid: no critic, or advantage: {{kind: gae}}"
        )


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
