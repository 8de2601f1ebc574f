"""Credit: which turns of a policy may train, and what each was paid.

With `credit: turn`, a turn's credit is the sum of its own rewards, plus `discount` times the credit of the seat's next
turn. A reward for the whole episode (`turn` None) is credited in full to every turn of the seat: what adding it to
the last turn and discounting it by 1 would give. With `credit: trajectory`, every turn is credited with the sum of all
that its seat was paid. A turn that nothing rewards is missing data, not a zero: it trains nothing and is counted.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from configs.methods import ADVANTAGES, GROUP_FIELDS
from configs.schema.run import AdvantageConfig
from learners.credit.advantages import Key
from learners.credit.truth import Answers
from protocols.rewards.registry import REWARDS
from protocols.types import Episode, TokenTrace, Turn

LEVEL = ("protocol", "role")
"""The group fields that turns on one level of play have in common."""


@dataclass(slots=True)
class CreditedTurn:
    """One turn that may train."""

    episode: Episode
    turn: Turn
    trace: TokenTrace
    credit: float
    group: str = ""
    advantage: float = 0.0
    live: bool = False
    """Whether it trains: some member of its group has an advantage, or (imitation) it has a weight itself."""
    paid: float | None = None
    """With a critic: what the seat was paid from this turn on until its next one that trains."""


# -- what forms a group


GROUP_FIELDS.register("task")(lambda episode, turn: episode.task.id)
GROUP_FIELDS.register("protocol")(lambda episode, turn: episode.protocol)
GROUP_FIELDS.register("role")(lambda episode, turn: turn.role)
GROUP_FIELDS.register("situation")(lambda episode, turn: turn.situation)
GROUP_FIELDS.register("turn")(lambda episode, turn: str(turn.turn))
GROUP_FIELDS.register("seat")(lambda episode, turn: turn.seat)
GROUP_FIELDS.register("parent")(lambda episode, turn: episode.parent or "")


@GROUP_FIELDS.register("opponent")
def opponent(episode: Episode, turn: Turn) -> str:
    """The policies of the other seats that took turns, without judges that were only read; "" where there are none.

    A seat of the turn's own policy is an opponent too (self-play)."""
    others = {other.policy for other in episode.turns if other.seat != turn.seat and not other.read}
    return "+".join(sorted(others))


@GROUP_FIELDS.register("prompt")
def prompt(episode: Episode, turn: Turn) -> str:
    """A digest of all the tokens that a turn was sampled after; "" without a trace.

    Equal where seats had the same history up to here, whatever they do afterwards: the anchor states of arXiv
    2505.10978, branches of one prefix."""
    if turn.trace is None:
        return ""
    ids = np.array(turn.trace.prompt_ids_P, dtype="<i8").tobytes()  # fixed width: no two lists have the same bytes
    return hashlib.blake2b(ids, digest_size=12).hexdigest()


def keys_of(turns: Sequence[CreditedTurn], fields: Sequence[str]) -> list[Key]:
    """The group key of each turn."""
    return [tuple([GROUP_FIELDS[name](one.episode, one.turn) for name in fields]) for one in turns]


# -- credit


def credited_turns(
    episodes: Iterable[Episode], policy: str, config: AdvantageConfig, counts: Counter[str], answers: Answers | None
) -> list[CreditedTurn]:
    """Every turn of `policy` that may train, with its credit. Adds the others to `counts`, by why they do not.

    `answers`: rewards that are made of right answers count only for tasks whose answers the learner may know."""
    return [
        turn
        for episode in valid_episodes(episodes, counts)
        for turn in _credited(episode, policy, config, counts, answers)
    ]


def valid_episodes(episodes: Iterable[Episode], counts: Counter[str]) -> Iterator[Episode]:
    """The episodes that may train: none that is invalid or lost."""
    for episode in episodes:
        counts[f"episodes_{episode.status}"] += 1
        if episode.status == "ok":
            yield episode


def by_seat(turns: Iterable[Turn]) -> list[list[Turn]]:
    """The turns of each seat, in the order they were taken."""
    turns_of: dict[str, list[Turn]] = defaultdict(list)
    for turn in turns:
        turns_of[turn.seat].append(turn)
    return list(turns_of.values())


def loss_steps(trace: TokenTrace) -> list[int]:
    """Which tokens of a reply carry loss: those that were not the only legal one."""
    if not trace.allowed_T:
        return list(range(len(trace.output_ids_T)))
    return [step for step, allowed in enumerate(trace.allowed_T) if len(allowed) > 1]


def _credited(
    episode: Episode, policy: str, config: AdvantageConfig, counts: Counter[str], answers: Answers | None
) -> Iterator[CreditedTurn]:
    rewards = _rewards(episode, answers, counts)
    own = [turn for turn in episode.turns if turn.policy == policy and not turn.read]
    for turns in by_seat(own):
        taken = {turn.turn for turn in turns}
        counts["rewards_unmatched"] += sum(
            seat == turns[0].seat and index is not None and index not in taken for seat, index in rewards
        )
        for turn, credit in zip(turns, _credits(turns, rewards, config)):
            counts["turns"] += 1
            if credit is None:
                counts["turns_without_reward"] += 1
            elif turn.trace is None or not turn.trace.output_ids_T:
                counts["turns_without_trace"] += 1
            elif not loss_steps(turn.trace):
                counts["turns_forced"] += 1
            else:
                yield CreditedTurn(episode, turn, turn.trace, credit)


def _rewards(
    episode: Episode, answers: Answers | None, counts: Counter[str]
) -> dict[tuple[str, int | None], float]:
    """(seat, turn) -> sum of its rewards, turn None: for the whole episode."""
    rewards: dict[tuple[str, int | None], float] = defaultdict(float)
    untrusted = answers is not None and not answers.known(episode.task)
    for reward in episode.outcome.rewards:
        if untrusted and reward.name in REWARDS and REWARDS[reward.name].needs == "verdicts":
            counts["rewards_untrusted"] += 1
            continue
        assert math.isfinite(reward.value), f"episode {episode.id}: reward {reward.name!r} is {reward.value}"
        rewards[reward.seat, reward.turn] += reward.value
    return rewards


def _credits(
    turns: Sequence[Turn], rewards: Mapping[tuple[str, int | None], float], config: AdvantageConfig
) -> list[float | None]:
    """Credit of each of a seat's turns; None where no reward reaches it."""
    critic = "critic" in ADVANTAGES.needs(config.kind)  # takes all that is still to come
    if config.credit == "trajectory" and not critic:
        paid = [value for (seat, _), value in rewards.items() if seat == turns[0].seat]
        return [math.fsum(paid) if paid else None] * len(turns)
    discount = 1.0 if critic else config.discount
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
