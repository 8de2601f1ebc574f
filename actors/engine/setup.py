"""Builds a vLLM LLMEngine from an EngineConfig, on CPU or CUDA."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from configs.schema.run import EngineConfig
from protocols.errors import UserError

NEEDED = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # vLLM in this process
}
NEEDED_ON_CPU = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # The first call with logprobs would otherwise compile for 18 s, even under enforce_eager.
    # (TORCH_COMPILE_DISABLE is read too early: it does nothing where torch was imported before.)
    "TORCHDYNAMO_DISABLE": "1",
}
DEFAULTS = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
"""Environment variables that the user may override."""


def build_llm(model_dir: str, config: EngineConfig, seed: int) -> tuple[Any, str]:
    """Returns the engine and its device, "cpu" or "cuda". Raises ValueError for settings that do not fit the
    machine."""
    cuda = resolve_cuda(config.device)
    os.environ.update({**DEFAULTS, **os.environ, **NEEDED})
    if not cuda:
        os.environ.update(NEEDED_ON_CPU)
        limit_threads(config.threads)
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.llm_engine import LLMEngine

    if current_platform.is_cpu() == cuda:
        wants, has = (
            ("cuda", "vllm-cpu") if cuda else ("cpu", "the CUDA build of vllm, or no device it can use")
        )
        raise UserError(f"engine.device is {wants}, but installed is {has}")
    settings = engine_args(model_dir, config, seed, cuda)
    unknown = sorted(set(config.extra) - set(EngineArgs.__dataclass_fields__))
    if unknown:
        raise UserError(f"engine.extra: vLLM's EngineArgs has no {', '.join(unknown)}")
    return LLMEngine.from_engine_args(EngineArgs(**settings)), "cuda" if cuda else "cpu"


def limit_threads(threads: int) -> None:
    """Limits OpenMP threads: two threads on two busy cores divide throughput by four, as each waits for the other. The
    variable reaches libraries that are not loaded yet, the call reaches torch in this thread."""
    import torch

    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def resolve_cuda(device: str) -> bool:
    """Whether `device` (auto, cpu, cuda) means CUDA in this process. Raises UserError when CUDA is missing."""
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"engine.device is {device!r}; valid are auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("engine.device is cuda, but torch sees no GPU in this process")
    return device == "cuda" or (device == "auto" and bool(torch.cuda.is_available()))


def engine_args(model_dir: str, config: EngineConfig, seed: int, cuda: bool) -> dict[str, Any]:
    """Keyword arguments for vLLM's EngineArgs; `config.extra` overrides the others."""
    from vllm.config import WeightTransferConfig

    dtype = ("bfloat16" if cuda else "float32") if config.dtype == "auto" else config.dtype
    common = {
        "model": model_dir,
        "dtype": dtype,
        "max_model_len": config.max_model_len or None,
        "max_num_seqs": config.max_num_seqs,
        "seed": seed,
        # Log probabilities after temperature, top-p and mask: those of the distribution sampled from.
        "logprobs_mode": "processed_logprobs",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "disable_log_stats": True,
        "worker_extension_cls": "actors.engine.weights.WorkerExtension",
        "weight_transfer_config": WeightTransferConfig(backend="buckets"),
    }
    if cuda:
        own: dict[str, Any] = {
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "tensor_parallel_size": config.tensor_parallel,
        }
        if config.tensor_parallel > 1:
            own["distributed_executor_backend"] = "mp"
    else:
        own = {
            "enforce_eager": True,
            "block_size": 32,  # the smallest on CPU, for most prefix-cache hits
            "kv_cache_memory_bytes": config.kv_cache_mb * 2**20,
        }
    return {**common, **own, **config.extra}


def checkpoint_shapes(model_dir: str) -> dict[str, tuple[int, ...]] | None:
    """Parameter name -> shape, from the safetensors files of a local folder; None when it has none."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(Path(model_dir).glob("*.safetensors")):
        with safe_open(str(path), framework="numpy") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    return shapes or None
