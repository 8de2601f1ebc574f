"""Low-rank adapters (LoRA, arXiv 2106.09685) by peft, and what others see of a model that has some.

An adapted model is the plain one with other layers in it: their `base_layer` weights W are frozen, and what is trained
are A and B of W + alpha / rank * B A. Exports and later stages get that sum under W's own name; engines get it too, or
A and B, of which they make the same sum (`push`).
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.methods import LearnerConfigError
from configs.schema.run import LoraConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

ADAPTER = "adapter"
"""Folder of the adapter beside or inside what is saved, in peft's own format."""
_NAME = "default"


@dataclass(frozen=True)
class Piece:
    """One parameter of the plain model. `value` may be called while `parameters` are whole (ZeRO-3 gathers them)."""

    name: str
    parameters: list[Any]
    value: Callable[[], Tensor]


def add_adapter(lm: nn.Module, config: LoraConfig, seed: int) -> Any:
    """Puts adapters into `lm`, in place, and freezes all else; peft's view of it. A is drawn from `seed`, B is zero:
    at first nothing changes. Raises LearnerConfigError for modules that the model does not have."""
    import peft
    import torch

    named = [(name.rpartition(".")[2], module) for name, module in lm.named_modules()]
    linear = {name for name, module in named if isinstance(module, torch.nn.Linear)}
    linear -= {"lm_head"}  # may be tied to the embeddings, which would be changed behind its back
    unknown = sorted(set(config.target_modules) - linear)
    if unknown:
        raise LearnerConfigError(
            f"lora.target_modules: {type(lm).__name__} has no linear {', '.join(unknown)}; "
            f"valid: {', '.join(sorted(linear))}"
        )
    settings = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=list(config.target_modules),
        lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return peft.get_peft_model(lm, settings, autocast_adapter_dtype=False)


def with_the_weights_of(lm: nn.Module) -> Any:
    """A model of its own, into which another adapter can be put, with the very parameters of `lm`: they are not
    copied."""
    return copy.deepcopy(lm, {id(parameter): parameter for parameter in lm.parameters()})


def pieces(lm: nn.Module) -> Iterator[Piece]:
    """Every parameter under the name that it has in the plain model's checkpoint, adapters merged. Tied ones once."""
    adapted = {id(m.base_layer.weight): m for m in lm.modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")}
    for name, parameter in lm.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            continue
        plain, layer = name.replace(".base_layer.", "."), adapted.get(id(parameter))
        if layer is None:
            yield Piece(plain, [parameter], parameter.detach)
        else:
            parts = [parameter, layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight]
            yield Piece(plain, parts, partial(_merged, layer))


def _merged(layer: Any) -> Tensor:
    """W + scaling * B A, in float32 on the way."""
    weight = layer.base_layer.weight.detach()
    a, b = (part[_NAME].weight.detach().float() for part in (layer.lora_A, layer.lora_B))
    merged: Tensor = (weight.float() + layer.scaling[_NAME] * (b @ a)).to(weight.dtype)
    return merged


def adapter_parameters(lm: nn.Module) -> list[Any]:
    """What is trained of an adapted model."""
    return [parameter for parameter in lm.parameters() if parameter.requires_grad]


def parts(lm: nn.Module) -> list[tuple[str, Any]]:
    """A and B of every adapted layer, each under that layer's name in the plain model (actors/engine/adapter.py)."""
    named = lm.named_parameters()
    return [(name.replace(f".{_NAME}.", "."), p) for name, p in named if ".lora_A." in name or ".lora_B." in name]


def leave_out_frozen(model: nn.Module) -> None:
    """From now on `model.state_dict()` holds what is trained and buffers only. DeepSpeed leaves out frozen parameters
    by their names, but a head tied to the embeddings has two."""

    def drop(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if not parameter.requires_grad:
                state.pop(prefix + name, None)

    model.register_state_dict_post_hook(drop)


def save_adapter(adapted: Any, folder: Path) -> None:
    """The adapter in peft's format, for `PeftModel.from_pretrained`. `adapted`: what `add_adapter` returned."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    save_file(whole, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    adapted.peft_config[_NAME].save_pretrained(folder)


def merge(base: str | Path, adapter: str | Path, out: str | Path, trust_remote_code: bool = False) -> None:
    """The model in `base` with the adapter of a folder merged into it, in Hugging Face format, without DeepSpeed.
    The weights are bit by bit those that the learner of that adapter sent to its engines (in float32)."""
    import torch
    from peft import PeftModel

    from learners.models.token_model import load_lm

    lm = load_lm(base, torch.float32, trust_remote_code)
    PeftModel.from_pretrained(lm, str(adapter), autocast_adapter_dtype=False)
    save_plain(lm, Path(out), {piece.name: piece.value().clone() for piece in pieces(lm)}, str(base))


def save_plain(lm: Any, folder: Path, state: dict[str, Tensor], source: str) -> None:
    """`state`, names as in a plain model, in Hugging Face format with the tokenizer files of `source`."""
    from learners.models.tiny import copy_tokenizer

    lm.save_pretrained(folder, state_dict=state)
    copy_tokenizer(source, folder)


def take_out(folder: Path, out: Path, base: str = "", trust_remote_code: bool = False) -> str:
    """The weights of one policy in a checkpoint, as a Hugging Face folder `out`; returns what its learner starts from
    before it loads the state: with an adapter the plain model that it belongs to (`base`, else as the checkpoint
    names it), else `out`."""
    facts = json.loads((folder / "state" / "learner.json").read_text())
    if facts.get("lora"):
        base = base or str(facts["base"])
        merge(base, folder / "state" / ADAPTER, out, trust_remote_code)
        return base
    shutil.copytree(folder / "hf", out, dirs_exist_ok=True)
    return str(out)
