"""Ray handle over the ranks of one policy's learner.

Every method reaches all ranks in the same order, because Ray keeps the order of calls from one caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from configs.deepspeed import deepspeed_json
from configs.schema.run import LearnerConfig
from learners.batches.batching import balance, check
from learners.batches.training_batch import Example, mismatches, sequences, share
from learners.credit.gae import with_advantages
from learners.ranks.metrics import merge
from learners.ranks.rank import LearnerRank
from learners.types import Sample
from learners.weights import Bucket

CPU_SHARE = 0.25
"""Ray CPUs that a rank on the CPU reserves: ranks, engines and the driver take turns on few cores."""

GRACE_S = 3.0
"""After one rank failed: how long to wait for the news that explains it (a lost connection comes first)."""


class LearnerDied(RuntimeError):
    """A learner's ranks are gone. Recover with a new group and `load` from the newest valid checkpoint."""


class RankActor:
    """One process: a rank of a policy's learner and, on the same base model, of those that share it
    (`learner.share`)."""

    def __init__(self, policy: str, *arguments: Any) -> None:
        self.first = policy
        self.learners = {policy: LearnerRank(*arguments)}

    def meet(self) -> tuple[str, int]:
        import ray

        return self.learners[self.first].open_store(ray.util.get_node_ip_address())

    def join(self, policy: str, *arguments: Any) -> None:
        """A further learner on the base model of the first one."""
        guest = LearnerRank(*arguments)
        guest.join(self.learners[self.first])
        self.learners[policy] = guest

    def leave(self, policy: str) -> None:
        """Forgets a learner that joined."""
        self.learners.pop(policy).drop()

    def call(self, policy: str, method: str, *arguments: Any) -> Any:
        """A method of one of the learners."""
        return getattr(self.learners[policy], method)(*arguments)

    def publish(self, policy: str) -> list[Any]:
        """What engines need for these weights, left in the object store, as one reference on rank 0."""
        import ray

        learner = self.learners[policy]
        adapter = learner.config.lora is not None and learner.config.lora.push == "adapter"
        buckets = learner.export_adapter() if adapter else learner.export()
        return [ray.put(buckets)] if learner.rank == 0 else []


def resolve_device(config: LearnerConfig) -> str:
    """`auto` is cuda where Ray has a GPU for every rank. Raises ValueError for an unknown device."""
    import ray

    if config.device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: {config.device!r} is none of auto, cpu, cuda")
    if config.device != "auto":
        return config.device
    return "cuda" if ray.cluster_resources().get("GPU", 0) >= config.ranks else "cpu"


class LearnerGroup:
    """Starts `config.ranks` actors at once; `await ready()` before anything else.

    `model_dir`: Hugging Face folder (on every node) or name. `options`: further Ray actor options, such as
    a scheduling strategy. `plugins`: modules of the user's that each rank imports, so that they register their losses.
    `host`: a group that is ready, whose processes and base model this one shares; `config` has its OF_THE_PROCESS
    settings (configs/policies.py). Raises LearnerConfigError for settings that no learner can run. Any failure of a
    rank ends all of them: the others would wait for it for minutes.
    """

    def __init__(
        self,
        policy: str,
        model_dir: str,
        config: LearnerConfig,
        seed: int = 0,
        options: dict[str, Any] | None = None,
        trust_remote_code: bool = False,
        timeout_s: float = 300.0,
        plugins: Sequence[str] = (),
        host: LearnerGroup | None = None,
    ) -> None:
        import ray

        self.policy, self.config, self.seed, self.model_dir = policy, config, seed, str(model_dir)
        self.device, self.host = resolve_device(config), host
        deepspeed_json(config, self.device)  # raises here rather than in an actor
        self.about = (config.ranks, self.model_dir, config, seed, self.device, trust_remote_code, timeout_s, plugins)
        self.dead: str = ""
        if host is not None:
            self.ranks: list[Any] = host.ranks
            return
        resources = {"num_gpus": 1} if self.device == "cuda" else {"num_cpus": CPU_SHARE}
        actor = ray.remote(**{"num_cpus": 0, **resources, "max_restarts": 0, **(options or {})})(RankActor)
        self.ranks = [actor.remote(policy, rank, *self.about) for rank in range(config.ranks)]

    async def ready(self) -> None:
        """Returns when all ranks hold the model. Raises LearnerConfigError when it is unfit, LearnerDied."""
        if self.host is not None:
            numbered = enumerate(self.ranks)
            await self._gather([actor.join.remote(self.policy, rank, *self.about) for rank, actor in numbered])
            return
        (address,) = await self._gather([self.ranks[0].meet.remote()])
        await self._all("connect", *address)

    async def step(
        self,
        examples: Sequence[Example],
        loss: str | None = None,
        lr: float | None = None,
        seed: int | None = None,
        version: int | None = None,
    ) -> dict[str, float]:
        """Learns from a batch (LearnerRank.step has the arguments); the metrics of all ranks as one:

        loss, entropy, entropy/<role>, approx_kl, clip_fraction, correction_weight, correction_dropped (tokens
        that weigh nothing), reference_kl: means over loss tokens and updates, however the loss is normalised;
        ratio_max; sampler_gap, sampler_gap_max: absolute difference in nats between the learner's and the
        sampler's log-probabilities before the first update; grad_norm before clipping; lr; tokens
        (loss tokens, once per pass); sequences; updates; skipped; micro_tokens; recomputed (micro-batches with gradient
        checkpointing); out_of_memory (micro-batches repeated in halves); peak_memory_gib (of a rank). With a
        preference loss, as means over pairs: loss,
        preference_accuracy (pairs with a margin above 0), preference_margin, chosen_logratio, rejected_logratio,
        chosen_nll, kto_drift. With a critic, which is asked first, on the whole batch: value_loss, value_clip_fraction,
        and the metrics of learners/credit/gae.py. Raises BadSample, LearnerDied.
        """
        for sample in [*sequences(examples), *mismatches(examples)]:
            check(sample)
        about: dict[str, float] = {}
        if self.config.critic is not None and loss is None:
            samples = sequences(examples)
            examples, about = with_advantages(samples, await self.values(samples), self.config.advantage)
        shares = [[examples[i] for i in part] for part in share(examples, len(self.ranks), self.config.packing)]
        seed = self.seed if seed is None else seed
        refs = [self._call(rank, "step", mine, loss, lr, seed, version) for rank, mine in zip(self.ranks, shares)]
        return {**merge(await self._gather(refs)), **about}

    async def logprobs(self, samples: Sequence[Sample]) -> list[list[float]]:
        """Log-probability of every loss token under the weights held now, in the order of `samples`."""
        return await self._scored("logprobs", samples)

    async def values(self, samples: Sequence[Sample]) -> list[list[float]]:
        """The critic's value before every loss token, in the order of `samples`."""
        return await self._scored("values", samples)

    async def _scored(self, method: str, samples: Sequence[Sample]) -> list[list[float]]:
        for sample in samples:
            check(sample)
        parts = balance(samples, len(self.ranks))
        shares = [[samples[i] for i in part] for part in parts]
        refs = [self._call(rank, method, share) for rank, share in zip(self.ranks, shares)]
        found: list[list[float]] = [[] for _ in samples]
        for part, values in zip(parts, await self._gather(refs)):
            for i, value in zip(part, values):
                found[i] = value
        return found

    async def export(self) -> list[Bucket]:
        """All weights as buckets (learners/weights.py)."""
        buckets: list[Bucket] = (await self._all("export"))[0]
        return buckets

    async def export_ref(self) -> Any:
        """The same, or with `lora: {push: adapter}` the adapter alone, as a Ray reference to hand to engines: the
        weights do not pass through this process. They are lost with rank 0."""
        return (await self._gather([rank.publish.remote(self.policy) for rank in self.ranks]))[0][0]

    async def reset_optimizer(self) -> None:
        """Forgets momenta and warm-up: between a warm start and reinforcement learning."""
        await self._all("reset_optimizer")

    async def save(self, folder: str, extra: dict[str, Any] | None = None) -> None:
        """Resume state into an existing folder, best inside `checkpoint.writing`."""
        await self._all("save", str(folder), extra)

    async def load(self, folder: str, scratch: str = "") -> dict[str, Any]:
        """Goes on where `save` left off, with as many ranks or others; returns its `extra`."""
        extra: dict[str, Any] = (await self._all("load", str(folder), scratch))[0]
        return extra

    async def save_hf(self, folder: str) -> None:
        """The model in Hugging Face format."""
        await self._all("save_hf", str(folder))

    async def load_weights_from(self, model_dir: str) -> None:
        """Starts afresh from the weights in another folder of the same architecture."""
        await self._all("load_weights_from", str(model_dir))

    def stop(self) -> None:
        """Ends all ranks at once, or on another's processes this learner alone. Nothing is saved."""
        import ray

        if self.host is not None and not (self.dead or self.host.dead):
            self.dead = f"learner of policy {self.policy!r} was stopped"
            for rank in self.ranks:
                rank.leave.remote(self.policy)
            return
        for rank in self.ranks:
            ray.kill(rank, no_restart=True)
        self.dead = self.dead or f"learner of policy {self.policy!r} was stopped"

    async def _all(self, method: str, *arguments: Any) -> list[Any]:
        return await self._gather([self._call(rank, method, *arguments) for rank in self.ranks])

    def _call(self, rank: Any, method: str, *arguments: Any) -> Any:
        return rank.call.remote(self.policy, method, *arguments)

    async def _gather(self, refs: list[Any]) -> list[Any]:
        """Results of all ranks; the first failure ends the group."""
        if self.dead:
            raise LearnerDied(self.dead)
        tasks = [asyncio.ensure_future(_value(ref)) for ref in refs]
        done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if waiting:
            late, waiting = await asyncio.wait(waiting, timeout=GRACE_S)
            done |= late
        errors = [(i, task.exception()) for i, task in enumerate(tasks) if task in done and task.exception()]
        if not errors:
            return [task.result() for task in tasks]
        for task in waiting:
            task.cancel()
        error = self._explain(errors)
        self.dead = str(error)
        self.stop()
        raise error

    def _explain(self, errors: list[tuple[int, Any]]) -> Exception:
        from ray.exceptions import RayActorError, RayTaskError

        for rank, error in errors:
            if isinstance(error, RayActorError):
                return LearnerDied(f"learner of policy {self.policy!r}: rank {rank} died ({_brief(error)})")
        rank, error = errors[0]
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, (ValueError, OSError)):
            return cause
        return LearnerDied(f"learner of policy {self.policy!r}: rank {rank} failed: {cause!r}")


async def _value(ref: Any) -> Any:
    return await ref


def _brief(error: BaseException) -> str:
    """First and last line: what happened, and the exception that did it where Ray appends its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ... ".join(dict.fromkeys((lines[0], lines[-1])))
