"""Sequences to rows and micro-batches: padded, one sequence to a row, or packed, several to a row.

A packed row holds sequences back to back whose `position_ids` restart at 0. Given those, no attention mask and no
cache, transformers masks each sequence from its neighbours (masking_utils.find_packed_sequence_indices); with a cache
it does not, silently, so `check_packing` tries it on the model at hand.

Rows are as long as the longest sequence of the batch and no longer: the mask makes attention quadratic in the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from learners.settings import LearnerConfigError
from learners.types import Sample

if TYPE_CHECKING:
    import torch

    from learners.token_model import TokenModel


def split(samples: Sequence[Sample], micro_tokens: int, packing: bool = False) -> tuple[list[list[int]], int]:
    """Indices of samples cut into micro-batches, and the width of a packed row (0: padded, one sequence to a row).

    A micro-batch holds at most `micro_tokens` tokens, padding included, but at least one row. Padded: sorted by length.
    Packed: first fit decreasing (Johnson 1973), row after row, so that `places` finds the same rows again.
    """
    lengths = [len(sample.token_ids_S) for sample in samples]
    order = sorted(range(len(samples)), key=lambda i: lengths[i], reverse=True)
    width = max(lengths, default=0) if packing else 0
    rows = [[i] for i in order] if not packing else _first_fit(order, lengths, width)
    parts: list[list[int]] = []
    used, widest = 0, 0
    for row in rows:
        if not parts or widest * (used + 1) > micro_tokens:
            parts.append([])
            used, widest = 0, width or lengths[row[0]]
        parts[-1] += row
        used += 1
    return parts, width


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
) -> tuple[dict[str, torch.Tensor], list[tuple[int, int]]]:
    """`input_ids_BT` (packed: and `position_ids_BT`) of one micro-batch, and where each sequence begins in them."""
    import torch

    where = places([len(sample.token_ids_S) for sample in chosen], width)
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
    return inputs, where


def check_packing(model: TokenModel) -> None:
    """Raises LearnerConfigError for a model whose packed sequences see each other."""
    import torch

    from learners.token_model import probe_ids

    first = next(model.parameters())
    ids_T = probe_ids(model.lm).to(first.device)
    count = len(ids_T)
    columns_L = torch.arange(count, device=first.device)

    def logprobs(ids_BT: torch.Tensor, start: int, **extra: torch.Tensor) -> torch.Tensor:
        zeros_L, ones_L = torch.zeros_like(columns_L), torch.ones(count, device=first.device)
        with torch.no_grad():
            return model(ids_BT, zeros_L, columns_L + start, ids_T.roll(-1), ones_L, **extra)[0]

    alone_L = logprobs(ids_T[None], 0)
    packed_BT = torch.cat([ids_T.flip(0), ids_T])[None]
    positions_BT = torch.cat([columns_L, columns_L])[None]
    gap = float((logprobs(packed_BT, count, position_ids_BT=positions_BT) - alone_L).abs().max())
    if not gap <= (1e-3 if first.dtype == torch.float32 else 0.2):
        raise LearnerConfigError(
            f"packing: in {type(model.lm).__name__} sequences of one row see each other (log-probabilities differ by "
            f"{gap:.3g}); set it to false"
        )
