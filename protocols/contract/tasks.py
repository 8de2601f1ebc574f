"""Synthetic tasks whose every text is a marker, so that a leak is found by searching for it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from protocols.contract.drive import below, bottom, nested, phases_of
from protocols.contract.game import MarkerGame
from protocols.types import Domain, Hidden, InvalidProposal, Task, VerifierError

NOBODY = "nobody"
"""Hidden material that no role may see."""

NUMBERS = {"cost": "4815162", "value": "8675309"}
"""Hidden material of a negotiation, which must be numbers: long enough to be found like a mark."""


class Markers(Domain):
    def derive(self, task: Task, proposal: str) -> Task:
        if not proposal or proposal.startswith("nonsense"):
            raise InvalidProposal(proposal)
        child = f"{task.id}/{proposal}"
        return replace(task, id=child, parent=task.id, question=f"question of {child}", proposals=())

    def check(self, task: Task, answer: str) -> bool:
        if "undecidable" in answer:
            raise VerifierError("no verdict")
        return answer == task.answer


def synthetic(raw: Mapping[str, Any], seed: int, evidence: int = 40) -> Task:
    """A task on which the protocol described by `raw` (its YAML) can be played."""
    rng = random.Random(f"task {seed}")
    words = iter(f"w{n:06x}" for n in rng.sample(range(16**6), 200))
    roles: dict[str, set[str]] = {}
    hidden_names(raw, roles)
    quotable = {name for phase in phases_of(raw) for name in phase.get("quotes", [])}
    hidden = {}
    for name, seen in roles.items():
        text = f"hid{next(words)}"
        more = f" quo{next(words)[1:]}\n  quo{next(words)[1:]}" if name in quotable else ""
        hidden[name] = Hidden(text + more, tuple(sorted(seen)))
    for name, number in NUMBERS.items():
        if raw["kind"] == "negotiation" and name in hidden:
            hidden[name] = Hidden(number, hidden[name].roles)
    hidden[NOBODY] = Hidden(f"hid{next(words)}", ())
    choices = tuple(f"cl{next(words)}" for _ in range(_claims(raw)))
    solves = raw["kind"] == "solve" or raw.get("child", {}).get("kind") == "solve"
    return Task(
        id=f"task{seed}", question=f"qu{next(words)}",
        answer=f"an{next(words)}" if solves else choices[rng.randrange(len(choices))], choices=choices,
        evidence=tuple(f"ev{next(words)}" for _ in range(evidence)), hidden=hidden,
        proposals=tuple(f"pr{next(words)}" for _ in range(9)), domain=Markers(),
        game=MarkerGame(len(raw["seats"]), seed) if raw["kind"] == "game" else None,
    )  # fmt: skip


def _claims(raw: Mapping[str, Any]) -> int:
    """How many claims compete in what is played in the end: one per label of the judge, and for every side."""
    counts = [2]
    for played in nested(raw):
        counts += [1 + side for side in (played.get("sides") or {}).values()]
        counts.append(len((played.get("judge") or {}).get("labels") or ()))
    return max(counts)


def hidden_names(raw: Mapping[str, Any], roles: dict[str, set[str]]) -> None:
    """Which hidden material the YAML shows to which roles."""
    prompts = dict(raw.get("prompts", {}))
    if raw["kind"] != "phased":
        prompts[raw.get("role", "solver" if raw["kind"] == "solve" else "proposer")] = raw
    for role, prompt in prompts.items():
        for name in prompt.get("hidden", []):
            roles.setdefault(name, set()).add(role)
    for phase in raw.get("phases", []):
        for name in phase.get("quotes", []):
            roles.setdefault(name, set())
        if phase.get("delegate"):
            for name in phase["delegate"].get("share", []):
                roles.setdefault(name, set())
            if not bottom(phase):
                hidden_names(below(raw, phase), roles)
    if "child" in raw:
        hidden_names(raw["child"], roles)
