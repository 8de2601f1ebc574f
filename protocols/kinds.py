"""The kinds of protocol there are, by the `kind:` of their YAML. A new kind is one file and one line here."""

from __future__ import annotations

from protocols.base import Protocol
from protocols.game import GamePlay
from protocols.phased import Phased
from protocols.propose_solve import ProposeSolve
from protocols.solve import Solve

KINDS: dict[str, type[Protocol]] = {cls.kind: cls for cls in (Phased, ProposeSolve, Solve, GamePlay)}
