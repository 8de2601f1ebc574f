"""Merges a LoRA adapter into an engine's weights, W + scaling B A, so that only A and B travel.

This module uses torch but not vllm. It reads W from the folder of the base model whenever an adapter arrives; the
files stay memory-mapped, so they cost page cache but no memory of the engine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protocols.errors import UserError

if TYPE_CHECKING:
    import torch

A, B = ".lora_A.weight", ".lora_B.weight"
"""Suffixes of the adapter's parameters after the layer's name in the base model."""


def local_folder(name: str) -> Path:
    """The folder of a model, given as a folder or by the Hugging Face name of a cached model. Raises ValueError when
    there is no such model, or when it has no safetensors files, the only ones that can be read in parts."""
    folder = Path(name)
    if not folder.is_dir():
        from transformers.utils import cached_file

        try:  # all files of one version lie in one folder
            found = cached_file(name, "config.json", local_files_only=True)
        except OSError as error:
            raise UserError(f"there is no model {name!r} on this machine") from error
        assert found is not None, "transformers raises where there is none"
        folder = Path(found).parent
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{name} holds no *.safetensors; valid with it: learner.lora.push: merged")
    return folder


def same_folder(one: str, other: str) -> bool:
    """Whether both name the same model on this machine."""
    return local_folder(one).resolve() == local_folder(other).resolve()


class Base:
    """The weights of a base model, by name."""

    def __init__(self, name: str):
        self.name, self._folder = name, local_folder(name)

    @cached_property
    def _files(self) -> dict[str, Any]:
        """Parameter -> the open file that holds it, in the order of the files."""
        from safetensors import safe_open

        opened = [safe_open(str(path), framework="pt") for path in sorted(self._folder.glob("*.safetensors"))]
        return {name: file for file in opened for name in file.keys()}  # type: ignore[no-untyped-call]

    def around(self, layers: Collection[str]) -> list[str]:
        """The parameters of `layers` and of their siblings in the same modules: vLLM fuses some siblings (q, k and
        v; gate and up) and must load a fused layer as a whole."""
        parents = {layer.rpartition(".")[0] for layer in layers}
        return [name for name in self._files if name.rpartition(".")[0].rpartition(".")[0] in parents]

    def merged(
        self, names: Collection[str] | None, adapter: Mapping[str, torch.Tensor], scaling: float, device: torch.device
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields (name, tensor) of the parameters `names` (None: all), with `adapter` merged into its layers."""
        for name, file in self._files.items():
            if names is None or name in names:
                tensor = file.get_tensor(name).to(device)
                layer = name.removesuffix(".weight")
                if layer + A in adapter:
                    tensor = merge(tensor, adapter[layer + A], adapter[layer + B], scaling)
                yield name, tensor


def merge(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scaling: float) -> torch.Tensor:
    """W + scaling B A in the dtype of A. It repeats the learner's arithmetic (learners/models/lora.py) in float32,
    so the result equals, bit by bit, the merged weights that the learner would send."""
    return (weight.to(a.dtype).float() + scaling * (b.float() @ a.float())).to(a.dtype)


def layers_of(names: Collection[str]) -> set[str]:
    """The layers of an adapter, from its parameter names."""
    return {name.removesuffix(A).removesuffix(B) for name in names}


def check_adapter(shapes: Mapping[str, tuple[int, ...]], sent: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError unless each layer in `sent` is a layer of the base model and has A and B that fit it.
    `shapes` and `sent`: parameter -> shape, of the base model and of the adapter."""
    strange = sorted(name for name in sent if not name.endswith((A, B)))
    if strange:
        raise ValueError(f"update refused, no part of an adapter: {', '.join(strange[:3])}")
    for layer in sorted(layers_of(sent)):
        whole, a, b = shapes.get(layer + ".weight"), sent.get(layer + A), sent.get(layer + B)
        if whole is None:
            raise ValueError(f"update refused, the base model has no layer {layer}")
        if a is None or b is None:
            raise ValueError(f"update refused, of the adapter of {layer} {'A' if a is None else 'B'} is missing")
        if len(a) != 2 or len(b) != 2 or (b[0], a[1]) != whole or b[1] != a[0]:
            raise ValueError(f"update refused, A {a} and B {b} do not fit {layer}, which has the shape {whole}")
