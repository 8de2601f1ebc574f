"""What this machine has, and what a configuration asks of it. Without torch and Ray: `plan` is quick."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from configs.methods import REFERENCES, needs_reference
from configs.policies import as_served, opponents_in
from configs.schema.run import Device, LearnerConfig, ModelConfig, PolicyConfig, RunConfig

TINY_VOCABULARY = 600
"""Words and bytes of a tiny model's tokenizer, roughly: it is built from the job's tasks at the start."""
_SIZE_IN_NAME = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)b(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Machine:
    """Hardware offered to a run. Memory in bytes."""

    cpus: int
    memory: int
    gpus: int = 0
    gpu_memory: int = 0
    """Of the smallest GPU; 0 when unknown."""

    @classmethod
    def here(cls) -> Machine:
        """This machine, as far as the container and CUDA_VISIBLE_DEVICES let us use it."""
        gpus, gpu_memory = _gpus()
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return cls(cpus, min(memory, _container_limit() or memory), gpus, gpu_memory)


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
        learner = policy.learner
        if name in served:
            engine = policy.engine
            device = resolve_device(engine.device, machine)
            gpus = engine.gpus * engine.tensor_parallel if device == "cuda" else 0.0
            memory = engine_memory(policy, device, machine)
            found.append(Need(name, "engine", engine.replicas, device, gpus, memory))
        if policy.trained or (policy.warm_start and policy.warm_start.steps):
            device = resolve_device(learner.device, machine)
            gpus = learner.gpus if device == "cuda" else 0.0
            part: Literal["learner", "warm start"] = "learner" if policy.trained else "warm start"
            found.append(
                Need(name, part, learner.ranks, device, gpus, learner_memory(policy, learner, device))
            )
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


def engine_memory(policy: PolicyConfig, device: str, machine: Machine) -> int:
    """Bytes of one engine: on CUDA the share vLLM takes; on CPU the process, weights and KV cache."""
    if device == "cuda":
        return int(policy.engine.gpu_memory_utilization * machine.gpu_memory)
    count = parameters(policy.model)
    width = 2 if policy.engine.dtype in ("bfloat16", "float16") else 4
    # 0.9 GB: an idle vLLM CPU engine, measured
    return 0 if count is None else int(0.9 * 2**30) + width * count + policy.engine.kv_cache_mb * 2**20


def learner_memory(policy: PolicyConfig, learner: LearnerConfig, device: str) -> int:
    """Bytes of one rank: weights, gradients and Adam's two moments (ZeRO, Rajbhandari 2020, figure 1), of a critic's
    head too, and a whole reference where the loss compares with one.

    Activations are left out (`micro_tokens` bounds them), and the few numbers of an adapter.
    """
    count = parameters(policy.model)
    if count is None:
        return 0
    auto_half = learner.dtype == "auto" and device == "cuda" and learner.zero_stage > 0
    half = learner.dtype == "bfloat16" or auto_half
    weights, grads, states = (2, 2, 12) if half else (4, 4, 8)
    head = width(policy.model) + 1 if learner.critic else 0
    frozen, trained = (count, head) if learner.lora else (0, count + head)
    shard = [learner.ranks if learner.zero_stage >= stage else 1 for stage in (3, 2, 1)]
    base = int(0.6 * 2**30) if device == "cpu" else 2**30  # an idle rank: torch and DeepSpeed, or CUDA
    if policy.trained and needs_reference(learner.loss):
        base += trained * (weights + (4 if half and "average" in REFERENCES.needs(learner.reference.kind) else 0))
        if learner.zero_stage == 3:  # below, the frozen weights of both are the same ones
            base += frozen * weights
    return base + (frozen + trained) * weights // shard[0] + trained * grads // shard[1] + trained * states // shard[2]


def parameters(model: ModelConfig) -> int | None:
    """Number of parameters: computed for tiny and local models, else read off the name ("7B"), else None."""
    if not model.path:
        shape = (model.hidden_size, model.layers, model.heads, model.kv_heads, model.intermediate_size)
        return _count(TINY_VOCABULARY, *shape, tied=model.tie_embeddings)
    hf = _read_config(model.path)
    if "hidden_size" in hf and "vocab_size" in hf and not any("expert" in key for key in hf):
        heads = hf["num_attention_heads"]
        return _count(
            hf["vocab_size"], hf["hidden_size"], hf["num_hidden_layers"], heads,
            hf.get("num_key_value_heads") or heads, hf["intermediate_size"],
            head_dim=hf.get("head_dim"), tied=hf.get("tie_word_embeddings", False),
        )  # fmt: skip
    named = _SIZE_IN_NAME.search(Path(model.path).name)
    return int(float(named[1]) * 1e9) if named else None


def width(model: ModelConfig) -> int:
    """Numbers in a hidden state; 0 where nothing but the model's name is known."""
    return int(_read_config(model.path).get("hidden_size", 0)) if model.path else model.hidden_size


def _count(
    vocabulary: int, hidden: int, layers: int, heads: int, kv_heads: int, mlp: int,
    head_dim: int | None = None, tied: bool = False,
) -> int:  # fmt: skip
    width = head_dim or hidden // max(heads, 1)
    layer = hidden * width * (2 * heads + 2 * kv_heads) + 3 * hidden * mlp + 2 * hidden
    return vocabulary * hidden * (1 if tied else 2) + layers * layer + hidden


def _read_config(path: str) -> dict[str, Any]:
    """What `_find_config` finds; {} where that is nothing."""
    config = _find_config(path)
    return {} if config is None else json.loads(config.read_text())


def _find_config(path: str) -> Path | None:
    """config.json of a local folder, or of a model in the Hugging Face cache."""
    local = Path(path).expanduser() / "config.json"
    if local.is_file():
        return local
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    snapshots = home / "hub" / ("models--" + path.strip("/").replace("/", "--")) / "snapshots"
    return next(iter(sorted(snapshots.glob("*/config.json"))), None)
