"""The kinds of protocol there are, by the `kind:` of their YAML. A new kind is one file and one line: here, or in a
module of yours that the config names under `plugins`."""

from __future__ import annotations

from protocols.base import Protocol
from protocols.extension import Registry
from protocols.kinds.game import GamePlay
from protocols.kinds.market import Market
from protocols.kinds.negotiation import Negotiation
from protocols.kinds.propose_judge import ProposeSolveJudge
from protocols.kinds.propose_solve import ProposeSolve
from protocols.kinds.prover_verifier import ProverVerifier
from protocols.kinds.revision import Revision
from protocols.kinds.solve import Solve
from protocols.kinds.taboo import Taboo
from protocols.phased.interpreter import Phased

KINDS: Registry[type[Protocol]] = Registry("kind of protocol")
for cls in (
    GamePlay, Market, Negotiation, Phased, ProposeSolve, ProposeSolveJudge, ProverVerifier, Revision, Solve, Taboo,
):  # fmt: skip
    KINDS.register(cls.kind)(cls)
