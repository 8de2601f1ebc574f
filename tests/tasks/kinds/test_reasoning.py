"""Generated reasoning tasks and shipped facts."""

from __future__ import annotations

import random

import pytest

from configs.load import load_task_source
from configs.reading.errors import ConfigErrors
from protocols.types import VerifierError


@pytest.mark.parametrize("name", ["leg_counting", "chain_sum", "knights_knaves", "polynomial_equations"])
def test_a_generator_checks_its_own_answers(name: str) -> None:
    pytest.importorskip("reasoning_gym")
    source = load_task_source({"kind": "reasoning_gym", "dataset": name})
    task = source.train(random.Random(3))
    assert task.domain is not None and task.answer is not None
    assert task.domain.check(task, task.answer) and not task.domain.check(task, "no idea")
    assert source.root(task.id).question == task.question
    assert task.id not in {one.id for one in source.heldout(20, 0)}
    for hostile in ("9^9^9^9^9", "__import__('os').system('true')", "1" * 10**6):
        try:
            assert task.domain.grade(task, hostile) < 1.0
        except VerifierError:
            pass  # missing data: no verdict within the limit


def test_mistakes_name_the_generator_and_its_settings() -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ConfigErrors, match="did you mean leg_counting"):
        load_task_source({"kind": "reasoning_gym", "dataset": "leg_countin"})
    with pytest.raises(ConfigErrors, match=r"tasks\.settings: leg_counting"):
        load_task_source({"kind": "reasoning_gym", "dataset": "leg_counting", "settings": {"nothing": 1}})


def test_facts_are_pairs_of_which_one_is_true() -> None:
    pytest.importorskip("textarena")
    source = load_task_source({"kind": "facts"})
    tasks = [source._task(position) for position in (*source._opened.train, *source._opened.heldout)]
    assert len(tasks) == 260 and all(len(t.choices) == 2 and t.answer in t.choices for t in tasks)
    assert any(t.answer == "Honey never spoils and can remain edible indefinitely." for t in tasks)
