"""Ray's object store holds what learners push twice, or the run is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from configs.load import load
from configs.memory import object_store_bytes
from configs.reading.errors import ConfigErrors
from tests.support.config_files import LAPTOP, read, write

__all__ = ["write"]
ONE, FLOOR = 4 * (100_000_000 + 4 * 1_000_000 + 3 * 10_000 + 3 * 1_000), 512 * 2**20
"""Bytes of the model below in float32: tied embeddings; query, key, value, output; a gated layer; three norms."""


@pytest.fixture
def big(write: Callable[..., Path], tmp_path: Path) -> Path:
    """A config whose debater has 100 million parameters."""
    shape = {
        "vocab_size": 100_000, "hidden_size": 1_000, "num_hidden_layers": 1, "num_attention_heads": 10,
        "num_key_value_heads": 10, "intermediate_size": 10, "tie_word_embeddings": True,
    }  # fmt: skip
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({**shape, "max_position_embeddings": 128}))
    return write(("  debater:\n    trained", f"  debater:\n    model: {{path: {tmp_path / 'model'}}}\n    trained"))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], 2 * ONE + 64 * 2**20),
        (["policies.debater.learner.dtype=bfloat16", "policies.debater.learner.zero_stage=1"], FLOOR),
        (["policies.debater.learner.lora={push: merged}"], 2 * ONE + 64 * 2**20),
        (["policies.debater.learner.lora={push: adapter}"], FLOOR),
    ],
)
def test_the_store_holds_what_is_pushed_twice(big: Path, overrides: list[str], expected: int) -> None:
    assert object_store_bytes(read(big, *overrides).config.policies.values()) == expected


def test_too_small_a_dev_shm_is_refused_before_anything_starts(big: Path) -> None:
    enough = 2 * ONE + 64 * 2**20
    load(big, machine=replace(LAPTOP, shared_memory=enough))
    said = r"0\.8 GiB of /dev/shm are needed to push weights, 0\.5 GiB are free there.*--shm-size"
    with pytest.raises(ConfigErrors, match=said):
        load(big, machine=replace(LAPTOP, shared_memory=FLOOR))
    with pytest.raises(ConfigErrors, match="/dev/shm"):
        load(big, machine=replace(LAPTOP, shared_memory=enough - 1))
    load(big, ["cluster.address=somewhere:6379"], machine=replace(LAPTOP, shared_memory=64 * 2**20))
    load(big, machine=LAPTOP)  # unknown
