"""Batches that broke a learner step, kept in `RUN_DIR/dumps` so that the step can be looked at and tried again."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from learners.types import Sample

KEEP = 3
"""Per policy: a run that breaks at every step must not fill the disk. The first ones say most."""


def dump(
    folder: Path | str, policy: str, step: int, samples: Sequence[Sample], metrics: Mapping[str, float]
) -> Path | None:
    """Writes the batch that `policy` was to learn from at `step`; None where there are KEEP dumps of it already.

    JSON, with the strings nan, inf and -inf for what is no number: `load` gives back equal samples.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{policy}-{step}.json"
    if not path.exists() and len(list(folder.glob(f"{policy}-*.json"))) >= KEEP:
        return None
    content = {
        "policy": policy,
        "step": step,
        "metrics": dict(metrics),
        "samples": [dataclasses.asdict(sample) for sample in samples],
    }
    path.write_text(json.dumps(_plain(content), allow_nan=False))
    return path


def load(path: Path | str) -> list[Sample]:
    """The samples of a dump."""
    samples = [Sample(**raw) for raw in json.loads(Path(path).read_text())["samples"]]
    for sample in samples:
        for name in (
            "advantages_L", "logprobs_L", "proximal_logprobs_L", "reference_logprobs_L",
            "rewards_L", "values_L", "returns_L",
        ):  # fmt: skip
            values = getattr(sample, name)
            setattr(sample, name, None if values is None else [float(value) for value in values])
        if sample.allowed_L is not None:
            sample.allowed_L = [tuple(allowed) for allowed in sample.allowed_L]
        sample.temperature = float(sample.temperature)
    return samples


def _plain(value: object) -> object:
    """The same in what JSON has."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and value - value != 0.0:  # nan and both infinities
        return repr(value)
    return value
