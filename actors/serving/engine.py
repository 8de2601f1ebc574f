"""The port to inference engines: one interface for vLLM and for whatever serves a policy next.

An implementation is one class in a file of its own, registered by name:

    @ENGINES.register("sglang")
    class SGLangEngine(Engine): ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from protocols.extension import Registry


class Engine(ABC):
    """One replica of a policy. The system runs it as a Ray actor and restarts it, with the same arguments, when it
    dies.

    Constructor: `(policy, model_dir, config, version, seed)`: the policy's name, the folder of its weights in
    Hugging Face format, an EngineConfig, the policy version of those weights, and a random seed. It returns when
    the engine can generate. It raises ValueError for a config that does not fit the engine or the machine.

    Generation goes over the wire (`actors.serving.wire`), everything else through the methods below. The driver may
    assume, from the handshake until the engine's death:

    - Each GenRequest of an EngineMessage gets exactly one GenResult, in any order. A request that cannot be served
      gets one with `finish="error"`; it neither raises nor affects other requests.
    - A cancelled request stops soon and still gets a result. Ids of finished or unknown requests are ignored.
    - `logprobs` are those of the distribution sampled from, after temperature, top-p and the mask of legal tokens.
    - `versions` names, for each token, the policy version whose weights computed it.
    - An engine in an unknown state, or without a driver, ends its process instead of answering.
    """

    @abstractmethod
    async def connect(self, address: str, epoch: bytes) -> dict[str, Any]:
        """Ends any earlier connection, then connects to the driver at `address` (ZeroMQ, "tcp://host:port") under the
        name `epoch` and sends the handshake. Returns at least "policy", the policy's name."""

    @abstractmethod
    async def watch(self, epoch: bytes) -> None:
        """Runs until the engine dies, so that the pending call fails then. Raises Restarted when `epoch` is not the
        current connection epoch."""

    @abstractmethod
    async def update_weights(self, version: int, buckets: Sequence[Any], adapter: str = "") -> dict[str, float]:
        """Replaces the weights in place between two decoding steps; the prefix cache is emptied, later tokens carry
        `version`.

        `buckets`: WeightBuckets that together hold every parameter of the model, or one LoRA adapter. With
        `adapter` the engine keeps that adapter beside others, for requests that name it. Returns "bytes" received,
        "seconds" taken, and "drain_s", seconds spent waiting for running requests. Raises ValueError, and keeps the
        old weights, for a version older than the current one, a wrong checksum, and parameters that do not fit the
        model.
        """

    @abstractmethod
    async def status(self) -> dict[str, Any]:
        """Returns at least "version" (current policy version), "adapters" (name -> version), "running", "waiting" and
        "aborted" (numbers of requests)."""


ENGINES: Registry[type[Engine]] = Registry("engine")
"""`engine.kind` -> implementation."""
