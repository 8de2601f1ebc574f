"""Mistakes in plays within a phased play: questions that another protocol answers, and a debate played twice."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any

from protocols.phased.rules import PhasedRules
from protocols.templates import template_problems

if TYPE_CHECKING:
    from protocols.base import Protocol

Problem = tuple[str, str]

MAX_PLAYS = 1000
"""More plays than this below one are taken for a recursion without an end."""


def sub_play_problems(rules: PhasedRules) -> Iterable[Problem]:
    taken = dict.fromkeys(rules.seats, "this protocol")
    for i, phase in enumerate(rules.phases):
        delegate, path = phase.delegate, f"phases.{i}.delegate"
        if delegate is None:
            continue
        if phase.moves != "free":
            yield path, f"a move is no question (moves: {phase.moves}); valid with moves: free"
        later = {seat for after in rules.phases[i + 1 :] for seat in after.seats}
        deaf = [seat for seat in phase.seats if seat not in later]
        if deaf:
            yield path, f"{deaf[0]!r} takes no turn in a later phase and would not hear the last answer"
        yield from template_problems(f"{path}.heard", delegate.heard, ("text", "quoted"))
        for name in delegate.share:
            if delegate.share.count(name) > 1:
                yield f"{path}.share", f"{name!r} is named twice"
        if delegate.protocol is None:
            yield from _own_problems(rules, i)
            continue
        for key in ("depth", "budget"):
            if getattr(delegate, key):
                message = f"has no effect: {delegate.protocol.kind} is as deep as it is written; valid without protocol"
                yield f"{path}.{key}", message
        yield from _share_problems(delegate.protocol, delegate.share, path)
        for seat in delegate.protocol.roles():
            if seat in taken:
                yield f"{path}.protocol", f"seat {seat!r} is one of {taken[seat]} too; call one otherwise"
        taken |= dict.fromkeys(delegate.protocol.roles(), f"phase {phase.name!r}'s protocol")
        yield from _answer_problems(delegate.protocol, path)
        yield from ((f"{path}.protocol.{key}", message) for key, message in delegate.protocol.problems())
    judge = rules.judge
    if judge is None or judge.orders != "rerun":
        return
    if any(phase.speakers == "shuffled" for phase in rules.phases):
        yield "judge.orders", "rerun reverses the order of speaking itself; valid with speakers: fixed, alternating"
    if not any(phase.order == "sequential" and len({*phase.seats}) > 1 for phase in rules.phases):
        yield "judge.orders", "nobody speaks in turn, so that nothing would change; valid: both, given"


def _own_problems(rules: PhasedRules, index: int) -> Iterable[Problem]:
    """Mistakes in a phase that delegates to this very protocol."""
    phase, path = rules.phases[index], f"phases.{index}.delegate"
    delegate, most = phase.delegate, rules.questions(phase)
    assert delegate is not None
    deepest = max((d for d in range(1, 100) if below(most, d) <= MAX_PLAYS), default=1)
    plays = below(most, min(delegate.depth, 100))
    if rules.itself != phase:
        yield path, "another phase delegates to this very protocol already; valid: one of them, or protocol: FILE"
    if delegate.depth < 1:
        message = "without protocol it delegates to itself, which must have an end: say how many levels deep"
        yield f"{path}.depth", f"{message}; valid: 1 to {deepest}, or protocol: FILE"
    elif min(plays, delegate.budget or plays) > MAX_PLAYS:
        message = f"up to {plays} plays below one are as good as an endless recursion"
        yield f"{path}.depth", f"{message}; valid: 1 to {deepest}, or budget: {most} to {MAX_PLAYS}"
    if delegate.budget and delegate.budget < most:
        message = f"is less than the {most} questions of one play, which would then put none"
        yield f"{path}.budget", f"{delegate.budget} {message}; valid: 0, or {most} to {MAX_PLAYS}"
    elif delegate.depth > 0 and delegate.budget >= plays:
        message = f"has no effect: depth {delegate.depth} is {plays} questions at most"
        yield f"{path}.budget", f"{message}; valid: 0, or less than {plays}"
    yield from _answer_problems(rules, path)
    yield from _share_problems(rules, delegate.share, path)


def below(questions: int, depth: int) -> int:
    """The plays below one that puts so many questions, `depth` levels deep."""
    return sum(questions**level for level in range(1, depth + 1))


def _share_problems(child: Protocol, share: Collection[str], path: str) -> Iterable[Problem]:
    """Hidden material that the play needs and does not get."""
    wanted = [name for prompt in getattr(child, "prompts", {}).values() for name in prompt.hidden]
    wanted += [name for phase in getattr(child, "phases", ()) for name in phase.quotes]
    for name in dict.fromkeys(wanted):
        if name not in share:
            yield f"{path}.share", f"the play that answers shows {name!r} and does not have it: add it"


def _answer_problems(child: Any, path: str) -> Iterable[Problem]:
    """A question comes without claims to choose from, and without a verifier."""
    phases, judge = getattr(child, "phases", None), getattr(child, "judge", None)
    if phases is None:
        yield f"{path}.protocol", f"a protocol of kind {child.kind} answers no question; valid: phased"
    elif any(p.moves != "free" for p in phases) or child.sides or (judge is not None and not judge.graded):
        message = "a question has no claims; valid: moves: free, no sides, no judge or one that grades seats"
        yield f"{path}.protocol", message
    elif not any(phase.visible_to and phase.delegate is None for phase in phases):
        yield f"{path}.protocol", "nothing is said there for others to hear, and so there is no answer"
