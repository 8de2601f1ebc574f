"""From what a seat wrote to what others may hear of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Parts = Mapping[str, Literal["private", "shown"]]


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
