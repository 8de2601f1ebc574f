"""One rank of one policy's learner: the only file that imports deepspeed.

Torch and DeepSpeed are imported inside methods, after the process has been told which accelerator it has.
`learners/ranks/group.py` makes this class a Ray actor; it also runs by itself as a group of one.
"""

from __future__ import annotations

import logging
import math
import os
import random
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from configs.deepspeed import BETAS, EPS, deepspeed_json, resolve_dtype
from configs.methods import LOSSES, LearnerConfigError, is_preference, needs_reference
from configs.schema.run import LearnerConfig, LossConfig
from learners.batches.packing import spread
from learners.batches.training_batch import Example, kept_together, sequences, split, with_reference
from learners.models.lora import add_adapter, leave_out_frozen, parts, pieces
from learners.ranks.metrics import MetricSums, StepMetrics
from learners.ranks.saving import Saving
from learners.types import Pair, Sample
from learners.weights import Bucket, bucket_names, pack
from protocols.extension import load_plugins

if TYPE_CHECKING:
    from learners.models.reference import Reference


class LearnerRank(Saving):
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
        self.updates = 0
        """Optimizer steps since the optimizer was last reset: what learning rate warm-up counts."""
        self.reference: Reference | None = None
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

    def _build(self, model_dir: str) -> None:
        import deepspeed
        import torch

        from learners.losses.critic import make_head
        from learners.models.optimizer import make_adamw
        from learners.models.packing_check import check_packing
        from learners.models.reference import Reference
        from learners.models.token_model import TokenModel, check_head, load_lm, probe, recompute

        torch.manual_seed(self.seed)
        lm = load_lm(model_dir, getattr(torch, self.dtype_name), self.trust_remote_code)
        self.adapted = add_adapter(lm, self.config.lora, self.seed) if self.config.lora else None
        lm = lm.to(self.device)
        model = TokenModel(lm, make_head(lm) if self.config.critic else None)
        if self.adapted is not None:
            leave_out_frozen(model)
        check_head(model)
        if self.config.packing != "none":
            check_packing(model, self.config.packing)
        before = probe(model)
        if needs_reference(self.config.loss):  # now, while every weight is whole
            self.reference = Reference(model, self.config.reference, share=self.config.zero_stage < 3)
        clip = self.config.grad_clip if self.config.zero_stage == 0 else None
        self.adamw = make_adamw(model, self.config.lr, self.config.weight_decay, BETAS, EPS, clip)
        self.engine, *_ = deepspeed.initialize(
            model=model, optimizer=self.adamw, config=self.settings, dist_init_required=False
        )
        self.engine.eval()
        if self.config.gradient_checkpointing:
            recompute(lm)
        change = float((probe(self.engine) - before).abs().max())
        if not change <= 1e-4:
            raise LearnerConfigError(
                f"deepspeed: its start changed the model's log-probabilities by {change:.3g}"
            )
        self.model_dir, self.updates = model_dir, 0

    # ------------------------------------------------------------------------------------ training

    def step(
        self,
        examples: Sequence[Example],
        loss: str | None = None,
        lr: float | None = None,
        seed: int = 0,
        version: int | None = None,
    ) -> MetricSums:
        """Learns from this rank's share of a batch; metrics of this rank, for `metrics.merge`.

        loss None: `config.loss`, `config.epochs` passes of `config.minibatches` optimizer steps each. A
        loss by name (the warm start's "sft"): one pass, one optimizer step, normalised as its paper says.
        lr None: `config.lr`; the warm-up of `config.warmup_steps` applies to either. version: the step of the
        weights that this learner holds; tokens sampled by others are left out of `sampler_gap`. A step whose loss
        or gradient is not finite changes nothing and is counted in `skipped`. Samples are sound (batching.check);
        a preference loss takes pairs.
        """
        config, passes, parts = self.config.loss, self.config.epochs, self.config.minibatches
        if loss is not None:
            config, passes, parts = replace(config, kind=loss, normalise="auto"), 1, 1
        if not is_preference(config.kind) and config.correction != "none" and passes * parts > 1:
            # Else the weights move only afterwards.
            samples = sequences(examples)
            examples = [replace(s, proximal_logprobs_L=p) for s, p in zip(samples, self.logprobs(samples))]
        if needs_reference(config):
            assert self.reference is not None, "a learner whose loss compares builds its reference with its model"
            self.reference.advance(self.engine.module, self._gathered)
            tokens, packing = self.config.micro_tokens, self.config.packing
            score = partial(self.reference.logprobs, micro_tokens=tokens, packing=packing)
            examples = with_reference(examples, score)
        shuffler = random.Random(f"{seed}/{self.rank}")
        sums = MetricSums()
        sums.total("sequences", len(sequences(examples)))
        groups = kept_together(examples, self.config.packing)
        updates = skipped = 0
        for _ in range(passes):
            order = list(groups)
            shuffler.shuffle(order)
            for part in range(parts):
                # Only before the first update are these the weights that sampled: later gaps are learning.
                gap = config.kind != "sft" and updates + skipped == 0
                chosen = [examples[i] for group in order[part::parts] for i in group]
                done = self._update(chosen, config, lr, gap, version)
                if done is None:
                    skipped += 1
                else:
                    updates += done.updates
                    sums.add(done.sums)
        sums.peak("updates", updates)
        sums.peak("skipped", skipped)
        return sums

    def _update(
        self, examples: list[Example], config: LossConfig, lr: float | None, gap: bool, version: int | None
    ) -> StepMetrics | None:
        """One optimizer step on a minibatch that is spread over all ranks; None when it was skipped."""
        import torch

        from learners.batches.batching import collate, count
        from learners.losses.critic import value_term
        from learners.losses.pair_terms import kto_drift, pair_terms
        from learners.losses.policy_gradient import token_loss, token_weights

        samples, pairs = sequences(examples), [one for one in examples if isinstance(one, Pair)]
        done = StepMetrics(samples)
        parts, width = split(examples, self.config.micro_tokens, self.config.packing)
        tokens, replies, micro_batches = self._agree(*count(samples), len(parts))
        if not pairs:  # which must not be torn
            parts = spread(parts, micro_batches, samples)
        if tokens == 0:
            return done
        done.sums.mean("lr", self._set_lr(lr), 1.0)
        mismatched = "mismatched" in LOSSES.needs(config.kind)
        drift = kto_drift(pairs, self.logprobs, self.device, self.world) if mismatched else 0.0
        for i in range(micro_batches):
            batch = collate(samples, parts[i] if i < len(parts) else [], self.device, width)
            logprobs_L, entropy_L, *values = self.engine(**batch.inputs, entropy_grad=config.entropy != 0)
            if is_preference(config.kind):
                loss_N, weights_N, metrics = pair_terms(config, batch, logprobs_L, pairs, replies // 2, drift)
            else:
                loss_N, metrics = token_loss(logprobs_L, entropy_L, batch, config)
                # Padding (index -1) weighs nothing.
                weights_N = token_weights(config, batch.segments_L, tokens, replies) * (batch.index_L >= 0)
            # DeepSpeed averages over ranks; the weights add up over all of them.
            loss = (loss_N * weights_N).sum() * self.world
            if self.config.critic is not None:
                term, more = value_term(self.config.critic, values[0], batch, tokens)
                loss, metrics = loss + term * self.world, {**metrics, **more}
            if not bool(torch.isfinite(loss)):
                loss = loss * math.nan  # reaches every gradient, so that all ranks skip this step together
            self.engine.backward(loss, scale_wrt_gas=False)
            done.add(batch, entropy_L.detach(), loss_N.detach(), metrics)
            if gap:
                done.gap(batch, logprobs_L.detach(), version)
        self.engine.step()
        if not self.engine.was_step_applied():
            return None
        done.sums.mean("grad_norm", float(self.engine.get_global_grad_norm()), 1.0)
        done.updates = 1
        self.updates += 1
        return done

    def _agree(self, tokens: int, replies: int, micro_batches: int) -> tuple[int, int, int]:
        """Loss tokens and replies on all ranks together, and the most micro-batches that any of them has."""
        if self.world == 1:
            return tokens, replies, micro_batches
        import torch
        from torch import distributed as dist

        mine = torch.tensor([tokens, replies, micro_batches], device=self.device)
        everyones = [torch.zeros_like(mine) for _ in range(self.world)]
        dist.all_gather(everyones, mine)
        tokens, replies = (int(sum(x[i] for x in everyones)) for i in (0, 1))
        return tokens, replies, int(max(x[2] for x in everyones))

    def _set_lr(self, lr: float | None) -> float:
        """Linear warm-up over `config.warmup_steps` optimizer steps, the first of which already moves. The head of a
        critic keeps the ratio of its rate to the policy's."""
        lr = self.config.lr if lr is None else lr
        lr *= min(1.0, (self.updates + 1) / max(1, self.config.warmup_steps))
        critic = self.config.critic
        head = critic.lr / self.config.lr if critic is not None and critic.lr is not None else 1.0
        for group, share in zip(self.engine.optimizer.param_groups, (1.0, head)):
            group["lr"] = lr * share
        return lr

    def reset_optimizer(self) -> None:
        """Forgets momenta, step counts and warm-up, as between a warm start and reinforcement learning."""
        import torch

        for state in self.adamw.state.values():
            for value in state.values():
                if torch.is_tensor(value):
                    value.zero_()  # in place: ZeRO holds references to these tensors
        self.updates = 0

    def logprobs(self, samples: Sequence[Sample]) -> list[list[float]]:
        """Log-probability of every loss token of every sample under the weights held now."""
        return self._scored(samples, 0)

    def values(self, samples: Sequence[Sample]) -> list[list[float]]:
        """The critic's value before every loss token of every sample."""
        return self._scored(samples, 2)

    def _scored(self, samples: Sequence[Sample], output: int) -> list[list[float]]:
        """One of the outputs of the forward pass (TokenModel)."""
        from learners.models.reference import token_logprobs

        tokens, packing = self.config.micro_tokens, self.config.packing
        *_, passes = self._agree(0, 0, len(split(samples, tokens, packing)[0]))
        return token_logprobs(self.engine, samples, tokens, self.device, packing, at_least=passes, output=output)

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
