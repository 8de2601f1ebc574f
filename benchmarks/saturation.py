"""Saturation: tokens per second through the whole system against bare vLLM that is given everything at once.

A pixel debate (0.1 million parameters, judged after every reveal) and a debate in free text of six rounds (25 million
parameters, transcripts of a thousand tokens) run through runner, chat codec, router and ledger on one engine that
plays every seat. Every request that reached the engine is then given to a second vLLM engine of the same settings, in
the order asked, all in one batch and without any of our code in between: the same final prompts, the same number of
tokens. Both engines have one thread and compute at most 256 sequences at a time, and each sees each prompt once per
repeat. More pixel debates than that are under way, as in training: the driver goes on with some while the engine
computes for others. Bare vLLM is asked by `LLMEngine.add_request` and stepped until nothing is left, in one process.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors import process as garbage
from actors.concurrency import gather_or_cancel
from actors.rollout.ledger import Ledger
from actors.rollout.runner import run_play
from actors.serving.messages import GenRequest, GenResult
from actors.system import System, start_ray
from benchmarks.harness.measure import PROTOCOLS, Json, figure, rounded, spread, target
from benchmarks.harness.scenes import (
    MEDIUM,
    SMALL,
    codec_of,
    debate,
    folder_of,
    policy,
    questions,
    recorded,
    seated,
)
from configs.load import load_protocol
from configs.schema.run import ClusterConfig, EngineConfig, ModelConfig
from driver.vocabulary import words_in_play
from learners.models.tiny import build_model, build_tokenizer
from protocols.base import Protocol
from protocols.types import Task
from tasks.kinds.pixels import Pixels

SEED, WIDTH = 0, 256
"""Sequences at a time in an engine."""
TINY = ModelConfig(hidden_size=64, layers=2, heads=2, kv_heads=2, intermediate_size=128, max_len=128)
Traffic = list[tuple[GenRequest, GenResult]]


@dataclass
class Case:
    """One kind of debate."""

    name: str
    model_dir: str
    protocol: Protocol
    tasks: list[list[Task]]
    """Of the warm-up and of each repeat."""
    at_a_time: int
    """Debates under way."""
    ours_s: list[float] = field(default_factory=list)
    bare_s: list[float] = field(default_factory=list)
    driver: list[float] = field(default_factory=list)
    """CPU seconds of the driver per second."""
    tokens: list[int] = field(default_factory=list)
    sampled: list[int] = field(default_factory=list)


class Bare:
    """vLLM and nothing else, in a Ray actor so that it has a process of its own."""

    def __init__(self, model_dir: str, config: EngineConfig):
        from actors.engine.setup import build_llm

        self.llm, _ = build_llm(model_dir, config, SEED)

    def run(self, traffic: Traffic) -> tuple[float, int, int]:
        """Seconds, tokens of prompts, tokens sampled. Everything is prepared before the clock starts."""
        from vllm.inputs import tokens_input

        requests = [asked for request, result in traffic for asked in vllm_requests(request, result)]
        prompted, sampled = sum(len(ids) for ids, _ in requests), 0
        begun = time.perf_counter()
        for number, (ids, params) in enumerate(requests):
            self.llm.add_request(str(number), tokens_input(ids), params)
        left = len(requests)
        while left:
            for output in self.llm.step():
                sampled += len(output.outputs[0].token_ids)
                left -= 1
        return time.perf_counter() - begun, prompted, sampled


def vllm_requests(request: GenRequest, result: GenResult) -> Iterator[tuple[list[int], Any]]:
    """What the engine asked vLLM to make `result` (actors/engine/generation.py): (prompt ids, sampling parameters)."""
    from actors.engine.generation import read_plan, sampling_params

    if not request.choices:
        yield request.prompt_ids, sampling_params(len(result.output_ids), request.temperature, request.top_p)
    elif request.read:
        for prefix, children, part in read_plan(request.choices):
            params = sampling_params(1, request.temperature or 1.0, allowed=children, read=part)
            yield [*request.prompt_ids, *prefix], params
    else:
        for i, allowed in enumerate(result.allowed or ()):
            if len(allowed) > 1:
                params = sampling_params(1, request.temperature, request.top_p, allowed=tuple(allowed))
                yield [*request.prompt_ids, *result.output_ids[:i]], params


def main(quick: bool = False) -> Json:
    import ray

    start_ray(ClusterConfig(), actors=3)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return asyncio.run(measure(Path(folder), quick))
    finally:
        ray.shutdown()


async def measure(folder: Path, quick: bool) -> Json:
    repeats = {"pixel debate": 1 if quick else 9, "long debate": 1 if quick else 3}  # a short one feels every neighbour
    cases = [await pixel_case(folder / "pixel", repeats["pixel debate"], 32 if quick else 2048),
             long_case(folder / "long", repeats["long debate"], 4 if quick else 32, quick)]  # fmt: skip
    garbage.settle()
    for case in cases:
        await run_case(case, folder)
    shares = {case.name: [bare / ours for bare, ours in zip(case.bare_s, case.ours_s)] for case in cases}
    return {
        "settings": {"seed": SEED, "repeats": repeats, "threads of an engine": 1,
                     "sequences at a time in an engine": WIDTH,
                     "debates at a time": {case.name: min(case.at_a_time, len(case.tasks[-1])) for case in cases},
                     "episodes": {case.name: len(case.tasks[-1]) for case in cases},
                     "models": {"pixel debate": "0.1M parameters", "long debate": "1M" if quick else "25M parameters"}},
        "targets": [target(f"tokens per second, system over bare vLLM, {name}", statistics.median(values),
                           at_least=0.85, repeats=values) for name, values in shares.items()],
        "measured": {case.name: told(case) for case in cases},
        "metrics": [figure("bars", "Tokens per second (prompts and replies)", {
            f"{case.name}, {who}": rounded(statistics.median([n / s for n, s in zip(case.tokens, seconds)]))
            for case in cases for who, seconds in (("system", case.ours_s), ("bare vLLM", case.bare_s))})],
    }  # fmt: skip


def told(case: Case) -> Json:
    return {
        "tokens per second, system": spread([n / s for n, s in zip(case.tokens, case.ours_s)]),
        "tokens per second, bare vLLM": spread([n / s for n, s in zip(case.tokens, case.bare_s)]),
        "sampled tokens per second, system": spread([n / s for n, s in zip(case.sampled, case.ours_s)]),
        "driver, share of a core": spread(case.driver),
        "seconds, system": spread(case.ours_s),
    }


async def pixel_case(folder: Path, repeats: int, episodes: int) -> Case:
    protocol, source = load_protocol(PROTOCOLS / "pixel_debate.yaml"), Pixels(levels=2)
    words = await words_in_play(source, [protocol])
    model_dir = str(build_model(TINY, build_tokenizer(words), folder))
    tasks = [source.derived_heldout(episodes, SEED + i) for i in range(repeats + 1)]
    return Case("pixel debate", model_dir, protocol, [tasks[0][:32], *tasks[1:]], 4 * WIDTH)


def long_case(folder: Path, repeats: int, episodes: int, quick: bool) -> Case:
    model_dir = folder_of(SMALL if quick else MEDIUM, folder)
    tasks = [questions(episodes, 128, SEED + i) for i in range(repeats + 1)]
    return Case("long debate", model_dir, debate(rounds=6, tokens=64), [tasks[0][:4], *tasks[1:]], WIDTH)


async def run_case(case: Case, folder: Path) -> None:
    """The repeats of one kind of debate; the first run of both sides is not counted."""
    import ray

    bound = policy(case.model_dir, width=WIDTH)
    system = System({"bench": bound}, SEED)
    bare = ray.remote(Bare).options(num_cpus=1).remote(case.model_dir, bound.engine)
    ledger = Ledger(folder / f"{case.name} record")
    try:
        served = await system.serve("bench", case.model_dir, codec_of(case.model_dir))
        for repeat, tasks in enumerate(case.tasks):
            player, recorder = recorded(served.player)
            seconds, cpu = await ours(case, tasks, player, ledger, f"repeat-{repeat}")
            traffic = sorted(recorder.seen, key=lambda pair: pair[0].id)  # as asked
            bare_s, prompted, sampled = await bare.run.remote(traffic)
            if repeat:
                case.ours_s.append(seconds)
                case.driver.append(cpu / seconds)
                case.bare_s.append(bare_s)
                case.tokens.append(prompted + sampled)
                case.sampled.append(sampled)
    finally:
        ledger.close()
        system.stop()
        ray.kill(bare)


async def ours(
    case: Case, tasks: Sequence[Task], player: Any, ledger: Ledger, name: str
) -> tuple[float, float]:
    """Wall seconds and the driver's CPU seconds until every play is over and on disk."""
    wall, cpu = time.perf_counter(), time.process_time()
    players, gate = seated(case.protocol, player), asyncio.Semaphore(case.at_a_time)

    async def one(number: int, task: Task) -> None:
        async with gate:
            play = await run_play(case.protocol, task, SEED + number, players, f"{name}-{number}")
        assert play[0].status == "ok", play[0].outcome.reason
        ledger.commit(play[0].id, play, train=False)  # at once, as in training

    await gather_or_cancel([one(number, task) for number, task in enumerate(tasks)])
    ledger.sync()
    return time.perf_counter() - wall, time.process_time() - cpu
