"""Whether there is as much hardware as a run asks for."""

from __future__ import annotations

from collections.abc import Iterator

from configs.machine import Machine, needs, peak
from configs.memory import object_store_bytes
from configs.reading.source import KeyPath
from configs.schema.run import RunConfig


def hardware_problems(config: RunConfig, machine: Machine) -> Iterator[tuple[KeyPath, str, str]]:
    """(setting, message, what would be valid)."""
    offered = config.cluster.gpus
    if offered > machine.gpus:
        message = f"{offered} GPUs to offer, there are {machine.gpus}"
        yield ("cluster", "gpus"), message, f"-1 to {machine.gpus}"
    gpus = machine.gpus if offered < 0 else min(offered, machine.gpus)
    found = needs(config, machine)
    asked = peak(found, "cuda", "gpus")
    if asked > gpus:
        wanted = [need for need in found if need.gpus]
        most = max(wanted, key=lambda need: need.count * need.gpus)
        parts = ", ".join(f"{n.policy} {n.part} {n.count * n.gpus:g}" for n in wanted)
        part = "engine" if most.part == "engine" else "learner"
        valid = "device: cpu, or fractions such as gpus: 0.25" if gpus else "device: cpu"
        yield ("policies", most.policy, part), f"{asked:g} GPUs are asked for ({parts}), there are {gpus}", valid
    store = object_store_bytes(config.policies.values())
    if not config.cluster.address and machine.shared_memory and store > machine.shared_memory:
        message = f"{_gib(store)} of /dev/shm are needed to push weights, {_gib(machine.shared_memory)} are free there"
        yield ("cluster",), message, "a larger /dev/shm (docker run --shm-size), or learner.lora with push: adapter"
    room = {"cpu": machine.memory, "cuda": gpus * machine.gpu_memory if asked <= gpus else 0}
    for device, there in room.items():
        memory = peak(found, device, "memory")
        if there and memory > there:
            most = max((n for n in found if n.device == device), key=lambda need: need.count * need.memory)
            message = f"about {_gib(memory)} of {device} memory are needed, there are {_gib(there)}"
            yield ("policies", most.policy), message, "smaller models, fewer replicas or ranks"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
