"""docs/shipped.md: every shipped protocol with its rules, its source and its turns, found by driving it.

    python -m reporting.sketch.catalogue > docs/shipped.md

The rules are the comment at the head of the file; turns and who sees them are those of `protocol show`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from configs.load import load_protocol
from configs.reading.raw import read_raw
from reporting.sketch.sketch import Sketch, Step, sketch

PROTOCOLS = Path(__file__).resolve().parent.parent.parent / "configs" / "protocol"
HEAD = """\
# Shipped protocols

Each is one file of `configs/protocol/`. The tables say who speaks when and who sees it, as found by playing with marked
replies. `launch.py protocol show FILE` also shows what of the task each seat is shown and what a play costs, and draws
the picture with `--svg`. Turns of the same number happen at once. A seat that is not asked again is not named: whether
it sees a turn cannot matter. This page is made by `python -m reporting.sketch.catalogue > docs/shipped.md`.
"""


def page(files: Sequence[Path] = ()) -> str:
    """The whole page, for all shipped protocols or these files."""
    chosen = list(files) or sorted(PROTOCOLS.glob("*.yaml"))
    found = {path.stem: sketch(load_protocol(path), read_raw(path)) for path in chosen}
    index = ["| file | kind | seats | turns of a play |", "|---|---|---|---|"]
    index += [f"| [{name}](#{name}) | {each.kind} | {_seats(each)} | {_work(each)} |" for name, each in found.items()]
    sections = [_section(path, found[path.stem]) for path in chosen]
    return "\n".join([HEAD, *index, "", *sections])


def comment(path: Path) -> str:
    """The comment at the head of a file, as running text."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return "\n".join(lines)


def _section(path: Path, found: Sketch) -> str:
    lines = [f"## {path.stem}", "", comment(path), "", "| turn | phase | who | seen by |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in rows(found)]
    if found.drawn:
        lines += ["", "The order of turns is drawn for each play: this is one of them."]
    return "\n".join([*lines, ""])


def rows(found: Sketch) -> Iterator[tuple[str, str, str, str]]:
    """(number, phase, who does what, seen by whom), turns at once that are alike in one row."""
    for (number, phase, how), steps in groupby(found.steps, key=lambda step: (step.number, step.phase, step.how)):
        alike: dict[tuple[str, str], dict[str, int]] = {}
        together = list(steps)
        seats = list(dict.fromkeys(step.seat for step in together))
        for step in together:
            note = ", may end" if step.ends else ""
            note += f", in each of {step.fork} sub-plays" if step.fork > 1 else ""
            who = alike.setdefault((_audience(step, seats), note), {})
            who[step.seat] = who.get(step.seat, 0) + 1
        for (audience, note), who in alike.items():
            named = [seat if times == 1 else f"{seat} ({times} times)" for seat, times in who.items()]
            verb = how if len(who) == 1 else how.removesuffix("s")
            yield number, phase, f"{', '.join(named)} {verb}{note}", audience


def _audience(step: Step, together: Sequence[str]) -> str:
    """Who sees a turn, those who speak at the same time by `each other`."""
    seeing = [seat for seat, seen in step.seen.items() if seen]
    others = [seat for seat in together if seat != step.seat]
    named = [seat if seat not in step.parts else f"{seat} ({', '.join(step.parts[seat])} alone)" for seat in seeing]
    if others and {*others} <= {*seeing}:
        named = ["each other", *(text for seat, text in zip(seeing, named) if seat not in others)]
    return ", ".join(named) or "nobody"


def _seats(found: Sketch) -> str:
    roles: dict[str, int] = {}
    for role in found.seats.values():
        roles[role] = roles.get(role, 0) + 1
    return ", ".join(role if count == 1 else f"{count} {role}" for role, count in roles.items())


def _work(found: Sketch) -> str:
    return ", ".join(f"{role} {load.turns}" for role, load in found.loads.items())


if __name__ == "__main__":
    sys.stdout.write(page())
