"""Mistakes in plays within a phased play: questions that another protocol answers, and a debate played twice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from protocols.templates import template_problems

if TYPE_CHECKING:
    from protocols.base import Protocol
    from protocols.phased import Phased

Problem = tuple[str, str]


def sub_play_problems(rules: Phased) -> Iterable[Problem]:
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


def _answer_problems(child: Protocol, path: str) -> Iterable[Problem]:
    """A question comes without claims to choose from, and without a verifier."""
    phases, judge = getattr(child, "phases", None), getattr(child, "judge", None)
    if phases is None:
        yield f"{path}.protocol", f"a protocol of kind {child.kind} answers no question; valid: phased"
    elif any(phase.moves != "free" for phase in phases) or (judge is not None and not judge.graded):
        message = "a question has no claims; valid: phases with moves: free, no judge or one that grades seats"
        yield f"{path}.protocol", message
    elif not any(phase.visible_to and phase.delegate is None for phase in phases):
        yield f"{path}.protocol", "nothing is said there for others to hear, and so there is no answer"
