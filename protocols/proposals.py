"""A proposal carried by a task: what a proposer wrote, as hidden material of the task that was made from it."""

from __future__ import annotations

import dataclasses

from protocols.types import EXAMPLE, PROPOSAL, Hidden, Task


def with_proposal(task: Task, proposal: str) -> Task:
    """`task` carrying `proposal`, so that no proposer is asked (archive replay, controls, held-out sets)."""
    return _with_hidden(task, PROPOSAL, proposal)


def with_example(task: Task, proposal: str) -> Task:
    """`task` with a proposal that warm starts of the proposer imitate."""
    return _with_hidden(task, EXAMPLE, proposal)


def carried_proposal(task: Task) -> str | None:
    """The proposal that `task` carries, if any."""
    return task.hidden[PROPOSAL].text if PROPOSAL in task.hidden else None


def _with_hidden(task: Task, key: str, text: str) -> Task:
    return dataclasses.replace(task, hidden={**task.hidden, key: Hidden(text, roles=())})
