"""Five steps of every way to train against plain PyTorch AdamW, or peft alone; states taken up by other ranks.

Stages 0, 2 and 3 with all weights and two ranks, 0 and 2 with one: tests/learners/ranks/test_learner.py.
The reference stands in tests/support/learner_oracle.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema.run import LoraConfig
from learners.models.lora import ADAPTER, take_out
from tests.support.learner_oracle import (
    CONFIG,
    Rig,
    loop,
    make_samples,
    model_dir,
    reference_step,
    same,
    tiny_model,
)

__all__ = ["loop", "model_dir"]  # fixtures

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

LORA = LoraConfig(rank=4, alpha=8.0, target_modules=["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"])
TOLERANCE = 5e-5
"""Largest difference of any weight after five steps of Adam with learning rate 1e-3, which moves weights by 5e-3."""
LORA_TOLERANCE = 1e-4
"""The same; a product of two matrices that moved."""


def five_steps(rig: Rig, model: Any) -> None:
    """The group and `model` alike, on the same batches."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=CONFIG.lr, weight_decay=CONFIG.weight_decay)
    for step in range(5):
        samples = make_samples(13, seed=step)
        expected = reference_step(model, optimizer, samples)
        metrics = rig(rig.group.step(samples, seed=step))
        for name, value in expected.items():
            assert metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-5), (step, name)


def compare(rig: Rig, plain: Any, tolerance: float, moved: float) -> None:
    """`plain`: the trained reference, adapters merged. Some weight must have moved by more than `moved`."""
    before, found = dict(tiny_model().named_parameters()), rig.weights()
    expected = {name: p.detach() for name, p in plain.named_parameters()}
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")
    assert max(float((found[name] - before[name]).abs().max()) for name in found) > moved


def peft_alone() -> Any:
    """As the group starts: peft draws A, B is zero."""
    import peft

    model = tiny_model()
    torch.manual_seed(0)
    targets = list(LORA.target_modules)
    return peft.get_peft_model(model, peft.LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules=targets))


def all_but_one_slow(cases: Iterable[tuple[int, ...]], quick: tuple[int, ...]) -> list[Any]:
    """`make test` runs the quick one, `make test-slow` the others."""
    return [case if case == quick else pytest.param(*case, marks=pytest.mark.slow) for case in cases]


VARIANTS: list[tuple[int, int, dict[str, Any]]] = [
    (1, 1, {}), (3, 1, {}), (1, 2, {}),
    (0, 1, {"packing": "rows"}), (2, 2, {"packing": "rows"}), (3, 2, {"packing": "rows"}),
    (0, 1, {"packing": "prefixes"}), (2, 2, {"packing": "prefixes"}),
    (0, 1, {"gradient_checkpointing": True}), (3, 2, {"gradient_checkpointing": True}),
    (2, 2, {"offload": "optimizer"}), (3, 1, {"offload": "parameters"}),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "ranks", "settings"), VARIANTS)
def test_five_steps_equal_plain_adamw(
    loop: asyncio.AbstractEventLoop, model_dir: Path, stage: int, ranks: int, settings: dict[str, Any]
) -> None:
    rig = Rig(loop, model_dir, stage, ranks, **settings)
    try:
        model = tiny_model()
        five_steps(rig, model)
        compare(rig, model, TOLERANCE, 2e-3)
    finally:
        rig.group.stop()


@pytest.mark.parametrize(("stage", "ranks"), all_but_one_slow(product([0, 1, 2, 3], [1, 2]), (2, 2)))
def test_an_adapter_equals_peft_alone(
    loop: asyncio.AbstractEventLoop, model_dir: Path, tmp_path: Path, stage: int, ranks: int
) -> None:
    from safetensors.torch import load_file

    rig = Rig(loop, model_dir, stage, ranks, lora=LORA)
    try:
        model = peft_alone()
        five_steps(rig, model)
        compare(rig, model.merge_and_unload(), LORA_TOLERANCE, 1e-4)
        frozen = dict(tiny_model().named_parameters())
        assert all(torch.equal(tensor, frozen[name]) for name, tensor in rig.weights().items() if "k_proj" in name)
        # The checkpoint: bit by bit, without the weights that do not move.
        state, out = tmp_path / "p" / "state", tmp_path / "out"
        state.mkdir(parents=True)
        rig(rig.group.save(str(state)))
        saved = rig.weights()
        rig(rig.group.step(make_samples(6, 9)))
        straight = rig.weights()
        assert rig(rig.group.load(str(state))) == {} and same(saved, rig.weights())
        rig(rig.group.step(make_samples(6, 9)))
        assert same(straight, rig.weights()) and not same(straight, saved)
        assert take_out(tmp_path / "p", out) == str(model_dir)
        assert same(load_file(out / "model.safetensors"), saved)
        assert (state / ADAPTER / "adapter_config.json").is_file()
        names = {name for path in state.rglob("*.pt") for name in _names(torch.load(path, weights_only=False))}
        assert any("lora_A" in name for name in names)
        assert not any("embed_tokens" in name or "lm_head" in name for name in names)
    finally:
        rig.group.stop()


def _names(value: Any) -> set[str]:
    """All texts that a saved state has as keys, of tensors or of dictionaries."""
    if not isinstance(value, dict):
        return set().union(*map(_names, value)) if isinstance(value, (list, tuple)) else set()
    return {str(key) for key, entry in value.items() if torch.is_tensor(entry)}.union(*map(_names, value.values()))


@pytest.mark.parametrize("lora", [None, pytest.param(LORA, marks=pytest.mark.slow)], ids=["all", "lora"])
@pytest.mark.parametrize(
    ("stage", "before", "after"), all_but_one_slow(((z, a, 3 - a) for z in range(4) for a in (1, 2)), (2, 2, 1))
)
def test_a_state_is_taken_up_by_other_ranks(
    loop: asyncio.AbstractEventLoop, model_dir: Path, tmp_path: Path, stage: int, before: int, after: int, lora: Any
) -> None:
    one = Rig(loop, model_dir, stage, before, lora=lora)
    try:
        for step in range(3):
            one(one.group.step(make_samples(9, step)))
        one(one.group.save(str(tmp_path), {"step": 3}))
        saved = one.weights()
        one(one.group.step(make_samples(9, 7)))
        straight = one.weights()
    finally:
        one.group.stop()
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    two = Rig(loop, model_dir, stage, after, lora=lora)
    try:
        assert two(two.group.load(str(tmp_path), str(tmp_path.parent))) == {"step": 3}
        assert same(saved, two.weights())
        two(two.group.step(make_samples(9, 7)))
        for name, tensor in two.weights().items():  # forgotten momenta would move weights by 1e-3
            torch.testing.assert_close(tensor, straight[name], rtol=0, atol=LORA_TOLERANCE)
    finally:
        two.group.stop()
    assert files == sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")), "the checkpoint was changed"
    assert not list(tmp_path.parent.glob(".universal*"))
