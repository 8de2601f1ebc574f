"""The exact ceiling: how often truth wins when both debaters play perfectly before this very judge.

The search (actors/evaluation/minimax.py) asks for the judge's probabilities; a scorer answers them from the judge's own
weights in big batches. The scorer is handed in, as learners are not imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from actors.evaluation.judge_prompts import JudgePrompts
from actors.evaluation.minimax import Question, RevealGame, Solution, solve
from actors.evaluation.stats import Interval, proportion
from actors.players.chat import ChatCodec
from protocols.phased.interpreter import Phased
from protocols.types import Task

WIDTH = 256
"""Searches that ask together."""


class Scorer(Protocol):
    """Probabilities of `choices` (token ids) after each prompt: shape (prompts, choices)."""

    def score(self, prompts: list[list[int]], choices: list[list[int]]) -> np.ndarray: ...


def solve_games(
    protocol: Phased, tasks: Sequence[Task], model_dir: str, make_scorer: Callable[[str], Scorer]
) -> list[Solution]:
    """Plays out the debate of every task perfectly, before the judge in `model_dir`."""
    prompts = JudgePrompts(protocol, ChatCodec.from_pretrained(model_dir), tasks)
    tokens = sorted({answer for orders in prompts.answers for answers in orders for answer in answers})
    assert all(len(answer) == 1 for answer in tokens), "the judge's answers must be single tokens"
    columns = [[[tokens.index(answer) for answer in answers] for answers in orders] for orders in prompts.answers]
    scorer = make_scorer(model_dir)

    def evaluate(questions: list[Question]) -> list[float]:
        asked = [ids for index, position in questions for ids in prompts.prompts(index, position)]
        rows = iter(scorer.score(asked, [list(answer) for answer in tokens]).tolist())
        return [prompts.belief(index, [_among(next(rows), own) for own in columns[index]]) for index, _ in questions]

    sides = protocol.reveal_sides()
    games = [RevealGame(len(task.evidence), sides, task.choices.index(task.answer or "")) for task in tasks]
    return solve(games, evaluate, width=WIDTH)


def _among(probs: list[float], columns: list[int]) -> list[float]:
    """Probabilities of some answers, given that one of them is given."""
    chosen = [probs[column] for column in columns]
    total = sum(chosen)
    return [p / total for p in chosen]


async def ceiling(
    protocol: Phased, tasks: Sequence[Task], model_dir: str, make_scorer: Callable[[str], Scorer], workers: int
) -> tuple[Interval, float]:
    """(share of tasks that truth can force, positions judged per task), on `workers` processes."""
    import asyncio

    import ray

    remote: Any = ray.remote(num_cpus=1, max_calls=1)(solve_games)
    bare = list(tasks)
    shares = [bare[worker::workers] for worker in range(workers)]
    results = await asyncio.gather(*(remote.remote(protocol, share, model_dir, make_scorer) for share in shares))
    solutions = [solution for share in results for solution in share]
    clusters = [task.parent or task.id for share in shares for task in share]
    interval = proportion([float(solution.truth_wins) for solution in solutions], clusters)
    return interval, sum(solution.evaluations for solution in solutions) / len(solutions)
