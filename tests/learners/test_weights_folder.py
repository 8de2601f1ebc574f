"""Weights of a folder without torch: every tensor as safetensors reads it, whatever the buckets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from safetensors.numpy import load_file, save_file

from actors.engine.actor import check_sums
from actors.serving.messages import WeightBucket
from learners.weights import read_folder

shapes = st.lists(st.lists(st.integers(1, 5), min_size=0, max_size=3), min_size=1, max_size=8)


@settings(deadline=None, max_examples=30)
@given(shapes, st.integers(1, 200), st.integers(0, 99))
def test_every_tensor_arrives_whole(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[list[int]], limit: int, seed: int
) -> None:
    folder, rng = tmp_path_factory.mktemp("model"), np.random.default_rng(seed)
    tensors = {f"layer.{i}": rng.normal(size=shape).astype([np.float32, np.float16][i % 2])
               for i, shape in enumerate(shapes)}  # fmt: skip
    half = len(tensors) // 2
    for part, names in enumerate((list(tensors)[:half], list(tensors)[half:])):
        save_file({name: tensors[name] for name in names}, folder / f"model-{part}.safetensors", {"format": "pt"})
    buckets = read_folder(folder, limit)
    check_sums([WeightBucket(**bucket) for bucket in buckets])
    found = {}
    for bucket in buckets:
        assert bucket["data"].nbytes <= limit or len(bucket["entries"]) == 1
        for name, shape, dtype, start, size in bucket["entries"]:
            assert name not in found
            found[name] = bucket["data"][start : start + size].copy().view(dtype).reshape(shape)
    truth = {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
    assert found.keys() == truth.keys() == tensors.keys()
    assert all((found[name] == truth[name]).all() and found[name].shape == truth[name].shape for name in truth)


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no weights"):
        read_folder(tmp_path)
    save_file({"a": np.zeros(2, np.int64)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="dtype I64; engines take F32, BF16, F16"):
        read_folder(tmp_path)
