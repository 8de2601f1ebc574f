"""Scores and pay of a phased play, worked out from the YAML and from what its oracle knows of the play."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from protocols.contract.text import Raw
from protocols.types import Outcome, Reward, Task

if TYPE_CHECKING:
    from protocols.contract.oracle_bench import BenchOracle


class PayOracle:
    """The last part of a `PhasedOracle`, which fills in what is declared here."""

    raw: Raw
    task: Task
    found: list[str]
    bench: BenchOracle
    sides: dict[str, int]
    turns: dict[str, int]
    rejections: list[tuple[str, int]]
    malformed: list[tuple[str, int]]
    off_length: dict[tuple[str, int], float]
    misquotes: dict[tuple[str, int], int]
    chosen: dict[tuple[str, int], bool]

    def _forfeited(self, outcome: Outcome) -> None:
        """A seat named no claim: the form of turns is paid, and nothing that rests on sides."""
        if (outcome.status, outcome.score) != ("ok", None):
            self.found.append(f"a forfeit is {outcome.status} with score {outcome.score}")
        sided = {r.name for r in outcome.rewards} - {"illegal", "format", "length", "right_choice", "unverified_quotes"}
        if sided:
            self.found.append(f"a forfeit was paid {sorted(sided)}")
        self._fines(outcome.rewards)

    def _fines(self, rewards: Sequence[Reward]) -> None:
        """Who is fined for the form of which turn, and how much."""
        for term in self.raw.get("rewards", []):
            cap = term.get("params", {}).get("cap", 1.0)
            fines: dict[tuple[str, int], float] | None = {
                "format": dict.fromkeys(self.malformed, 1.0),
                "unverified_quotes": {turn: float(n) for turn, n in self.misquotes.items() if n},
                "length": {turn: min(cap, off) for turn, off in self.off_length.items()},
            }.get(term["name"])
            if fines is None:
                continue
            to, seats = term.get("to"), self.raw["seats"]
            due = {w: -term.get("weight", 1.0) * off for w, off in fines.items()
                   if not to or {w[0], seats[w[0]]} & {*to}}  # fmt: skip
            paid = {(r.seat, r.turn): r.value for r in rewards if r.name == term["name"]}
            if paid.keys() != due.keys() or any(abs(paid[who] - due[who]) > 1e-9 for who in due):
                self.found.append(f"{term['name']} paid {paid}, not {due}")

    def _rewards(self, outcome: Outcome) -> None:
        terms = {term["name"]: term.get("weight", 1.0) for term in self.raw.get("rewards", [])}
        rewards = outcome.rewards
        for r in rewards:
            beyond = r.turn is not None and r.turn >= self.turns[r.seat]
            if r.name not in terms or beyond or not math.isfinite(r.value):
                self.found.append(f"reward out of place: {r}")
        fined = sorted((r.seat, r.turn) for r in rewards if r.name == "illegal")
        if "illegal" in terms and fined != sorted(self.rejections):
            self.found.append(f"fined {fined}, rejected {self.rejections}")
        self._fines(rewards)
        paid = {(r.seat, r.turn): r.value for r in rewards if r.name == "right_choice"}
        due = {
            turn: terms["right_choice"] * right
            for turn, right in self.chosen.items()
            if "right_choice" in terms
        }
        if paid != due:
            self.found.append(f"paid {paid} for choices that were right: {self.chosen}")
        paid = {(r.seat, r.turn): r.value for r in rewards if r.name == "right_verdict"}
        due = {turn: terms["right_verdict"] * right for turn, right in self.bench.right.items()
               if "right_verdict" in terms}  # fmt: skip
        if paid != due:
            self.found.append(f"paid {paid} for votes that were right: {due}")
        if self.raw.get("zero_sum") and abs(math.fsum(r.value for r in rewards)) > 1e-9:
            self.found.append(f"rewards sum to {math.fsum(r.value for r in rewards)}, not 0")
        if "brier_change" in terms:
            self._brier_change(outcome)
        for name in {"grade", "revision_gain"} & terms.keys():
            self._judged(name, rewards)
        if "belief_change" in terms and len(self.task.choices) == 2:
            self._belief_change(outcome)
        if self.bench.graded:
            wrong = [s for s, g in zip(self.bench.graded, self.bench.beliefs[-1])
                     if abs(outcome.metrics.get(f"grade/{s}", -1) - g) > 1e-9]  # fmt: skip
            if wrong or outcome.score is not None:
                self.found.append(f"grades of {wrong} are not recorded, or score {outcome.score} is not None")
        elif self.bench.beliefs:
            self._score(outcome, self.bench.beliefs[-1], "beliefs")

    def _brier_change(self, outcome: Outcome) -> None:
        """Where every turn is heard by the judge alone at its time, the changes sum to that of the whole play."""
        if any(p.get("order") == "simultaneous" for p in self.raw["phases"]):
            return
        weight = next(t.get("weight", 1.0) for t in self.raw["rewards"] if t["name"] == "brier_change")
        ends = [sum((p - (claim == self.task.answer)) ** 2 for p, claim in zip(belief, self.task.choices))
                for belief in (self.bench.beliefs[0], self.bench.beliefs[-1])]  # fmt: skip
        paid = sum(r.value for r in outcome.rewards if r.name == "brier_change") / weight
        if abs(paid - (ends[0] - ends[1])) > 1e-9:
            self.found.append(f"Brier changes sum to {paid}, not {ends[0] - ends[1]}")

    def _judged(self, name: str, rewards: Sequence[Reward]) -> None:
        """Pay for the last grades, or for what was gained between the first judgment and the last."""
        (term,) = [term for term in self.raw["rewards"] if term["name"] == name]
        first, last = self.bench.beliefs[0], self.bench.beliefs[-1]
        at = {s: i for i, s in enumerate(self.bench.graded)} if self.bench.graded else self.sides
        due = {s: last[i] - (first[i] if name == "revision_gain" else 0.0) for s, i in at.items()}
        if name == "revision_gain" and due:
            spoke = [s for s in self.turns if s not in self.bench.judges]
            due = {s: due.get(s, sum(due.values()) / len(due)) for s in spoke}
        to, seats, weight = term.get("to"), self.raw["seats"], term.get("weight", 1.0)
        due = {s: weight * value for s, value in due.items() if not to or {s, seats[s]} & {*to}}
        paid = {r.seat: r.value for r in rewards if r.name == name and r.turn is None}
        if paid.keys() != due.keys() or any(abs(paid[s] - due[s]) > 1e-9 for s in due):
            self.found.append(f"{name} paid {paid}, not {due}")

    def _score(self, outcome: Outcome, shares: Sequence[float], what: str) -> None:
        truth = self.task.choices.index(self.task.answer or "")
        first = [i for i, share in enumerate(shares) if max(shares) - share < 1e-9]
        if outcome.score != (0.0 if truth not in first else 1.0 if first == [truth] else 0.5):
            self.found.append(f"score {outcome.score} by {what} {shares}, the truth being number {truth}")

    def _belief_change(self, outcome: Outcome) -> None:
        term = next(term for term in self.raw["rewards"] if term["name"] == "belief_change")
        clip, sides, phases = term.get("params", {}).get("clip", 8.0), self.sides, self.raw["phases"]
        ends = [self.bench.beliefs[0], self.bench.beliefs[-1]]
        odds = [math.log(max(b[0], 1e-99) / max(b[1], 1e-99)) for b in ends]
        first, last = (max(-clip, min(clip, value)) for value in odds)
        gained = [r.value * (1 - 2 * sides[r.seat]) for r in outcome.rewards if r.name == "belief_change"]
        moved = math.fsum(gained) / term.get("weight", 1.0)
        # Seats that speak at once share the change of their round, so the sum telescopes only without such.
        shared = any(p.get("order") == "simultaneous" and p.get("visible_to", ["all"]) for p in phases)
        everyone_sided = {*sides} >= {seat for p in phases for seat in p["seats"]}
        if not shared and everyone_sided and abs(moved - (last - first)) > 1e-9:
            self.found.append(f"belief changes sum to {moved}, not {last - first}")
