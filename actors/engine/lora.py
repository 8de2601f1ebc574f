"""Adapters side by side on one base, by vLLM's own LoRA: each request names the one that it is computed with.

vLLM takes an adapter from a folder in peft's format. A pushed one is written to memory (/dev/shm), loaded in place of
the last of that name, and removed. Everybody's cached activations are dropped with it: vLLM tells cached prompts apart
by the adapter's name, not by its version.
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
    """Those that an engine holds. `versions`: of each, the policy step that it is of."""

    def __init__(self) -> None:
        self.versions: dict[str, int] = {}
        self._requests: dict[str, Any] = {}

    def request(self, name: str) -> Any:
        """vLLM's LoRARequest; None for the base, also before the first adapter of that name has come: it is zero."""
        return self._requests.get(name)

    def load(self, llm: Any, name: str, version: int, buckets: Sequence[WeightBucket]) -> None:
        """Puts an adapter in the place of its last version. In the engine thread, between two steps."""
        from vllm.lora.request import LoRARequest

        number = list(self._requests).index(name) + 1 if name in self._requests else len(self._requests) + 1
        with tempfile.TemporaryDirectory(dir=SHM if SHM.is_dir() else None) as folder:
            write_adapter(buckets, Path(folder))
            loaded = llm.add_lora(LoRARequest(name, number, folder, load_inplace=True))
        assert loaded, f"vLLM did not take the adapter {name!r}"
        # The path is never read again: there is room for all adapters, so none is thrown out and loaded anew.
        self._requests[name] = LoRARequest(name, number, name)
        self.versions[name] = version


def write_adapter(buckets: Sequence[WeightBucket], folder: Path) -> None:
    """The adapter in `buckets` in peft's format."""
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
