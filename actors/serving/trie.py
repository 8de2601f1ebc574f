"""Legal replies as a trie of token ids: where a model has to choose, and where it has not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Union

Node = dict[int, Union["Node", int]]
"""Token id -> the node after it, or the index of the choice that it completes."""
Place = Union[Node, int]


@lru_cache(maxsize=1024)
def build_trie(choices: tuple[tuple[int, ...], ...]) -> Node:
    """The trie of `choices`, shared between equal requests: not to be changed.

    Raises ValueError for choices that are empty, repeated, or a prefix of another.
    """
    root: Node = {}
    for index, choice in enumerate(choices):
        node = root
        for token in choice[:-1]:
            child = node.setdefault(token, {})
            if isinstance(child, int):
                raise ValueError(f"choice {child} is a prefix of choice {index}")
            node = child
        if not choice or choice[-1] in node:
            raise ValueError(f"choice {index} is empty, repeated, or a prefix of another one")
        node[choice[-1]] = index
    return root


def forced_path(place: Place) -> tuple[list[int], Place]:
    """Tokens that follow without alternative from `place`, and where they lead: a branching node or a choice."""
    path: list[int] = []
    while isinstance(place, dict) and len(place) == 1:
        ((token, place),) = place.items()
        path.append(token)
    return path, place


def branchings(node: Node) -> Iterator[tuple[tuple[int, ...], Node]]:
    """Every node with more than one child, with the tokens that lead to it."""
    stack: list[tuple[tuple[int, ...], Node]] = [((), node)]
    while stack:
        prefix, node = stack.pop()
        path, end = forced_path(node)
        if isinstance(end, dict):
            prefix = (*prefix, *path)
            yield prefix, end
            stack += [((*prefix, token), child) for token, child in end.items() if isinstance(child, dict)]


def choice_logprobs(
    choices: Sequence[Sequence[int]], logprobs: dict[tuple[int, ...], dict[int, float]]
) -> list[float]:
    """Natural-log probability of each choice: the product along its path of what each branching gave.

    `logprobs`: prefix of a branching node -> token -> log probability among that node's children.
    Renormalised over the choices, against rounding.
    """
    raw = [
        sum(
            logprobs[tuple(choice[:i])][token]
            for i, token in enumerate(choice)
            if tuple(choice[:i]) in logprobs
        )
        for choice in choices
    ]
    top = max(raw)
    total = top + math.log(sum(math.exp(value - top) for value in raw))
    return [value - total for value in raw]
