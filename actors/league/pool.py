"""League: opponent checkpoints of the policies that learn, how each learner fares against them, and who is met next.

Pure bookkeeping: weights and engines are elsewhere (driver/league.py, actors/league/opponents.py). Axis N:
candidates, oldest first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from actors.league.ratings import Results
from protocols.types import Episode

DECAY = 0.99
"""Weight of a pair's earlier plays at each new one: a learner changes, and what it once lost says little (AlphaStar's
pseudocode, Vinyals et al. 2019, Nature 575, has the same number)."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The weights of a policy after so many learner steps."""

    policy: str
    version: int
    folder: str
    """Where the weights lie, in Hugging Face format."""

    @property
    def name(self) -> str:
        """What it is called in records: `policy@version`."""
        return f"{self.policy}@{self.version}"


# ---- whom to meet: `rates_N` (how often the learner beats each, in [0, 1]) to weights


def latest(rates_N: Sequence[float], power: float) -> list[float]:
    """The newest only: the policy of a while ago (SPIN, arXiv 2401.01335, trains against the last iterate)."""
    return [0.0] * (len(rates_N) - 1) + [1.0]


def uniform(rates_N: Sequence[float], power: float) -> list[float]:
    """All alike: fictitious play, a best response to the average of the past (Heinrich et al. 2015)."""
    return [1.0] * len(rates_N)


def pfsp(rates_N: Sequence[float], power: float) -> list[float]:
    """(1 - p)^power: who is hard to beat is met most. Prioritised fictitious self-play, f_hard of AlphaStar
    (Vinyals et al. 2019, Nature 575, Methods), which uses power 2."""
    return [(1.0 - rate) ** power for rate in rates_N]


def pfsp_even(rates_N: Sequence[float], power: float) -> list[float]:
    """p (1 - p): who is about as strong is met most. f_var of AlphaStar, for those who still lose to nearly all."""
    return [rate * (1.0 - rate) for rate in rates_N]


Rule = Callable[[Sequence[float], float], list[float]]

RULES: dict[str, Rule] = {"latest": latest, "uniform": uniform, "pfsp": pfsp, "pfsp_even": pfsp_even}
"""How opponent checkpoints are chosen, by the names in `opponents.mix`; `self` and `fixed`, its other two, need no
past."""


class League:
    """The opponent checkpoints of a run and every learner's luck against them."""

    def __init__(self) -> None:
        self.pool: list[Snapshot] = []
        """Oldest first."""
        self.results = Results()
        """Plays of opponent checkpoints against each other, all with weights that no longer change: what ratings
        rest on."""
        self._tallies: dict[tuple[str, str], list[float]] = {}
        """(learner, opponent) -> [won, played], both fading by DECAY."""

    def of(self, policies: Collection[str]) -> list[Snapshot]:
        """The opponent checkpoints of these policies, oldest first."""
        return [snapshot for snapshot in self.pool if snapshot.policy in policies]

    def add(self, snapshot: Snapshot, keep: int) -> list[Snapshot]:
        """A new opponent checkpoint; returns those of the same policy that leave, so that `keep` are left.

        The first and the newest stay. Of the others, whoever leaves the smallest gap: what is kept is spread evenly
        over the run, because a strategy that was beaten long ago is the first to be forgotten. Raises ValueError
        unless it is newer than all of its policy.
        """
        own = self.of([snapshot.policy])
        if own and own[-1].version >= snapshot.version:
            raise ValueError(f"{snapshot.name} is not newer than {own[-1].name}")
        self.pool.append(snapshot)
        own.append(snapshot)
        left = []
        while len(own) > max(1, keep):
            gaps = [(own[i + 1].version - own[i - 1].version, i) for i in range(1, len(own) - 1)]
            left.append(own.pop(min(gaps, default=(0, 0))[1]))
        self.pool = [kept for kept in self.pool if kept not in left]
        for gone in left:
            self._tallies = {pair: tally for pair, tally in self._tallies.items() if gone.name not in pair}
        return left

    def record(self, learner: str, opponent: str, score: float) -> None:
        """One play of a learner: 1 it won, 0.5 a draw, 0 it lost."""
        if not 0.0 <= score <= 1.0:
            raise ValueError(f"the score of a play lies in [0, 1], not {score}")
        tally = self._tallies.setdefault((learner, opponent), [0.0, 0.0])
        tally[:] = [DECAY * tally[0] + score, DECAY * tally[1] + 1.0]

    def win_rate(self, learner: str, opponent: str) -> float:
        """The learner's recent mean score, as if it had also won once and lost once: one half of who was never met."""
        won, played = self._tallies.get((learner, opponent), (0.0, 0.0))
        return (won + 1.0) / (played + 2.0)

    def chances(
        self, rule: str, learners: Sequence[str], candidates: Sequence[Snapshot], power: float = 1.0
    ) -> list[float]:
        """How likely `rule` is to choose each candidate; they sum to 1. Several learners: their mean rate counts.
        Where a rule leaves nobody (all are beaten for certain), all alike."""
        rates_N = [sum(self.win_rate(learner, c.name) for learner in learners) / len(learners) for c in candidates]
        weights_N = RULES[rule](rates_N, power)
        total = sum(weights_N)
        return [w / total for w in weights_N] if total > 1e-12 else [1 / len(weights_N)] * len(weights_N)

    def draw(
        self,
        rng: random.Random,
        shares: Mapping[str, float],
        learners: Sequence[str],
        candidates: Sequence[Snapshot],
        power: float = 1.0,
    ) -> Snapshot:
        """One candidate, by a rule drawn according to `shares` (rule -> weight). IndexError without candidates."""
        if not candidates:
            raise IndexError("there is no opponent checkpoint to draw")
        (rule,) = rng.choices(list(shares), list(shares.values()))
        return rng.choices(candidates, self.chances(rule, learners, candidates, power))[0]

    def state(self) -> dict[str, Any]:
        """Plain values, for checkpoints."""
        tallies = [[*pair, *tally] for pair, tally in self._tallies.items()]
        return {"pool": [asdict(one) for one in self.pool], "tallies": tallies, "results": self.results.state()}

    @classmethod
    def restore(cls, state: Mapping[str, Any]) -> League:
        """The league that `state()` described."""
        league = cls()
        league.pool = [Snapshot(**values) for values in state["pool"]]
        league._tallies = {(learner, other): [won, played] for learner, other, won, played in state["tallies"]}
        league.results = Results.restore(state["results"])
        return league


def meetings(episode: Episode, ours: Collection[str], theirs: Collection[str]) -> Iterator[tuple[str, str, float]]:
    """(our policy, their policy, our score) for every pair of seats in an episode that were paid and played by one of
    each: 1 where ours was paid more in all, 0.5 where the same, else 0. Episodes that are not `ok` say nothing."""
    if episode.status != "ok":
        return
    paid: dict[str, float] = {}
    for reward in episode.outcome.rewards:
        paid[reward.seat] = paid.get(reward.seat, 0.0) + reward.value
    played = {turn.seat: turn.policy for turn in episode.turns if turn.seat in paid}
    for seat, policy in played.items():
        for other, opponent in played.items():
            if seat != other and policy in ours and opponent in theirs and policy != opponent:
                gap = paid[seat] - paid[other]
                yield policy, opponent, 0.5 if abs(gap) <= 1e-9 else float(gap > 0)


