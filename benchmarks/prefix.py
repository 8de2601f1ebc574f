"""Prefix: prompt tokens that two engines compute when the turns of a play stay together, and when they do not.

A debate of six rounds in free text on two vLLM replicas with a random model of one million parameters. Sticky is the
router as it is; random sends each request to a replica drawn anew. The engines count: prompt tokens asked less those
that their prefix caches had. With room for everything, random computes every token on both replicas at worst, so two
replicas can hardly halve it. A cache is there to be filled, though: in the case with a bound, the two caches
together hold all plays of the batch, but neither does alone.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path

from actors import process as garbage
from actors.players.engine_player import EnginePlayer
from actors.rollout.loop import play_all
from actors.serving.router import Replica, Router
from actors.system import System, start_ray
from benchmarks.harness.measure import Json, figure, ratios, rounded, spread, target
from benchmarks.harness.scenes import SMALL, codec_of, debate, folder_of, policy, questions, seated
from configs.schema.run import ClusterConfig

SEED, REPLICAS, ROUNDS, TOKENS, QUESTION = 0, 2, 6, 32, 256
FULL, AMPLE = "caches full", "caches ample"
Case = dict[str, list[tuple[float, float, float]]]
"""sticky or random -> of each repeat: prompt tokens computed per request, hit rate, seconds."""


class RandomRouter(Router):
    """Every request goes anywhere."""

    rng = random.Random(SEED)

    def _home(self, play: str) -> Replica | None:
        return self.rng.choice(self.replicas)


def main(quick: bool = False) -> Json:
    import ray

    plays, repeats = (8, 1) if quick else (64, 3)
    # A play ends with about 1,200 tokens of 1.5 kB each: half of the plays fill these megabytes.
    sizes = {FULL: plays, AMPLE: 1024}
    start_ray(ClusterConfig(), actors=REPLICAS + 1)
    garbage.settle()
    try:
        with tempfile.TemporaryDirectory() as folder:
            model_dir = folder_of(SMALL, Path(folder))
            found = {case: asyncio.run(measure(model_dir, plays, repeats, mb)) for case, mb in sizes.items()}
    finally:
        ray.shutdown()
    return report(found, sizes, plays)


async def measure(model_dir: str, plays: int, repeats: int, cache_mb: int) -> Case:
    system = System({"bench": policy(model_dir, replicas=REPLICAS, kv_cache_mb=cache_mb)}, SEED)
    protocol = debate(ROUNDS, TOKENS)
    found: Case = {"sticky": [], "random": []}
    try:
        served = await system.serve("bench", model_dir, codec_of(model_dir))
        for repeat in range(repeats):
            for number, (way, kind) in enumerate((("sticky", Router), ("random", RandomRouter))):
                router = kind("bench", served.channels, unexpected)
                player = EnginePlayer(router, served.player.codec, 1.0, TOKENS)
                tasks = questions(plays, QUESTION, 2 * repeat + number)  # new ones: none is in a cache
                begun = time.perf_counter()
                await play_all(protocol, tasks, seated(protocol, player), f"{way}-{repeat}", SEED, plays)
                seconds = time.perf_counter() - begun
                asked, cached = router.counters.engine_prompt_tokens, router.counters.cached_tokens
                found[way].append(((asked - cached) / router.counters.requests, cached / asked, seconds))
                router.stop()
    finally:
        system.stop()
    return found


def report(found: dict[str, Case], sizes: dict[str, int], plays: int) -> Json:
    computed = {case: {way: [run[0] for run in runs] for way, runs in ways.items()} for case, ways in found.items()}
    share = {case: ratios(ways["sticky"], ways["random"]) for case, ways in computed.items()}
    return {
        "settings": {"seed": SEED, "model": "1M parameters", "replicas": REPLICAS, "rounds": ROUNDS, "plays": plays,
                     "tokens of a question": QUESTION, "tokens of a reply, at most": TOKENS,
                     "repeats": len(share[FULL]), "MiB of cache per replica": sizes},
        "targets": [target("prompt tokens computed, sticky over random, caches full", statistics.median(share[FULL]),
                           at_most=0.5, repeats=share[FULL])],
        "measured": {
            "the same with ample caches": spread(share[AMPLE]),
            **{case: {
                name: {way: spread([run[i] for run in runs]) for way, runs in ways.items()}
                for i, name in enumerate(("prompt tokens computed per request", "prefix hit rate", "seconds"))}
               for case, ways in found.items()},
        },
        "metrics": [figure("bars", "Prompt tokens computed per request", {
            f"{way}, {case}": rounded(statistics.median(values))
            for case, ways in computed.items() for way, values in ways.items()})],
    }  # fmt: skip


async def unexpected(channel: object) -> None:
    raise RuntimeError("an engine died: what was measured means nothing")
