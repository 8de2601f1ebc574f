"""Orchestrator: what a turn costs the driver with 1,000 and with 50,000 episodes under way on 256 engines.

The real rollout loop, runner, chat codec, router, ledger (with its fsync) and Ray calls; the engines are simulated
(benchmarks/simulated.py): a reply comes after a lognormal delay, one request in 10,000 fails, and replicas die and
come back, about one every two seconds. Eight Ray actors host 32 engines each. The episodes are pixel debates. Delays
grow with the number of episodes, so that both sizes are offered 3,000 turns per second. A turn is a request that an
engine answered; its cost is CPU time of the driver's process, Ray's own threads in it included.

With hundreds of engines most calls to Ray carry one request. `through hubs` shows what a driver would save by talking
to one actor per node that speaks for its engines (ARCHITECTURE.md, One driver): the eight hosts, each addressed as one.
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

from actors import garbage
from actors.chat import ChatCodec
from actors.ledger import Ledger
from actors.policy import EnginePlayer
from actors.rollouts import Rollouts
from actors.router import Router
from actors.runner import Seated
from actors.system import start_ray
from benchmarks.measure import PROTOCOLS, Json, figure, resident_bytes, rounded, spread, target
from benchmarks.simulated import DEATHS, REFUSED, SIGMA, Handle, Host, revive
from configs.load import load_protocol
from configs.schema import ClusterConfig, StageConfig
from learners.models import build_tokenizer
from tasks.archive import Archive
from tasks.pixels import Pixels

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
    hosts_s: float
    """Of the busiest host."""


@dataclass
class Found:
    """What one size came to."""

    windows: list[Window]
    resident: int
    counts: dict[str, int]


def main(quick: bool = False) -> Json:
    import ray

    sizes = (200, 1_000) if quick else (1_000, 50_000)
    rounds, windows, seconds = (1, 1, 3.0) if quick else (2, 2, 15.0)
    start_ray(ClusterConfig(), actors=HOSTS)
    try:
        host = ray.remote(Host).options(num_cpus=1, max_concurrency=1000)
        hosts = [host.remote(ENGINES // HOSTS, SEED + i) for i in range(HOSTS)]
        Pixels().derived_heldout(1, SEED)  # imports
        garbage.settle()
        found: dict[int, list[Found]] = {size: [] for size in sizes}
        hubs: list[Found] = []
        for _ in range(rounds):
            for size in sizes:
                found[size].append(asyncio.run(measure(hosts, ENGINES, size, windows, seconds)))
            hubs.append(asyncio.run(measure(hosts, HOSTS, sizes[-1], windows, seconds)))
    finally:
        ray.shutdown()
    return report(found, sizes, hubs)


async def measure(hosts: Sequence[Any], engines: int, episodes: int, windows: int, seconds: float) -> Found:
    """`windows` stretches of `seconds` with `episodes` under way, once all of them have had their first turns."""
    gc.collect()  # what is left of the last measurement
    # A request loses as much to deaths whatever the number of engines.
    begin = (episodes / OFFERED, DEATHS * engines / ENGINES)
    await asyncio.gather(*(host.begin.remote(*begin) for host in hosts))
    handles = [Handle(hosts[i % len(hosts)], i // len(hosts)) for i in range(engines)]
    protocol, source = load_protocol(PROTOCOLS / "pixel_debate.yaml"), Pixels()
    codec = ChatCodec(build_tokenizer([*source.words(), *protocol.literal_texts()]))
    router = Router("simulated", handles, revive)
    player = EnginePlayer(router, codec, 1.0, 8)
    players = {role: Seated("simulated", player) for role in set(protocol.roles().values())}
    stage = StageConfig(plays_per_step=PER_STEP, steps=10**9, max_staleness=episodes // PER_STEP - 1)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(folder)
        rollouts = Rollouts("bench", stage, protocol, source, players, ledger, SEED, Archive())
        loops = [asyncio.create_task(rollouts.run()), asyncio.create_task(consume(rollouts, ledger, player))]
        try:
            while router.counters.requests < 3 * episodes:  # until starts no longer come all at once
                await check(loops)
                await asyncio.sleep(0.25)
            found = [await window(loops, router, hosts, seconds) for _ in range(windows)]
            counters, statuses = router.counters, rollouts.statuses
            counts = {"restarts": counters.restarts, "sent again": counters.retried, "lost plays": statuses["lost"],
                      "finished plays": statuses["ok"]}  # fmt: skip
            return Found(found, resident_bytes(), counts)
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            router.stop()
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


async def window(
    loops: Sequence[asyncio.Task[None]], router: Router, hosts: Sequence[Any], seconds: float
) -> Window:
    async def now() -> tuple[float, int, float, float, list[float]]:
        at_hosts = await asyncio.gather(*(host.cpu_s.remote() for host in hosts))
        return time.monotonic(), router.counters.requests, time.process_time(), time.thread_time(), at_hosts

    begin = await now()
    await asyncio.sleep(seconds)
    await check(loops)
    end = await now()
    wall, turns, cpu, loop = (b - a for a, b in zip(begin[:4], end[:4]))
    return Window(wall, int(turns), cpu, loop, max(b - a for a, b in zip(begin[4], end[4])))


def cost_s(runs: Sequence[Found]) -> list[float]:
    """Of each window: CPU seconds of the driver per turn."""
    return [window.cpu_s / window.turns for run in runs for window in run.windows]


def report(found: dict[int, list[Found]], sizes: Sequence[int], hubs: Sequence[Found]) -> Json:
    few, many = sizes
    costs = {size: cost_s(found[size]) for size in sizes}
    loops = [w.loop_s / w.turns for one in found[many] for w in one.windows]
    grown = [b / a for a, b in zip(costs[few], costs[many])]
    busy = [cost * OFFERED for cost in costs[many]]
    hosts = [w.hosts_s / w.turns * OFFERED for one in found[many] for w in one.windows]
    # Of the first round: later ones begin with what the allocator has kept.
    per_episode = (found[many][0].resident - found[few][0].resident) / (many - few)
    counts = [one.counts for one in found[many]]
    return {
        "settings": {"seed": SEED, "engines": ENGINES, "Ray actors that host them": HOSTS, "offered turns/s": OFFERED,
                     "delay": f"lognormal, sigma {SIGMA:g}, mean episodes / {OFFERED} s",
                     "refused": REFUSED, "deaths per request": DEATHS, "episodes": "pixel_debate"},
        "targets": [
            target(f"cost of a turn with {many:,} episodes over that with {few:,}", statistics.median(grown),
                   at_most=1.3, repeats=grown),
            target(f"busiest actor, the driver: share of a core at {OFFERED:,} turns/s (cost times rate)",
                   statistics.median(busy), at_most=0.8, repeats=busy),
        ],
        "measured": {
            "microseconds of driver CPU per turn": {
                **{f"{size:,} episodes": spread([1e6 * cost for cost in costs[size]]) for size in sizes},
                f"{many:,} episodes through hubs": spread([1e6 * cost for cost in cost_s(hubs)])},
            "of which the event loop": spread([1e6 * cost for cost in loops]),
            "turns per second reached": {
                f"{size:,} episodes": spread([w.turns / w.seconds for one in found[size] for w in one.windows])
                for size in sizes},
            "busiest host of 32 engines: share of a core at the offered rate": spread(hosts),
            "KiB of driver memory per waiting episode": rounded(per_episode / 1024),
            f"with {many:,} episodes": counts[-1],
        },
        "figures": [figure("bars", "Driver CPU per turn (microseconds)", {
            **{f"{size:,} episodes": rounded(1e6 * statistics.median(costs[size])) for size in sizes},
            f"{many:,} through hubs": rounded(1e6 * statistics.median(cost_s(hubs)))})],
    }  # fmt: skip
