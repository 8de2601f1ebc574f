"""rollout_loop: keeps plays running, as many as there are slots, and hands finished ones to the ledger.

    slots ──► draw a task ──► run_play (all its turns, sub-plays) ──► ledger ──► learn_loop ──► slots

Consumes tasks and players. Waits for slots. Is unblocked by `release`, which the learn loop calls only after
the new weights have reached every engine: with `max_staleness: 0` there are just enough slots for one learner
step, so no play ever sees two versions; with k there are k + 1 steps' worth, and `batch` sees to it that none is
overtaken for longer. Produces committed root plays.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from actors.concurrency import gather_or_cancel
from actors.players.base import Seated
from actors.rollout.audit import Audit
from actors.rollout.filters import Filter
from actors.rollout.ledger import Group, Ledger
from actors.rollout.runner import run_play
from actors.rollout.staleness import choose, due_again, spare_groups
from actors.serving.messages import EngineLost
from configs.schema.run import StageConfig
from protocols.base import Protocol
from protocols.errors import UserError
from protocols.kinds.propose_solve import ProposeSolve
from protocols.proposals import carried_proposal, with_proposal
from protocols.types import Episode, Outcome, Status, Task
from tasks.archive import Archive
from tasks.base import TaskSource, real_task, training_task as training_task
from tasks.distinct import Distinct
from tasks.trusted import trusted

MAX_ATTEMPTS = 3
MAX_DRAWS = 100_000


Seating = Callable[[int], AbstractAsyncContextManager[Mapping[str, Seated]]]


@asynccontextmanager
async def as_bound(group: int) -> AsyncIterator[Mapping[str, Seated]]:
    """Every seat is taken by who plays its role."""
    yield {}


class TooManyInvalid(RuntimeError):
    """Nearly every play of a stage ended without a usable outcome: training on the rest would mislead."""


class NoTrustedTask(UserError):
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
        learners: Collection[str] | None = None,
    ):
        """`state`: what `self.state()` said when the run was saved, and the `step` reached. `deterministic`: nothing
        depends on which play ends first; proposals are archived at the end of their step, in order. `learners`: the
        policies that the stage updates, for `stage.keep`; None: all."""
        self.name, self.stage, self.protocol, self.source = name, stage, protocol, source
        self.players, self.ledger, self.seed, self.archive = players, ledger, seed, archive
        self.deterministic = deterministic
        self._ended: dict[int, Episode] = {}
        """Root plays by index, to be archived."""
        self.groups_per_step = stage.plays_per_step // stage.repeats
        keep = stage.keep
        self.filter = None if keep is None else Filter(name, keep, learners, self.groups_per_step)
        self.spare = spare_groups(stage.oversample, self.groups_per_step)
        self._held: dict[int, dict[int, list[Episode]]] | None = {} if self.filter or self.spare else None
        """Group -> index -> its play as far as it has come, until it is decided what becomes of the group."""
        known = [(entry.task_id, entry.proposal) for entry in archive.within(0.0, 1.0)]
        self.distinct = None if stage.distinct is None else Distinct(stage.distinct, known)
        self.audit: Audit | None = None
        self._rates: dict[str, list[float]] = defaultdict(list)
        """Origin of a task -> solve rates since the last metrics."""
        self.next_group: int = state["group"] if state else 0
        self._again: list[int] = list(state["again"]) if state else []
        self._open: dict[int, int] = {}
        """Groups that have started and that no learner has had, and the step at which they are due."""
        self.statuses: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        """Why plays were invalid or lost."""
        self._begun_at = step = int(state.get("step", 0)) if state else 0
        self._due_again = due_again(self._again, step, self.groups_per_step, self.spare)
        needed = self.groups_per_step * (stage.steps - step)
        slots = min(needed, self.groups_per_step * (1 + stage.max_staleness))
        self._slots = asyncio.Semaphore(slots + (self.spare if needed else 0))
        self._to_come = needed - slots
        """Groups that this stage still needs beyond its slots: none is started that no step will learn from."""
        self._released = self._cancelled = self._owed = self._lag = 0
        """Groups learned from; given up; given up since the last release. By how many steps the last batch lagged."""
        self._running: dict[int, asyncio.Task[None]] = {}
        self._failure: BaseException | None = None
        self._failed = asyncio.Event()
        self.seating: Seating = as_bound
        """Who takes which seat in the plays of a group, in place of who plays its role."""

    @property
    def step(self) -> int:
        """Learner steps whose weights the engines have."""
        return self._begun_at + self._released // self.groups_per_step

    async def batch(self) -> list[list[Episode]]:
        """The plays of the next learner step. None of them began more than `max_staleness` steps ago, and neither
        will those of later steps: waits for groups that are due, or (`oversample`) cancels what is still left."""
        step = self.step
        plays = await self.ledger.batch(self.groups_per_step, self._choose)
        taken = self._groups(plays)
        self._lag = max(step - self._open[group] + self.stage.max_staleness for group in taken)
        for group in taken if self.spare else ():
            self._record(group)
        last = step + 1 >= self.stage.steps
        for group in [group for group, due in self._open.items() if group not in taken and (last or due <= step)]:
            self._cancel(group)
        if self.spare:
            self.ledger.sync()
        return plays

    def _choose(self, waiting: Sequence[Group]) -> list[int] | None:
        if len(waiting) < self.groups_per_step:
            return None
        finished = [group for plays in waiting for group in self._groups(plays)]
        taken = choose(self._open, finished, self.step, self.groups_per_step, self.spare)
        return None if taken is None else [finished.index(group) for group in taken]

    def _groups(self, plays: Sequence[Sequence[Episode]]) -> set[int]:
        return {play[0].meta["index"] // self.stage.repeats for play in plays}

    def _cancel(self, group: int) -> None:
        """Gives up a group that no step can take any more. Its slot is free once the next weights are there."""
        task = self._running.get(group)
        if task is not None:
            task.cancel()
        self.ledger.drop_waiting(lambda plays: group in self._groups(plays))
        reason = f"overtaken: it would lag more than max_staleness {self.stage.max_staleness}"
        self.statuses["cancelled"] += self._record(group, "cancelled", reason)
        del self._open[group]
        self._cancelled += 1
        self._owed += 1

    def release(self, plays: Sequence[Sequence[Episode]]) -> None:
        """Called when these plays have been learned from and the engines have the result."""
        for index in sorted(self._ended):
            self._remember(self._ended.pop(index))
        if self.filter is not None:
            self.filter.step()
        for group in self._groups(plays):
            self._open.pop(group, None)
            self._released += 1
            if self._to_come > 0:
                self._to_come -= 1
                self._slots.release()
        owed, self._owed = self._owed, 0
        for _ in range(owed if self.step < self.stage.steps else 0):
            self._slots.release()

    def state(self) -> dict[str, Any]:
        """Which groups are still to come, for a checkpoint."""
        return {"group": self.next_group, "again": sorted(self._open)}

    def metrics(self) -> dict[str, float]:
        """How plays have ended so far, and what the archive holds."""
        found = {f"plays_{status}": float(n) for status, n in self.statuses.items()}
        found |= {} if self.filter is None else self.filter.metrics()
        found |= {"lag_max": float(self._lag)} | ({"cancelled_groups": float(self._cancelled)} if self.spare else {})
        found |= {} if self.audit is None else self.audit.metrics()
        found |= {} if self.distinct is None else {"proposals_refused": float(self.distinct.refused)}
        found |= {f"solve_rate/{origin}": sum(rates) / len(rates) for origin, rates in self._rates.items()}
        self._rates.clear()
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
                group = self._next_group()
                self._running[group] = task = asyncio.ensure_future(self._group(group))
                task.add_done_callback(partial(self._finished, group))
        finally:
            ending = [waiting, failed, *self._running.values()]
            for one in ending:
                one.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            if self.audit is not None:
                await self.audit.stop()
            for group in list(self._held or ()):
                self._record(group, "cancelled", "the stage was left")

    def _finished(self, group: int, task: asyncio.Task[None]) -> None:
        del self._running[group]
        if not task.cancelled() and task.exception() is not None and self._failure is None:
            self._failure = task.exception()
            self._failed.set()

    def _next_group(self) -> int:
        if self._again:
            group = self._again.pop(0)
        else:
            group, self.next_group = self.next_group, self.next_group + 1
        self._open[group] = self._due_again.get(group, self.step + self.stage.max_staleness)
        return group

    async def _group(self, group: int) -> None:
        """All plays of one task. They reach the learner together, or not at all: what came out invalid is left
        away, and a play whose siblings all did has no one to be compared with. With `keep` or `oversample` they are
        recorded together too, when it is known what becomes of them: what a crash interrupts is then played again."""
        repeats = self.stage.repeats
        async with self.seating(group) as seats:
            plays = await gather_or_cancel([self._one(repeats * group + i, seats) for i in range(repeats)])
        sound = [play for play in plays if play[0].status == "ok"]
        enough = len(sound) >= min(2, repeats)
        reason = self.filter.reason(sound) if self.filter is not None and enough else ""
        if enough and not reason:
            if not self.spare:  # else when it is taken
                self._record(group)
            self.ledger.queue(sound)
            return
        self._record(group, "filtered" if reason else "ok", reason)
        if reason and self.filter is not None:
            self.filter.check()
        if sound:
            self.statuses["filtered" if reason else "alone"] += len(sound)
        del self._open[group]
        self._slots.release()  # it reaches no learner: a replacement may start at once
        self.ledger.wake()

    def _record(self, group: int, status: Status = "ok", reason: str = "") -> int:
        """Commits the plays of a group that are held back, the sound ones with this status. Returns how many."""
        plays = self._held.pop(group, {}).values() if self._held is not None else ()
        for play in plays:
            if play[0].id not in self.ledger:
                self.ledger.commit(play[0].id, marked(play, status, reason) if reason else play, train=False)
        return len(plays)

    async def _one(self, index: int, seats: Mapping[str, Seated]) -> list[Episode]:
        """One root play, tried again when its engines were lost. Lost attempts are recorded, never rewarded."""
        task, origin = self._draw(index)
        drawn = task
        if self.distinct is not None and origin == "proposed":
            task = self.distinct.guard(task, index)
        rng = random.Random(f"{self.seed}/{self.name}/play/{index}")
        why = ""
        for attempt in range(MAX_ATTEMPTS):
            id = f"{self.name}-{index}" + (f".{attempt}" if attempt else "")
            seed = rng.randrange(2**63)
            if id in self.ledger.restored:  # played before the run was interrupted
                return self._noted(marked(self.ledger.recall(id), "ok", was="filtered"), drawn, origin)
            meta = {"stage": self.name, "index": index}
            bare = replace(task, domain=None, game=None)
            unplayed = Episode(id, self.protocol.name, bare, seed, (), Outcome(), meta=meta)
            self._hold(index, [unplayed])
            try:
                episodes = await run_play(self.protocol, task, seed, self.players, id, meta=meta, seats=seats)
            except EngineLost as error:
                why = str(error)
                self._count("lost", why)
                self.ledger.commit(id, marked([unplayed], "lost", why), train=False)
                continue
            if self._held is None:
                self.ledger.commit(id, episodes, train=False)
            return self._noted(episodes, drawn, origin)
        raise EngineLost(f"play {self.name}-{index} was lost {MAX_ATTEMPTS} times; {why}")

    def _hold(self, index: int, play: list[Episode]) -> None:
        if self._held is not None:
            self._held.setdefault(index // self.stage.repeats, {})[index] = play

    def _noted(self, episodes: list[Episode], task: Task, origin: str) -> list[Episode]:
        root = episodes[0]
        self._hold(root.meta["index"], episodes)
        self._count(root.status, root.outcome.reason)
        if root.status == "ok":
            if self.deterministic:
                self._ended[root.meta["index"]] = root
            else:
                self._remember(root)
            for number, (proposal, rate) in enumerate(self._rated(root)):
                if rate is not None:
                    self._rates[origin].append(rate)
                if self.audit is not None and origin != "replayed":
                    self.audit.begin(root, task, proposal, origin, number)
        return episodes

    def _rated(self, root: Episode) -> list[tuple[str, float | None]]:
        """What was proposed in a root play and could be decided, with its solve rate."""
        return self.protocol.rates(root) if isinstance(self.protocol, ProposeSolve) else []

    def _remember(self, root: Episode) -> None:
        """Archives what was proposed, with the share of sub-plays that succeeded."""
        for proposal, rate in self._rated(root):
            if carried_proposal(root.task) is None:
                self.archive.add(proposal, root.task.id, rate)
            else:
                self.archive.update(proposal, root.task.id, rate)

    def _count(self, status: str, reason: str = "") -> None:
        self.statuses[status] += 1
        if reason:
            self._reasons[reason] += 1
        bad = self.statuses["invalid"] + self.statuses["lost"]
        if bad > 4 * self.stage.plays_per_step and bad > 9 * self.statuses["ok"]:
            raise TooManyInvalid(
                f"stage {self.name!r}: {bad} of {self.statuses.total()} plays were invalid or lost; "
                f"most often: {self._reasons.most_common(1)[0][0] if self._reasons else 'no reason was given'}"
            )

    def draw(self, index: int) -> Task:
        """The task of root play `index`: the same for siblings, whatever ran before (but for the archive)."""
        return self._draw(index)[0]

    def _draw(self, index: int) -> tuple[Task, str]:
        """The same, and where it is from: replayed, real or proposed. Where the task source itself brings proposals
        along, all of them are real."""
        stage = self.stage
        rng = random.Random(f"{self.seed}/{self.name}/task/{index // stage.repeats}")
        share, rates = rng.random(), stage.archive_rates or (0.0, 1.0)
        if share < stage.archive and self.archive.within(*rates):
            entry = self.archive.draw(rng, stage.archive_frontier, rates)
            return with_proposal(self.source.root(entry.task_id), entry.proposal), "replayed"
        if stage.archive <= share < stage.archive + stage.real:
            return real_task(self.source, rng), "real"
        task = training_task(self.source, self.protocol, rng)
        return task, "proposed" if carried_proposal(task) is None else "real"


def marked(play: Sequence[Episode], status: Status, reason: str = "", was: Status = "ok") -> list[Episode]:
    """The play with another status on each of its episodes whose status was `was`."""
    return [
        replace(one, outcome=replace(one.outcome, status=status, reason=reason)) if one.status == was else one
        for one in play
    ]


def trusted_task(source: TaskSource, protocol: Protocol, rng: random.Random, share: float) -> Task:
    """A `training_task` for a warm start, of the trusted slice."""
    for _ in range(MAX_DRAWS):
        task = training_task(source, protocol, rng, warm=True)
        if trusted(source.cluster(task), share):
            return task
    raise NoTrustedTask(f"none of {MAX_DRAWS:,} tasks drawn is in the trusted slice of {share:g}; raise `trusted`")


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
