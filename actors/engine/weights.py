"""The receiver of weight updates inside vLLM's workers.

vLLM's own transports (NCCL, CUDA IPC) need GPUs on both sides. This one passes buckets of bytes as arguments of the
official update call: by reference when the worker runs in the engine's process, else through vLLM's queue to its
workers. It works on CPU and GPU alike. The engine names `WorkerExtension` as vLLM's `worker_extension_cls`, so the
workers import this module, which registers the receiver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from actors.engine.adapter import Base, layers_of

BACKEND = "buckets"

Entry = tuple[str, Sequence[int], str, int, int]


@dataclass
class InitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """Empty: sender and receiver need no setup."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """The fields of one `actors.serving.messages.WeightBucket`."""

    entries: list[Entry]
    data: np.ndarray
    base: str = ""
    scaling: float = 0.0


class BucketReceiver(WeightTransferEngine[InitInfo, UpdateInfo]):  # type: ignore[misc]
    """Loads checkpoint-format tensors through vLLM's layerwise reload, which also repacks prepacked linear layers.

    It collects an adapter and merges it at the end of the update. The first adapter of a base model loads all weights;
    later ones of the same layers load only the weights that they change.
    """

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        self.base: Base | None = None
        """Base model of the adapter that the weights contain."""
        self.layers: set[str] = set()
        """Layers that this adapter changed."""

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)
        self.adapter: dict[str, torch.Tensor] = {}

    def receive_weights(self, update_info: UpdateInfo) -> None:
        tensors = read_tensors(update_info.entries, update_info.data, self.device)
        if update_info.base:
            self.adapter |= dict(tensors)
            self.source, self.scaling = update_info.base, update_info.scaling
        else:
            self.model.load_weights(tensors)
            self.base = None

    def load_merged(self) -> None:
        """Loads the weights that the collected adapter changes; all of them when its base model or layers are new."""
        layers = layers_of(self.adapter)
        names: list[str] | None = None
        if self.base is not None and self.base.name == self.source and self.layers == layers:
            names = self.base.around(layers)
        else:
            self.base, self.layers = Base(self.source), layers
        self.model.load_weights(self.base.merged(names, self.adapter, self.scaling, self.device))
        self.adapter = {}
        torn = [type(m).__name__ for m in self.model.modules() if names and half_loaded(m)]
        if torn:
            raise RuntimeError(f"vLLM fuses what was sent in part ({torn[0]}); valid: learner.lora.push: merged")

    def finish_weight_update(self) -> None:
        if self.adapter:
            self.load_merged()
        finalize_layerwise_reload(self.model, self.model_config)
        # A tied head receives its values through the embedding, not through its own loader, so its packed copy on CPU
        # is still the old one. Packing is idempotent.
        for module in self.model.modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)

    def shutdown(self) -> None:
        pass


def read_tensors(
    entries: Sequence[Entry], data: np.ndarray, device: torch.device
) -> list[tuple[str, torch.Tensor]]:
    """Copies of the tensors in a bucket: its bytes may lie in Ray's object store, and the reload keeps tensors
    alive."""
    return [
        (
            name,
            torch.from_numpy(data[start : start + size].copy())
            .view(getattr(torch, dtype))
            .reshape(shape)
            .to(device),
        )
        for name, shape, dtype, start, size in entries
    ]


def half_loaded(layer: torch.nn.Module) -> bool:
    """Whether only a part of the layer's weights has been loaded; the rest would be uninitialised memory."""
    info = get_layerwise_info(layer)
    return bool(info.load_numel_total and 0 < info.load_numel < info.load_numel_total)


class WorkerExtension:
    """Empty: its name makes vLLM's workers import this module."""


WeightTransferEngineFactory.register_engine(BACKEND, BucketReceiver)
