"""docs/ablation.md and its pictures, from the results of the ablation."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from benchmarks.ablation.jobs import ARENAS, JUDGE, flow, methods, settings
from benchmarks.harness.measure import ROOT, Json
from reporting.report import charts

COMMAND = "python -m benchmarks ablation"
READING = ROOT / "benchmarks" / "ablation_reading.yaml"
"""task -> what a person reads in its table: which methods fail, and why."""
HEAD = f"""# What to learn with

Eight ways to learn, on two tasks. Written by `{COMMAND}` from `benchmarks/ablation.json`
(`--tasks`, `--methods`, `--seeds` for some of it, `--dry-run` for the commands of single runs).

All methods start from the same weights, play as many plays, make as many optimizer steps per batch, and are credited
turn by turn; replies are always drawn from the newest weights (`max_staleness: 0`). One setting per method, none of
them tuned: a difference says how a method does with it, not what it could do at best. Three seeds tell large ones only.
"""
ENTROPY = "Entropy: of a sampled token, natural log, at the first learner step and over the last quarter of them."


def write(results: Json, seeds: Sequence[int], folder: Path) -> None:
    """The page and its pictures into `folder`. `results`: facts and runs, as in benchmarks/ablation.json."""
    pictures = folder / "ablation"
    parts = [HEAD]
    for task in ARENAS:
        mine = [one for one in results["runs"] if one["task"] == task]
        drawn = draw(task, mine)
        for name, picture in drawn.items():
            pictures.mkdir(parents=True, exist_ok=True)
            (pictures / f"{name}.svg").write_text(picture)
        parts.append(section(task, mine, seeds, list(drawn)))
    parts.append(settings_table())
    if results["runs"]:
        parts.append(circumstances_line(results["facts"]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ablation.md").write_text("\n".join(parts))


def section(task: str, runs: Sequence[Json], seeds: Sequence[int], pictures: Iterable[str]) -> str:
    """One task: a row per method, in the order of methods.yaml."""
    arena = ARENAS[task]
    lines = [f"## {arena.title}", "", f"`configs/ablation/{arena.config}`. Measured: {arena.measured}.", ENTROPY, ""]
    lines += [f"| method | mean | standard deviation | {' | '.join(f'seed {seed}' for seed in seeds)} | entropy |"]
    lines += ["|---|---|---|" + "---|" * len(seeds) + "---|"]
    if arena.judge:
        lines.append(row("random evidence", task, {one["seed"]: one["value"] for one in of(JUDGE, runs)}, seeds))
    lines.append(row("untrained", task, untrained(runs), seeds))
    for method, about in methods().items():
        mine = of(method, runs)
        values = {one["seed"]: one["value"] for one in mine}
        lines.append(row(about["title"], task, values, seeds, entropies(mine)))
    lines += ["", *(f"![{arena.title}](ablation/{name}.svg)" for name in pictures), ""]
    if any(of(method, runs) for method in methods()):
        lines += ["Above: each seed (dot), their mean (bar), untrained (dashed). Below: "
                  f"{arena.curve}, mean over seeds.", ""]  # fmt: skip
    lines += notes(task, runs, seeds)
    if READING.exists() and all(of(method, runs) for method in methods()):
        lines += [yaml.safe_load(READING.read_text())[task], ""]
    return "\n".join(lines)


def row(title: str, task: str, values: dict[int, float], seeds: Sequence[int], entropy: str = "") -> str:
    """A line of the table; what is not known is a dash."""
    known = [values[seed] for seed in seeds if seed in values]
    mean = shown(task, statistics.mean(known)) if known else "-"
    spread = shown(task, statistics.stdev(known)) if len(known) > 1 else "-"
    each = (shown(task, values[seed]) if seed in values else "-" for seed in seeds)
    return f"| {title} | **{mean}** | {spread} | {' | '.join(each)} | {entropy} |"


def entropies(runs: Sequence[Json]) -> str:
    """At the first step and at the end, mean over seeds."""
    known = [one["entropy"] for one in runs if one.get("entropy")]
    return " to ".join(f"{statistics.mean(column):.2f}" for column in zip(*known))


def notes(task: str, runs: Sequence[Json], seeds: Sequence[int]) -> list[str]:
    """What a reader has to know beside the numbers: what is missing, starts that differ, steps skipped."""
    lines: list[str] = []
    missing = [
        about["title"] + (f" (seed {', '.join(map(str, gone))})" if len(gone) < len(seeds) else "")
        for method, about in methods().items()
        if (gone := [seed for seed in seeds if seed not in {one["seed"] for one in of(method, runs)}])
    ]
    if missing:
        lines += [f"**Not measured yet:** {'; '.join(missing)}. Run `{COMMAND} --tasks {task}`.", ""]
    pairs = {method: [one["pairs"] for one in of(method, runs) if one.get("pairs")] for method in methods()}
    told = [f"{methods()[name]['title']} {statistics.mean(found):.0f}" for name, found in pairs.items() if found]
    if told:
        lines += [f"Pairs of replies per learner step: {', '.join(told)}.", ""]
    for seed in seeds:
        starts = {one["untrained"] for one in runs if one["seed"] == seed and "untrained" in one}
        if len(starts) > 1:
            low, high = shown(task, min(starts)), shown(task, max(starts))
            lines += [f"Seed {seed}: untrained from {low} to {high}, though all begin with the same weights.", ""]
    if skipped := sum(one["skipped"] for one in runs):
        lines += [f"{skipped} optimizer steps were skipped: their loss or gradient was no number.", ""]
    return lines


def settings_table() -> str:
    """What each method sets, task by task."""
    lines = ["## Settings", ""]
    lines += ["`configs/ablation/methods.yaml`: below `learner`, over what the task's config has for all.", ""]
    lines += ["| method | how it learns | source | " + " | ".join(ARENAS[task].title for task in ARENAS) + " |"]
    lines += ["|---|---|---|" + "---|" * len(ARENAS)]
    for method, about in methods().items():
        link = f"[{about['source']}](https://arxiv.org/abs/{about['source']})"
        blocks = " | ".join(f"`{flow(settings(method, task))}`" for task in ARENAS)
        lines.append(f"| {about['title']} | {about['about']} | {link} | {blocks} |")
    return "\n".join([*lines, ""])


def draw(task: str, runs: Sequence[Json]) -> dict[str, str]:
    """File name without ending -> SVG; nothing where nothing was measured."""
    arena = ARENAS[task]
    found = {about["title"]: of(method, runs) for method, about in methods().items() if of(method, runs)}
    if not found:
        return {}
    before = untrained(runs)
    values = {title: [one["value"] for one in mine] for title, mine in found.items()}
    curves = {title: mean_curve([one["curve"] for one in mine]) for title, mine in found.items()}
    start = statistics.mean(before.values()) if before else None
    return {
        task: charts.dots(values, start, arena.percent),
        f"{task}_curves": charts.lines({t: c for t, c in curves.items() if c}, percent=arena.percent, salt=task),
    }  # fmt: skip


def mean_curve(curves: Sequence[Sequence[Sequence[float]]]) -> list[tuple[float, float]]:
    """Step by step, over the seeds that have the step."""
    steps: dict[float, list[float]] = {}
    for curve in curves:
        for step, value in curve:
            steps.setdefault(step, []).append(value)
    return [(step, statistics.mean(values)) for step, values in sorted(steps.items())]


def untrained(runs: Iterable[Json]) -> dict[int, float]:
    """seed -> how the runs of that seed began, their mean."""
    found: dict[int, list[float]] = {}
    for one in runs:
        if "untrained" in one:
            found.setdefault(one["seed"], []).append(one["untrained"])
    return {seed: statistics.mean(values) for seed, values in found.items()}


def of(method: str, runs: Iterable[Json]) -> list[Json]:
    return [one for one in runs if one["method"] == method]


def shown(task: str, value: float) -> str:
    return f"{value:.1%}" if ARENAS[task].percent else f"{value:.3f}"


def circumstances_line(facts: Json) -> str:
    machine, versions = facts["machine"], facts["versions"]
    place = f"{machine['cores']} cores ({machine['processor']}), {machine['memory_gib']} GiB"
    used = ", ".join(f"{package} {version}" for package, version in versions.items())
    return f"Last run: {facts['date']}, commit {facts['commit'] or 'unknown'}, {place}; {used}.\n"
