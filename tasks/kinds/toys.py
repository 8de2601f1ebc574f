"""Tiny questions for trying protocols out on tiny models: two claims, a word, two prices, and an exact check.

A root task lists pairs of digits as proposals. The task derived from the pair "3 7" asks which is larger, with 3 and 7
as claims; its hidden material lets the games be played on it too: a word for `taboo`, a cost and a value for
`negotiation`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from protocols.types import Domain, Hidden, InvalidProposal, Task
from tasks.base import TaskSource

DIGITS = tuple("0123456789")
PAIRS = tuple(f"{a} {b}" for a in DIGITS for b in DIGITS if a != b)
HELD_OUT = tuple(pair for i, pair in enumerate(PAIRS) if i % 9 == 4)
"""Reserved for evaluation."""
OPEN = tuple(pair for pair in PAIRS if pair not in HELD_OUT)
WORDS = (
    "apple", "bridge", "candle", "desert", "engine", "feather", "garden", "harbour", "island", "journey", "kettle",
    "ladder", "mirror", "needle", "orchard", "pencil", "quarry", "river", "shadow", "tunnel", "umbrella", "valley",
    "window", "winter", "anchor", "basket", "castle", "dragon", "forest", "guitar",
)  # fmt: skip
"""For taboo. Every third is for evaluation."""


@dataclass(frozen=True)
class ToyDomain(Domain):
    """A proposal is two different digits."""

    def derive(self, task: Task, proposal: str) -> Task:
        pair = " ".join(proposal.split())
        if pair not in task.proposals:
            raise InvalidProposal("must be one of the pairs that the task lists")
        first, second = pair.split()
        held_out = pair in HELD_OUT
        words = WORDS[::3] if held_out else [word for i, word in enumerate(WORDS) if i % 3]
        cost = int(min(first, second))
        hidden = {
            "word": Hidden(words[PAIRS.index(pair) % len(words)], ("attacker",)),
            "cost": Hidden(str(cost), ("seller",)), "value": Hidden(str(cost + 4), ("buyer",)),
        }  # fmt: skip
        return Task(
            f"{task.id}/{first}{second}", f"Which is larger, {first} or {second} ?", max(first, second),
            (first, second), hidden=hidden, domain=self, parent=task.id,
        )  # fmt: skip

    def check(self, task: Task, answer: str) -> bool:
        return answer.strip() == task.answer


@dataclass(frozen=True)
class Toys(TaskSource):
    """One root task, `toy`; derived ones have ids `toy/37`."""

    kind: ClassVar[str] = "toys"

    def train(self, rng: random.Random) -> Task:
        return self.root("toy")

    def heldout(self, n: int, seed: int) -> list[Task]:
        return [Task("toy", "Choose two digits.", proposals=HELD_OUT, domain=ToyDomain())] * n

    def derived_heldout(self, n: int, seed: int) -> list[Task]:
        order = list(HELD_OUT)
        random.Random(f"toys heldout {seed}").shuffle(order)
        return [ToyDomain().derive(task, order[i % len(order)]) for i, task in enumerate(self.heldout(n, seed))]

    def cluster(self, task: Task) -> str:
        return task.id

    def root(self, task_id: str) -> Task:
        if task_id != "toy":
            raise KeyError(task_id)
        return Task("toy", "Choose two digits.", proposals=OPEN, domain=ToyDomain())

    def words(self) -> list[str]:
        prices = [str(price) for price in range(14)]
        return ["Choose", "two", "digits.", "Which", "is", "larger,", "or", "?", *prices, *WORDS]
