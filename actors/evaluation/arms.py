"""Arms: one protocol, one set of players, held-out tasks. What a run reports comes from here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from actors.evaluation.stats import Interval, health_metrics, proportion
from actors.players.base import Seated
from actors.rollout.loop import play_all
from actors.rollout.metrics import step_metrics
from protocols.base import Protocol
from protocols.kinds.propose_solve import ProposeSolve
from protocols.types import Episode, Task
from tasks.base import TaskSource


async def play_arm(
    protocol: Protocol, tasks: Sequence[Task], players: Mapping[str, Seated], name: str, seed: int
) -> list[list[Episode]]:
    """Plays the arm's protocol once on every held-out task."""
    return await play_all(protocol, tasks, players, name, seed)


def heldout_tasks(source: TaskSource, protocol: Protocol, n: int, seed: int) -> list[Task]:
    """Held-out tasks that `protocol` can be played on: root tasks where a proposer comes first, else derived ones."""
    if isinstance(protocol, ProposeSolve):
        return source.heldout(n, seed)
    return source.derived_heldout(n, seed)


def arm_metrics(plays: Sequence[Sequence[Episode]]) -> dict[str, float]:
    """What an arm tells besides its score: the mean of each reward by role (the players' objectives), and how the
    judges did (`stats.health_metrics`), over the plays and their sub-plays."""
    episodes = [episode for play in plays for episode in play if episode.status == "ok"]
    rewards = {name: value for name, value in step_metrics(episodes).items() if name.startswith("reward/")}
    return rewards | health_metrics(episodes)


def score(plays: Sequence[Sequence[Episode]], cluster: Callable[[Task], str]) -> Interval:
    """Share of plays with score 1 and its 95% interval over clusters (`TaskSource.cluster`: one image, say).

    Plays without a score (invalid, lost) are missing data: left out, and visible in `n`.
    """
    roots = [play[0] for play in plays if play[0].outcome.score is not None]
    values = [float(root.outcome.score or 0.0) for root in roots]
    return proportion(values, [cluster(root.task) for root in roots])


def score_by(plays: Sequence[Sequence[Episode]], bucket: Callable[[Task], str | None]) -> dict[str, float]:
    """Mean score in each bucket of tasks (list length, say), in numerical order; empty without buckets."""
    found: dict[str, list[float]] = {}
    for play in plays:
        name, value = bucket(play[0].task), play[0].outcome.score
        if name is not None and value is not None:
            found.setdefault(name, []).append(float(value))
    return {name: sum(found[name]) / len(found[name]) for name in sorted(found, key=lambda n: (len(n), n))}
