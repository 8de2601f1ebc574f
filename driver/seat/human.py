"""A person at the terminal, as a player. What is shown is the seat's own chat, what is new in it, and nothing else."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Sequence

from protocols.types import Message, Reply, Turn, TurnRequest
from reporting.transcript import printable

WIDTH = 96
"""Characters of a line in which legal moves are listed."""
TOLERANCE = 1.0
"""Percent by which stated probabilities may miss 100 in sum."""


class Left(Exception):
    """The person has closed the input (Ctrl-D)."""


class Lines:
    """Lines of an input, without keeping the event loop from anything else meanwhile."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._buffer = b""
        self._ended = False

    async def __call__(self) -> str:
        """The next line, without its end. Raises `Left` where there is none."""
        while b"\n" not in self._buffer and not self._ended:
            data = await self._read()
            self._ended = not data
            self._buffer += data
        if not self._buffer:
            raise Left
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode(errors="replace").rstrip("\r")

    async def _read(self) -> bytes:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        try:
            loop.add_reader(self.descriptor, lambda: None if ready.done() else ready.set_result(None))
        except PermissionError:  # a plain file, which is always ready
            return os.read(self.descriptor, 65536)
        try:
            await ready
        finally:
            loop.remove_reader(self.descriptor)
        return os.read(self.descriptor, 65536)


class HumanPlayer:
    """Asks a person, one question at a time whatever happens at once."""

    def __init__(self, line: Callable[[], Awaitable[str]], show: Callable[[str], None]) -> None:
        self._line, self._show = line, show
        self._gate = asyncio.Lock()
        self._shown: dict[str, tuple[Message, ...]] = {}

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        async with self._gate:
            self._view(request)
            if request.read:
                return await self._verdict(request.choices)
            if request.grades:
                return Reply(await self._grades(request.grades))
            if request.choices:
                return Reply(await self._move(request))
            return Reply(await self._speech())

    def _view(self, request: TurnRequest) -> None:
        """Prints what the seat has not been shown; the person's own words are not repeated."""
        seat = request.seat if request.seat == request.role else f"{request.seat} ({request.role})"
        self._show(f"\n--- {printable(seat)}, {printable(request.phase)} ---")
        before = () if request.fresh else self._shown.get(request.seat, ())
        continued = len(before) < len(request.messages) and request.messages[: len(before)] == before
        known = len(before) if continued else 0
        for message in request.messages[known:]:
            if message.speaker != "assistant":
                self._show(printable(message.text))
        if not request.fresh:
            self._shown[request.seat] = request.messages

    async def _speech(self) -> str:
        self._show("[your words; an empty line ends them]")
        lines: list[str] = []
        while True:
            try:
                line = await self._line()
            except Left:
                if lines:
                    break
                raise
            if not line.strip() and lines:
                break
            if line.strip():
                lines.append(line)
        return "\n".join(lines)

    async def _move(self, request: TurnRequest) -> str:
        """A legal move, by its text or number; any text where the protocol verifies it afterwards. A judge's vote is
        always asked for again: there are no reasons to be read from a person, and what it may be is listed."""
        strict = request.enforce or request.phase == "judge"
        self._list(request.choices)
        while True:
            said = (await self._line()).strip()
            if said in request.choices:
                return said
            number = said.removeprefix("#")
            if said.startswith("#") and number.isdecimal() and 1 <= int(number) <= len(request.choices):
                return request.choices[int(number) - 1]
            if not strict and said:
                return said
            self._show(f"[{printable(said)!r} is not legal: one of the above, or its number, for example #1]")

    def _list(self, choices: Sequence[str]) -> None:
        entries = [f"#{number} {printable(choice)}" for number, choice in enumerate(choices, 1)]
        width = 2 + max(map(len, entries))
        columns = max(1, WIDTH // width) if len(entries) > 4 else 1
        rows = [entries[at : at + columns] for at in range(0, len(entries), columns)]
        listed = "\n".join("  " + "".join(entry.ljust(width) for entry in row).rstrip() for row in rows)
        self._show(f"[legal here, by text or number]\n{listed}")

    async def _grades(self, scales: Sequence[tuple[str, float, float]]) -> str:
        """One grade after the other, in the form in which a judge writes them."""
        grades: dict[str, float] = {}
        for name, low, high in scales:
            self._show(f"[your grade of {printable(name)}: a number from {low:g} to {high:g}]")
            while (grade := read_number(said := await self._line(), low, high)) is None:
                self._show(f"[{printable(said)!r} is no grade: a number from {low:g} to {high:g}]")
            grades[name] = grade
        return json.dumps(grades)

    async def _verdict(self, choices: Sequence[str]) -> Reply:
        """Probabilities as the person states them."""
        names = ", ".join(map(printable, choices))
        self._show(
            f"[how likely is each in percent, in this order: {names}; for example {_example(len(choices))}]"
        )
        while True:
            probs = read_percent(await self._line(), len(choices))
            if probs is not None:
                return Reply(choices[max(range(len(probs)), key=probs.__getitem__)], probs)
            self._show(f"[{len(choices)} numbers from 0 to 100 that sum to 100, with spaces between them]")


def read_number(said: str, low: float, high: float) -> float | None:
    """The number, a whole one as such; None unless it lies between the two."""
    try:
        value = float(said)
    except ValueError:
        return None
    if not low <= value <= high:  # what is not a number fails the comparison too
        return None
    return int(value) if value == int(value) else value


def read_percent(said: str, count: int) -> tuple[float, ...] | None:
    """Probabilities from percentages; None unless there are `count` of them and they sum to 100."""
    try:
        values = [float(part.rstrip("%")) for part in said.replace(",", " ").split()]
    except ValueError:
        return None
    if len(values) != count or not all(0.0 <= value <= 100.0 for value in values):
        return None
    total = sum(values)
    return tuple(value / total for value in values) if abs(total - 100.0) <= TOLERANCE else None


def _example(count: int) -> str:
    return " ".join(["70", "30"] if count == 2 else [f"{100 / count:.0f}"] * count)
