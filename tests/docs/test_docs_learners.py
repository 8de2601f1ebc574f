"""docs/learners.md names every kind there is, and its YAML is YAML that acts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.checks.learner import check_learner, unused_settings
from configs.methods import ADVANTAGES, CORRECTIONS, LOSSES, REFERENCES, SECTIONS, SIGNALS
from configs.reading.build import Builder
from configs.reading.source import Source
from configs.schema.run import LearnerConfig
from protocols.extension import Entry, Registry

TEXT = (Path(__file__).resolve().parent.parent.parent / "docs" / "learners.md").read_text()
YAML = re.findall(r"\| `([a-z]+: \{.*?\})`", TEXT)


REGISTRIES: list[Registry[Any]] = [ADVANTAGES, LOSSES, CORRECTIONS, SIGNALS, REFERENCES]
ENTRIES = [entry for registry in REGISTRIES for entry in registry.entries.values()]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_kind_has_a_row_with_its_source_and_says_what_it_does(entry: Entry[Any]) -> None:
    assert entry.summary, "its docstring begins with what it computes"
    if entry.name in ("advantage", "truth"):  # they are explained in a sentence
        assert f"`{entry.name}`" in TEXT
        return
    rows = re.findall(rf"^\| `{entry.name}`.*$", TEXT, re.MULTILINE)
    assert rows
    for paper in re.findall(r"\d{4}\.\d{5}", entry.source):
        assert any(paper in row for row in rows), paper


@pytest.mark.parametrize("text", YAML)
def test_yaml_of_the_tables_is_sound(text: str) -> None:
    raw = yaml.safe_load(text)
    raw = raw.get("learner", raw)
    errors: list[Any] = []
    config = Builder(Source({"learner": raw}), errors).build(LearnerConfig, raw, ("learner",))
    assert not errors
    assert all(getattr(config, part).kind in kinds for part, kinds in SECTIONS.items())
    check_learner(config, "cpu")
    set_here = {f"{part}.{name}" for part, settings in raw.items() for name in settings}
    assert not set_here & {setting for setting, _, _ in unused_settings(config)}


def test_there_are_tables() -> None:
    assert len(YAML) >= 20
