"""The report's curves: which figures of `metrics.jsonl` go on which picture, and a table of all the others."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actors import charts, html

Curve = list[tuple[float, float]]
Metrics = Mapping[tuple[str, str], Curve]
"""(kind, name) -> (step, value) in order; missing values are NaN."""


@dataclass(frozen=True)
class Chart:
    """Which figures go on one picture: those whose kind and name match."""

    title: str
    says: str
    name: str
    kind: str = "rollout|learner"
    percent: bool = False
    held_out: bool = False
    """Evaluations between steps are drawn too, as dots."""


CHARTS: Mapping[str, Sequence[Chart]] = {
    "Play": (
        Chart("Truth wins", "score of training plays; dots: held-out", r"judge_accuracy|honest_win_rate|score", percent=True, held_out=True),
        Chart("Reward per role", "mean per play", r"rewards?(_mean)?"),
        Chart("Proposer", "learnability and solve rate", r"(learnability|solve_rate|duplicate_share)"),
        Chart("Invalid and lost plays", "share or count per step", r"(invalid|lost|truncated|illegal|unreadable)(_share|_rate)?"),
    ),
    "Learning": (
        Chart("Entropy", "nats per token", r"entropy", kind="learner"),
        Chart("KL", "new policy against the one that sampled", r"(approx_)?kl", kind="learner"),
        Chart("Clip fraction", "share of tokens", r"clip(ped)?(_fraction|_frac)?", kind="learner", percent=True),
        Chart("Gradient norm", "before clipping", r"grad(ient)?_norm", kind="learner"),
        Chart("Loss", "policy-gradient loss", r"loss", kind="learner"),
        Chart("Sampler against learner", "gap of log-probabilities, nats", r"(logprob_gap|logprob_error|sampler_gap)(_max|_mean)?", kind="learner"),
        Chart("Zero-variance groups", "share that teaches nothing", r"zero_variance(_groups|_share)?", kind="learner", percent=True),
        Chart("Importance ratio", "largest in a batch", r"(importance_)?ratio(_max|_mean)?", kind="learner"),
        Chart("Policy lag", "steps behind the newest weights", r"(policy_)?(lag|staleness)(_max|_mean)?", kind="rollout|learner"),
        Chart("Warm start", "supervised loss", r"(loss|sft_loss)", kind="warm"),
    ),
    "System": (
        Chart("Tokens per second", "all policies", r"tokens_per_s|tokens_per_second"),
        Chart("Episodes per second", "", r"(episodes|plays)_per_s(econd)?"),
        Chart("Weight sync", "seconds per push", r"(seconds|sync_s|total_s|s)", kind="sync"),
    ),
}  # fmt: skip


def sections(metrics: Metrics, more: Mapping[str, Sequence[str]]) -> list[str]:
    """One section of the page per group of charts. `more`: further cards for a group."""
    found = []
    for group, members in CHARTS.items():
        cards = []
        for chart in members:
            curves = _label(select(metrics, chart.kind, chart.name))
            held_out = _label(select(metrics, "eval", chart.name)) if chart.held_out else {}
            points = {f"held-out {label}".strip(): curve for label, curve in held_out.items()}
            if curves or points:
                cards.append(
                    html.card(
                        chart.title, chart.says, charts.lines(curves, chart.percent, points, chart.title)
                    )
                )
        found.append(html.section(group, html.grid([*cards, *more.get(group, ())])))
    return found


def select(metrics: Metrics, kind: str, name: str) -> dict[tuple[str, str], Curve]:
    """The figures whose kind begins with a word that matches `kind` and one of whose name's parts (between
    slashes) matches `name`."""
    return {
        key: curve
        for key, curve in metrics.items()
        if re.fullmatch(kind, key[0].split("/")[0])
        and any(re.fullmatch(name, part) for part in key[1].split("/"))
        and any(math.isfinite(value) for _, value in curve)
    }


def _label(found: Mapping[tuple[str, str], Curve]) -> dict[str, Curve]:
    """Names for a legend: the parts of kind and name that tell the curves apart."""
    names = [[*kind.split("/"), *name.split("/")] for kind, name in found]
    common = set.intersection(*map(set, names)) if len(names) > 1 else set()
    labels = {}
    for (kind, _), name, curve in zip(found, names, found.values(), strict=True):
        own = [part for part in name if part not in common] if len(names) > 1 else kind.split("/")[1:]
        labels[" ".join(own).replace("_", " ")] = curve
    return labels


def others(metrics: Metrics) -> str:
    """Every figure that is on no picture: first, last, smallest, largest value and a small line."""
    drawn: set[tuple[str, str]] = set()
    for members in CHARTS.values():
        for chart in members:
            drawn |= set(select(metrics, chart.kind, chart.name))
            if chart.held_out:
                drawn |= set(select(metrics, "eval", chart.name))
    rows, sparks = [], []
    for (kind, name), curve in sorted(metrics.items()):
        values = [value for _, value in curve if math.isfinite(value)]
        if (kind, name) not in drawn and values:
            rows.append(
                [
                    f"{kind}/{name}",
                    *(f"{value:.4g}" for value in (values[0], values[-1], min(values), max(values))),
                ]
            )
            sparks.append(charts.spark(values))
    if not rows:
        return ""
    body = html.table(("", "first", "last", "smallest", "largest", ""), rows, sparks)
    return html.section("Other figures", html.details(f"{len(rows)} figures", body))
