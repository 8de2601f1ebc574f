"""Driver: turns per second that one core drives, when replies cost nothing.

The real runner and protocols; in place of engines, a script that answers the 256 oldest requests in each tick of the
event loop, so that all other episodes wait, as they would for vLLM. A turn is one request with its reply, a judge's
verdict included. Per core: turns per CPU second of the one process.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections import deque
from typing import Any

from actors import process as garbage
from actors.players.base import Seated
from actors.rollout.loop import play_all
from benchmarks.harness.measure import PROTOCOLS, Json, figure, rounded, spread, target, timed
from configs.load import load_protocol
from protocols.base import Protocol
from protocols.types import Reply, Task, Turn, TurnRequest
from tasks.kinds.pixels import Pixels

SEED = 0
BATCH = 256
PLAYED = ("pixel_debate", "debate_sequential", "debate_panel")
"""Evidence debate with a judge that reads after every reveal; prose with private parts; the same with three judges
that vote."""
WORDS = "the claim holds because its evidence was shown and nobody could say where it fails".split()


class Script:
    """A player for every role: the oldest `BATCH` requests are answered in each tick of the loop."""

    def __init__(self) -> None:
        rng = random.Random(SEED)
        speeches = [" ".join(rng.choices(WORDS, k=60)) for _ in range(64)]
        self._spoken = [f"<thinking>{text}</thinking>\n<argument>{text}</argument>" for text in speeches]
        self._votes = [f"{text}\n{letter}" for text in speeches for letter in "AB"]
        self._waiting: deque[tuple[asyncio.Future[Reply], TurnRequest]] = deque()
        self._awake = False
        self.turns = self.most_waiting = 0

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        self._waiting.append((future, request))
        if not self._awake:
            self._awake = True
            loop.call_soon(self._step)
        return await future

    def _step(self) -> None:
        self.most_waiting = max(self.most_waiting, len(self._waiting))
        for _ in range(min(BATCH, len(self._waiting))):
            future, request = self._waiting.popleft()
            future.set_result(self._reply(request))
        self._awake = bool(self._waiting)
        if self._awake:
            asyncio.get_running_loop().call_soon(self._step)

    def _reply(self, request: TurnRequest) -> Reply:
        self.turns += 1
        choices = request.choices
        if request.read:
            return Reply(choices[0], (0.6, 0.4))
        if not choices:
            return Reply(self._spoken[self.turns % len(self._spoken)])
        if not request.enforce:
            return Reply(self._votes[self.turns % len(self._votes)])
        return Reply(choices[self.turns % len(choices)])


def main(quick: bool = False) -> Json:
    episodes = (20, 200) if quick else (100, 1_000, 10_000)
    repeats = 1 if quick else 3
    tasks = Pixels().derived_heldout(episodes[-1], SEED)
    protocols = {name: load_protocol(PROTOCOLS / f"{name}.yaml") for name in PLAYED}
    garbage.settle()
    measure(protocols["pixel_debate"], tasks, 50, 100)  # imports and caches
    found: dict[str, dict[int, list[float]]] = {name: {n: [] for n in episodes} for name in PLAYED}
    for _ in range(repeats):
        for name, protocol in protocols.items():
            for n in episodes:
                found[name][n].append(measure(protocol, tasks, n, max(n, episodes[-1] // 5)))
    slowest = min(found, key=lambda name: statistics.median(found[name][episodes[0]]))
    base = found[slowest][episodes[0]]
    flat = {name: [b / a for a, b in zip(runs[episodes[0]], runs[episodes[-1]])] for name, runs in found.items()}
    steepest = min(flat, key=lambda name: statistics.median(flat[name]))
    last = f"{episodes[-1]:,}"
    return {
        "settings": {"seed": SEED, "protocols": ", ".join(PLAYED), "concurrent episodes": str(episodes),
                     "repeats": repeats},
        "targets": [
            target(f"turns per second and core, slowest protocol ({slowest})", statistics.median(base),
                   at_least=3000, repeats=base),
            target(f"the same at {last} concurrent episodes over {episodes[0]} ({steepest})",
                   statistics.median(flat[steepest]), at_least=0.8, repeats=flat[steepest]),
        ],
        "measured": {f"turns per second, {name}": {f"{n:,} episodes": spread(values) for n, values in runs.items()}
                     for name, runs in found.items()},
        "metrics": [figure("lines", "Turns per second and core", {
            name: [[n, rounded(statistics.median(values))] for n, values in runs.items()]
            for name, runs in found.items()}, "concurrent episodes", "turns/s", log_x=True)],
    }  # fmt: skip


def measure(protocol: Protocol, tasks: list[Task], concurrent: int, plays: int) -> float:
    """Turns per CPU second of `plays` plays, `concurrent` at a time."""
    script = Script()
    players = {role: Seated("script", script) for role in set(protocol.roles().values())}
    chosen = [tasks[i % len(tasks)] for i in range(plays)]

    async def go() -> None:
        finished: Any = await play_all(protocol, chosen, players, protocol.name, SEED, width=concurrent)
        bad = [play[0].outcome.reason for play in finished if play[0].status != "ok"]
        assert not bad, f"{len(bad)} of {plays} plays failed: {bad[0]}"
        assert script.most_waiting >= concurrent, f"only {script.most_waiting} episodes waited at once"

    _, cpu, _ = timed(lambda: asyncio.run(go()))
    return script.turns / cpu
