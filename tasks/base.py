"""TaskSource: where tasks come from. `tasks/registry.py` lists the kinds there are."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from typing import ClassVar

from protocols.base import Protocol
from protocols.kinds.propose_solve import ProposeSolve
from protocols.proposals import carried_proposal, with_proposal
from protocols.types import EXAMPLE, Task


class TaskSource(ABC):
    """Subclasses are frozen dataclasses whose fields are the keys under `tasks:` in YAML."""

    kind: ClassVar[str]

    @abstractmethod
    def train(self, rng: random.Random) -> Task:
        """One root task for training."""

    def warm(self, rng: random.Random) -> Task:
        """One root task for supervised warm starts; the same as for training unless a source says
        otherwise."""
        return self.train(rng)

    @abstractmethod
    def heldout(self, n: int, seed: int) -> list[Task]:
        """`n` root tasks for evaluation, disjoint from all that `train` and `warm` can lead to."""

    def heldout_problem(self) -> str:
        """Why there are no tasks for evaluation; empty where there are."""
        return ""

    @abstractmethod
    def derived_heldout(self, n: int, seed: int) -> list[Task]:
        """`n` held-out tasks with uniformly drawn proposals already worked in (see `Domain.derive`)."""

    def bucket(self, task: Task) -> str | None:
        """Which class of difficulty a derived task is in (the length of a list), for accuracy by class."""
        return None

    def cluster(self, task: Task) -> str:
        """What a derived task shares with others (its image): plays of one cluster are not independent of each
        other, and intervals are made over clusters."""
        return task.parent or task.id

    def needs_proposer(self) -> bool:
        """Whether training tasks neither carry a proposal nor list any: only a protocol with a proposer can be
        trained on them."""
        return False

    @abstractmethod
    def root(self, task_id: str) -> Task:
        """The root task of that id, without a proposal. Raises KeyError."""

    @abstractmethod
    def words(self) -> list[str]:
        """Every word that texts and answers of tasks and proposals can contain (for tiny tokenizers)."""

    def exact_problem(self) -> str:
        """Why no exact NashConv can be computed on these tasks; empty where it can."""
        return f"tasks of kind {self.kind} are no games whose positions can be listed"

    def problems(self) -> list[tuple[str, str]]:
        """What is wrong with these settings: (YAML key, message). Empty when sound."""
        return []


def real_task(source: TaskSource, rng: random.Random) -> Task:
    """A root task that carries a proposal nobody made here: that of the source, its example, or (claims) a uniform
    one. Raises LookupError where the source has none."""
    task = source.warm(rng)
    example = task.hidden.get(EXAMPLE)
    if carried_proposal(task) is not None:
        return task
    return with_proposal(task, example.text if example else rng.choice(task.proposals))


def training_task(source: TaskSource, protocol: Protocol, rng: random.Random, warm: bool = False) -> Task:
    """A task that `protocol` can be played on: a root task where a proposer comes first or where there is nothing to
    derive from, else one derived from it with the proposal it carries, its example, or (claims) a uniform one."""
    task = source.warm(rng) if warm else source.train(rng)
    example = task.hidden.get(EXAMPLE)
    playable = task.domain is None or not (task.proposals or example or carried_proposal(task))
    if isinstance(protocol, ProposeSolve) or playable:
        return task
    assert task.domain is not None
    proposal = carried_proposal(task) or (example.text if example else rng.choice(task.proposals))
    return task.domain.derive(task, proposal)
