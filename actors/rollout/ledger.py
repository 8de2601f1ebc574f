"""The durable record of what was played, and the exactly-once hand-off to learners.

Ray retries are at-least-once (a worker that wrote and then died writes twice), so exactly-once is made
here: a root play is committed under its root id, and a second commit of that id is refused and counted. All
episodes of a root (its sub-plays carry `parent`) are appended with one write, the root's own line last: a root
whose line is in the file is there completely, and what a crash left behind the last root's line is cut
off on reopening.

A root that was `lost` (its engine died, say) or `cancelled` is recorded, but leaves its id free for another attempt.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from actors.rollout import records
from actors.rollout.files import cut_tail
from protocols.errors import UserError
from protocols.types import Episode

FREE = ("lost", "cancelled")
"""Status of root plays that may be played again under the same id."""
Group = Sequence[list[Episode]]
"""Root plays that are compared with each other, each [root, sub-plays...]."""


class LedgerInUse(UserError):
    """Another process is writing to this run directory."""


class Ledger:
    """Appends to `RUN_DIR/episodes.jsonl`. Opening an existing file restores what has been committed.

    Use it from one thread (the event loop's); `commit` never waits, so two commits cannot interleave.
    """

    def __init__(self, run_dir: Path | str) -> None:
        self.path = Path(run_dir) / "episodes.jsonl"
        self.counts: Counter[str] = Counter()
        """roots, episodes, duplicates (refused commits), ok, invalid, lost, filtered, cancelled (episodes by status),
        tokens (sampled), taken (roots handed to learners), cut (bytes of a torn write dropped on opening)."""
        self.restored: dict[str, tuple[int, int]] = {}
        """Root plays that an earlier process committed and `recall` has not taken: (byte offset, length)."""
        self._committed: set[str] = set()
        self._waiting: deque[Group] = deque()
        """Groups of plays."""
        self._arrival = asyncio.Event()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise LedgerInUse(f"{self.path} is being written by another process") from None
        self._restore()

    def __contains__(self, root_id: str) -> bool:
        return root_id in self._committed

    @property
    def waiting(self) -> int:
        """Root plays committed for learners and not taken yet."""
        return sum(map(len, self._waiting))

    def commit(self, root_id: str, episodes: list[Episode], train: bool = True) -> bool:
        """Records one root play: the episode whose id is `root_id` and its sub-plays, in any order.

        Returns False, and records nothing, when `root_id` is committed already. With `train`, a root that
        is `ok` is queued for `batch` as a group of its own. Raises ValueError unless exactly one episode has
        no parent and its id is `root_id`; OSError (nothing recorded) when the disk refuses.
        """
        if root_id in self._committed:
            self.counts["duplicates"] += 1
            return False
        roots = [episode for episode in episodes if episode.parent is None]
        if len(roots) != 1 or roots[0].id != root_id:
            raise ValueError(f"root play {root_id!r} needs one episode without parent, of that id, not "
                             f"{[episode.id for episode in roots]}")  # fmt: skip
        root = roots[0]
        children = [episode for episode in episodes if episode.parent is not None]
        self._append(records.encode([*children, root]))
        self._count([(episode.status, _sampled(episode)) for episode in episodes])
        if root.status not in FREE:
            self._committed.add(root_id)
            self.counts["roots"] += 1
        if train and root.status == "ok":
            self.queue([[root, *children]])
        return True

    def wake(self) -> None:
        """Lets a `batch` that waits choose again."""
        self._arrival.set()

    def queue(self, group: Group) -> None:
        """Queues recorded plays for `batch`, which never separates them: siblings are compared with each other."""
        self._waiting.append(group)
        self.wake()

    def recall(self, root_id: str) -> list[Episode]:
        """A root play that an earlier process committed, read back as [root, sub-plays...]. For a run that
        continues from a checkpoint older than its record: a play is not played twice, and reaches the learner
        that has not seen it. Each at most once; KeyError otherwise."""
        offset, length = self.restored.pop(root_id)
        lines = os.pread(self._file, length, offset).splitlines()
        *children, root = map(records.decode_line, lines)
        return [root, *children]

    def drop_waiting(self, which: Callable[[Group], bool] = lambda group: True) -> int:
        """Forgets what is queued for `batch`; it stays recorded. Returns how many root plays that were."""
        before = self.waiting
        self._waiting = deque(group for group in self._waiting if not which(group))
        return before - self.waiting

    async def batch(
        self, groups: int, choose: Callable[[Sequence[Group]], Sequence[int] | None] | None = None
    ) -> list[list[Episode]]:
        """The root plays of the next `groups` groups, in the order queued, each handed out once:
        [root, sub-plays...]. `choose`: which of those that are queued instead, by position; None while it waits for
        more.

        Waits until there are as many; a cancelled wait takes nothing. What was committed before is on disk when
        this returns (fsync).
        """
        choose = choose or (lambda waiting: range(groups) if len(waiting) >= groups else None)
        while (chosen := choose(self._waiting)) is None:
            self._arrival.clear()
            await self._arrival.wait()
        plays = [play for place in chosen for play in self._waiting[place]]
        gone = set(chosen)
        self._waiting = deque(group for place, group in enumerate(self._waiting) if place not in gone)
        self.counts["taken"] += len(plays)
        self.sync()
        return plays

    def sync(self) -> None:
        """Forces everything committed to disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Syncs and lets the file go. Safe to call twice."""
        if self._file >= 0:
            self.sync()
            os.close(self._file)
            self._file = -1

    def _append(self, data: bytes) -> None:
        """All or nothing: a write that fails half-way (a full disk) is taken back."""
        start = os.fstat(self._file).st_size
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError:
            os.ftruncate(self._file, start)
            raise

    def _restore(self) -> None:
        torn = cut_tail(self.path)
        end = complete = 0
        pending: list[tuple[str, int]] = []
        for head, offset, length in records.heads(self.path):
            end = offset + length
            pending.append((head.status, head.tokens))
            if head.parent is None:
                self._count(pending)
                pending = []
                if head.status not in FREE:
                    self._committed.add(head.id)
                    self.restored[head.id] = (complete, end - complete)
                    self.counts["roots"] += 1
                complete = end
        os.ftruncate(self._file, complete)
        self.counts["cut"] = torn + end - complete

    def _count(self, episodes: Iterable[tuple[str, int]]) -> None:
        for status, tokens in episodes:
            self.counts["episodes"] += 1
            self.counts[status] += 1
            self.counts["tokens"] += tokens


def _sampled(episode: Episode) -> int:
    return sum(len(turn.trace.output_ids_T) for turn in episode.turns if turn.trace is not None)
