"""What a judge is asked about a set of reveals, as token ids: the leaves of the exact search, millions of them.

Rendering a protocol's prompt and tokenising it costs more than judging it. But the evidence view is the claims,
then the statements in canonical order, then the end: so each prompt is cut once into what stands before and after
the statements, and checked against the real rendering on drawn positions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from actors.players.chat import ChatCodec
from protocols.errors import UserError
from protocols.phased.interpreter import Phased
from protocols.types import Task

CHECKS = 3
"""Drawn positions per task on which the cut prompt must equal the rendered one."""


class PromptNotCut(UserError):
    """The judge's prompt is not claims, statements, end; an exact search over it is not supported."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """One task's prompts. Axes: O orders of the claims, E statements."""

    before_O: tuple[list[int], ...]
    after_O: tuple[list[int], ...]
    statements_E: tuple[tuple[int, ...], ...]


class JudgePrompts:
    """Prompts of `protocol`'s judge about sets of each task's evidence."""

    def __init__(self, protocol: Phased, codec: ChatCodec, tasks: Sequence[Task]):
        self.protocol, self.codec, self.tasks = protocol, codec, tasks
        self._cuts = [self._cut(task) for task in tasks]
        self.answers = [
            [codec.choices(request.choices) for request in protocol.judge_requests(task, ())] for task in tasks
        ]
        """task -> order of the claims -> token ids of each thing that the judge may answer."""

    def prompts(self, index: int, position: Sequence[int]) -> list[list[int]]:
        """The prompts about these statements (ascending indices) of task `index`, one per order of the claims."""
        cut = self._cuts[index]
        shown = [id for i in position for id in cut.statements_E[i]]
        return [[*before, *shown, *after] for before, after in zip(cut.before_O, cut.after_O)]

    def belief(self, index: int, verdicts: Sequence[Sequence[float]]) -> float:
        """The judge's probability of the task's first claim from its answers to `prompts`."""
        return self.protocol.belief(self.tasks[index], verdicts)[0]

    def _rendered(self, task: Task, statements: Sequence[str]) -> list[list[int]]:
        return [self.codec.prompt(request.messages) for request in self.protocol.judge_requests(task, statements)]

    def _cut(self, task: Task) -> _Cut:
        statements = tuple(self.codec.encode(statement) for statement in task.evidence)
        run = [id for ids in statements for id in ids]
        befores, afters = [], []
        for ids in self._rendered(task, task.evidence):
            starts = [i for i in range(len(ids) - len(run) + 1) if ids[i : i + len(run)] == run]
            if len(starts) != 1:
                raise PromptNotCut(f"task {task.id}: the statements stand {len(starts)} times in the judge's prompt")
            befores.append(ids[: starts[0]])
            afters.append(ids[starts[0] + len(run) :])
        cut = _Cut(tuple(befores), tuple(afters), statements)
        self._check(task, cut)
        return cut

    def _check(self, task: Task, cut: _Cut) -> None:
        rng = random.Random(task.id)
        for size in range(CHECKS):
            position = sorted(rng.sample(range(len(task.evidence)), min(size, len(task.evidence))))
            shown = [id for i in position for id in cut.statements_E[i]]
            expected = self._rendered(task, [task.evidence[i] for i in position])
            found = [[*before, *shown, *after] for before, after in zip(cut.before_O, cut.after_O)]
            if found != expected:
                raise PromptNotCut(f"task {task.id}: cut and rendered prompts differ at {position}")
