"""The kind `phased`: a list of phases in which seats speak, and a judge. Most debates are YAML over this.

In a *round* the protocol asks several seats at once: it yields their requests together. `Table` (state.py) records
what every seat may hear, `Bench` (protocols/judges/panel.py) asks the judges, `Chat` (protocols/chat.py) holds what one
seat has read and said.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from protocols.base import Play
from protocols.chat import Cast
from protocols.errors import UserError
from protocols.judges.panel import Bench
from protocols.judges.reading import mean_belief, read_probs
from protocols.phased.checks import phased_problems
from protocols.phased.rules import Phase, PhasedRules
from protocols.phased.state import Speaker, Table
from protocols.phased.subplays import rerun
from protocols.rewards.record import Belief
from protocols.templates import literals
from protocols.types import Task, TurnRequest


@dataclass(frozen=True)
class Phased(PhasedRules):
    """Seats speak in phases, and a judge's belief over `Task.choices` decides, or a vote among the seats.

    Outcome.score: 1 where the judge's last belief, or the share of votes, is highest for `Task.answer`, 0.5 on a
    tie, 0 otherwise.
    """

    def play(self, task: Task, rng: random.Random) -> Play:
        if problem := self.unplayable(task):
            raise UserError(f"protocol {self.name}: {problem}")
        if self.judge is not None and self.judge.orders == "rerun":
            return (yield from rerun(self, task, rng))
        cast = Cast(dict(self.sides), self._shared(rng), self._names(rng))
        bench = self._bench(task, cast)
        table = Table(self, task, bench, cast)
        when = "" if self.judge is None else self.judge.when
        if bench is not None and when == "each_turn":
            yield from bench.poll(0)
        places = self._draw(rng)
        for phase, lap in self._course():
            if table.over or not table.begin(phase):
                continue
            for speakers in self._rounds(phase, lap, places):
                if table.over or table.ended(phase):
                    break
                asks = table.ask(phase, speakers)
                if not asks:
                    continue  # nobody has a legal move left
                table.take(phase, (yield asks))
                if plays := table.delegated(phase, rng):
                    table.answered(phase, (yield plays))
                if bench is not None and when == "each_turn" and bench.changed and not table.over:
                    yield from bench.poll(table.public_turns)
                table.settle()
                table.check_end(phase)
            if bench is not None and self._judged_after(phase.name) and not table.over:
                yield from bench.poll(table.public_turns)
                table.check_end(phase)
        if bench is not None and not table.over and (when == "end" or not bench.beliefs):
            yield from bench.poll(table.public_turns)
        return table.outcome()

    def _judged_after(self, phase: str) -> bool:
        return self.judge is not None and self.judge.when == "phases" and phase in self.judge.after

    def _shared(self, rng: random.Random) -> dict[str, str]:
        """What every prompt of a play may show. Draws nothing where there are no principles."""
        if not self.principles:
            return {}
        listed = "\n".join(f"- {principle}" for principle in self.principles)
        return {"principles": listed, "principle": rng.choice(self.principles)}

    def problems(self) -> list[tuple[str, str]]:
        return phased_problems(self)

    def unplayable(self, task: Task) -> str:
        listed = {"choices": task.choices, "evidence": task.evidence}
        for phase in self.phases:
            if phase.moves in listed and not listed[phase.moves]:
                return f"task {task.id} has no {phase.moves}, which phase {phase.name!r} asks for"
        return ""

    def literal_texts(self) -> list[str]:
        """Every fixed text that a seat may be sent: the words that a small vocabulary must hold."""
        texts = [self.rejected, *self.principles, *(phase.prompt for phase in self.phases)]
        texts += [f"<{part}> </{part}>" for phase in self.phases for part in phase.parts]
        texts += [stop.says for stop in self.stops if stop is not None]
        for prompt in self.prompts.values():
            texts += [prompt.system, prompt.opening, prompt.heard]
        if self.judge is not None:
            texts += [self.judge.system, self.judge.prompt, self.judge.ask, *self.judge.labels]
            texts += [] if self.judge.view == "evidence" else [self.judge.entry]
        found = [literals(text) for text in texts if literals(text).strip()]
        for delegate in (phase.delegate for phase in self.phases if phase.delegate is not None):
            found += [literals(delegate.heard)]
            found += [] if delegate.protocol is None else delegate.protocol.literal_texts()
        return found

    def judge_requests(self, task: Task, revealed: Sequence[str]) -> list[TurnRequest]:
        """What the judge would be asked after `revealed`, one request per order of the claims: the leaves of an
        exact search. Needs view: evidence, where nothing else than the set of reveals matters."""
        if problem := self.search_problem():
            raise UserError(f"protocol {self.name}: {problem}")
        bench = self._bench(task, Cast(self.sides))
        assert bench is not None
        (judge,) = bench.deciding
        judge.reveal(*revealed)
        judge.begin()
        return judge.requests()

    def search_problem(self) -> str:
        """Why no exact search over the reveals is possible; empty where it is."""
        if self.judge is None or self.judge.view != "evidence":
            return "only a judge with view: evidence can be asked about a set of reveals"
        if self.judge.panel or self.judge.samples:
            return "only the probabilities of one judge can be searched, not a panel, votes or grades"
        if self.judge.orders == "rerun":
            return "a debate that is played twice is not one game that could be searched"
        if any(phase.commits for phase in self.phases):
            return "sides that seats choose for themselves are not one game that could be searched"
        if any(phase.moves == "evidence" and phase.speakers == "shuffled" for phase in self.phases):
            return "shuffled reveals are not one game that could be searched"
        if any(stop is not None for stop in self.stops):
            return "a debate that may end early is not one game that could be searched"
        return ""

    def reveal_sides(self) -> tuple[int, ...]:
        """The side that makes each reveal, in order: the turns of the game that an exact search plays out."""
        if any(phase.moves == "evidence" and phase.speakers == "shuffled" for phase in self.phases):
            raise UserError(
                f"protocol {self.name}: shuffled reveals are not one game that could be searched"
            )
        if any(phase.commits for phase in self.phases):
            raise UserError(f"protocol {self.name}: who argues which side is not known before the play")
        return tuple(
            self.sides[speaker.seat]
            for phase, lap in self._course()
            if phase.moves == "evidence"
            for speakers in self._rounds(phase, lap, {})
            for speaker in speakers
        )

    def belief(self, task: Task, verdicts: Sequence[Sequence[float]]) -> Belief:
        """The belief over `task.choices` from the probabilities answered to `judge_requests`.

        Raises `UnreadableVerdict`.
        """
        bench = self._bench(task, Cast(self.sides))
        assert bench is not None, "a protocol without a judge has no belief"
        return mean_belief(
            bench.deciding[0].orders, [read_probs(probs, len(task.choices)) for probs in verdicts]
        )

    def _names(self, rng: random.Random) -> dict[str, str]:
        """seat -> its neutral name. Draws nothing where names are not drawn."""
        judges = () if self.judge is None else self.judge.seats
        seats = [seat for seat in self.seats if seat not in judges and self.names != "own"]
        seats = rng.sample(seats, len(seats)) if self.names == "drawn" else seats
        return {seat: f"Speaker {i}" for i, seat in enumerate(seats, 1)}

    def _bench(self, task: Task, cast: Cast) -> Bench | None:
        return None if self.judge is None else Bench(self.judge, self.seats, task, cast, self.joiner)

    def _draw(self, rng: random.Random) -> Mapping[str, int]:
        """seat -> its place in the order of this play. Draws nothing where no phase is shuffled."""
        if all(phase.speakers != "shuffled" for phase in self.phases):
            return {}
        return {seat: place for place, seat in enumerate(rng.sample(list(self.seats), len(self.seats)))}

    def _course(self) -> Iterator[tuple[Phase, int]]:
        """The phases in the order in which they are played, each with how often its loop has come round before."""
        i = 0
        while i < len(self.phases):
            loop = self.loop_of.get(self.phases[i].name)
            block = self.phases[i : i + (1 if loop is None else len(loop.over))]
            for lap in range(1 if loop is None else loop.repeat):
                yield from ((phase, lap) for phase in block)
            i += len(block)

    def _rounds(self, phase: Phase, lap: int, places: Mapping[str, int]) -> Iterator[Sequence[Speaker]]:
        """The turns of a phase that happen at once, in order."""
        seats = tuple(phase.seats)
        if phase.speakers == "shuffled":
            seats = tuple(sorted(seats, key=places.__getitem__))
        for i in range(lap * phase.repeat, (lap + 1) * phase.repeat):
            reversed_now = phase.speakers == "alternating" and i % 2 == 1
            speakers = self._line_up(phase, seats[::-1] if reversed_now else seats)
            if phase.order == "simultaneous":
                yield speakers
            else:
                yield from ((speaker,) for speaker in speakers)

    def _line_up(self, phase: Phase, seats: tuple[str, ...]) -> tuple[Speaker, ...]:
        """Who speaks in this order and who hears it. Fixed by the definition, so worked out once for each order."""
        key = (phase.name, seats)
        if key not in self._line_ups:
            self._line_ups[key] = tuple(self._speaker(phase, *each) for each in enumerate(seats))
        return self._line_ups[key]

    @cached_property
    def _line_ups(self) -> dict[tuple[str, tuple[str, ...]], tuple[Speaker, ...]]:
        return {}

    def _speaker(self, phase: Phase, place: int, seat: str) -> Speaker:
        side = self.sides.get(seat)
        place = 0 if phase.order == "simultaneous" else place
        situation = f"place {place}" if side is None else f"side {side} place {place}"
        return Speaker(seat, self.seats[seat], situation, self.audience(phase, seat))
