"""The league's part of the report: ratings, cross-play, and who beats whom in a circle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reporting.report import charts, html


def section(summary: Mapping[str, Any]) -> str:
    """From summary["league"] (actors.league.ratings.table); empty without it."""
    league = summary.get("league")
    if not isinstance(league, Mapping) or not league.get("ratings"):
        return ""
    names = list(league["ratings"])
    rows = [
        [name, f"{entry['points']:+.0f}", f"{entry['low']:+.0f} to {entry['high']:+.0f}", f"{entry['plays']:,}"]
        for name, entry in league["ratings"].items()
    ]
    ratings = html.table(("", "rating", "95% interval", "plays"), rows)
    picture = charts.heat(league["payoff"], names)
    cards = [html.card("Cross-play", "mean score of the row against the column", picture)]
    says = (
        "Bradley-Terry ratings by maximum likelihood, in points above the average (100 points: an expected score of "
        f"64%), intervals over questions. {_circles(league)}"
    )
    return html.section("League", ratings + html.grid(cards), says)


def _circles(league: Mapping[str, Any]) -> str:
    share = league.get("cyclic_share")
    told = "" if share is None else f" Of the payoff matrix, {share:.0%} is circular: no rating explains it."
    cycles = league.get("cycles") or []
    if not cycles:
        return "Nobody beats each other in a circle beyond chance." + told
    shown = "; ".join(" beats ".join([*cycle, cycle[0]]) for cycle in cycles)
    return f"In a circle: {shown}.{told}"
