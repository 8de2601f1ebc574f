"""Samples: who is compared with whom, and what each token is worth. Numbers by hand."""

import math
from dataclasses import replace

import pytest

from configs.schema.run import AdvantageConfig, SignalConfig
from learners.credit.pairing import build_pairs
from learners.credit.samples import build_samples
from protocols.types import Outcome, Reward
from tests.support.sample_episodes import DR_GRPO, advantages, answers, episode, siblings, three_turns, turn


def test_siblings_are_compared_with_each_other():
    samples, metrics = build_samples(siblings([1.0, 2.0, 6.0]), "p", DR_GRPO)
    assert advantages(samples) == {"e0": [-2.0], "e1": [-1.0], "e2": [3.0]}
    assert metrics["groups"] == 1 and metrics["turns_trained"] == 3
    assert metrics["credit_mean/debater"] == 3.0


def test_an_agents_own_turns_are_never_compared_with_each_other():
    # Turn 1 pays 100 more than turn 0 in every episode. Normalising across an agent's turns would
    # teach that late turns are good; within turns, only the second episode is better.
    episodes = [
        episode(
            [turn(0, prompt=(1,), output=(7,)), turn(1, prompt=(5,), output=(8,))],
            {("alice", 0): base, ("alice", 1): 100 + base},
            id=f"e{base}",
        )
        for base in (0, 2)
    ]
    samples, metrics = build_samples(episodes, "p", DR_GRPO)
    assert [sample.advantages_L for sample in samples] == [[-1.0], [-1.0], [1.0], [1.0]]
    assert metrics["groups"] == 2


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("task", {"task": "other"}),
        ("protocol", {"protocol": "consultancy"}),
        ("role", {"role": "critic"}),
        ("situation", {"situation": "second"}),
    ],
)
def test_groups_keep_apart_what_differs(field, change):
    def pair(values, task="t", protocol="debate", **fields):
        return [
            episode([turn(**fields)], {("alice", 0): v}, id=f"{field}{v}", task=task, protocol=protocol)
            for v in values
        ]

    episodes = pair([0.0, 2.0]) + pair([10.0, 20.0], **change)
    samples, _ = build_samples(episodes, "p", DR_GRPO)
    assert [sample.advantages_L for sample in samples] == [[-1.0], [1.0], [-5.0], [5.0]]
    rest = [name for name in DR_GRPO.group_by if name != field]
    merged, _ = build_samples(episodes, "p", AdvantageConfig(kind="dr_grpo", group_by=rest))
    assert [sample.advantages_L for sample in merged] == [[-8.0], [-6.0], [2.0], [12.0]]


def test_both_seats_of_a_policy_share_a_group_unless_seat_is_in_the_key():
    both = episode([turn(seat="alice"), turn(seat="bob")], {("alice", 0): 1.0, ("bob", 0): -1.0})
    samples, _ = build_samples([both], "p", DR_GRPO)
    assert [(sample.tags["seat"], sample.advantages_L) for sample in samples] == [
        ("alice", [1.0]),
        ("bob", [-1.0]),
    ]
    apart = AdvantageConfig(kind="dr_grpo", group_by=[*DR_GRPO.group_by, "seat"])
    samples, metrics = build_samples([both], "p", apart)
    assert samples == [] and metrics["singleton_groups"] == 2


def test_an_empty_key_makes_the_batch_one_group():
    episodes = [episode([turn()], {("alice", 0): v}, id=str(v), task=str(v)) for v in (0.0, 1.0, 5.0)]
    samples, _ = build_samples(episodes, "p", AdvantageConfig(kind="dr_grpo", group_by=[]))
    assert [sample.advantages_L for sample in samples] == [[-2.0], [-1.0], [3.0]]


def test_groups_without_contrast_are_counted_and_dropped():
    lonely = episode([turn()], {("alice", 0): 5.0}, id="lonely", task="u")
    samples, metrics = build_samples([*siblings([1.0, 1.0, 1.0]), lonely], "p", AdvantageConfig())
    assert samples == []
    assert (metrics["groups"], metrics["zero_variance_groups"], metrics["singleton_groups"]) == (2, 1, 1)
    assert metrics["turns"] == 4 and metrics["turns_trained"] == metrics["loss_tokens"] == 0


def test_a_member_at_the_mean_of_a_live_group_stays():
    samples, _ = build_samples(siblings([0.0, 1.0, 2.0]), "p", DR_GRPO)
    assert [sample.advantages_L for sample in samples] == [[-1.0], [0.0], [1.0]]


def test_reinforce_trains_singletons():
    samples, _ = build_samples(siblings([3.0]), "p", AdvantageConfig(kind="reinforce"))
    assert samples[0].advantages_L == [3.0]


# -- credit


def credits(rewards, discount):
    config = AdvantageConfig(kind="reinforce", discount=discount)
    samples, metrics = build_samples([three_turns(rewards)], "p", config)
    return {sample.token_ids_S[0] - 10: sample.advantages_L[0] for sample in samples}, metrics


def test_credit_is_the_own_reward_and_the_discounted_rest():
    assert credits({0: 1.0, 1: 2.0, 2: 4.0}, 0.0)[0] == {0: 1.0, 1: 2.0, 2: 4.0}
    # 4; 2 + 0.5 * 4; 1 + 0.5 * 4
    assert credits({0: 1.0, 1: 2.0, 2: 4.0}, 0.5)[0] == {0: 3.0, 1: 4.0, 2: 4.0}


def test_trajectory_credit_is_all_that_the_seat_was_paid():
    def found(rewards):
        config = AdvantageConfig(kind="reinforce", credit="trajectory")
        samples, metrics = build_samples([three_turns(rewards)], "p", config)
        return [sample.advantages_L[0] for sample in samples], metrics["turns_without_reward"]

    assert found({0: 1.0, 2: 4.0}) == ([5.0, 5.0, 5.0], 0)
    assert found({1: 2.0, None: 3.0}) == ([5.0, 5.0, 5.0], 0)
    assert found({}) == ([], 3)


def test_a_turn_that_nothing_rewards_is_missing_not_zero():
    found, metrics = credits({1: 2.0}, 0.0)
    assert found == {1: 2.0} and metrics["turns_without_reward"] == 2
    found, metrics = credits({1: 2.0}, 0.5)
    assert found == {0: 1.0, 1: 2.0} and metrics["turns_without_reward"] == 1


def test_a_reward_for_the_episode_reaches_every_turn_in_full():
    assert credits({None: 3.0}, 0.0)[0] == {0: 3.0, 1: 3.0, 2: 3.0}
    assert credits({None: 3.0, 1: 2.0}, 0.5)[0] == {0: 4.0, 1: 5.0, 2: 3.0}


def test_several_rewards_of_a_turn_add_up():
    one = episode([turn()], {})
    rewards = (Reward("alice", 0, 2.0, "belief"), Reward("alice", 0, -0.5, "length"))
    one = replace(one, outcome=Outcome(rewards=rewards))
    samples, _ = build_samples([one], "p", AdvantageConfig(kind="reinforce"))
    assert samples[0].advantages_L == [1.5]


def test_a_reward_that_meets_no_turn_is_counted():
    _, metrics = build_samples([episode([turn()], {("alice", 0): 1.0, ("alice", 4): 1.0})], "p", DR_GRPO)
    assert metrics["rewards_unmatched"] == 1


def test_a_reward_that_is_no_number_stops_everything():
    with pytest.raises(AssertionError, match="nan"):
        build_samples(siblings([float("nan")]), "p", DR_GRPO)


# -- baselines of other kinds than groups


def test_role_ema_keeps_an_average_per_situation_and_opponent():
    def game(id, first, second, rewards):
        turns = [
            turn(seat="alice", role="player", situation="first", policy=first),
            turn(seat="bob", role="player", situation="second", policy=second),
        ]
        return episode(turns, {("alice", 0): rewards[0], ("bob", 0): rewards[1]}, id=id)

    config = AdvantageConfig(kind="role_ema", decay=0.5)
    baselines: dict[str, float] = {}
    episodes = [
        game("e1", "p", "p", (8.0, -8.0)),
        game("e2", "p", "p", (8.0, -8.0)),
        game("e3", "p", "old", (8.0, -8.0)),
    ]
    samples, _ = build_samples(episodes, "p", config, baselines)
    # The second self-play meets 0.5 * 0 + 0.5 * 8 = 4; a new opponent starts from 0.
    assert [sample.advantages_L[0] for sample in samples] == [8.0, -8.0, 4.0, -4.0, 8.0]
    assert baselines == {
        "debate / player / first / p": 6.0,
        "debate / player / second / p": -6.0,
        "debate / player / first / old": 4.0,
    }
    samples, _ = build_samples(episodes[:1], "p", config, baselines)
    assert [sample.advantages_L[0] for sample in samples] == [2.0, -2.0]


def test_judges_that_are_only_read_are_no_opponents():
    judge = turn(seat="judge", role="judge", policy="j", read=True)
    baselines: dict[str, float] = {}
    config = AdvantageConfig(kind="role_ema", baseline_by=["opponent"])
    build_samples([episode([turn(), judge], {("alice", 0): 1.0})], "p", config, baselines)
    assert baselines == {"": pytest.approx(0.05)}


def test_reinforce_pp_compares_across_groups():
    episodes = [episode([turn()], {("alice", 0): v}, id=str(v), task=str(v)) for v in (0.0, 2.0, 4.0, 6.0)]
    samples, metrics = build_samples(episodes, "p", AdvantageConfig(kind="reinforce_pp"))
    assert [sample.advantages_L[0] for sample in samples] == pytest.approx(
        [-1.3416, -0.4472, 0.4472, 1.3416], abs=1e-4
    )
    assert metrics["groups"] == 1


# -- signals that imitate


def test_winners_are_imitated_and_nobody_else():
    win = episode([turn(seat="alice"), turn(seat="bob")], {("alice", None): 1.0, ("bob", None): -1.0}, id="w")
    tie = episode([turn(seat="alice"), turn(seat="bob")], {("alice", None): 0.0, ("bob", None): 0.0}, id="t")
    samples, metrics = build_samples([win, tie], "p", AdvantageConfig(), signal=SignalConfig("winners"))
    assert [(s.tags["episode"], s.tags["seat"], s.advantages_L) for s in samples] == [("w", "alice", [1.0])]
    assert (metrics["turns"], metrics["turns_trained"]) == (4, 1)


def test_rejection_keeps_the_best_of_each_group():
    episodes = siblings([1.0, 4.0, 2.0]) + [episode([turn()], {("alice", 0): 0.5}, id="u", task="other")]
    for best, kept in ((1, ["e1"]), (2, ["e1", "e2"])):
        signal = SignalConfig("rejection", best=best)
        samples, metrics = build_samples(episodes, "p", AdvantageConfig(), signal=signal)
        assert [(s.tags["episode"], s.advantages_L) for s in samples] == [(id, [1.0]) for id in kept]
        assert metrics["singleton_groups"] == 1


def test_reward_weighted_turns_of_a_trajectory():
    rewards = [{0: 0.0, 1: 1.0, 2: 1.0}, {0: 0.0, 1: 0.0, 2: 2.0 - math.log(3)}]
    config = AdvantageConfig(credit="trajectory")
    signal = SignalConfig("reward_weighted")
    episodes = [three_turns(given, id=f"e{i}") for i, given in enumerate(rewards)]
    samples, _ = build_samples(episodes, "p", config, signal=signal)
    # Odds 3 to 1, times a group of 2: 1.5 and 0.5, for each of the three turns.
    assert [s.advantages_L[0] for s in samples] == pytest.approx([1.5] * 3 + [0.5] * 3)


def test_one_record_feeds_each_policy_its_own_signal():
    def play(id, won):
        debater = turn(seat="alice", policy="p")
        critic = turn(seat="carol", role="critic", policy="c")
        return episode([debater, critic], {("alice", 0): won, ("carol", 0): won}, id=id)

    episodes = [play("e0", 1.0), play("e1", -1.0)]
    debater, _ = build_samples(episodes, "p", DR_GRPO)
    critic, _ = build_samples(episodes, "c", AdvantageConfig(), signal=SignalConfig("winners"))
    assert advantages(debater) == {"e0": [1.0], "e1": [-1.0]}
    assert advantages(critic) == {"e0": [1.0]} and critic[0].tags["role"] == "critic"


# -- pairs


def test_pairs_are_the_best_and_the_worst_reply_to_one_prompt():
    # Two prompts in one group (the second turn after different histories), one of them answered three times.
    outputs = {"e0": ((1, 2), 7, 0.2), "e1": ((1, 2), 8, 0.5), "e2": ((1, 2), 9, 0.4), "e3": ((1, 3), 7, 0.9)}
    episodes = [
        episode([turn(prompt=prompt, output=(token,))], {("alice", 0): credit}, id=id)
        for id, (prompt, token, credit) in outputs.items()
    ]
    (pair,) = build_pairs(episodes, "p", AdvantageConfig())[0]
    assert (pair.chosen.tags["episode"], pair.rejected.tags["episode"]) == ("e1", "e0")
    assert pair.chosen.token_ids_S == [1, 2, 8] and pair.rejected.token_ids_S == [1, 2, 7]
    assert pair.chosen.positions_L == pair.rejected.positions_L == [2] and pair.chosen.segments_L == [0]
    assert pair.chosen.advantages_L == [1.0] and pair.chosen.allowed_L == [(7, 8, 9)]
    assert pair.probability == pytest.approx(0.890903, abs=1e-6)  # sigma(7 * 0.3)
    assert build_pairs(episodes, "p", AdvantageConfig(), gamma=0.0)[0][0].probability == 0.5


def test_no_pairs_without_a_difference_nor_across_situations_nor_from_invalid_plays():
    assert build_pairs(siblings([1.0, 1.0]), "p", AdvantageConfig())[0] == []
    apart = siblings([1.0]) + siblings([2.0], situation="second")
    assert build_pairs(apart, "p", AdvantageConfig())[0] == []
    invalid = [replace(one, outcome=replace(one.outcome, status="invalid")) for one in siblings([0.0, 1.0])]
    assert build_pairs(invalid, "p", AdvantageConfig())[0] == []


def test_turns_of_one_seat_are_pairs_of_their_own():
    def two(id, first, second):
        turns = [turn(0, prompt=(1, 2), output=(7,)), turn(1, prompt=(1, 2, 7, 5), output=(8,))]
        return episode(turns, {("alice", 0): first, ("alice", 1): second}, id=id)

    pairs = build_pairs([two("a", 0.0, 1.0), two("b", 1.0, 0.0)], "p", AdvantageConfig())[0]
    assert [(pair.chosen.tags["episode"], pair.chosen.positions_L) for pair in pairs] == [
        ("b", [2]),
        ("a", [4]),
    ]


def test_win_rates_are_over_the_whole_group():
    (pair,), _ = build_pairs(answers((1, 2), [0.0, 1.0, 2.0], "t"), "p", AdvantageConfig(), gamma=1.0)
    # sigma(1) = 0.731059, sigma(2) = 0.880797; against itself one half.
    assert pair.win_rates == pytest.approx(((0.5 + 0.731059 + 0.880797) / 3, (0.5 + 0.268941 + 0.119203) / 3))
    assert pair.probability == pytest.approx(0.880797)


def test_groups_without_a_pair_train_nothing_and_are_counted():
    episodes = answers((1, 2), [0.0, 1.0, 1.0], "a") + answers((1, 3), [1.0, 1.0], "b") + answers((1, 4), [1.0], "c")
    pairs, figures = build_pairs(episodes, "p", AdvantageConfig())
    assert [(pair.chosen.tags["episode"], pair.rejected.tags["episode"]) for pair in pairs] == [("a1", "a0")]
    assert (figures["pairs"], figures["groups"], figures["groups_without_pair"]) == (1, 3, 2)
    assert (figures["zero_variance_groups"], figures["singleton_groups"]) == (1, 1)
    assert (figures["turns"], figures["turns_trained"], figures["samples"]) == (6, 2, 2)
    assert figures["loss_tokens"] == 4


def test_mismatches_are_replies_to_other_prompts():
    prompts = {"a": (1, 2), "b": (1, 3, 4), "c": (1, 2)}
    episodes = [one for task, prompt in prompts.items() for one in answers(prompt, [0.0, 1.0], task)]
    pairs, _ = build_pairs(episodes, "p", AdvantageConfig(), mismatch=True)
    found = [pair.mismatched for pair in pairs]
    # a is followed by b's best, b by c's worst; c comes round to b, for a has c's own prompt.
    assert [one.token_ids_S for one in found] == [[1, 2, 11, 31], [1, 3, 4, 10, 30], [1, 2, 11, 31]]
    assert [one.positions_L for one in found] == [[2, 3], [3, 4], [2, 3]]
    alone, _ = build_pairs(episodes[:2], "p", AdvantageConfig(), mismatch=True)
    assert alone[0].mismatched is None
