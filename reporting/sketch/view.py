"""A sketch on the terminal, and as an SVG picture: seats as columns, time downwards."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from reporting.sketch.sketch import CHARS_PER_TOKEN, MAX_TOKENS, Sketch, Step

if TYPE_CHECKING:
    from rich.console import RenderableType

COLOURS = ("#3566a8", "#d77b26", "#3f9467", "#8560ad", "#bf4b4b", "#2f97a3", "#8a6d3b", "#64748b")
SEEN = {True: "sees it", False: "", None: "-"}
LEGEND = (
    "Turns with the same number happen at once. sees it: the reply stands in what the seat is asked later;\n"
    "-: the seat is not asked again, so it cannot matter. Found by playing with marked replies, not read from the file."
)


def render(found: Sketch) -> RenderableType:
    """Turn order with who sees what, the task's material, and the work of each role."""
    from rich.console import Group

    return Group(
        _turn_table(found), _legend(found), "", _material_table(found), "", _load_table(found), _note()
    )


def _legend(found: Sketch) -> str:
    """Of the table of turns, with what is special about this protocol."""
    lines = [LEGEND]
    if found.drawn:
        lines.append("The order of turns is drawn for each play: this is one of them.")
    if any(step.parts for step in found.steps):
        lines.append("sees NAME: of a reply written in parts, these alone.")
    if any(step.ends for step in found.steps):
        lines.append("may end: the seat can end the phase with this turn; nobody does here.")
    return "\n".join(lines)


def _note() -> str:
    return (
        f"Tokens are estimates: {CHARS_PER_TOKEN} characters each, replies at their longest (max_tokens, else "
        f"{MAX_TOKENS}),\nwithout the length of the task's own texts."
    )


def _turn_table(found: Sketch) -> RenderableType:
    from rich.markup import escape as plain
    from rich.table import Table

    turns = sum(load.turns for load in found.loads.values())
    count = f"at most {turns}" if found.at_most else str(turns)
    table = Table(title=f"{plain(found.name)} ({found.kind}): {count} turns a play", title_justify="left")
    table.add_column("turn", justify="right")
    table.add_column("phase")
    for seat, role in found.seats.items():
        table.add_column(plain(seat if seat == role else f"{seat} ({role})"))
    forks = set()
    for step in found.steps:
        cells = [_cell(step, seat) for seat in found.seats]
        new = step.fork > 1 and (fork := step.number.rpartition(".")[0]) not in forks
        times = f" ({step.fork} sub-plays, one shown)" if new else ""
        forks |= {fork} if new else set()
        table.add_row(step.number, plain(step.phase + times), *cells)
    return table


def _cell(step: Step, seat: str) -> str:
    from rich.markup import escape as plain

    if seat == step.seat:
        return f"[bold]{step.how}[/]{', may end' if step.ends else ''}"
    if seat in step.parts:
        return f"sees {plain(', '.join(step.parts[seat]))}"
    return SEEN[step.seen[seat]]


def _material_table(found: Sketch) -> RenderableType:
    from rich.markup import escape as plain
    from rich.table import Table

    table = Table(title="what of the task is shown to whom", title_justify="left")
    table.add_column("material")
    for seat in found.seats:
        table.add_column(plain(seat))
    for name, row in found.material.items():
        table.add_row(plain(name), *("sees it" if row[seat] else "" for seat in found.seats))
    return table


def _load_table(found: Sketch) -> RenderableType:
    from rich.markup import escape as plain
    from rich.table import Table

    table = Table(title="work of a play", title_justify="left")
    for column in (
        "role",
        "turns",
        "tokens written, at most",
        "tokens of prompts",
        "of them new to the seat",
    ):
        table.add_column(column, justify="left" if column == "role" else "right")
    for role, load in found.loads.items():
        table.add_row(plain(role), *(f"{n:,}" for n in (load.turns, load.written, load.prompt, load.fresh)))
    loads = found.loads.values()
    if len(loads) > 1:
        total = [
            sum(getattr(load, name) for load in loads) for name in ("turns", "written", "prompt", "fresh")
        ]
        table.add_section()
        table.add_row("all", *(f"{n:,}" for n in total))
    return table


LEFT, TOP, ROW, COLUMN = 190, 64, 30, 130


def svg(found: Sketch) -> str:
    """One column per seat, one row per turn; bands mark what happens at once. A filled dot speaks, a ring sees it."""
    seats = list(found.seats)
    rows = found.steps
    width, height = LEFT + COLUMN * len(seats), TOP + ROW * len(rows) + 44
    x = {seat: LEFT + COLUMN * i + COLUMN // 2 for i, seat in enumerate(seats)}
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="DejaVu Sans, sans-serif" font-size="12" fill="#1f2933">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="24" font-weight="bold" font-size="14">{escape(found.name)}</text>',
        f'<text x="12" y="44" fill="#7b8794">{escape(found.kind)}</text>',
    ]
    for i, (label, band) in enumerate(groupby(range(len(rows)), key=lambda row: rows[row].number)):
        members = list(band)
        y, shade = TOP + ROW * members[0], "#f4f6f8" if i % 2 == 0 else "#ffffff"
        parts.append(f'<rect x="0" y="{y}" width="{width}" height="{ROW * len(members)}" fill="{shade}"/>')
        parts.append(f'<text x="12" y="{y + 20}" fill="#7b8794">{label}</text>')
    for i, seat in enumerate(seats):
        parts.append(f'<text x="{x[seat]}" y="24" text-anchor="middle" font-weight="bold" fill="{_colour(i)}">'
                     f'{escape(seat)}</text>')  # fmt: skip
        role = found.seats[seat]
        if role != seat:
            parts.append(
                f'<text x="{x[seat]}" y="44" text-anchor="middle" fill="#7b8794">{escape(role)}</text>'
            )
        parts.append(f'<line x1="{x[seat]}" y1="{TOP - 10}" x2="{x[seat]}" y2="{TOP + ROW * len(rows)}" '
                     'stroke="#cbd2d9"/>')  # fmt: skip
    for row, step in enumerate(rows):
        parts += _arrow(step, TOP + ROW * row + ROW // 2, x, seats)
    caption = "filled: writes, picks or judges; ring: sees it in a later turn; one band: at once"
    parts.append(f'<text x="12" y="{height - 16}" fill="#7b8794" font-size="11">{caption}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _arrow(step: Step, y: int, x: dict[str, int], seats: list[str]) -> Iterator[str]:
    colour = _colour(seats.index(step.seat))
    times = f" x{step.fork}" if step.fork > 1 else ""
    yield f'<text x="52" y="{y + 4}">{escape(step.phase + times)}</text>'
    seeing = [seat for seat, seen in step.seen.items() if seen]
    for seat in seeing:
        yield f'<line x1="{x[step.seat]}" y1="{y}" x2="{x[seat]}" y2="{y}" stroke="{colour}" stroke-width="1.4"/>'
    for seat in seeing:
        yield f'<circle cx="{x[seat]}" cy="{y}" r="5" fill="#ffffff" stroke="{colour}" stroke-width="1.8"/>'
    yield f'<circle cx="{x[step.seat]}" cy="{y}" r="7" fill="{colour}"><title>{escape(step.how)}</title></circle>'


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]
