"""Alignment of two small ontology modules with an exact score (after Amini et al. 2024, arXiv 2404.10329).

A task shows the classes of two modules. An answer is one correspondence per line, `Left = Right`, where the right
side may be a conjunction (`Student = Person & Enrolled`): the *complex* correspondences of the paper. It is compared
with the reference as a set: precision, recall, F1. Tasks are drawn from a table of concepts, so that no reference is
in dispute.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from protocols.proposals import with_proposal
from protocols.types import Domain, InvalidProposal, Task
from tasks.base import TaskSource

CONCEPTS = (
    ("Author", "Writer"), ("Paper", "Article"), ("Venue", "Conference"), ("Reviewer", "Referee"),
    ("Employee", "Worker"), ("Firm", "Company"), ("Client", "Customer"), ("Salary", "Wage"), ("City", "Town"),
    ("Road", "Street"), ("Vessel", "Ship"), ("Automobile", "Car"), ("Physician", "Doctor"), ("Illness", "Disease"),
    ("Drug", "Medicine"), ("Film", "Movie"), ("Student", "Person & Enrolled"), ("Widow", "Woman & Bereaved"),
    ("Captain", "Sailor & Commander"), ("Bestseller", "Book & Popular"), ("Orphanage", "House & Charity"),
    ("Surgeon", "Medic & Operator"), ("Hybrid", "Motor & Electric"), ("Foal", "Horse & Young"),
)  # fmt: skip
"""(class of the left module, what it means in the right one). No class stands twice."""
DISTRACTORS = ("Event", "Thing", "Process", "Quality", "Region", "Amount")
"""Classes that either module may have and that correspond to nothing."""
ASK = (
    "Which classes of the left module mean what in the right module? Left: {left}. Right: {right}. "
    "Write one correspondence per line, a class = a class or classes joined by &."
)


def read_alignment(text: str) -> frozenset[tuple[str, frozenset[str]]]:
    """The correspondences of a text: one for each line with a single `=` between names. Other lines count as one
    wrong correspondence each, so that talk is not free; blank ones as nothing. Case and spaces do not matter."""
    found = set()
    for line in text.splitlines():
        left, equals, right = line.partition("=")
        parts = frozenset(part.strip().lower() for part in right.split("&"))
        if equals and left.strip() and "" not in parts and "=" not in right:
            found.add((left.strip().lower(), parts))
        elif line.strip():
            found.add((line.strip().lower(), frozenset()))
    return frozenset(found)


def f1(found: Iterable[object], right: Iterable[object]) -> float:
    """2PR / (P + R) = 2 |both| / (|found| + |right|); 1 for two empty sets."""
    one, other = set(found), set(right)
    return 2.0 * len(one & other) / (len(one) + len(other)) if one or other else 1.0


@dataclass(frozen=True)
class OntologyDomain(Domain):
    """A proposal is a list of left classes; the derived task asks for what they mean."""

    def derive(self, task: Task, proposal: str) -> Task:
        pairs = dict(CONCEPTS)
        chosen = proposal.split()
        if not chosen or len(set(chosen)) < len(chosen) or not {*chosen} <= {*pairs}:
            raise InvalidProposal("must be different classes of the left module")
        digest = hashlib.sha256(" ".join(sorted(chosen)).encode()).hexdigest()[:12]
        rng = random.Random(digest)
        extra = rng.sample(DISTRACTORS, 4)
        left = [*chosen, *extra[:2]]
        right = [part for name in chosen for part in pairs[name].split(" & ")] + extra[2:]
        rng.shuffle(left)
        rng.shuffle(right)
        answer = "\n".join(f"{name} = {pairs[name]}" for name in sorted(chosen))
        question = ASK.format(left=", ".join(left), right=", ".join(right))
        return Task(f"{task.id}/{digest}", question, answer, domain=self, parent=task.id)

    def check(self, task: Task, answer: str) -> bool:
        return read_alignment(answer) == read_alignment(task.answer or "")

    def grade(self, task: Task, answer: str) -> float:
        """F1 against the reference."""
        return f1(read_alignment(answer), read_alignment(task.answer or ""))


@dataclass(frozen=True)
class Ontology(TaskSource):
    """One root task; what is derived from it aligns `size` classes. A tenth of all choices of classes, by hash, is
    reserved for evaluation."""

    kind: ClassVar[str] = "ontology"

    size: int = 5
    """Correspondences of a task."""

    def train(self, rng: random.Random) -> Task:
        return with_proposal(self.root("ontology"), self._draw(rng, reserved=False))

    def heldout(self, n: int, seed: int) -> list[Task]:
        rng = random.Random(f"ontology heldout {seed}")
        return [with_proposal(self.root("ontology"), self._draw(rng, reserved=True)) for _ in range(n)]

    def derived_heldout(self, n: int, seed: int) -> list[Task]:
        return [OntologyDomain().derive(task, task.hidden["proposal"].text) for task in self.heldout(n, seed)]

    def cluster(self, task: Task) -> str:
        return task.id

    def root(self, task_id: str) -> Task:
        if task_id != "ontology":
            raise KeyError(task_id)
        return Task("ontology", "Choose classes of the left module to align.", domain=OntologyDomain())

    def words(self) -> list[str]:
        names = [part for left, right in CONCEPTS for part in (left, *right.split(" & "))]
        texts = [ASK, self.root("ontology").question, "= &"]
        listed = [form for name in (*names, *DISTRACTORS) for form in (name, f"{name},", f"{name}.")]
        return list(dict.fromkeys([*(word for text in texts for word in text.split()), *listed]))

    def problems(self) -> list[tuple[str, str]]:
        if 2 <= self.size <= len(CONCEPTS):
            return []
        return [("size", f"must be 2 to {len(CONCEPTS)}, not {self.size}")]

    def _draw(self, rng: random.Random, reserved: bool) -> str:
        """`size` left classes whose choice is reserved, or is not."""
        if self.size == len(CONCEPTS):  # there is one choice
            return " ".join(left for left, _ in CONCEPTS)
        while True:
            chosen = rng.sample([left for left, _ in CONCEPTS], self.size)
            digest = hashlib.sha256(" ".join(sorted(chosen)).encode()).hexdigest()
            if (int(digest[:15], 16) % 10 == 0) == reserved:
                return " ".join(chosen)
