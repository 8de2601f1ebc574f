"""docs/shipped.md is what `python -m reporting.sketch.catalogue` makes of the protocols there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.load import load_protocol
from configs.reading.raw import read_raw
from reporting.sketch.catalogue import PROTOCOLS, comment, page, rows
from reporting.sketch.sketch import sketch

DOCS = PROTOCOLS.parent.parent / "docs"
FILES = sorted(PROTOCOLS.glob("*.yaml"))


def test_the_page_is_up_to_date() -> None:
    # Not compared by assert: the difference of two long texts takes pytest minutes.
    same = (DOCS / "shipped.md").read_text(encoding="utf-8") == page()
    assert same, "make it again: python -m reporting.sketch.catalogue > docs/shipped.md"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_protocol_says_what_it_is(path: Path) -> None:
    assert len(comment(path).split()) >= 4


def test_rows_of_an_interactive_debate_by_hand() -> None:
    path = PROTOCOLS / "debate_interactive.yaml"
    found = list(rows(sketch(load_protocol(path), read_raw(path))))
    assert found == [
        ("1", "opening", "alice, bob write", "each other, inquirer, judge"),
        ("2", "question", "inquirer writes", "alice, bob, judge"),
        ("3", "answer", "alice, bob write", "each other, inquirer, judge"),
        ("4", "second_question", "inquirer writes", "alice, bob, judge"),
        ("5", "second_answer", "alice, bob write", "judge"),
        ("6", "judge", "judge (2 times) judges", "nobody"),
    ]


def test_seats_that_speak_at_once_and_see_the_same_share_a_row() -> None:
    path = PROTOCOLS / "round_table.yaml"
    found = list(rows(sketch(load_protocol(path), read_raw(path))))
    assert found[0] == ("1", "answer", "first, second, third write", "each other")
    assert found[-1] == ("5", "confidence", "first, second, third pick", "nobody")
