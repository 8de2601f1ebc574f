"""Episodes become samples: each turn of a policy gets a credit, then an advantage or a weight, then a sequence.

1. Credit: what a turn was paid (learners/credit/turns.py).
2. Advantage: credits are compared within groups of equal `group_by` values; with `turn` among them (the default),
   never across an agent's own turns (learners/credit/advantages.py). Signals that imitate give a turn a weight instead
   (learners/credit/signals.py). The signal `truth` learns from the questions that a judge was asked, not from its turns
   (learners/credit/truth.py).
3. Sequence: turns of one growing chat are packed together (learners/credit/sequences.py).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, MutableMapping, Sequence

import numpy as np

from configs.methods import ADVANTAGES, GROUP_FIELDS, SIGNALS
from configs.schema.run import AdvantageConfig, SignalConfig
from learners.credit.advantages import CreditBatch, Key, by_advantage, is_flat, members
from learners.credit.sequences import to_sequences
from learners.credit.truth import Answers, truth_samples
from learners.credit.turns import (
    LEVEL,
    CreditedTurn,
    by_seat,
    credited_turns,
    keys_of,
    loss_steps,
    valid_episodes,
)
from learners.types import Sample
from protocols.errors import UserError
from protocols.types import Episode


class UnknownSetting(UserError):
    """A setting that names nothing that is registered."""

    def __init__(self, key: str, value: str, valid: tuple[str, ...]):
        super().__init__(key, value, valid)
        self.key, self.value, self.valid = key, value, valid

    def __str__(self) -> str:
        return f"{self.key}: {self.value!r} is not known; valid: {', '.join(self.valid)}"


def check_settings(config: AdvantageConfig, signal: SignalConfig) -> None:
    """Raises UnknownSetting for a signal, an advantage estimator or a group field that is not registered."""
    if signal.kind not in SIGNALS:
        raise UnknownSetting("signal.kind", signal.kind, tuple(SIGNALS))
    if config.kind not in ADVANTAGES:
        raise UnknownSetting("advantage.kind", config.kind, tuple(ADVANTAGES))
    for key in ("group_by", "baseline_by"):
        for name in getattr(config, key):
            if name not in GROUP_FIELDS:
                raise UnknownSetting(f"advantage.{key}", name, tuple(GROUP_FIELDS))


def build_samples(
    episodes: Iterable[Episode],
    policy: str,
    config: AdvantageConfig,
    baselines: MutableMapping[str, float] | None = None,
    signal: SignalConfig | None = None,
    answers: Answers | None = None,
) -> tuple[list[Sample], dict[str, float]]:
    """The samples of `policy`, and metrics about them (named in `sample_metrics`).

    `signal`: None is advantages. `answers`: which right answers may be learned from; None: all. `baselines`: the
    policy's moving averages, which `role_ema` reads and moves; keep them from batch to batch. Raises UnknownSetting.
    """
    signal, answers = signal or SignalConfig(), answers or Answers()
    check_settings(config, signal)
    needs = SIGNALS.needs(signal.kind)
    if "polls" in needs:
        built: tuple[list[Sample], dict[str, float]] = truth_samples(episodes, policy, signal.consistency, answers)
        return built
    counts: Counter[str] = Counter()
    turns = credited_turns(episodes, policy, config, counts, answers)
    if "advantage" not in needs:
        _set_weights(turns, config, signal, counts)
    elif "critic" in ADVANTAGES.needs(config.kind):
        _set_paid(turns)
    else:
        _set_advantages(turns, config, {} if baselines is None else baselines, counts)
    samples = to_sequences([turn for turn in turns if turn.live])
    return samples, sample_metrics(turns, samples, counts)


def imitation_samples(episodes: Iterable[Episode], roles: Collection[str]) -> list[Sample]:
    """Supervised samples from the turns of `roles` (plays by teachers): every token of a reply has weight 1.

    Reads train too where their trace holds the target's tokens. Where decoding was limited to choices,
    the sample has the same mask. Episodes that are not ok are skipped.
    """
    turns = [
        CreditedTurn(episode, turn, turn.trace, credit=1.0, group=turn.role, advantage=1.0)
        for episode in valid_episodes(episodes, Counter())
        for own in by_seat(turn for turn in episode.turns if turn.role in roles)
        for turn in own
        if turn.trace is not None and loss_steps(turn.trace)
    ]
    return to_sequences(turns)


def _set_advantages(
    turns: Sequence[CreditedTurn],
    config: AdvantageConfig,
    baselines: MutableMapping[str, float],
    counts: Counter[str],
) -> None:
    reads = ADVANTAGES.reads(config.kind)
    fields = config.baseline_by if "baseline_by" in reads else config.group_by if "group_by" in reads else []
    if "parent" in ADVANTAGES.needs(config.kind) and "parent" not in fields:
        fields = [*fields, "parent"]
    keys_B = keys_of(turns, fields)
    batch = CreditBatch(
        credits_B=np.array([turn.credit for turn in turns]),
        keys_B=keys_B,
        trajectories_B=[(turn.episode.id, turn.turn.seat) for turn in turns],
        levels_B=keys_of(turns, LEVEL),
        baselines=baselines,
    )
    advantages_B = by_advantage(batch, config)
    for index in _count_groups(turns, keys_B, fields, counts):
        live = bool(advantages_B[index].any())
        for i in index:
            turns[i].advantage, turns[i].live = float(advantages_B[i]), live


def _set_paid(turns: Sequence[CreditedTurn]) -> None:
    """For a critic: the rewards themselves. A credit is all that is still to come, so less the next one it is what was
    paid in between; what a forced turn in between was paid belongs to the choice before it."""
    for i, turn in enumerate(turns):
        after = turns[i + 1] if i + 1 < len(turns) else None
        same = after is not None and (after.episode.id, after.turn.seat) == (turn.episode.id, turn.turn.seat)
        turn.paid, turn.live = turn.credit - (after.credit if after is not None and same else 0.0), True


def _set_weights(
    turns: Sequence[CreditedTurn], config: AdvantageConfig, signal: SignalConfig, counts: Counter[str]
) -> None:
    for index in _count_groups(turns, keys_of(turns, config.group_by), config.group_by, counts):
        weights_G = SIGNALS[signal.kind](np.array([turns[i].credit for i in index]), signal)
        for i, weight in zip(index, weights_G):
            turns[i].advantage, turns[i].live = float(weight), bool(weight > 0)


def _count_groups(
    turns: Sequence[CreditedTurn], keys_B: Sequence[Key], fields: Sequence[str], counts: Counter[str]
) -> Iterator[list[int]]:
    """The indices of each group's turns. Writes the group's name into its turns, and counts it."""
    for key, index in members(keys_B).items():
        counts["groups"] += 1
        counts["singleton_groups"] += len(index) == 1
        credits_G = np.array([turns[i].credit for i in index])
        counts["zero_variance_groups"] += len(index) > 1 and is_flat(credits_G)
        for i in index:
            turns[i].group = " ".join(f"{field}={value}" for field, value in zip(fields, key))
        yield index


def sample_metrics(
    turns: Sequence[CreditedTurn], samples: Sequence[Sample], counts: Counter[str]
) -> dict[str, float]:
    """Counts of what trained and what did not, and per role the mean credit and its spread."""
    names = (
        "episodes_ok", "episodes_invalid", "episodes_lost", "turns", "turns_without_reward",
        "turns_without_trace", "turns_forced", "rewards_unmatched", "rewards_untrusted", "groups", "singleton_groups",
        "zero_variance_groups",
    )  # fmt: skip
    metrics = {name: float(counts[name]) for name in names}
    metrics["turns_trained"] = float(sum(turn.live for turn in turns))
    metrics["samples"] = float(len(samples))
    metrics["loss_tokens"] = float(sum(len(sample.positions_L) for sample in samples))
    credits_of: dict[str, list[float]] = defaultdict(list)
    for turn in turns:
        credits_of[turn.turn.role].append(turn.credit)
    for role, credits in credits_of.items():
        metrics[f"credit_mean/{role}"] = float(np.mean(credits))
        metrics[f"credit_std/{role}"] = float(np.std(credits))
    return metrics
