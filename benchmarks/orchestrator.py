"""Orchestrator: what a turn costs the driver with 1,000 and with 50,000 episodes under way on 256 engines.

The rollout loop, runner, chat codec, router, wire (actors/serving/wire.py), ledger (with its fsync) and Ray actors
are the real ones; the engines are simulated (benchmarks/harness/simulated.py): a reply comes after a lognormal
delay, one request in 10,000 fails, and replicas die and come back, about one every two seconds. Eight Ray actors
host 32 engines each, every one with a connection of its own, as on 256 nodes. The episodes are pixel debates, a
step takes those that ended first. Delays grow with the number of episodes, so that both sizes are offered 3,000
turns per second. It is measured once as many plays have ended as are under way, when these have come to all their
turns alike. A turn is a request that an engine answered; its cost is CPU time of the driver's process, Ray's and
ZeroMQ's own threads in it included.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors import process as garbage
from actors.players.base import Seated
from actors.players.chat import ChatCodec
from actors.players.engine_player import EnginePlayer
from actors.rollout.ledger import Ledger
from actors.rollout.loop import Rollouts
from actors.serving.router import Router
from actors.serving.wire import ChannelHub, EngineChannel
from actors.system import start_ray
from benchmarks.harness.measure import PROTOCOLS, Json, figure, resident_bytes, rounded, spread, target
from benchmarks.harness.simulated import DEATHS, REFUSED, SIGMA, Handle, Host, revive
from configs.load import load_protocol
from configs.schema.run import ClusterConfig, StageConfig
from learners.models.tiny import build_tokenizer
from tasks.archive import Archive
from tasks.kinds.pixels import Pixels

SEED, ENGINES, HOSTS = 0, 256, 8
OFFERED = 3000
"""Turns per second."""
PER_STEP = 100
"""Plays that are taken from the ledger at once, in place of a learner."""


@dataclass
class Window:
    """A stretch of steady running."""

    seconds: float
    turns: int
    cpu_s: float
    """Of the driver's process."""
    loop_s: float
    """CPU seconds of the driver's event loop alone."""


@dataclass
class Found:
    """What one size came to."""

    windows: list[Window]
    resident: int
    counts: dict[str, int]


def main(quick: bool = False) -> Json:
    import ray

    few, many = sizes = (200, 1_000) if quick else (1_000, 50_000)
    windows, seconds = (1, 3.0) if quick else (4, 15.0)
    start_ray(ClusterConfig(), actors=HOSTS)
    try:
        host = ray.remote(Host).options(num_cpus=1, max_concurrency=1000)
        hosts = [host.remote(SEED + i) for i in range(HOSTS)]
        here = ray.util.get_node_ip_address()
        Pixels().derived_heldout(1, SEED)  # imports
        garbage.settle()
        found: dict[str, list[Found]] = {"few": [], "many": []}
        for what in ("few", "many", "few"):
            size = many if what == "many" else few
            found[what].append(asyncio.run(measure(hosts, here, size, windows, seconds)))
    finally:
        ray.shutdown()
    return report(found, sizes)


async def measure(
    hosts: Sequence[Any], here: str, episodes: int, windows: int, seconds: float
) -> Found:
    """`windows` stretches of `seconds` with `episodes` under way, once as many have ended."""
    gc.collect()  # what is left of the last measurement
    await asyncio.gather(*(host.begin.remote(ENGINES // len(hosts), episodes / OFFERED, DEATHS) for host in hosts))
    hub = ChannelHub(here)
    channels = [EngineChannel(hub, Handle(hosts[i % len(hosts)], i // len(hosts))) for i in range(ENGINES)]
    await asyncio.gather(*(channel.connect() for channel in channels))
    protocol, source = load_protocol(PROTOCOLS / "pixel_debate.yaml"), Pixels()
    codec = ChatCodec(build_tokenizer([*source.words(), *protocol.literal_texts()]))
    router = Router("simulated", channels, revive)
    player = EnginePlayer(router, codec, 1.0, 8)
    players = {role: Seated("simulated", player) for role in set(protocol.roles().values())}
    stage = StageConfig(plays_per_step=PER_STEP, steps=10**9, max_staleness=episodes // PER_STEP - 1)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(folder)
        rollouts = Rollouts("bench", stage, protocol, source, players, ledger, SEED, Archive())
        loops = [asyncio.create_task(rollouts.run()), asyncio.create_task(consume(rollouts, ledger, player))]
        try:
            while rollouts.statuses["ok"] < episodes:
                await check(loops)
                await asyncio.sleep(0.25)
            found = [await window(loops, router, seconds) for _ in range(windows)]
            counters, statuses = router.counters, rollouts.statuses
            counts = {"restarts": counters.restarts, "sent again": counters.retried, "lost plays": statuses["lost"],
                      "finished plays": statuses["ok"]}  # fmt: skip
            return Found(found, resident_bytes(), counts)
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            router.stop()
            for channel in channels:
                channel.close()
            hub.close()
            ledger.close()


async def consume(rollouts: Rollouts, ledger: Ledger, player: EnginePlayer) -> None:
    """The learn loop without a learner: every step forgets what was read with the old weights."""
    while True:
        plays = await ledger.batch(rollouts.groups_per_step)
        player.forget()
        rollouts.release(plays)


async def check(loops: Sequence[asyncio.Task[None]]) -> None:
    """Raises what one of the loops raised."""
    for loop in loops:
        if loop.done():
            await loop


async def window(loops: Sequence[asyncio.Task[None]], router: Router, seconds: float) -> Window:
    def now() -> tuple[float, int, float, float]:
        return time.monotonic(), router.counters.requests, time.process_time(), time.thread_time()

    begin = now()
    await asyncio.sleep(seconds)
    await check(loops)
    wall, turns, cpu, loop = (after - before for before, after in zip(begin, now()))
    return Window(wall, int(turns), cpu, loop)


def cost_s(runs: Sequence[Found]) -> list[float]:
    """Of each window: CPU seconds of the driver per turn."""
    return [window.cpu_s / window.turns for run in runs for window in run.windows]


def report(found: dict[str, list[Found]], sizes: tuple[int, int]) -> Json:
    few, many = sizes
    costs = {what: [1e6 * cost for cost in cost_s(runs)] for what, runs in found.items()}
    base = statistics.median(costs["few"])
    grown = [cost / base for cost in costs["many"]]
    (crowd,) = found["many"]
    busy = [cost * OFFERED / 1e6 for cost in costs["many"]]
    names = {"few": f"{few:,} episodes", "many": f"{many:,} episodes"}
    # Of the first run with few: the later one begins with what the allocator has kept.
    per_episode = (crowd.resident - found["few"][0].resident) / (many - few)
    return {
        "settings": {"seed": SEED, "engines": ENGINES, "offered turns/s": OFFERED,
                     "delay": f"lognormal, sigma {SIGMA:g}, mean episodes / {OFFERED} s",
                     "refused": REFUSED, "deaths per request": DEATHS, "episodes": "pixel_debate"},
        "targets": [
            target(f"cost of a turn with {many:,} episodes over that with {few:,}", statistics.median(grown),
                   at_most=1.3, repeats=grown),
            target(f"busiest actor, the driver: share of a core at {OFFERED:,} turns/s (cost times rate)",
                   statistics.median(busy), at_most=0.8, repeats=busy),
        ],
        "measured": {
            "microseconds of driver CPU per turn": {names[what]: spread(costs[what]) for what in names},
            f"of which the event loop, {many:,} episodes": spread([1e6 * w.loop_s / w.turns for w in crowd.windows]),
            "turns per second reached": {
                name: spread([w.turns / w.seconds for one in found[what] for w in one.windows])
                for what, name in names.items()},
            "KiB of driver memory per waiting episode": rounded(per_episode / 1024),
            f"with {many:,} episodes": crowd.counts,
        },
        "metrics": [figure("bars", "Driver CPU per turn (microseconds)", {
            names[what]: rounded(statistics.median(costs[what])) for what in names})],
    }  # fmt: skip
