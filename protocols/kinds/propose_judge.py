"""The kind `propose_solve_judge`: as `propose_solve`, with a judge who rates each proposal before it is played (MAE,
Chen et al. 2025, arXiv 2510.23595; the filter of LAB, arXiv 2403.01081). Answers are graded by the child protocol,
exactly where the task has an exact verifier: a judge that graded what it is trained with would reward what it likes."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from protocols.base import Answer, Ask
from protocols.chat import as_reply
from protocols.judges.rating import RaterRules
from protocols.judges.reading import UnreadableVerdict
from protocols.kinds.propose_solve import Admission, ProposeSolve, Tried, _metrics
from protocols.rewards.registry import REWARDS, reward_problems
from protocols.types import PROPOSAL, Episode, Outcome, Task


@dataclass(frozen=True)
class ProposeSolveJudge(ProposeSolve):
    """A proposal that is rated below `least` is invalid: the proposer is fined, and nobody plays it. One that a task
    brings along is rated by nobody.

    Outcome.score: as `propose_solve`; None where no reward reads the sub-plays and none of them has a score (a task
    without an exact answer).
    """

    kind: ClassVar[str] = "propose_solve_judge"
    rater: RaterRules = field(default_factory=RaterRules)
    """In its prompt `question` is what the proposer was asked and `text` the task that came of its proposal."""
    least: float = 0.5
    """In [0, 1], the ends of the rater's scale."""

    def _admit(self, task: Task, derived: Task, tried: Tried) -> Generator[list[Ask], list[Answer], Admission]:
        if tried.move is None:
            return Admission()
        replies = yield [self.rater.request({"question": task.question}, derived.question, tried.move.turn)]
        try:
            rating = self.rater.read(as_reply(replies[0]))
        except UnreadableVerdict as error:
            return Admission(failure=f"{self.rater.seat}: {error}")
        return Admission(rating >= self.least, (rating, rating), {"proposal_rating": rating})

    def _conclude(self, tried: Sequence[Tried], answers: Sequence[Answer]) -> Outcome:
        reads_plays = any(REWARDS[term.name].needs == "sub-plays" for term in self.rewards
                          if term.name != "invalid_proposal")  # fmt: skip
        plays = [answer for answer in answers if isinstance(answer, Outcome) and answer.status == "ok"]
        if reads_plays or any(play.score is not None for play in plays):
            return super()._conclude(tried, answers)
        if not plays:
            return Outcome("invalid", reason=f"none of {len(answers)} sub-plays came to an end")
        metrics = {**_metrics(tried), "children_ended": float(len(plays))}
        return Outcome("ok", (), self._pay(tried), None, metrics)

    def rates(self, play: Episode) -> list[tuple[str, float | None]]:
        rated, metrics = super().rates(play), play.outcome.metrics
        if rated or "children_ended" not in metrics or metrics["proposal_valid"] < 1.0:
            return rated
        if PROPOSAL in play.task.hidden:
            return [(play.task.hidden[PROPOSAL].text, None)]
        return [(turn.text.strip(), None) for turn in play.turns if turn.seat == self.seat]

    def roles(self) -> Mapping[str, str]:
        return {self.seat: self.role, self.rater.seat: self.rater.role, **self.child.roles()}

    def literal_texts(self) -> list[str]:
        """Every fixed text that a seat may be sent: the words that a small vocabulary must hold."""
        return [*super().literal_texts(), self.rater.system, self.rater.prompt, *self.rater.scale]

    def problems(self) -> list[tuple[str, str]]:
        found = [problem for problem in super().problems() if not problem[0].startswith("rewards")]
        child = self.child.roles()
        found += self.rater.problems("rater", dict.fromkeys([self.seat, self.role, *child]))
        if not 0.0 <= self.least <= 1.0:
            found.append(("least", "must lie in [0, 1]: the ends of the rater's scale"))
        if self.repeats < 2 and any(term.name == "learnability" for term in self.rewards):
            found.append(("repeats", "learnability compares sub-plays of one proposal; needs at least 2"))
        return found + reward_problems(self.rewards, {"turns", "sub-plays", "ratings"}, self.roles())
