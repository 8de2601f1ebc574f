"""What polls of the judges must look like and come to, worked out from the YAML alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from protocols.contract.text import Raw, fill, pairs, traces
from protocols.types import Outcome, Reply, TurnRequest

if TYPE_CHECKING:
    from protocols.contract.oracle import PhasedOracle

Expected = tuple[str, tuple[float, ...], bool, bool, int]
"""Of a judgment: seat, scores, valid, decides, after_turn."""


def seats_of(judge: Raw, held_out: bool = True) -> list[str]:
    """The judges, those who decide last."""
    return [*(judge.get("held_out", []) if held_out else []), *(judge.get("panel") or [judge["seat"]])]


class BenchOracle:
    """Its own idea of what each judge has heard and believes."""

    def __init__(self, oracle: PhasedOracle) -> None:
        self.oracle, self.judge, self.task = oracle, oracle.judge, oracle.task
        self.judges = seats_of(self.judge) if self.judge else []
        self.deciding = seats_of(self.judge, held_out=False) if self.judge else []
        self.entries: dict[str, list[tuple[str, str]]] = {seat: [] for seat in self.judges}
        self.heard = dict.fromkeys(self.judges, 0)
        self.grade: Raw = self.judge.get("grade", {})
        self.graded: list[str] = list(self.grade["seats"]) if self.grade.get("of") == "seats" else []
        self.samples = self.judge.get("votes", 0) or int(bool(self.judge) and "grade" in self.judge)
        self.left = {seat: int(self.judge.get("retries", 0)) for seat in self.judges}
        self.public = 0
        self.gone: list[str] = []
        self.open: list[tuple[str, int]] = []
        self.verdicts: dict[tuple[str, int], list[list[float]]] = {}
        self.beliefs: list[tuple[float, ...]] = []
        self.expected: list[Expected] = []
        self.turns = dict.fromkeys(self.judges, 0)
        """How often each was asked."""
        self.right: dict[tuple[str, int], bool] = {}
        """(judge that decides, turn) -> whether that written vote was for the right answer."""

    @property
    def failed(self) -> bool:
        return any(seat in self.gone for seat in self.deciding)

    def seen(self) -> list[int]:
        """Changes with whatever a deciding judge may newly see."""
        if self.judge.get("view", "evidence") == "evidence":
            return [len(self.oracle.revealed)]
        return [self.heard[seat] for seat in self.deciding]

    def hear(self, hearers: Sequence[str], speaker: str, text: str) -> None:
        for seat in self.judges:
            if seat in hearers:
                self.entries[seat].append((speaker, text))
                self.heard[seat] += 1
        self.public += any(seat in hearers for seat in self.deciding)

    def rounds(self) -> Iterator[tuple[str, Raw, list[str]]]:
        """The rounds of one poll, more of them where answers are unreadable."""
        orders = 1 if self.judge.get("orders", "both") == "given" else 2
        self.verdicts, before = {}, list(self.gone)
        questions = [
            (order, vote) for order in range(orders) for vote in range(self.samples or 1)
        ]
        self.open = [(seat, order) for seat in self.judges if seat not in before for order, _ in questions]
        while self.open:
            yield "poll", {}, [seat for seat, _ in self.open]
        self._conclude(before, orders)

    def poll(self, got: list[tuple[TurnRequest, Reply]]) -> None:
        asked, unread = self.open, []
        for (seat, order), (request, reply) in zip(asked, got):
            answers = self._request(seat, order, request)
            verdict = self._read(reply, answers)
            self.turns[seat] += 1
            if verdict is not None and self.judge.get("votes") and seat in self.deciding:
                label = verdict.index(max(verdict))
                claims = self.task.choices[::-1] if order else self.task.choices
                self.right[seat, request.turn] = claims[label] == self.task.answer
            if verdict is None:
                unread.append((seat, order))
            else:
                self.verdicts.setdefault((seat, order), []).append(verdict)
                favourite = answers[verdict.index(max(verdict))]
                self.oracle.chats[seat] = [*pairs(request), ("assistant", favourite)]
            if self.samples:
                self.oracle.said |= {trace for trace in traces(reply.text) if trace.startswith("zq")}
        for seat in self.judges:
            again = sum(judge == seat for judge, _ in unread)
            if again > self.left[seat]:
                self.gone.append(seat)
            self.left[seat] -= again
        stop = any(seat in self.gone for seat in self.deciding)
        self.pending = [seat for seat, _ in unread if seat not in self.gone]
        self.open = [] if stop else [(seat, order) for seat, order in unread if seat not in self.gone]

    def outcome(self, outcome: Outcome) -> None:
        if self.failed:
            if outcome.status != "invalid" or not outcome.reason:
                self.oracle.found.append("an unreadable verdict did not make the play invalid")
            if outcome.rewards or outcome.score is not None:
                self.oracle.found.append("an unreadable verdict scored")
        elif outcome.status != "ok":
            self.oracle.found.append(f"a readable play is {outcome.status}: {outcome.reason}")
        got = [(j.seat, j.scores, j.valid, j.decides, j.after_turn) for j in outcome.judgments]
        same = [(g[0], *g[2:]) for g in got] == [(e[0], *e[2:]) for e in self.expected]
        close = same and all(
            len(g[1]) == len(e[1]) and all(abs(p - q) < 1e-9 for p, q in zip(g[1], e[1]))
            for g, e in zip(got, self.expected)
        )
        if not close:
            self.oracle.found.append(f"judgments are {got}, not the verdicts' mean {self.expected}")

    def _conclude(self, before: list[str], orders: int) -> None:
        beliefs: dict[str, tuple[float, ...]] = {}
        alone = len(self.deciding) == 1
        for seat in self.judges:
            decides = alone and seat in self.deciding
            if seat in before or seat in self.pending:
                continue
            if seat in self.gone:
                self.expected.append((seat, (), False, decides, self.public))
                continue
            belief = [0.0] * len(self.graded or self.task.choices)
            for order in range(orders):
                votes = self.verdicts[seat, order]
                for claim in range(len(belief)):
                    label = claim if order == 0 else len(belief) - 1 - claim
                    belief[claim] += sum(vote[label] for vote in votes) / len(votes) / orders
            beliefs[seat] = tuple(belief)
            self.expected.append((seat, beliefs[seat], True, decides, self.public))
        together: tuple[float, ...] = ()
        if not self.failed:
            members = [beliefs[seat] for seat in self.deciding]
            if self.judge.get("combine") == "majority":
                members = [self._ballot(belief) for belief in members]
            together = tuple(sum(column) / len(members) for column in zip(*members))
            self.beliefs.append(together)
        if not alone:
            self.expected.append(("panel", together, not self.failed, True, self.public))

    @staticmethod
    def _ballot(belief: tuple[float, ...]) -> tuple[float, ...]:
        """One vote, shared by the claims that are believed most."""
        first = [max(belief) - p < 1e-9 for p in belief]
        return tuple(won / sum(first) for won in first)

    def _read(self, reply: Reply, answers: list[str]) -> list[float] | None:
        if "grade" in self.judge:
            return self._graded(reply, [self.oracle.names[seat] for seat in self.graded] or answers)
        if self.judge.get("votes"):
            named = [re.search(rf"(?:\A|\n)\s*{re.escape(a)}\s*\Z", reply.text) is not None for a in answers]
            return list(map(float, named)) if sum(named) == 1 and not reply.truncated else None
        probs = list(reply.probs)
        sound = len(probs) == len(answers) and all(0 <= p <= 1 for p in probs) and abs(sum(probs) - 1) < 1e-3
        return probs if sound else None

    def _graded(self, reply: Reply, names: list[str]) -> list[float] | None:
        """Grades read with a pattern in place of a parser: `{"name": number, ...}` alone on the last line."""
        low, high = self.grade.get("min", 0), self.grade.get("max", 10)
        last = reply.text.strip().split("\n")[-1].strip()
        entry = r'"([^"]*)":\s*(-?[0-9.]+(?:[eE][-+]?[0-9]+)?)'
        if reply.truncated or not re.fullmatch(rf"\{{{entry}(?:,\s*{entry})*\}}", last):
            return None
        found = [(name, float(number)) for name, number in re.findall(entry, last)]
        if sorted(n for n, _ in found) != sorted(names) or not all(low <= g <= high for _, g in found):
            return None
        points = [(dict(found)[name] - low) / (high - low) for name in names]
        if self.graded:
            return points
        return [p / sum(points) for p in points] if any(points) else [1 / len(points)] * len(points)

    def _request(self, seat: str, order: int, request: TurnRequest) -> list[str]:
        """Checks one question; returns what may be answered."""
        oracle, judge = self.oracle, self.judge
        claims = list(self.task.choices) if order == 0 else list(self.task.choices)[::-1]
        answers = claims if judge.get("answers", "labels") == "claims" else judge.get("labels", ["A", "B"])
        where = f"{seat}, poll {len(self.beliefs)}, order {order}"
        oracle.same(where, request, self._chat(seat, claims))
        oracle.marked(where, request)
        turn = oracle.turns.get(seat, 0)
        oracle.turns[seat] = turn + 1
        votes, grades = self.samples > 0, "grade" in judge
        target = None if grades else answers[claims.index(self.task.answer or "")]
        for name, is_, should in [
            ("target", request.target, target),
            ("choices", list(request.choices), [] if grades else answers),
            ("read", request.read, not votes), ("turn", request.turn, turn),
            ("enforce", request.enforce, grades or not votes),
            ("fresh", request.fresh, judge.get("view", "evidence") != "chat"),
            ("role", request.role, oracle.raw["seats"][seat]), ("phase", request.phase, "judge"),
            ("max_tokens", request.max_tokens, judge.get("max_tokens")),
            ("temperature", request.temperature, judge.get("temperature")),
        ]:  # fmt: skip
            if is_ != should:
                oracle.found.append(f"{where}: {name} is {is_}, not {should}")
        return list(answers)

    def _chat(self, seat: str, claims: list[str]) -> list[tuple[str, str]]:
        """What a judge must be shown. `claims`: in the order of the labels."""
        oracle, judge = self.oracle, self.judge
        own = {"seat": seat, "role": oracle.raw["seats"][seat]}
        own |= oracle.shared
        values = {"question": self.task.question, **own}
        for letter, claim in zip("abcdefgh", [] if self.graded else claims):
            values[letter] = claim
            argued = [
                oracle.names[s] for s, side in oracle.sides.items() if self.task.choices[side] == claim
            ]
            values[f"seat_{letter}"] = ", ".join(argued)
        system = fill(judge.get("system", ""), own)
        start = [("system", system)] if system else []
        view = judge.get("view", "evidence")
        entries = [self._entry(*entry, claims) for entry in self.entries[seat]]
        if view == "evidence":
            values["evidence"] = " ".join(e for e in self.task.evidence if e in oracle.revealed)
            return [*start, ("user", fill(judge["prompt"], values).strip())]
        if view == "transcript":
            values["transcript"] = oracle.joiner.join(entries)
            return [*start, ("user", fill(judge["prompt"], values))]
        before = oracle.chats.get(seat)
        opening = [fill(judge["prompt"], values)] if before is None else []
        self.entries[seat] = []
        question = [part for part in [*opening, *entries, judge.get("ask", "")] if part]
        return [*(before or start), ("user", oracle.joiner.join(question))]

    def _entry(self, speaker: str, text: str, claims: list[str]) -> str:
        side = self.oracle.sides.get(speaker)
        labels = self.judge.get("labels", ["A", "B"])
        label = "" if side is None or self.graded else labels[claims.index(self.task.choices[side])]
        entry = self.judge.get("entry", "{{ seat }}: {{ text }}")
        return fill(entry, {"label": label, **self.oracle.message(speaker, text)})
