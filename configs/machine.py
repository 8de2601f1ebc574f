"""What this machine has, and what a configuration asks of it. Without torch and Ray: `plan` is quick."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from configs.memory import engine_memory, learner_memory
from configs.policies import as_served, learner_of, opponents_in
from configs.schema.run import Device, RunConfig


@dataclass(frozen=True, slots=True)
class Machine:
    """Hardware offered to a run. Memory in bytes."""

    cpus: int
    memory: int
    gpus: int = 0
    gpu_memory: int = 0
    """Of the smallest GPU; 0 when unknown."""
    shared_memory: int = 0
    """Free in /dev/shm; 0 when unknown."""

    @classmethod
    def here(cls) -> Machine:
        """This machine, as far as the container and CUDA_VISIBLE_DEVICES let us use it."""
        gpus, gpu_memory = _gpus()
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        shm = os.statvfs("/dev/shm") if os.path.isdir("/dev/shm") else None
        free = shm.f_bavail * shm.f_frsize if shm else 0
        return cls(cpus, min(memory, _container_limit() or memory), gpus, gpu_memory, free)


def _container_limit() -> int | None:
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        path = Path(name)
        if path.exists() and (text := path.read_text().strip()).isdigit():
            return int(text)
    return None


def _gpus() -> tuple[int, int]:
    """(usable GPUs, bytes of the smallest)."""
    nodes = sum(1 for p in Path("/dev").glob("nvidia*") if p.name.removeprefix("nvidia").isdigit())
    if not nodes:
        return 0, 0
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        out = subprocess.run(query, capture_output=True, text=True, timeout=5, check=True).stdout
        sizes = [int(line) * 2**20 for line in out.split() if line.isdigit()]
    except (OSError, subprocess.SubprocessError):
        sizes = []  # no driver tools in this container: the device nodes still count
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = len(sizes) or nodes
    if visible is not None:
        count = min(count, sum(1 for name in visible.split(",") if name.strip() not in ("", "-1")))
    return count, min(sizes, default=0) if count else 0


@dataclass(frozen=True, slots=True)
class Need:
    """One group of equal processes: the engines, the learner ranks or the warm-start ranks of a policy."""

    policy: str
    part: Literal["engine", "learner", "warm start"]
    count: int
    device: Literal["cpu", "cuda"]
    gpus: float
    """Per process."""
    memory: int
    """Bytes per process on its device: an estimate, 0 where the model's size is unknown."""


def resolve_device(device: Device, machine: Machine) -> Literal["cpu", "cuda"]:
    """`auto` is cuda where there is a GPU."""
    if device == "auto":
        return "cuda" if machine.gpus else "cpu"
    return device


def used_policies(config: RunConfig) -> list[str]:
    """Policies that somebody plays, in the order of their definition."""
    bound = [stage.roles for stage in config.stages.values()] + [
        arm.roles for arm in config.eval.arms.values()
    ]
    names = {name for roles in bound for name in roles.values()}
    names |= {name for stage in config.stages.values() for name in opponents_in(stage)}
    return [name for name in config.policies if name in names]


def needs(config: RunConfig, machine: Machine) -> list[Need]:
    """What the run starts: an engine group per used policy, a learner group per trained one."""
    found = []
    served = {config.policies[name].engine.share or name for name in used_policies(config)}
    for name, policy in config.policies.items():
        policy = as_served(config.policies, policy)
        if policy.kind != "lm":
            continue
        learner = learner_of(config.policies, name)
        if name in served:
            engine = policy.engine
            device = resolve_device(engine.device, machine)
            gpus = engine.gpus * engine.tensor_parallel if device == "cuda" else 0.0
            memory = engine_memory(policy, device, machine.gpu_memory)
            found.append(Need(name, "engine", engine.replicas, device, gpus, memory))
        if not learner.share and (policy.trained or (policy.warm_start and policy.warm_start.steps)):
            device = resolve_device(learner.device, machine)
            gpus = learner.gpus if device == "cuda" else 0.0
            part: Literal["learner", "warm start"] = "learner" if policy.trained else "warm start"
            memory = learner_memory(policy, learner, device, machine.memory)
            found.append(Need(name, part, learner.ranks, device, gpus, memory))
    return found


def peak(found: list[Need], device: str, of: Literal["gpus", "memory"]) -> float:
    """The most of it held at once. Engines and learners live side by side; on the CPU already while others are warm
    started (driver/warm_start.py), so that only a policy's own engine comes after its warm start. On GPUs one start
    comes after another, and the rest after them."""
    steady: dict[str, float] = {}
    warm: dict[str, float] = {}
    for need in found:
        if need.device == device:
            held = warm if need.part == "warm start" else steady
            held[need.policy] = held.get(need.policy, 0.0) + need.count * getattr(need, of)
    if device == "cpu":
        return sum(max(steady.get(policy, 0.0), warm.get(policy, 0.0)) for policy in {**steady, **warm})
    return max([sum(steady.values()), *warm.values()])
