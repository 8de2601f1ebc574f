"""Protocol: the rules of a play as a generator. `protocols/registry.py` lists the kinds there are."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Union

from protocols.types import Outcome, Reply, Task, TurnRequest


@dataclass(frozen=True, slots=True)
class SubPlay:
    """A whole play asked for as one move: the runner plays it and answers with its Outcome.

    Several in one yield run side by side without waiting for each other's turns. `seed` fixes the
    child's randomness; `key` names it among its siblings.
    """

    protocol: Protocol
    task: Task
    seed: int
    key: str


Ask = Union[TurnRequest, SubPlay]
Answer = Union[Reply, Outcome]
Play = Generator[list[Ask], list[Answer], Outcome]


class Protocol(ABC):
    """Subclasses are frozen dataclasses whose fields are their YAML keys; `kind` is the YAML `kind:`."""

    kind: ClassVar[str]
    name: str

    @abstractmethod
    def play(self, task: Task, rng: random.Random) -> Play:
        """One play. One yield is the set of turns that happen at once; answers come in the same order."""

    @abstractmethod
    def roles(self) -> Mapping[str, str]:
        """seat -> role, sub-plays included (their seats appear under the names they have there)."""

    @abstractmethod
    def literal_texts(self) -> list[str]:
        """Every fixed text that a seat may be sent: the words that a small vocabulary must hold."""

    @property
    def success(self) -> str:
        """What a score of 1 says, in words that can stand above a column of means."""
        return "score"

    def problems(self) -> list[tuple[str, str]]:
        """What is wrong with this definition: (path of the YAML key, message). Empty when sound."""
        return []

    def unplayable(self, task: Task) -> str:
        """Why this protocol cannot be played on tasks such as `task`; empty where it can or that is not known."""
        return ""
