"""The rules of a phased protocol, as its YAML says them, and what can be looked up in them. Checks, the state of a play
and the interpreter all read these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

from protocols.base import Protocol
from protocols.judges.reading import JudgeRules
from protocols.prompts import RolePrompt
from protocols.rewards.record import RewardTerm


@dataclass(frozen=True)
class Delegate:
    """Each turn of the phase is a question; a play of `protocol` on it answers, and its seats are paid by it."""

    protocol: Protocol | None = None
    """A file, or a definition with `kind:`. phased, without claims: what was said last for others to hear, or the last
    revision, is the answer. It may delegate in turn. Left away: this very protocol, `depth` levels deep."""
    share: list[str] = field(default_factory=list)
    """Hidden material of the task that the play has too, shown to the roles that may see it; nothing else of it."""
    heard: str = "The answer:\n{{ quoted }}"
    """How the seat, and nobody else, reads the answer. Names: text, quoted."""
    depth: int = 0
    """Without `protocol`: how many levels of copies answer below this play. In the lowest this phase falls away."""
    budget: int = 0
    """Without `protocol`: at most so many questions, those of all copies included; 0: as many as `depth` allows. The
    protocol gives each question an equal share of what is left; a copy whose share does not cover all of its own
    questions puts none."""

    @property
    def bottom(self) -> bool:
        """Whether there is nothing further down to delegate to."""
        return self.protocol is None and self.depth < 1


@dataclass(frozen=True)
class Stop:
    """What ends a phase, or a loop of several, early: whichever of these is given and happens first, after a round."""

    seat: str = ""
    """Who may end it, by what it `says`."""
    says: str = ""
    """Written on a line of its own, in what others hear of a turn: the phase ends with that turn."""
    agreed: bool = False
    """The last legal choices (moves: choices, in this phase or before) of all seats of the phase are the same; of a
    loop, those of all seats that choose in it."""
    belief_above: float | None = None
    """The judge believes a claim more than this."""


@dataclass(frozen=True)
class Phase:
    """Some seats speak, one after the other or at once, `repeat` times."""

    name: str
    seats: list[str]
    """Who speaks, in the order that `speakers` makes of this one."""
    order: Literal["sequential", "simultaneous"] = "sequential"
    """simultaneous: nobody hears what the others say in the same round."""
    speakers: Literal["fixed", "shuffled", "alternating"] = "fixed"
    """fixed: as listed. shuffled: in an order drawn for the play, the same in all its shuffled phases, so that
    nobody is always first. alternating: as listed, and reversed on every other repeat."""
    repeat: int = 1
    stop: Stop | None = None
    """What may end the phase before its last repeat."""
    prompt: str = ""
    """Ends the user message that asks for the turn. Names as in RolePrompt."""
    moves: Literal["free", "evidence", "choices", "confidence"] = "free"
    """free: any text. evidence: a statement of the task that has not been revealed. choices: one of the
    competing answers. confidence: how sure the seat is, 0%, 10%, ... 100%. A reply that is not legal is rejected: it
    has no effect and the others read `rejected`."""
    commits: bool = False
    """With moves: choices: what a seat chooses is the claim that it argues from then on. Who hears of it: `visible_to`.
    A seat that chooses none of the claims forfeits: the play ends unjudged and pays for the form of turns alone."""
    enforce: bool = True
    """With legal moves: decoding is limited to them. false: written freely and verified afterwards."""
    parts: dict[str, Literal["private", "shown"]] = field(default_factory=dict)
    """name -> private or shown: a turn is written as these parts in this order, each between <name> and </name>.
    Others hear the shown ones alone. Of a turn that is not so written they hear nothing but `rejected`."""
    visible_to: list[str] = field(default_factory=lambda: ["all"])
    """all, or the seats and roles that hear it besides the speaker; []: a private scratchpad."""
    delegate: Delegate | None = None
    """What a seat says here is a question that a play of another protocol answers, before its next turn."""
    quotes: list[str] = field(default_factory=list)
    """Hidden material of the task: others read <quote>...</quote> as <v_quote> where what it quotes stands there word
    for word (white space aside), and as <u_quote> where it does not (Khan et al. 2024)."""
    max_words: int | None = None
    """Others hear this many words of a turn and no more."""
    soft_words: int | None = None
    """The reward `length` fines turns of more words than this, counted before any cut."""
    min_words: int | None = None
    """The reward `length` fines turns of fewer words than this."""
    max_tokens: int | None = None
    """Ends the writing itself; a turn cut off by it is heard as far as it went and fined by the reward `format`."""
    temperature: float | None = None


@dataclass(frozen=True)
class Loop:
    """Phases that follow each other, played from the first to the last and again, `repeat` times: for example
    question, answer, verdict. Each phase has its own repeats and its own end every time round."""

    over: list[str]
    """The names of the phases, as they follow each other in `phases`."""
    repeat: int = 0
    """How often at most, from 2: no loop is without an end."""
    stop: Stop | None = None
    """What ends the loop before that, and at once: the rest of it falls away, and the phases after it are played."""


@dataclass(frozen=True)
class PhasedRules(Protocol):
    """Seats speak in phases, and a judge's belief over `Task.choices` decides, or a vote among the seats.

    Outcome.score: 1 where the judge's last belief, or the share of votes, is highest for `Task.answer`, 0.5 on a
    tie, 0 otherwise.
    """

    kind: ClassVar[str] = "phased"
    phases: list[Phase]
    seats: dict[str, str]
    """seat -> role, the judge's too."""
    loops: list[Loop] = field(default_factory=list)
    """Phases that are repeated together."""
    sides: dict[str, int] = field(default_factory=dict)
    """seat -> index of the claim in `Task.choices` that it argues: assigned by the task."""
    opposes: dict[str, str] = field(default_factory=dict)
    """seat -> a seat that commits to one of two claims: this seat argues the other one."""
    prompts: dict[str, RolePrompt] = field(default_factory=dict)
    """role -> prompts, for every role that speaks in a phase."""
    judge: JudgeRules | None = None
    vote: str = ""
    """In place of a judge: the phase (moves: choices) in which seats vote. The last legal vote of each counts; where
    nobody's does, the play is invalid."""
    vote_weights: str = ""
    """With `vote`: the phase (moves: confidence) in which seats say how sure they are, by which their votes weigh
    (protocols/judges/confidence.py). The last legal level of each counts; a vote without one does not."""
    listens: dict[str, list[str]] = field(default_factory=dict)
    """seat -> the seats that it hears of those that `visible_to` lets it hear; a seat not listed hears them all."""
    names: Literal["own", "numbered", "drawn"] = "own"
    """numbered: all know a seat that speaks, itself too, as Speaker 1, Speaker 2, ... in the order of `seats`; drawn:
    in an order drawn for the play."""
    principles: list[str] = field(default_factory=list)
    """What prompts, also the judge's, may show as {{ principles }}, one to a line, or {{ principle }}: one drawn for
    the play. A file of its own can list them: `extends: [FILE]`."""
    rewards: list[RewardTerm] = field(default_factory=list)
    zero_sum: bool = False
    """A promise, held to in tests: the rewards of every play sum to 0."""
    rejected: str = "no valid reveal"
    """What everyone, the speaker too, reads in place of a rejected move and of a turn without its parts."""
    joiner: str = "\n\n"
    """Stands between the parts of a user message and the entries of a transcript."""
    name: str = ""

    @property
    def success(self) -> str:
        return "vote is right" if self.vote else "judge is right" if self.judge is not None else "score"

    def roles(self) -> Mapping[str, str]:
        roles = dict(self.seats)
        for phase in self.phases:
            inner = None if phase.delegate is None else phase.delegate.protocol
            roles |= {} if inner is None else inner.roles()
        return roles

    @property
    def itself(self) -> Phase | None:
        """The phase that delegates to this very protocol."""
        return next((p for p in self.phases if p.delegate is not None and p.delegate.protocol is None), None)

    def questions(self, phase: Phase) -> int:
        """How many turns a phase has in one play, at most."""
        loop = self.loop_of.get(phase.name)
        return len(phase.seats) * phase.repeat * (1 if loop is None else loop.repeat)

    def choosers(self, loop: Loop) -> list[str]:
        """The seats that choose among the claims in a loop."""
        choosing = [phase for phase in self.phases if phase.name in loop.over and phase.moves == "choices"]
        return list(dict.fromkeys(seat for phase in choosing for seat in phase.seats))

    @property
    def stops(self) -> list[Stop | None]:
        """What may end each phase, then each loop."""
        return [*(phase.stop for phase in self.phases), *(loop.stop for loop in self.loops)]

    @cached_property
    def loop_of(self) -> Mapping[str, Loop]:
        """phase -> the loop that it is part of."""
        return {name: loop for loop in self.loops for name in loop.over}

    def audience(self, phase: Phase, seat: str) -> tuple[str, ...]:
        """The seats that hear what `seat` says in `phase`, judges among them."""
        return tuple(
            other
            for other, role in self.seats.items()
            if other != seat
            and {"all", other, role} & {*phase.visible_to}
            and seat in self.listens.get(other, self.seats)
        )
