"""Generated reasoning tasks with verifiers: the library reasoning-gym (Stojanovski et al. 2025, arXiv 2505.24760), the
extra `reasoning`. `python -c "import reasoning_gym; print(*reasoning_gym.factory.DATASETS)"` lists its generators.

    tasks: {kind: reasoning_gym, dataset: leg_counting, settings: {max_animals: 4}}
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

from protocols.extension import unknown
from protocols.types import Domain, InvalidProposal, Task
from tasks.base import TaskSource
from tasks.questions import pool

HELD_OUT_SEED = 1_000_003
"""Tasks for evaluation come from another seed of the generator than those for training."""
SIZE = 1_000_000
"""How many tasks of one seed there are; each is made when it is asked for."""
LONGEST = 4000
SECONDS = 10.0


@lru_cache(maxsize=16)
def generator(dataset: str, settings: str, seed: int) -> Any:
    """A generator of reasoning-gym; `settings` is the JSON of a mapping."""
    import json

    import reasoning_gym

    return reasoning_gym.create_dataset(dataset, size=SIZE, seed=seed, **json.loads(settings))


@dataclass(frozen=True)
class ReasoningDomain(Domain):
    """Scores answers to one generated task by the generator's own verifier, in a killable process: some verifiers
    evaluate what they are given."""

    dataset: str
    settings: str
    seed: int
    index: int

    def derive(self, task: Task, proposal: str) -> Task:
        raise InvalidProposal("generated tasks are played as they are")

    def check(self, task: Task, answer: str) -> bool:
        return self.grade(task, answer) >= 1.0

    def grade(self, task: Task, answer: str) -> float:
        asked = [self.dataset, self.settings, self.seed, self.index, answer[-LONGEST:].strip()]
        return min(max(pool.shared("reasoning_gym").ask(asked, SECONDS), 0.0), 1.0)


@dataclass(frozen=True)
class ReasoningGym(TaskSource):
    """Tasks of one generator. Ids are `DATASET-SEED-INDEX`."""

    kind: ClassVar[str] = "reasoning_gym"

    dataset: str = ""
    """The generator's name."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Its own settings: how large, how long, how hard."""
    seed: int = 0

    def train(self, rng: random.Random) -> Task:
        return self._task(self.seed, rng.randrange(SIZE))

    def heldout(self, n: int, seed: int) -> list[Task]:
        rng = random.Random(f"reasoning heldout {seed}")
        return [self._task(self.seed + HELD_OUT_SEED, index) for index in rng.sample(range(SIZE), n)]

    def derived_heldout(self, n: int, seed: int) -> list[Task]:
        return self.heldout(n, seed)

    def root(self, task_id: str) -> Task:
        dataset, _, place = task_id.rpartition(f"{self.dataset}-")
        seed, _, index = place.partition("-")
        if dataset or not (seed.isdigit() and index.isdigit()):
            raise KeyError(task_id)
        return self._task(int(seed), int(index))

    def words(self) -> list[str]:
        """Those of a thousand tasks; a number that none of them holds is unknown to a tiny tokenizer."""
        tasks = [self._task(seed, i) for seed in (self.seed, self.seed + HELD_OUT_SEED) for i in range(500)]
        return list(dict.fromkeys(word for t in tasks for word in f"{t.question} {t.answer}".split()))

    def problems(self) -> list[tuple[str, str]]:
        try:
            from reasoning_gym.factory import DATASETS
        except ImportError:
            return [("kind", "needs the library reasoning-gym: pip install 'dissoi[reasoning]'")]
        if self.dataset not in DATASETS:
            return [("dataset", unknown("generator", self.dataset, sorted(DATASETS)))]
        try:
            self._task(self.seed, 0)
        except (TypeError, ValueError, AssertionError) as error:
            return [("settings", f"{self.dataset}: {error}")]
        return []

    def _task(self, seed: int, index: int) -> Task:
        import json

        settings = json.dumps(self.settings, sort_keys=True)
        entry = generator(self.dataset, settings, seed)[index]
        domain = ReasoningDomain(self.dataset, settings, seed, index)
        answer = None if entry["answer"] is None else str(entry["answer"])
        return Task(f"{self.dataset}-{seed}-{index}", entry["question"], answer, domain=domain)
