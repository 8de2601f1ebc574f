"""Distinct: proposals that were made before, word for word or nearly so, are refused as invalid.

Self-Instruct (arXiv 2212.10560, section 2.2) keeps an instruction only when its ROUGE-L similarity with every earlier
one is below 0.7; the same measure here, over words.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import replace

from protocols.types import Domain, InvalidProposal, Task

COMPARED = 1024
"""Proposals for a root task that a new one is compared with: the newest ones. Repeats are told from all."""


def common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, bit by bit (Hyyro 2004): row `i` of the table is one integer."""
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(one)) - 1
    row = full
    for word in other:
        met = row & places.get(word, 0)
        row = ((row + met) | (row - met)) & full
    return (full & ~row).bit_count()


def rouge_l(one: Sequence[str], other: Sequence[str]) -> float:
    """ROUGE-L (Lin 2004) with equal weight of precision and recall: 2 LCS / (m + n). 1 for equal texts."""
    total = len(one) + len(other)
    return 2 * common(one, other) / total if total else 1.0


class Distinct:
    """The proposals made so far, by root task. `least`: the similarity from which one is refused; 1: repeats only."""

    def __init__(self, least: float, known: Iterable[tuple[str, str]] = ()):
        self.least = least
        self.refused = 0
        self._owners: dict[tuple[str, tuple[str, ...]], int | None] = {}
        """(root task, words) -> the play that proposed it; None where that was before."""
        self._newest: dict[str, deque[tuple[str, ...]]] = defaultdict(lambda: deque(maxlen=COMPARED))
        for task_id, proposal in known:
            self._note(task_id, tuple(proposal.split()), None)

    def guard(self, task: Task, play: int) -> Task:
        """`task`, about which play `play` may propose only what is new."""
        assert task.domain is not None, "proposals need a domain"
        return replace(task, domain=Guarded(task.domain, self, play))

    def admit(self, task_id: str, proposal: str, play: int) -> None:
        """Notes a proposal. Raises `InvalidProposal` where it, or one like it, was made by another play: a play that
        was lost may propose the same again."""
        words = tuple(proposal.split())
        if self._owners.get((task_id, words), play) != play or self._like(task_id, words, play):
            self.refused += 1
            raise InvalidProposal("proposed before")
        self._note(task_id, words, play)

    def _like(self, task_id: str, words: tuple[str, ...], play: int) -> bool:
        if self.least >= 1.0:
            return False
        for known in self._newest[task_id]:
            most = 2 * min(len(words), len(known)) / max(len(words) + len(known), 1)
            if most >= self.least and rouge_l(words, known) >= self.least:
                if self._owners[task_id, known] != play:
                    return True
        return False

    def _note(self, task_id: str, words: tuple[str, ...], play: int | None) -> None:
        if (task_id, words) not in self._owners:
            self._owners[task_id, words] = play
            self._newest[task_id].append(words)


class Guarded(Domain):
    """A domain that derives no task twice."""

    def __init__(self, inner: Domain, distinct: Distinct, play: int):
        self.inner, self.distinct, self.play = inner, distinct, play

    def derive(self, task: Task, proposal: str) -> Task:
        derived = self.inner.derive(task, proposal)  # what describes no task is not noted
        self.distinct.admit(task.id, proposal, self.play)
        return derived

    def check(self, task: Task, answer: str) -> bool:
        return self.inner.check(task, answer)

    def grade(self, task: Task, answer: str) -> float:
        return self.inner.grade(task, answer)
