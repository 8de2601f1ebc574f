"""Samples to micro-batches, and samples to ranks. Axes as in learners/models/token_model.py."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING

from learners.batches.packing import layout, split
from learners.types import Sample

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class BadSample(ValueError):
    """A sample that no learner can score."""


@dataclass(slots=True)
class MicroBatch:
    """One forward pass. `index_L` says which sample of the batch each token came from, `segments_L` which of
    this micro-batch's replies (a reply is never cut)."""

    inputs: dict[str, Tensor]
    """Arguments of TokenModel.forward."""
    old_logprobs_L: Tensor
    advantages_L: Tensor
    versions_L: Tensor
    index_L: Tensor
    segments_L: Tensor
    proximal_logprobs_L: Tensor | None
    reference_logprobs_L: Tensor | None
    values_L: Tensor | None = None
    returns_L: Tensor | None = None


def count(samples: Sequence[Sample]) -> tuple[int, int]:
    """Tokens that carry loss, and replies that have any."""
    tokens = sum(len(sample.positions_L) for sample in samples)
    return tokens, sum(len(set(_segments(sample))) for sample in samples)


def _segments(sample: Sample) -> list[int]:
    return [0] * len(sample.positions_L) if sample.segments_L is None else sample.segments_L


def check(sample: Sample) -> None:
    """Raises BadSample when lengths disagree, a position predicts nothing or a target is illegal."""
    lists: list[Sized] = [sample.positions_L, sample.advantages_L, sample.logprobs_L, sample.versions_L]
    optional = [
        sample.allowed_L, sample.segments_L, sample.proximal_logprobs_L, sample.reference_logprobs_L,
        sample.rewards_L, sample.values_L, sample.returns_L,
    ]  # fmt: skip
    lengths = {len(values) for values in [*lists, *(values for values in optional if values is not None)]}
    if len(lengths) != 1:
        raise BadSample(f"sample {sample.group!r}: lists per loss token have lengths {sorted(lengths)}")
    if not sample.temperature > 0:
        raise BadSample(f"sample {sample.group!r}: temperature {sample.temperature} is not positive")
    for i, position in enumerate(sample.positions_L):
        if not 1 <= position < len(sample.token_ids_S):
            size = len(sample.token_ids_S)
            raise BadSample(f"sample {sample.group!r}: loss at position {position} of {size} tokens")
        allowed = sample.allowed_L[i] if sample.allowed_L is not None else ()
        if allowed and sample.token_ids_S[position] not in allowed:
            token = sample.token_ids_S[position]
            raise BadSample(
                f"sample {sample.group!r}: token {token} at {position} is not among its legal ones"
            )


def split_by_length(samples: Sequence[Sample], micro_tokens: int) -> list[list[int]]:
    """Indices of samples, sorted by length and cut so that a part holds at most `micro_tokens` padded
    tokens (a single longer sequence makes a part of its own)."""
    return split(samples, micro_tokens)[0]


def balance(samples: Sequence[Sample], ranks: int) -> list[list[int]]:
    """Indices of samples for each rank, so that ranks hold about the same number of tokens."""
    return spread([len(sample.token_ids_S) for sample in samples], ranks)


def spread(sizes: Sequence[int], ranks: int) -> list[list[int]]:
    """Indices of `sizes` for each rank: largest first to the rank that has least (Graham 1969), ties by rank."""
    load = [0] * ranks
    parts: list[list[int]] = [[] for _ in range(ranks)]
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        rank = min(range(ranks), key=load.__getitem__)
        parts[rank].append(i)
        load[rank] += sizes[i]
    return parts


def collate(
    samples: Sequence[Sample], index: Sequence[int], device: torch.device, width: int = 0
) -> MicroBatch:
    """One micro-batch of `samples[i] for i in index`; `width` as `packing.split` says. Without any (a rank that only
    keeps step with the others): a single position whose weight is zero."""
    import torch

    chosen = [samples[i] for i in index]
    inputs, where = layout(chosen, width, device)
    rows = [row for (row, _), s in zip(where, chosen) for _ in s.positions_L]
    cols = [columns[position - 1] for (_, columns), s in zip(where, chosen) for position in s.positions_L]
    targets = [s.token_ids_S[position] for s in chosen for position in s.positions_L]
    temperatures = [s.temperature for s in chosen for _ in s.positions_L]
    advantages = [a for s in chosen for a in s.advantages_L]
    old = [p for s in chosen for p in s.logprobs_L]
    versions = [v for s in chosen for v in s.versions_L]
    owners = [i for i in index for _ in samples[i].positions_L]
    numbers: dict[tuple[int, int], int] = {}
    replies = [(i, segment) for i in index for segment in _segments(samples[i])]
    segments = [numbers.setdefault(reply, len(numbers)) for reply in replies]
    proximal = _known([s.proximal_logprobs_L for s in chosen])
    reference = _known([s.reference_logprobs_L for s in chosen])
    old_values, returns = _known([s.values_L for s in chosen]), _known([s.returns_L for s in chosen])
    legal_rows, legal_tokens = _legal(chosen)
    if not targets:
        rows, cols, targets, temperatures = [0], [0], [0], [1.0]
        advantages, old, versions, owners, segments = [0.0], [0.0], [0], [-1], [0]
        proximal = reference = old_values = returns = [0.0]

    def integers(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    def floats(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)

    inputs |= {
        "rows_L": integers(rows),
        "cols_L": integers(cols),
        "targets_L": integers(targets),
        "temperature_L": floats(temperatures),
    }
    if legal_rows:
        inputs |= {"legal_rows_K": integers(legal_rows), "legal_tokens_K": integers(legal_tokens)}
    return MicroBatch(
        inputs=inputs,
        old_logprobs_L=floats(old),
        advantages_L=floats(advantages),
        versions_L=integers(versions),
        index_L=integers(owners),
        segments_L=integers(segments),
        proximal_logprobs_L=None if proximal is None else floats(proximal),
        reference_logprobs_L=None if reference is None else floats(reference),
        values_L=None if old_values is None else floats(old_values),
        returns_L=None if returns is None else floats(returns),
    )


def _known(lists: Sequence[list[float] | None]) -> list[float] | None:
    """All of them as one; None where any is missing."""
    return None if any(values is None for values in lists) else [v for values in lists for v in values or ()]


def _legal(chosen: Sequence[Sample]) -> tuple[list[int], list[int]]:
    rows: list[int] = []
    tokens: list[int] = []
    start = 0
    for sample in chosen:
        for i, allowed in enumerate(sample.allowed_L or ()):
            rows += [start + i] * len(allowed)
            tokens += allowed
        start += len(sample.positions_L)
    return rows, tokens
