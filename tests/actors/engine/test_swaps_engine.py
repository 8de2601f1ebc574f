"""Running requests when new weights arrive, and cancelled requests, in real vLLM engines: compared with Hugging Face
models, as in tests/actors/engine/test_engine.py. Without Ray. The rules without vLLM:
tests/actors/engine/test_swaps.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from actors.serving.messages import GenRequest, GenResult
from actors.serving.wire import EngineMessage
from configs.schema.run import EngineConfig
from tests.actors.engine.test_engine import TOLERANCE, mixed_batch, sampled
from tests.actors.engine.test_engine_lora import adapted, folder, sent
from tests.support.engine_oracle import Serving, buckets, in_this_process, worst_gap

__all__ = ["folder"]

pytestmark = pytest.mark.engine

LONG = 200


@pytest.fixture(scope="class")
def serving(request: pytest.FixtureRequest, folder: Path) -> Iterator[Serving]:
    """A draining engine for a class of tests, which names its other settings."""
    from transformers import Qwen3ForCausalLM

    config = EngineConfig(max_num_seqs=16, kv_cache_mb=32, swap="drain", extra=request.cls.settings)
    with in_this_process(folder, Qwen3ForCausalLM.from_pretrained(folder).eval(), config) as serving:
        yield serving


def running(serving: Serving) -> dict[str, Any]:
    """vLLM's own requests."""
    found: dict[str, Any] = serving.engine._llm.output_processor.request_states
    return found


def long_replies(adapter: str = "") -> list[GenRequest]:
    return [GenRequest(i, [30 + i, 31, 32], max_tokens=LONG, adapter=adapter) for i in range(4)]


async def begun(serving: Serving, batch: list[GenRequest]) -> asyncio.Task[list[GenResult]]:
    """The results of `batch`, all of which are being generated."""
    task = asyncio.ensure_future(serving.engine.generate(batch))
    before = set(running(serving))
    while len(set(running(serving)) - before) < len(batch) or any(
        state.is_prefilling for state in list(running(serving).values())
    ):
        await asyncio.sleep(0.001)
    return task


async def draining(serving: Serving, *update: Any) -> asyncio.Task[dict[str, float]]:
    """An update that waits for requests under way."""
    task = asyncio.ensure_future(serving.engine.update_weights(*update))
    while serving.engine._scheduler._update is None:
        assert not task.done(), "it did not wait"
        await asyncio.sleep(0.001)
    return task


def given_up(serving: Serving, *ids: int) -> None:
    """As the wire tells it."""
    serving.engine._do(lambda: serving.engine._take(EngineMessage([], [*ids])))



class TestDrain:
    settings: ClassVar[dict[str, Any]] = {}

    def test_every_reply_is_of_one_version_and_exact(self, serving: Serving) -> None:
        models = [serving.base, *(serving.perturbed(seed) for seed in (1, 2))]
        for version in (1, 2):
            old, new = long_replies(), mixed_batch(version)

            async def scenario(version: int = version, old: Any = old, new: Any = new) -> Any:
                task = await begun(serving, old)
                update = await draining(serving, version, buckets(models[version]))
                later = asyncio.ensure_future(serving.engine.generate(new))
                return await task, await update, await later

            before, report, after = serving.run(scenario())
            assert 0 < report["drain_s"] <= report["seconds"]
            serving.models.update({version - 1: models[version - 1], version: models[version]})
            assert all(len(result.output_ids) == LONG for result in before)
            assert {v for result in before for v in result.versions} == {version - 1}
            assert {v for result in after for v in result.versions} == {version}
            assert worst_gap(serving, old[:2], before[:2]) < TOLERANCE
            assert worst_gap(serving, *sampled(new, after)) < TOLERANCE

    def test_what_is_given_up_leaves_vllm_and_nothing_waits_for_it(self, serving: Serving) -> None:
        version, model = serving.engine.version + 1, serving.perturbed(3)
        aborted = serving.run(serving.engine.status())["aborted"]

        async def scenario() -> Any:
            task = await begun(serving, long_replies())
            update = await draining(serving, version, buckets(model))
            given_up(serving, 0, 1, 2, 3)
            await update
            return await task

        results = serving.run(scenario())
        assert [result.finish for result in results] == ["error"] * 4 and not running(serving)
        assert serving.run(serving.engine.status())["aborted"] == aborted + 4
        serving.models[version] = model
        batch = mixed_batch(5)  # the engine goes on, and what was left in its cache is not used
        results = serving.generate(batch)
        assert {v for result in results for v in result.versions} == {version}
        assert worst_gap(serving, *sampled(batch, results)) < TOLERANCE

    def test_others_in_the_batch_of_one_that_is_given_up_are_untouched(self, serving: Serving) -> None:
        batch = long_replies()

        async def scenario() -> Any:
            task = await begun(serving, batch)
            given_up(serving, 1, 99)
            return await task

        results = serving.run(scenario())
        assert [result.finish for result in results] == ["length", "error", "length", "length"]
        kept = [0, 2, 3]
        assert worst_gap(serving, [batch[i] for i in kept], [results[i] for i in kept]) < TOLERANCE
        assert not running(serving)


class TestDrainSideBySide:
    settings: ClassVar[dict[str, Any]] = {"enable_lora": True, "max_loras": 3, "max_lora_rank": 8}

    def test_an_adapter_waits_for_its_own_requests_only(self, serving: Serving, folder: Path) -> None:
        models = {("alice", 1): adapted(serving.base, 1), ("bob", 1): adapted(serving.base, 2),
                  ("alice", 2): adapted(serving.base, 3), ("bob", 2): adapted(serving.base, 4)}  # fmt: skip
        for name in ("alice", "bob"):
            serving.run(serving.engine.update_weights(1, sent(models[name, 1], folder), name))
        batch = long_replies("alice")[:2]
        others = [GenRequest(i, [40 + i], max_tokens=4, adapter="bob") for i in range(2)]

        async def scenario() -> Any:
            task = await begun(serving, batch)
            # Bob has nothing under way: his adapter comes at once, beside Alice's requests.
            await serving.engine.update_weights(2, sent(models["bob", 2], folder), "bob")
            assert not task.done(), "nothing was under way"
            update = await draining(serving, 2, sent(models["alice", 2], folder), "alice")
            replies = await serving.engine.generate(others)  # and he is served while she drains
            assert not update.done(), "she had ended before he was served"
            await update
            return await task, replies

        old, replies = serving.run(scenario())
        assert {v for result in old for v in result.versions} == {1}
        assert {v for result in replies for v in result.versions} == {2}
        for name, requests, results in (("alice", batch, old), ("bob", others, replies)):
            serving.models.update({v: model for (one, v), model in models.items() if one == name})
            assert worst_gap(serving, requests, results) < TOLERANCE
