"""Prompts of games in which every seat is a role of its own: what the kinds `taboo` and `negotiation` share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from protocols.chat import Chat, hidden_values
from protocols.templates import render, template_problems
from protocols.types import Task


def begin_chat(prompt: RolePrompt, task: Task, seat: str, joiner: str, **more: str) -> Chat:
    """The chat of `seat` before its first turn. `more`: names that prompts may show besides question, seat, role and
    the hidden material that they list."""
    values = {"question": task.question, "seat": seat, "role": seat, **more}
    values |= hidden_values(task, seat, prompt.hidden)
    return Chat.begun(render(prompt.system, values), render(prompt.opening, values), joiner)


def prompt_problems(
    prompts: Mapping[str, RolePrompt], roles: tuple[str, ...], extra: tuple[str, ...] = ()
) -> Iterator[tuple[str, str]]:
    """Mistakes in the prompts of a game whose seats are its roles. `extra`: more names than question, seat, role."""
    built_in = ("question", "seat", "role", *extra)
    for role in roles:
        if role not in prompts:
            yield "prompts", f"role {role!r} has no prompts; valid: an entry for each of {', '.join(roles)}"
    for role, prompt in prompts.items():
        path = f"prompts.{role}"
        if role not in roles:
            yield path, f"there is no role {role!r}; valid: {', '.join(roles)}"
        for key, text in (("system", prompt.system), ("opening", prompt.opening)):
            yield from template_problems(f"{path}.{key}", text, (*built_in, *prompt.hidden))
        yield from template_problems(f"{path}.heard", prompt.heard, ("seat", "role", "text", "quoted"))
        if {*built_in} & {*prompt.hidden}:
            yield f"{path}.hidden", f"{', '.join(built_in)} are already names of their own"
        if not (prompt.system or prompt.opening):
            yield path, "needs a system text or an opening: nobody would be told anything"


@dataclass(frozen=True)
class RolePrompt:
    """What the seats of a role are told. Names: question, choices, seat, role; claim and other (the seat's own
    claim and its rivals) where it has a side; and the names listed in `hidden`."""

    system: str = ""
    opening: str = ""
    """Begins the seat's first user message."""
    hidden: list[str] = field(default_factory=list)
    """Hidden material of the task shown to this role; the task must allow it."""
    heard: str = "{{ seat }}: {{ text }}"
    """How a message of another seat reads. Names: seat, role (of the speaker), text, quoted (the text with every
    line marked, so that nobody can forge such a message)."""
