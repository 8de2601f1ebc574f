"""Mistakes in definitions of the kinds that are no phases, and of votes that weigh: each is named with its key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.load import load_protocol
from protocols.base import Protocol
from protocols.judges.rating import RaterRules
from protocols.kinds.market import Market
from protocols.kinds.negotiation import Negotiation
from protocols.kinds.propose_judge import ProposeSolveJudge
from protocols.kinds.prover_verifier import ProverVerifier
from protocols.kinds.revision import Revision, RevisionStep
from protocols.kinds.taboo import Taboo
from protocols.phased.interpreter import Phased
from protocols.phased.rules import Phase
from protocols.prompts import RolePrompt
from protocols.rewards.record import RewardTerm

SHIPPED = Path(__file__).resolve().parent.parent.parent.parent / "configs" / "protocol"


def shipped(name: str) -> Any:
    return load_protocol(SHIPPED / f"{name}.yaml")


PROMPT = RolePrompt(opening="{{ question }}")
RATER = RaterRules(prompt="{{ quoted }}")
PAIR = {"attacker": RolePrompt(opening="{{ word }}", hidden=["word"]), "defender": PROMPT}
TRADE = {"seller": PROMPT, "buyer": PROMPT}
WRITTEN = Revision({"ann": "writer"}, "ann", {"writer": PROMPT}, rater=RATER)
BUTTON = Phase("sure", ["ann"], moves="confidence")
VOTING = Phased([Phase("vote", ["ann"], moves="choices"), BUTTON], {"ann": "a"}, prompts={"a": PROMPT}, vote="vote")
VERIFIER = RaterRules("v", "v", prompt="{{ quoted }}", scale=["wrong", "right"])
MARKET: Callable[[], Market] = lambda: shipped("market")  # noqa: E731

BROKEN: list[tuple[Callable[[], Protocol], str, str]] = [
    (lambda: replace(VOTING, vote_weights="vote"), "vote_weights", "valid: sure"),
    (lambda: replace(VOTING, vote_weights="sure", vote=""), "vote_weights", "without a vote"),
    (lambda: replace(VOTING, rewards=[RewardTerm("team_right")], vote=""), "rewards.0.name", "a vote among"),
    (lambda: replace(WRITTEN, rater=None), "rater", "either rater"),
    (lambda: replace(WRITTEN, verifier=True), "rater", "either rater"),
    (lambda: replace(WRITTEN, author="bob"), "author", "valid: ann"),
    (lambda: replace(WRITTEN, seats={"ann": "writer", "ben": "writer"}), "seats.ben", "never writes"),
    (lambda: replace(WRITTEN, prompts={}), "prompts", "'writer' has no prompts"),
    (lambda: replace(WRITTEN, draft="{{ image }}"), "draft", "unknown placeholder"),
    (lambda: replace(WRITTEN, steps=[RevisionStep("s", "ann", "", ["ann"])]), "steps.0.reviewers", "once"),
    (lambda: replace(WRITTEN, steps=[RevisionStep("s", "ann", "", passes="FINE")]), "steps.0.passes", "no effect"),
    (lambda: replace(WRITTEN, steps=[RevisionStep("s", "bob", "")]), "steps.0.reviser", "valid: ann"),
    (lambda: replace(WRITTEN, steps=[RevisionStep("s", "ann", "{{ x }}")]), "steps.0.revise", "unknown"),
    (lambda: replace(WRITTEN, rater=replace(RATER, scale=["1"])), "rater.scale", "two or more"),
    (lambda: replace(WRITTEN, rater=replace(RATER, seat="ann")), "rater.seat", "taken: ann"),
    (lambda: replace(WRITTEN, rater=replace(RATER, prompt="")), "rater.prompt", "missing"),
    (lambda: replace(WRITTEN, rewards=[RewardTerm("win")]), "rewards.0.name", "the judgment of a judge"),
    (lambda: Taboo({"attacker": PROMPT, "defender": PROMPT}), "prompts.attacker.hidden", "list word"),
    (lambda: Taboo({**PAIR, "defender": RolePrompt(hidden=["word"])}), "prompts.defender.hidden", "not know"),
    (lambda: Taboo({**PAIR, "defender": RolePrompt()}), "prompts.defender", "told anything"),
    (lambda: Taboo({"attacker": PAIR["attacker"]}), "prompts", "'defender' has no prompts"),
    (lambda: Taboo({**PAIR, "judge": PROMPT}), "prompts.judge", "valid: attacker, defender"),
    (lambda: Taboo(PAIR, turns=0), "turns", "at least 1"),
    (lambda: Taboo(PAIR, guess=" "), "guess", "blank"),
    (lambda: Negotiation(TRADE, first="bob"), "first", "valid: seller, buyer"),
    (lambda: Negotiation(TRADE, prices=[3, 3]), "prices", "different"),
    (lambda: Negotiation(TRADE, prices=[3], max_tokens=9), "max_tokens", "no effect"),
    (lambda: Negotiation({**TRADE, "buyer": RolePrompt(hidden=["cost"])}), "prompts.buyer.hidden", "not know"),
    (lambda: replace(MARKET(), rounds=0), "rounds", "at least 1"),
    (lambda: replace(MARKET(), judge=replace(MARKET().judge, when="each_turn")), "judge.when", "valid: end"),
    (lambda: replace(MARKET(), judge=replace(MARKET().judge, seat="adversary")), "judge.seat", "no turn"),
    (lambda: replace(MARKET(), forecast="{{ x }}"), "forecast", "unknown placeholder"),
    (lambda: ProverVerifier(replace(VERIFIER, scale=["1", "2", "3"])), "verifier.scale", "two labels"),
    (lambda: ProverVerifier(VERIFIER, prompt="{{ question }}"), "prompt", "{{ instruction }}"),
    (lambda: ProverVerifier(replace(VERIFIER, seat="prover")), "verifier.seat", "taken: prover"),
    (lambda: replace(shipped("propose_solve_judge"), least=2.0), "least", "[0, 1]"),
    (lambda: replace(shipped("propose_solve_judge"), rater=replace(RATER, seat="solver")), "rater.seat", "solver"),
    (lambda: replace(shipped("propose_solve_judge"), rewards=[RewardTerm("src")]), "rewards.0.name", "prover"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "path", "says"), BROKEN, ids=[f"{i}-{p}" for i, (_, p, _) in enumerate(BROKEN)])
def test_mistakes_are_named(make: Callable[[], Protocol], path: str, says: str) -> None:
    found = make().problems()
    assert any(where == path and says in message for where, message in found), found


def test_what_is_broken_there_was_sound() -> None:
    sound = [WRITTEN, replace(VOTING, vote_weights="sure"), Taboo(PAIR), Negotiation(TRADE), ProverVerifier(VERIFIER)]
    assert [protocol.problems() for protocol in sound] == [[]] * 5
    assert isinstance(shipped("lab"), ProposeSolveJudge)
