"""VLLMEngine: one vLLM engine as a plain async class, which `actors/system.py` turns into a Ray actor.

    driver (actors/serving/wire.py)                engine thread, the only one that touches vLLM
    requests ──────────────────── wire ──► GenRequest -> Generation (free text | sampled choice | read choices)
                                           Generation -> vLLM requests -> step() -> Generation -> ... -> GenResult
    results ◄──────────────────── wire ─── all that finished in this step
    cancelled requests ────────── wire ──► aborted, with an error as result

    event loop (calls through Ray)
    update_weights() ──────────── jobs ──► between two steps: empty the prefix cache, load, set the version; at once,
                                           or when the affected requests have finished (actors/engine/scheduler.py)

vLLM runs inside the actor's process: compared with its usual second process this halves the CPU time of the start and
saves a third of the CPU time of a short request. The modules of this folder import vllm only inside functions or in
vLLM's workers, so importing this module is cheap.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from actors import process as garbage, sigterm
from actors.engine.adapter import check_adapter, local_folder, same_folder
from actors.engine.generation import ChoiceGeneration, FreeGeneration, Generation, ReadGeneration
from actors.engine.lora import Adapters
from actors.engine.requests import Requests
from actors.engine.scheduler import Deliver, RequestScheduler, WeightUpdate
from actors.engine.setup import build_llm, checkpoint_shapes
from actors.serving.engine import ENGINES, Engine
from actors.serving.messages import GenRequest, GenResult, WeightBucket
from actors.serving.wire import EngineEndpoint, EngineMessage, Restarted
from configs.schema.run import EngineConfig

log = logging.getLogger(__name__)

LAST_WORD_SECONDS = 0.2
"""What ZeroMQ gets to send why the engine dies."""
SHUTDOWN_GRACE_SECONDS = 2.0
"""How long an engine outlives its connection to the driver. At the end of a run Ray ends it within that time; an
engine that ends itself would appear on the screen as a crash."""


@ENGINES.register("vllm")
class VLLMEngine(Engine):
    """One replica of one policy. The async methods belong to one event loop."""

    def __init__(self, policy: str, model_dir: str, config: EngineConfig, version: int = 0, seed: int = 0):
        start = time.monotonic()
        sigterm.ends_this_actor()
        self.policy, self.version = policy, version
        self._max_num_seqs = config.max_num_seqs
        self._model_dir, self._shapes = model_dir, checkpoint_shapes(model_dir)
        self.adapters = Adapters()
        self._update_lock = asyncio.Lock()
        self._epoch = b""
        """The connection epoch (actors/serving/wire.py); empty before the first."""

        # The engine thread owns the attributes below.
        # vLLM labels weights by strings, initially "default". Label -> adapter ("" for the base) -> policy version.
        self._label_versions = {"default": {"": version}}
        self._receiver_ready = False
        self._endpoint = EngineEndpoint()
        self._replies: list[GenResult] = []
        self._open = 0
        self._submitted: dict[str, tuple[Generation, Any]] = {}
        """Name of a vLLM request -> its generation and tag."""
        self._last_name = 0
        self._scheduler = RequestScheduler(self._begin, config.swap == "drain")
        self._counts = {"requests": 0, "prompt_tokens": 0, "generated_tokens": 0, "cached_tokens": 0}
        self._jobs: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        built: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._serve, args=(built, model_dir, config, seed), daemon=True
        )
        self._thread.start()
        built.result()
        self.load_seconds = time.monotonic() - start

    async def ready(self) -> dict[str, Any]:
        """Facts about the loaded engine. `load_seconds` includes importing vLLM."""
        return {
            "policy": self.policy,
            "pid": os.getpid(),
            "version": self.version,
            "device": self._device,
            "max_model_len": self._llm.model_config.max_model_len,
            "load_seconds": self.load_seconds,
        }

    # -- generation ----------------------------------------------------------------------------------------

    async def connect(self, address: str, epoch: bytes) -> dict[str, Any]:
        self._epoch = epoch
        self._do(lambda: self._endpoint.connect(address, epoch))
        return await self.ready()

    async def watch(self, epoch: bytes) -> None:
        if epoch != self._epoch:
            raise Restarted("this engine has not received the requests of that connection epoch")
        await asyncio.Event().wait()

    async def generate(self, batch: list[GenRequest]) -> list[GenResult]:
        """Results in the order of `batch`, for callers in this process (tests)."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[GenResult]] = [loop.create_future() for _ in batch]
        deliveries = [partial(resolve_soon, loop, future) for future in futures]
        self._do(lambda: self._launch(batch, deliveries))
        return [await future for future in futures]

    # -- weights -------------------------------------------------------------------------------------------

    async def update_weights(self, version: int, buckets: Sequence[Any], adapter: str = "") -> dict[str, float]:
        """See `Engine.update_weights`. `engine.swap` decides about running requests: they continue with the new
        weights (keep), or finish with the old ones while new requests are held (drain). A bucket may also be a dict
        of WeightBucket's fields. An adapter without a name in `adapter` is merged into the weights."""
        start = time.monotonic()
        async with self._update_lock:
            if version < self._version(adapter):
                policy = adapter or self.policy
                raise ValueError(f"policy {policy!r}: version {version} is older than {self._version(adapter)}")
            held = [WeightBucket(**bucket) if isinstance(bucket, dict) else bucket for bucket in buckets]
            (check_adapter_buckets if held and held[0].base else check_parameters)(self._shapes, held)
            await asyncio.to_thread(check_sums, held)
            if adapter and not (held and same_folder(held[0].base, self._model_dir)):
                raise ValueError(f"policy {adapter!r}: its adapter is not one of {self._model_dir}")
            done: Future[float] = Future()
            update = WeightUpdate(adapter, lambda: self._load(version, held, adapter), done)
            self._do(lambda: self._scheduler.update(update))
            waited = await asyncio.wrap_future(done)
        nbytes = sum(entry[4] for bucket in held for entry in bucket.entries)
        return {"seconds": time.monotonic() - start, "bytes": float(nbytes), "drain_s": waited}

    # -- housekeeping --------------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """See `Engine.status`; counters since the start. vLLM runs at most max_num_seqs sequences at a time.
        `cached_tokens`: prompt tokens found in the prefix cache."""
        running = min(self._open, self._max_num_seqs)
        place = {"policy": self.policy, "pid": os.getpid(), "version": self.version}
        place["adapters"] = dict(self.adapters.versions)
        open_now = {"running": running, "waiting": self._open - running, "aborted": self._scheduler.aborted}
        return {**place, **open_now, **self._counts}

    async def shutdown(self) -> None:
        """Ends vLLM after the current step and drops running requests."""
        self._do(None)
        await asyncio.to_thread(self._thread.join)

    def _do(self, job: Callable[[], Any] | None) -> None:
        """Runs `job` on the engine thread; None ends the thread."""
        self._jobs.put(job)
        self._endpoint.wake()

    # -- the engine thread ---------------------------------------------------------------------------------

    def _serve(self, built: Future[None], model_dir: str, config: EngineConfig, seed: int) -> None:
        """The engine thread: runs jobs, takes messages, steps vLLM and sends results; waits only while vLLM is idle.

        An error here leaves vLLM in an unknown state, so it ends the process: callers fail fast and Ray restarts the
        actor.
        """
        try:
            self._llm, self._device = build_llm(model_dir, config, seed)
            self._requests = Requests(self._llm)
        except Exception as error:  # the constructor raises it
            built.set_exception(error)
            return
        garbage.settle()
        built.set_result(None)
        try:
            while self._do_jobs():
                for message in self._endpoint.receive():
                    self._take(message)
                if self._submitted:
                    self._step()
                self._scheduler.load_pending()
                self._deliver()
            self._llm.engine_core.shutdown()
            self._endpoint.close()
        except ConnectionError as error:
            time.sleep(SHUTDOWN_GRACE_SECONDS)
            self._die(error)
        except BaseException as error:
            self._die(error)

    def _do_jobs(self) -> bool:
        """Runs all queued jobs; returns False when one of them ends the thread. A job that raises ends the actor."""
        if not self._submitted:
            self._endpoint.wait()
        while not self._jobs.empty():
            job = self._jobs.get_nowait()
            if job is None:
                return False
            job()
        return True

    def _take(self, message: EngineMessage) -> None:
        self._launch(message.requests, [self._replies.append] * len(message.requests))
        if message.cancelled:
            self._abort(frozenset(message.cancelled))

    def _launch(self, batch: Sequence[GenRequest], deliveries: Sequence[Deliver]) -> None:
        self._open += len(batch)
        self._scheduler.launch(batch, deliveries)

    def _begin(self, request: GenRequest, finish: Deliver) -> Generation:
        self._counts["requests"] += 1
        kind = FreeGeneration if not request.choices else ReadGeneration if request.read else ChoiceGeneration
        return kind(request, self._submit, finish, self._version(request.adapter))

    def _abort(self, ids: frozenset[int]) -> None:
        aborted = self._scheduler.abort(ids)
        names = [name for name, (generation, _) in self._submitted.items() if generation in aborted]
        for name in names:
            del self._submitted[name]
        self._llm.abort_request(names)

    def _submit(self, generation: Generation, prompt_ids: list[int], params: Any, tag: Any) -> None:
        """Queues one vLLM request; `generation.take(completion, versions, tag)` receives its output. Raises as
        `Requests.add` does."""
        self._last_name += 1
        name = str(self._last_name)
        self._requests.add(name, prompt_ids, params, self.adapters.request(generation.request.adapter))
        self._submitted[name] = (generation, tag)

    def _step(self) -> None:
        counts = self._counts
        for output in self._llm.step():
            completion = output.outputs[0]
            prompted, cached = len(output.prompt_token_ids), output.num_cached_tokens or 0
            counts["prompt_tokens"] += prompted
            counts["cached_tokens"] += cached
            counts["generated_tokens"] += len(completion.token_ids)
            generation, tag = self._submitted.pop(output.request_id)
            versions = [
                self._label_versions[span.version].get(generation.request.adapter, 0)
                for span in completion.weight_versions
                for _ in range(span.start, span.end)
            ]
            generation.prompt_tokens += prompted
            generation.cached_tokens += cached
            if completion.finish_reason in ("stop", "length"):
                generation.attempt(generation.take, completion, versions, tag)
            else:
                generation.fail(f"vLLM ended the request with {completion.finish_reason!r}")

    def _deliver(self) -> None:
        finished = self._scheduler.take_finished()
        self._open -= len(finished)
        for deliver, result in finished:
            deliver(result)
        if self._replies:
            self._endpoint.send(self._replies)
            self._replies.clear()

    def _version(self, adapter: str) -> int:
        """Policy version that a request with `adapter` uses; 0 before that adapter's first push."""
        return self.adapters.versions.get(adapter, 0) if adapter else self.version

    def _load(self, version: int, buckets: Sequence[WeightBucket], adapter: str) -> None:
        """Loads new weights and sets their version before the next step. Running requests keep their tokens, but their
        cached activations and the prefix cache, computed by the old weights, are dropped."""
        llm = self._llm
        dropped = llm.reset_prefix_cache(reset_running_requests=True)
        assert dropped, "vLLM kept activations of the old weights"
        if adapter:
            self.adapters.load(llm, adapter, version, buckets)
        else:
            self._replace(buckets)
            self.version = version
        versions = {"": self.version, **self.adapters.versions}
        label = str(versions)
        self._label_versions[label] = versions
        llm.engine_core.set_weight_version(label)

    def _replace(self, buckets: Sequence[WeightBucket]) -> None:
        """Replaces the model's weights, or those that a merged adapter changes."""
        llm = self._llm
        if not self._receiver_ready:
            llm.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": {}})
            self._receiver_ready = True
        llm.collective_rpc("start_weight_update")
        for bucket in buckets:
            info = {"data": bucket.data, "entries": bucket.entries, "base": bucket.base, "scaling": bucket.scaling}
            llm.collective_rpc("update_weights", kwargs={"update_info": info})
        llm.collective_rpc("finish_weight_update")

    def _die(self, error: BaseException) -> None:
        log.critical("engine of policy %r is lost", self.policy, exc_info=error)
        if not isinstance(error, ConnectionError):
            said = f"{type(error).__name__}: {str(error).strip() or 'no message'}".splitlines()[0][:300]
            self._endpoint.send([GenResult(-1, [], [], [], finish="died", error=said)])
            time.sleep(LAST_WORD_SECONDS)
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(1)


def resolve_soon(loop: asyncio.AbstractEventLoop, future: asyncio.Future[GenResult], result: GenResult) -> None:
    loop.call_soon_threadsafe(resolve, future, result)


def resolve(future: asyncio.Future[GenResult], result: GenResult) -> None:
    """Sets the result unless the caller was cancelled."""
    if not future.done():
        future.set_result(result)


def check_sums(buckets: Sequence[Any]) -> None:
    """Raises ValueError for a bucket whose bytes do not match its sha256."""
    for bucket in buckets:
        if hashlib.sha256(bucket.data).hexdigest() != bucket.sha256:
            raise ValueError(
                f"weight bucket of {bucket.entries[0][0]!r}: checksum does not match, update refused"
            )


def check_parameters(shapes: dict[str, tuple[int, ...]] | None, buckets: Sequence[WeightBucket]) -> None:
    """Raises ValueError unless the buckets hold exactly the parameters of the checkpoint; for missing ones vLLM
    would only warn and keep the old values."""
    if shapes is None:
        return
    sent = {entry[0]: tuple(entry[1]) for bucket in buckets for entry in bucket.entries}
    faults = {
        "missing": shapes.keys() - sent.keys(),
        # Some exporters write a tied head that the checkpoint lacks; vLLM skips it.
        "unknown": sent.keys() - shapes.keys() - {"lm_head.weight"},
        "of the wrong shape": {name for name in sent if shapes.get(name, sent[name]) != sent[name]},
    }
    for what, names in faults.items():
        if names:
            raise ValueError(
                f"update refused, {len(names)} parameters {what}: {', '.join(sorted(names)[:3])}"
            )


def check_adapter_buckets(shapes: dict[str, tuple[int, ...]] | None, buckets: Sequence[WeightBucket]) -> None:
    """Raises ValueError unless the buckets hold one adapter whose base model this engine can read and has the
    shapes of the engine's own model."""
    if len({(bucket.base, bucket.scaling) for bucket in buckets}) > 1:
        raise ValueError("update refused, its buckets belong to different adapters")
    base = checkpoint_shapes(str(local_folder(buckets[0].base))) or {}
    names = (base.keys() | (shapes or {}).keys()) - {"lm_head.weight"}  # a tied head may be listed or not
    if shapes is not None and any(shapes.get(name) != base.get(name) for name in names):
        raise ValueError(f"update refused, {buckets[0].base} is no model of this engine's shape")
    check_adapter(base, {entry[0]: tuple(entry[1]) for bucket in buckets for entry in bucket.entries})
