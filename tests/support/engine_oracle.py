"""What the engine tests compare vLLM with: the same weights in Hugging Face, one forward pass per token."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from actors.serving.messages import GenRequest, GenResult, WeightBucket
from configs.schema.run import EngineConfig


class Serving:
    """The engine, the loop it epochs on, and the Hugging Face models it may be compared with, by version."""

    def __init__(self, engine, loop, base):
        self.engine, self.loop, self.models, self.base = engine, loop, {0: base}, base

    def run(self, coroutine):
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, 60))

    def generate(self, requests: list[GenRequest]) -> list[GenResult]:
        return self.run(self.engine.generate(requests))

    def perturbed(self, seed: int):
        import copy

        import torch

        model = copy.deepcopy(self.base)
        noise = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(
                    0.2 * parameter.std().nan_to_num(1.0).clamp(min=0.1) * _normal(parameter, noise)
                )
        return model

    def update(self, version: int, model) -> dict:
        report = self.run(self.engine.update_weights(version, buckets(model)))
        self.models[version] = model
        return report


@contextmanager
def in_this_process(folder: Path, model: Any, config: EngineConfig) -> Iterator[Serving]:
    """An engine in the process of the tests, where vLLM leaves nothing behind that reaches another test."""
    import torch

    from actors.engine.actor import VLLMEngine

    environment, set_num_threads, threads = dict(os.environ), torch.set_num_threads, torch.get_num_threads()
    loop = asyncio.new_event_loop()
    engine = VLLMEngine("tiny", str(folder), config)
    yield Serving(engine, loop, model)
    loop.run_until_complete(engine.shutdown())
    loop.close()
    from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel

    destroy_model_parallel()
    destroy_distributed_environment()
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads = set_num_threads
    torch.set_num_threads(threads)


def _normal(parameter, generator):
    import torch

    return torch.randn(parameter.shape, generator=generator)


def buckets(model, stale: str = "", stale_from=None, per_bucket: int = 5) -> list[WeightBucket]:
    """All parameters, several to a bucket; those whose name starts with `stale` from another model."""
    old = dict(stale_from.named_parameters()) if stale_from is not None else {}
    named = [(n, old[n] if stale and n.startswith(stale) else p) for n, p in model.named_parameters()]
    result = []
    for start in range(0, len(named), per_bucket):
        arrays = [(name, p.detach().numpy()) for name, p in named[start : start + per_bucket]]
        ends = list(itertools.accumulate(array.nbytes for _, array in arrays))
        entries = [
            (name, array.shape, "float32", end - array.nbytes, array.nbytes)
            for (name, array), end in zip(arrays, ends)
        ]
        data = np.frombuffer(b"".join(array.tobytes() for _, array in arrays), dtype=np.uint8).copy()
        result.append(WeightBucket(entries, data, hashlib.sha256(data.tobytes()).hexdigest()))
    return result


def hf_logprobs(
    model, prompt_ids: list[int], output_ids: list[int], temperature: float, allowed=None
) -> list[float]:
    """Log probability of each output token, one forward pass per token, over the tokens allowed at its step."""
    import torch

    scores = []
    for step, token in enumerate(output_ids):
        with torch.no_grad():
            logits = model(torch.tensor([prompt_ids + output_ids[:step]])).logits[0, -1].double()
        legal = list(range(len(logits))) if allowed is None else sorted(allowed[step])
        row = torch.log_softmax(logits[legal] / (temperature or 1.0), dim=0)
        scores.append(float(row[legal.index(token)]))
    return scores


def worst_gap(serving: Serving, requests: list[GenRequest], results: list[GenResult]) -> float:
    """Largest difference, over all tokens, to the model of the version that the result claims for the token."""
    worst = 0.0
    for request, result in zip(requests, results):
        assert result.finish != "error", result.error
        assert len(result.versions) == len(result.logprobs) == len(result.output_ids) > 0
        for version in set(result.versions):
            expected = hf_logprobs(
                serving.models[version],
                request.prompt_ids,
                result.output_ids,
                request.temperature,
                result.allowed,
            )
            for got, want, sampled_by in zip(result.logprobs, expected, result.versions):
                if sampled_by == version:
                    worst = max(worst, abs(got - want))
    return worst
