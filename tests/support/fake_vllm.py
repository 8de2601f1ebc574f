"""vLLM as an engine's thread sees it, without vLLM: one token per running request and step, which is the number of the
weights at that time. So what a reply was computed with can be read off its tokens, whatever versions it claims."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.serving.messages import GenRequest, GenResult, WeightBucket
from actors.serving.wire import EngineChannel
from configs.schema.run import EngineConfig
from tests.support.local_channel import local_channel

FIRST = 10
"""The number of the weights that an engine starts with."""
FOREVER = 10**9
TWICE = ((1, 3), (1, 4), (2, 5), (2, 6))
"""Legal replies that branch twice: vLLM is asked two times for one of them."""


@dataclass
class Request:
    params: Any
    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)


class FakeLLM:
    """`allow(n)`: how many more steps bring a token; others bring nothing, as long as requests run."""

    def __init__(self) -> None:
        self.weights, self.label = FIRST, "default"
        self.running: dict[str, Request] = {}
        self.loads: list[tuple[int, int]] = []
        """(weights, how many requests ran when they came)"""
        self.most = 0
        self._budget, self._lock = 0, threading.Lock()
        self.model_config = SimpleNamespace(get_vocab_size=lambda: 1000, max_model_len=64)
        self.engine_core = SimpleNamespace(set_weight_version=self._set_label, shutdown=lambda: None)

    def allow(self, steps: int = FOREVER) -> None:
        with self._lock:
            self._budget = steps

    @property
    def spent(self) -> bool:
        return self._budget == 0

    def _set_label(self, label: str) -> None:
        self.label = label

    def add(self, name: str, prompt: list[int], params: Any, lora: Any) -> None:
        """Like actors/engine/requests.py."""
        assert name not in self.running
        self.running[name] = Request(params, prompt)
        self.most = max(self.most, len(self.running))

    def abort_request(self, names: Sequence[str]) -> None:
        for name in names:
            del self.running[name]

    def reset_prefix_cache(self, reset_running_requests: bool) -> bool:
        return reset_running_requests or not self.running

    def collective_rpc(self, method: str, kwargs: Any = None) -> None:
        if method == "update_weights":
            self.weights = int(kwargs["update_info"]["data"][0])
            self.loads.append((self.weights, len(self.running)))

    def step(self) -> list[Any]:
        with self._lock:
            going = self._budget > 0
            self._budget -= going
        if not going:
            time.sleep(0.0005)
            return []
        for request in self.running.values():
            allowed = request.params.allowed
            request.tokens.append(allowed[self.weights % len(allowed)] if allowed else self.weights)
            request.labels.append(self.label)
        ended = [name for name, one in self.running.items() if len(one.tokens) >= one.params.max_tokens]
        return [self._output(name, self.running.pop(name)) for name in ended]

    def _output(self, name: str, request: Request) -> Any:
        asked = [request.params.read or (token,) for token in request.tokens]
        completion = SimpleNamespace(
            token_ids=request.tokens, finish_reason="length",
            logprobs=[{token: SimpleNamespace(logprob=-1.0) for token in tokens} for tokens in asked],
            weight_versions=[SimpleNamespace(version=label, start=i, end=i + 1)
                             for i, label in enumerate(request.labels)],
        )  # fmt: skip
        return SimpleNamespace(
            request_id=name, outputs=[completion], prompt_token_ids=request.prompt, num_cached_tokens=0
        )


def sampling_params(
    max_tokens: int, temperature: float, top_p: float = 1.0, stop_ids: Any = (), allowed: Any = (), read: Any = (),
    seed: int | None = None,
) -> Any:  # fmt: skip
    return SimpleNamespace(max_tokens=max_tokens, allowed=tuple(allowed), read=tuple(read))


def numbered(weights: int) -> list[WeightBucket]:
    """Weights that are known by their number."""
    data = np.array([weights, 0, 0, 0], dtype=np.uint8)
    return [WeightBucket([("w", (1,), "float32", 0, 4)], data, hashlib.sha256(data.tobytes()).hexdigest())]


class Serving:
    """An `actors.engine.actor.Engine` on a FakeLLM, and the loop it epochs on."""

    def __init__(self, engine: Any, llm: FakeLLM, loop: asyncio.AbstractEventLoop, died: list[BaseException]):
        self.engine, self.llm, self.loop = engine, llm, loop
        self.died = died
        """Why the engine would have ended its process."""

    def run(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, 20))

    async def until(self, condition: Any) -> None:
        """Both threads go on meanwhile."""
        while not condition():
            await asyncio.sleep(0.0005)

    async def job_done(self) -> None:
        """Everything that was told to the engine's thread so far has reached it."""
        reached = threading.Event()
        self.engine._do(reached.set)
        await self.until(reached.is_set)


    async def on_channel(self, scenario: Callable[[EngineChannel], Awaitable[None]]) -> None:
        """The scenario on a channel to the engine, as the driver has it."""
        async with local_channel(self.engine) as channel:
            await scenario(channel)


@contextmanager
def serving(folder: Path, swap: str) -> Iterator[Serving]:
    from actors.engine.actor import VLLMEngine

    llm, loop = FakeLLM(), asyncio.new_event_loop()
    exceptions = ModuleType("vllm.exceptions")
    vars(exceptions)["VLLMClientError"] = type("VLLMClientError", (Exception,), {})
    with pytest.MonkeyPatch.context() as patch:
        for module in (ModuleType("vllm"), exceptions):
            patch.setitem(sys.modules, module.__name__, module)
        patch.setattr("actors.engine.actor.build_llm", lambda *args: (llm, "cpu"))
        patch.setattr("actors.engine.actor.Requests", lambda llm: llm)
        patch.setattr("actors.engine.actor.SHUTDOWN_GRACE_SECONDS", 0.0)
        patch.setattr("actors.engine.generation.sampling_params", sampling_params)
        died: list[BaseException] = []
        patch.setattr(VLLMEngine, "_die", lambda self, error: died.append(error))
        engine = VLLMEngine("p", str(folder), EngineConfig(swap=swap))  # type: ignore[arg-type]
        yield Serving(engine, llm, loop, died)
        loop.run_until_complete(engine.shutdown())
        loop.close()
        assert not died, died


async def begun(one: Serving, batch: list[GenRequest], tokens: int) -> asyncio.Task[list[GenResult]]:
    """The results of `batch`, each of which has `tokens` tokens by now and is not at its end."""
    task = asyncio.ensure_future(one.engine.generate(batch))
    await asyncio.sleep(0)
    await one.job_done()
    one.llm.allow(tokens)
    await one.until(lambda: one.llm.spent)
    await one.job_done()
    return task


async def swapping(one: Serving, weights: int, version: int) -> asyncio.Task[dict[str, float]]:
    """An update that has reached the engine's thread."""
    task = asyncio.ensure_future(one.engine.update_weights(version, numbered(weights)))
    await one.until(lambda: one.engine._scheduler._update is not None or one.llm.weights == weights)
    await one.job_done()
    return task
