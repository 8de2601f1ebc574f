"""Bubbles: episodes per second when each goes on at once, and when all wait for the slowest of every round.

A debate in free text whose replies have lognormal lengths (median 16 tokens, sigma 1, at most 256), on one vLLM engine
with a random model of one million parameters. Lock-step is our own loop with a barrier: a batch of episodes is played
round by round, and the next batch begins when the last reply of the last round is in, as trainers with one generate
call per round do. Both ways play the same tasks with the same lengths, as many at a time.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from actors import process as garbage
from actors.players.base import Player
from actors.rollout.loop import play_all
from actors.system import System, start_ray
from benchmarks.harness.measure import Json, figure, ratios, rounded, spread, target
from benchmarks.harness.scenes import (
    SMALL,
    DrawnLength,
    codec_of,
    debate,
    folder_of,
    policy,
    questions,
    seated,
)
from configs.schema.run import ClusterConfig
from protocols.base import Protocol
from protocols.types import Episode, Reply, Task, Turn, TurnRequest

SEED, ROUNDS, MEDIAN, SIGMA, LONGEST = 0, 4, 16, 1.0, 256
Plays = Sequence[Sequence[Episode]]
Way = Callable[[Protocol, Sequence[Task], Player, int], Awaitable[Plays]]


class InStep:
    """A player whose replies are let go when `count` seats have theirs."""

    def __init__(self, player: Player, count: int):
        self.player, self.barrier = player, asyncio.Barrier(count)

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        reply = await self.player(request, history)
        await self.barrier.wait()
        return reply


async def continuous(protocol: Protocol, tasks: Sequence[Task], player: Player, width: int) -> Plays:
    return await play_all(protocol, tasks, seated(protocol, player), "continuous", SEED, width)


async def lock_step(protocol: Protocol, tasks: Sequence[Task], player: Player, width: int) -> Plays:
    """Every turn of this debate is a round of its own, the same number in all episodes."""
    plays: list[Sequence[Episode]] = []
    for start in range(0, len(tasks), width):
        batch = tasks[start : start + width]
        players = seated(protocol, InStep(player, len(batch)))
        plays += await play_all(protocol, batch, players, f"batch-{start}", SEED, width)
    return plays


def main(quick: bool = False) -> Json:
    import ray

    start_ray(ClusterConfig(), actors=2)
    try:
        with tempfile.TemporaryDirectory() as folder:
            return asyncio.run(measure(folder_of(SMALL, Path(folder)), quick))
    finally:
        ray.shutdown()


async def measure(model_dir: str, quick: bool) -> Json:
    width, batches, repeats = (8, 2, 1) if quick else (32, 6, 3)
    system = System({"bench": policy(model_dir)}, SEED)
    protocol = debate(ROUNDS, LONGEST)
    seconds: dict[str, list[float]] = {"continuous": [], "lock-step": []}
    tokens: dict[str, int] = {}
    try:
        served = await system.serve("bench", model_dir, codec_of(model_dir))
        player = DrawnLength(served.player, MEDIAN, SIGMA, LONGEST)
        await continuous(protocol, questions(width, 12, SEED - 1), player, width)  # the first calls are slower
        garbage.settle()
        for repeat in range(repeats):
            tasks = questions(width * batches, 12, SEED + repeat)
            ways: dict[str, Way] = {"continuous": continuous, "lock-step": lock_step}
            for name, way in ways.items():
                begun = time.perf_counter()
                plays = await way(protocol, tasks, player, width)
                seconds[name].append(time.perf_counter() - begun)
                tokens[name] = sampled(plays)
    finally:
        system.stop()
    episodes = width * batches
    faster = ratios(seconds["lock-step"], seconds["continuous"])
    return {
        "settings": {"seed": SEED, "model": "1M parameters", "episodes": episodes, "at a time": width,
                     "turns of an episode": 2 * ROUNDS, "repeats": repeats,
                     "reply length": f"lognormal, median {MEDIAN}, sigma {SIGMA:g}, at most {LONGEST} tokens"},
        "targets": [target("episodes per second, continuous over lock-step", statistics.median(faster),
                           at_least=1.5, repeats=faster)],
        "measured": {
            **{f"episodes per second, {name}": spread([episodes / s for s in values])
               for name, values in seconds.items()},
            **{f"tokens sampled in the last repeat, {name}": count for name, count in tokens.items()},
        },
        "metrics": [figure("bars", "Episodes per second", {
            name: rounded(episodes / statistics.median(values)) for name, values in seconds.items()})],
    }  # fmt: skip


def sampled(plays: Plays) -> int:
    traces: list[Any] = [turn.trace for play in plays for episode in play for turn in episode.turns]
    return sum(len(trace.output_ids_T) for trace in traces)
