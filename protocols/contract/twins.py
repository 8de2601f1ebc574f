"""Two plays that differ in what a seat chose, and who may notice."""

from __future__ import annotations

from dataclasses import replace

from protocols.base import Protocol
from protocols.contract.drive import Scripted, drive, phases_of
from protocols.contract.tasks import synthetic
from protocols.contract.text import Raw
from protocols.types import Reply, TurnRequest


def choice_shows(protocol: Protocol, raw: Raw, seed: int) -> list[str]:
    """Who does not hear what a seat commits to, and does not oppose it, is asked the same whatever it is."""
    if raw["kind"] != "phased":
        return []
    found, scripted = [], Scripted.of(raw, seed)
    for phase in phases_of(raw):
        if not phase.get("commits"):
            continue
        heard_by, listens = phase.get("visible_to", ["all"]), raw.get("listens", {})
        knows = {
            seat
            for seat, role in raw["seats"].items()
            if seat in phase["seats"]
            or ({"all", seat, role} & {*heard_by} and {*phase["seats"]} & {*listens.get(seat, raw["seats"])})
        }

        def other(request: TurnRequest, phase: Raw = phase) -> Reply:
            reply = scripted(request)
            claims = request.choices
            turn = request.phase == phase["name"] and reply.text.strip() in claims
            return replace(reply, text=claims[(claims.index(reply.text.strip()) + 1) % len(claims)]) if turn else reply

        task = synthetic(raw, seed)
        base, twin = (drive(protocol, task, seed, player) for player in (Scripted.of(raw, seed), other))
        for request, again in zip(base.requests(), twin.requests()):
            if request.seat not in knows and request.messages != again.messages:
                found.append(f"what is chosen in {phase['name']} shows in what {request.seat} is asked")
    return found
