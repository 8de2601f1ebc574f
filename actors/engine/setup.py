"""How an EngineConfig becomes a running vLLM LLMEngine, on CPU or CUDA."""

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
"""What a user's environment may override."""


def build_llm(model_dir: str, config: EngineConfig, seed: int) -> tuple[Any, str]:
    """The engine and its device, "cpu" or "cuda". Raises ValueError for settings that do not fit the machine."""
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
    """OpenMP threads that wait for busy cores cost more than they give: with two on two busy cores, throughput
    falls to a quarter. The variable serves libraries not loaded yet, the call torch in this thread."""
    import torch

    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def resolve_cuda(device: str) -> bool:
    import torch

    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"engine.device is {device!r}; valid are auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("engine.device is cuda, but torch sees no GPU in this process")
    return device == "cuda" or (device == "auto" and torch.cuda.is_available())


def engine_args(model_dir: str, config: EngineConfig, seed: int, cuda: bool) -> dict[str, Any]:
    """Keyword arguments of vLLM's EngineArgs; `config.extra` wins."""
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
    """Name and shape of every parameter in the safetensors files of a local folder; None where there are none."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(Path(model_dir).glob("*.safetensors")):
        with safe_open(str(path), framework="numpy") as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    return shapes or None
