"""Plays within a phased play: questions that another protocol answers, a debate played again the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from protocols.base import Answer, Play, Protocol, SubPlay
from protocols.judges.reading import won
from protocols.types import Judgment, Outcome, Task

if TYPE_CHECKING:
    import random

    from protocols.phased.interpreter import Phase, Phased


@dataclass(frozen=True)
class Delegate:
    """Each turn of the phase is a question; a play of `protocol` on it answers, and its seats are paid by it."""

    protocol: Protocol | None = None
    """A file, or a definition with `kind:`. phased, without claims: what was said last for others to hear, or the last
    revision, is the answer. It may delegate in turn. Left away: this very protocol, `depth` levels deep."""
    share: list[str] = field(default_factory=list)
    """Hidden material of the task that the play has too, shown to the roles that may see it; nothing else of it."""
    heard: str = "The answer:\n{{ quoted }}"
    """How the seat, and nobody else, reads the answer. Names: text, quoted."""
    depth: int = 0
    """Without `protocol`: how many levels of copies answer below this play. In the lowest this phase falls away."""
    budget: int = 0
    """Without `protocol`: at most so many questions, those of all copies included; 0: as many as `depth` allows. The
    protocol gives each question an equal share of what is left; a copy whose share does not cover all of its own
    questions puts none."""

    @property
    def bottom(self) -> bool:
        """Whether there is nothing further down to delegate to."""
        return self.protocol is None and self.depth < 1


class Purse:
    """The questions that a play which delegates to itself has put, and may still put."""

    def __init__(self, rules: Phased) -> None:
        self.rules, self.phase = rules, rules.itself
        self.asked = 0
        self.spent = 0
        """Questions of copies included."""
        self._share = 0

    def below(self, phase: Phase) -> Delegate:
        """What answers the next questions: of a protocol that delegates to itself a copy, one level further down."""
        delegate = phase.delegate
        assert delegate is not None
        if delegate.protocol is not None:
            return delegate
        most, depth = self.rules.questions(phase), delegate.depth - 1
        if delegate.budget:
            self._share = (delegate.budget - self.spent) // (most - self.asked) - 1
            depth, self._share = (depth, self._share) if self._share >= most else (0, 0)
        lower = replace(delegate, depth=depth, budget=self._share)
        phases = [replace(each, delegate=lower) if each == phase else each for each in self.rules.phases]
        return replace(delegate, protocol=replace(self.rules, phases=phases))

    def pay(self, phase: Phase, outcome: Outcome) -> None:
        """For a question that was put. A copy that does not say what it has spent is taken to have spent its share."""
        if phase == self.phase:
            self.asked += 1
            self.spent += 1 + int(outcome.metrics.get("questions", self._share))

    def counts(self) -> dict[str, float]:
        return {} if self.phase is None else {"questions": float(self.spent)}


def posed(delegate: Delegate, task: Task, question: str, key: str, seed: int) -> SubPlay:
    """The play that answers `question`."""
    assert delegate.protocol is not None
    hidden = {name: task.hidden[name] for name in delegate.share}
    asked = Task(f"{task.id}/{key}", question, hidden=hidden, domain=task.domain, parent=task.id)
    return SubPlay(delegate.protocol, asked, seed, key)


def rerun(rules: Phased, task: Task, rng: random.Random) -> Play:
    """Two plays with the same draws, the second with every order of speaking reversed. The belief is the mean of both
    (Khan et al. 2024, arXiv 2402.06782, judge every debate both ways round); each pays its own turns by its own."""
    assert rules.judge is not None
    judge, seed = replace(rules.judge, orders="both"), rng.getrandbits(63)
    reversed_phases = [replace(phase, seats=phase.seats[::-1]) for phase in rules.phases]
    runs = {"first": rules.phases, "swapped": reversed_phases}
    plays = [SubPlay(replace(rules, judge=judge, phases=phases), task, seed, key) for key, phases in runs.items()]
    answers = yield [*plays]
    return _together(rules, task, answers)


def _together(rules: Phased, task: Task, answers: Sequence[Answer]) -> Outcome:
    outcomes = [answer for answer in answers if isinstance(answer, Outcome)]
    assert len(outcomes) == 2 and rules.judge is not None, "two sub-plays were asked for"
    for outcome in outcomes:
        if outcome.status != "ok":
            return Outcome("invalid", reason=f"one of two plays: {outcome.reason or outcome.status}")
    last = [[j for j in outcome.judgments if j.decides][-1:] for outcome in outcomes]
    if any("forfeit" in outcome.metrics for outcome in outcomes):
        return Outcome("ok", metrics={"forfeit": 1.0})
    (first,), (second,) = last
    belief = tuple((p + q) / 2 for p, q in zip(first.scores, second.scores))
    metrics = {"order_gap": max(abs(p - q) for p, q in zip(first.scores, second.scores))}
    score = None
    if task.answer in task.choices:
        truth = task.choices.index(task.answer or "")
        metrics["belief_truth"], score = belief[truth], won(belief, truth)
    return Outcome("ok", (Judgment(first.seat, belief, True, first.after_turn),), (), score, metrics)
