"""The kinds of protocol there are, by the `kind:` of their YAML. A new kind is one file and one line here."""

from __future__ import annotations

from protocols.base import Protocol
from protocols.game import GamePlay
from protocols.market import Market
from protocols.negotiation import Negotiation
from protocols.phased import Phased
from protocols.propose_judge import ProposeSolveJudge
from protocols.propose_solve import ProposeSolve
from protocols.prover_verifier import ProverVerifier
from protocols.revision import Revision
from protocols.solve import Solve
from protocols.taboo import Taboo

KINDS: dict[str, type[Protocol]] = {
    cls.kind: cls
    for cls in (
        GamePlay, Market, Negotiation, Phased, ProposeSolve, ProposeSolveJudge, ProverVerifier, Revision, Solve, Taboo,
    )
}  # fmt: skip
