"""From what a seat wrote to what others may hear of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Literal

Parts = Mapping[str, Literal["private", "shown"]]
_WORD = re.compile(r"\S+")
_QUOTE = re.compile(r"<quote>(.*?)</quote>", re.DOTALL)
_VERDICT = re.compile(r"<(\s*/?\s*[vu]_quote\s*)>", re.IGNORECASE)


def shown_parts(text: str, parts: Parts, joiner: str) -> str | None:
    """The shown parts of a reply that marks its parts like `<argument>...</argument>`, without surrounding space.

    None, where it is not clear what may be shown: each tag must stand exactly once, in the order of `parts`, and
    no shown part may be blank. Whatever stands outside of all parts stays private.
    """
    tags = [tag for name in parts for tag in (f"<{name}>", f"</{name}>")]
    places = [text.find(tag) for tag in tags]
    if any(text.count(tag) != 1 for tag in tags) or places != sorted(places):
        return None
    shown = []
    for i, (name, sort) in enumerate(parts.items()):
        if sort == "shown":
            shown.append(text[places[2 * i] + len(f"<{name}>") : places[2 * i + 1]].strip())
    return joiner.join(shown) if all(shown) else None


def tag_quotes(text: str, sources: Sequence[str]) -> tuple[str, list[bool]]:
    """`text` with each quote marked as verified or not, and which of them are. Such marks of the writer's own lose
    their form. Verified is what stands in one of `sources` as it is, but for white space, and is not blank."""
    plain = [" ".join(source.split()) for source in sources]
    found: list[bool] = []

    def tag(match: re.Match[str]) -> str:
        quoted = " ".join(match[1].split())
        found.append(bool(quoted) and any(quoted in source for source in plain))
        name = "v_quote" if found[-1] else "u_quote"
        return f"<{name}>{match[1]}</{name}>"

    return _QUOTE.sub(tag, _VERDICT.sub(r"(\1)", text)), found


def words(text: str) -> int:
    """How many words: runs of anything but white space."""
    return len(text.split())


def first_words(text: str, limit: int) -> str:
    """`text` up to the end of its word number `limit`; as it stands where it is no longer than that."""
    if words(text) <= limit:
        return text
    ends = [word.end() for word in islice(_WORD.finditer(text), limit)]
    return text[: ends[-1]]


def off_length(count: int, shortest: int | None, longest: int | None) -> float:
    """By what share of the limit `count` words are too few or too many; 0 within the limits."""
    if shortest is not None and count < shortest:
        return (shortest - count) / shortest
    return max(0, count - longest) / longest if longest is not None else 0.0


def says(text: str, word: str) -> bool:
    """Whether `word` stands on a line of its own: in the middle of a sentence it may mean anything."""
    return any(line.strip() == word for line in text.splitlines())
