"""Advantages against numbers worked out by hand, and the properties their papers promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from learners.advantages import ADVANTAGES, dr_grpo, grpo, reinforce, rloo

groups = st.lists(st.floats(-100, 100), min_size=1, max_size=12)


def test_grpo_by_hand():
    # mean 2, squared deviations 1 1 1 1 -> population std 1
    assert grpo(np.array([1.0, 3.0, 1.0, 3.0])) == pytest.approx([-1, 1, -1, 1], abs=1e-5)
    # mean 1, squared deviations 1 1 4 -> variance 2
    assert grpo(np.array([0.0, 0.0, 3.0])) == pytest.approx(
        [-1 / math.sqrt(2), -1 / math.sqrt(2), 2 / math.sqrt(2)], abs=1e-5
    )


def test_dr_grpo_by_hand():
    assert dr_grpo(np.array([0.0, 0.0, 3.0])) == pytest.approx([-1, -1, 2])


def test_rloo_by_hand():
    # the others' means are 1.5, 1.5 and 0
    assert rloo(np.array([0.0, 0.0, 3.0])) == pytest.approx([-1.5, -1.5, 3.0])


def test_reinforce_is_the_reward_itself():
    rewards_G = np.array([0.5, -2.0])
    advantages_G = reinforce(rewards_G)
    assert advantages_G.tolist() == [0.5, -2.0]
    advantages_G[0] = 9.0
    assert rewards_G[0] == 0.5


@given(groups)
def test_rloo_is_leave_one_out(rewards):
    if len(rewards) < 2 or max(rewards) - min(rewards) < 1e-6:
        return
    expected = [
        reward - sum(rewards[:i] + rewards[i + 1 :]) / (len(rewards) - 1) for i, reward in enumerate(rewards)
    ]
    assert rloo(np.array(rewards)) == pytest.approx(expected, abs=1e-6)


@given(groups, st.sampled_from(["grpo", "dr_grpo", "rloo"]))
def test_baselined_advantages_sum_to_zero_and_keep_order(rewards, kind):
    advantages_G = ADVANTAGES[kind](np.array(rewards))
    assert sum(advantages_G) == pytest.approx(0.0, abs=1e-6)
    for i, a in enumerate(rewards):
        for j, b in enumerate(rewards):
            if a > b:
                assert advantages_G[i] >= advantages_G[j]


@given(st.floats(-100, 100), st.integers(1, 9), st.sampled_from(["grpo", "dr_grpo", "rloo"]))
def test_equal_rewards_teach_exactly_nothing(reward, size, kind):
    assert ADVANTAGES[kind](np.full(size, reward)).tolist() == [0.0] * size


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
def test_rounding_noise_teaches_exactly_nothing(kind):
    assert 0.1 + 0.2 != 0.3
    assert not ADVANTAGES[kind](np.array([0.1 + 0.2, 0.3, 0.3])).any()


@given(groups, st.floats(0.5, 50), st.floats(-50, 50))
def test_grpo_ignores_scale_and_shift(rewards, scale, shift):
    if max(rewards) - min(rewards) < 0.1:
        return
    rewards_G = np.array(rewards)
    assert grpo(rewards_G * scale + shift) == pytest.approx(grpo(rewards_G), abs=1e-3)
