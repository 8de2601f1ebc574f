"""The report's curves: which figures of `metrics.jsonl` go on which picture, and a table of all the others."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reporting.report import charts, html

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
    held_out: bool = False
    """Evaluations between steps are drawn too, as dots."""


CHARTS: Mapping[str, Sequence[Chart]] = {
    "Play": (
        Chart("Score", "truth won or right; dots: held-out", "judge_accuracy|honest_win_rate|score", held_out=True),
        Chart("Trained judges", "share right before each step, trusted and other tasks", "accuracy", "learner"),
        Chart("Scores of trained judges", "log score in nats, halved Brier score", "log_score|brier", "learner"),
        Chart("NashConv", "exact; 0 at an equilibrium", "nash_conv", "eval"),
        Chart("Rewards", "mean, per role", "rewards?", "rollout"),
        Chart("Proposer", "solve rate of its tasks, valid and repeated proposals",
              "solve_rate|proposal_valid|duplicate_share|proposal_duplicates", "rollout"),
        Chart("Rejected and truncated", "share of turns or plays",
              "(rejected|illegal|truncated|unreadable)(_share|_rate|_turns)?", "rollout"),
        Chart("Against checkpoints", "recent score of the learner; .5 is even", "win_rate_(mean|lowest)", "league"),
        Chart("Plays without a result", "so far in the stage", "(plays_)?(invalid|lost|filtered|cancelled)", "rollout"),
    ),
    "Learning": (
        Chart("Entropy", "nats per token", "entropy", "learner"),
        Chart("KL", "new policy against the one that sampled, nats", "(approx_)?kl", "learner"),
        Chart("Clip fraction", "share of tokens", "clip_fraction", "learner"),
        Chart("Gradient norm", "before clipping", "grad_norm", "learner"),
        Chart("Loss", "policy gradient", "loss", "learner"),
        Chart("Sampler against learner", "gap of log-probabilities, nats", "sampler_gap|sampler_gap_max", "learner"),
        Chart("Zero-variance groups", "share that teaches nothing", "zero_variance_share", "learner"),
        Chart("Critic", "share of the returns' variance that it explains", "explained_variance", "learner"),
        Chart("Importance ratio", "largest in a batch", "ratio_max", "learner"),
        Chart("Policy lag", "steps behind the newest weights", "(policy_)?(lag|staleness)(_max|_mean)?"),
        Chart("Warm start", "supervised loss", "loss", "warm"),
    ),
    "System": (
        Chart("Tokens per second", "sampled, all policies", "tokens_per_s", "rollout"),
        Chart("Episodes per second", "sub-plays included", "episodes_per_s", "rollout"),
        Chart("Weight sync", "seconds per push", "sync_s|seconds", "sync|learner"),
        Chart("Where a step goes", "seconds: the whole step, waiting for plays", "step_s|wait_s", "rollout"),
    ),
}  # fmt: skip


def sections(metrics: Metrics, more: Mapping[str, Sequence[str]]) -> list[str]:
    """One section of the page per group of charts. `more`: further cards for a group."""
    found = []
    for group, members in CHARTS.items():
        cards = []
        for chart in members:
            curves = labelled(without_echoes(select(metrics, chart.kind, chart.name)))
            held_out = labelled(select(metrics, "eval", chart.name)) if chart.held_out else {}
            points = {f"held-out {label}".strip(): curve for label, curve in held_out.items()}
            if curves or points:
                cards.append(
                    html.card(chart.title, chart.says, charts.lines(curves, points=points, salt=chart.title))
                )
        found.append(html.section(group, html.grid([*cards, *more.get(group, ())])))
    return found


def with_rates(values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Adds rates to what was counted: tokens and episodes per second, zero-variance groups per group."""
    found = dict(values)
    for name, above, below in (
        ("tokens_per_s", "tokens", "step_s"),
        ("episodes_per_s", "episodes_in_step", "step_s"),
        ("zero_variance_share", "zero_variance_groups", "groups"),
    ):
        total, count = values.get(above), values.get(below)
        if name not in found and total is not None and count:
            found[name] = total / count
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


def without_echoes(found: Mapping[tuple[str, str], Curve]) -> dict[tuple[str, str], Curve]:
    """Leaves out `entropy/judge` where that is all of `entropy`: the figure of a policy's only role. They are summed in
    another order, so they differ in the last digits."""

    def echo(kind: str, name: str, curve: Curve) -> bool:
        whole = found.get((kind, name.rpartition("/")[0]), ())
        return len(whole) == len(curve) and all(
            one[0] == other[0] and math.isclose(one[1], other[1], rel_tol=1e-4) for one, other in zip(whole, curve)
        )

    return {(kind, name): curve for (kind, name), curve in found.items() if not echo(kind, name, curve)}


def labelled(found: Mapping[tuple[str, str], Curve]) -> dict[str, Curve]:
    """Names for a legend: the parts of kind and name that tell the curves apart."""
    names = [[*kind.split("/"), *name.split("/")] for kind, name in found]
    common = set.intersection(*map(set, names)) if names else set()
    labels = {}
    for (kind, _), name, curve in zip(found, names, found.values(), strict=True):
        own = [part for part in name if part not in common] or kind.split("/")[1:]
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
