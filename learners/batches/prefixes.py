"""Rows that hold the common beginning of several sequences once, and their ends behind it, each blind to the others.

Replies to one prompt, and chats that part ways, begin alike. In a causal model the hidden states of what they share
are the same in all of them, so one pass over a tree of tokens has every sequence's log-probabilities and gradients
(for one prompt and its replies: Prefix Grouper, arXiv 2506.05433). A row is such a tree, written depth first:
positions count from the root, and a mask shows each token its ancestors and itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WIDEST = 4
"""A row is at most so many times as long as its first sequence: the mask is quadratic in it."""


@dataclass(slots=True)
class Tree:
    """One row."""

    members: list[int] = field(default_factory=list)
    """Indices of its sequences."""
    columns: list[list[int]] = field(default_factory=list)
    """Of each member: where in the row its tokens are."""
    new: list[int] = field(default_factory=list)
    """Of each member: its first token that no earlier member has."""
    tokens: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)

    def add(self, index: int, ids: Sequence[int], shared: int) -> None:
        """A sequence whose first `shared` tokens are those of the last member."""
        begun = self.columns[-1][:shared] if shared else []
        self.members.append(index)
        self.new.append(shared)
        self.columns.append([*begun, *range(len(self.tokens), len(self.tokens) + len(ids) - shared)])
        self.tokens += ids[shared:]
        self.depths += range(shared, len(ids))


def trees(sequences: Sequence[Sequence[int]]) -> list[Tree]:
    """All sequences as trees. In sorted order none has more in common with an earlier one than with the last."""
    return grow(sequences, sorted(range(len(sequences)), key=lambda i: list(sequences[i])))


def grow(sequences: Sequence[Sequence[int]], order: Iterable[int]) -> list[Tree]:
    """Takes the sequences in `order`; each joins the last tree where at least half of it is there already."""
    forest: list[Tree] = []
    for i in order:
        ids, shared = sequences[i], 0
        if forest:
            last = forest[-1]
            shared = common(sequences[last.members[-1]], ids)
            if 2 * shared < len(ids) or len(last.tokens) + len(ids) - shared > WIDEST * len(last.columns[0]):
                shared = 0
        if not shared:
            forest.append(Tree())
        forest[-1].add(i, ids, shared)
    return forest


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with in common."""
    length = min(len(one), len(other))
    return next((i for i in range(length) if one[i] != other[i]), length)


def layout(
    sequences: Sequence[Sequence[int]], device: torch.device
) -> tuple[dict[str, torch.Tensor], list[tuple[int, list[int]]]]:
    """`input_ids_BT`, `position_ids_BT` and `mask_B1TT` (True: is seen) of one micro-batch, and of each sequence the
    row and the columns of its tokens. Sequences that begin alike lie side by side, as `trees` has them."""
    import numpy as np
    import torch

    forest = grow(sequences, range(len(sequences)))
    rows, width = len(forest), max((len(tree.tokens) for tree in forest), default=1)
    ids_BT, positions_BT = np.zeros((rows, width), np.int64), np.zeros((rows, width), np.int64)
    mask_BTT = np.broadcast_to(np.eye(width, dtype=bool), (rows, width, width)).copy()  # padding sees itself
    for row, tree in enumerate(forest):
        ids_BT[row, : len(tree.tokens)] = tree.tokens
        positions_BT[row, : len(tree.tokens)] = tree.depths
        for columns, new in zip(tree.columns, tree.new):
            depths = np.arange(len(columns))
            seen = depths[None, :] <= depths[new:, None]
            mask_BTT[row][np.ix_(columns[new:], columns)] = seen
    inputs = {"input_ids_BT": ids_BT, "position_ids_BT": positions_BT, "mask_B1TT": mask_BTT[:, None]}
    where = [(row, columns) for row, tree in enumerate(forest) for columns in tree.columns]
    return {name: torch.from_numpy(values).to(device) for name, values in inputs.items()}, where
