"""Losses against NumPy written from the formulas, finite differences, and exact expectations."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from configs.checks.learner import check_loss, unused_settings
from configs.methods import CORRECTIONS, LOSSES, LearnerConfigError, is_preference, normalisation
from configs.schema.run import LearnerConfig, LossConfig
from learners.losses.policy_gradient import Metrics, reference_kl, segment_mean, token_loss, token_weights
from tests.support.loss_inputs import micro_batch

CONFIG = LossConfig(clip_low=0.2, clip_high=0.3, entropy=0.0)
TOKEN_LOSSES = [kind for kind in LOSSES if not is_preference(kind)]


def loss_of(
    kind: str, new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, config: LossConfig = CONFIG,
    segments: torch.Tensor | None = None,
) -> tuple[torch.Tensor, Metrics]:  # fmt: skip
    found: tuple[torch.Tensor, Metrics] = LOSSES[kind](new, micro_batch(old, advantages, segments), config)
    return found


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
    loss_L, metrics = loss_of("clip", new, old, advantages, CONFIG)
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
    loss_L, _ = loss_of("clip", *map(torch.from_numpy, (new, old, advantages)), CONFIG)
    np.testing.assert_allclose(loss_L.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", sorted({*TOKEN_LOSSES} - {"cispo"}))  # whose ratio has no gradient
def test_gradient_is_that_of_the_value(kind: str) -> None:
    new, old, advantages = tensors(
        [-1.0, -2.0, -0.3, -4.0], [-1.05, -1.0, -1.5, -4.1], [1.0, -0.5, -2.0, 0.7]
    )
    new.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss_of(kind, x, old, advantages, CONFIG)[0], (new,))


def test_reinforce_is_the_score_function_on_policy() -> None:
    new, advantages = tensors([-1.0, -2.0], [3.0, -0.5])
    new.requires_grad_()
    loss_of("reinforce", new, new.detach().clone(), advantages, CONFIG)[0].sum().backward()
    assert new.grad is not None and new.grad.tolist() == [-3.0, 0.5]


def test_sft_weighs_tokens() -> None:
    new, old, weights = tensors([-1.0, -2.0], [0.0, 0.0], [1.0, 0.25])
    assert loss_of("sft", new, old, weights, CONFIG)[0].tolist() == [1.0, 0.5]


def test_kl_estimate_has_the_right_expectation() -> None:
    rng = np.random.default_rng(1)
    old, new = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
    _, metrics = loss_of("reinforce", *map(torch.from_numpy, (np.log(new), np.log(old), np.ones(6))), CONFIG)
    exact = sum(p * (np.log(p) - np.log(q)) for p, q in zip(old, new))
    assert float((torch.from_numpy(old) * metrics["approx_kl"]).sum()) == pytest.approx(exact, rel=1e-12)
    assert (metrics["approx_kl"] >= 0).all()


CHANGES: dict[str, Any] = {
    "normalise": "sequence",
    "constant": 9,
    "correction": "truncate",
    "kl_estimator": "k1",
    **dict.fromkeys(("beta", "tau", "gamma", "scale", "eta", "label_gamma"), 0.5),
    **dict.fromkeys(("desirable_weight", "undesirable_weight"), 0.5),
}
"""Other settings are changed by adding 0.05."""
GATES: dict[str, dict[str, Any]] = {
    "constant": {"normalise": "constant", "constant": 5},
    "correction_low": {"correction": "mask", "correction_low": 0.6},
    "correction_high": {"correction": "mask"},
    "kl_estimator": {"kl": 0.1},
    "dual_clip": {"dual_clip": 2.0},
}
"""What must be set for a setting to act."""


@pytest.mark.parametrize("kind", sorted(TOKEN_LOSSES))
@pytest.mark.parametrize("name", [f.name for f in fields(LossConfig) if f.name != "kind"])
def test_uses_lists_exactly_the_settings_with_an_effect(kind: str, name: str) -> None:
    # Replies of 2, 2 and 3 tokens: far out to both sides, and with tokens beside the bounds of the correction
    # (0.6 and 2) and beyond that of dual clip.
    new, entropy = tensors([-0.7] * 7, [0.4, 0.9, 0.1, 0.2, 0.3, 0.4, 0.5])
    (advantages,) = tensors([1.0, 1.0, -1.0, -1.0, 1.0, -1.0, -1.0])
    old = new - torch.tensor([0.6, 0.6, -0.5, -0.49, -0.48, 0.71, 1.5], dtype=torch.float64)
    proximal, reference = new - 0.01, new - 0.3
    segments = torch.tensor([0, 0, 1, 1, 2, 2, 2])

    def value(config: LossConfig) -> list[float]:
        config = replace(config, kind=kind)
        batch = micro_batch(old, advantages, segments, proximal, reference)
        loss_L, _ = token_loss(new, entropy, batch, config)
        return (loss_L * token_weights(config, segments, 7, 3)).tolist()

    base = replace(CONFIG, **GATES.get(name, {}))
    changed = {name: CHANGES[name]} if name in CHANGES else {name: getattr(base, name) + 0.05}
    if name == "normalise" and normalisation(LossConfig(kind)) == "sequence":
        changed = {name: "token"}
    assert (value(replace(base, **changed)) != value(base)) == (name in LOSSES.reads(kind))


def test_entropy_is_a_bonus() -> None:
    new, advantages, entropy = tensors([-1.0], [0.0], [0.7])
    loss_L, _ = token_loss(new, entropy, micro_batch(new, advantages), replace(CONFIG, entropy=0.1))
    assert loss_L.item() == pytest.approx(-0.07)


def test_unknown_kind_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="did you mean clip"):
        (zero,) = tensors([0.0])
        token_loss(zero, zero, micro_batch(zero, zero), LossConfig("klip"))


# -- bounds of other kinds


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (5.0, -2.0, 6.0, 0.0),  # without the third bound: 10
        (2.0, -2.0, 4.0, 4.0),
        (0.5, -2.0, 1.6, 0.0),
        (5.0, 2.0, -2.6, 0.0),  # positive advantages have no third bound
        (0.1, 2.0, -0.2, -0.2),
    ],
)
def test_dual_clip_by_hand(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    old, new, advantages = tensors([-1.3], [-1.3 + np.log(ratio)], [advantage])
    new.requires_grad_()
    loss_L, _ = loss_of("clip", new, old, advantages, replace(CONFIG, dual_clip=3.0))
    loss_L.sum().backward()
    assert loss_L.item() == pytest.approx(loss, abs=1e-12)
    assert new.grad is not None and new.grad.item() == pytest.approx(gradient, abs=1e-12)


def test_cispo_by_hand() -> None:
    # Ratios 0.5, 1.1 and 2 count as 0.8, 1.1 and 1.3; the gradient is -weight A wherever they are.
    old, advantages = tensors([-1.0, -1.0, -1.0], [2.0, -3.0, 1.0])
    new = (old + torch.tensor([0.5, 1.1, 2.0], dtype=torch.float64).log()).requires_grad_()
    loss_L, metrics = loss_of("cispo", new, old, advantages, CONFIG)
    loss_L.sum().backward()
    assert new.grad is not None and new.grad.tolist() == pytest.approx([-1.6, 3.3, -1.3])
    assert loss_L.tolist() == pytest.approx([-1.6 * new[0].item(), 3.3 * new[1].item(), -1.3 * new[2].item()])
    assert metrics["clip_fraction"].tolist() == [1, 0, 1]


def test_gspo_by_hand() -> None:
    # Mean log ratios: log 1.1 over 2 tokens (inside), log 2 over 3 tokens (beyond 1.3).
    old, advantages = tensors([-1.0] * 5, [2.0, 2.0, 1.0, 1.0, 1.0])
    steps = np.log([1.1 * 1.5, 1.1 / 1.5, 2.0 * 3, 2.0, 2.0 / 3])
    new = (old + torch.from_numpy(steps)).requires_grad_()
    segments = torch.tensor([0, 0, 1, 1, 1])
    loss_L, metrics = loss_of("gspo", new, old, advantages, CONFIG, segments)
    assert loss_L.tolist() == pytest.approx([-2.2, -2.2, -1.3, -1.3, -1.3])
    assert metrics["clip_fraction"].tolist() == [0, 0, 1, 1, 1]
    # The paper's objective, the mean over replies of min(s A, clip(s) A): (2.2 + 1.3) / 2; d s / d log p = s / |y|.
    total = (loss_L * token_weights(replace(CONFIG, kind="gspo"), segments, 5, 2)).sum()
    total.backward()
    assert total.item() == pytest.approx(-1.75)
    assert new.grad is not None and new.grad.tolist() == pytest.approx([-0.55, -0.55, 0.0, 0.0, 0.0])


def test_gspo_against_numpy() -> None:
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, 9, 30)
    segments = np.repeat(np.arange(30), lengths)
    order = rng.permutation(len(segments))  # a reply's tokens need not lie side by side
    advantages = rng.normal(0, 1, 30)
    new, old = rng.normal(-2, 0.5, (2, len(segments)))
    expected = 0.0
    for reply in range(30):
        here = segments == reply
        ratio = np.prod(np.exp(new[here]) / np.exp(old[here])) ** (1 / lengths[reply])
        expected -= min(ratio * advantages[reply], min(max(ratio, 0.8), 1.3) * advantages[reply]) / 30
    index = torch.from_numpy(segments[order])
    rows = [torch.from_numpy(values[order]) for values in (new, old, advantages[segments])]
    loss_L, _ = loss_of("gspo", *rows, CONFIG, index)
    weights_L = token_weights(replace(CONFIG, kind="gspo"), index, len(segments), 30)
    assert float((loss_L * weights_L.double()).sum()) == pytest.approx(expected, rel=1e-6)


# -- correction for the sampler


def corrected(correction: str, **bounds: float) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Losses and gradients of -r A with A = 1, with weights that have not moved: w = 0.25, 1, 4 in one reply and
    1.1, 1.2 in another."""
    new = torch.tensor([-1.0] * 5, dtype=torch.float64, requires_grad=True)
    old = new.detach() - torch.tensor([0.25, 1.0, 4.0, 1.1, 1.2], dtype=torch.float64).log()
    one, none = torch.ones(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    config = replace(CONFIG, kind="reinforce", correction=correction, **bounds)
    loss_L, metrics = token_loss(new, none, micro_batch(old, one, torch.tensor([0, 0, 0, 1, 1])), config)
    loss_L.sum().backward()
    assert new.grad is not None
    return loss_L.tolist(), new.grad.tolist(), metrics


@pytest.mark.parametrize(
    ("correction", "bounds", "weights"),
    [
        ("truncate", {"correction_high": 2.0}, [0.25, 1.0, 2.0, 1.1, 1.2]),
        ("mask", {"correction_low": 0.5, "correction_high": 2.0}, [0.0, 1.0, 0.0, 1.1, 1.2]),
        # Geometric means: (0.25 * 1 * 4) ** (1/3) = 1 and (1.1 * 1.2) ** (1/2) = 1.149.
        ("reject", {"correction_low": 0.9, "correction_high": 1.14}, [1.0, 1.0, 1.0, 0.0, 0.0]),
        ("reject", {"correction_low": 0.9, "correction_high": 1.15}, [1.0] * 5),
    ],
)
def test_corrections_by_hand(correction: str, bounds: dict[str, float], weights: list[float]) -> None:
    losses, gradients, metrics = corrected(correction, **bounds)
    # The ratio of the loss itself is 1: its value and its gradient are -w, and none comes from w.
    assert losses == pytest.approx([-w for w in weights]) and gradients == pytest.approx(
        [-w for w in weights]
    )
    assert metrics["correction_weight"].tolist() == pytest.approx(weights)
    assert metrics["correction_dropped"].tolist() == [float(w == 0) for w in weights]
    assert metrics["ratio"].tolist() == [1.0] * 5


def test_a_corrected_ratio_starts_from_the_start_of_the_step() -> None:
    # Sampled at 0.2, 0.25 at the start of the step (w = 1.25), 0.5 now: r = 2 is clipped at 1.3.
    new, old, proximal, one, none = tensors(*[[np.log(p)] for p in (0.5, 0.2, 0.25)], [1.0], [0.0])
    config = replace(CONFIG, correction="truncate")
    loss_L, _ = token_loss(new, none, micro_batch(old, one, proximal_L=proximal), config)
    assert loss_L.item() == pytest.approx(-1.25 * 1.3)


def test_every_correction_says_what_it_reads() -> None:
    log_ratio_L = torch.tensor([-2.0, -0.6, 0.0, 0.6, 2.0], dtype=torch.float64)
    segments_L = torch.arange(5)
    for name, weigh in CORRECTIONS.items():
        for bound, change in (("correction_low", 0.9), ("correction_high", 1.1)):
            found = weigh(log_ratio_L, segments_L, replace(CONFIG, **{bound: change}))
            differs = not torch.equal(found, weigh(log_ratio_L, segments_L, CONFIG))
            assert differs == (bound in CORRECTIONS.reads(name)), (name, bound)


# -- divergence from a reference


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("on_policy", [True, False])
def test_expected_gradient_is_that_of_the_divergence(estimator: str, on_policy: bool) -> None:
    rng = np.random.default_rng(3)
    logits = torch.from_numpy(rng.normal(0, 1, 6)).requires_grad_()
    reference = torch.from_numpy(np.log(rng.dirichlet(np.ones(6))))
    logprobs = torch.log_softmax(logits, 0)
    sampled = logprobs.detach() if on_policy else torch.from_numpy(np.log(rng.dirichlet(np.ones(6))))
    exact = (logprobs.exp() * (logprobs - reference)).sum()
    (expected,) = torch.autograd.grad(exact, logits, retain_graph=True)
    # The expectation over what `sampled` draws, summed over all six tokens.
    term = (sampled.exp() * reference_kl(logprobs, sampled, reference, estimator)).sum()
    (found,) = torch.autograd.grad(term, logits)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    if estimator != "k2":
        assert term.item() == pytest.approx(exact.item(), rel=1e-10)


def test_divergence_by_hand() -> None:
    # On policy, p = 0.5 against a reference of 0.25: log 2, half its square, 0.5 - 1 + log 2.
    new, reference, none = tensors([np.log(0.5)], [np.log(0.25)], [0.0])
    values = {k: reference_kl(new, new, reference, k).item() for k in ("k1", "k2", "k3")}
    assert values == pytest.approx({"k1": 0.693147, "k2": 0.240227, "k3": 0.193147}, abs=1e-6)
    config = replace(CONFIG, kl=0.1)
    loss_L, metrics = token_loss(new, none, micro_batch(new, none, reference_L=reference), config)
    assert loss_L.item() == pytest.approx(0.0193147, abs=1e-7)
    assert metrics["reference_kl"].item() == pytest.approx(0.193147, abs=1e-6)
    with pytest.raises(ValueError, match="no reference"):
        token_loss(new, none, micro_batch(new, none), config)


# -- weights


def test_weights_by_hand() -> None:
    segments = torch.tensor([0, 1, 1, 1])  # a micro-batch of a minibatch with 10 tokens in 4 replies

    def weights(kind: str, **settings: Any) -> list[float]:
        return token_weights(LossConfig(kind=kind, **settings), segments, 10, 4).tolist()

    token, sequence = [0.1] * 4, [1 / 4, 1 / 12, 1 / 12, 1 / 12]
    for kind in TOKEN_LOSSES:
        papers = sequence if kind in ("gspo", "log_score", "brier") else token
        assert weights(kind) == pytest.approx(papers)
    assert weights("clip", normalise="sequence") == pytest.approx(sequence)
    assert weights("gspo", normalise="token") == pytest.approx(token)
    assert weights("clip", normalise="constant", constant=8) == pytest.approx([1 / 32] * 4)


@given(
    st.lists(st.lists(st.integers(-9, 9), min_size=1, max_size=5), min_size=1, max_size=8),
    st.lists(st.integers(0, 3), min_size=8, max_size=8),
    st.sampled_from(["token", "sequence", "constant"]),
)
def test_micro_batches_and_ranks_do_not_change_the_loss(
    replies: list[list[int]], places: list[int], how: str
) -> None:
    config = LossConfig(normalise=how, constant=7)
    tokens = sum(map(len, replies))
    total = 0.0
    for place in range(4):
        here = [reply for reply, where in zip(replies, places) if where == place]
        if here:
            segments = torch.tensor([i for i, reply in enumerate(here) for _ in reply])
            losses = torch.tensor([float(x) for reply in here for x in reply])
            total += float((losses * token_weights(config, segments, tokens, len(replies))).sum())
    expected = {
        "token": sum(map(sum, replies)) / tokens,
        "sequence": sum(sum(reply) / len(reply) for reply in replies) / len(replies),
        "constant": sum(map(sum, replies)) / len(replies) / 7,
    }[how]
    assert total == pytest.approx(expected, abs=1e-4)


def test_segment_mean_by_hand() -> None:
    values = torch.tensor([1.0, 2.0, 6.0])
    assert segment_mean(values, torch.tensor([1, 0, 1])).tolist() == [3.5, 2.0, 3.5]


# -- settings


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"dual_clip": 0.9}, "loss.dual_clip: 0.9 must be more than 1"),
        ({"normalise": "constant"}, "loss.constant: "),
        ({"correction": "mask", "correction_low": 1.2}, "loss.correction_low: "),
        ({"correction": "reject", "correction_high": 0.9}, "loss.correction_high: "),
        ({"correction": "truncate", "correction_high": 0.9}, "loss.correction_high: 0.9 must be 1 or more"),
    ],
)
def test_contradictions_are_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(LearnerConfigError, match=says):
        check_loss(LossConfig(**settings))
    check_loss(LossConfig())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"correction_low", "correction_high", "constant", "kl_estimator"}),
        ({"correction": "truncate", "kl": 0.1}, {"correction_low", "constant"}),
        ({"correction": "mask", "normalise": "constant", "constant": 3}, {"kl_estimator"}),
    ],
)
def test_settings_without_effect_are_listed(settings: dict[str, Any], expected: set[str]) -> None:
    found = {name for name, _, _ in unused_settings(LearnerConfig(loss=LossConfig(**settings)))}
    pairs_only = {"beta", "tau", "gamma", "scale", "eta", "desirable_weight", "undesirable_weight"}
    pairs_only |= {"label_gamma", "sft"}
    set_here = {name.removeprefix("loss.") for name in found if name.startswith("loss.")}
    assert set_here == expected | pairs_only
