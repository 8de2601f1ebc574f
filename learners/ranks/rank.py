"""One rank of one policy's learner: the only file that imports deepspeed.

Torch and DeepSpeed are imported inside methods, after the process has been told which accelerator it has.
`learners/ranks/group.py` makes this class a Ray actor; it also runs by itself as a group of one.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from configs.deepspeed import BETAS, EPS, deepspeed_json, resolve_dtype
from configs.memory import MOST_TOKENS
from configs.methods import LearnerConfigError, needs_reference
from configs.schema.run import LearnerConfig
from learners.models.lora import add_adapter, leave_out_frozen, parts, pieces, with_the_weights_of
from learners.ranks.saving import Saving
from learners.ranks.training import Training
from learners.weights import Bucket, bucket_names, pack
from protocols.extension import load_plugins

if TYPE_CHECKING:
    from learners.models.reference import Reference
    from learners.models.token_model import Recomputation


class LearnerRank(Training, Saving):
    """Call every method on all ranks, in the same order: most of them communicate.

    `model_dir`: Hugging Face folder or name. `device`: "cpu" or "cuda". `timeout_s`: how long a rank waits
    for another before it gives up. Then `open_store` on rank 0 and `connect` on all.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        model_dir: str,
        config: LearnerConfig,
        seed: int = 0,
        device: str = "cpu",
        trust_remote_code: bool = False,
        timeout_s: float = 300.0,
        plugins: Sequence[str] = (),
    ) -> None:
        load_plugins(plugins)
        self.rank, self.world, self.config, self.seed = rank, world, config, seed
        self.device_kind, self.trust_remote_code = device, trust_remote_code
        self.timeout = timedelta(seconds=timeout_s)
        self.settings = deepspeed_json(config, device)
        self.dtype_name = resolve_dtype(config, device)
        self.model_dir = model_dir
        self.micro_tokens = MOST_TOKENS[device] if config.micro_tokens == "auto" else config.micro_tokens
        """Tokens per forward pass: the setting, or what was found to fit."""
        self.updates = 0
        """Optimizer steps since the optimizer was last reset: what learning rate warm-up counts."""
        self.reference: Reference | None = None
        self.recomputation: Recomputation | None = None
        self.host: LearnerRank | None = None
        self.base: Any = None
        """With an adapter: the plain model, whose weights other learners in this process share."""
        self.adapted: Any = None
        """peft's view of a model with an adapter."""
        # Ray shows a CUDA rank exactly one GPU, number 0.
        local = 0 if device == "cuda" else rank
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(local))
        os.environ.update(DS_ACCELERATOR=device, OMP_NUM_THREADS=str(config.threads))

    def open_store(self, host: str = "127.0.0.1") -> tuple[str, int]:
        """Rank 0: opens the meeting point on a free port of `host` and returns (host, port)."""
        from torch import distributed as dist

        self.store = dist.TCPStore(
            host, 0, self.world, is_master=True, wait_for_workers=False, timeout=self.timeout
        )
        return host, self.store.port

    def connect(self, host: str, port: int) -> None:
        """Joins the other ranks and loads the model. Raises LearnerConfigError for an unfit model."""
        import torch
        from torch import distributed as dist

        if self.device_kind == "cpu":
            torch.set_num_threads(self.config.threads)
        os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port))
        # DeepSpeed's own groups ignore the timeout of init_process_group; without this a hung rank hangs all.
        dist.distributed_c10d.default_pg_timeout = self.timeout
        store = self.store if self.rank == 0 else dist.TCPStore(host, port, self.world, timeout=self.timeout)
        backend = "nccl" if self.device_kind == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=store, rank=self.rank, world_size=self.world, timeout=self.timeout
        )

        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it compiles C++ for minutes
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
        self.device = torch.device(self.device_kind, 0) if self.device_kind == "cuda" else torch.device("cpu")
        self._build(self.model_dir)

    def join(self, host: LearnerRank) -> None:
        """Instead of `connect`: a learner on the base model of `host`, in its process and its group of ranks. Its
        engine is made after that of `host`, on all ranks alike."""
        self.device, self.host = host.device, host
        self._build(self.model_dir)

    def drop(self) -> None:
        """Frees what `join` made."""
        self.engine.destroy()

    def _build(self, model_dir: str) -> None:
        import deepspeed
        import torch

        from learners.losses.critic import make_head
        from learners.models.fitting import fit_tokens, return_memory
        from learners.models.optimizer import make_adamw
        from learners.models.packing_check import check_packing
        from learners.models.reference import Reference
        from learners.models.token_model import Recomputation, TokenModel, check_head, load_lm, probe

        torch.manual_seed(self.seed)
        if self.host is None:
            lm = load_lm(model_dir, getattr(torch, self.dtype_name), self.trust_remote_code)
        else:
            lm = with_the_weights_of(self.host.base)
        if self.config.lora:
            self.base = with_the_weights_of(lm)
        self.adapted = add_adapter(lm, self.config.lora, self.seed) if self.config.lora else None
        lm = lm.to(self.device)
        model = TokenModel(lm, make_head(lm) if self.config.critic else None)
        if self.adapted is not None:
            leave_out_frozen(model)
        check_head(model)
        if self.config.packing != "none":
            check_packing(model, self.config.packing)
        before = probe(model)
        self.micro_tokens = fit_tokens(model, self.config, self.device_kind)
        if needs_reference(self.config.loss):  # now, while every weight is whole
            self.reference = Reference(model, self.config.reference, share=self.config.zero_stage < 3)
        clip = self.config.grad_clip if self.config.zero_stage == 0 else None
        self.adamw = make_adamw(model, self.config.lr, self.config.weight_decay, BETAS, EPS, clip)
        self.engine, *_ = deepspeed.initialize(
            model=model, optimizer=self.adamw, config=self.settings, dist_init_required=False
        )
        self.engine.eval()
        self.recomputation = Recomputation(lm, self.config.gradient_checkpointing)
        change = float((probe(self.engine) - before).abs().max())
        if not change <= 1e-4:
            raise LearnerConfigError(
                f"deepspeed: its start changed the model's log-probabilities by {change:.3g}"
            )
        self.model_dir, self.updates = model_dir, 0
        return_memory()

    # ------------------------------------------------------- weights (files: learners/ranks/saving.py)

    def export(self, checksum: bool = True) -> list[Bucket]:
        """All weights under their Hugging Face names (learners/weights.py) on rank 0, [] elsewhere, adapters merged. A
        head tied to the embeddings is not listed twice."""
        found = {piece.name: piece for piece in pieces(self._lm())}
        weights = [(name, piece.parameters[0]) for name, piece in found.items()]
        buckets = []
        for names in bucket_names((name, _numel(p) * p.element_size()) for name, p in weights):
            with self._gathered([p for name in names for p in found[name].parameters]):
                if self.rank == 0:
                    buckets.append(pack([(name, found[name].value()) for name in names], checksum))
        return buckets

    def export_adapter(self, checksum: bool = True) -> list[Bucket]:
        """A and B of every adapted layer on rank 0, [] elsewhere, with what an engine needs to merge them: the plain
        model that they belong to, and how much they count."""
        lora, found = self.config.lora, dict(parts(self._lm()))
        assert lora is not None, "there is no adapter"
        buckets = []
        for names in bucket_names((name, _numel(p) * p.element_size()) for name, p in found.items()):
            with self._gathered([found[name] for name in names]):
                if self.rank == 0:
                    packed = pack([(name, found[name]) for name in names], checksum)
                    buckets.append({**packed, "base": self.model_dir, "scaling": lora.alpha / lora.rank})
        return buckets

    def load_weights_from(self, model_dir: str) -> None:
        """Starts afresh from other weights of the same architecture: new model, new optimizer."""
        self.engine.destroy()
        self._build(model_dir)

    def close(self) -> None:
        """Leaves the group of ranks. The object is of no use afterwards."""
        from torch import distributed as dist

        self.engine.destroy()
        dist.destroy_process_group()

    def _lm(self) -> Any:
        return self.engine.module.lm

    def _gathered(self, parameters: list[Any]) -> AbstractContextManager[Any]:
        """At ZeRO stage 3 every rank holds a slice: whole only inside this context, on all ranks."""
        if self.config.zero_stage < 3:
            return nullcontext()
        import deepspeed

        gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(parameters)
        return gathered


def _numel(parameter: Any) -> int:
    """Also right for ZeRO-3 parameters, whose local tensor is empty."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))
