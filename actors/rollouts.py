"""rollout_loop: keeps plays running, as many as there are slots, and hands finished ones to the ledger.

    slots ──► draw a task ──► run_play (all its turns, sub-plays) ──► ledger ──► learn_loop ──► slots

Consumes tasks and players. Waits for slots. Is unblocked by `release`, which the learn loop calls only after
the new weights have reached every engine: with `max_staleness: 0` there are just enough slots for one learner
step, so no play ever sees two versions; with k there are k + 1 steps' worth. Produces committed root plays.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

from actors.ledger import Ledger
from actors.router import EngineLost
from actors.runner import Seated, gather_or_cancel, run_play
from configs.schema import StageConfig
from protocols.base import Protocol
from protocols.propose_solve import ProposeSolve
from protocols.types import EXAMPLE, Episode, Outcome, Task
from tasks.archive import Archive
from tasks.base import TaskSource, carried_proposal, with_proposal
from tasks.trust import trusted

MAX_ATTEMPTS = 3
MAX_DRAWS = 100_000


Seating = Callable[[int], AbstractAsyncContextManager[Mapping[str, Seated]]]


@asynccontextmanager
async def as_bound(group: int) -> AsyncIterator[Mapping[str, Seated]]:
    """Every seat is taken by who plays its role."""
    yield {}


class TooManyInvalid(RuntimeError):
    """Nearly every play of a stage ended without a usable outcome: training on the rest would mislead."""


class NoTrustedTask(ValueError):
    """The trusted slice is empty."""


class Rollouts:
    """The running plays of one stage."""

    def __init__(
        self,
        name: str,
        stage: StageConfig,
        protocol: Protocol,
        source: TaskSource,
        players: Mapping[str, Seated],
        ledger: Ledger,
        seed: int,
        archive: Archive,
        state: Mapping[str, Any] | None = None,
        deterministic: bool = False,
    ):
        """`state`: what `self.state()` said when the run was saved, and the `step` reached. `deterministic`: nothing
        depends on which play ends first; proposals are archived at the end of their step, in order."""
        self.name, self.stage, self.protocol, self.source = name, stage, protocol, source
        self.players, self.ledger, self.seed, self.archive = players, ledger, seed, archive
        self.deterministic = deterministic
        self._ended: dict[int, Episode] = {}
        """Root plays by index, to be archived."""
        self.groups_per_step = stage.plays_per_step // stage.repeats
        self.next_group: int = state["group"] if state else 0
        self._again: list[int] = list(state["again"]) if state else []
        self._open: set[int] = set()
        """Groups that have started and that no learner has had."""
        self.statuses: Counter[str] = Counter()
        step = int(state.get("step", 0)) if state else 0
        needed = self.groups_per_step * (stage.steps - step)
        slots = min(needed, self.groups_per_step * (1 + stage.max_staleness))
        self._slots = asyncio.Semaphore(slots)
        self._to_come = needed - slots
        """Groups that this stage still needs beyond its slots: none is started that no step will learn from."""
        self._running: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()
        self.seating: Seating = as_bound
        """Who takes which seat in the plays of a group, in place of who plays its role."""

    def release(self, plays: Sequence[Sequence[Episode]]) -> None:
        """Called when these plays have been learned from and the engines have the result."""
        for index in sorted(self._ended):
            self._remember(self._ended.pop(index))
        for group in {play[0].meta["index"] // self.stage.repeats for play in plays}:
            self._open.discard(group)
            if self._to_come > 0:
                self._to_come -= 1
                self._slots.release()

    def state(self) -> dict[str, Any]:
        """Which groups are still to come, for a checkpoint."""
        return {"group": self.next_group, "again": sorted(self._open)}

    def figures(self) -> dict[str, float]:
        """How plays have ended so far, and what the archive holds."""
        found = {f"plays_{status}": float(n) for status, n in self.statuses.items()}
        return {**found, "archive": float(len(self.archive)), "proposal_duplicates": self.archive.duplicate_share}

    async def run(self) -> None:
        """rollout_loop. Runs until cancelled; raises what a play raised."""
        failed: asyncio.Future[Any] = asyncio.ensure_future(self._failed.wait())
        waiting = failed
        try:
            while True:
                waiting = asyncio.ensure_future(self._slots.acquire())
                await asyncio.wait([waiting, failed], return_when=asyncio.FIRST_COMPLETED)
                if self._failure is not None:
                    raise self._failure
                task = asyncio.ensure_future(self._group(self._next_group()))
                self._running.add(task)
                task.add_done_callback(self._finished)
        finally:
            ending = [waiting, failed, *self._running]
            for one in ending:
                one.cancel()
            await asyncio.gather(*ending, return_exceptions=True)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None and self._failure is None:
            self._failure = task.exception()
            self._failed.set()

    def _next_group(self) -> int:
        if self._again:
            group = self._again.pop(0)
        else:
            group, self.next_group = self.next_group, self.next_group + 1
        self._open.add(group)
        return group

    async def _group(self, group: int) -> None:
        """All plays of one task. They reach the learner together, or not at all: what came out invalid is left
        away, and a play whose siblings all did has no one to be compared with."""
        repeats = self.stage.repeats
        async with self.seating(group) as seats:
            plays = await gather_or_cancel([self._one(repeats * group + i, seats) for i in range(repeats)])
        sound = [play for play in plays if play[0].status == "ok"]
        if len(sound) >= min(2, repeats):
            self.ledger.queue(sound)
            return
        if sound:
            self.statuses["alone"] += len(sound)
        self._open.discard(group)
        self._slots.release()  # it reaches no learner: a replacement may start at once

    async def _one(self, index: int, seats: Mapping[str, Seated]) -> list[Episode]:
        """One root play, tried again when its engines were lost. Lost attempts are recorded, never rewarded."""
        task = self.draw(index)
        rng = random.Random(f"{self.seed}/{self.name}/play/{index}")
        for attempt in range(MAX_ATTEMPTS):
            id = f"{self.name}-{index}" + (f".{attempt}" if attempt else "")
            seed = rng.randrange(2**63)
            if id in self.ledger.restored:  # played before the run was interrupted
                return self._noted(self.ledger.recall(id))
            meta = {"stage": self.name, "index": index}
            try:
                episodes = await run_play(self.protocol, task, seed, self.players, id, meta=meta, seats=seats)
            except EngineLost as error:
                self._count("lost")
                lost = Outcome(status="lost", reason=str(error))
                episode = Episode(id, self.protocol.name, replace(task, domain=None, game=None), seed, (), lost)
                self.ledger.commit(id, [episode], train=False)
                continue
            self.ledger.commit(id, episodes, train=False)
            return self._noted(episodes)
        raise EngineLost(f"play {self.name}-{index} was lost {MAX_ATTEMPTS} times")

    def _noted(self, episodes: list[Episode]) -> list[Episode]:
        self._count(episodes[0].status)
        if episodes[0].status == "ok":
            if self.deterministic:
                self._ended[episodes[0].meta["index"]] = episodes[0]
            else:
                self._remember(episodes[0])
        return episodes

    def _remember(self, root: Episode) -> None:
        """Archives what was proposed, with the share of sub-plays that succeeded."""
        for proposal, rate in self.protocol.rates(root) if isinstance(self.protocol, ProposeSolve) else ():
            if carried_proposal(root.task) is None:
                self.archive.add(proposal, root.task.id, rate)
            else:
                self.archive.update(proposal, root.task.id, rate)

    def _count(self, status: str) -> None:
        self.statuses[status] += 1
        bad = self.statuses["invalid"] + self.statuses["lost"]
        if bad > 4 * self.stage.plays_per_step and bad > 9 * self.statuses["ok"]:
            raise TooManyInvalid(
                f"stage {self.name!r}: {bad} of {self.statuses.total()} plays were invalid or lost; "
                f"see the reasons in episodes.jsonl"
            )

    def draw(self, index: int) -> Task:
        """The task of root play `index`: the same for siblings, whatever ran before (but for the archive)."""
        rng = random.Random(f"{self.seed}/{self.name}/task/{index // self.stage.repeats}")
        if rng.random() < self.stage.archive and len(self.archive):
            entry = self.archive.draw(rng, self.stage.archive_frontier)
            return with_proposal(self.source.root(entry.task_id), entry.proposal)
        return training_task(self.source, self.protocol, rng)


def trusted_task(source: TaskSource, protocol: Protocol, rng: random.Random, share: float) -> Task:
    """A `training_task` for a warm start, of the trusted slice."""
    for _ in range(MAX_DRAWS):
        task = training_task(source, protocol, rng, warm=True)
        if trusted(source.cluster(task), share):
            return task
    raise NoTrustedTask(f"none of {MAX_DRAWS:,} tasks drawn is in the trusted slice of {share:g}; raise `trusted`")


def training_task(source: TaskSource, protocol: Protocol, rng: random.Random, warm: bool = False) -> Task:
    """A task that `protocol` can be played on: a root task where a proposer comes first, else one derived from
    a root task with the proposal it carries, its example, or (claims) a uniform one."""
    task = source.warm(rng) if warm else source.train(rng)
    if isinstance(protocol, ProposeSolve) or task.domain is None:
        return task
    example = task.hidden.get(EXAMPLE)
    proposal = carried_proposal(task) or (example.text if example else rng.choice(task.proposals))
    return task.domain.derive(task, proposal)


async def play_all(
    protocol: Protocol, tasks: Sequence[Task], players: Mapping[str, Seated], name: str, seed: int, width: int = 256,
    seats: Mapping[str, Seated] | None = None, only: range | None = None,
) -> list[list[Episode]]:  # fmt: skip
    """Plays `protocol` once on every task, at most `width` at a time; one list (root first) per task.

    Plays are seeded by position: two calls with the same arguments but other players meet the same draws.
    `seats`: seat -> who takes it in place of who plays its role. `only`: positions to play.
    """
    gate = asyncio.Semaphore(width)

    async def one(index: int, task: Task) -> list[Episode]:
        async with gate:
            play_seed = random.Random(f"{seed}/{index}").randrange(2**63)
            return await run_play(
                protocol, task, play_seed, players, f"{name}-{index}", meta={"arm": name}, seats=seats
            )

    return await gather_or_cancel([one(index, tasks[index]) for index in only or range(len(tasks))])
