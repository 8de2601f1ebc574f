"""Judges: what they are shown, in which orders, and how their replies become beliefs.

Adding a way of judging means another reader of replies here; `bench.py` asks the questions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from protocols.judges.grading import GradeRules, UnreadableGrades, grade_problems, read_grades, shares
from protocols.rewards.record import Belief
from protocols.templates import template_problems
from protocols.types import Reply

Problem = tuple[str, str]

PROBABILITY_TOLERANCE = 1e-3
"""How far the probabilities of a verdict may sum from 1: rounding in bfloat16, not a missing choice."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class UnreadableVerdict(ValueError):
    """A judge's reply that holds no probability distribution over its labels. Missing data, never a score."""


@dataclass(frozen=True)
class JudgeRules:
    """The `judge:` section of a protocol. A verdict is the probability that the judge gives to each label, or with
    `votes` the label that it writes."""

    seat: str = ""
    """The one judge. Several are a `panel`."""
    prompt: str = ""
    """What it is shown. Names: question; seat, role (its own); a, b, ... (the claim under the first, second, ...
    label); seat_a, seat_b, ... (who argues it); evidence or transcript, as the view says."""
    system: str = ""
    """Names: seat, role (of the judge), so that the members of a panel can be told who they are."""
    view: Literal["evidence", "transcript", "chat"] = "evidence"
    """evidence: a fresh chat with what was revealed, in canonical order, not by whom. transcript: a fresh chat
    with all that it may hear. chat: one growing chat that opens with `prompt`."""
    entry: str = "{{ seat }}: {{ text }}"
    """One message in the transcript or chat. Names: seat, role, label (of the claim the speaker argues), text,
    quoted (the text with every line marked, so that nobody can forge an entry)."""
    ask: str = ""
    """View chat: what ends each question to the judge."""
    when: Literal["each_turn", "end", "phases"] = "each_turn"
    """each_turn: at the start and after each turn that changes what it sees. end: once. phases: after those that
    `after` lists."""
    after: list[str] = field(default_factory=list)
    """With when: phases."""
    orders: Literal["both", "given", "rerun"] = "both"
    """both: asked once with the claims in order and once reversed, beliefs averaged (position bias). rerun: both, and
    the debate itself is played a second time with every order of speaking reversed, as two sub-plays that are paid
    each by its own beliefs; score and judgment of the play rest on the mean of the two."""
    labels: list[str] = field(default_factory=lambda: ["A", "B"])
    """Names of the claims, in the order shown."""
    panel: list[str] = field(default_factory=list)
    """Several judges in place of `seat`, each asked the same about what it may see."""
    combine: Literal["mean", "majority"] = "mean"
    """What a panel believes: the mean of its members' beliefs, or the share of members who favour each claim."""
    held_out: list[str] = field(default_factory=list)
    """Judges who are asked and recorded, and who decide nothing: no reward and no score depends on them."""
    votes: int = 0
    """0: probabilities are read. k: k replies are sampled for each order, and the belief is the share that each
    label got. Reasons are free; the last line must be the answer alone, or the reply is unreadable."""
    grade: GradeRules | None = None
    """In place of a vote, each reply (one, or `votes` of them) ends in grades, and what is believed is their mean."""
    retries: int = 0
    """With votes or grade: how many unreadable replies of each judge may be asked for again in one play."""
    max_tokens: int | None = None
    """With votes or grade, like `temperature`."""
    temperature: float | None = None
    answers: Literal["labels", "claims"] = "labels"
    """What it may answer: a label, or the text of a claim itself. For a tiny model the latter is far easier to
    learn: it has to recognise what the evidence shows, not also which place that claim stands in."""

    @property
    def samples(self) -> int:
        """How many replies are sampled for each order; 0 where probabilities are read."""
        return max(self.votes, int(self.grade is not None))

    @property
    def graded(self) -> tuple[str, ...]:
        """The seats that are graded, whose grades then stand where beliefs over claims would."""
        return tuple(self.grade.seats) if self.grade is not None and self.grade.of == "seats" else ()

    @property
    def deciding(self) -> tuple[str, ...]:
        """The seats whose beliefs decide."""
        return tuple(self.panel) or (self.seat,)

    @property
    def seats(self) -> tuple[str, ...]:
        """Every judge."""
        return (*self.deciding, *self.held_out)


def read_graded(reply: Reply, names: Sequence[str], grade: GradeRules) -> Belief:
    """Shares of the points of the claims under the labels `names`, or else the grades of the seats of these names, from
    0 to 1. Raises `UnreadableVerdict`."""
    try:
        grades = read_grades(reply, names, grade)
    except UnreadableGrades as error:
        raise UnreadableVerdict(str(error)) from None
    return shares(grades) if grade.of == "claims" else grades


def read_probs(probs: Sequence[float], labels: int, why: str = "") -> Belief:
    """A distribution over the labels, renormalised. Raises `UnreadableVerdict` on anything else; `why`: what the player
    says of a verdict without probabilities."""
    if not probs:
        raise UnreadableVerdict(why or "the verdict came without probabilities")
    if len(probs) != labels:
        raise UnreadableVerdict(f"the verdict has {len(probs)} probabilities for {labels} labels")
    total = math.fsum(probs)
    if not all(0.0 <= p <= 1.0 + PROBABILITY_TOLERANCE for p in probs):  # NaN fails the comparison too
        raise UnreadableVerdict(f"the verdict's probabilities {tuple(probs)} are not in [0, 1]")
    if abs(total - 1.0) > PROBABILITY_TOLERANCE:
        raise UnreadableVerdict(f"the verdict's probabilities sum to {total:.4g}, not 1")
    return tuple(p / total for p in probs)


def mean_belief(orders: Sequence[tuple[int, ...]], verdicts: Sequence[Sequence[float]]) -> Belief:
    """The belief over `Task.choices`: each verdict, a distribution over labels, mapped back from its order of claims,
    then averaged. `orders[i][j]` is the index of the claim under label j in verdict i."""
    if len(verdicts) != len(orders):
        raise UnreadableVerdict(f"{len(verdicts)} verdicts for {len(orders)} questions")
    belief = [0.0] * len(orders[0])
    for order, probs in zip(orders, verdicts):
        for claim, p in zip(order, probs, strict=True):
            belief[claim] += p / len(orders)
    return tuple(belief)


def read_vote(reply: Reply, answers: Sequence[str]) -> Belief:
    """All on the answer that stands alone on the last line, or is the whole reply. Raises `UnreadableVerdict`."""
    if reply.truncated:
        raise UnreadableVerdict("the verdict was cut off")
    text = reply.text.strip()
    for said in (text, text.splitlines()[-1].strip() if text else ""):
        found = [answer.strip() == said for answer in answers]
        if sum(found) == 1:
            return tuple(map(float, found))
    raise UnreadableVerdict(f"the verdict ends in {said[:80]!r}, which is none of: {', '.join(answers)}")


def favourites(scores: Sequence[float]) -> list[int]:
    """The indices of the highest scores: several on a tie. Shares of votes may differ by rounding."""
    best = max(scores)
    return [i for i, score in enumerate(scores) if best - score < 1e-9]


def won(belief: Sequence[float], truth: int) -> float:
    """1 where the claim number `truth` is believed most, 0.5 where another is as much, else 0."""
    best = favourites(belief)
    if truth not in best:
        return 0.0
    return 1.0 if len(best) == 1 else 0.5


def judge_problems(
    rules: JudgeRules, seats: Collection[str], speaking: Collection[str], shared: Collection[str] = ()
) -> list[Problem]:
    """Mistakes of a `judge:` section, as (path, message). `speaking`: the seats that take turns in phases; `shared`:
    names that every prompt of the protocol may use."""
    found = [*_seat_problems(rules, seats, speaking), *_vote_problems(rules)]
    if rules.grade is not None:
        found += grade_problems(rules.grade, rules, speaking)
    labels = len(rules.labels)
    if labels < 2 or labels > len(LETTERS) or len(set(rules.labels)) < labels or "" in rules.labels:
        found.append(("judge.labels", f"needs 2 to {len(LETTERS)} different labels, for example [A, B]"))
    letters = LETTERS[:labels]
    valid = ["question", "seat", "role", *shared]
    if not rules.graded:
        valid += [*letters, *(f"seat_{letter}" for letter in letters)]
    if rules.view != "chat":
        valid.append(rules.view)
    if not rules.prompt:
        found.append(("judge.prompt", f"missing; it may use: {', '.join(valid)}"))
    for path, message in template_problems("judge.prompt", rules.prompt, valid):
        found.append((path, message + " (a judge is shown no hidden material)"))
    found += template_problems("judge.system", rules.system, ("seat", "role", *shared))
    found += template_problems("judge.ask", rules.ask, ())
    found += template_problems("judge.entry", rules.entry, ("seat", "role", "label", "text", "quoted"))
    if rules.view == "chat" and rules.orders != "given":
        found.append(("judge.orders", "a growing chat has one order of claims; valid with view: chat: given"))
    if rules.view != "chat" and rules.ask:
        found.append(("judge.ask", f"has no effect with view: {rules.view}; write it in judge.prompt"))
    return found


def _seat_problems(rules: JudgeRules, seats: Collection[str], speaking: Collection[str]) -> Iterator[Problem]:
    if bool(rules.seat) == bool(rules.panel):
        yield "judge.seat", "needs either seat, the one judge, or panel, a list of several"
    if len(rules.panel) == 1:
        yield "judge.panel", "one judge is no panel; name it as judge.seat"
    if rules.combine == "majority" and not rules.panel:
        yield "judge.combine", "has no effect on one judge; valid with judge.panel"
    keys = {"seat": [rules.seat] if rules.seat else [], "panel": rules.panel, "held_out": rules.held_out}
    for key, named in keys.items():
        for seat in named:
            if seat not in seats:
                yield f"judge.{key}", f"there is no seat {seat!r}; valid: {', '.join(seats) or 'none'}"
            if seat in speaking:
                yield (
                    f"judge.{key}",
                    f"the judge {seat!r} is asked by the judge section and can take no turn in a phase",
                )
            if rules.seats.count(seat) > 1:
                yield f"judge.{key}", f"{seat!r} is named as a judge twice"
            if rules.panel and seat == "panel":
                yield (
                    f"judge.{key}",
                    "'panel' is the name of what a panel judges together; call the seat otherwise",
                )


def _vote_problems(rules: JudgeRules) -> Iterator[Problem]:
    if rules.votes < 0 or rules.retries < 0:
        yield f"judge.{'votes' if rules.votes < 0 else 'retries'}", "must be at least 0"
    if rules.votes and rules.view == "chat":
        yield (
            "judge.votes",
            "a growing chat has one reply per question; valid with votes: evidence, transcript",
        )
    for key in ("retries", "max_tokens", "temperature"):
        if getattr(rules, key) and not rules.samples:
            message = "has no effect on probabilities that are read; valid with votes: 1 or more, or grade"
            yield f"judge.{key}", message
    if rules.max_tokens is not None and rules.max_tokens < 1:
        yield "judge.max_tokens", "must be at least 1"
    if rules.temperature is not None and rules.temperature < 0:
        yield "judge.temperature", "must be at least 0"
    if rules.temperature == 0 and rules.samples and (rules.retries or rules.votes > 1):
        yield (
            "judge.temperature",
            "at temperature 0 every sample is the same; valid: above 0, or votes: 1, retries: 0",
        )
