"""At which steps of a stage a policy is updated: every one, in turns with others, or not before or after some step."""

from __future__ import annotations

from configs.schema.run import StageConfig, UpdateConfig

ALWAYS = UpdateConfig()


def due(update: UpdateConfig, step: int) -> bool:
    """Whether the policy is updated at this step of its stage (from 0)."""
    if step < update.after or (update.until and step >= update.until):
        return False
    return (step - update.after) % update.every < update.span


def due_in(stage: StageConfig, policy: str, step: int) -> bool:
    """The same for a policy that the stage updates."""
    return due(stage.update.get(policy, ALWAYS), step)


def says(update: UpdateConfig) -> str:
    """The schedule in words, for `plan`; empty where it is every step."""
    parts = []
    if update.span < update.every:
        parts.append(f"{update.span} of every {update.every} steps")
    if update.after:
        parts.append(f"from {update.after}")
    if update.until:
        parts.append(f"until {update.until}")
    return " ".join(parts)
