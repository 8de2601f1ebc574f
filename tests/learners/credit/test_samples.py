"""Samples: what trains, what never does, and how turns become sequences. Numbers by hand."""

from dataclasses import replace

import pytest

from configs.schema.run import AdvantageConfig, SignalConfig
from learners.credit.samples import UnknownSetting, build_samples, imitation_samples
from protocols.types import TokenTrace, Turn
from tests.support.sample_episodes import DR_GRPO, FREE, LEGAL, advantages, episode, siblings, trace, turn


def test_a_sample_holds_what_was_sampled():
    samples, _ = build_samples(siblings([0.0, 2.0]), "p", DR_GRPO)
    sample = samples[1]
    assert sample.token_ids_S == [1, 2, 7] and sample.positions_L == [2]
    assert sample.logprobs_L == [-0.1] and sample.versions_L == [3]
    assert sample.allowed_L == [(7, 8, 9)] and sample.temperature == 1.0
    assert sample.tags == {"episode": "e1", "seat": "alice", "role": "debater"}
    assert sample.group == "task=t protocol=debate role=debater situation= turn=0"


# -- what never trains


def test_only_grounded_episodes_of_this_policy_train():
    good = siblings([0.0, 2.0])
    bad = [episode([turn()], {("alice", 0): 9.0}, id=status, status=status) for status in ("invalid", "lost")]
    other = [replace(good[0], turns=(turn(policy="q"),))]
    samples, metrics = build_samples([*good, *bad, *other], "p", DR_GRPO)
    assert advantages(samples) == {"e0": [-1.0], "e1": [1.0]}
    assert (metrics["episodes_ok"], metrics["episodes_invalid"], metrics["episodes_lost"]) == (3, 1, 1)
    assert metrics["turns"] == 2


def test_reads_forced_and_untraced_turns_neither_train_nor_set_the_baseline():
    others = [
        episode([turn(read=True)], {("alice", 0): 50.0}, id="read"),
        episode([turn(allowed=((7,),))], {("alice", 0): 50.0}, id="forced"),
        episode([turn(trace=None)], {("alice", 0): 50.0}, id="untraced"),
    ]
    samples, metrics = build_samples([*siblings([0.0, 2.0]), *others], "p", DR_GRPO)
    assert advantages(samples) == {"e0": [-1.0], "e1": [1.0]}
    assert metrics["turns_forced"] == metrics["turns_without_trace"] == 1
    assert metrics["turns"] == 4, "reads are no turns to train"


def test_forced_tokens_inside_a_reply_carry_no_loss():
    fields = {"prompt": (1, 2), "output": (7, 4, 9), "allowed": ((7, 8), (4,), (9, 3))}
    samples, metrics = build_samples(siblings([0.0, 2.0], **fields), "p", DR_GRPO)
    sample = samples[1]
    assert sample.token_ids_S == [1, 2, 7, 4, 9] and sample.positions_L == [2, 4]
    assert sample.allowed_L == [(7, 8), (9, 3)] and sample.logprobs_L == [-0.1, pytest.approx(-0.3)]
    assert sample.advantages_L == [1.0, 1.0] and metrics["loss_tokens"] == 4
    assert sample.segments_L == [0, 0]


# -- packing


def packed(second: Turn, first: Turn | None = None):
    first = first or turn(0, prompt=(1, 2), output=(7,))
    config = AdvantageConfig(kind="reinforce")
    return build_samples([episode([first, second], {("alice", 0): 1.0, ("alice", 1): 2.0})], "p", config)[0]


def test_a_chat_that_grew_is_one_sequence():
    (sample,) = packed(turn(1, prompt=(1, 2, 7, 5, 6), output=(8,), allowed=((8, 9),)))
    assert sample.token_ids_S == [1, 2, 7, 5, 6, 8]
    assert sample.positions_L == [2, 5] and sample.advantages_L == [1.0, 2.0]
    assert sample.allowed_L == [(7, 8, 9), (8, 9)] and sample.segments_L == [0, 1]
    assert sample.group.count("; ") == 1 and "turn=0" in sample.group and "turn=1" in sample.group


@pytest.mark.parametrize(
    "second",
    [
        turn(1, prompt=(1, 2, 9, 5), output=(8,)),  # not what was sampled
        turn(1, prompt=(1, 2), output=(8,)),  # shorter: a fresh chat
        turn(1, trace=trace((1, 2, 7, 5), (8,), LEGAL, temperature=0.5)),
        turn(1, prompt=(1, 2, 7, 5), output=(8,), allowed=FREE),
    ],
    ids=["changed", "fresh", "temperature", "mask"],
)
def test_what_does_not_continue_is_a_sequence_of_its_own(second):
    one, two = packed(second)
    assert one.token_ids_S == [1, 2, 7] and one.advantages_L == [1.0]
    assert two.token_ids_S == [*second.trace.prompt_ids_P, 8] and two.advantages_L == [2.0]
    assert two.positions_L == [len(second.trace.prompt_ids_P)]


def test_seats_and_episodes_never_share_a_sequence():
    follow = turn(0, seat="bob", prompt=(1, 2, 7, 5), output=(8,))
    config = AdvantageConfig(kind="reinforce")
    one = episode([turn(), follow], {("alice", 0): 1.0, ("bob", 0): 1.0})
    assert len(build_samples([one], "p", config)[0]) == 2
    two = [episode([turn()], {("alice", 0): 1.0}, id="a")]
    two += [episode([turn(0, prompt=(1, 2, 7, 5), output=(8,))], {("alice", 0): 1.0}, id="b")]
    assert len(build_samples(two, "p", config)[0]) == 2


def test_interleaved_seats_pack_separately():
    turns = [
        turn(0, seat="alice", prompt=(1,), output=(7,)),
        turn(0, seat="bob", prompt=(2,), output=(8,)),
        turn(1, seat="alice", prompt=(1, 7, 3), output=(9,)),
        turn(1, seat="bob", prompt=(2, 8, 3), output=(7,)),
    ]
    rewards = {(seat, index): 1.0 for seat in ("alice", "bob") for index in (0, 1)}
    samples, _ = build_samples([episode(turns, rewards)], "p", AdvantageConfig(kind="reinforce"))
    assert [sample.token_ids_S for sample in samples] == [[1, 7, 3, 9], [2, 8, 3, 7]]


# -- imitation


def test_imitation_takes_every_token_of_the_roles_turns():
    free = turn(0, prompt=(1,), output=(7, 4), allowed=FREE)
    other = turn(0, seat="judge", role="judge", prompt=(2,), output=(8,))
    (sample,) = imitation_samples([episode([free, other], {})], ["debater"])
    assert sample.token_ids_S == [1, 7, 4] and sample.positions_L == [1, 2]
    assert sample.advantages_L == [1.0, 1.0] and sample.allowed_L is None


def test_imitation_takes_reads_that_hold_their_target_with_their_mask():
    target = TokenTrace((1, 2), (8,), (), (0,), ((8, 9),))
    asked = TokenTrace((1, 2), (), (), (0,))
    judge = {"seat": "judge", "role": "judge", "read": True}
    turns = [turn(0, trace=target, **judge), turn(1, trace=asked, **judge)]
    (sample,) = imitation_samples([episode(turns, {})], ["judge"])
    assert sample.token_ids_S == [1, 2, 8] and sample.allowed_L == [(8, 9)] and sample.logprobs_L == [0.0]


def test_imitation_skips_what_is_not_ok():
    assert imitation_samples([episode([turn()], {}, status="invalid")], ["debater"]) == []


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (AdvantageConfig(kind="ppo"), "grpo, dr_grpo, rloo"),
        (AdvantageConfig(group_by=["colour"]), "situation"),
        (AdvantageConfig(baseline_by=["colour"]), "advantage.baseline_by: 'colour'.*opponent"),
    ],
)
def test_unknown_settings_name_what_is_valid(config, named):
    with pytest.raises(UnknownSetting, match=named):
        build_samples([], "p", config)


def test_unknown_signals_name_the_known_ones():
    with pytest.raises(UnknownSetting, match=r"signal\.kind: 'losers'.*winners, rejection"):
        build_samples([], "p", AdvantageConfig(), signal=SignalConfig("losers"))
