"""What a step's plays come to, as figures for the dashboard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from protocols.types import Episode


def step_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Means over the plays of one learner step: score per protocol, reward per role and turn, protocol metrics,
    share of rejected or truncated turns and tokens of a turn per role, and how many steps the newest weights are
    ahead of each token's."""
    values: dict[str, list[float]] = defaultdict(list)
    for episode in episodes:
        outcome = episode.outcome
        if outcome.score is not None:
            values[f"score/{episode.protocol}"].append(outcome.score)
        for name, value in outcome.metrics.items():
            values[f"{episode.protocol}/{name}"].append(value)
        roles = {turn.seat: turn.role for turn in episode.turns}
        for reward in outcome.rewards:
            values[f"reward/{roles.get(reward.seat, reward.seat)}/{reward.name}"].append(reward.value)
        for turn in episode.turns:
            if not turn.read:
                values[f"truncated/{turn.role}"].append(float(turn.truncated))
                if turn.trace is not None:
                    values[f"length/{turn.role}"].append(float(len(turn.trace.output_ids_T)))
    figures = {name: sum(found) / len(found) for name, found in values.items()}
    sampled = [turn.trace for episode in episodes for turn in episode.turns if turn.trace is not None]
    figures["tokens"] = float(sum(len(trace.output_ids_T) for trace in sampled))
    figures["episodes_in_step"] = float(len(episodes))
    return figures


def versions(episodes: Iterable[Episode], policy: str) -> list[int]:
    """The version of every token that `policy` sampled."""
    return [
        version
        for episode in episodes
        for turn in episode.turns
        if turn.policy == policy and turn.trace is not None
        for version in turn.trace.versions_T
    ]
