"""Lists of digits to reverse or sort, and numbers to add, at a length that a proposer chooses.

The task pair of a proposer and a solver with an exact verifier (in the manner of Absolute Zero, arXiv
2505.03335, and R-Zero, arXiv 2508.05004). Every digit is a word of its own, so that tiny tokenizers have a
token for each:

    proposal "3 1 4"      question "reverse 3 1 4"      answer "4 1 3"      length 3
    proposal "4 7 + 8 5"  question "add 4 7 + 8 5"      answer "1 3 2"      length 2 (digits of each number)

Numbers may start with zeros, sums do not. A tenth of all instances, chosen by hash, is reserved for
evaluation: a proposer that hits one is told so, and no solver trains on it. At length 2 that is about ten of
a hundred lists, so evaluations with more per length repeat them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import random
from dataclasses import dataclass
from typing import ClassVar

from protocols.proposals import carried_proposal, with_example, with_proposal
from protocols.types import Domain, Hidden, InvalidProposal, Task
from tasks.base import TaskSource

DIGITS = tuple("0123456789")
PLUS = "+"
SAMPLERS = ("proposer", "uniform", "easy")
OPS = {
    "reverse": "write reverse and then {low} to {high} digits",
    "sort": "write sort and then {low} to {high} digits",
    "add": "write add and then two numbers of {low} to {high} digits joined by +",
}
"""op -> what a proposer is asked for."""
HELDOUT = "heldout"
"""Key in `Task.hidden` of a held-out root task: the reserved operands that it opens. Nobody is shown it.
Apart from the carried proposal, which a protocol takes off before it asks for the derived task."""
_ENUMERABLE = 10_000
"""Lengths with at most this many instances are listed in full, so that few of them are drawn twice."""


def solve(op: str, proposal: str) -> str:
    """The right answer to a well-formed proposal."""
    if op == "add":
        first, second = proposal.split(PLUS)
        return " ".join(str(int(first.replace(" ", "")) + int(second.replace(" ", ""))))
    digits = proposal.split()
    return " ".join(sorted(digits) if op == "sort" else reversed(digits))


@dataclass(frozen=True)
class ListDomain(Domain):
    """A proposal is the operands as text, with or without the name of the op before them."""

    op: str
    min_len: int
    max_len: int

    def derive(self, task: Task, proposal: str) -> Task:
        words = proposal.split()
        if words[:1] == [self.op]:
            words = words[1:]
        length = self._length(words)
        operands = " ".join(words)
        digest = _digest(self.op, operands)
        opened = task.hidden.get(HELDOUT)
        if _is_reserved(digest) and (opened is None or opened.text != operands):
            raise InvalidProposal("reserved for evaluation")
        return Task(
            id=f"{self.op}/{length}/{digest[:12]}",
            question=f"{self.op} {operands}",
            answer=solve(self.op, operands),
            domain=self,
            parent=task.id,
        )

    def check(self, task: Task, answer: str) -> bool:
        return answer.split() == (task.answer or "").split()

    def grade(self, task: Task, answer: str) -> float:
        """The share of words before the first wrong, missing or superfluous one."""
        said, right = answer.split(), (task.answer or "").split()
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(said, right))
        return sum(1 for _ in same) / max(len(said), len(right), 1)

    def _length(self, words: list[str]) -> int:
        if self.op == "add":
            if words.count(PLUS) != 1:
                raise InvalidProposal(f"must be two numbers joined by {PLUS}")
            at = words.index(PLUS)
            numbers = [words[:at], words[at + 1 :]]
            if len(numbers[0]) != len(numbers[1]):
                raise InvalidProposal("both numbers must have the same number of digits")
        else:
            numbers = [words]
        if any(word not in DIGITS for number in numbers for word in number):
            raise InvalidProposal("must be single digits with spaces between them")
        length = len(numbers[0])
        if not self.min_len <= length <= self.max_len:
            raise InvalidProposal(f"must have {self.min_len} to {self.max_len} digits, not {length}")
        return length


@dataclass(frozen=True)
class Lists(TaskSource):
    """One root task, named after its op. Derived tasks have ids `op/length/hash`."""

    kind: ClassVar[str] = "lists"

    op: str = "reverse"
    """reverse, sort or add."""
    min_len: int = 2
    max_len: int = 16
    warm_decay: float = 0.5
    """Warm starts see every length, each this many times as often as the one before: mostly short lists, and
    accuracy that falls off with length. (With none above some length the solver never answers longer ones
    right, not even by chance, and there is nothing to reinforce.)"""
    easy_max_len: int = 5
    """Longest list of the easy sampler."""
    sampler: str = "proposer"
    """Who chooses training tasks. proposer: a policy. uniform: every length equally often. easy: only lengths
    up to `easy_max_len`. The last two are controls; their root tasks carry a proposal and no proposer is
    asked."""

    def train(self, rng: random.Random) -> Task:
        if self.sampler == "proposer":
            return self.root(self.op)
        longest = self.max_len if self.sampler == "uniform" else self.easy_max_len
        return with_proposal(self.root(self.op), self._draw(rng, longest, decay=1.0))

    def warm(self, rng: random.Random) -> Task:
        """Whatever the sampler: mostly short lists, as examples to the proposer, so that every control starts
        alike."""
        return with_example(self.root(self.op), self._draw(rng, self.max_len, self.warm_decay))

    def heldout(self, n: int, seed: int) -> list[Task]:
        """Root tasks that carry reserved proposals, all lengths equally often (interleaved, shortest
        first)."""
        lengths = range(self.min_len, self.max_len + 1)
        per_length = -(-n // len(lengths))
        columns = [
            self._reserved(length, per_length, random.Random(f"lists heldout {seed} {self.op} {length}"))
            for length in lengths
        ]
        rows = itertools.islice(itertools.chain.from_iterable(zip(*columns, strict=True)), n)
        root = self.root(self.op)
        return [
            with_proposal(dataclasses.replace(root, hidden={HELDOUT: Hidden(proposal, roles=())}), proposal)
            for proposal in rows
        ]

    def derived_heldout(self, n: int, seed: int) -> list[Task]:
        domain = self._domain()
        return [domain.derive(task, carried_proposal(task) or "") for task in self.heldout(n, seed)]

    def needs_proposer(self) -> bool:
        return self.sampler == "proposer"

    def cluster(self, task: Task) -> str:
        return task.id

    def bucket(self, task: Task) -> str | None:
        return task.id.split("/")[1]

    def root(self, task_id: str) -> Task:
        if task_id != self.op:
            raise KeyError(task_id)
        question = OPS[self.op].format(low=self.min_len, high=self.max_len)
        return Task(id=self.op, question=question, domain=self._domain())

    def words(self) -> list[str]:
        return list(dict.fromkeys([*self.root(self.op).question.split(), *DIGITS, PLUS]))

    def problems(self) -> list[tuple[str, str]]:
        found = []
        if self.op not in OPS:
            found.append(("op", f"must be one of {', '.join(OPS)}, not {self.op!r}"))
        if self.sampler not in SAMPLERS:
            found.append(("sampler", f"must be one of {', '.join(SAMPLERS)}, not {self.sampler!r}"))
        shortest = 1 if self.op == "add" else 2
        if self.min_len < shortest:
            found.append(("min_len", f"must be at least {shortest}, not {self.min_len}"))
        if self.max_len < self.min_len:
            found.append(("max_len", f"must be at least min_len ({self.min_len}), not {self.max_len}"))
        if not self.min_len <= self.easy_max_len <= self.max_len:
            message = f"must lie between min_len ({self.min_len}) and max_len ({self.max_len})"
            found.append(("easy_max_len", f"{message}, not {self.easy_max_len}"))
        if not 0 < self.warm_decay <= 1:
            found.append(("warm_decay", f"must lie above 0 and be at most 1, not {self.warm_decay}"))
        return found

    def _domain(self) -> ListDomain:
        return ListDomain(self.op, self.min_len, self.max_len)

    def _draw(self, rng: random.Random, longest: int, decay: float) -> str:
        """Operands of a length up to `longest`, not reserved. Each length is `decay` times as likely as the one
        before it."""
        lengths = range(self.min_len, longest + 1)
        weights = [decay**i for i in range(len(lengths))]
        while True:
            operands = self._operands(rng, rng.choices(lengths, weights)[0])
            if not _is_reserved(_digest(self.op, operands)):
                return operands

    def _operands(self, rng: random.Random, length: int) -> str:
        return self._join(rng.choices(DIGITS, k=self._size(length)))

    def _size(self, length: int) -> int:
        return 2 * length if self.op == "add" else length

    def _join(self, digits: list[str] | tuple[str, ...]) -> str:
        if self.op != "add":
            return " ".join(digits)
        half = len(digits) // 2
        return " ".join([*digits[:half], PLUS, *digits[half:]])

    def _reserved(self, length: int, count: int, rng: random.Random) -> list[str]:
        """`count` reserved operands of one length: all different where there are enough, else repeated
        evenly."""
        size = self._size(length)
        if 10**size <= _ENUMERABLE:
            instances = map(self._join, itertools.product(DIGITS, repeat=size))
            found = [operands for operands in instances if _is_reserved(_digest(self.op, operands))]
            rng.shuffle(found)
            return [found[i % len(found)] for i in range(count)]
        distinct: dict[str, None] = {}
        while len(distinct) < count:
            operands = self._operands(rng, length)
            if _is_reserved(_digest(self.op, operands)):
                distinct[operands] = None
        return list(distinct)


def _digest(op: str, operands: str) -> str:
    return hashlib.sha256(f"{op} {operands}".encode()).hexdigest()


def _is_reserved(digest: str) -> bool:
    return int(digest[:15], 16) % 10 == 0
