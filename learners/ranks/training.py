"""How a rank learns: passes over a batch, optimizer steps of a minibatch, micro-batches that fit into memory."""

from __future__ import annotations

import math
import random
import resource
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from configs.methods import LOSSES, LearnerConfigError, is_preference, needs_reference
from configs.schema.run import LearnerConfig, LossConfig
from learners.batches.packing import spread
from learners.batches.training_batch import Example, kept_together, sequences, split, with_reference
from learners.ranks.metrics import MetricSums, StepMetrics
from learners.types import Pair, Sample

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from learners.batches.batching import MicroBatch
    from learners.models.reference import Reference
    from learners.models.token_model import Recomputation


class LearnerOutOfMemory(LearnerConfigError):
    """A GPU is full, and smaller micro-batches cannot help."""


class Training(ABC):
    """Mixed into LearnerRank (learners/ranks/rank.py), which has what is declared here. All ranks call every public
    method."""

    rank: int
    world: int
    config: LearnerConfig
    device_kind: str
    device: torch.device
    micro_tokens: int
    updates: int
    engine: Any
    adamw: Any
    reference: Reference | None
    recomputation: Recomputation | None

    @abstractmethod
    def _gathered(self, parameters: list[Any]) -> AbstractContextManager[Any]:
        """These parameters are whole inside, on all ranks."""

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
            score = partial(self.reference.logprobs, micro_tokens=self.micro_tokens, packing=self.config.packing)
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
        sums.peak("micro_tokens", self.micro_tokens)
        sums.peak("peak_memory_gib", self._peak_memory() / 2**30)
        return sums

    def _update(
        self, examples: list[Example], config: LossConfig, lr: float | None, gap: bool, version: int | None
    ) -> StepMetrics | None:
        """One optimizer step on a minibatch that is spread over all ranks; None when it was skipped. What does not fit
        into the GPU's memory is repeated in halves. Raises LearnerOutOfMemory where that cannot help."""
        import torch

        repeated = 0
        while True:
            try:
                done = self._accumulate(examples, config, lr, gap, version)
            except torch.OutOfMemoryError as error:
                self._make_room(sequences(examples), error)
                repeated += 1
                continue
            if done is not None:
                done.sums.total("out_of_memory", repeated)
            return done

    def _accumulate(
        self, examples: list[Example], config: LossConfig, lr: float | None, gap: bool, version: int | None
    ) -> StepMetrics | None:
        """The gradient of one minibatch, micro-batch by micro-batch, and the step along it."""
        from learners.batches.batching import collate, count
        from learners.losses.pair_terms import kto_drift
        from learners.models.fitting import return_memory

        samples, pairs = sequences(examples), [one for one in examples if isinstance(one, Pair)]
        done = StepMetrics(samples)
        parts, width = split(examples, self.micro_tokens, self.config.packing)
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
            if self.recomputation is not None:
                again = self.recomputation.before(batch.inputs["input_ids_BT"].numel(), self.micro_tokens)
                done.sums.total("recomputed", float(again))
            logprobs_L = self._backward(batch, config, done, pairs, (tokens, replies), drift)
            if gap:
                done.gap(batch, logprobs_L, version)
        if self.device_kind == "cpu":
            return_memory()  # of the activations, before the optimizer makes its state and weights are exported
        self.engine.step()
        if not self.engine.was_step_applied():
            return None
        done.sums.mean("grad_norm", float(self.engine.get_global_grad_norm()), 1.0)
        done.updates = 1
        self.updates += 1
        return done

    def _backward(
        self, batch: MicroBatch, config: LossConfig, done: StepMetrics, pairs: list[Pair], whole: tuple[int, int],
        drift: float,
    ) -> Tensor:  # fmt: skip
        """Adds the gradient of one micro-batch and its metrics to `done`; its log-probabilities [L].

        `whole`: loss tokens and replies of the minibatch, on all ranks.
        """
        import torch

        from learners.losses.critic import value_term
        from learners.losses.pair_terms import pair_terms
        from learners.losses.policy_gradient import token_loss, token_weights

        tokens, replies = whole
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
        logprobs: Tensor = logprobs_L.detach()
        return logprobs

    def _make_room(self, samples: Sequence[Sample], error: RuntimeError) -> None:
        """After the GPU was full: drops what was accumulated and halves `micro_tokens`.

        Raises LearnerOutOfMemory where one sequence alone is too long, and with several ranks, which would wait for
        one another.
        """
        import torch

        from learners.batches.batching import collate

        longest = max(len(sample.token_ids_S) for sample in samples)
        if self.world > 1 or self.micro_tokens <= longest:
            raise LearnerOutOfMemory(
                f"out of GPU memory at {self.micro_tokens} tokens in one forward pass, the longest sequence has "
                f"{longest}; set learner.micro_tokens lower, learner.gradient_checkpointing: true, lora, or a higher "
                f"zero_stage with more ranks ({str(error).splitlines()[0]})"
            ) from None
        # DeepSpeed forgets what it has accumulated in a step that it skips, and it skips one that is not finite.
        logprobs_L, *_ = self.engine(**collate([], [], self.device).inputs)
        self.engine.backward(logprobs_L.sum() * math.nan, scale_wrt_gas=False)
        self.engine.step()
        self.micro_tokens //= 2
        if self.device_kind == "cuda":
            torch.cuda.empty_cache()

    def _peak_memory(self) -> int:
        """Bytes: the most that this process held so far, on its GPU or, without one, of the machine's memory."""
        if self.device_kind == "cuda":
            import torch

            return int(torch.cuda.max_memory_reserved())
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

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

        tokens, packing = self.micro_tokens, self.config.packing
        *_, passes = self._agree(0, 0, len(split(samples, tokens, packing)[0]))
        return token_logprobs(self.engine, samples, tokens, self.device, packing, at_least=passes, output=output)
