"""A pretrained model of 135M parameters and 49k tokens on real Ray, vLLM and DeepSpeed: after every push the engine's
log-probabilities are the learner's. In float32 they are equal; in bfloat16 they differ, and the correction of the loss
weighs each token by the ratio."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from actors.concurrency import gather_or_cancel
from actors.players.base import Seated
from actors.players.chat import ChatCodec
from actors.rollout.loop import play_all
from actors.system import System
from configs.schema.run import EngineConfig, LearnerConfig, LoraConfig, LossConfig, ModelConfig, PolicyConfig
from learners.credit.samples import imitation_samples
from learners.ranks.group import LearnerGroup
from learners.types import Sample
from protocols.kinds.solve import Solve
from protocols.types import Episode
from tasks.kinds.lists import Lists
from tests.driver.test_system import TOLERANCE, Learning, versions
from tests.support.pretrained import smollm2
from tests.support.rigs import Rig, rigged

__all__ = ["smollm2"]
pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

LORA = {"rank": 8, "alpha": 16.0}
FLOAT32 = {
    "full": LearnerConfig(lr=1e-4, micro_tokens=1024),
    "merged": LearnerConfig(lr=1e-2, micro_tokens=1024, lora=LoraConfig(**LORA, push="merged")),
    "adapter": LearnerConfig(lr=1e-2, micro_tokens=1024, lora=LoraConfig(**LORA, push="adapter")),
}
HIGH = 1.02
"""Upper bound of the correction in the test: low, so that some tokens reach it."""
BFLOAT16 = LearnerConfig(
    lr=1e-5, micro_tokens=1024, dtype="bfloat16", zero_stage=1,
    loss=LossConfig(correction="truncate", correction_high=HIGH),
)  # fmt: skip


class Sorting(Learning):
    """A solver of short lists, in the words of any language model, with an engine and a learner."""

    def __init__(self, folder: Path, learner: LearnerConfig, dtype: str = "float32"):
        Rig.__init__(self)
        self.lists = Lists(op="sort", sampler="uniform", max_len=4, easy_max_len=4)
        self.protocol = Solve(prompt="Write these digits in ascending order: {{ question }}", max_tokens=12)
        engine = EngineConfig(dtype=dtype, kv_cache_mb=64, max_model_len=256)  # type: ignore[arg-type]
        self.policy = PolicyConfig(model=ModelConfig(path=str(folder)), engine=engine, trained=True, learner=learner)
        codec = ChatCodec.from_pretrained(str(folder))
        self.system = System({"p": self.policy}, seed=0)
        self.learner = LearnerGroup("p", str(folder), learner)
        self(gather_or_cancel([self.learner.ready(), self.system.serve("p", str(folder), codec)]))
        self.served = self.system.served["p"]
        self.players = {"solver": Seated("p", self.served.player)}

    def play(self, seed: int, count: int = 8) -> list[list[Episode]]:
        return self(play_all(self.protocol, self.lists.derived_heldout(count, seed), self.players, "test", seed))

    def samples(self, plays: list[list[Episode]], seed: int) -> list[Sample]:
        rng = random.Random(seed)
        samples = imitation_samples([episode for play in plays for episode in play], ["solver"])
        for sample in samples:
            sample.advantages_L = [rng.gauss(0, 1) for _ in sample.positions_L]
        return samples


@pytest.fixture(params=FLOAT32)
def rig(request: pytest.FixtureRequest, smollm2: Path) -> Iterator[Sorting]:
    with rigged(lambda: Sorting(smollm2, FLOAT32[request.param]), actors=2) as rig:
        yield rig


def test_float32_engine_and_learner_agree_after_every_push(rig: Sorting) -> None:
    for seed in range(3):
        samples = rig.samples(rig.play(seed), seed)
        assert versions(samples) == {rig.served.version} == {seed}
        assert rig.gap(samples) < TOLERANCE
        rig.learn(samples)
        assert rig.gap(samples) > 100 * TOLERANCE, "the learner has not moved: nothing was tested"
        rig.push()
    assert rig.gap(rig.samples(rig.play(9), 9)) < TOLERANCE


def test_in_bfloat16_the_gap_is_reported_and_corrected(smollm2: Path) -> None:
    with rigged(lambda: Sorting(smollm2, BFLOAT16, "bfloat16"), actors=2) as rig:
        for seed in range(2):
            samples = rig.samples(rig.play(seed), seed)
            found = rig(rig.learner.logprobs(samples))
            gap = np.concatenate([np.subtract(own, s.logprobs_L) for own, s in zip(found, samples)])
            metrics = rig.learn(samples)
            assert metrics["sampler_gap"] == pytest.approx(np.abs(gap).mean(), rel=1e-3)
            assert metrics["sampler_gap_max"] == pytest.approx(np.abs(gap).max(), rel=1e-3)
            assert 1e-3 < metrics["sampler_gap"] < 0.2
            assert metrics["correction_weight"] == pytest.approx(np.minimum(np.exp(gap), HIGH).mean(), rel=1e-3)
            rig.push()
