"""Which groups of plays reach the learners: `stages.X.keep`. Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Sequence

from configs.schema.run import KeepConfig
from protocols.types import Episode

Play = Sequence[Episode]
"""The root first, then its sub-plays."""


KINDS = ("alike", "easy", "hard")
"""Why groups are refused: nothing to compare, solved too often, solved too rarely."""


class TooManyFiltered(RuntimeError):
    """Nearly every group of a stage is filtered: it would go on for ever without a step."""


class Filter:
    """Refuses groups, and counts what it refused. `learners`: the policies that the stage updates; None: all."""

    def __init__(self, stage: str, keep: KeepConfig, learners: Collection[str] | None, groups_per_step: int):
        self.stage, self.keep, self.learners = stage, keep, learners
        self.most = max(1, math.ceil(keep.limit * groups_per_step))
        self.counts: Counter[str] = Counter()
        """Groups refused, by kind; and those kept without a score."""
        self._since_step = 0
        self._rates: list[float] = []
        """Mean scores of the groups that ended since the last metrics, refused ones too."""

    def reason(self, plays: Sequence[Play]) -> str:
        """Why the group does not reach a learner; empty where it does."""
        kind, reason = self._refusal(plays)
        if reason:
            self.counts[kind] += 1
            self._since_step += 1
        return reason

    def check(self) -> None:
        """Raises `TooManyFiltered`."""
        if self._since_step > self.most:
            kinds = ", ".join(f"{self.counts[kind]} {kind}" for kind in KINDS if self.counts[kind])
            raise TooManyFiltered(
                f"stage {self.stage!r}: {self._since_step} groups were filtered since the last step (so far {kinds}); "
                f"keep.limit allows {self.most}. Other tasks, a wider keep, or a higher limit"
            )

    def step(self) -> None:
        """A step has its groups."""
        self._since_step = 0

    def metrics(self) -> dict[str, float]:
        """`filtered_groups` so far and why; `solve_rate_before_filter` of all groups that ended since the last call:
        what reaches the learner is a choice of them, whose own score says little."""
        refused = {f"filtered_{kind}": float(self.counts[kind]) for kind in KINDS}
        found = {"filtered_groups": sum(refused.values()), **refused, "unscored_groups": float(self.counts["unscored"])}
        rates, self._rates = self._rates, []
        return found | ({"solve_rate_before_filter": sum(rates) / len(rates)} if rates else {})

    def _refusal(self, plays: Sequence[Play]) -> tuple[str, str]:
        rate = solve_rate(plays)
        if rate is not None:
            self._rates.append(rate)
        if self.keep.solve_rate:
            low, high = self.keep.solve_rate
            if rate is None:
                self.counts["unscored"] += 1
            elif not low <= rate <= high:
                return "hard" if rate < low else "easy", f"solve rate {rate:.3g} is not in [{low:g}, {high:g}]"
        if self.keep.signal and alike(plays, self.learners):
            return "alike", "all rewards are alike"
        return "", ""


def solve_rate(plays: Sequence[Play]) -> float | None:
    """Mean score of the root plays that have one (of a root that repeats a child play, that is its solve rate)."""
    scores = [play[0].outcome.score for play in plays if play[0].outcome.score is not None]
    return sum(scores) / len(scores) if scores else None


def alike(plays: Sequence[Play], learners: Collection[str] | None = None) -> bool:
    """Whether nobody of `learners` was paid differently where learners compare: turn by turn, in plays of the same
    task and protocol by the same role in the same situation. Then any credit of the turns is alike, and so is any
    finer grouping. Seats that nobody pays say nothing."""
    paid: dict[Hashable, list[tuple[float | None, ...]]] = defaultdict(list)
    for episode in (episode for play in plays for episode in play if episode.status == "ok"):
        for seat in dict.fromkeys(turn.seat for turn in episode.turns):
            turns = [turn for turn in episode.turns if turn.seat == seat and not turn.read
                     and (learners is None or turn.policy in learners)]  # fmt: skip
            if turns:
                key = (episode.task.id, episode.protocol, turns[0].role, tuple(turn.situation for turn in turns))
                paid[key].append(tuple(_rewards(episode, seat, place) for place in (*[t.turn for t in turns], None)))
    return all(_same(one, rows[0]) for rows in paid.values() for one in rows)


def _rewards(episode: Episode, seat: str, turn: int | None) -> float | None:
    """What a seat was paid for one turn (None: for the whole episode); None where it was not paid."""
    values = [reward.value for reward in episode.outcome.rewards if (reward.seat, reward.turn) == (seat, turn)]
    return math.fsum(values) if values else None


def _same(one: Sequence[float | None], other: Sequence[float | None]) -> bool:
    """Equal but for rounding."""
    return all(
        a == b or (a is not None and b is not None and math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9))
        for a, b in zip(one, other, strict=True)
    )
