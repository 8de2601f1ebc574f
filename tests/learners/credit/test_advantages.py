"""Advantages against numbers worked out by hand, and the properties their papers promise."""

import math

import numpy as np
import pytest
from hypothesis import given, strategies as st

from configs.methods import ADVANTAGES
from configs.schema.run import AdvantageConfig
from learners.credit.advantages import CreditBatch, dr_grpo, grpo, reinforce, rloo, scale

GROUP_FUNCTIONS = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo, "reinforce": reinforce}

groups = st.lists(st.floats(-100, 100), min_size=1, max_size=12)
batches = st.lists(st.tuples(st.integers(0, 3), st.integers(-20, 20)), min_size=1, max_size=20)
"""(group, reward) of every member, groups interleaved."""


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
    advantages_G = GROUP_FUNCTIONS[kind](np.array(rewards))
    assert sum(advantages_G) == pytest.approx(0.0, abs=1e-6)
    for i, a in enumerate(rewards):
        for j, b in enumerate(rewards):
            if a > b:
                assert advantages_G[i] >= advantages_G[j]


@given(st.floats(-100, 100), st.integers(1, 9), st.sampled_from(["grpo", "dr_grpo", "rloo"]))
def test_equal_rewards_teach_exactly_nothing(reward, size, kind):
    assert GROUP_FUNCTIONS[kind](np.full(size, reward)).tolist() == [0.0] * size


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "rloo"])
def test_rounding_noise_teaches_exactly_nothing(kind):
    assert 0.1 + 0.2 != 0.3
    assert not GROUP_FUNCTIONS[kind](np.array([0.1 + 0.2, 0.3, 0.3])).any()


@given(groups, st.floats(0.5, 50), st.floats(-50, 50))
def test_grpo_ignores_scale_and_shift(rewards, scale, shift):
    if max(rewards) - min(rewards) < 0.1:
        return
    rewards_G = np.array(rewards)
    assert grpo(rewards_G * scale + shift) == pytest.approx(grpo(rewards_G), abs=1e-3)


# -- over the batch


def over(kind, batch, baselines=None, decay=0.95, trajectories=None):
    keys = [(f"k{group}",) for group, _ in batch]
    rewards_B = np.array([float(reward) for _, reward in batch])
    ids = trajectories or list(range(len(batch)))
    kept = {} if baselines is None else baselines
    batch_of_credits = CreditBatch(rewards_B, keys, ids, [()] * len(batch), kept)
    return ADVANTAGES[kind](batch_of_credits, AdvantageConfig(kind, decay=decay))


def test_reinforce_pp_by_hand():
    # Mean 3, squared deviations 9 1 1 9 -> variance 5. Without the baseline, groups play no part:
    batch = [(0, 0), (0, 2), (1, 4), (1, 6)]
    root = math.sqrt(5)
    assert grpo(np.array([0.0, 2.0, 4.0, 6.0])) == pytest.approx(
        [-3 / root, -1 / root, 1 / root, 3 / root], abs=1e-5
    )
    # With it, deviations from the groups' means 1 and 5 are -1 1 -1 1, their standard deviation 1.
    assert over("reinforce_pp_baseline", batch) == pytest.approx([-1, 1, -1, 1], abs=1e-5)
    # Unequal spreads: deviations -1 1 -3 3, variance 5. GRPO would have given -1 1 -1 1.
    batch = [(0, 0), (0, 2), (1, 0), (1, 6)]
    assert over("reinforce_pp_baseline", batch) == pytest.approx(
        [-1 / root, 1 / root, -3 / root, 3 / root], abs=1e-5
    )
    assert over("grpo", batch) == pytest.approx([-1, 1, -1, 1], abs=1e-5)


@given(batches)
def test_reinforce_pp_baseline_against_plain_python(batch):
    means = {g: sum(r for h, r in batch if h == g) / sum(h == g for h, _ in batch) for g, _ in batch}
    centred = [r - means[g] for g, r in batch]
    centre = sum(centred) / len(centred)
    std = math.sqrt(sum((a - centre) ** 2 for a in centred) / len(centred))
    expected = [(a - centre) / (std + 1e-6) for a in centred]
    assert over("reinforce_pp_baseline", batch) == pytest.approx(expected, abs=1e-9)


@given(batches)
def test_a_flat_group_stays_exactly_zero_in_a_batch_that_is_not(batch):
    advantages_B = over("reinforce_pp_baseline", batch)
    for group, _ in batch:
        rewards = {reward for other, reward in batch if other == group}
        here = [advantage for (other, _), advantage in zip(batch, advantages_B) if other == group]
        assert any(here) == (len(rewards) > 1)


@given(batches, st.sampled_from(["grpo", "dr_grpo", "rloo", "reinforce"]))
def test_groups_do_not_touch_each_other(batch, kind):
    advantages_B = over(kind, batch)
    for group in {group for group, _ in batch}:
        index = [i for i, (other, _) in enumerate(batch) if other == group]
        rewards_G = np.array([float(batch[i][1]) for i in index])
        assert advantages_B[index].tolist() == GROUP_FUNCTIONS[kind](rewards_G).tolist()


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=12), st.floats(0.5, 50), st.floats(-50, 50))
def test_whitening_ignores_scale_and_shift(rewards, factor, shift):
    if max(rewards) - min(rewards) < 0.1:
        return
    rewards_B = np.array(rewards)
    centred_B = rewards_B - rewards_B.mean()  # as `scale` gets them: far from 0, STD_EPSILON would show
    assert grpo(rewards_B * factor + shift) == pytest.approx(grpo(rewards_B), abs=1e-3)
    assert scale(centred_B * factor) == pytest.approx(scale(centred_B), abs=1e-3)


# -- against a moving average


def test_role_ema_by_hand_subtracts_before_it_updates():
    # b: 0, then .9 * 0 + .1 * 10 = 1, then .9 * 1 + .1 * 10 = 1.9, then .9 * 1.9 + .1 * 0 = 1.71
    kept: dict[str, float] = {}
    advantages_G = over("role_ema", [(0, 10), (0, 10), (0, 0)], kept, 0.9, ["a", "b", "c"])
    assert advantages_G == pytest.approx([10.0, 9.0, -1.9])
    assert kept == pytest.approx({"k0": 1.71})


def test_turns_of_one_trajectory_meet_the_same_baseline_and_move_it_once():
    # b: 2, then .5 * 2 + .5 * 5 = 3.5 (5: the mean of 4 and 6), then .5 * 3.5 + .5 * 1 = 2.25
    kept = {"k0": 2.0}
    advantages_G = over("role_ema", [(0, 4), (0, 6), (0, 1)], kept, 0.5, ["a", "a", "b"])
    assert advantages_G == pytest.approx([2.0, 4.0, -2.5])
    assert kept == pytest.approx({"k0": 2.25})


@given(batches, st.floats(0, 0.99))
def test_role_ema_is_the_weighted_sum_of_the_past(batch, decay):
    advantages_B = over("role_ema", batch, decay=decay)
    for i, (group, reward) in enumerate(batch):
        past = [r for g, r in batch[:i] if g == group]
        baseline = sum((1 - decay) * decay**age * r for age, r in enumerate(reversed(past)))
        assert advantages_B[i] == pytest.approx(reward - baseline, abs=1e-9)


@given(batches, st.integers(0, 20))
def test_two_batches_are_as_good_as_one_when_the_baselines_are_kept(batch, cut):
    kept: dict[str, float] = {}
    first, second = over("role_ema", batch[:cut], kept), over("role_ema", batch[cut:], kept)
    whole: dict[str, float] = {}
    assert [*first, *second] == pytest.approx(over("role_ema", batch, whole).tolist(), abs=1e-12)
    assert kept == pytest.approx(whole) and set(kept) == {f"k{group}" for group, _ in batch}


@pytest.mark.parametrize("kind", [kind for kind in ADVANTAGES if "critic" not in ADVANTAGES.needs(kind)])
def test_no_member_means_no_advantage(kind):
    assert over(kind, []).tolist() == []
