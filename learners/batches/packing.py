"""Sequences to rows and micro-batches: padded, one sequence to a row, or packed, several to a row (`Packing`).

With `rows` a packed row holds sequences back to back whose `position_ids` restart at 0. Given those, no mask and no
cache, transformers masks each sequence from its neighbours (masking_utils.find_packed_sequence_indices); with a cache
it does not, silently, so `check_packing` tries it on the model at hand. Rows are as long as the longest sequence of
the batch and no longer: the mask makes attention quadratic in the row. With `prefixes`: learners/batches/prefixes.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from configs.schema.run import Packing
from learners.batches import prefixes
from learners.types import Sample

if TYPE_CHECKING:
    import torch

SHARED = -1
"""Instead of the width of a row: rows of shared beginnings (learners/batches/prefixes.py)."""


def split(samples: Sequence[Sample], micro_tokens: int, packing: Packing = "none") -> tuple[list[list[int]], int]:
    """Indices of samples cut into micro-batches, and the width of a packed row (0: padded; or SHARED).

    A micro-batch holds at most `micro_tokens` tokens, padding included, but at least one row, the longest rows first.
    Packed into rows: first fit decreasing (Johnson 1973), row after row, so that `places` finds the same rows again.
    """
    lengths = [len(sample.token_ids_S) for sample in samples]
    order = sorted(range(len(samples)), key=lambda i: lengths[i], reverse=True)
    if packing == "prefixes":
        forest = prefixes.trees([sample.token_ids_S for sample in samples])
        forest.sort(key=lambda tree: len(tree.tokens), reverse=True)
        rows, sizes, width = [tree.members for tree in forest], [len(tree.tokens) for tree in forest], SHARED
    elif packing == "rows":
        width = max(lengths, default=0)
        rows = _first_fit(order, lengths, width)
        sizes = [width] * len(rows)
    else:
        rows, sizes, width = [[i] for i in order], [lengths[i] for i in order], 0
    parts: list[list[int]] = []
    used, widest = 0, 0
    for row, size in zip(rows, sizes):
        if not parts or widest * (used + 1) > micro_tokens:
            parts.append([])
            used, widest = 0, size
        parts[-1] += row
        used += 1
    return parts, width


def families(samples: Sequence[Sample], packing: Packing) -> list[list[int]]:
    """Indices of samples that one row should hold, and one minibatch therefore: each alone but with `prefixes`."""
    if packing != "prefixes":
        return [[i] for i in range(len(samples))]
    return [tree.members for tree in prefixes.trees([sample.token_ids_S for sample in samples])]


def _first_fit(order: Sequence[int], lengths: Sequence[int], width: int) -> list[list[int]]:
    rows: list[list[int]] = []
    free: list[int] = []
    for i in order:
        row = next((row for row, left in enumerate(free) if left >= lengths[i]), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(width)
        rows[row].append(i)
        free[row] -= lengths[i]
    return rows


def places(lengths: Sequence[int], width: int) -> list[tuple[int, int]]:
    """(row, first column) of each sequence of a micro-batch, in the order of `split`; `width` as there."""
    found: list[tuple[int, int]] = []
    row, end = -1, width + 1
    for length in lengths:
        if width == 0 or end + length > width:
            row, end = row + 1, 0
        found.append((row, end))
        end += length
    return found


def spread(parts: Sequence[list[int]], count: int, samples: Sequence[Sample]) -> list[list[int]]:
    """`parts` as `count` micro-batches, where another rank has that many and all must have as many: the heaviest is
    halved, and halved again, rather than that this rank pads with empty ones and waits."""
    parts = list(parts)
    while len(parts) < count:
        loads = [sum(len(samples[i].token_ids_S) for i in part) if len(part) > 1 else 0 for part in parts]
        if not any(loads):
            break
        heaviest = loads.index(max(loads))
        part = parts[heaviest]
        middle = (len(part) + 1) // 2
        parts[heaviest : heaviest + 1] = [part[:middle], part[middle:]]
    return parts


def layout(
    chosen: Sequence[Sample], width: int, device: torch.device
) -> tuple[dict[str, torch.Tensor], list[tuple[int, Sequence[int]]]]:
    """`input_ids_BT` (packed: and `position_ids_BT`; SHARED: and a mask) of one micro-batch, and of each sequence the
    row and the columns of its tokens."""
    import torch

    if width == SHARED and chosen:
        inputs, shared = prefixes.layout([sample.token_ids_S for sample in chosen], device)
        return inputs, list(shared)
    where = places([len(sample.token_ids_S) for sample in chosen], max(width, 0))
    rows = where[-1][0] + 1 if where else 1
    ends = [start + len(sample.token_ids_S) for (_, start), sample in zip(where, chosen)]
    ids = [[0] * max(ends, default=1) for _ in range(rows)]
    positions = [list(range(len(row))) for row in ids]
    for (row, start), end, sample in zip(where, ends, chosen):
        ids[row][start:end] = sample.token_ids_S
        positions[row][start:] = range(len(ids[row]) - start)  # what follows the last sequence counts on: no one's
    inputs = {"input_ids_BT": torch.tensor(ids, dtype=torch.long, device=device)}
    if len(where) > rows:
        inputs["position_ids_BT"] = torch.tensor(positions, dtype=torch.long, device=device)
    return inputs, [(row, range(start, end)) for (row, start), end in zip(where, ends)]
