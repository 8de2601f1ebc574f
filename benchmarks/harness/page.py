"""docs/benchmarks.md and its pictures, from the results."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from benchmarks.harness.measure import Json

COLOURS = ("#3566a8", "#d77b26", "#3f9467", "#8560ad", "#bf4b4b", "#2f97a3")
INK, FAINT, GRID = "#1f2933", "#7b8794", "#e6e9ed"
HEAD = """# Benchmarks

Written by `make bench` (`python -m benchmarks NAME ...` for some of them) from `benchmarks/results.json`. What counts
are ratios of things measured in one run on one machine; absolute numbers are those of the machine named below each
table. A target that was missed says so.
"""


def write(results: Json, folder: Path) -> None:
    """The page and its pictures into `folder`."""
    pictures = folder / "benchmarks"
    pictures.mkdir(parents=True, exist_ok=True)
    parts = [HEAD]
    for name, found in results.items():
        files = []
        for number, figure in enumerate(found.get("metrics", [])):
            files.append(f"{name}{number or ''}.svg")
            (pictures / files[-1]).write_text(draw(figure))
        parts.append(section(name, found, files))
    (folder / "benchmarks.md").write_text("\n".join(parts))


def section(name: str, found: Json, files: list[str]) -> str:
    """One benchmark: what it does, its targets, its numbers. `remark`: written by hand, on how a measurement went."""
    about = found["about"]  # as it was when this was measured
    title, _, rest = about.partition("\n\n")
    title = title.partition(": ")[2]
    lines = [f"## {name}", "", title[:1].upper() + title[1:], "", rest, ""]
    lines += ["| target | bound | measured | low to high | met |", "|---|---|---|---|---|"]
    for entry in found["targets"]:
        low_high = f"{entry['low']:g} to {entry['high']:g} ({entry['repeats']} runs)" if "low" in entry else ""
        met = "yes" if entry["met"] else "**no**"
        lines.append(f"| {entry['what']} | {bound(entry)} | {entry['measured']:g} | {low_high} | {met} |")
    lines += ["", *(f"![{found['metrics'][i]['title']}](benchmarks/{file})" for i, file in enumerate(files)), ""]
    lines += [found["remark"], ""] if "remark" in found else []
    lines += ["| measured | |", "|---|---|", *rows(found["measured"]), ""]
    lines += ["| setting | |", "|---|---|", *rows(found["settings"]), ""]
    machine, versions = found["machine"], found["versions"]
    place = f"{machine['cores']} cores ({machine['processor']}), {machine['memory_gib']} GiB, load {found['load']}"
    used = ", ".join(f"{package} {version}" for package, version in versions.items())
    lines += [f"{found['date']}, commit {found['commit'] or 'unknown'}, {found['seconds']} s, {place}; {used}.", ""]
    return "\n".join(lines)


def rows(values: Json, before: str = "") -> list[str]:
    """Table rows of nested values; a spread takes one row."""
    found: list[str] = []
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, dict) and {"median", "low", "high"} <= set(value):
            found.append(f"| {name} | {value['median']:g} ({value['low']:g} to {value['high']:g}) |")
        elif isinstance(value, dict):
            found += rows(value, f"{name}, ")
        else:
            found.append(f"| {name} | {f'{value:g}' if isinstance(value, float) else value} |")
    return found


def bound(target: Json) -> str:
    return f"at least {target['at_least']:g}" if "at_least" in target else f"at most {target['at_most']:g}"


def sentence(target: Json) -> str:
    """A target on one line of a terminal."""
    return f"{'met   ' if target['met'] else 'MISSED'} {target['what']}: {target['measured']:g} ({bound(target)})"


def draw(spec: Json) -> str:
    """One picture as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {"font.size": 9, "svg.hashsalt": spec["title"], "axes.edgecolor": GRID, "axes.labelcolor": FAINT,
             "axes.axisbelow": True, "axes.grid": True, "grid.color": GRID, "axes.spines.top": False,
             "axes.spines.right": False, "xtick.color": FAINT, "ytick.color": FAINT, "text.color": INK,
             "legend.frameon": False}  # fmt: skip
    with matplotlib.rc_context(style):
        picture = Figure(figsize=(6.4, 2.8), layout="constrained", facecolor="white")
        axis: Any = picture.add_subplot()
        if spec["kind"] == "bars":
            labels, values = list(spec["series"]), list(spec["series"].values())
            shown = axis.barh(range(len(values)), values, color=[COLOURS[i % len(COLOURS)] for i in range(len(values))])
            axis.bar_label(shown, fmt="%.4g", padding=3)
            axis.set_yticks(range(len(labels)), labels)
            axis.invert_yaxis()
            axis.margins(x=0.12)
        else:
            for i, (label, points) in enumerate(spec["series"].items()):
                axis.plot(*zip(*points), label=label, color=COLOURS[i % len(COLOURS)], marker="o", markersize=3)
            if spec["log_x"]:
                axis.set_xscale("log")
            if spec["zero"]:
                axis.set_ylim(bottom=0)
            axis.legend()
        axis.set_xlabel(spec["x"])
        axis.set_ylabel(spec["y"])
        axis.set_title(spec["title"], fontsize=10, loc="left")
        buffer = io.StringIO()
        picture.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
