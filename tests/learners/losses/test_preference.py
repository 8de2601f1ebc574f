"""Preference losses against numbers by hand, NumPy written from the papers' formulas, and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from configs.methods import LOSSES, is_preference
from configs.schema.run import LossConfig
from learners.losses.preference import PairBatch, reply_logprobs

RNG = np.random.default_rng(0)
SIZE = 6
KINDS = [kind for kind in LOSSES if is_preference(kind)]
Arrays = dict[str, np.ndarray]


def loss_of(kind: str, values: Arrays | dict[str, Tensor], drift: float = 0.0, **settings: float) -> Tensor:
    """The loss of each pair; inputs that are not given are zero."""
    given = {name: torch.as_tensor(value) for name, value in values.items()}
    zero_B = torch.zeros(len(next(iter(given.values()))), dtype=torch.float64)
    names = ("chosen", "rejected", "ref_chosen", "ref_rejected", "chosen_lengths", "rejected_lengths", "probability",
             "chosen_rate", "rejected_rate")  # fmt: skip
    pairs = PairBatch(**{f"{name}_B": given.get(name, zero_B) for name in names}, drift=drift)
    loss_B: Tensor = LOSSES[kind](pairs, LossConfig(kind, **settings))
    return loss_B


def row(chosen: float, rejected: float, ref_chosen: float = 0.0, ref_rejected: float = 0.0, **more: float) -> Arrays:
    values = {"chosen": chosen, "rejected": rejected, "ref_chosen": ref_chosen, "ref_rejected": ref_rejected, **more}
    return {name: np.array([value]) for name, value in values.items()}


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


# -- by hand. h = (-1 - -2) - (-3 - -2) = 2; sigma(0.2) = 0.549834, sigma(-0.2) = 0.450166

PAIR = row(-1.0, -3.0, -2.0, -2.0)
HAND: list[tuple[str, Arrays, dict[str, float], float]] = [
    ("dpo", PAIR, {}, 0.598139),
    ("smoothed_dpo", {**PAIR, "probability": np.array([0.75])}, {}, 0.75 * 0.598139 + 0.25 * 0.798139),
    ("ipo", PAIR, {"tau": 0.5}, 1.0),
    # 2 * (-4 / 2 - -9 / 3) - 1 = 1: -log sigma(1)
    ("simpo", row(-4.0, -9.0, chosen_lengths=2.0, rejected_lengths=3.0), {}, 0.313262),
    ("spin", PAIR, {"scale": 0.5}, 0.313262),
    # z = 1; chosen: l = 3, 1 - sigma(0.1 * 2); rejected: l = -1, 1 - sigma(0.1 * 2)
    ("kto", row(-1.0, -5.0, -4.0, -4.0), {"drift": 1.0}, 0.450166),
    # z = max(0, -2) = 0; chosen: l = 2, 1 - sigma(0.2); rejected: l = 2, 3 * (1 - sigma(-0.2))
    (
        "kto", row(-2.0, -2.0, -4.0, -4.0), {"drift": -2.0, "undesirable_weight": 3.0},
        (0.450166 + 3 * 0.549834) / 2,
    ),
    # l = 1 twice; targets 10 * 0.25 = 2.5 and 10 * -0.5 = -5
    ("sppo", row(-1.0, -1.0, -2.0, -2.0, chosen_rate=0.75), {"eta": 10.0}, (2.25 + 36.0) / 2),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "values", "settings", "expected"), HAND)
def test_by_hand(kind: str, values: Arrays, settings: dict[str, float], expected: float) -> None:
    assert loss_of(kind, values, **settings).tolist() == pytest.approx([expected], abs=2e-6)


# -- against NumPy


def draw() -> Arrays:
    values = {name: RNG.normal(-5.0, 2.0, SIZE) for name in ("chosen", "rejected", "ref_chosen", "ref_rejected")}
    values |= {name: RNG.uniform(0, 1, SIZE) for name in ("probability", "chosen_rate", "rejected_rate")}
    return values | {
        name: RNG.integers(1, 9, SIZE).astype(float) for name in ("chosen_lengths", "rejected_lengths")
    }


def log_ratio(a: Arrays, which: str) -> np.ndarray:
    return np.log(np.exp(a[which]) / np.exp(a[f"ref_{which}"]))


def margin(a: Arrays) -> np.ndarray:
    return log_ratio(a, "chosen") - log_ratio(a, "rejected")


DRIFT = 0.5
ORACLES: dict[str, tuple[dict[str, float], Callable[[Arrays], np.ndarray]]] = {
    "dpo": ({"beta": 0.3}, lambda a: -np.log(sigmoid(0.3 * margin(a)))),
    "smoothed_dpo": (
        {"beta": 0.3},
        lambda a: -(
            a["probability"] * np.log(sigmoid(0.3 * margin(a)))
            + (1 - a["probability"]) * np.log(1 - sigmoid(0.3 * margin(a)))
        ),
    ),
    "ipo": ({"tau": 0.2}, lambda a: (margin(a) - 1 / (2 * 0.2)) ** 2),
    "simpo": (
        {"beta": 2.5, "gamma": 0.7},
        lambda a: np.log1p(
            np.exp(-2.5 * a["chosen"] / a["chosen_lengths"] + 2.5 * a["rejected"] / a["rejected_lengths"] + 0.7)
        ),
    ),
    "spin": ({"scale": 0.4}, lambda a: np.log1p(np.exp(-0.4 * margin(a)))),
    "kto": (  # lambda_y - v(y), the mean of a desirable and an undesirable example
        {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5},
        lambda a: (
            1.5 - 1.5 * sigmoid(0.3 * (log_ratio(a, "chosen") - DRIFT))
            + 0.5 - 0.5 * sigmoid(0.3 * (DRIFT - log_ratio(a, "rejected")))
        ) / 2,
    ),
    "sppo": (
        {"eta": 5.0},
        lambda a: (
            (log_ratio(a, "chosen") - 5.0 * (a["chosen_rate"] - 0.5)) ** 2
            + (log_ratio(a, "rejected") - 5.0 * (a["rejected_rate"] - 0.5)) ** 2
        ) / 2,
    ),
}  # fmt: skip


def test_every_loss_has_an_oracle() -> None:
    assert set(ORACLES) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_against_numpy(kind: str) -> None:
    settings, formula = ORACLES[kind]
    for _ in range(20):
        values = draw()
        loss_B = loss_of(kind, values, DRIFT, **settings)
        assert loss_B.shape == (SIZE,)
        np.testing.assert_allclose(loss_B.numpy(), formula(values), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: str) -> None:
    settings, _ = ORACLES[kind]
    values = {name: torch.from_numpy(array) for name, array in draw().items()}
    learned = [values.pop(name).requires_grad_() for name in ("chosen", "rejected")]

    def value(chosen: Tensor, rejected: Tensor) -> Tensor:
        return loss_of(kind, {"chosen": chosen, "rejected": rejected, **values}, DRIFT, **settings)

    assert torch.autograd.gradcheck(value, learned)
    gradients = torch.autograd.grad(value(*learned).sum(), learned)
    assert all(bool(gradient.any()) for gradient in gradients)


# -- what the papers promise


@given(st.floats(0.05, 0.95), st.floats(-4, 4))
def test_smoothed_dpo_is_least_where_the_policy_is_as_sure_as_the_label(label: float, shift: float) -> None:
    def value(h: float) -> float:
        return loss_of("smoothed_dpo", row(h, 0.0, probability=label), beta=1.0).item()

    best = math.log(label / (1 - label))
    assert value(best) <= value(best + shift) + 1e-12


def test_certain_labels_make_smoothed_dpo_dpo() -> None:
    values = {**draw(), "probability": np.ones(SIZE)}
    torch.testing.assert_close(loss_of("smoothed_dpo", values), loss_of("dpo", values))


def test_extreme_log_ratios_stay_finite() -> None:
    values = row(-5000.0, -1.0, -1.0, -5000.0)
    assert bool(torch.isfinite(loss_of("dpo", values, beta=1.0)).all())
    assert bool(torch.isfinite(loss_of("ipo", values)).all())


def test_replies_are_summed_over_their_tokens() -> None:
    logprobs_L = torch.tensor([-1.0, -2.0, -4.0, -8.0])
    assert reply_logprobs(logprobs_L, torch.tensor([0, 2, 0, 2]), 3).tolist() == [-5.0, 0.0, -10.0]


CASES = [(kind, name) for kind in KINDS for name in sorted(LOSSES.reads(kind) - {"sft", "label_gamma"})]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_every_setting_acts(kind: str, name: str) -> None:
    settings, _ = ORACLES[kind]
    values, changed = draw(), {**settings, name: settings[name] + 0.4}
    assert not torch.equal(loss_of(kind, values, DRIFT, **settings), loss_of(kind, values, DRIFT, **changed))
