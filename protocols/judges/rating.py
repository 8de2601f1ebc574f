"""A seat that rates a text on a scale: its probabilities are read, and the rating is the expected place."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from protocols.chat import fresh_chat
from protocols.judges.reading import read_probs
from protocols.templates import quote, render, template_problems
from protocols.types import Reply, TurnRequest

Problem = tuple[str, str]


@dataclass(frozen=True)
class RaterRules:
    """Who rates, and what it is shown. It is asked in a fresh chat each time and sees nothing else of the play."""

    seat: str = "rater"
    role: str = "rater"
    system: str = ""
    prompt: str = ""
    """Names: question, text (what is to be rated), quoted (the same with every line marked)."""
    scale: list[str] = field(default_factory=lambda: ["1", "2", "3", "4", "5", "6", "7"])
    """From the worst to the best; the first counts 0, the last 1, those between are evenly spaced."""

    def request(
        self, values: Mapping[str, str], text: str, turn: int, phase: str = "rate", target: str | None = None
    ) -> TurnRequest:
        """The question about `text`."""
        shown = {**values, "text": text, "quoted": quote(text)}
        return TurnRequest(
            seat=self.seat, role=self.role, messages=fresh_chat(self.system, render(self.prompt, shown)), turn=turn,
            phase=phase, choices=tuple(self.scale), read=True, target=target, fresh=True,
        )  # fmt: skip

    def read(self, reply: Reply) -> float:
        """The rating in [0, 1]. Raises `UnreadableVerdict`."""
        probs = read_probs(reply.probs, len(self.scale), reply.unreadable)
        return math.fsum(p * place for place, p in enumerate(probs)) / (len(probs) - 1)

    def problems(self, path: str, taken: Collection[str], extra: Collection[str] = ()) -> list[Problem]:
        """Mistakes, below the key `path`. `taken`: seats and roles of others; `extra`: more names for the prompt."""
        found = template_problems(f"{path}.system", self.system, ())
        found += template_problems(f"{path}.prompt", self.prompt, ("question", "text", "quoted", *extra))
        if not self.prompt:
            found.append((f"{path}.prompt", "missing; it may use: question, text, quoted"))
        if len(self.scale) < 2 or len(set(self.scale)) < len(self.scale) or "" in self.scale:
            found.append((f"{path}.scale", "needs two or more different labels, from the worst to the best"))
        for key, name in (("seat", self.seat), ("role", self.role)):
            if name in taken or not name:
                others = ", ".join(taken) or "none"
                found.append((f"{path}.{key}", f"{name!r} is no name of its own for the rater; taken: {others}"))
        return found
