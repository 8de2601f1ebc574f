"""A taxonomy of instructions: branches, leaves, and a few examples at each leaf (LAB, Sudalairaj et al. 2024, arXiv
2403.01081). Root tasks ask a writer for an instruction at one leaf; a proposal that is one is a task without an exact
answer."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from protocols.proposals import with_example, with_proposal
from protocols.types import Domain, InvalidProposal, Task, VerifierError
from tasks.base import TaskSource

TREE: dict[str, Any] = {
    "knowledge": {
        "science": {
            "astronomy": ["Why does the moon have phases?", "What is a light year?", "How hot is the sun inside?"],
            "biology": ["What does a cell wall do?", "Why do leaves turn red?", "What is an enzyme?"],
        },
        "history": {
            "inventions": ["Who built the first telescope?", "When was paper invented?", "What did looms change?"],
        },
    },
    "skills": {
        "writing": {
            "letters": ["Decline an invitation politely.", "Thank a teacher in two lines.", "Ask for a refund."],
            "summaries": ["Sum up a fairy tale in one line.", "Give a day in three words.", "Name a book's plot."],
        },
        "reasoning": {
            "arithmetic": ["Split 12 apples among 5.", "Add the numbers 1 to 20.", "Find a third of 81."],
        },
    },
}
"""A small taxonomy to begin with; the first branch is the phase."""
ASK = "Subject: {path}. Examples:\n{examples}\nWrite one more instruction on this subject."
OVERLAP = 0.7
"""An instruction that shares this much of its words with an example is a copy (LAB drops by ROUGE-L of 0.7)."""


def leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """(path, examples) of every leaf."""
    for name, below in tree.items():
        if isinstance(below, Mapping):
            yield from leaves(below, (*path, name))
        else:
            yield (*path, name), list(below)


def overlap(first: str, second: str) -> float:
    """Words in common over words of both (Jaccard), in [0, 1]; case does not matter."""
    one, other = set(first.lower().split()), set(second.lower().split())
    return len(one & other) / len(one | other) if one or other else 1.0


@dataclass(frozen=True)
class TaxonomyDomain(Domain):
    """A proposal is an instruction. It is invalid where it is blank, too long, or a copy of an example."""

    examples: tuple[str, ...]
    """Of the leaf, those held out too."""
    max_words: int
    opened: str = ""
    """The held-out example that may be used."""

    def derive(self, task: Task, proposal: str) -> Task:
        text = proposal.strip()
        if not text or len(text.split()) > self.max_words:
            raise InvalidProposal(f"must be an instruction of at most {self.max_words} words")
        if text != self.opened and any(overlap(text, example) >= OVERLAP for example in self.examples):
            raise InvalidProposal("is a copy of an example")
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return Task(f"{task.id}/{digest}", text, domain=self, parent=task.id)

    def check(self, task: Task, answer: str) -> bool:
        raise VerifierError("an open instruction has no exact answer: play it with a rater")


@dataclass(frozen=True)
class Taxonomy(TaskSource):
    """One root task per leaf. The last example of each leaf is kept for evaluation and never shown."""

    kind: ClassVar[str] = "taxonomy"

    tree: dict[str, Any] = field(default_factory=lambda: TREE)
    """Nested mappings; a leaf is a list of at least three example instructions. The first branch is the phase."""
    phase: str = ""
    """Only this branch, for example knowledge, then skills. Empty: all of them."""
    max_words: int = 60
    """Of a proposed instruction."""

    def train(self, rng: random.Random) -> Task:
        return self._root(*rng.choice(self._leaves()))

    def warm(self, rng: random.Random) -> Task:
        path, examples = rng.choice(self._leaves())
        return with_example(self._root(path, examples), "Say what you know about " + path[-1])

    def heldout(self, n: int, seed: int) -> list[Task]:
        order = self._leaves()
        random.Random(f"taxonomy heldout {seed}").shuffle(order)
        chosen = [order[i % len(order)] for i in range(n)]
        return [with_proposal(self._root(path, texts, texts[-1]), texts[-1]) for path, texts in chosen]

    def derived_heldout(self, n: int, seed: int) -> list[Task]:
        found = []
        for task in self.heldout(n, seed):
            assert task.domain is not None
            found.append(task.domain.derive(task, task.hidden["proposal"].text))
        return found

    def needs_proposer(self) -> bool:
        return True

    def root(self, task_id: str) -> Task:
        for path, examples in leaves(self.tree):  # of any phase: a stage may replay what another proposed
            if "/".join(path) == task_id:
                return self._root(path, examples)
        raise KeyError(task_id)

    def words(self) -> list[str]:
        texts = [ASK]
        for path, examples in self._leaves():
            texts += ["Say what you know about", f"{' / '.join(path)}.", path[-1], *examples]
        return list(dict.fromkeys(word for text in texts for word in text.split()))

    def problems(self) -> list[tuple[str, str]]:
        found = []
        for path, examples in leaves(self.tree):
            if len(examples) < 3 or not all(isinstance(text, str) and text.strip() for text in examples):
                found.append((f"tree.{'.'.join(path)}", "a leaf needs at least three example instructions"))
        if self.phase and self.phase not in self.tree:
            found.append(("phase", f"there is no branch {self.phase!r}; valid: {', '.join(self.tree)}"))
        if not found and not self._leaves():
            found.append(("tree", "has no leaf"))
        if self.max_words < 1:
            found.append(("max_words", "must be at least 1"))
        return found

    def _leaves(self) -> list[tuple[tuple[str, ...], list[str]]]:
        return [leaf for leaf in leaves(self.tree) if self.phase in ("", leaf[0][0])]

    def _root(self, path: tuple[str, ...], examples: list[str], opened: str = "") -> Task:
        shown = "\n".join(f"- {example}" for example in examples[:-1])
        question = ASK.format(path=" / ".join(path), examples=shown)
        domain = TaxonomyDomain(tuple(examples), self.max_words, opened)
        return Task("/".join(path), question, domain=domain)
