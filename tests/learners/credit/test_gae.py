"""Advantages by a critic: numbers by hand, eq. 16 written out in float64, and the gradient that a rank asks for."""

from __future__ import annotations

import asyncio
import math
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from configs.checks.learner import check_learner
from configs.methods import LearnerConfigError
from configs.schema.run import AdvantageConfig, CriticConfig, LearnerConfig, LossConfig, SignalConfig
from learners.batches.batching import BadSample, check
from learners.credit.gae import gae, trajectories, with_advantages
from learners.credit.samples import build_samples
from learners.dump import dump, load
from learners.losses.critic import ValueHead, value_loss
from learners.models.optimizer import make_adamw
from learners.models.token_model import TokenModel
from learners.ranks.group import LearnerGroup
from learners.ranks.rank import LearnerRank
from learners.types import Sample
from tests.configs.test_schedule import found
from tests.learners.ranks.test_learner_step import VOCABULARY, Base, Engine, flat, logprob, make_samples
from tests.support.sample_episodes import episode, turn

GAE = AdvantageConfig(kind="gae")
numbers = st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=12)
share = st.floats(0, 1)
of = partial(replace, GAE)


def test_by_hand() -> None:
    # delta: 1 - .2 = .8; .9 * .2 - .4 = -.22; .9 * .4 - .5 = -.14. With .9 * .8 = .72:
    # A_2 = .8, A_1 = -.22 + .72 * .8 = .356, A_0 = -.14 + .72 * .356 = .11632.
    advantages_T, returns_T = gae(np.array([0.0, 0.0, 1.0]), np.array([0.5, 0.4, 0.2]), of(gamma=0.9, lam=0.8))
    assert advantages_T == pytest.approx([0.11632, 0.356, 0.8])
    assert returns_T == pytest.approx([0.61632, 0.756, 1.0])


@given(numbers, share, share)
def test_is_equation_16_written_out(given: list[tuple[float, float]], gamma: float, lam: float) -> None:
    rewards, values = zip(*given)
    ahead = [*values[1:], 0.0]
    deltas = [r + gamma * following - v for r, v, following in zip(rewards, values, ahead)]
    expected = [sum((gamma * lam) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]
    advantages_T, returns_T = gae(np.array(rewards), np.array(values), of(gamma=gamma, lam=lam))
    assert advantages_T == pytest.approx(expected, abs=1e-9)
    assert returns_T == pytest.approx(np.add(expected, values), abs=1e-9)


@given(numbers, share)
def test_lam_1_is_the_reward_to_go_less_the_value(given: list[tuple[float, float]], gamma: float) -> None:
    rewards, values = zip(*given)
    _, returns_T = gae(np.array(rewards), np.array(values), of(gamma=gamma, lam=1.0))
    expected = [sum(gamma**k * r for k, r in enumerate(rewards[t:])) for t in range(len(rewards))]
    assert returns_T == pytest.approx(expected, abs=1e-9), "the critic aims at rewards alone"


# -- samples with rewards


def paid(turns: list[Any], rewards: dict[Any, float]) -> tuple[list[Sample], dict[str, float]]:
    return build_samples([episode(turns, rewards)], "p", GAE)


def chat(*outputs: tuple[int, ...], **fields: Any) -> list[Any]:
    """Turns of one seat whose chat only grows."""
    turns, prompt = [], (1, 2)
    for i, output in enumerate(outputs):
        turns.append(turn(i, prompt=prompt, output=output, allowed=fields.get("allowed", {}).get(i, ())))
        prompt = (*prompt, *output, 5)
    return turns


def test_a_turn_is_paid_at_its_last_token() -> None:
    ((sample,), metrics) = paid(chat((7, 8), (9, 9, 9)), {("alice", 0): 1.0, ("alice", 1): -2.0})
    assert sample.positions_L == [2, 3, 5, 6, 7] and sample.rewards_L == [0, 1.0, 0, 0, -2.0]
    assert sample.segments_L == [0, 0, 1, 1, 1] and metrics["turns_trained"] == 2
    assert metrics["credit_mean/debater"] == -1.5, "what is still to come: -1 and -2"


def test_a_reward_for_the_episode_is_paid_at_its_end() -> None:
    ((sample,), _) = paid(chat((7, 8), (9,)), {("alice", None): 3.0})
    assert sample.rewards_L == [0, 0, 3.0]


def test_turns_after_the_last_reward_are_missing_not_zero() -> None:
    ((sample,), metrics) = paid(chat((7,), (8,), (9,)), {("alice", 1): 2.0})
    assert sample.positions_L == [2, 4] and sample.rewards_L == [0, 2.0]
    assert metrics["turns_without_reward"] == 1
    assert paid(chat((7,)), {})[0] == []


def test_what_a_turn_without_a_choice_was_paid_belongs_to_the_choice_before() -> None:
    turns = chat((7,), (8,), (9,), allowed={0: ((7, 8),), 1: ((8,),), 2: ((8, 9),)})
    ((sample,), metrics) = paid(turns, {("alice", 0): 1.0, ("alice", 1): 10.0, ("alice", 2): 100.0})
    assert sample.positions_L == [2, 6] and sample.rewards_L == [11.0, 100.0] and metrics["turns_forced"] == 1


def test_other_kinds_carry_no_rewards_and_lengths_are_checked() -> None:
    samples, _ = build_samples([episode([turn()], {("alice", 0): 1.0})], "p", AdvantageConfig(kind="reinforce"))
    assert samples[0].rewards_L is None
    for name in ("rewards_L", "values_L", "returns_L"):
        with pytest.raises(BadSample, match="lengths"):
            check(replace(samples[0], **{name: [1.0, 2.0]}))


# -- a whole batch


def plain(rewards: list[float], **tags: str) -> Sample:
    count = len(rewards)
    return Sample([0] * (count + 1), [*range(1, count + 1)], [0.0] * count, [0.0] * count, [0] * count,
                  tags=tags, rewards_L=rewards)  # fmt: skip


def test_a_batch_by_hand() -> None:
    # gamma = lam = 1: advantages are rewards to go less values: (1 - .5, 1 - 0), (-1 - .5).
    samples = [plain([0.0, 1.0]), plain([-1.0])]
    done, metrics = with_advantages(samples, [[0.5, 0.0], [0.5]], of(gamma=1.0, lam=1.0))
    assert [s.returns_L for s in done] == [[1.0, 1.0], [-1.0]] and [s.values_L for s in done] == [[0.5, 0.0], [0.5]]
    # .5 1 -1.5: mean 0, mean square 3.5 / 3.
    std = math.sqrt(3.5 / 3)
    assert done[0].advantages_L == pytest.approx([0.5 / std, 1 / std], abs=1e-5)
    assert done[1].advantages_L == pytest.approx([-1.5 / std], abs=1e-5)
    assert samples[0].advantages_L == [0.0, 0.0], "the samples given are left as they are"
    # Returns 1 1 -1: variance 8/9; returns less values as above: 3.5 / 3.
    assert metrics == pytest.approx(
        {"value_mean": 1 / 3, "return_mean": 1 / 3, "advantage_std": std, "explained_variance": 1 - 3.5 / 3 * 9 / 8}
    )


def test_returns_that_are_all_alike_leave_nothing_to_explain() -> None:
    done, metrics = with_advantages([plain([1.0])], [[0.5]], of(gamma=1.0, lam=1.0))
    assert done[0].advantages_L == [0.0] and done[0].returns_L == [1.0] and "explained_variance" not in metrics
    assert with_advantages([], [], of(gamma=1.0, lam=1.0)) == ([], {})


@given(numbers, st.integers(0, 12), share, share)
def test_a_chat_that_was_begun_anew_is_still_one_trajectory(
    given: list[tuple[float, float]], cut: int, gamma: float, lam: float
) -> None:
    rewards, values = [r for r, _ in given], [v for _, v in given]
    cut = min(cut, len(given))
    where = {"episode": "e", "seat": "alice"}
    others = [plain([1.0], episode="e", seat="bob"), plain([2.0], episode="f", seat="alice")]
    whole, _ = with_advantages([plain(rewards, **where), *others], [values, [0.0], [0.0]], of(gamma=gamma, lam=lam))
    parts = [plain(rewards[:cut], **where), others[0], plain(rewards[cut:], **where), others[1]]
    torn, _ = with_advantages(parts, [values[:cut], [0.0], values[cut:], [0.0]], of(gamma=gamma, lam=lam))
    assert trajectories(parts) == [[0, 2], [1], [3]]
    for name in ("advantages_L", "returns_L"):
        joined = getattr(torn[0], name) + getattr(torn[2], name)
        assert joined == pytest.approx(getattr(whole[0], name), abs=1e-9)


def test_dumps_hold_what_a_critic_needs(tmp_path: Path) -> None:
    sample = replace(plain([0.0, math.inf]), values_L=[0.5, 0.0], returns_L=[math.inf, -math.inf])
    path = dump(tmp_path, "p", 1, [sample], {})
    assert path is not None and load(path) == [sample]


# -- the critic's loss


def test_value_loss_by_hand() -> None:
    values = torch.tensor([0.5, 0.5, -0.5, 0.1])
    old, returns = torch.zeros(4), torch.tensor([1.0, 0.0, 1.0, 1.0])
    loss_L, clipped_L = value_loss(values, old, returns, 0.2)
    # Near: .2 .2 -.2 .1. Free squares .25 .25 2.25 .81; near ones .64 .04 1.44 .81: the larger, halved.
    assert loss_L.tolist() == pytest.approx([0.32, 0.125, 1.125, 0.405])
    assert clipped_L.tolist() == [1, 0, 0, 0], "only where it has moved far enough towards its aim"
    assert value_loss(values, old, returns, 0.0)[0].tolist() == pytest.approx([0.125, 0.125, 1.125, 0.405])


@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_gradient_against_finite_differences(clip: float) -> None:
    rng = torch.Generator().manual_seed(0)
    values, old, returns = torch.randn(3, 40, generator=rng, dtype=torch.float64)
    values.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: value_loss(v, old, returns, clip)[0], values)
    value_loss(values, old, returns, clip)[0].sum().backward()
    step = (values - old).detach()
    near = old + step.clamp(-clip, clip)
    held = (clip > 0) & (step.abs() > clip) & ((near - returns).abs() > (values - returns).abs())
    assert torch.allclose(values.grad, torch.where(held, 0.0, (values - returns).detach()))  # type: ignore[arg-type]


# -- a rank with a critic


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    with mock.patch.dict(os.environ):  # a rank writes RANK and its like
        yield


def head(model: TokenModel, hidden: Tensor) -> Tensor:
    weight, bias = model.value_head.parameters()  # type: ignore[union-attr]
    return (hidden.double() @ weight.double().T + bias.double()).squeeze(-1)


def critical(seed: int = 0) -> TokenModel:
    model = TokenModel(Base(), ValueHead(4, torch.zeros(1)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.value_head.parameters():  # type: ignore[union-attr]
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def rank(config: LearnerConfig) -> LearnerRank:
    made = LearnerRank(0, 1, "", config)
    made.engine, made.device = Engine(config.lr), torch.device("cpu")
    made.engine.model = critical()
    made.engine.optimizer = torch.optim.SGD(made.engine.model.parameters(), lr=config.lr)
    return made


def with_returns(samples: list[Sample]) -> list[Sample]:
    rng = random.Random(1)

    def some(sample: Sample) -> list[float]:
        return [rng.gauss(0, 1) for _ in sample.positions_L]

    return [replace(s, values_L=some(s), returns_L=some(s)) for s in samples]


CONFIG = LearnerConfig(advantage=GAE, critic=CriticConfig(coef=0.3, clip=0.4))


def value(model: TokenModel, sample: Sample, position: int) -> Tensor:
    return head(model, model.lm.embed[torch.tensor(sample.token_ids_S[:position])].sum(0).tanh())


@pytest.mark.parametrize("micro_tokens", [1, 30, 10_000])
@pytest.mark.parametrize("normalise", ["token", "sequence"])
def test_gradient_of_a_step_is_that_of_both_losses(micro_tokens: int, normalise: str) -> None:
    samples = with_returns(make_samples(9))
    learner = rank(replace(CONFIG, micro_tokens=micro_tokens, loss=LossConfig("reinforce", normalise=normalise)))
    metrics = learner.step(samples).result()
    model, policy, values = critical(), [], []
    replies = sum(len(set(s.segments_L or ())) for s in samples)
    tokens = sum(len(s.positions_L) for s in samples)
    for s in samples:
        assert s.segments_L and s.values_L and s.returns_L
        for i, position in enumerate(s.positions_L):
            weight = 1 / tokens if normalise == "token" else 1 / (replies * s.segments_L.count(s.segments_L[i]))
            ratio = torch.exp(logprob(model, s, position) - s.logprobs_L[i])
            policy.append(-weight * ratio * s.advantages_L[i])
            now, old, aim = value(model, s, position), s.values_L[i], s.returns_L[i]
            near = now.clamp(old - 0.4, old + 0.4)
            values.append(0.5 * torch.maximum((now - aim) ** 2, (near - aim) ** 2))
    critic = torch.stack(values).mean()  # over tokens, however the policy's loss is normalised
    (torch.stack(policy).sum() + 0.3 * critic).backward()
    expected = flat([p.grad for p in model.parameters()])
    torch.testing.assert_close(learner.engine.steps[0], expected, rtol=1e-4, atol=1e-6)
    assert metrics["value_loss"] == pytest.approx(float(critic.detach()), rel=1e-5)
    assert 0 < metrics["value_clip_fraction"] < 1


def test_values_are_those_before_each_token() -> None:
    samples, learner = make_samples(5), rank(CONFIG)
    for sample, values_L in zip(samples, learner.values(samples)):
        expected = [float(value(critical(), sample, p).detach()) for p in sample.positions_L]
        assert values_L == pytest.approx(expected, abs=1e-5)


def test_a_critic_learns_what_it_is_told() -> None:
    config = replace(CONFIG, lr=0.2, critic=CriticConfig(coef=1.0, clip=0.0), loss=LossConfig("reinforce"))
    learner = rank(config)
    start, samples = Base(), []
    for i, s in enumerate(make_samples(12)):  # paid by something that a line through the hidden state can tell
        hidden = [start.embed[torch.tensor(s.token_ids_S[:p])].sum(0).tanh()[0] for p in s.positions_L]
        samples.append(replace(s, rewards_L=[float(h.detach()) for h in hidden], tags={"episode": str(i)}))
    explained = []
    for _ in range(200):
        lessons, metrics = with_advantages(samples, learner.values(samples), of(gamma=0.0, lam=0.0))
        explained.append(metrics["explained_variance"])
        learner.step([replace(s, advantages_L=[0.0] * len(s.advantages_L)) for s in lessons])
    assert explained[0] < 0 and explained[-1] > 0.95


def test_a_warm_start_leaves_the_critic_alone() -> None:
    learner = rank(CONFIG)
    before = [p.clone() for p in learner.engine.model.value_head.parameters()]
    metrics = learner.step([replace(s, advantages_L=[1.0] * len(s.advantages_L)) for s in make_samples(5)], loss="sft")
    after = list(learner.engine.model.value_head.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after)) and "value_loss" not in metrics.result()
    # Every parameter has a gradient nevertheless: on ranks that only keep step with others as on those that learn.
    assert learner.engine.steps[0].numel() == sum(p.numel() for p in learner.engine.model.parameters())


def test_a_new_head_says_zero_and_has_a_rate_of_its_own() -> None:
    model = TokenModel(Base(), ValueHead(4, torch.zeros(1)))
    ids = torch.arange(VOCABULARY)
    *_, values_L = model(ids[None], ids * 0, ids, ids.roll(-1), torch.ones(len(ids)))
    assert values_L.tolist() == [0.0] * VOCABULARY and values_L.dtype == torch.float32
    learner = rank(replace(CONFIG, lr=0.01, warmup_steps=4, critic=CriticConfig(lr=0.1)))
    learner.engine.optimizer = make_adamw(model, 0.01, 0.0, (0.9, 0.99), 1e-8, None)
    policy, own = learner.engine.optimizer.param_groups
    assert {id(p) for p in own["params"]} == {id(p) for p in model.value_head.parameters()}  # type: ignore[union-attr]
    assert {id(p) for p in policy["params"]} == {id(p) for p in model.lm.parameters()}
    assert learner._set_lr(None) == pytest.approx(0.0025) and own["lr"] == pytest.approx(0.025)
    assert policy["lr"] == pytest.approx(0.0025)


class Remote:
    """A rank as its group sees it; keeps what it was given to learn from."""

    def __init__(self) -> None:
        self.rank, self.lessons = rank(CONFIG), []  # type: ignore[var-annotated]
        self.call = mock.Mock(remote=self._call)

    async def _call(self, policy: str, method: str, samples: list[Sample], *rest: Any) -> Any:
        if method == "step":
            self.lessons += samples
        return getattr(self.rank, method)(samples, *rest)


def test_a_group_compares_over_all_its_ranks() -> None:
    group = object.__new__(LearnerGroup)
    group.policy, group.config, group.seed = "p", CONFIG, 0
    group.dead, group.ranks = "", [Remote(), Remote()]
    samples = [replace(s, rewards_L=[1.0 * i] * len(s.positions_L), tags={"episode": f"e{i // 2}", "seat": "a"})
               for i, s in enumerate(make_samples(8))]  # fmt: skip
    metrics = asyncio.run(group.step(samples))
    expected, about = with_advantages(samples, rank(CONFIG).values(samples), of(gamma=1.0, lam=0.95))
    learned = [sample for remote in group.ranks for sample in remote.lessons]
    assert all(remote.lessons for remote in group.ranks) and len(learned) == 8
    assert {n: metrics[n] for n in about} == pytest.approx(about) and "value_loss" in metrics
    for sample in expected:
        (found,) = [one for one in learned if one.token_ids_S == sample.token_ids_S]
        assert found.advantages_L == pytest.approx(sample.advantages_L, abs=1e-4)
        assert found.returns_L == pytest.approx(sample.returns_L, abs=1e-4)
    for remote in group.ranks:
        remote.lessons.clear()
    asyncio.run(group.step(samples, loss="sft"))
    assert all(sample.returns_L is None for remote in group.ranks for sample in remote.lessons)


# -- what is refused


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (LearnerConfig(advantage=GAE), r"advantage\.kind: gae needs a critic; valid: critic: \{\}.*grpo, .*role_ema"),
        (LearnerConfig(critic=CriticConfig()), r"critic: the advantage 'grpo' does not ask it; valid: .*kind: gae"),
        (replace(CONFIG, loss=LossConfig("sft")), r"critic: the loss 'sft' has no use.*clip, reinforce, gspo, cispo"),
        (replace(CONFIG, loss=LossConfig("dpo")), r"critic: the loss 'dpo' has no use"),
        (replace(CONFIG, signal=SignalConfig("winners")), r"critic: the signal 'winners' does not ask it"),
    ],
)
def test_what_a_critic_cannot_do_is_refused(config: LearnerConfig, says: str) -> None:
    with pytest.raises(LearnerConfigError, match=says):
        check_learner(config, "cpu")


def test_what_a_critic_can_do_is_not() -> None:
    for kind in ("clip", "reinforce", "gspo", "cispo"):
        check_learner(replace(CONFIG, loss=LossConfig(kind)), "cpu")


def test_mistakes_in_yaml_are_named(tmp_path: Path) -> None:
    learner = "policies.debater.learner"
    old = "learner: {advantage: {kind: grpo, group_by: [role]}}\n  proposer"

    def mistakes(new: str) -> dict[str, str]:
        return found(tmp_path, f"{old} => learner: {{{new}}}\n  proposer")

    assert mistakes("advantage: {kind: gae, gamma: 0.99, lam: 1}, critic: {lr: 0.001}") == {}
    assert "needs a critic" in mistakes("advantage: {kind: gae}")[f"{learner}.advantage.kind"]
    assert "does not ask it" in mistakes("advantage: {kind: rloo, group_by: [role]}, critic: {}")[f"{learner}.critic"]
    unread = mistakes("advantage: {kind: gae, discount: 1}, critic: {}")
    assert "which reads gamma, lam" in unread[f"{learner}.advantage.discount"]
    unread = mistakes("advantage: {kind: reinforce, lam: 1}")
    assert "'reinforce', which reads" in unread[f"{learner}.advantage.lam"]
    assert "out of range" in mistakes("advantage: {kind: gae, lam: 2}, critic: {}")[f"{learner}.advantage.lam"]
    assert "out of range" in mistakes("advantage: {kind: gae}, critic: {coef: 0}")[f"{learner}.critic.coef"]


def test_a_state_without_a_critic_is_refused(tmp_path: Path) -> None:
    (tmp_path / "learner.json").write_text('{"ranks": 1, "zero_stage": 0, "dtype": "float32", "lora": null}')
    with pytest.raises(LearnerConfigError, match="saved with critic None, this learner has a value head"):
        rank(CONFIG).load(str(tmp_path))
