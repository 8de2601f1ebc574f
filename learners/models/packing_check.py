"""Does a model keep apart the sequences of one row? Tried before it trains: not every architecture does."""

from __future__ import annotations

import torch

from configs.methods import LearnerConfigError
from configs.schema.run import Packing
from learners.batches.batching import collate
from learners.batches.packing import split
from learners.models.token_model import TokenModel, probe_ids
from learners.types import Sample


def check_packing(model: TokenModel, packing: Packing) -> None:
    """Raises LearnerConfigError for a model whose packed sequences see each other."""
    first = next(model.parameters())
    ids = probe_ids(model.lm).tolist()
    lists = [ids + ids, ids, ids[::-1], ids[:4] + ids[:2]]  # some begin alike, some fit into one row
    packed_L, alone_L = (_logprobs(model, lists, kind, first.device) for kind in (packing, "none"))
    gap = float((packed_L - alone_L).abs().max())
    if not gap <= (1e-3 if first.dtype == torch.float32 else 0.2):
        raise LearnerConfigError(
            f"packing: in {type(model.lm).__name__} sequences of one row see each other (log-probabilities differ by "
            f"{gap:.3g}); set it to none"
        )


def _logprobs(model: TokenModel, lists: list[list[int]], packing: Packing, device: torch.device) -> torch.Tensor:
    """Of every token but the first of each sequence, one sequence after the other."""
    samples = []
    for ids in lists:
        zeros = [0.0] * (len(ids) - 1)
        samples.append(Sample(ids, list(range(1, len(ids))), zeros, zeros, [0] * len(zeros)))
    parts, width = split(samples, 10_000, packing)
    (part,) = parts
    batch = collate(samples, part, device, width)
    with torch.no_grad():
        found_L, _ = model(**batch.inputs)
    return torch.cat([found_L[batch.index_L == i] for i in range(len(samples))])
