"""Parts of the learner that need neither Ray nor DeepSpeed: settings, batches, tallies, buckets."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from configs.deepspeed import deepspeed_json, resolve_dtype
from configs.methods import LearnerConfigError
from configs.schema.run import LearnerConfig
from learners.batches import batching
from learners.batches.batching import BadSample, balance, split_by_length
from learners.ranks.metrics import MetricSums, merge
from learners.ranks.rank import LearnerRank
from learners.types import Sample
from learners.weights import bucket_names, pack, unpack
from tests.support.learner_oracle import CONFIG, make_samples


def test_deepspeed_keys_that_fields_set_are_refused_by_name() -> None:
    config = LearnerConfig(
        deepspeed={
            "gradient_clipping": 1,
            "optimizer": {},
            "zero_optimization": {"stage": 2},
            "wall_clock_breakdown": True,
        }
    )
    with pytest.raises(LearnerConfigError, match=r"gradient_clipping, optimizer, zero_optimization\.stage:"):
        deepspeed_json(config, "cpu")


def test_other_deepspeed_keys_pass_through() -> None:
    offload = {"offload_optimizer": {"device": "cpu"}}
    config = LearnerConfig(
        zero_stage=2, deepspeed={"zero_optimization": offload, "wall_clock_breakdown": True}
    )
    settings = deepspeed_json(config, "cpu")
    assert (
        settings["zero_optimization"] == {"stage": 2, **offload} and settings["wall_clock_breakdown"] is True
    )
    assert settings["gradient_clipping"] == config.grad_clip


@pytest.mark.parametrize(
    ("dtype", "device", "stage", "resolved"),
    [("auto", "cpu", 2, "float32"), ("auto", "cuda", 2, "bfloat16"), ("auto", "cuda", 0, "float32")],
)
def test_dtype_auto(dtype: str, device: str, stage: int, resolved: str) -> None:
    assert resolve_dtype(LearnerConfig(dtype=dtype, zero_stage=stage), device) == resolved


@pytest.mark.parametrize("wrong", [{"dtype": "bfloat16"}, {"dtype": "float16"}, {"zero_stage": 4}])
def test_settings_that_cannot_run_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(LearnerConfigError, match=next(iter(wrong))):
        deepspeed_json(LearnerConfig(**wrong), "cpu")


def test_micro_batches_hold_every_sample_once_and_fit() -> None:
    samples = make_samples(40)
    parts = split_by_length(samples, 40)
    assert sorted(i for part in parts for i in part) == list(range(40))
    assert all(max(len(samples[i].token_ids_S) for i in part) * len(part) <= 40 for part in parts)
    assert [len(part) for part in split_by_length(samples, 1)] == [1] * 40
    assert split_by_length([], 40) == []


def test_ranks_get_about_the_same_tokens() -> None:
    samples = make_samples(41)
    parts = balance(samples, 3)
    loads = [sum(len(samples[i].token_ids_S) for i in part) for part in parts]
    assert sorted(i for part in parts for i in part) == list(range(41))
    assert max(loads) - min(loads) <= 14


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions_L": [0]}, "position 0"),
        ({"positions_L": [3]}, "position 3 of 3"),
        ({"advantages_L": []}, "lengths"),
        ({"allowed_L": [(1, 2)]}, "token 7 at 2"),
        ({"temperature": 0.0}, "temperature"),
        ({"segments_L": [0, 0]}, "lengths"),
        ({"reference_logprobs_L": []}, "lengths"),
    ],
)
def test_unsound_samples_are_named(change: dict[str, Any], message: str) -> None:
    sound = Sample([5, 6, 7], [2], [1.0], [-1.0], [0], [(7, 8)], group="debate/alice")
    batching.check(sound)
    with pytest.raises(BadSample, match=f"debate/alice.*{message}"):
        batching.check(replace(sound, **change))


def test_tally_weighs_ranks_by_tokens() -> None:
    one, two = MetricSums(), MetricSums()
    one.mean("loss", 10.0, 4)
    two.mean("loss", 2.0, 2)
    one.total("tokens", 4)
    two.total("tokens", 2)
    one.peak("ratio_max", 1.5)
    two.peak("ratio_max", 1.1)
    two.mean("never", 0.0, 0)
    assert merge([one, two]) == {"loss": 2.0, "tokens": 6, "ratio_max": 1.5}


def test_buckets_round_trip_and_notice_damage() -> None:
    named = [("a", torch.randn(3, 2)), ("b", torch.randn(5).bfloat16()), ("c", torch.tensor(2.0))]
    bucket = pack(named)
    assert bucket["sha256"] == hashlib.sha256(bucket["data"].tobytes()).hexdigest()
    assert [entry[3:] for entry in bucket["entries"]] == [(0, 24), (24, 10), (34, 4)]
    for (name, tensor), (got_name, got) in zip(named, unpack(bucket)):
        assert name == got_name and got.dtype == tensor.dtype and torch.equal(got, tensor)
    bucket["data"][30] ^= 1
    with pytest.raises(ValueError, match="checksum"):
        unpack(bucket)
    assert bucket_names([("a", 6), ("b", 4), ("c", 1), ("d", 99)], limit=10) == [["a", "b"], ["c"], ["d"]]


def test_state_of_another_shape_is_refused(tmp_path: Path) -> None:
    (tmp_path / "learner.json").write_text('{"ranks": 1, "zero_stage": 2, "dtype": "float32"}')
    with mock.patch.dict(os.environ):
        rank = LearnerRank(0, 1, "unused", CONFIG)
    with pytest.raises(LearnerConfigError, match="zero_stage 2, this learner has 0"):
        rank.load(str(tmp_path))
