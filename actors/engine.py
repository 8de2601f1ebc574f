"""Engine: one vLLM AsyncLLM behind a plain async class, which `actors/system.py` turns into a Ray actor.

    GenRequest -> a flight (free text | sampled choice | read choices) -> one or several vLLM requests
    vLLM output -> the flight takes its next step or becomes a GenResult -> collect()

Token ids in, token ids with log probabilities and weight versions out. Per-request Python is what limits a
small model, so no task runs per request: vLLM's output loop calls the flights directly (`_Sink.put`), and one
feeder task sends what they ask for. Only files beginning with `engine` import vllm, and only inside functions
or in vLLM's own processes, so importing this module is cheap.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from actors.engine_flight import ChoiceFlight, Flight, FreeFlight, ReadFlight
from actors.engine_setup import build_llm, checkpoint_shapes
from actors.messages import GenRequest, GenResult, WeightBucket
from configs.schema import EngineConfig

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequest

log = logging.getLogger(__name__)

Deliver = Callable[[GenResult], None]


class Engine:
    """One replica of one policy. All methods but `__init__` belong to one event loop.

    `version` is the policy step of the weights in `model_dir`; a restarted actor is back at those.
    Raises ValueError where `config` does not fit the vLLM build or the device.
    """

    def __init__(self, policy: str, model_dir: str, config: EngineConfig, version: int = 0, seed: int = 0):
        start = time.monotonic()
        self.policy, self.version = policy, version
        self._llm, self.device = build_llm(model_dir, config, seed)
        self._max_num_seqs = config.max_num_seqs
        self._shapes = checkpoint_shapes(model_dir)
        # vLLM labels weights by strings and starts with "default".
        self._label_versions = {"default": version}
        self._next_id = 0
        self._in_flight = 0
        self._outbox: deque[EngineCoreRequest] = deque()
        self._outbox_filled = asyncio.Event()
        self._feeder: asyncio.Task[None] | None = None
        self._done: list[GenResult] = []
        self._some_done = asyncio.Event()
        self._update_lock = asyncio.Lock()
        self._receiver_ready = False
        self._counts = {"requests": 0, "prompt_tokens": 0, "generated_tokens": 0, "cached_tokens": 0}
        self.load_seconds = time.monotonic() - start

    async def ready(self) -> dict[str, Any]:
        """Answers once the engine is loaded."""
        return {
            "policy": self.policy,
            "pid": os.getpid(),
            "version": self.version,
            "device": self.device,
            "max_model_len": self._llm.model_config.max_model_len,
            "load_seconds": self.load_seconds,
        }

    # -- generation ---------------------------------------------------------------------------------------------

    async def submit(self, batch: list[GenRequest]) -> None:
        """Starts generations and returns at once; their results come out of `collect`."""
        for request in batch:
            self._launch(request, self._deliver)

    async def collect(self) -> list[GenResult]:
        """Everything that has finished since the last call; waits until that is at least one result."""
        while not self._done:
            self._some_done.clear()
            await self._some_done.wait()
        done, self._done = self._done, []
        return done

    async def generate(self, batch: list[GenRequest]) -> list[GenResult]:
        """Results in the order of `batch`. Independent of `submit` and `collect`."""
        results: dict[int, GenResult] = {}
        finished = asyncio.Event()

        def take(index: int) -> Deliver:
            def deliver(result: GenResult) -> None:
                results[index] = result
                if len(results) == len(batch):
                    finished.set()

            return deliver

        for index, request in enumerate(batch):
            self._launch(request, take(index))
        if batch:
            await finished.wait()
        return [results[index] for index in range(len(batch))]

    def _deliver(self, result: GenResult) -> None:
        self._done.append(result)
        self._some_done.set()

    def _launch(self, request: GenRequest, deliver: Deliver) -> None:
        """A request that cannot be served becomes a result with finish "error", so that others go on."""
        self._in_flight += 1
        self._counts["requests"] += 1

        def finish(result: GenResult) -> None:
            self._in_flight -= 1
            deliver(result)

        kind = FreeFlight if not request.choices else ReadFlight if request.read else ChoiceFlight
        flight: Flight = kind(request, self._ask, finish, self.version)
        flight.attempt(flight.start)

    def _ask(self, flight: Flight, prompt_ids: list[int], params: Any, tag: Any) -> None:
        """Queues one vLLM request; `flight.take(output, versions, tag)` is called with its output.

        This is `AsyncLLM.add_request` with a callback in place of a queue that a task would have to await.
        Raises ValueError for what vLLM refuses, such as a prompt longer than the model allows.
        """
        from vllm.exceptions import VLLMClientError
        from vllm.inputs import tokens_input

        if self._feeder is None:
            self._feeder = asyncio.get_running_loop().create_task(self._feed())
            self._llm._run_output_handler()
        self._next_id += 1
        name = str(self._next_id)
        try:
            request = self._llm.input_processor.process_inputs(name, tokens_input(prompt_ids), params, ("generate",))
        except VLLMClientError as error:
            raise ValueError(str(error)) from error
        request.external_req_id = name
        self._llm.output_processor.add_request(request, None, None, 0, _Sink(self, flight, tag))
        self._outbox.append(request)
        self._outbox_filled.set()

    async def _feed(self) -> None:
        """Sends queued requests to vLLM's engine process, in order. Ends the actor when that process is gone."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            while True:
                await self._outbox_filled.wait()
                self._outbox_filled.clear()
                while self._outbox:
                    await self._llm.engine_core.add_request_async(self._outbox.popleft())
        except EngineDeadError as error:
            self._die(error)

    def _count(self, output: Any) -> None:
        counts = self._counts
        counts["prompt_tokens"] += len(output.prompt_token_ids)
        counts["cached_tokens"] += output.num_cached_tokens or 0
        counts["generated_tokens"] += len(output.outputs[0].token_ids)

    def _versions(self, completion: Any) -> list[int]:
        """The policy step of each output token, from the spans vLLM recorded while sampling."""
        return [
            self._label_versions[span.version]
            for span in completion.weight_versions
            for _ in range(span.start, span.end)
        ]

    def _die(self, error: BaseException) -> None:
        """Ends this process, so that callers fail fast and Ray restarts the actor. A vLLM engine that died or
        stopped halfway through a weight update cannot be repaired in place."""
        log.critical("engine of policy %r is lost: %r", self.policy, error)
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(1)

    # -- weights ------------------------------------------------------------------------------------------------

    async def update_weights(self, version: int, buckets: Sequence[Any]) -> dict[str, float]:
        """Replaces all weights in place; generations in flight go on with the new ones.

        `buckets`: WeightBucket, or its fields as a dict. Returns seconds and bytes.
        Raises ValueError, with the old weights untouched, for a version older than the current one, a wrong
        checksum, and parameters that are missing, unknown or of the wrong shape.
        """
        start = time.monotonic()
        async with self._update_lock:
            if version < self.version:
                raise ValueError(f"policy {self.policy!r}: version {version} is older than {self.version}")
            held = [WeightBucket(**bucket) if isinstance(bucket, dict) else bucket for bucket in buckets]
            self._check_entries(held)
            await asyncio.to_thread(_check_sums, held)
            try:
                await self._load(version, held)
            except Exception as error:  # whatever it is, the weights are now a mixture
                self._die(error)
        nbytes = sum(bucket.data.nbytes for bucket in held)
        return {"seconds": time.monotonic() - start, "bytes": float(nbytes)}

    async def _load(self, version: int, buckets: Sequence[WeightBucket]) -> None:
        """Pause keeps running requests and drops all cached activations; the version is set before resuming."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest

        llm, label = self._llm, str(version)
        if not self._receiver_ready:
            await llm.init_weight_transfer_engine(WeightTransferInitRequest())
            self._receiver_ready = True
        # A memory file has no name that a killed process could leave behind, and no /dev/shm limit.
        file = os.memfd_create("weights")
        path = f"/proc/{os.getpid()}/fd/{file}"
        try:
            await llm.pause_generation(mode="keep", clear_cache=True)
            await llm.start_weight_update()
            for bucket in buckets:
                await asyncio.to_thread(os.pwrite, file, bucket.data, 0)
                info = {"path": path, "entries": [list(entry) for entry in bucket.entries]}
                await llm.update_weights(WeightTransferUpdateRequest(update_info=info))
            self._label_versions[label] = version
            await llm.finish_weight_update(weight_version=label)
            self.version = version
            await llm.resume_generation()
        finally:
            os.close(file)

    def _check_entries(self, buckets: Sequence[WeightBucket]) -> None:
        sent = {entry[0]: tuple(entry[1]) for bucket in buckets for entry in bucket.entries}
        if self._shapes is None:
            return
        # Some exporters list a tied head although the checkpoint does not; vLLM skips it.
        wrong = [n for n, shape in sent.items() if self._shapes.get(n, shape) != shape]
        unknown = sorted(sent.keys() - self._shapes.keys() - {"lm_head.weight"})
        missing = sorted(self._shapes.keys() - sent.keys())
        for what, names in (("missing", missing), ("unknown", unknown), ("of the wrong shape", wrong)):
            if names:
                raise ValueError(f"policy {self.policy!r}: {len(names)} parameters {what}: {', '.join(names[:3])}")

    # -- housekeeping -------------------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """Counters since the start. `running` and `waiting` count requests of callers; vLLM runs at most
        max_num_seqs at a time. `cached_tokens`: prompt tokens that the prefix cache answered."""
        if self._llm.errored:
            self._die(self._llm.dead_error)
        running = min(self._in_flight, self._max_num_seqs)
        place = {"policy": self.policy, "pid": os.getpid(), "version": self.version}
        return {**place, "running": running, "waiting": self._in_flight - running, **self._counts}

    async def shutdown(self) -> None:
        """Ends vLLM's processes. Generations in flight are dropped."""
        if self._feeder is not None:
            self._feeder.cancel()
        self._llm.shutdown()


class _Sink:
    """Stands where vLLM expects a request's output queue, and hands the output on at once."""

    __slots__ = ("engine", "flight", "tag")

    def __init__(self, engine: Engine, flight: Flight, tag: Any):
        self.engine, self.flight, self.tag = engine, flight, tag

    def put(self, output: Any) -> None:
        """A RequestOutput; or the exception that ended vLLM's output loop, after which nothing works."""
        if isinstance(output, BaseException):
            self.engine._die(output)
        self.engine._count(output)
        completion = output.outputs[0]
        versions = self.engine._versions(completion)
        self.flight.attempt(self.flight.take, completion, versions, self.tag)


def _check_sums(buckets: Sequence[WeightBucket]) -> None:
    for bucket in buckets:
        if bucket.sha256 and hashlib.sha256(bucket.data).hexdigest() != bucket.sha256:
            raise ValueError(f"weight bucket of {bucket.entries[0][0]!r}: checksum does not match, update refused")
