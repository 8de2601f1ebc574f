"""Prompt templates: `{{ name }}` placeholders and nothing else.

No code, no filters, no loops; values are inserted as they are and never rendered again, so `{{ x }}` in
something that a seat said stays text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache

from protocols.errors import UserError

_PLACEHOLDER = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
_LINE_START = re.compile(r"(\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029])")


class TemplateError(UserError):
    """A template names something that it may not use here."""


@lru_cache(maxsize=4096)
def _parse(template: str) -> tuple[str, ...]:
    """Literal text at even positions, placeholder names at odd ones."""
    return tuple(_PLACEHOLDER.split(template))


def names(template: str) -> tuple[str, ...]:
    """The placeholder names of a template, in order of first use."""
    return tuple(dict.fromkeys(_parse(template)[1::2]))


def literals(template: str) -> str:
    """The fixed words of a template (what a small vocabulary must hold)."""
    return " ".join(_parse(template)[0::2])


def render(template: str, values: Mapping[str, str]) -> str:
    """Fill in the placeholders, in one pass. Raises `TemplateError` on a name without a value."""
    parts = _parse(template)
    if len(parts) == 1:
        return template
    try:
        return "".join([values[part] if i % 2 else part for i, part in enumerate(parts)])
    except KeyError as error:
        raise TemplateError(_unknown(str(error.args[0]), values)) from None


def template_problems(path: str, template: str, valid: Collection[str]) -> list[tuple[str, str]]:
    """Mistakes in a template whose placeholders may be `valid`, as (path, message)."""
    found = [(path, _unknown(name, valid)) for name in names(template) if name not in valid]
    if any("{{" in literal for literal in _parse(template)[0::2]):
        found.append((path, "'{{' that opens no placeholder: only {{ name }} is possible, without code"))
    return found


def quote(text: str) -> str:
    """Start every line with `> `, so that nothing in `text` can pass for a line of the prompt around it."""
    return "> " + _LINE_START.sub(r"\1> ", text)


def _unknown(name: str, valid: Collection[str]) -> str:
    return f"unknown placeholder {{{{ {name} }}}}; valid here: {', '.join(sorted(valid)) or 'none'}"
