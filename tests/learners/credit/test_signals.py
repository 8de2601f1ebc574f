"""Weights of imitation: by hand, and what holds for all groups."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from configs.checks.learner import unused_settings
from configs.methods import SIGNALS
from configs.schema.run import AdvantageConfig, LearnerConfig, SignalConfig
from learners.credit.signals import rejection, reward_weighted, winners

WEIGHTS = [kind for kind in SIGNALS if not SIGNALS.needs(kind) & {"advantage", "polls"}]
groups = st.lists(st.integers(-20, 20).map(float), min_size=1, max_size=12)


def test_winners_by_hand():
    credits_G = np.array([1.0, 0.0, -1.0, 0.6])
    assert winners(credits_G, SignalConfig()).tolist() == [1, 0, 0, 1]
    assert winners(credits_G, SignalConfig(threshold=0.6)).tolist() == [1, 0, 0, 0]


def test_rejection_by_hand():
    credits_G = np.array([3.0, 1.0, 3.0, 2.0])
    assert rejection(credits_G, SignalConfig(best=1)).tolist() == [1, 0, 1, 0], "ties are kept"
    assert rejection(credits_G, SignalConfig(best=3)).tolist() == [1, 0, 1, 1]
    assert rejection(credits_G, SignalConfig(best=9)).tolist() == [1, 1, 1, 1]


def test_reward_weighted_by_hand():
    # exp of 0, log 2, log 3 are 1 2 3, their mean 2.
    credits_G = np.array([0.0, math.log(2), math.log(3)])
    assert reward_weighted(credits_G, SignalConfig()) == pytest.approx([0.5, 1.0, 1.5])
    # At half the temperature 1 4 9, their mean 14/3.
    assert reward_weighted(credits_G, SignalConfig(temperature=0.5)) == pytest.approx(
        [3 / 14, 12 / 14, 27 / 14]
    )


@given(groups, st.floats(0.2, 5), st.floats(-1e6, 1e6))
def test_reward_weights_have_mean_one_and_ignore_a_shift(credits, temperature, shift):
    if len(set(credits)) == 1:
        return
    config = SignalConfig(temperature=temperature)
    weights_G = reward_weighted(np.array(credits), config)
    assert weights_G.mean() == pytest.approx(1.0)
    assert reward_weighted(np.array(credits) + shift, config) == pytest.approx(weights_G, rel=1e-6)


@given(groups, st.integers(1, 14))
def test_rejection_keeps_as_many_as_asked_and_none_that_is_worse(credits, best):
    kept_G = rejection(np.array(credits), SignalConfig(best=best)) > 0
    kept = [c for c, keep in zip(credits, kept_G) if keep]
    dropped = [c for c, keep in zip(credits, kept_G) if not keep]
    if len(set(credits)) == 1:
        assert not kept
        return
    assert len(kept) >= min(best, len(credits)) and sum(c > min(kept) for c in kept) < best
    assert all(c < min(kept) for c in dropped)


@given(groups, st.sampled_from(WEIGHTS))
def test_weights_are_never_negative_and_keep_order(credits, kind):
    weights_G = SIGNALS[kind](np.array(credits), SignalConfig())
    assert (weights_G >= 0).all()
    for i, one in enumerate(credits):
        for j, two in enumerate(credits):
            if one > two:
                assert weights_G[i] >= weights_G[j]


def test_every_signal_says_what_it_reads():
    credits_G = np.array([0.0, 0.5, 2.0])
    for kind in WEIGHTS:
        weigh = SIGNALS[kind]
        for name, value in (("threshold", 0.7), ("best", 2), ("temperature", 3.0)):
            changed = weigh(credits_G, SignalConfig(kind, **{name: value})).tolist()
            differs = changed != weigh(credits_G, SignalConfig(kind)).tolist()
            assert differs == (name in SIGNALS.reads(kind)), (kind, name)


def test_what_imitation_does_not_read_of_advantages():
    config = LearnerConfig(signal=SignalConfig("winners"), advantage=AdvantageConfig(kind="role_ema"))
    found = {name for name, _, _ in unused_settings(config) if name.startswith("advantage.")}
    unread = {"kind", "baseline_by", "decay", "gamma", "lam"}
    assert found == {f"advantage.{name}" for name in unread}
