"""Engine: one vLLM engine behind a plain async class, which `actors/system.py` turns into a Ray actor.

    driver (actors/serving/wire.py)                engine thread, the only one that touches vLLM
    requests ──────────────────── wire ──► GenRequest -> flight (free text | sampled choice | read choices)
                                           flight -> vLLM requests -> step() -> flight -> ... -> GenResult
    results ◄──────────────────── wire ─── all that finished in this step
    requests given up ─────────── wire ──► what nobody waits for any more ends as an error

    event loop (calls through Ray)
    update_weights() ──────────── jobs ──► between two steps: drop cached activations, load, set the version;
                                           at once, or when what is under way has ended (actors/engine/traffic.py)

vLLM runs inside the actor's process: against its usual second process this halves the CPU time of the start
and saves a third of it per short request. Only files beginning with `engine` import vllm, and only inside
functions or in vLLM's workers, so importing this module is cheap.
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
from actors.engine.flight import ChoiceFlight, Flight, FreeFlight, ReadFlight
from actors.engine.lora import Adapters
from actors.engine.requests import Requests
from actors.engine.setup import build_llm, checkpoint_shapes
from actors.engine.traffic import Deliver, Swap, Traffic
from actors.serving.messages import GenRequest, GenResult, WeightBucket
from actors.serving.wire import Order, Plug, Restarted
from configs.schema.run import EngineConfig

log = logging.getLogger(__name__)

FAREWELL_SECONDS = 2.0
"""How long an engine outlives its connection to the driver. At the end of a run Ray ends it in that time; one that ends
itself is an accident, which Ray reports on the screen."""


class Engine:
    """One replica of one policy. The async methods belong to one event loop.

    `version` is the policy step of the weights in `model_dir`; a restarted actor is back at those.
    Raises ValueError where `config` does not fit the vLLM build or the device.
    """

    def __init__(self, policy: str, model_dir: str, config: EngineConfig, version: int = 0, seed: int = 0):
        start = time.monotonic()
        sigterm.ends_this_actor()
        self.policy, self.version = policy, version
        self._max_num_seqs = config.max_num_seqs
        self._model_dir, self._shapes = model_dir, checkpoint_shapes(model_dir)
        self.adapters = Adapters()
        self._update_lock = asyncio.Lock()
        self._life = b""
        """The name of the connection to the driver (actors/serving/wire.py); empty before the first."""

        # Below: used by the engine thread.
        # vLLM labels weights by strings and starts with "default": adapter ("" for none) -> version.
        self._label_versions = {"default": {"": version}}
        self._receiver_ready = False
        self._plug = Plug()
        self._replies: list[GenResult] = []
        self._open = 0
        self._asked: dict[str, tuple[Flight, Any]] = {}
        self._last_name = 0
        self._traffic = Traffic(self._begin, config.swap == "drain")
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
        """Answers once the engine is loaded. `load_seconds`: imports of vLLM included."""
        return {
            "policy": self.policy,
            "pid": os.getpid(),
            "version": self.version,
            "device": self._device,
            "max_model_len": self._llm.model_config.max_model_len,
            "load_seconds": self.load_seconds,
        }

    # -- generation ----------------------------------------------------------------------------------------

    async def connect(self, address: str, life: bytes) -> dict[str, Any]:
        """Takes requests from the driver at `address`, and from nobody else any more. Answers like `ready`."""
        self._life = life
        self._do(lambda: self._plug.connect(address, life))
        return await self.ready()

    async def watch(self, life: bytes) -> None:
        """Never returns: to the caller it ends with this process. Raises Restarted where that has happened already."""
        if life != self._life:
            raise Restarted("nothing is known of what was asked before")
        await asyncio.Event().wait()

    async def generate(self, batch: list[GenRequest]) -> list[GenResult]:
        """Results in the order of `batch`, for callers in this process."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[GenResult]] = [loop.create_future() for _ in batch]
        deliveries = [partial(resolve_soon, loop, future) for future in futures]
        self._do(lambda: self._launch(batch, deliveries))
        return [await future for future in futures]

    # -- weights -------------------------------------------------------------------------------------------

    async def update_weights(self, version: int, buckets: Sequence[Any], adapter: str = "") -> dict[str, float]:
        """Replaces all weights in place, between two steps. `engine.swap` says what becomes of generations in flight:
        they go on with the new ones (keep), or end with the old ones first, and others wait outside (drain).

        `buckets`: WeightBucket, or its fields as a dict; of whole parameters, or of an adapter, which is merged
        with its plain model here, or with the name `adapter` is loaded beside others (actors/engine/lora.py) and leaves
        all else as it is. Returns seconds, bytes, and how many of the seconds went by until requests under way had
        ended (`drain_s`). Raises ValueError, with the old weights untouched, for a version older than the current one,
        a wrong checksum, and parameters that are missing, unknown or of the wrong shape.
        """
        start = time.monotonic()
        async with self._update_lock:
            if version < self._version(adapter):
                policy = adapter or self.policy
                raise ValueError(f"policy {policy!r}: version {version} is older than {self._version(adapter)}")
            held = [WeightBucket(**bucket) if isinstance(bucket, dict) else bucket for bucket in buckets]
            (check_base if held and held[0].base else check_parameters)(self._shapes, held)
            await asyncio.to_thread(check_sums, held)
            if adapter and not (held and same_folder(held[0].base, self._model_dir)):
                raise ValueError(f"policy {adapter!r}: its adapter is not one of {self._model_dir}")
            done: Future[float] = Future()
            swap = Swap(adapter, lambda: self._load(version, held, adapter), done)
            self._do(lambda: self._traffic.swap(swap))
            waited = await asyncio.wrap_future(done)
        nbytes = sum(entry[4] for bucket in held for entry in bucket.entries)
        return {"seconds": time.monotonic() - start, "bytes": float(nbytes), "drain_s": waited}

    # -- housekeeping --------------------------------------------------------------------------------------

    async def status(self) -> dict[str, Any]:
        """Counters since the start. `running` and `waiting`: callers' requests; vLLM runs at most max_num_seqs
        sequences at a time. `cached_tokens`: prompt tokens that the prefix cache answered. `aborted`: see `abort`."""
        running = min(self._open, self._max_num_seqs)
        place = {"policy": self.policy, "pid": os.getpid(), "version": self.version}
        place["adapters"] = dict(self.adapters.versions)
        open_now = {"running": running, "waiting": self._open - running, "aborted": self._traffic.aborted}
        return {**place, **open_now, **self._counts}

    async def shutdown(self) -> None:
        """Ends vLLM after the current step. Generations in flight are dropped."""
        self._do(None)
        await asyncio.to_thread(self._thread.join)

    def _do(self, job: Callable[[], Any] | None) -> None:
        """In the engine thread. None ends it."""
        self._jobs.put(job)
        self._plug.ring()

    # -- the engine thread ---------------------------------------------------------------------------------

    def _serve(self, built: Future[None], model_dir: str, config: EngineConfig, seed: int) -> None:
        """Consumes jobs and orders; waits only while vLLM has nothing to do; produces results after each step.

        Whatever goes wrong here leaves vLLM in an unknown state, so it ends the process: callers fail fast and
        Ray restarts the actor.
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
                for order in self._plug.orders():
                    self._take(order)
                if self._asked:
                    self._step()
                self._traffic.settle()
                self._hand_over()
            self._llm.engine_core.shutdown()
            self._plug.close()
        except ConnectionError as error:
            time.sleep(FAREWELL_SECONDS)
            self._die(error)
        except BaseException as error:
            self._die(error)

    def _do_jobs(self) -> bool:
        """Runs all jobs that have come; False when one of them is the end. A job that raises ends the actor."""
        if not self._asked:
            self._plug.wait()
        while not self._jobs.empty():
            job = self._jobs.get_nowait()
            if job is None:
                return False
            job()
        return True

    def _take(self, order: Order) -> None:
        self._launch(order.requests, [self._replies.append] * len(order.requests))
        if order.given_up:
            self._abort(frozenset(order.given_up))

    def _launch(self, batch: Sequence[GenRequest], deliveries: Sequence[Deliver]) -> None:
        self._open += len(batch)
        self._traffic.launch(batch, deliveries)

    def _begin(self, request: GenRequest, finish: Deliver) -> Flight:
        self._counts["requests"] += 1
        kind = FreeFlight if not request.choices else ReadFlight if request.read else ChoiceFlight
        return kind(request, self._ask, finish, self._version(request.adapter))

    def _abort(self, ids: frozenset[int]) -> None:
        flights = self._traffic.give_up(ids)
        names = [name for name, (flight, _) in self._asked.items() if flight in flights]
        for name in names:
            del self._asked[name]
        self._llm.abort_request(names)

    def _ask(self, flight: Flight, prompt_ids: list[int], params: Any, tag: Any) -> None:
        """Queues one vLLM request; `flight.take(completion, versions, tag)` is called with its output. Raises what
        `Requests.add` raises."""
        self._last_name += 1
        name = str(self._last_name)
        self._requests.add(name, prompt_ids, params, self.adapters.request(flight.request.adapter))
        self._asked[name] = (flight, tag)

    def _step(self) -> None:
        counts = self._counts
        for output in self._llm.step():
            completion = output.outputs[0]
            prompted, cached = len(output.prompt_token_ids), output.num_cached_tokens or 0
            counts["prompt_tokens"] += prompted
            counts["cached_tokens"] += cached
            counts["generated_tokens"] += len(completion.token_ids)
            flight, tag = self._asked.pop(output.request_id)
            versions = [
                self._label_versions[span.version].get(flight.request.adapter, 0)
                for span in completion.weight_versions
                for _ in range(span.start, span.end)
            ]
            flight.prompt_tokens += prompted
            flight.cached_tokens += cached
            if completion.finish_reason in ("stop", "length"):
                flight.attempt(flight.take, completion, versions, tag)
            else:
                flight.fail(f"vLLM ended the request with {completion.finish_reason!r}")

    def _hand_over(self) -> None:
        finished = self._traffic.take_finished()
        self._open -= len(finished)
        for deliver, result in finished:
            deliver(result)
        if self._replies:
            self._plug.send(self._replies)
            self._replies.clear()

    def _version(self, adapter: str) -> int:
        """Of the weights that a request is computed with; 0 before the first adapter of that name."""
        return self.adapters.versions.get(adapter, 0) if adapter else self.version

    def _load(self, version: int, buckets: Sequence[WeightBucket], adapter: str) -> None:
        """Running requests keep their tokens but lose their cached activations, as does the prefix cache: both
        are of the old weights. The version is set before the next step."""
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
        """The weights themselves, or those that an adapter changes."""
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
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(1)


def resolve_soon(loop: asyncio.AbstractEventLoop, future: asyncio.Future[GenResult], result: GenResult) -> None:
    loop.call_soon_threadsafe(resolve, future, result)


def resolve(future: asyncio.Future[GenResult], result: GenResult) -> None:
    """Sets the result unless its caller has gone."""
    if not future.done():
        future.set_result(result)


def check_sums(buckets: Sequence[Any]) -> None:
    """Raises ValueError for a bucket whose bytes are not those its sender hashed."""
    for bucket in buckets:
        if hashlib.sha256(bucket.data).hexdigest() != bucket.sha256:
            raise ValueError(
                f"weight bucket of {bucket.entries[0][0]!r}: checksum does not match, update refused"
            )


def check_parameters(shapes: dict[str, tuple[int, ...]] | None, buckets: Sequence[WeightBucket]) -> None:
    """Raises ValueError unless the buckets hold exactly the parameters of the checkpoint. vLLM would keep the old
    values of missing ones with no more than a warning."""
    if shapes is None:
        return
    sent = {entry[0]: tuple(entry[1]) for bucket in buckets for entry in bucket.entries}
    faults = {
        "missing": shapes.keys() - sent.keys(),
        # Some exporters list a tied head although the checkpoint does not; vLLM skips it.
        "unknown": sent.keys() - shapes.keys() - {"lm_head.weight"},
        "of the wrong shape": {name for name in sent if shapes.get(name, sent[name]) != sent[name]},
    }
    for what, names in faults.items():
        if names:
            raise ValueError(
                f"update refused, {len(names)} parameters {what}: {', '.join(sorted(names)[:3])}"
            )


def check_base(shapes: dict[str, tuple[int, ...]] | None, buckets: Sequence[WeightBucket]) -> None:
    """Raises ValueError unless the buckets hold one adapter of a plain model that this engine can read and that has the
    parameters of its own."""
    if len({(bucket.base, bucket.scaling) for bucket in buckets}) > 1:
        raise ValueError("update refused, its buckets belong to different adapters")
    base = checkpoint_shapes(str(local_folder(buckets[0].base))) or {}
    names = (base.keys() | (shapes or {}).keys()) - {"lm_head.weight"}  # a tied one may be listed, or not
    if shapes is not None and any(shapes.get(name) != base.get(name) for name in names):
        raise ValueError(f"update refused, {buckets[0].base} is no model of this engine's shape")
    check_adapter(base, {entry[0]: tuple(entry[1]) for bucket in buckets for entry in bucket.entries})
