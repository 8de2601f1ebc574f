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

from learners.losses.preference import (
    PREFERENCES,
    UnknownPreference,
    brier,
    log_score,
    preference_loss,
    reply_logprobs,
    settings_of,
    soft_label,
    weak_to_strong,
)

RNG = np.random.default_rng(0)
SIZE = 6
PAIR = ("chosen_B", "rejected_B", "ref_chosen_B", "ref_rejected_B")


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def normal(mean: float = -5.0) -> np.ndarray:
    return RNG.normal(mean, 2.0, SIZE)


# -- by hand. h = (-1 - -2) - (-3 - -2) = 2; sigma(0.2) = 0.549834, sigma(-0.2) = 0.450166

HAND: list[tuple[str, dict[str, Tensor], dict[str, float], float]] = [
    ("dpo", dict(zip(PAIR, map(tensor, (-1.0, -3.0, -2.0, -2.0)))), {}, 0.598139),
    (
        "smoothed_dpo",
        {**dict(zip(PAIR, map(tensor, (-1.0, -3.0, -2.0, -2.0)))), "probability_B": tensor(0.75)},
        {},
        0.75 * 0.598139 + 0.25 * 0.798139,
    ),
    ("ipo", dict(zip(PAIR, map(tensor, (-1.0, -3.0, -2.0, -2.0)))), {"tau": 0.5}, 1.0),
    # 2 * (-4 / 2 - -9 / 3) - 1 = 1: -log sigma(1)
    (
        "simpo",
        {
            "chosen_B": tensor(-4.0),
            "rejected_B": tensor(-9.0),
            "chosen_lengths_B": tensor(2.0),
            "rejected_lengths_B": tensor(3.0),
        },
        {},
        0.313262,
    ),
    (
        "spin",
        dict(zip(("real_B", "own_B", "ref_real_B", "ref_own_B"), map(tensor, (-1.0, -3.0, -2.0, -2.0)))),
        {"scale": 0.5},
        0.313262,
    ),
    # z = 1, r = 3: 1 - sigma(0.1 * 2)
    (
        "kto",
        {
            "logprobs_B": tensor(-1.0),
            "ref_B": tensor(-4.0),
            "desirable_B": torch.tensor([True]),
            "mismatched_B": tensor(0.5, 1.5),
        },
        {},
        0.450166,
    ),
    # z = max(0, -2) = 0, r = 2, undesirable: 3 * (1 - sigma(-0.2))
    (
        "kto",
        {
            "logprobs_B": tensor(-2.0),
            "ref_B": tensor(-4.0),
            "desirable_B": torch.tensor([False]),
            "mismatched_B": tensor(-2.0),
        },
        {"undesirable_weight": 3.0},
        3 * 0.549834,
    ),
    # r = 1, target 10 * 0.25 = 2.5
    (
        "sppo",
        {"logprobs_B": tensor(-1.0), "ref_B": tensor(-2.0), "win_rate_B": tensor(0.75)},
        {"eta": 10.0},
        2.25,
    ),
    (
        "bradley_terry",
        {"chosen_scores_B": tensor(1.2), "rejected_scores_B": tensor(0.2)},
        {},
        0.313262,
    ),
    # (0.7 - 1)^2 + 0.2^2 + 0.1^2
    ("brier", {"logprobs_BC": tensor(0.7, 0.2, 0.1).log()[None], "right_B": torch.tensor([0])}, {}, 0.14),
    (
        "log_score",
        {"logprobs_BC": tensor(0.7, 0.2, 0.1).log()[None], "right_B": torch.tensor([1])},
        {},
        1.609438,
    ),
]


@pytest.mark.parametrize(("kind", "inputs", "settings", "expected"), HAND)
def test_by_hand(kind: str, inputs: dict[str, Tensor], settings: dict[str, float], expected: float) -> None:
    assert preference_loss(kind, inputs, settings).tolist() == pytest.approx([expected], abs=2e-6)


def test_weak_to_strong_by_hand() -> None:
    # Odds 2, 1, 0, -1: the upper half answers yes. The teacher says no to all, with certainty.
    log_odds, weak = tensor(2.0, 1.0, 0.0, -1.0), tensor(0.0, 0.0, 0.0, 0.0)
    teacher = [2.126928, 1.313262, 0.693147, 0.313262]
    itself = [0.126928, 0.313262, 0.693147, 0.313262]
    expected = [0.75 * t + 0.25 * i for t, i in zip(teacher, itself)]
    assert weak_to_strong(log_odds, weak, alpha=0.25).tolist() == pytest.approx(expected, abs=1e-6)
    none = weak_to_strong(log_odds, weak, alpha=1.0, positive_share=0.25)
    assert none.tolist() == pytest.approx([0.126928, 1.313262, 0.693147, 0.313262], abs=1e-6)


# -- against NumPy


def pair_inputs() -> dict[str, np.ndarray]:
    return {name: normal() for name in PAIR}


def ratio(a: dict[str, np.ndarray]) -> np.ndarray:
    return np.log(
        np.exp(a["chosen_B"])
        / np.exp(a["ref_chosen_B"])
        / (np.exp(a["rejected_B"]) / np.exp(a["ref_rejected_B"]))
    )


def kto_oracle(a: dict[str, np.ndarray]) -> np.ndarray:
    z, r = max(0.0, float(np.mean(a["mismatched_B"]))), np.log(np.exp(a["logprobs_B"]) / np.exp(a["ref_B"]))
    value = np.where(a["desirable_B"], 1.5 * sigmoid(0.3 * (r - z)), 0.5 * sigmoid(0.3 * (z - r)))
    return np.where(a["desirable_B"], 1.5, 0.5) - value  # lambda_y - v


def weak_to_strong_oracle(odds: np.ndarray, weak: np.ndarray, alpha: float) -> np.ndarray:
    own = odds > np.median(odds)
    losses = [
        -(label * np.log(sigmoid(odds)) + (1 - label) * np.log(1 - sigmoid(odds))) for label in (weak, own)
    ]
    return (1 - alpha) * losses[0] + alpha * losses[1]


ORACLES: dict[str, tuple[Callable[[], dict[str, np.ndarray]], dict[str, float], Callable[..., np.ndarray]]] = {
    "dpo": (pair_inputs, {"beta": 0.3}, lambda a: -np.log(sigmoid(0.3 * ratio(a)))),
    "smoothed_dpo": (
        lambda: {**pair_inputs(), "probability_B": RNG.uniform(0, 1, SIZE)},
        {"beta": 0.3},
        lambda a: -(
            a["probability_B"] * np.log(sigmoid(0.3 * ratio(a)))
            + (1 - a["probability_B"]) * np.log(1 - sigmoid(0.3 * ratio(a)))
        ),
    ),
    "ipo": (pair_inputs, {"tau": 0.2}, lambda a: (ratio(a) - 1 / (2 * 0.2)) ** 2),
    "simpo": (
        lambda: {
            "chosen_B": normal(),
            "rejected_B": normal(),
            "chosen_lengths_B": RNG.integers(1, 9, SIZE).astype(float),
            "rejected_lengths_B": RNG.integers(1, 9, SIZE).astype(float),
        },
        {"beta": 2.5, "gamma": 0.7},
        lambda a: np.log1p(
            np.exp(-2.5 * a["chosen_B"] / a["chosen_lengths_B"] + 2.5 * a["rejected_B"] / a["rejected_lengths_B"] + 0.7)
        ),
    ),
    "spin": (
        lambda: dict(zip(("real_B", "own_B", "ref_real_B", "ref_own_B"), (normal() for _ in range(4)))),
        {"scale": 0.4},
        lambda a: np.log1p(np.exp(-0.4 * (a["real_B"] - a["ref_real_B"]) + 0.4 * (a["own_B"] - a["ref_own_B"]))),
    ),
    "kto": (
        lambda: {
            "logprobs_B": normal(),
            "ref_B": normal(),
            "desirable_B": RNG.random(SIZE) < 0.5,
            "mismatched_B": normal(0.5),
        },
        {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5},
        kto_oracle,
    ),
    "sppo": (
        lambda: {"logprobs_B": normal(), "ref_B": normal(), "win_rate_B": RNG.uniform(0, 1, SIZE)},
        {"eta": 5.0},
        lambda a: (np.log(np.exp(a["logprobs_B"]) / np.exp(a["ref_B"])) - 5.0 * (a["win_rate_B"] - 0.5)) ** 2,
    ),
    "bradley_terry": (
        lambda: {"chosen_scores_B": normal(), "rejected_scores_B": normal()},
        {},
        lambda a: -np.log(
            np.exp(a["chosen_scores_B"]) / (np.exp(a["chosen_scores_B"]) + np.exp(a["rejected_scores_B"]))
        ),
    ),
    "brier": (
        lambda: {"logprobs_BC": np.log(RNG.dirichlet(np.ones(3), SIZE)), "right_B": RNG.integers(0, 3, SIZE)},
        {},
        lambda a: np.array(
            [
                sum((np.exp(x) - (c == y)) ** 2 for c, x in enumerate(row))
                for row, y in zip(a["logprobs_BC"], a["right_B"])
            ]
        ),
    ),
    "log_score": (
        lambda: {"logprobs_BC": np.log(RNG.dirichlet(np.ones(3), SIZE)), "right_B": RNG.integers(0, 3, SIZE)},
        {},
        lambda a: np.array([-row[y] for row, y in zip(a["logprobs_BC"], a["right_B"])]),
    ),
    "weak_to_strong": (
        lambda: {"log_odds_B": normal(0.0), "weak_B": RNG.uniform(0, 1, SIZE)},
        {"alpha": 0.3},
        lambda a: weak_to_strong_oracle(a["log_odds_B"], a["weak_B"], 0.3),
    ),
}  # fmt: skip


def test_every_loss_has_an_oracle() -> None:
    assert set(ORACLES) == set(PREFERENCES)


@pytest.mark.parametrize("kind", sorted(ORACLES))
def test_against_numpy(kind: str) -> None:
    make, settings, formula = ORACLES[kind]
    for _ in range(20):
        arrays = make()
        inputs = {name: torch.from_numpy(array) for name, array in arrays.items()}
        found = preference_loss(kind, inputs, settings)
        assert found.shape == (SIZE,)
        np.testing.assert_allclose(found.numpy(), formula(arrays), rtol=1e-9, atol=1e-12)


LEARNED = {
    "simpo": ("chosen_B", "rejected_B"),
    "spin": ("real_B", "own_B"),
    "kto": ("logprobs_B",),
    "sppo": ("logprobs_B",),
    "bradley_terry": ("chosen_scores_B", "rejected_scores_B"),
    "brier": ("logprobs_BC",),
    "log_score": ("logprobs_BC",),
    "weak_to_strong": ("log_odds_B",),
}
"""The inputs that the policy computes; by default those of a pair."""


@pytest.mark.parametrize("kind", sorted(ORACLES))
def test_gradients(kind: str) -> None:
    make, settings, _ = ORACLES[kind]
    inputs = {name: torch.from_numpy(array) for name, array in make().items()}
    names = LEARNED.get(kind, PAIR[:2])
    learned = [inputs.pop(name).requires_grad_() for name in names]

    def value(*tensors: Tensor) -> Tensor:
        return preference_loss(kind, {**inputs, **dict(zip(names, tensors))}, settings)

    assert torch.autograd.gradcheck(value, learned)
    gradients = torch.autograd.grad(value(*learned).sum(), learned)
    assert all(bool(gradient.any()) for gradient in gradients)


# -- what the papers promise


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0.1, 10))
def test_soft_labels_are_the_softmax_of_the_rewards(first: float, second: float, gamma: float) -> None:
    found = soft_label(tensor(first), tensor(second), gamma=gamma).item()
    highest = max(first, second)
    one, two = math.exp(gamma * (first - highest)), math.exp(gamma * (second - highest))
    assert found == pytest.approx(one / (one + two), abs=1e-12)


def test_soft_labels_by_hand() -> None:
    assert soft_label(tensor(0.6), tensor(0.5)).item() == pytest.approx(0.668188, abs=1e-6)  # sigma(0.7)


@given(st.floats(0.05, 0.95), st.floats(-4, 4))
def test_smoothed_dpo_is_least_where_the_policy_is_as_sure_as_the_label(label: float, shift: float) -> None:
    def value(h: float) -> float:
        inputs = dict(zip(PAIR, map(tensor, (h, 0.0, 0.0, 0.0))))
        return preference_loss(
            "smoothed_dpo", {**inputs, "probability_B": tensor(label)}, {"beta": 1.0}
        ).item()

    best = math.log(label / (1 - label))
    assert value(best) <= value(best + shift) + 1e-12


def test_certain_labels_make_smoothed_dpo_dpo() -> None:
    inputs = {name: torch.from_numpy(normal()) for name in PAIR}
    smoothed = preference_loss("smoothed_dpo", {**inputs, "probability_B": torch.ones(SIZE)}, {})
    torch.testing.assert_close(smoothed, preference_loss("dpo", inputs, {}))


@pytest.mark.parametrize("score", [brier, log_score])
def test_scores_of_judges_are_proper(score: Callable[[Tensor, Tensor], Tensor]) -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        truth, other = rng.dirichlet(np.ones(4), 2)

        def expected(verdict: np.ndarray, truth: np.ndarray = truth) -> float:
            rows = torch.from_numpy(np.log(verdict)).expand(4, 4)
            return float((score(rows, torch.arange(4)) * torch.from_numpy(truth)).sum())

        assert expected(truth) < expected(other)


def test_no_gradient_flows_through_the_divergence_of_kto() -> None:
    mismatched, logprobs = tensor(0.5, 1.5).requires_grad_(), tensor(-1.0).requires_grad_()
    inputs = {"logprobs_B": logprobs, "ref_B": tensor(-4.0), "desirable_B": torch.tensor([True])}
    preference_loss("kto", {**inputs, "mismatched_B": mismatched}, {}).sum().backward()
    assert mismatched.grad is None and logprobs.grad is not None


def test_extreme_log_ratios_stay_finite() -> None:
    inputs = dict(zip(PAIR, map(tensor, (-5000.0, -1.0, -1.0, -5000.0))))
    for kind in ("dpo", "ipo"):
        assert bool(
            torch.isfinite(preference_loss(kind, inputs, {"beta": 1.0} if kind == "dpo" else {})).all()
        )


def test_replies_are_summed_over_their_tokens() -> None:
    found = reply_logprobs(tensor(-1.0, -2.0, -4.0, -8.0), torch.tensor([0, 2, 0, 2]), 3)
    assert found.tolist() == [-5.0, 0.0, -10.0]


# -- settings


def test_settings_are_listed_and_others_refused() -> None:
    assert settings_of("simpo") == {"beta": 2.0, "gamma": 1.0} and settings_of("brier") == {}
    with pytest.raises(UnknownPreference, match="none of dpo, smoothed_dpo, ipo"):
        preference_loss("dpp", {}, {})
    with pytest.raises(UnknownPreference, match=r"loss.gamma: .*'dpo', which reads beta"):
        preference_loss("dpo", {}, {"gamma": 1.0})
    with pytest.raises(UnknownPreference, match="reads no setting"):
        preference_loss("brier", {}, {"beta": 1.0})


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in PREFERENCES for name in settings_of(kind)]
)
def test_every_setting_acts(kind: str, name: str) -> None:
    make, settings, _ = ORACLES[kind]
    inputs = {key: torch.from_numpy(array) for key, array in make().items()}
    if kind == "kto":
        inputs["desirable_B"] = torch.tensor([True, False] * (SIZE // 2))
    base = {**settings_of(kind), **settings}
    changed = {**base, name: base[name] + 0.4}
    assert not torch.equal(preference_loss(kind, inputs, base), preference_loss(kind, inputs, changed))
