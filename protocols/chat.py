"""What a seat sees: its chat, which only grows, and the values that its prompts may show."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from protocols.base import Answer
from protocols.errors import UserError
from protocols.types import Message, Reply, Task


class MaterialError(UserError):
    """A prompt shows hidden material that the task lacks or that the role may not see."""


@dataclass(frozen=True, slots=True)
class Cast:
    """What is chosen or drawn for one play, beside the rules."""

    sides: dict[str, int]
    """seat -> index of the claim that it argues; grows as seats commit."""
    shared: Mapping[str, str] = field(default_factory=dict)
    """What every prompt may show."""
    names: Mapping[str, str] = field(default_factory=dict)
    """seat -> the name under which everybody knows it; its own, where it is not listed."""

    def name(self, seat: str) -> str:
        return self.names.get(seat, seat)


class Chat:
    """One seat's chat. What it hears waits in an inbox and becomes one user message when it is asked.

    So the chat only grows, one trajectory packs into one training sequence, and every message is seen once.
    """

    __slots__ = ("_inbox", "_joiner", "_messages", "opened", "turns")

    def __init__(self, joiner: str) -> None:
        self._messages: list[Message] = []
        self._inbox: list[str] = []
        self._joiner = joiner
        self.opened = False
        self.turns = 0
        """How many turns the seat has taken, which is the index of its next one."""

    def open(self, system: str, opening: str) -> None:
        """What stands before all else; needed before the first `ask`, whatever was heard until then."""
        assert not self.opened, "a chat opens once"
        self.opened = True
        self._messages += [Message("system", system)] if system else []
        self._inbox[:0] = [opening] if opening else []

    @classmethod
    def begun(cls, system: str, opening: str, joiner: str) -> Chat:
        """A chat that is open from the start."""
        chat = cls(joiner)
        chat.open(system, opening)
        return chat

    def hear(self, text: str) -> None:
        self._inbox.append(text)

    def ask(self, prompt: str) -> tuple[Message, ...]:
        """Flush the inbox and `prompt` into one user message; the whole chat."""
        if prompt:
            self._inbox.append(prompt)
        self._messages.append(Message("user", self._joiner.join(self._inbox)))
        self._inbox.clear()
        return tuple(self._messages)

    def said(self, text: str) -> None:
        self._messages.append(Message("assistant", text))
        self.turns += 1


def fresh_chat(system: str, text: str) -> tuple[Message, ...]:
    """A chat rendered anew for one turn."""
    user = Message("user", text)
    return (Message("system", system), user) if system else (user,)


def hidden_values(task: Task, role: str, wanted: Iterable[str]) -> dict[str, str]:
    """The hidden material named in `wanted`, which `role` must be allowed to see. Raises `MaterialError`."""
    values = {}
    for name in wanted:
        if name not in task.hidden:
            there = ", ".join(sorted(task.hidden)) or "none"
            raise MaterialError(f"task {task.id} has no hidden material {name!r} for {role}; it has: {there}")
        material = task.hidden[name]
        if role not in material.roles:
            allowed = ", ".join(material.roles) or "no role"
            raise MaterialError(f"task {task.id} shows {name!r} to {allowed}, not to {role}")
        values[name] = material.text
    return values


def as_reply(answer: Answer) -> Reply:
    assert isinstance(answer, Reply), f"a turn was answered with {type(answer).__name__}"
    return answer
