"""Texts as the oracles expect them. Shares no code with `protocols/`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from protocols.types import TurnRequest

Raw = Mapping[str, Any]
"""A protocol's YAML as plain data."""


def fill(template: str, values: Mapping[str, str]) -> str:
    """Placeholders replaced; values are protected from being filled in again."""
    for name, value in values.items():
        template = template.replace("{{ " + name + " }}", value.replace("{{", "\0\0"))
    return template.replace("\0\0", "{{")


def quoted(text: str) -> str:
    return "\n".join("> " + line for line in text.split("\n"))


def heard_of(text: str, parts: Mapping[str, str], joiner: str) -> str | None:
    """What others hear of a turn written in parts; None where it is not so written."""
    pieces = re.split("(" + "|".join(f"</?{name}>" for name in parts) + ")", text)
    if pieces[1::2] != [tag for name in parts for tag in (f"<{name}>", f"</{name}>")]:
        return None
    shown = [pieces[4 * i + 2].strip() for i, sort in enumerate(parts.values()) if sort == "shown"]
    return joiner.join(shown) if "" not in shown else None


def checked(text: str, sources: list[str]) -> tuple[str, int]:
    """`text` with each of its quotes marked by whether a source has it, and how many have none."""
    for mark in ("v_quote", "u_quote"):
        text = text.replace(f"<{mark}>", f"({mark})").replace(f"</{mark}>", f"(/{mark})")
    done, wrong = "", 0
    while "</quote>" in text.partition("<quote>")[2]:
        before, _, rest = text.partition("<quote>")
        quote, _, text = rest.partition("</quote>")
        plain = re.sub(r"\s+", " ", quote).strip()
        true = plain != "" and any(plain in re.sub(r"\s+", " ", source) for source in sources)
        wrong += not true
        done += f"{before}<{'uv'[true]}_quote>{quote}</{'uv'[true]}_quote>"
    return done + text, wrong


def up_to(text: str, words: int) -> str:
    """As much of `text` as holds that many words, found by taking the last word away until it fits."""
    while len(text.split()) > words:
        text = text.rstrip()
        text = text[: len(text) - len(text.split()[-1])].rstrip()
    return text


def traces(text: str) -> set[str]:
    """What gives away that `text` was seen: the markers of scripted players in it, or else itself."""
    return {*re.findall("zq[0-9a-f]{10}(?:p[0-9]{2})?", text)} or {text}


def pairs(request: TurnRequest) -> list[tuple[str, str]]:
    return [(str(message.speaker), message.text) for message in request.messages]
