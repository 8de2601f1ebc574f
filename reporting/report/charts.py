"""Pictures of the report, each one a self-contained SVG string. Matplotlib is imported when one is drawn."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

import numpy as np

from protocols.types import Episode
from reporting import transcript

COLOURS = ("#3566a8", "#d77b26", "#3f9467", "#8560ad", "#bf4b4b", "#2f97a3", "#8a6d3b", "#64748b")
INK, FAINT, GRID = "#1f2933", "#7b8794", "#e6e9ed"
PIXEL = re.compile(r"r(\d+)c(\d+)=(-?\d+)")
"""A statement about one cell: row, column, value."""

Series = Sequence[tuple[float, float]]
Interval = Mapping[str, float]


@contextmanager
def _figure(
    width: float, height: float, salt: str, left: float = 0.5, bottom: float = 0.25
) -> Iterator[tuple[Any, io.StringIO]]:
    """One axis on a figure, sizes in inches; the SVG is in the buffer when the block has ended. Margins are fixed:
    Matplotlib's layout engines draw everything twice."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9,
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "axes.edgecolor": GRID,
        "axes.labelcolor": FAINT,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "xtick.color": FAINT,
        "ytick.color": FAINT,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "text.color": INK,
        "legend.frameon": False,
        "legend.fontsize": 8,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(width, height))
        axis = figure.add_axes(
            (left / width, bottom / height, 1 - (left + 0.22) / width, 1 - (bottom + 0.18) / height)
        )
        buffer = io.StringIO()
        yield axis, buffer
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})


def _svg(buffer: io.StringIO) -> str:
    """Without XML prologue, and with CSS instead of points for its width."""
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'class="chart"', text, count=1)


def _plain(label: str) -> str:
    """Matplotlib reads $...$ as mathematics."""
    return label.replace("$", r"\$")


def bars(arms: Mapping[str, Interval], ceiling: Interval | None, labels: Mapping[str, str]) -> str:
    """Shares of right verdicts with 95% intervals, and the ceiling as a line with its own interval."""
    longest = max((len(labels.get(name, name)) for name in arms), default=0)
    with _figure(7.6, 0.5 + 0.46 * len(arms), "bars", left=max(1.45, 0.2 + 0.07 * longest)) as (axis, buffer):
        for row, (name, entry) in enumerate(arms.items()):
            mean, low, high = entry["mean"], entry.get("low", entry["mean"]), entry.get("high", entry["mean"])
            colour = COLOURS[0] if name == "trained" else "#b9c7dc"
            axis.barh(row, mean, height=0.62, color=colour)
            axis.plot([low, high], [row, row], color=INK, linewidth=1.4, solid_capstyle="butt")
            axis.text(
                0.012,
                row,
                f"{mean:.1%}",
                va="center",
                color="white" if name == "trained" else INK,
                weight="bold",
            )
        if ceiling is not None:
            if "low" in ceiling and "high" in ceiling:
                axis.axvspan(ceiling["low"], ceiling["high"], color=COLOURS[2], alpha=0.15, linewidth=0)
            axis.axvline(ceiling["mean"], color=COLOURS[2], linestyle=(0, (4, 3)), linewidth=1.5)
            axis.text(
                ceiling["mean"] - 0.006,
                -0.72,
                f"ceiling {ceiling['mean']:.1%}",
                color=COLOURS[2],
                ha="right",
                va="center",
            )
        axis.set_ylim(len(arms) - 0.5, -1.0 if ceiling is not None else -0.5)
        axis.set_xlim(0, 1)
        axis.set_yticks(range(len(arms)), [_plain(labels.get(name, name)) for name in arms], color=INK)
        axis.xaxis.set_major_formatter("{x:.0%}")
        axis.grid(False, axis="y")
    return _svg(buffer)


def lines(
    series: Mapping[str, Series],
    percent: bool = False,
    points: Mapping[str, Series] | None = None,
    salt: str = "",
) -> str:
    """Curves over steps: faint raw values under a running mean where there are many, dots for `points`."""
    names = [*series, *(points or {})]
    shown, columns = len(names), 2 if max(map(len, names), default=0) <= 26 else 1
    below = 0.17 * -(-shown // columns) if shown > 4 else 0.0  # inches: a legend of many would cover the curves
    with _figure(3.9, 2.25 + below, "lines" + salt, bottom=0.25 + below) as (axis, buffer):
        colours = iter(COLOURS * (1 + shown))
        for name, values in series.items():
            colour = next(colours)
            x, y = np.asarray(values, float).T
            smooth = running_mean(y, max(1, len(y) // 20))
            if len(y) >= 40:
                axis.plot(x, y, color=colour, linewidth=0.7, alpha=0.3)
            axis.plot(x, smooth if len(y) >= 40 else y, color=colour, linewidth=1.6, label=_plain(name))
        for name, values in (points or {}).items():
            x, y = np.asarray(values, float).T
            axis.plot(
                x,
                y,
                color=next(colours),
                marker="o",
                markersize=4,
                linewidth=1,
                linestyle=":",
                label=_plain(name),
            )
        if percent:
            axis.yaxis.set_major_formatter("{x:.0%}")
        else:
            axis.ticklabel_format(axis="y", scilimits=(-3, 5))
        if below:
            axis.figure.legend(loc="lower left", ncols=columns, handlelength=1.2, columnspacing=1, borderaxespad=0.1)
        elif shown > 1 or (shown == 1 and names[0]):
            axis.legend(loc="best", handlelength=1.2)
        axis.margins(x=0.02, y=0.12)
        drawn = [
            y for values in [*series.values(), *(points or {}).values()] for _, y in values if np.isfinite(y)
        ]
        if drawn and min(drawn) == max(drawn):
            axis.set_ylim(min(0.0, drawn[0] * 1.5), max(1.0, drawn[0] * 1.5) if drawn[0] >= 0 else 0.0)
        axis.xaxis.get_major_locator().set_params(integer=True)
    return _svg(buffer)


def running_mean(values: np.ndarray, reach: int) -> np.ndarray:
    """Mean over up to `reach` neighbours on each side, fewer at the ends, missing values left out."""
    known = np.isfinite(values)
    kernel = np.ones(2 * reach + 1)
    total = np.convolve(np.where(known, values, 0.0), kernel)[reach : reach + len(values)]
    count = np.convolve(known.astype(float), kernel)[reach : reach + len(values)]
    means: np.ndarray = np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
    return means


def dots(groups: Mapping[str, Sequence[float]], before: float | None = None, percent: bool = False) -> str:
    """One row per group: its values as dots, their mean as a bar across; `before` as a dashed line."""
    left = max(1.45, 0.25 + 0.07 * max(map(len, groups), default=0))  # inches for the longest name
    with _figure(7.6, 0.5 + 0.34 * len(groups), "dots" + "".join(groups), left=left) as (axis, buffer):
        for row, values in enumerate(groups.values()):
            mean = sum(values) / len(values)
            axis.scatter(values, [row] * len(values), s=34, color=COLOURS[0], alpha=0.5, linewidth=0, zorder=3)
            axis.plot([mean, mean], [row - 0.32, row + 0.32], color=INK, linewidth=2, solid_capstyle="butt")
        if before is not None:
            axis.axvline(before, color=FAINT, linestyle=(0, (4, 3)), linewidth=1.2)
        axis.set_ylim(len(groups) - 0.5, -0.5)
        axis.set_yticks(range(len(groups)), [_plain(name) for name in groups], color=INK)
        if percent:
            axis.xaxis.set_major_formatter("{x:.0%}")
        axis.margins(x=0.05)
        axis.grid(False, axis="y")
    return _svg(buffer)


def histogram(groups: Mapping[str, Sequence[float]], bins: int = 9) -> str:
    """Shares of values in [0, 1], one outline per group."""
    with _figure(3.9, 2.25, "histogram") as (axis, buffer):
        edges = np.linspace(0, 1, bins + 1)
        width = 0.8 / bins / max(1, len(groups))
        for index, (name, values) in enumerate(groups.items()):
            counts, _ = np.histogram(values, edges)
            left = (edges[:-1] + edges[1:]) / 2 + (index - (len(groups) - 1) / 2) * width
            axis.bar(left, counts / max(1, len(values)), width, color=COLOURS[index], label=_plain(name))
        axis.yaxis.set_major_formatter("{x:.0%}")
        axis.grid(False, axis="x")
        if len(groups) > 1:
            axis.legend(loc="best", handlelength=1.2)
    return _svg(buffer)


def heat(scores: Sequence[Sequence[float | None]], names: Sequence[str]) -> str:
    """A square of scores in [0, 1], one half white; None is left empty."""
    size = 0.9 + 0.42 * len(names)
    values = np.array([[np.nan if value is None else value for value in row] for row in scores], float)
    with _figure(size + 0.7, size + 0.2, "heat", left=1.2, bottom=0.75) as (axis, buffer):
        axis.imshow(values, cmap="RdBu", vmin=0.0, vmax=1.0, aspect="auto")
        for row, column in np.argwhere(np.isfinite(values)):
            value = values[row, column]
            colour = "white" if abs(value - 0.5) > 0.3 else INK
            axis.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=colour, fontsize=7)
        axis.set_xticks(range(len(names)), [_plain(name) for name in names], rotation=45, ha="right")
        axis.set_yticks(range(len(names)), [_plain(name) for name in names], color=INK)
        axis.grid(False)
    return _svg(buffer)


def reliability(groups: Mapping[str, Sequence[Any]]) -> str:
    """Confidence against accuracy (stats.Bin); the size of a dot is the share of verdicts in it."""
    with _figure(3.9, 2.6, "reliability", bottom=0.42) as (axis, buffer):
        axis.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (3, 3)))
        lowest = 1.0
        for index, (name, bins) in enumerate(groups.items()):
            total = sum(entry.n for entry in bins)
            x, y = [entry.confidence for entry in bins], [entry.accuracy for entry in bins]
            axis.plot(x, y, color=COLOURS[index], linewidth=1.3, label=_plain(name))
            axis.scatter(
                x,
                y,
                [10 + 250 * entry.n / total for entry in bins],
                color=COLOURS[index],
                alpha=0.6,
                linewidth=0,
            )
            lowest = min([lowest, *x])
        axis.set_xlim(max(0.0, lowest - 0.03), 1.02)
        axis.set_ylim(-0.03, 1.05)
        axis.set_xlabel("confidence")
        axis.xaxis.set_major_formatter("{x:.0%}")
        axis.yaxis.set_major_formatter("{x:.0%}")
        axis.legend(loc="lower right", handlelength=1.2)
    return _svg(buffer)


def spark(values: Sequence[float]) -> str:
    """A line without axes, 120 x 22 pixels."""
    finite = [value for value in values if np.isfinite(value)]
    if len(finite) < 2:
        return ""
    low, high = min(finite), max(finite)
    stride = max(1, len(finite) // 60)
    shown = finite[::stride]
    points = " ".join(
        f"{index * 118 / max(1, len(shown) - 1) + 1:.1f},{20 - 18 * (value - low) / ((high - low) or 1):.1f}"
        for index, value in enumerate(shown)
    )
    return (f'<svg class="spark" viewBox="0 0 120 22"><polyline points="{points}" fill="none" '
            f'stroke="{COLOURS[0]}" stroke-width="1.3"/></svg>')  # fmt: skip


def pixels(episode: Episode, colours: Mapping[str, str]) -> str:
    """The image behind a pixel debate: every statement as a grey cell, each reveal framed in its seat's colour and
    numbered. Empty where the evidence is of another kind."""
    cells = [PIXEL.fullmatch(statement) for statement in episode.task.evidence]
    if not cells or not all(cells):
        return ""
    values = {(int(cell[1]), int(cell[2])): int(cell[3]) for cell in cells if cell}
    side = max(8, *(1 + max(place) for place in values))
    top = max(*values.values(), 1)
    size = 176 / side
    parts = [f'<svg class="pixels" viewBox="0 0 {176} {176}"><rect width="176" height="176" fill="#101418"/>']
    for (row, column), value in values.items():
        grey = round(40 + 190 * value / top)
        parts.append(f'<rect x="{column * size:.1f}" y="{row * size:.1f}" width="{size:.1f}" height="{size:.1f}" '
                     f'fill="rgb({grey},{grey},{grey})"/>')  # fmt: skip
    number = 0
    for turn in episode.turns:
        cell = PIXEL.fullmatch(turn.text)
        if turn.read or cell is None or (int(cell[1]), int(cell[2])) not in values:
            continue
        number += 1
        x, y = int(cell[2]) * size, int(cell[1]) * size
        parts.append(f'<rect x="{x + 1:.1f}" y="{y + 1:.1f}" width="{size - 2:.1f}" height="{size - 2:.1f}" rx="3" '
                     f'fill="{colours.get(turn.seat, INK)}" fill-opacity="0.85"/>'
                     f'<text x="{x + size / 2:.1f}" y="{y + size * 0.7:.1f}" text-anchor="middle" fill="white" '
                     f'font-size="{size * 0.55:.0f}">{number}</text>')  # fmt: skip
    return "".join(parts) + "</svg>"


def seat_colours(episode: Episode) -> dict[str, str]:
    """Speakers by order of first speaking; judges are grey."""
    names = transcript.speakers(episode)
    return {seat: COLOURS[index % len(COLOURS)] for index, seat in enumerate(names)}


def belief_bar(scores: Sequence[float]) -> str:
    """The judge's probabilities as one stacked bar."""
    total = sum(scores) or 1.0
    parts = [
        f'<i style="width:{100 * max(0.0, score) / total:.1f}%;background:{COLOURS[index % len(COLOURS)]}" '
        f'title="{escape(f"{score:.3f}")}"></i>'
        for index, score in enumerate(scores)
    ]
    return f'<span class="belief">{"".join(parts)}</span>'
