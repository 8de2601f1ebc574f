"""Receiver side of weight sync, inside vLLM's worker process.

vLLM's own transports (NCCL, CUDA IPC) need GPUs on both sides. This one is a memory file that the engine actor
fills and the workers of the same node read, so it works alike for CPU and GPU workers. vLLM imports this module
in each worker because the engine names `WorkerExtension` as its `worker_extension_cls`; that registers it.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

BACKEND = "memory_file"

Entry = tuple[str, Sequence[int], str, int, int]


@dataclass
class InitInfo(WeightTransferInitInfo):
    """Nothing to agree on: every update says where its bytes are."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """One bucket: `entries` as in `actors.messages.WeightBucket`, bytes in the memory file at `path`."""

    path: str
    entries: list[Entry]


class MemoryFileReceiver(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Loads checkpoint-format tensors through vLLM's layerwise reload, which also re-packs prepacked linears."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        pass

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        self.model.load_weights(read_tensors(update_info.path, update_info.entries, self.device))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        # A tied head got its new values through the embedding, not through its own loader, so on CPU its
        # packed copy is still the old one. Packing again is idempotent.
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        pass


def read_tensors(path: str, entries: Sequence[Entry], device: torch.device) -> list[tuple[str, torch.Tensor]]:
    """Copies of the tensors in the memory file at `path`. Copies, because the reload keeps tensors until their
    layer is complete, while the sender reuses the file for its next bucket."""
    tensors = []
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), os.fstat(file.fileno()).st_size) as view:
        raw = torch.frombuffer(view, dtype=torch.uint8)
        for name, shape, dtype, start, size in entries:
            copy = raw[start : start + size].to(device, copy=True)
            tensors.append((name, copy.view(getattr(torch, dtype)).reshape(tuple(shape))))
        del raw
    return tensors


class WorkerExtension:
    """Empty on purpose: naming it makes vLLM's workers import this module."""


WeightTransferEngineFactory.register_engine(BACKEND, MemoryFileReceiver)
