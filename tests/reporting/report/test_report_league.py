"""The league in the report: every rating and score is on the page, and circles are told."""

from __future__ import annotations

from pathlib import Path

import msgspec

from actors.league.ratings import Results, table
from reporting.report import charts, league as report_league
from reporting.report.page import write_report


def league(circle: bool) -> dict:  # type: ignore[type-arg]
    results = Results()
    names = ["p@0", "p@20", "p@<40>"]
    for i, name in enumerate(names):
        other = names[(i + 1) % 3]
        for question in range(60):
            won = question % 10 < 8
            results.add(name, other, float(won if circle or i < 2 else not won), str(question))
    return table(results)


def test_circles_ratings_and_scores_are_told(tmp_path: Path) -> None:
    found = league(circle=True)
    assert len(found["cycles"]) == 1 and found["cyclic_share"] > 0.99
    (tmp_path / "summary.json").write_bytes(msgspec.json.encode({"name": "x", "league": found}))
    page = write_report(tmp_path).read_text()
    assert "In a circle: " in page and "100% is circular" in page
    assert page.count("p@20") >= 3 and "p@&lt;40&gt;" in page and "p@<40>" not in page
    assert ">80<" in page and ">20<" in page, "scores in percent stand in the picture"


def test_an_order_of_strength_is_no_circle() -> None:
    text = report_league.section({"league": league(circle=False)})
    assert "Nobody beats each other in a circle" in text
    assert text.index("p@0<") < text.index("p@20<"), "best first"


def test_without_a_league_there_is_nothing() -> None:
    assert report_league.section({}) == "" and report_league.section({"league": table(Results())}) == ""


def test_pairs_that_never_met_are_left_empty() -> None:
    assert charts.heat([[None, 0.9], [0.1, None]], ["a", "b"]).count("<svg") == 1
