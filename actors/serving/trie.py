"""Legal replies as a trie of token ids. The model chooses at branching nodes; the other tokens are forced."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Union

Node = dict[int, Union["Node", int]]
"""Token id -> the next node, or the index of the choice that the token completes."""
Place = Union[Node, int]


@lru_cache(maxsize=1024)
def build_trie(choices: tuple[tuple[int, ...], ...]) -> Node:
    """Builds the trie of `choices`. Equal requests share it: callers must not modify it.

    Raises ValueError when a choice is empty, repeated, or a prefix of another.
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
    """Follows `place` while there is one child only. Returns those tokens and the branching node or choice after
    them."""
    path: list[int] = []
    while isinstance(place, dict) and len(place) == 1:
        ((token, place),) = place.items()
        path.append(token)
    return path, place


def branchings(node: Node) -> Iterator[tuple[tuple[int, ...], Node]]:
    """Yields every node with more than one child, and the token prefix that leads to it."""
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
    """Natural log-probability of each choice: the sum of the log-probabilities of its branchings.

    `logprobs`: prefix of a branching node -> token -> log-probability among that node's children.
    The result is normalised over the choices, which corrects rounding.
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
