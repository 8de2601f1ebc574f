"""Several LoRA adapters on one base model, by vLLM's own LoRA support: each request names its adapter.

vLLM loads an adapter from a folder in peft's format. The engine writes a pushed adapter to memory (/dev/shm), loads
it in place of the adapter of that name, and removes the folder. It empties the whole prefix cache too, because vLLM
distinguishes cached prompts by the adapter's name, not by its version.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.engine.adapter import B, layers_of
from actors.serving.messages import WeightBucket

SHM = Path("/dev/shm")


class Adapters:
    """The adapters that an engine holds. `versions`: adapter -> policy version."""

    def __init__(self) -> None:
        self.versions: dict[str, int] = {}
        self._requests: dict[str, Any] = {}

    def request(self, name: str) -> Any:
        """vLLM's LoRARequest of an adapter; None for the base model and for an adapter that has not been pushed yet,
        which is zero."""
        return self._requests.get(name)

    def load(self, llm: Any, name: str, version: int, buckets: Sequence[WeightBucket]) -> None:
        """Replaces the adapter `name`. Call on the engine thread, between two steps."""
        from vllm.lora.request import LoRARequest

        number = list(self._requests).index(name) + 1 if name in self._requests else len(self._requests) + 1
        with tempfile.TemporaryDirectory(dir=SHM if SHM.is_dir() else None) as folder:
            write_adapter(buckets, Path(folder))
            loaded = llm.add_lora(LoRARequest(name, number, folder, load_inplace=True))
        assert loaded, f"vLLM did not take the adapter {name!r}"
        # vLLM never reads the path again: it has room for all adapters, so it evicts and reloads none.
        self._requests[name] = LoRARequest(name, number, name)
        self.versions[name] = version


def write_adapter(buckets: Sequence[WeightBucket], folder: Path) -> None:
    """Writes the adapter in `buckets` to `folder` in peft's format."""
    from safetensors.torch import save_file

    from actors.engine.weights import read_tensors

    held: list[Any] = list(buckets)
    tensors = {name: tensor for bucket in held for name, tensor in read_tensors(bucket.entries, bucket.data, "cpu")}
    rank = next(tensor.shape[1] for name, tensor in tensors.items() if name.endswith(B))
    targets = sorted({layer.rpartition(".")[2] for layer in layers_of(tensors)})
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", "r": rank, "target_modules": targets,
        "lora_alpha": buckets[0].scaling * rank, "base_model_name_or_path": buckets[0].base,
    }  # fmt: skip
    save_file({f"base_model.model.{name}": tensor for name, tensor in tensors.items()},
              folder / "adapter_model.safetensors", metadata={"format": "pt"})  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(settings))
