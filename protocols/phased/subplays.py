"""Plays within a phased play: questions that another protocol answers, a debate played again the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from protocols.base import Answer, Play, SubPlay
from protocols.judges.reading import won
from protocols.phased.rules import Delegate, Phase, PhasedRules
from protocols.types import Judgment, Outcome, Task

if TYPE_CHECKING:
    import random



class Purse:
    """The questions that a play which delegates to itself has put, and may still put."""

    def __init__(self, rules: PhasedRules) -> None:
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


def rerun(rules: PhasedRules, task: Task, rng: random.Random) -> Play:
    """Two plays with the same draws, the second with every order of speaking reversed. The belief is the mean of both
    (Khan et al. 2024, arXiv 2402.06782, judge every debate both ways round); each pays its own turns by its own."""
    assert rules.judge is not None
    judge, seed = replace(rules.judge, orders="both"), rng.getrandbits(63)
    reversed_phases = [replace(phase, seats=phase.seats[::-1]) for phase in rules.phases]
    runs = {"first": rules.phases, "swapped": reversed_phases}
    plays = [SubPlay(replace(rules, judge=judge, phases=phases), task, seed, key) for key, phases in runs.items()]
    answers = yield [*plays]
    return _together(rules, task, answers)


def _together(rules: PhasedRules, task: Task, answers: Sequence[Answer]) -> Outcome:
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
