"""What keeps a run from what its settings promise: the same numbers every time (`deterministic`), the best of all
checkpoints (`track.best`)."""

from __future__ import annotations

from collections.abc import Iterator

from configs.machine import Machine, resolve_device, used_policies
from configs.reading.source import KeyPath
from configs.schema.run import RunConfig

ENGINE_KEYS = ("enable_prefix_caching", "max_num_seqs", "seed")
"""Of vLLM's settings, those that the promise rests on."""


Problem = tuple[KeyPath, str, str]
"""(setting, message, what would be valid)"""


def best_problems(config: RunConfig) -> Iterator[Problem]:
    """The arm by which checkpoints are compared has to be measured whenever one is written."""
    arm, every = config.track.best, config.track.save_every
    if not arm:
        return
    stages = [stage for stage in config.stages.values() if stage.eval_every]
    rounds = sorted({stage.eval_every for stage in stages if stage.eval_arm == arm})
    if not rounds:
        valid = ", ".join(sorted({stage.eval_arm for stage in stages})) or "none: no stage has eval_every"
        yield ("track", "best"), f"no stage measures an arm {arm!r} during training", valid
    elif not every or any(every % round for round in rounds):
        message = "checkpoints are compared by a measurement, so each is written where there is one"
        yield ("track", "save_every"), message, f"a multiple of {' and '.join(map(str, rounds))}"


def repeatable_problems(config: RunConfig, machine: Machine) -> Iterator[Problem]:
    """What depends on time or on a device whose sums do."""
    if not config.deterministic:
        return
    for name, stage in config.stages.items():
        if stage.max_staleness:
            message = "with deterministic: true no reply may depend on when new weights arrive"
            yield ("stages", name, "max_staleness"), message, "0"
    used = used_policies(config)
    for name, policy in config.policies.items():
        path = ("policies", name)
        if policy.kind == "remote" and name in used:
            yield (*path, "kind"), "what a remote policy replies is not deterministic", "lm or uniform"
        if policy.kind != "lm":
            continue
        parts = {"engine": policy.engine.device} if name in used else {}
        if policy.trained or policy.warm_start:
            parts["learner"] = policy.learner.device
        for part, device in parts.items():
            if resolve_device(device, machine) == "cuda":
                yield (*path, part, "device"), "CUDA's sums are not the same every time (deterministic: true)", "cpu"
        for key in sorted(set(policy.engine.extra) & set(ENGINE_KEYS)):
            yield (*path, "engine", "extra", key), "is set by deterministic: true", "remove it"
