"""What no learner can run, and which of its settings have no effect. Both are read off the registered methods."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from configs.deepspeed import deepspeed_json
from configs.methods import (
    ADVANTAGES,
    CORRECTIONS,
    EACH_GROUP,
    LOSSES,
    SECTIONS,
    SIGNALS,
    LearnerConfigError,
    is_policy_gradient,
    is_preference,
    needs_reference,
    normalisation,
)
from configs.schema.run import LearnerConfig, LossConfig

Unused = tuple[str, str, str]
"""(setting, why it has no effect, the setting that makes it so), dotted below `learner`"""


def unused_settings(config: LearnerConfig) -> Iterator[Unused]:
    """The settings of a learner that have no effect. All kinds are registered ones."""
    for section in SECTIONS:
        read, why, switch = _read(config, section)
        for name in sorted({field.name for field in fields(getattr(config, section))} - read):
            yield f"{section}.{name}", why, switch
    loss = config.loss
    read = LOSSES.reads(loss.kind)  # what is not has been named above
    for name in sorted(({"correction_low", "correction_high"} & read) - CORRECTIONS.reads(loss.correction)):
        yield f"loss.{name}", f"with correction: {loss.correction}", "loss.correction"
    if "constant" in read and normalisation(loss) != "constant":
        yield "loss.constant", f"with normalise: {normalisation(loss)}", "loss.normalise"
    if "kl" in read and loss.kl == 0:
        yield "loss.kl_estimator", "without kl", "loss.kl"
    if config.advantage.credit == "trajectory":
        yield "advantage.discount", "with credit: trajectory", "advantage.credit"


def _read(config: LearnerConfig, section: str) -> tuple[frozenset[str], str, str]:
    """(settings of a section that are read, why no others are, the setting that decides it)."""
    loss, signal = config.loss.kind, config.signal.kind
    if section in ("signal", "advantage") and is_preference(loss):
        return EACH_GROUP, f"with the loss {loss!r}, which compares replies", "loss.kind"
    if section == "advantage" and "advantage" not in SIGNALS.needs(signal):
        read: frozenset[str] = frozenset() if "polls" in SIGNALS.needs(signal) else EACH_GROUP
        return read, f"with the signal {signal!r}", "signal.kind"
    if section == "reference" and not needs_reference(config.loss):
        return frozenset(), "without kl: nothing compares with a reference", "loss.kl"
    kind = getattr(config, section).kind
    read = SECTIONS[section].reads(kind)
    why = f"on the {section} {kind!r}, which reads {', '.join(sorted(read)) or 'no other setting'}"
    return read | {"kind"}, why, f"{section}.kind"


def check_learner(config: LearnerConfig, device: str) -> None:
    """Raises LearnerConfigError for what no learner can run on `device` (cpu or cuda)."""
    deepspeed_json(config, device)
    check_loss(config.loss)
    _check_reference(config)
    _check_signal(config)
    _check_critic(config)
    if config.offload != "none" and device == "cpu":
        raise LearnerConfigError("offload: has no effect on the CPU")
    if config.lora and not config.lora.target_modules:
        raise LearnerConfigError("lora.target_modules: names no layer that gets an adapter")
    if config.packing != "none" and is_preference(config.loss.kind):
        raise LearnerConfigError(f"packing: the loss {config.loss.kind!r} compares rows; valid: none")


def check_loss(config: LossConfig) -> None:
    """Raises LearnerConfigError for settings of a loss that contradict each other."""
    if 0 < config.dual_clip <= 1:
        raise LearnerConfigError(f"loss.dual_clip: {config.dual_clip:g} must be more than 1, or 0 for no bound")
    if config.normalise == "constant" and config.constant < 1:
        raise LearnerConfigError("loss.constant: normalise: constant needs a number of tokens, 1 or more")
    low, high, read = config.correction_low, config.correction_high, CORRECTIONS.reads(config.correction)
    if "correction_low" in read and not low < 1 < high:
        raise LearnerConfigError(
            f"loss.correction_{'low' if low >= 1 else 'high'}: [{low:g}, {high:g}] must have 1 inside"
        )
    if "correction_high" in read and high < 1:
        raise LearnerConfigError(f"loss.correction_high: {high:g} must be 1 or more")


def _check_reference(config: LearnerConfig) -> None:
    """Refuses a divergence from the policy itself, which is always 0, and a reference of the wrong kind."""
    kind, needs = config.loss.kind, LOSSES.needs(config.loss.kind)
    if "previous" in needs and config.reference.kind != "previous":
        raise LearnerConfigError(
            f"reference.kind: {kind} compares with the policy of the iteration before, "
            f"not with {config.reference.kind!r}; valid: previous"
        )
    divergence = needs_reference(config.loss) and "reference" not in needs
    each_step = config.reference.kind == "previous" and config.reference.every == 1
    if divergence and each_step and config.epochs * config.minibatches == 1:
        raise LearnerConfigError(
            "reference.every: 1 with one optimizer step per batch leaves the policy nothing to differ from; "
            "valid: 2 or more, or more epochs or minibatches"
        )


def _check_signal(config: LearnerConfig) -> None:
    """Refuses a signal and a loss that cannot work together."""
    signal, loss = config.signal.kind, config.loss.kind
    polls, targets = "polls" in SIGNALS.needs(signal), "targets" in LOSSES.needs(loss)
    if polls and not targets:
        valid = ", ".join(name for name in LOSSES if "targets" in LOSSES.needs(name))
        raise LearnerConfigError(f"loss.kind: {loss!r} cannot learn from the signal {signal!r}; valid: {valid}")
    if targets and not polls:
        raise LearnerConfigError(f"loss.kind: {loss!r} scores probabilities; valid with signal: {{kind: truth}}")


def _check_critic(config: LearnerConfig) -> None:
    """Refuses a critic that nothing asks, and advantages from a critic that does not exist."""
    signal, loss, kind = config.signal.kind, config.loss.kind, config.advantage.kind
    asked = "advantage" in SIGNALS.needs(signal) and "critic" in ADVANTAGES.needs(kind)
    if config.critic is None:
        if asked and not is_preference(loss):
            others = ", ".join(name for name in ADVANTAGES if "critic" not in ADVANTAGES.needs(name))
            raise LearnerConfigError(
                f"advantage.kind: {kind} needs a critic; valid: critic: {{}} beside it, or without one: {others}"
            )
        return
    if not is_policy_gradient(loss):
        valid = ", ".join(name for name in LOSSES if is_policy_gradient(name))
        raise LearnerConfigError(
            f"critic: the loss {loss!r} has no use for one; valid: no critic, or loss.kind: {valid}"
        )
    if not asked:
        what = f"advantage {kind!r}" if "advantage" in SIGNALS.needs(signal) else f"signal {signal!r}"
        raise LearnerConfigError(
            f"critic: the {what} does not ask it; valid: no critic, or advantage: {{kind: gae}}"
        )
