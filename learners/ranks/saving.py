"""What a rank writes to disk and takes up again: the half of LearnerRank that knows files."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.methods import LearnerConfigError
from configs.schema.run import LearnerConfig
from learners.models.lora import ADAPTER, adapter_parameters, pieces, save_adapter, save_plain
from learners.ranks.reshard import CLIENT_STATE, TAG, convert, place

if TYPE_CHECKING:
    from learners.models.reference import Reference

STATE, FACTS = "state", "learner.json"


class Saving(ABC):
    """Mixed into LearnerRank (learners/ranks/rank.py), which has what is declared here. All ranks call every method."""

    rank: int
    world: int
    config: LearnerConfig
    dtype_name: str
    model_dir: str
    updates: int
    micro_tokens: int
    engine: Any
    adamw: Any
    adapted: Any
    reference: Reference | None

    @abstractmethod
    def _lm(self) -> Any:
        """The Hugging Face model."""

    @abstractmethod
    def _gathered(self, parameters: list[Any]) -> AbstractContextManager[Any]:
        """These parameters are whole inside, on all ranks."""

    def save(self, folder: str, extra: dict[str, Any] | None = None) -> None:
        """Everything that `load` needs to go on bit by bit, into `folder` (driver/checkpoint.py makes
        that atomic). `extra` is returned by `load` and must be JSON. Several nodes: a shared folder. With LoRA
        without the frozen weights, and with the adapter in peft's format beside."""
        lora = self.adapted is not None
        client = dict(CLIENT_STATE)
        self.engine.save_checkpoint(folder, STATE, client, save_latest=False, exclude_frozen_parameters=lora)
        if lora:
            with self._gathered(adapter_parameters(self._lm())):
                if self.rank == 0:
                    save_adapter(self.adapted, Path(folder, ADAPTER))
        if self.rank == 0:
            facts = {**self._facts(), "base": self.model_dir, "updates": self.updates, "extra": extra or {}}
            facts["micro_tokens"] = self.micro_tokens
            if self.reference is not None:
                self.reference.save(folder)
                facts["reference"] = self.reference.facts()
            Path(folder, FACTS).write_text(json.dumps(facts, indent=1))

    def _facts(self) -> dict[str, Any]:
        """What has to be the same where a state is taken up, but for the number of ranks."""
        lora = asdict(self.config.lora) if self.config.lora else None
        if lora is not None:
            del lora["push"]  # how it travels may change
        shape = {"ranks": self.world, "zero_stage": self.config.zero_stage, "dtype": self.dtype_name}
        return {**shape, "lora": lora, "critic": "a value head" if self.config.critic else None}

    def load(self, folder: str, scratch: str = "") -> dict[str, Any]:
        """Takes up what `save` wrote and returns its `extra`. Bit by bit as it was, unless another number of ranks
        saved it: then sums have another order. `scratch`: a folder for what has to be converted, on several nodes a
        shared one. Raises LearnerConfigError when that learner had another ZeRO stage, dtype, adapter or reference."""
        from learners.models.reference import check_saved

        facts = json.loads(Path(folder, FACTS).read_text())
        for key, value in self._facts().items():
            if key != "ranks" and facts.get(key) != value:
                raise LearnerConfigError(f"{folder}: saved with {key} {facts.get(key)}, this learner has {value}")
        check_saved(folder, facts.get("reference"), self.reference)
        whole = self.adapted is None
        if facts["ranks"] == self.world or self.config.zero_stage == 0:
            path, _ = self.engine.load_checkpoint(folder, tag=STATE, load_module_strict=whole)
        else:
            path = self._load_sliced(folder, scratch or tempfile.gettempdir())
        if path is None:
            raise FileNotFoundError(f"{folder}: holds no learner state")
        if self.reference is not None:
            self.reference.load(folder, facts["reference"])
        self.updates = facts["updates"]
        if self.config.micro_tokens == "auto":  # sums in the same order as before, also on another machine
            self.micro_tokens = facts.get("micro_tokens", self.micro_tokens)
        extra: dict[str, Any] = facts["extra"]
        return extra

    def _load_sliced(self, folder: str, scratch: str) -> str | None:
        """A state that another number of ranks cut into slices (learners/ranks/reshard.py)."""
        from torch import distributed as dist

        out = place(folder, scratch)
        if self.rank == 0:
            convert(Path(folder, STATE), out)
        dist.barrier()
        self.engine._config.load_universal_checkpoint = True  # read by load_checkpoint only
        try:
            path, _ = self.engine.load_checkpoint(str(out), tag=TAG)
        finally:
            self.engine._config.load_universal_checkpoint = False
        for state in filter(None, self.adamw.state.values()):
            # ZeRO 3 has given all groups one and the same count of steps.
            state["step"] = copy.deepcopy(state["step"])
        dist.barrier()
        if self.rank == 0:
            shutil.rmtree(out)
        sliced: str | None = path
        return sliced

    def save_hf(self, folder: str) -> None:
        """The model in Hugging Face format (safetensors), with the tokenizer files it came with; an adapter merged, and
        once more by itself in `adapter`."""
        found = list(pieces(self._lm()))
        with self._gathered([p for piece in found for p in piece.parameters]):
            if self.rank == 0:
                state = {piece.name: piece.value().cpu().clone() for piece in found}
                saved = self._lm().state_dict()
                state |= {name: b.cpu() for name, b in self._lm().named_buffers() if name in saved}
                save_plain(self._lm(), Path(folder), state, self.model_dir)
                if self.adapted is not None:
                    save_adapter(self.adapted, Path(folder, ADAPTER))
