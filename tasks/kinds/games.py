"""Tasks of the games that rules decide: words for `taboo`, limits of seller and buyer for `negotiation`."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from protocols.types import Hidden, Task
from tasks.base import TaskSource
from tasks.kinds.toys import WORDS


@dataclass(frozen=True)
class TabooWords(TaskSource):
    """One task per word, with the id `word/NAME`; the attacker alone is shown the word."""

    kind: ClassVar[str] = "words"

    vocabulary: tuple[str, ...] = WORDS
    """The words. SPAG draws from 50,000 frequent ones; name your own."""
    holdout: int = 10
    """How many, from the end of the list, are kept for evaluation."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "vocabulary", tuple(self.vocabulary))

    def train(self, rng: random.Random) -> Task:
        return self._task(rng.choice(self.vocabulary[: -self.holdout]))

    def heldout(self, n: int, seed: int) -> list[Task]:
        order = [*self.vocabulary[-self.holdout :]]
        random.Random(f"words heldout {seed}").shuffle(order)
        return [self._task(order[i % len(order)]) for i in range(n)]

    def derived_heldout(self, n: int, seed: int) -> list[Task]:
        return self.heldout(n, seed)

    def cluster(self, task: Task) -> str:
        return task.id

    def root(self, task_id: str) -> Task:
        word = task_id.removeprefix("word/")
        if word == task_id or word not in self.vocabulary:
            raise KeyError(task_id)
        return self._task(word)

    def words(self) -> list[str]:
        return [*self.vocabulary]

    def problems(self) -> list[tuple[str, str]]:
        found = []
        if not 1 <= self.holdout < len(self.vocabulary):
            found.append(("holdout", f"must be 1 to {len(self.vocabulary) - 1}, not {self.holdout}"))
        if len(set(self.vocabulary)) < len(self.vocabulary) or any(len(word.split()) != 1 for word in self.vocabulary):
            found.append(("vocabulary", "must be different single words"))
        return found

    def _task(self, word: str) -> Task:
        return Task(f"word/{word}", "", hidden={"word": Hidden(word, ("attacker",))})


@dataclass(frozen=True)
class Bargains(TaskSource):
    """Tasks `bargain/COST-VALUE`: something that costs the seller less than it is worth to the buyer."""

    kind: ClassVar[str] = "bargains"

    lowest: int = 5
    """Of what the thing costs the seller; the cost is at most twice that."""
    gain: int = 10
    """The value lies above the cost by at least half of this and at most this."""

    def train(self, rng: random.Random) -> Task:
        return rng.choice(self._all(held_out=False))

    def heldout(self, n: int, seed: int) -> list[Task]:
        order = self._all(held_out=True)
        random.Random(f"bargains heldout {seed}").shuffle(order)
        return [order[i % len(order)] for i in range(n)]

    def derived_heldout(self, n: int, seed: int) -> list[Task]:
        return self.heldout(n, seed)

    def cluster(self, task: Task) -> str:
        return task.id

    def root(self, task_id: str) -> Task:
        found = {task.id: task for task in (*self._all(False), *self._all(True))}
        return found[task_id]

    def words(self) -> list[str]:
        return [*self._task(0, 0).question.split(), *map(str, range(2 * self.lowest + self.gain + 1))]

    def problems(self) -> list[tuple[str, str]]:
        found = []
        if self.lowest < 1:
            found.append(("lowest", "must be at least 1"))
        if self.gain < 4:
            found.append(("gain", "must be at least 4"))
        return found

    def _all(self, held_out: bool) -> list[Task]:
        """Every fifth pair of limits is for evaluation."""
        costs = range(self.lowest, 2 * self.lowest + 1)
        gains = range((self.gain + 1) // 2, self.gain + 1)
        pairs = [(cost, cost + gain) for cost in costs for gain in gains]
        return [self._task(*pair) for i, pair in enumerate(pairs) if (i % 5 == 2) == held_out]

    def _task(self, cost: int, value: int) -> Task:
        hidden = {"cost": Hidden(str(cost), ("seller",)), "value": Hidden(str(value), ("buyer",))}
        return Task(f"bargain/{cost}-{value}", "What is for sale is a balloon.", hidden=hidden)
