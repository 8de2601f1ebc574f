"""What a phased play must look like, worked out from the YAML alone. Shares no code with the interpreter.

The oracle replays a trace: it keeps its own idea of who has heard what, renders the expected text of every
request with plain `str.replace`, and recomputes beliefs and scores.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from protocols.contract.drive import Trace, below, bottom
from protocols.contract.oracle_bench import BenchOracle
from protocols.contract.oracle_pay import PayOracle
from protocols.contract.text import Raw, checked, fill, heard_of, pairs, quoted, traces, up_to
from protocols.types import Outcome, Reply, Task, TurnRequest

LEVELS = [f"{tenth}0%" if tenth else "0%" for tenth in range(11)]
"""What may be said in a phase with moves: confidence. They are no marks: several seats may say the same."""


class PhasedOracle(PayOracle):
    """Feed it a trace; `found` lists what is wrong."""

    def __init__(self, raw: Raw, task: Task, names: Mapping[str, str], principle: str = "") -> None:
        """`names`: seat -> what it is called; `principle`: the one that the play is taken to have drawn."""
        self.raw, self.task, self.names = raw, task, names
        listed = raw.get("principles", [])
        self.shared = {"principles": "- " + "\n- ".join(listed), "principle": principle} if listed else {}
        self.found: list[str] = []
        self.judge: Raw = raw.get("judge", {})
        self.joiner = raw.get("joiner", "\n\n")
        self.neutral = raw.get("rejected", "no valid reveal")
        self.chats: dict[str, list[tuple[str, str]]] = {}
        self.due: dict[str, list[str]] = {seat: [] for seat in raw["seats"]}
        self.markers: dict[str, set[str]] = {seat: set() for seat in raw["seats"]}
        """seat -> replies (and evidence) that it may have in its chat."""
        self.said: set[str] = set()
        self.turns: dict[str, int] = {}
        self.revealed: list[str] = []
        self.rejections: list[tuple[str, int]] = []
        self.malformed: list[tuple[str, int]] = []
        self.off_length: dict[tuple[str, int], float] = {}
        self.votes: dict[str, str] = {}
        self.sure: dict[str, int] = {}
        """seat -> how sure it last said to be, in percent."""
        self.chosen: dict[tuple[str, int], bool] = {}
        self.sides: dict[str, int] = dict(raw.get("sides", {}))
        """Grows with what seats commit to."""
        self.forfeit = False
        self.picks: dict[str, str] = {}
        self.asking: list[tuple[str, str]] = []
        self.delegated: list[Raw] = []
        """What each sub-play was to be, in their order."""
        self.posed = self.questions = 0
        """To copies of this very protocol, by this play and by all below it too."""
        self.last = ""
        self.misquotes: dict[tuple[str, int], int] = {}
        self.stopped: set[str] = set()
        self.left: list[Raw] = []
        """Loops that are over."""
        self.bench = BenchOracle(self)

    def run(self, trace: Trace) -> list[str]:
        rounds = iter(trace.rounds)
        self._drawn(trace)
        for kind, phase, seats in self._expected():
            got: list[tuple[Any, Any]] | None = next(rounds, None)
            if got is None:
                self.found.append(f"play ended before {kind} {seats}")
                return self.found
            asked = [getattr(ask, "seat", "?") for ask, _ in got]
            if asked != (["?"] * len(seats) if kind == "plays" else seats):
                self.found.append(f"{kind} asked {asked}, not {seats}")
                return self.found
            if kind == "poll":
                self.bench.poll(got)
            elif kind == "plays":
                self._answers(phase, got)
            else:
                self._round(phase, got)
        if next(rounds, None) is not None:
            self.found.append("play went on after its end")
        self._outcome(trace.outcome)
        return self.found

    def _drawn(self, trace: Trace) -> None:
        """The order of this play, learned from what was asked: any will do, but it must be one order."""
        self.orders: dict[str, list[str]] = {}
        before: set[tuple[str, str]] = set()
        asked = [ask for asks in trace.rounds for ask, _ in asks if isinstance(ask, TurnRequest)]
        for phase in self.raw["phases"]:
            if phase.get("speakers") == "shuffled":
                heard = dict.fromkeys(ask.seat for ask in asked if ask.phase == phase["name"])
                order = [*heard, *(seat for seat in phase["seats"] if seat not in heard)]
                before |= {(a, b) for i, a in enumerate(order[: len(heard)]) for b in order[i + 1 :]}
                self.orders[phase["name"]] = [seat for seat in order if seat in phase["seats"]]
        if any((b, a) in before for a, b in before):
            self.found.append(f"shuffled phases have several orders: {self.orders}")

    def _line_up(self, phase: Raw, repeat: int) -> list[str]:
        seats: list[str] = self.orders.get(phase["name"]) or phase["seats"]
        return seats[::-1] if phase.get("speakers") == "alternating" and repeat % 2 else seats

    def _expected(self) -> Iterator[tuple[str, Raw, list[str]]]:
        """The rounds to come, judges' polls included; evaluated lazily, as the play is replayed."""
        each = bool(self.judge) and self.judge.get("when", "each_turn") == "each_turn"
        if each:
            yield from self.bench.rounds()
        for phase, lap in self._laps():
            self.stopped.discard(phase["name"])
            if self._loop(phase) in self.left or bottom(phase):
                continue
            together = phase.get("order", "sequential") == "simultaneous"
            count = phase.get("repeat", 1)
            line_ups = [self._line_up(phase, lap * count + i) for i in range(count)]
            for seats in line_ups if together else [[seat] for row in line_ups for seat in row]:
                if self.bench.failed or self.forfeit:
                    return
                if phase["name"] in self.stopped or self._loop(phase) in self.left:
                    break
                if phase.get("moves") == "evidence" and len(self.revealed) == len(self.task.evidence):
                    continue
                seen = self.bench.seen()
                self.asking = []
                yield "turns", phase, seats
                if phase.get("delegate") and self.asking:
                    yield "plays", phase, [seat for seat, _ in self.asking]
                if each and self.bench.seen() != seen and not self.forfeit:
                    yield from self.bench.rounds()
                self._conditions(phase)
            if phase["name"] in self.judge.get("after", []) and not (self.bench.failed or self.forfeit):
                yield from self.bench.rounds()
                self._conditions(phase)
        never = self.judge.get("when") == "phases" and not self.bench.beliefs and not self.bench.failed
        if (self.judge.get("when") == "end" or never) and not self.forfeit:
            yield from self.bench.rounds()

    def _laps(self) -> Iterator[tuple[Raw, int]]:
        """Every phase as often as its loop comes round at most, with how often it has before."""
        by_name = {phase["name"]: phase for phase in self.raw["phases"]}
        starts = {loop["over"][0]: loop for loop in self.raw.get("loops", [])}
        inside = {name for loop in self.raw.get("loops", []) for name in loop["over"]}
        for name, phase in by_name.items():
            if name in starts:
                yield from ((by_name[n], lap) for lap in range(starts[name]["repeat"]) for n in starts[name]["over"])
            elif name not in inside:
                yield phase, 0

    def _loop(self, phase: Raw) -> Raw:
        return next((loop for loop in self.raw.get("loops", []) if phase["name"] in loop["over"]), {})

    def _round(self, phase: Raw, got: list[tuple[TurnRequest, Reply]]) -> None:
        legal = {"evidence": [e for e in self.task.evidence if e not in self.revealed],
                 "choices": list(self.task.choices),
                 "confidence": LEVELS}.get(phase.get("moves", "free"), [])  # fmt: skip
        for request, _ in got:
            self._request(phase, request, legal)
        told = []
        for request, reply in got:
            seat = request.seat
            heard: str | None = reply.text.strip() if legal else reply.text
            if phase.get("parts"):
                heard = heard_of(reply.text, phase["parts"], self.joiner)
            self.chats[seat] = [*pairs(request), ("assistant", reply.text)]
            self.turns[seat] = self.turns.get(seat, 0) + 1
            self.said |= traces(reply.text.strip() if legal else reply.text)
            last_word = False
            if heard is not None and not legal:
                count = len(heard.split())
                self._lengths(phase, (seat, request.turn), count)
                heard = up_to(heard, phase.get("max_words", count))
                if phase.get("quotes"):
                    sources = [self.task.hidden[name].text for name in phase["quotes"]]
                    heard, self.misquotes[seat, request.turn] = checked(heard, sources)
                for whole, stop in ((False, phase.get("stop", {})), (True, self._loop(phase).get("stop", {}))):
                    if stop.get("seat") == seat and re.search(rf"(?m)^\s*{stop['says']}\s*$", heard):
                        last_word = True
                        self._over(phase, whole)
            if heard is None or reply.truncated or not reply.text.strip():
                self.malformed.append((seat, request.turn))
            if legal and heard not in legal:
                self.rejections.append((seat, request.turn))
                heard = None
            elif phase.get("moves") == "evidence":
                self.revealed.append(str(heard))
            elif phase["name"] == self.raw.get("vote"):
                self.votes[seat] = str(heard)
            elif phase["name"] == self.raw.get("vote_weights"):
                self.sure[seat] = int(str(heard)[:-1])
            if phase.get("moves") == "choices":
                self.chosen[seat, request.turn] = heard == self.task.answer
                self.picks[seat] = self.picks.get(seat, "") if heard is None else heard
            if phase.get("commits"):
                self._commits(seat, heard)
            if heard is None:
                self.due[seat].append(self.neutral)
            elif phase.get("delegate") and not last_word:
                self.asking.append((seat, heard))
            if heard is not None and phase.get("visible_to", ["all"]) and not phase.get("delegate"):
                self.last = heard
            told.append((seat, self.neutral if heard is None else heard))
        for seat, text in told:
            self._deliver(phase, seat, text)

    def _answers(self, phase: Raw, got: list[tuple[Any, Any]]) -> None:
        """Each question is put to a play of its own, and who asked hears the answer."""
        delegate = phase["delegate"]
        share = None
        if delegate.get("budget"):
            most = len(phase["seats"]) * phase.get("repeat", 1) * self._loop(phase).get("repeat", 1)
            share = (delegate["budget"] - self.questions) // (most - self.posed) - 1
        shared = {name: self.task.hidden[name] for name in delegate.get("share", [])}
        for (seat, question), (ask, outcome) in zip(self.asking, got):
            task = ask.task
            if (task.question, dict(task.hidden), task.parent) != (question, shared, self.task.id):
                self.found.append(f"a play was to answer {question!r} with {sorted(shared)}, not {task.question!r}")
            if task.choices or task.answer or task.evidence or task.proposals:
                self.found.append("a play that answers a question has more than the question")
            self.delegated.append({"phase": phase["name"], "protocol": below(self.raw, phase, share)})
            if not delegate.get("protocol"):
                self.posed += 1
                self.questions += 1 + int(outcome.metrics.get("questions", 0))
            text = outcome.answer if outcome.status == "ok" and outcome.answer else self.neutral
            self.markers[seat] |= traces(text)
            self.said |= traces(text)
            heard = delegate.get("heard", "The answer:\n{{ quoted }}")
            self.due[seat].append(fill(heard, {"quoted": quoted(text), "text": text}))
        if len({ask.task.id for ask, _ in got}) < len(got):
            self.found.append("plays that answer questions share a name")

    def _conditions(self, phase: Raw) -> None:
        """Ends the phase where its seats agree, or the judge is sure enough."""
        loop = self._loop(phase)
        block = [p for p in self.raw["phases"] if p["name"] in loop.get("over", []) and p.get("moves") == "choices"]
        both = ((False, phase, phase["seats"]), (True, loop, [seat for p in block for seat in p["seats"]]))
        for whole, owner, seats in both:
            stop = owner.get("stop") or {}
            picks = {self.picks.get(seat, "") for seat in seats}
            sure = bool(self.bench.beliefs) and max(self.bench.beliefs[-1]) > stop.get("belief_above", 1.0)
            if (stop.get("agreed") and len(picks) == 1 and picks != {""}) or sure:
                self._over(phase, whole)

    def _over(self, phase: Raw, whole: bool) -> None:
        """The phase, or the whole loop that it is in, has ended early."""
        if whole:
            self.left.append(self._loop(phase))
        else:
            self.stopped.add(phase["name"])

    def _commits(self, seat: str, claim: str | None) -> None:
        """It argues this claim from now on, and each who opposes it the other."""
        self.forfeit = self.forfeit or claim is None
        if claim is not None:
            self.sides[seat] = self.task.choices.index(claim)
            for rival, chooser in self.raw.get("opposes", {}).items():
                if chooser == seat:
                    self.sides[rival] = {0: 1, 1: 0}[self.sides[seat]]

    def _lengths(self, phase: Raw, turn: tuple[str, int], count: int) -> None:
        if count > phase.get("soft_words", count):
            self.off_length[turn] = count / phase["soft_words"] - 1
        if count < phase.get("min_words", 0):
            self.off_length[turn] = 1 - count / phase["min_words"]

    def _deliver(self, phase: Raw, speaker: str, text: str) -> None:
        hearers = []
        for seat, role in self.raw["seats"].items():
            heard_by = phase.get("visible_to", ["all"])
            if speaker not in self.raw.get("listens", {}).get(seat, [speaker]):
                continue
            if seat == speaker or not ("all" in heard_by or seat in heard_by or role in heard_by):
                continue
            hearers.append(seat)
            self.markers[seat] |= traces(text)
            if seat not in self.bench.judges:
                values = self.message(speaker, text)
                heard = self.raw["prompts"][role].get("heard", "{{ seat }}: {{ text }}")
                self.due[seat].append(fill(heard, values))
        self.bench.hear(hearers, speaker, text)

    def _request(self, phase: Raw, request: TurnRequest, legal: list[str]) -> None:
        seat = request.seat
        role = self.raw["seats"][seat]
        values, prompt = self._values(seat, role), self.raw["prompts"][role]
        before: list[tuple[str, str]] | None = self.chats.get(seat)
        if before is None:
            system = fill(prompt.get("system", ""), values)
            before = [("system", system)] if system else []
            self.due[seat].insert(0, fill(prompt.get("opening", ""), values))
        parts = [*self.due[seat], fill(phase.get("prompt", ""), values)]
        self.due[seat] = []
        expected = [*before, ("user", self.joiner.join(part for part in parts if part))]
        where = f"{seat} in {phase['name']}"
        picks = phase.get("moves") == "choices" and seat not in self.raw.get("sides", {})
        self.same(where, request, expected)
        self.marked(where, request)
        for name, is_, should in [
            ("role", request.role, role), ("phase", request.phase, phase["name"]),
            ("turn", request.turn, self.turns.get(seat, 0)), ("choices", list(request.choices), legal),
            ("enforce", request.enforce, phase.get("enforce", True)), ("fresh", request.fresh, False),
            ("read", request.read, False), ("max_tokens", request.max_tokens, phase.get("max_tokens")),
            ("temperature", request.temperature, phase.get("temperature")),
            ("target", request.target, self.task.answer if picks else None),
        ]:  # fmt: skip
            if is_ != should:
                self.found.append(f"{where}: {name} is {is_}, not {should}")

    def marked(self, where: str, request: TurnRequest) -> None:
        """Search all that this seat was told for texts that it must not have. Knows nothing of templates."""
        chat = "\n".join(message.text for message in request.messages if message.speaker != "assistant")
        own = self.markers[request.seat]
        plain = {*self.task.choices, self.neutral, *LEVELS}
        for text in (self.said | set(self.task.evidence)) - own - plain:
            # The first line, since quoting may change the ones after it.
            if text.split("\n")[0] in chat and text:
                self.found.append(f"{where}: saw {text!r}, which it may not see")
        for name, hidden in self.task.hidden.items():
            if hidden.text in chat and request.role not in hidden.roles:
                self.found.append(f"{where}: saw hidden {name!r}")
        for text in own - plain:
            if not request.fresh and chat.count(text.split("\n")[0]) > 1:
                self.found.append(f"{where}: saw {text!r} more than once")

    def message(self, speaker: str, text: str) -> dict[str, str]:
        return {"seat": self.names[speaker], "role": self.raw["seats"][speaker], "quoted": quoted(text), "text": text}

    def _values(self, seat: str, role: str) -> dict[str, str]:
        claims, hidden = self.task.choices, self.raw["prompts"][role].get("hidden", [])
        values = {"question": self.task.question, "choices": ", ".join(claims), "role": role}
        values["seat"] = self.names[seat]
        if seat in self.sides:
            side = self.sides[seat]
            values |= {"claim": claims[side], "other": ", ".join(c for c in claims if c != claims[side])}
        return values | self.shared | {name: self.task.hidden[name].text for name in hidden}

    def same(self, where: str, request: TurnRequest, expected: list[tuple[str, str]]) -> None:
        got = pairs(request)
        if got != expected:
            wrong = next(
                (pair for pair in zip(got, expected) if pair[0] != pair[1]), (len(got), len(expected))
            )
            self.found.append(f"{where}: chat has {wrong[0]!r}, not {wrong[1]!r}")
        speakers = [m.speaker for m in request.messages if m.speaker != "system"]
        if speakers != ["user", "assistant"] * (len(speakers) // 2) + ["user"]:
            self.found.append(f"{where}: speakers do not alternate: {speakers}")

    def _outcome(self, outcome: Outcome) -> None:
        for seat, side in self.sides.items():
            if seat not in self.raw.get("sides", {}) and outcome.metrics.get(f"side/{seat}") != side:
                self.found.append(f"{seat} argued {side}, recorded is {outcome.metrics.get(f'side/{seat}')}")
        if self.forfeit and not self.bench.failed:
            self._forfeited(outcome)
            return
        counted = {**self.votes}
        if self.raw.get("vote_weights"):
            counted = {seat: vote for seat, vote in self.votes.items() if seat in self.sure}
        if self.raw.get("vote") and not counted:
            if outcome.status != "invalid" or outcome.rewards or outcome.score is not None:
                self.found.append("a play without a readable vote scored")
            return
        if self.raw.get("vote"):
            counts = [
                sum(self._weighs(seat) for seat, vote in counted.items() if vote == claim)
                for claim in self.task.choices
            ]
            self._score(outcome, counts, "votes")
        self.bench.outcome(outcome)
        delegating = [phase for phase in self.raw["phases"] if phase.get("delegate")]
        itself = [phase for phase in delegating if not phase["delegate"].get("protocol")]
        budget = itself[0]["delegate"].get("budget", 0) if itself else 0
        if itself and (outcome.metrics.get("questions") != self.questions or 0 < budget < self.questions):
            self.found.append(f"{outcome.metrics.get('questions')} questions are recorded, {self.questions} were put")
        open_ended = not self.raw.get("vote") and bool(self.bench.graded or not self.judge)
        if outcome.status == "ok" and outcome.answer != (self.last if open_ended else ""):
            self.found.append(f"the play came to {outcome.answer!r}, not {self.last!r}")
        if outcome.status == "ok" and not self.found:
            self._rewards(outcome)

    def _weighs(self, seat: str) -> float:
        """Of a vote: 1, or by how sure the seat is, after the table of ReConcile."""
        if not self.raw.get("vote_weights"):
            return 1.0
        sure = self.sure[seat]
        return 1.0 if sure == 100 else 0.8 if sure >= 90 else 0.5 if sure >= 80 else 0.3 if sure > 60 else 0.1
