"""Digits as evidence: the pixel debate of Irving et al. 2018 (arXiv 1805.00899, section 3.1) on
scikit-learn's digits.

An image is 8x8 pixels with values 0..16. A statement of evidence is one non-zero pixel, its value quantised
to `levels` steps: "r3c5=2" is row 3, column 5 (both from 0), level 2. With 4 levels a judge that saw four
random pixels picks the true label against one lie about 84% of the time, and search for reveals takes it to
98%.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import random
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from protocols.types import Domain, Hidden, InvalidProposal, Task
from tasks.base import TaskSource

IMAGES, SIDE, MAX_VALUE = 1797, 8, 16
LABELS = tuple(str(label) for label in range(10))
QUESTION = "which digit"


@dataclass(frozen=True)
class PixelDomain(Domain):
    """A proposal is a false label; the derived task asks which of the two labels is true."""

    def derive(self, task: Task, proposal: str) -> Task:
        lie = proposal.strip()
        if task.choices:
            raise InvalidProposal(f"{task.id} has its two claims already")
        if lie not in task.proposals:
            raise InvalidProposal(f"not a false label of {task.id}: {lie[:20]!r}")
        assert task.answer is not None
        derived_id = f"{task.id}/{lie}"
        lie_first = _digest(derived_id) % 2 == 1
        choices = (lie, task.answer) if lie_first else (task.answer, lie)
        return dataclasses.replace(task, id=derived_id, choices=choices, proposals=(), parent=task.id)

    def check(self, task: Task, answer: str) -> bool:
        return answer.strip() == task.answer


@dataclass(frozen=True)
class Pixels(TaskSource):
    """Root tasks `img<N>`: an image, its label, and the nine false labels as proposals."""

    kind: ClassVar[str] = "pixels"

    levels: int = 4
    """Steps that a pixel's value is quantised to: level = ceil(value * levels / 16)."""
    holdout: int = 500
    """Images kept for evaluation: always the same ones, whatever the seed of the run."""
    seen_by: tuple[str, ...] = ("debater", "proposer", "consultant")
    """Roles that see the whole image (all statements of its evidence)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seen_by", tuple(self.seen_by))

    def train(self, rng: random.Random) -> Task:
        return self._task(rng.choice(_split(self.holdout)[0]))

    def heldout(self, n: int, seed: int) -> list[Task]:
        """In an order drawn from `seed`; with `n` above `holdout` the images repeat, each equally often."""
        images = list(_split(self.holdout)[1])
        random.Random(f"pixels heldout {seed}").shuffle(images)
        return [self._task(images[i % len(images)]) for i in range(n)]

    def derived_heldout(self, n: int, seed: int) -> list[Task]:
        """Lies are uniform; an image that repeats gets another lie, until it has had all nine."""
        derived = []
        for i, task in enumerate(self.heldout(n, seed)):
            lies = list(task.proposals)
            random.Random(f"pixels lies {seed} {task.id}").shuffle(lies)
            derived.append(PixelDomain().derive(task, lies[i // self.holdout % len(lies)]))
        return derived

    def root(self, task_id: str) -> Task:
        number = task_id.removeprefix("img")
        if not (number.isdecimal() and task_id == f"img{int(number)}" and int(number) < IMAGES):
            raise KeyError(task_id)
        return self._task(int(number))

    def words(self) -> list[str]:
        cells = [(row, column) for row in range(SIDE) for column in range(SIDE)]
        statements = [_statement(r, c, level) for r, c in cells for level in range(1, self.levels + 1)]
        return [*QUESTION.split(), *LABELS, *statements]

    def problems(self) -> list[tuple[str, str]]:
        found = []
        if not 1 <= self.levels <= MAX_VALUE:
            found.append(("levels", f"must be 1 to {MAX_VALUE}, not {self.levels}"))
        if not 1 <= self.holdout < IMAGES:
            found.append(("holdout", f"must be 1 to {IMAGES - 1} of the {IMAGES} images, not {self.holdout}"))
        return found

    def _task(self, image: int) -> Task:
        return _root_task(image, self.levels, self.seen_by)


@cache
def _root_task(image: int, levels: int, seen_by: tuple[str, ...]) -> Task:
    pixels, label = _images()[image]
    levels_P = [-(-value * levels // MAX_VALUE) for value in pixels]
    evidence = tuple(_statement(i // SIDE, i % SIDE, level) for i, level in enumerate(levels_P) if level)
    return Task(
        id=f"img{image}",
        question=QUESTION,
        answer=label,
        evidence=evidence,
        hidden={"image": Hidden(" ".join(evidence), roles=seen_by)},
        proposals=tuple(other for other in LABELS if other != label),
        domain=PixelDomain(),
    )


def _statement(row: int, column: int, level: int) -> str:
    return f"r{row}c{column}={level}"


@cache
def _images() -> list[tuple[tuple[int, ...], str]]:
    """(64 pixel values in raster order, label) of every image."""
    # scikit-learn's own file: to import the library takes a second, and `plan` asks a task.
    spec = find_spec("sklearn")
    assert spec is not None and spec.origin is not None, "scikit-learn is among the requirements"
    with gzip.open(Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        rows = [[int(float(value)) for value in line.split(",")] for line in file]
    return [(tuple(pixels), str(label)) for *pixels, label in rows]


@cache
def _split(holdout: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(training, held-out) image numbers: the `holdout` images with the lowest hashes are held out."""
    order = sorted(range(IMAGES), key=lambda image: _digest(f"holdout img{image}"))
    return tuple(sorted(order[holdout:])), tuple(sorted(order[:holdout]))


def _digest(text: str) -> int:
    """A hash that is the same in every process (Python's own is salted)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
