"""Episodes -> Samples: which turns train, what each is worth, and how they pack into sequences.

1. *Credit.* With `credit: turn`, a turn's credit is the sum of its own rewards, plus `discount` times the
   credit of the seat's next turn. A reward for the whole episode (`turn` None) is credited in full to every
   turn of the seat: what adding it to the last turn and discounting it by 1 would give. With `credit:
   trajectory`, every turn is credited with the sum of all that its seat was paid. A turn that nothing rewards
   is missing data, not a zero: it trains nothing and is counted.
2. *Advantage.* Credits are compared within groups of equal `group_by` values; with `turn` among them (the
   default), never across an agent's own turns. `role_ema` compares with moving averages, one for each
   combination of `baseline_by` values; `reinforce_pp` with the whole batch; `hierarchical` within one parent play.
   Other signals than `advantage` give a turn a weight instead: whether, and how much, to imitate it
   (learners/credit/signals.py). `truth` learns from the questions that a judge was asked, not from its turns
   (learners/credit/truth.py).
3. *Packing.* The turns of a seat share a sequence while its chat only grew, checked on token ids.

Only sampled tokens carry loss: not prompts, not tokens that were the only legal one, not reads.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import numpy as np

from configs.methods import ADVANTAGE_USES, SIGNAL_USES
from configs.schema.run import AdvantageConfig, SignalConfig
from learners.credit.advantages import ADVANTAGES, OVER_LEVEL, Key, compare, groups, is_flat
from learners.credit.signals import SIGNALS
from learners.credit.truth import Answers, truth_samples
from learners.types import Sample
from protocols.errors import UserError
from protocols.rewards.registry import REWARDS
from protocols.types import Episode, TokenTrace, Turn

GROUP_FIELDS: Mapping[str, Callable[[Episode, Turn], str]] = {
    "task": lambda episode, turn: episode.task.id,
    "protocol": lambda episode, turn: episode.protocol,
    "role": lambda episode, turn: turn.role,
    "situation": lambda episode, turn: turn.situation,
    "turn": lambda episode, turn: str(turn.turn),
    "seat": lambda episode, turn: turn.seat,
    "opponent": lambda episode, turn: _opponent(episode, turn),
    "parent": lambda episode, turn: episode.parent or "",
    "prompt": lambda episode, turn: _prompt(turn),
}
"""What `group_by` and `baseline_by` may name."""

LEVEL = ("protocol", "role")
"""What turns of one level of play have in common (advantages.OVER_LEVEL)."""


class UnknownSetting(UserError):
    """A setting that names nothing there is."""

    def __init__(self, key: str, value: str, valid: tuple[str, ...]):
        super().__init__(key, value, valid)
        self.key, self.value, self.valid = key, value, valid

    def __str__(self) -> str:
        return f"{self.key}: {self.value!r} is not known; valid: {', '.join(self.valid)}"


@dataclass(slots=True)
class Step:
    """One turn that may train."""

    episode: Episode
    turn: Turn
    trace: TokenTrace
    credit: float
    group: str = ""
    advantage: float = 0.0
    live: bool = False
    """Whether any member of its group has an advantage; other signals: whether it has a weight itself."""
    paid: float | None = None
    """gae: what the seat was paid from this turn on until its next one that trains."""


def build_samples(
    episodes: Iterable[Episode],
    policy: str,
    config: AdvantageConfig,
    baselines: MutableMapping[str, float] | None = None,
    signal: SignalConfig | None = None,
    answers: Answers | None = None,
) -> tuple[list[Sample], dict[str, float]]:
    """The samples of `policy`, and figures about them (names below in `figures_of`). `signal` None: advantages.
    `answers`: which right answers may be learned from; None: all.

    `baselines`: the policy's moving averages, which `role_ema` reads and moves; keep them from batch to batch.
    Raises `UnknownSetting`.
    """
    signal, answers = signal or SignalConfig(), answers or Answers()
    check_settings(config, signal)
    if signal.kind == "truth":
        return truth_samples(episodes, policy, signal.consistency, answers)
    counts: Counter[str] = Counter()
    steps = rewarded_steps(episodes, policy, config, counts, answers)
    if signal.kind == "advantage" and config.kind == "gae":
        _set_paid(steps)
    elif signal.kind == "advantage":
        _set_advantages(steps, config, {} if baselines is None else baselines, counts)
    else:
        _set_weights(steps, config, signal, counts)
    samples = pack([step for step in steps if step.live])
    return samples, figures_of(steps, samples, counts)


def imitation_samples(episodes: Iterable[Episode], roles: Collection[str]) -> list[Sample]:
    """Supervised samples from the turns of `roles` (plays by teachers): every token of a reply has weight 1.

    Reads train too where their trace holds the target's tokens. Where decoding was limited to choices,
    the sample has the same mask. Episodes that are not ok are skipped.
    """
    steps = [
        Step(episode, turn, turn.trace, credit=1.0, group=turn.role, advantage=1.0)
        for episode in _grounded(episodes, Counter())
        for turns in _seats(turn for turn in episode.turns if turn.role in roles)
        for turn in turns
        if turn.trace is not None and _loss_steps(turn.trace)
    ]
    return pack(steps)


# -- credit


def rewarded_steps(
    episodes: Iterable[Episode], policy: str, config: AdvantageConfig, counts: Counter[str], answers: Answers | None
) -> list[Step]:
    """Every turn of `policy` that may train, with its credit. Counts the others."""
    return [
        step
        for episode in _grounded(episodes, counts)
        for step in _rewarded(episode, policy, config, counts, answers)
    ]

def _grounded(episodes: Iterable[Episode], counts: Counter[str]) -> Iterator[Episode]:
    """The episodes that may train: nothing that is invalid or lost does."""
    for episode in episodes:
        counts[f"episodes_{episode.status}"] += 1
        if episode.status == "ok":
            yield episode


def _seats(turns: Iterable[Turn]) -> list[list[Turn]]:
    """The turns of each seat, in the order they were taken."""
    by_seat: dict[str, list[Turn]] = defaultdict(list)
    for turn in turns:
        by_seat[turn.seat].append(turn)
    return list(by_seat.values())


def _rewarded(
    episode: Episode,
    policy: str,
    config: AdvantageConfig,
    counts: Counter[str],
    answers: Answers | None = None,
) -> Iterator[Step]:
    """The turns of `policy` that were sampled and rewarded, with their credit. Counts the others."""
    rewards: dict[tuple[str, int | None], float] = defaultdict(float)
    hidden = answers is not None and not answers.known(episode.task)
    for reward in episode.outcome.rewards:
        if hidden and reward.name in REWARDS and REWARDS[reward.name].needs == "verdicts":
            counts["rewards_untrusted"] += 1
            continue
        assert math.isfinite(reward.value), f"episode {episode.id}: reward {reward.name!r} is {reward.value}"
        rewards[reward.seat, reward.turn] += reward.value
    own = [turn for turn in episode.turns if turn.policy == policy and not turn.read]
    credits: list[float | None]
    for turns in _seats(own):
        taken = {turn.turn for turn in turns}
        counts["rewards_unmatched"] += sum(
            seat == turns[0].seat and index is not None and index not in taken for seat, index in rewards
        )
        if config.kind == "gae":  # all that is still to come: see _set_paid
            credits = _credits(turns, rewards, 1.0)
        elif config.credit == "trajectory":
            paid = [value for (seat, _), value in rewards.items() if seat == turns[0].seat]
            credits = [math.fsum(paid) if paid else None] * len(turns)
        else:
            credits = _credits(turns, rewards, config.discount)
        for turn, credit in zip(turns, credits):
            counts["turns"] += 1
            if credit is None:
                counts["turns_without_reward"] += 1
            elif turn.trace is None or not turn.trace.output_ids_T:
                counts["turns_without_trace"] += 1
            elif not _loss_steps(turn.trace):
                counts["turns_forced"] += 1
            else:
                yield Step(episode, turn, turn.trace, credit)


def _credits(
    turns: Sequence[Turn], rewards: Mapping[tuple[str, int | None], float], discount: float
) -> list[float | None]:
    """Credit of each of a seat's turns; None where no reward reaches it."""
    credits: list[float | None] = []
    following: float | None = None
    for turn in reversed(turns):
        own = rewards.get((turn.seat, turn.turn))
        reached = following is not None and discount != 0.0
        following = (own or 0.0) + discount * (following or 0.0) if own is not None or reached else None
        credits.append(following)
    whole = rewards.get((turns[0].seat, None))
    if whole is not None:
        credits = [(credit or 0.0) + whole for credit in credits]
    return credits[::-1]


# -- advantage


def check_settings(config: AdvantageConfig, signal: SignalConfig) -> None:
    if signal.kind not in SIGNAL_USES:
        raise UnknownSetting("signal.kind", signal.kind, tuple(SIGNAL_USES))
    if config.kind not in ADVANTAGES:
        raise UnknownSetting("advantage.kind", config.kind, tuple(ADVANTAGES))
    for key in ("group_by", "baseline_by"):
        for name in getattr(config, key):
            if name not in GROUP_FIELDS:
                raise UnknownSetting(f"advantage.{key}", name, tuple(GROUP_FIELDS))


def _opponent(episode: Episode, turn: Turn) -> str:
    """The policies of the other seats that took turns, judges that were only read apart; "" without any.
    A seat of one's own policy is an opponent too (self-play)."""
    others = {other.policy for other in episode.turns if other.seat != turn.seat and not other.read}
    return "+".join(sorted(others))


def _prompt(turn: Turn) -> str:
    """A digest of all the tokens that a turn was sampled after; "" without a trace. Equal where seats had the same
    history up to here, whatever they do afterwards: the anchor states of arXiv 2505.10978, branches of one prefix."""
    if turn.trace is None:
        return ""
    ids = np.array(turn.trace.prompt_ids_P, dtype="<i8").tobytes()  # fixed width: no two lists have the same bytes
    return hashlib.blake2b(ids, digest_size=12).hexdigest()


def _set_advantages(
    steps: Sequence[Step],
    config: AdvantageConfig,
    baselines: MutableMapping[str, float],
    counts: Counter[str],
) -> None:
    used = ADVANTAGE_USES[config.kind]
    fields = config.baseline_by if "baseline_by" in used else config.group_by if "group_by" in used else []
    if config.kind in OVER_LEVEL and "parent" not in fields:
        fields = [*fields, "parent"]
    keys_B, levels_B = keys_of(steps, fields), keys_of(steps, LEVEL)
    credits_B = np.array([step.credit for step in steps])
    trajectories_B = [(step.episode.id, step.turn.seat) for step in steps]
    advantages_B = compare(config.kind, credits_B, keys_B, trajectories_B, config.decay, baselines, levels_B)
    for members in _count_groups(steps, keys_B, fields, counts):
        live = bool(advantages_B[members].any())
        for i in members:
            steps[i].advantage, steps[i].live = float(advantages_B[i]), live


def _set_paid(steps: Sequence[Step]) -> None:
    """For a critic: the rewards themselves. A credit is all that is still to come, so the next one is what remains;
    what a forced turn in between was paid belongs to the choice before it."""
    for i, step in enumerate(steps):
        after = steps[i + 1] if i + 1 < len(steps) else None
        same = after is not None and (after.episode.id, after.turn.seat) == (step.episode.id, step.turn.seat)
        step.paid, step.live = step.credit - (after.credit if after is not None and same else 0.0), True


def _set_weights(
    steps: Sequence[Step], config: AdvantageConfig, signal: SignalConfig, counts: Counter[str]
) -> None:
    for members in _count_groups(steps, keys_of(steps, config.group_by), config.group_by, counts):
        weights_G = SIGNALS[signal.kind](np.array([steps[i].credit for i in members]), signal)
        for i, weight in zip(members, weights_G):
            steps[i].advantage, steps[i].live = float(weight), bool(weight > 0)


def keys_of(steps: Sequence[Step], fields: Sequence[str]) -> list[Key]:
    return [tuple([GROUP_FIELDS[name](step.episode, step.turn) for name in fields]) for step in steps]


def _count_groups(
    steps: Sequence[Step], keys_B: Sequence[Key], fields: Sequence[str], counts: Counter[str]
) -> Iterator[list[int]]:
    """The members of each group, as indices of `steps`. Names and counts it."""
    for key, members in groups(keys_B).items():
        counts["groups"] += 1
        counts["singleton_groups"] += len(members) == 1
        credits_G = np.array([steps[i].credit for i in members])
        counts["zero_variance_groups"] += len(members) > 1 and is_flat(credits_G)
        for i in members:
            steps[i].group = " ".join(f"{field}={value}" for field, value in zip(fields, key))
        yield members


# -- packing


def _loss_steps(trace: TokenTrace) -> list[int]:
    """Which of the reply's tokens were a choice at all."""
    if not trace.allowed_T:
        return list(range(len(trace.output_ids_T)))
    return [step for step, allowed in enumerate(trace.allowed_T) if len(allowed) > 1]


def pack(steps: Sequence[Step]) -> list[Sample]:
    """One sample per seat and episode while its chat only grew; a new one where it did not.

    `steps` have the turns of a seat in order and side by side. A sample has one temperature, and either all
    of its tokens have a mask or none has: turns that differ start a new one.
    """
    samples: list[Sample] = []
    seat: tuple[str, str] | None = None
    for step in steps:
        trace, turn = step.trace, step.turn
        last = samples[-1] if samples and seat == (step.episode.id, turn.seat) else None
        if last is None or not _continues(last, trace):
            last = _start(step)
            samples.append(last)
        elif step.group not in last.group.split("; "):
            last.group += f"; {step.group}"
        seat = (step.episode.id, turn.seat)
        _append(last, step)
    return samples


def _continues(sample: Sample, trace: TokenTrace) -> bool:
    length = len(sample.token_ids_S)
    return (
        sample.temperature == trace.temperature
        and (sample.allowed_L is not None) == bool(trace.allowed_T)
        and sample.token_ids_S == list(trace.prompt_ids_P[:length])
    )


def _start(step: Step) -> Sample:
    turn = step.turn
    tags = {"episode": step.episode.id, "seat": turn.seat, "role": turn.role}
    masked = bool(step.trace.allowed_T)
    allowed_L: list[tuple[int, ...]] | None = [] if masked else None
    return Sample([], [], [], [], [], allowed_L, step.trace.temperature, step.group, tags, segments_L=[])


def _append(sample: Sample, step: Step) -> None:
    trace = step.trace
    start = len(trace.prompt_ids_P)
    length = len(trace.output_ids_T)
    assert start > 0, "the first token of a sequence cannot be predicted"
    assert len(trace.versions_T) == length and len(trace.logprobs_T) in (0, length), (
        "trace of unequal lengths"
    )
    sample.token_ids_S = [*trace.prompt_ids_P, *trace.output_ids_T]
    loss_steps = _loss_steps(trace)
    sample.positions_L += [start + i for i in loss_steps]
    sample.advantages_L += [step.advantage] * len(loss_steps)
    sample.logprobs_L += [trace.logprobs_T[i] if trace.logprobs_T else 0.0 for i in loss_steps]
    sample.versions_L += [trace.versions_T[i] for i in loss_steps]
    if step.paid is not None:
        sample.rewards_L = [*(sample.rewards_L or ()), *[0.0] * (len(loss_steps) - 1), step.paid]
    assert sample.segments_L is not None
    sample.segments_L += [max(sample.segments_L, default=-1) + 1] * len(loss_steps)
    if sample.allowed_L is not None:
        sample.allowed_L += [trace.allowed_T[i] for i in loss_steps]


# -- figures


def figures_of(steps: Sequence[Step], samples: Sequence[Sample], counts: Counter[str]) -> dict[str, float]:
    """Counts of what trained and what did not, and per role the mean credit and its spread."""
    names = (
        "episodes_ok", "episodes_invalid", "episodes_lost", "turns", "turns_without_reward",
        "turns_without_trace", "turns_forced", "rewards_unmatched", "rewards_untrusted", "groups", "singleton_groups",
        "zero_variance_groups",
    )  # fmt: skip
    metrics = {name: float(counts[name]) for name in names}
    metrics["turns_trained"] = float(sum(step.live for step in steps))
    metrics["samples"] = float(len(samples))
    metrics["loss_tokens"] = float(sum(len(sample.positions_L) for sample in samples))
    by_role: dict[str, list[float]] = defaultdict(list)
    for step in steps:
        by_role[step.turn.role].append(step.credit)
    for role, credits in by_role.items():
        metrics[f"credit_mean/{role}"] = float(np.mean(credits))
        metrics[f"credit_std/{role}"] = float(np.std(credits))
    return metrics
