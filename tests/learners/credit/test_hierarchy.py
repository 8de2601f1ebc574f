"""Plays within plays, and branches of one prefix: who is compared with whom. Numbers by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st

from configs.schema.run import AdvantageConfig
from learners.credit.advantages import CreditBatch, hierarchical
from learners.credit.samples import build_samples
from protocols.types import Episode
from tests.configs.test_schedule import found
from tests.support.sample_episodes import episode, turn

NESTED = AdvantageConfig(kind="hierarchical", group_by=["protocol", "role"])
ROOT = math.sqrt


def proposal(id: str, paid: float, tries: Sequence[float], policy: str = "p") -> list[Episode]:
    """A proposer's play and the solver's plays in it, one turn each."""
    proposer = turn(role="proposer", policy=policy)
    plays = [episode([proposer], {("alice", 0): paid}, id=id, task="root", protocol="propose")]
    for i, won in enumerate(tries):
        solver = turn(role="solver", seat="bob", policy=policy)
        name = f"{id}/{i}"
        child = episode([solver], {("bob", 0): won}, id=name, task=f"task of {id}", protocol="solve")
        plays.append(replace(child, parent=id))
    return plays


def advantages(plays: Sequence[Episode], config: AdvantageConfig = NESTED) -> dict[str, float]:
    samples, _ = build_samples(plays, "p", config)
    return {sample.tags["episode"]: sample.advantages_L[0] for sample in samples}


def test_tries_are_compared_within_a_proposal_and_proposals_with_each_other() -> None:
    plays = [*proposal("a", 0.25, [1, 0, 1, 0]), *proposal("b", 0.0, [1, 1, 1, 1]), *proposal("c", 0.2, [0, 0, 0, 1])]
    found = advantages(plays)
    # Proposals: mean .15; deviations .1 -.15 .05; their mean square is .035 / 3.
    std = ROOT(0.035 / 3)
    assert [found[id] for id in "abc"] == pytest.approx([0.1 / std, -0.15 / std, 0.05 / std], abs=1e-4)
    # Tries: at a +-.5, at b 0 (not trained), at c -.25 three times and .75; squares 1 + 0 + .75 over 12 tries.
    std = ROOT(1.75 / 12)
    assert [found[f"a/{i}"] for i in range(4)] == pytest.approx([0.5 / std, -0.5 / std] * 2, abs=1e-4)
    assert [found[f"c/{i}"] for i in range(4)] == pytest.approx([-0.25 / std] * 3 + [0.75 / std], abs=1e-4)
    assert not any(name.startswith("b/") for name in found), "what all tries solve teaches the solver nothing"


def test_without_nesting_tries_would_be_paid_for_easy_proposals() -> None:
    plays = [*proposal("a", 0.0, [1, 1, 1, 1]), *proposal("b", 0.0, [0, 0, 0, 1])]
    flat = advantages(plays, AdvantageConfig(kind="reinforce_pp_baseline", group_by=["protocol", "role"]))
    assert flat["a/0"] > 0.5 and flat["b/3"] == flat["a/0"]
    assert set(advantages(plays)) == {"b/0", "b/1", "b/2", "b/3"}
    # The key `parent` nests for every kind; only the scale is then another: here of all turns, zeros included.
    keyed = AdvantageConfig(kind="reinforce_pp_baseline", group_by=["protocol", "role", "parent"])
    assert advantages(plays, keyed)["b/3"] == pytest.approx(0.75 / ROOT(0.75 / 10), abs=1e-4)
    assert advantages(plays)["b/3"] == pytest.approx(0.75 / ROOT(0.75 / 8), abs=1e-4)


def test_a_level_does_not_feel_how_another_is_paid() -> None:
    tries = [[1, 0, 0], [0, 1, 1]]
    one = [*proposal("a", 0.25, tries[0]), *proposal("b", 0.1, tries[1])]
    two = [*proposal("a", 2500.0, tries[0]), *proposal("b", 1000.0, tries[1])]
    assert advantages(one) == pytest.approx(advantages(two), abs=1e-4)


def test_each_policy_of_its_own_has_its_own_level() -> None:
    plays = [*proposal("a", 0.25, [1, 0]), *proposal("b", 0.05, [0, 0])]
    mine = [replace(p, turns=tuple(replace(t, policy="q" if p.parent else "p") for t in p.turns)) for p in plays]
    assert advantages(mine) == {name: value for name, value in advantages(plays).items() if "/" not in name}


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(-9, 9)), min_size=1, max_size=24))
def test_hierarchical_against_plain_python(members: list[tuple[int, int, int]]) -> None:
    """(parent, level, reward) of each."""
    keys = [(str(level), str(parent)) for parent, level, _ in members]
    levels = [(str(level),) for _, level, _ in members]
    rewards_B = np.array([float(reward) for *_, reward in members])
    found_B = hierarchical(CreditBatch(rewards_B, keys, list(range(len(members))), levels), NESTED)
    means = {key: np.mean([r for k, r in zip(keys, rewards_B) if k == key]) for key in keys}
    centred = [float(r - means[k]) for k, r in zip(keys, rewards_B)]
    for i, level in enumerate(levels):
        here = [c for c, other in zip(centred, levels) if other == level]
        assert found_B[i] == pytest.approx(centred[i] / (ROOT(sum(c * c for c in here) / len(here)) + 1e-6), abs=1e-6)


def test_a_policy_that_is_on_one_level_only_is_refused(tmp_path: Path) -> None:
    base = "proposer: {trained: true, learner: {advantage: {kind: grpo, group_by: [role]}}}"
    nested = base.replace("grpo", "hierarchical")
    [(key, message)] = found(tmp_path, f"{base} => {nested}").items()
    assert key == "policies.proposer.learner.advantage.kind"
    assert "nothing to nest" in message and "reinforce_pp_baseline" in message
    solver = "learner: {advantage: {kind: grpo, group_by: [role]}}\n  proposer"
    assert found(tmp_path, f"{solver} => {solver.replace('grpo', 'hierarchical')}") == {}


# -- one baseline for each task and role


def test_baselines_for_each_task_and_role_are_grpo_over_the_batch() -> None:
    """TRR++, arXiv 2505.03335, section 3.3.5: mean and std of each kind of task and role in the batch."""
    plays = [*proposal("a", 0.0, [0, 0, 1]), *proposal("b", 2.0, [1, 1, 1])]
    found = advantages(plays, AdvantageConfig(kind="grpo", group_by=["protocol", "role"]))
    assert (found["a"], found["b"]) == pytest.approx((-1, 1), abs=1e-4)
    # Tries: four of six won: mean 2/3, variance 2/9.
    lost, won = -(2 / 3) / ROOT(2 / 9), (1 / 3) / ROOT(2 / 9)
    assert [found[n] for n in ("a/0", "a/1", "a/2", "b/0")] == pytest.approx([lost, lost, won, won], abs=1e-4)


def test_reinforce_pp_with_a_baseline_for_each_prompt() -> None:
    """arXiv 2501.03262: less the mean over the same prompt, then over the standard deviation of the batch."""
    rewards = {"a": [0.0, 2.0], "b": [0.0, 6.0]}
    plays = [
        episode([turn()], {("alice", 0): value}, id=f"{task}{i}", task=task)
        for task, values in rewards.items() for i, value in enumerate(values)
    ]  # fmt: skip
    config = AdvantageConfig(kind="reinforce_pp_baseline", group_by=["task", "protocol", "role"])
    found = advantages(plays, config)
    assert list(found.values()) == pytest.approx([v / ROOT(5) for v in (-1, 1, -3, 3)], abs=1e-4)


# -- branches of one prefix

PROMPT = AdvantageConfig(kind="dr_grpo", group_by=["task", "role", "prompt"])


def branch(id: str, second: int, rewards: tuple[float | None, float], first: tuple[int, ...] = (7,)) -> Episode:
    """Two turns: `first` said, then what follows after `second` was heard."""
    turns = [turn(0, prompt=(1, 2), output=first), turn(1, prompt=(1, 2, *first, second), output=(9,))]
    paid = {("alice", i): value for i, value in enumerate(rewards) if value is not None}
    return episode(turns, paid, id=id)


def test_turns_are_compared_after_the_very_same_history() -> None:
    # All four begin alike. Two go on after 5, two after 6.
    ends = {"a": (5, (1.0, 0.0)), "b": (5, (1.0, 4.0)), "c": (6, (3.0, 10.0)), "d": (6, (3.0, 30.0))}
    plays = [branch(id, *end) for id, end in ends.items()]
    samples, metrics = build_samples(plays, "p", PROMPT)
    found = {s.tags["episode"]: dict(zip(s.positions_L, s.advantages_L)) for s in samples}
    found = {id: [by_position.get(2), by_position.get(4)] for id, by_position in found.items()}
    assert found == {"a": [-1.0, -2.0], "b": [-1.0, 2.0], "c": [1.0, -10.0], "d": [1.0, 10.0]}
    assert metrics["groups"] == 3
    # The turn's number alone would compare the second turns of all four: mean 11.
    by_turn = AdvantageConfig(kind="dr_grpo", group_by=["task", "role", "turn"])
    samples, _ = build_samples(plays, "p", by_turn)
    assert [s.advantages_L[-1] for s in samples] == [-11.0, -7.0, -1.0, 19.0]


def test_a_prefix_that_nothing_rewards_does_not_train_only_the_branching_turn_does() -> None:
    plays = [branch("a", 5, (None, 0.0)), branch("b", 5, (None, 4.0))]
    samples, metrics = build_samples(plays, "p", PROMPT)
    assert [(s.positions_L, s.advantages_L) for s in samples] == [([4], [-2.0]), ([4], [2.0])]
    assert metrics["turns_without_reward"] == 2


def test_one_token_more_or_another_order_is_another_prompt() -> None:
    prompts = [(1, 2), (1, 2, 0), (2, 1), (12,), (258,)]
    plays = [episode([turn(prompt=p)], {("alice", 0): 1.0}, id=str(i)) for i, p in enumerate(prompts)]
    _, metrics = build_samples(plays, "p", PROMPT)
    assert metrics["groups"] == metrics["singleton_groups"] == 5
