"""Several adapters on one base model learn exactly what they would learn in processes of their own."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema.run import LearnerConfig, LoraConfig
from learners.models.lora import adapter_parameters, add_adapter, with_the_weights_of
from learners.ranks.group import LearnerDied, LearnerGroup
from learners.weights import unpack
from tests.support.learner_oracle import CONFIG, loop, make_samples, model_dir, same, slow, tiny_model

__all__ = ["loop", "model_dir"]  # fixtures

ONE = replace(CONFIG, lora=LoraConfig(rank=4, target_modules=["q_proj", "down_proj"]))
OTHER = replace(CONFIG, lr=3e-3, micro_tokens=70, lora=LoraConfig(rank=2, alpha=3.0, target_modules=["v_proj"]))


def test_a_base_is_shared_and_adapters_are_not() -> None:
    base = tiny_model()
    one, other = with_the_weights_of(base), with_the_weights_of(base)
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    plain = base(input_ids=ids).logits
    for lm, rank in ((one, 2), (other, 3)):
        add_adapter(lm, LoraConfig(rank=rank, target_modules=["q_proj"]), 0)
    stored = {p.data_ptr() for p in base.parameters()}
    for lm, rank in ((one, 2), (other, 3)):
        new = [p for p in lm.parameters() if p.data_ptr() not in stored]
        assert {id(p) for p in new} == {id(p) for p in adapter_parameters(lm)}
        assert sum(p.numel() for p in new) == 2 * rank * (32 + 32)  # A and B of two layers of 32 to 32
    with torch.no_grad():
        for parameter in adapter_parameters(one):
            parameter.add_(0.3)
    assert torch.equal(other(input_ids=ids).logits, plain) and torch.equal(base(input_ids=ids).logits, plain)
    assert not torch.allclose(one(input_ids=ids).logits, plain)


@pytest.mark.engine
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), slow(1, 1), slow(0, 2), (2, 2)])
def test_shared_and_separate_learners_end_with_the_same_bits(
    loop: asyncio.AbstractEventLoop, model_dir: Path, tmp_path: Path, stage: int, ranks: int
) -> None:
    def run(awaitable: Any) -> Any:
        return loop.run_until_complete(asyncio.wait_for(awaitable, 300))

    def start(name: str, config: LearnerConfig, host: LearnerGroup | None = None) -> LearnerGroup:
        config = replace(config, zero_stage=stage, ranks=ranks)
        group = LearnerGroup(name, str(model_dir), config, timeout_s=60, host=host)
        run(group.ready())
        return group

    def weights(group: LearnerGroup) -> dict[str, torch.Tensor]:
        return dict(pair for bucket in run(group.export()) for pair in unpack(bucket))

    async def together(groups: list[LearnerGroup], step: int) -> None:
        await asyncio.gather(*(group.step(make_samples(9, seed=10 * step + i)) for i, group in enumerate(groups)))

    def learn(groups: list[LearnerGroup]) -> list[dict[str, torch.Tensor]]:
        for step in range(3):
            run(together(groups, step))
        return [weights(group) for group in groups]

    apart = [start("one", ONE), start("other", OTHER)]
    expected = learn(apart)
    for group in apart:
        group.stop()
    one = start("one", ONE)
    other = start("other", OTHER, one)
    found = learn([one, other])
    assert all(same(*pair) for pair in zip(found, expected)) and not same(*found)
    (tmp_path / "state").mkdir()
    run(other.save(str(tmp_path / "state")))
    run(other.step(make_samples(5)))
    assert not same(weights(other), found[1]) and same(weights(one), found[0])
    run(other.load(str(tmp_path / "state")))
    assert same(weights(other), found[1])
    other.stop()
    with pytest.raises(LearnerDied, match="'other' was stopped"):
        run(other.export())
    run(one.step(make_samples(5)))
    one.stop()
