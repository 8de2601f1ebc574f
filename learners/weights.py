"""Sender side of weight sync: named parameters packed into flat buffers.

A bucket is a plain dict, because learners and actors share no code beyond `protocols`:
`entries`: list of (name, shape, dtype, byte offset, byte length), names as in the model's Hugging Face
checkpoint, dtype as "float32" or "bfloat16"; `data`: numpy uint8 array of all of them back to back;
`sha256`: of `data`, in hex; "" when not asked for. Of an adapter also `base` and `scaling`.
`actors.serving.messages.WeightBucket(**bucket)` is the same thing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

Bucket = dict[str, Any]
Named = tuple[str, "torch.Tensor"]

BUCKET_BYTES = 64 * 1024 * 1024
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""safetensors' names of those that engines take."""


def bucket_names(sizes: Iterable[tuple[str, int]], limit: int = BUCKET_BYTES) -> list[list[str]]:
    """Groups (name, bytes) in order, so that a bucket holds at most `limit` bytes (or one larger tensor)."""
    buckets: list[list[str]] = []
    filled = 0
    for name, size in sizes:
        if not buckets or filled + size > limit:
            buckets.append([])
            filled = 0
        buckets[-1].append(name)
        filled += size
    return buckets


def pack(parameters: Sequence[Named], checksum: bool = True) -> Bucket:
    """One bucket with a copy of every tensor, in the order given."""
    import torch

    chunks: list[np.ndarray] = []
    entries: list[tuple[str, tuple[int, ...], str, int, int]] = []
    offset = 0
    for name, tensor in parameters:
        flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy()
        dtype = str(tensor.dtype).removeprefix("torch.")
        entries.append((name, tuple(tensor.shape), dtype, offset, flat.nbytes))
        chunks.append(flat)
        offset += flat.nbytes
    data = np.concatenate(chunks) if chunks else np.zeros(0, dtype=np.uint8)
    digest = hashlib.sha256(data.data).hexdigest() if checksum else ""
    return {"entries": entries, "data": data, "sha256": digest}


def unpack(bucket: Bucket) -> list[Named]:
    """The tensors of a bucket. Raises ValueError when the checksum disagrees."""
    import torch

    data = np.asarray(bucket["data"])
    if bucket["sha256"] and hashlib.sha256(data.data).hexdigest() != bucket["sha256"]:
        raise ValueError(f"weight bucket starting at {bucket['entries'][0][0]!r}: checksum does not match")
    return [
        (name, torch.from_numpy(data[start : start + size].copy()).view(getattr(torch, dtype)).reshape(shape))
        for name, shape, dtype, start, size in bucket["entries"]
    ]


def read_folder(folder: str | Path, limit: int = BUCKET_BYTES) -> list[Bucket]:
    """The weights of a folder in Hugging Face format as buckets, without torch: the body of a safetensors file is its
    tensors back to back. Raises ValueError for a folder without such files, and for dtypes that engines do not take."""
    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no weights (*.safetensors)")
    return [bucket for file in files for bucket in _file_buckets(file, limit)]


def _file_buckets(file: Path, limit: int) -> Iterator[Bucket]:
    """Format: 8 bytes with the header's length, the header in JSON, the body (safetensors README, "Format")."""
    raw = np.memmap(file, dtype=np.uint8, mode="r")
    length = int.from_bytes(raw[:8].tobytes(), "little")
    header = json.loads(raw[8 : 8 + length].tobytes())
    body = raw[8 + length :]
    tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
    unknown = {entry["dtype"] for entry in tensors.values()} - set(DTYPES)
    if unknown:
        raise ValueError(f"{file}: dtype {', '.join(sorted(unknown))}; engines take {', '.join(DTYPES)}")
    order = sorted(tensors, key=lambda name: tensors[name]["data_offsets"])
    sizes = [(name, tensors[name]["data_offsets"][1] - tensors[name]["data_offsets"][0]) for name in order]
    for names in bucket_names(sizes, limit):
        start, end = tensors[names[0]]["data_offsets"][0], tensors[names[-1]]["data_offsets"][1]
        data = np.array(body[start:end])
        entries = []
        for name in names:
            entry, (first, last) = tensors[name], tensors[name]["data_offsets"]
            entries.append((name, tuple(entry["shape"]), DTYPES[entry["dtype"]], first - start, last - first))
        yield {"entries": entries, "data": data, "sha256": hashlib.sha256(data.data).hexdigest()}
