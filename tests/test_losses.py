"""Losses against NumPy written from the formulas, finite differences, and exact expectations."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from configs.schema import LossConfig
from learners.losses import LOSSES, token_loss
from learners.settings import LOSS_USES

CONFIG = LossConfig(clip_low=0.2, clip_high=0.3, entropy=0.0)


def tensors(*rows: list[float]) -> list[torch.Tensor]:
    return [torch.tensor(row, dtype=torch.float64) for row in rows]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        # Inside the bounds: -r A, and its derivative by log p is the same number.
        (1.1, 2.0, -2.2, -2.2),
        (0.9, -2.0, 1.8, 1.8),
        # Moved too far in the rewarded direction: flat.
        (1.5, 2.0, -1.3 * 2.0, 0.0),
        (0.5, -2.0, 0.8 * 2.0, 0.0),
        # Moved too far the wrong way: the pull back is not clipped.
        (0.5, 2.0, -1.0, -1.0),
        (1.5, -2.0, 3.0, 3.0),
    ],
)
def test_clip_by_hand(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    old, new, advantages = tensors([-1.3], [-1.3 + np.log(ratio)], [advantage])
    new.requires_grad_()
    loss_L, metrics = LOSSES["clip"](new, old, advantages, CONFIG)
    loss_L.sum().backward()
    assert loss_L.item() == pytest.approx(loss, abs=1e-12)
    assert new.grad is not None and new.grad.item() == pytest.approx(gradient, abs=1e-12)
    assert metrics["clip_fraction"].item() == float(gradient == 0.0)
    assert metrics["ratio"].item() == pytest.approx(ratio)


def test_clip_against_numpy() -> None:
    rng = np.random.default_rng(0)
    new, old, advantages = rng.normal(-2, 0.5, 200), rng.normal(-2, 0.5, 200), rng.normal(0, 1, 200)
    expected = np.empty(200)
    for i in range(200):
        ratio = np.exp(new[i]) / np.exp(old[i])
        bounded = min(max(ratio, 0.8), 1.3)
        expected[i] = -min(ratio * advantages[i], bounded * advantages[i])
    loss_L, _ = LOSSES["clip"](*map(torch.from_numpy, (new, old, advantages)), CONFIG)
    np.testing.assert_allclose(loss_L.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", sorted(LOSSES))
def test_gradient_is_that_of_the_value(kind: str) -> None:
    new, old, advantages = tensors(
        [-1.0, -2.0, -0.3, -4.0], [-1.05, -1.0, -1.5, -4.1], [1.0, -0.5, -2.0, 0.7]
    )
    new.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: LOSSES[kind](x, old, advantages, CONFIG)[0], (new,))


def test_reinforce_is_the_score_function_on_policy() -> None:
    new, advantages = tensors([-1.0, -2.0], [3.0, -0.5])
    new.requires_grad_()
    LOSSES["reinforce"](new, new.detach().clone(), advantages, CONFIG)[0].sum().backward()
    assert new.grad is not None and new.grad.tolist() == [-3.0, 0.5]


def test_sft_weighs_tokens() -> None:
    new, old, weights = tensors([-1.0, -2.0], [0.0, 0.0], [1.0, 0.25])
    assert LOSSES["sft"](new, old, weights, CONFIG)[0].tolist() == [1.0, 0.5]


def test_kl_estimate_has_the_right_expectation() -> None:
    rng = np.random.default_rng(1)
    old, new = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
    _, metrics = LOSSES["reinforce"](*map(torch.from_numpy, (np.log(new), np.log(old), np.ones(6))), CONFIG)
    exact = sum(p * (np.log(p) - np.log(q)) for p, q in zip(old, new))
    assert float((torch.from_numpy(old) * metrics["approx_kl"]).sum()) == pytest.approx(exact, rel=1e-12)
    assert (metrics["approx_kl"] >= 0).all()


@pytest.mark.parametrize("kind", sorted(LOSSES))
@pytest.mark.parametrize("name", [f.name for f in fields(LossConfig) if f.name != "kind"])
def test_uses_lists_exactly_the_settings_with_an_effect(kind: str, name: str) -> None:
    new, old, advantages, entropy = tensors([0.0, 0.0], [-0.5, 0.5], [1.0, -1.0], [0.4, 0.9])

    def value(config: LossConfig) -> list[float]:
        return token_loss(kind, config, new, old, advantages, entropy)[0].tolist()

    changed = replace(CONFIG, **{name: getattr(CONFIG, name) + 0.05})
    assert (value(changed) != value(CONFIG)) == (name in LOSS_USES[kind])


def test_entropy_is_a_bonus() -> None:
    new, advantages, entropy = tensors([-1.0], [0.0], [0.7])
    loss_L, _ = token_loss("clip", replace(CONFIG, entropy=0.1), new, new, advantages, entropy)
    assert loss_L.item() == pytest.approx(-0.07)


def test_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="none of clip, reinforce, sft"):
        token_loss("klip", CONFIG, *tensors([0.0], [0.0], [0.0], [0.0]))
