"""Plays within a phased play: questions that another protocol answers, a debate played again the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from protocols.base import Answer, Play, Protocol, SubPlay
from protocols.judging import favourites
from protocols.types import Judgment, Outcome, Task

if TYPE_CHECKING:
    import random

    from protocols.phased import Phased


@dataclass(frozen=True)
class Delegate:
    """Each turn of the phase is a question; a play of `protocol` on it answers, and its seats are paid by it."""

    protocol: Protocol
    """A file, or a definition with `kind:`. phased, without claims: what was said last for others to hear, or the last
    revision, is the answer. It may delegate in turn; how deep is as written, since no file can lead back to itself."""
    share: list[str] = field(default_factory=list)
    """Hidden material of the task that the play has too, shown to the roles that may see it; nothing else of it."""
    heard: str = "The answer:\n{{ quoted }}"
    """How the seat, and nobody else, reads the answer. Names: text, quoted."""


def posed(delegate: Delegate, task: Task, question: str, key: str, seed: int) -> SubPlay:
    """The play that answers `question`."""
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
        truth, best = task.choices.index(task.answer or ""), favourites(belief)
        metrics["belief_truth"] = belief[truth]
        score = (1.0 if len(best) == 1 else 0.5) if truth in best else 0.0
    return Outcome("ok", (Judgment(first.seat, belief, True, first.after_turn),), (), score, metrics)
