"""`report.html`: one self-contained page made from summary.json, metrics.jsonl, episodes.jsonl and config.yaml."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import msgspec

from actors.evaluation import stats
from actors.rollout import records
from actors.rollout.files import write_atomically
from protocols.types import Episode
from reporting.console import arm_label, by_score, duration
from reporting.report import (
    charts,
    curves as report_curves,
    html,
    league as report_league,
    plays as report_plays,
)
from reporting.tracker import read_metrics

JUDGED = 1000
"""Without evaluation arms: judge health of the last so many plays."""


@dataclass
class Run:
    """What is known of a run, as its files tell."""

    summary: dict[str, Any]
    metrics: report_curves.Metrics
    config: str
    episodes: Path
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    heads: dict[str, records.Head] = field(default_factory=dict)
    arms: dict[str, list[str]] = field(default_factory=dict)
    """arm -> ids of its `ok` plays"""
    children: dict[str, list[str]] = field(default_factory=dict)

    def load(self, ids: Sequence[str]) -> list[Episode]:
        return list(records.read_at(self.episodes, [self.places[id] for id in ids])) if ids else []


def write_report(run_dir: Path | str) -> Path:
    """Writes `RUN_DIR/report.html` and returns its path. Parts whose files or figures are missing are left out."""
    folder = Path(run_dir)
    run = _read(folder)
    name = str(run.summary.get("name", folder.name))
    plays = run.load(report_plays.choose(run.heads, run.arms, run.children))
    says = "Numbers beside a turn are its reward; bars are the judge's belief after it."
    parts = [
        f'<header><h1>{escape(name)}</h1><p class="facts">{escape("  ·  ".join(_facts(run)))}</p></header>',
        _headline(run),
        _lengths(run),
        _judge(run),
        report_league.section(run.summary),
        *report_curves.sections(run.metrics, {"Play": list(_solve_rates(run))}),
        html.section("Sample plays", report_plays.cards(plays), says),
        report_curves.others(run.metrics),
        _about(run),
    ]
    page = html.page(f"{name} · Dissoi", "\n".join(filter(None, parts)))
    write_atomically(folder / "report.html", page.encode(errors="replace"))
    return folder / "report.html"


def _read(folder: Path) -> Run:
    summary_path, metrics_path = folder / "summary.json", folder / "metrics.jsonl"
    summary = msgspec.json.decode(summary_path.read_bytes()) if summary_path.exists() else {}
    metrics: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    stage_step = 0
    for line in read_metrics(metrics_path) if metrics_path.exists() else ():
        part = line["kind"].split("/")[0]
        if part == "rollout":
            stage_step = line["step"]
        # Held-out figures count updates, of all policies, and are drawn beside those of the steps that they come after.
        at = stage_step if part == "eval" else line["step"]
        for name, value in report_curves.with_rates(line["values"]).items():
            if value is None or isinstance(value, int | float):
                metrics[line["kind"], name].append((at, float("nan") if value is None else value))
    config = folder / "config.yaml"
    run = Run(
        summary, dict(metrics), config.read_text() if config.exists() else "", folder / "episodes.jsonl"
    )
    if run.episodes.exists():
        for head, offset, length in records.heads(run.episodes):
            run.heads[head.id], run.places[head.id] = head, (offset, length)
            arm = str(head.meta.get("arm", ""))
            if arm and "@" not in arm and head.status == "ok":  # name@step: a point of a curve
                run.arms.setdefault(arm, []).append(head.id)
            if head.parent is not None:
                run.children.setdefault(head.parent, []).append(head.id)
    return run


def _headline(run: Run) -> str:
    """The table of arms that the summary has, as bars, for each kind of score; the ceiling as a line."""
    table = run.summary.get("judge_accuracy") or run.summary.get("accuracy") or {}
    arms = {name: entry for name, entry in table.items() if _interval(entry)}
    groups = by_score(arms, run.summary.get("scores") or {})
    return "".join(_arms(says, some) for says, some in groups.items())


def _arms(says: str, arms: dict[str, Any]) -> str:
    counts = sorted({int(entry["n"]) for entry in arms.values() if "n" in entry})
    ceiling = arms.pop("minimax_ceiling", None)
    picture = charts.bars(arms, ceiling, {name: arm_label(name) for name in arms})
    n = " to ".join(f"{count:,}" for count in dict.fromkeys([*counts[:1], *counts[-1:]]))
    note = "Held-out tasks, 95% intervals" + (f", n = {n} each." if n else ".")
    tiles = "".join(_tiles(arms, ceiling))
    title = says[:1].upper() + says[1:]
    return html.section(title, f'<div class="hero"><div>{picture}</div><div class="tiles">{tiles}</div></div>', note)


def _tiles(arms: Mapping[str, Any], ceiling: Mapping[str, float] | None) -> Iterator[str]:
    if "trained" in arms and "untrained" in arms:
        before, after = arms["untrained"]["mean"], arms["trained"]["mean"]
        yield html.tile(f"{before:.1%} → {after:.1%}", "before → after training")
        yield html.tile(f"{after - before:+.1%}", "gain")
        if ceiling is not None and ceiling["mean"] > before:
            yield html.tile(
                f"{(after - before) / (ceiling['mean'] - before):.0%}", "of the gap to the exact ceiling"
            )


def _interval(entry: Any) -> bool:
    """Whether an arm has a mean: not where none of its plays has a score."""
    return isinstance(entry, Mapping) and isinstance(entry.get("mean"), int | float) and entry.get("n", 1) > 0


def _solve_rates(run: Run) -> Iterator[str]:
    """How hard the proposed tasks were: mean score of the plays of each proposal, early against late."""
    rates = []
    for kids in run.children.values():
        scores: dict[str, list[float]] = {}  # of a play with several proposals, each has plays named after it
        for kid in kids:
            if (score := run.heads[kid].score) is not None:
                scores.setdefault(kid.rpartition("/")[2].rpartition(".")[0], []).append(float(score))
        rates += [sum(own) / len(own) for own in scores.values() if len(own) >= 4]
    third = len(rates) // 3
    if third >= 5:
        groups = {"first third of training": rates[:third], "last third": rates[-third:]}
        says = "share of proposals, by mean score of their plays"
        yield html.card("Solve rate of proposals", says, charts.histogram(groups))


def _judge(run: Run) -> str:
    plays = {name: run.load(ids) for name, ids in run.arms.items()}
    if not plays:
        judged = [id for id, head in run.heads.items() if head.status == "ok" and id not in run.children]
        plays = {"training": run.load(judged[-JUDGED:])}
    health = {name: found for name, episodes in plays.items() if (found := stats.judge_health(episodes))}
    if not health:
        return ""
    header = (
        "",
        "right",
        "MCC",
        "Brier",
        "ECE",
        "swap flips",
        "right, truth first",
        "right, truth second",
        "unreadable",
        "n",
    )
    rows = []
    for name, found in health.items():
        flips = found["swap_flip_rate"]
        rows.append([
            arm_label(name), _range(found["accuracy"]),
            f"{found['mcc']:.2f}", f"{found['brier']:.3f}", f"{found['ece']:.3f}",
            "" if flips is None else f"{flips:.1%}", _range(found["honest_first"]), _range(found["honest_second"]),
            f"{found['unreadable']:.1%}", f"{found['n']:,}",
        ])  # fmt: skip
    others = []
    for name, episodes in plays.items():
        for seat, own in stats.beside(episodes).items() if name in health else ():
            cells = [_range(own["accuracy"]), f"{own['brier']:.3f}", _range(own["agreement"])]
            others.append([arm_label(name), seat, *cells, f"{own['belief_gap']:+.3f}", f"{own['n']:,}"])
    shown = {name: health[name] for name in ("untrained", "trained") if name in health} or dict(
        list(health.items())[:2]
    )
    cards = [html.card("Reliability", "confidence against share right", charts.reliability(
        {arm_label(name): found["reliability"] for name, found in shown.items()}))]  # fmt: skip
    rounds = {arm_label(name): sorted(found["accuracy_by_round"].items()) for name, found in health.items()}
    if any(len(values) > 1 for values in rounds.values()):
        cards.append(
            html.card(
                "Right after each turn",
                "judge accuracy by public turns taken",
                charts.lines(rounds, percent=True, salt="rounds"),
            )
        )
    says = (
        "Brier: 0 best, .25 for always one half. ECE: distance of confidence and accuracy. Swap flips: verdicts that "
        "change when the claims are named in the other order. Truth first: the first side argues it."
    )
    body = html.table(header, rows)
    if others:
        body += html.table(("", "beside it", "right", "Brier", "agrees", "believes the truth less by", "n"), others)
    return html.section("Judge", body + html.grid(cards), says)


def _range(interval: stats.Interval) -> str:
    return f"{interval.mean:.1%} ({100 * interval.low:.1f} to {100 * interval.high:.1f})" if interval.n else ""


def _lengths(run: Run) -> str:
    """summary["accuracy_by_length"]: {arm: {length: share or {"mean": ...}}}, or one such row without arms."""
    given = run.summary.get("accuracy_by_length")
    if not isinstance(given, Mapping) or not given:
        return ""
    rows = (
        given
        if all(isinstance(row, Mapping) and not _interval(row) for row in given.values())
        else {"": given}
    )
    table = {
        name: {str(key): _share(value) for key, value in row.items()} for name, row in rows.items() if row
    }
    if not table:
        return ""
    lengths = sorted({key for row in table.values() for key in row}, key=lambda key: (len(key), key))
    body = html.table(
        ("", *lengths, "mean"),
        [
            [
                arm_label(name),
                *(f"{row[key]:.2f}" if key in row else "" for key in lengths),
                f"{sum(row.values()) / max(1, len(row)):.2f}",
            ]
            for name, row in table.items()
        ],
    )
    series = {arm_label(name): [(float(key), row[key]) for key in lengths if key in row] for name, row in table.items()
              if all(re.fullmatch(r"-?\d+(\.\d+)?", key) for key in row)}  # fmt: skip
    picture = (
        html.card("By length", "held-out accuracy", charts.lines(series, percent=True, salt="lengths"))
        if series
        else ""
    )
    return html.section("Accuracy by length", body + html.grid([picture]))


def _share(value: Any) -> float:
    return float(value["mean"] if isinstance(value, Mapping) else value)


def _facts(run: Run) -> list[str]:
    parts = [duration(run.summary["wall_s"])] if "wall_s" in run.summary else []
    for key in ("episodes", "tokens", "policy_updates", "invalid_episodes", "lost_episodes"):
        if isinstance(run.summary.get(key), int | float):
            parts.append(f"{run.summary[key]:,} {key.replace('_', ' ')}")
    return [*parts, f"seed {run.summary['seed']}"] if "seed" in run.summary else parts


def _about(run: Run) -> str:
    """The rest of the summary, and the config."""
    known = ("name", "judge_accuracy", "accuracy", "scores", "accuracy_by_length", "league")
    left = {key: value for key, value in run.summary.items() if key not in known}
    body = ""
    if left:
        text = msgspec.json.format(msgspec.json.encode(left), indent=2).decode()
        body += html.details("summary.json", f'<pre class="code">{escape(text)}</pre>')
    if run.config:
        body += html.details("config.yaml", f'<pre class="code">{escape(run.config)}</pre>')
    return html.section("Run", f'<div class="panel">{body}</div>' if body else "")
