"""Every reward there is, and what a protocol pays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from protocols.rewards import judged, social
from protocols.rewards.belief import belief_change, win, win_logit, win_probability
from protocols.rewards.form import format_, illegal, length
from protocols.rewards.record import _LACKING, Record, RewardTerm, Rule, Source
from protocols.rewards.verified import (
    correct,
    game_return,
    invalid_proposal,
    learnability,
    partly_correct,
    right_choice,
    right_verdict,
)
from protocols.types import Reward

_CLIP = {"clip": 8.0}


REWARDS: dict[str, Rule] = {
    "belief_change": Rule(belief_change, "beliefs", _CLIP),
    "win": Rule(win, "final belief", zero_sum=True),
    "win_probability": Rule(win_probability, "final belief", zero_sum=True),
    "win_logit": Rule(win_logit, "final belief", _CLIP, zero_sum=True),
    "grade": Rule(judged.grade, "grades"),
    "revision_gain": Rule(judged.revision_gain, "two judgments"),
    "brier_change": Rule(judged.brier_change, "beliefs"),
    "src_sides": Rule(judged.src_sides, "final belief", {"helpful": 1.0}),
    "azr": Rule(judged.azr, "sub-plays"),
    "r_zero": Rule(judged.r_zero, "sub-plays", {"duplicates": 1.0}),
    "unverified_quotes": Rule(judged.unverified_quotes, "quotes"),
    "illegal": Rule(illegal, "legal moves"),
    "format": Rule(format_, "turns"),
    "length": Rule(length, "word limits", {"cap": 1.0}),
    "right_choice": Rule(right_choice, "choices"),
    "right_verdict": Rule(right_verdict, "verdicts"),
    "correct": Rule(correct, "verifier"),
    "partly_correct": Rule(partly_correct, "verifier"),
    "learnability": Rule(learnability, "sub-plays"),
    "invalid_proposal": Rule(invalid_proposal, "sub-plays"),
    "game_return": Rule(game_return, "game", {"forfeit": 1.0}, zero_sum=True),
    "team_right": Rule(social.team_right, "vote"),
    "correction_gain": Rule(social.correction_gain, "choices"),
    "rating": Rule(social.rating, "ratings"),
    "improvement": Rule(social.improvement, "ratings"),
    "game_result": Rule(social.game_result, "result"),
    "forecast": Rule(social.forecast, "forecasts"),
    "market_move": Rule(social.market_move, "forecasts"),
    "src": Rule(social.src, "verdict on an answer"),
    "verdict_score": Rule(social.verdict_score, "verdict on an answer"),
}


def pay(terms: Sequence[RewardTerm], record: Record) -> tuple[Reward, ...]:
    """All rewards of a play. The rewards of one turn add up; one with `turn=None` is for the whole episode."""
    paid = []
    for term in terms:
        rule = REWARDS[term.name]
        params = {**rule.params, **term.params} if term.params else rule.params
        for r in rule.pay(record, params):
            if not term.to or r.seat in term.to or record.roles[r.seat] in term.to:
                paid.append(Reward(r.seat, r.turn, r.value * term.weight, r.name))
    return tuple(paid)


def reward_problems(
    terms: Sequence[RewardTerm], has: set[Source], roles: Mapping[str, str]
) -> list[tuple[str, str]]:
    """Mistakes in a `rewards:` list of a protocol that has these sources and seats, as (path, message)."""
    found = []
    possible = sorted(name for name, rule in REWARDS.items() if rule.needs in has)
    addressees = sorted({*roles, *roles.values()})
    for i, term in enumerate(terms):
        rule = REWARDS.get(term.name)
        if rule is None:
            found.append(
                (f"rewards.{i}.name", f"unknown reward {term.name!r}; valid here: {', '.join(possible)}")
            )
            continue
        if rule.needs not in has:
            message = (f"reward {term.name!r} needs {_LACKING[rule.needs]}, which this protocol does not have; "
                       f"valid here: {', '.join(possible)}")  # fmt: skip
            found.append((f"rewards.{i}.name", message))
        for key in sorted(set(term.params) - set(rule.params)):
            valid = ", ".join(rule.params) or "none"
            found.append(
                (f"rewards.{i}.params.{key}", f"{term.name!r} has no setting {key!r}; valid: {valid}")
            )
        for key, unit in (("clip", "nats"), ("cap", "share of the limit"), ("forfeit", "as the game pays")):
            if not term.params.get(key, 1.0) > 0.0:
                found.append((f"rewards.{i}.params.{key}", f"must be above 0 ({unit})"))
        if not term.params.get("duplicates", 0.0) >= 0.0:
            found.append((f"rewards.{i}.params.duplicates", "must be at least 0 (weight of the share of duplicates)"))
        if term.params.get("helpful", 1.0) not in (0.0, 1.0):
            found.append((f"rewards.{i}.params.helpful", "must be 1 (a helpful prover) or 0 (a sneaky one)"))
        if not math.isfinite(term.weight) or term.weight == 0.0:
            found.append((f"rewards.{i}.weight", "must be finite and not 0"))
        for who in term.to:
            if who not in addressees:
                found.append((f"rewards.{i}.to", f"no seat or role {who!r}; valid: {', '.join(addressees)}"))
    return found
