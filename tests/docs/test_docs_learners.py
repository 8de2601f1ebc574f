"""docs/learners.md names every kind there is, and its YAML is YAML that acts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.methods import KINDS, REFERENCE_USES, check_learner, idle
from configs.reading.build import Builder
from configs.reading.source import Source
from configs.schema.run import LearnerConfig
from learners.credit.advantages import ADVANTAGES
from learners.credit.signals import SIGNALS
from learners.losses.policy_gradient import CORRECTIONS, LOSSES
from learners.losses.preference import PREFERENCES

TEXT = (Path(__file__).resolve().parent.parent.parent / "docs" / "learners.md").read_text()
YAML = re.findall(r"\| `([a-z]+: \{.*?\})`", TEXT)


@pytest.mark.parametrize("names", [ADVANTAGES, LOSSES, CORRECTIONS, SIGNALS, PREFERENCES, REFERENCE_USES])
def test_every_kind_has_a_row(names: dict[str, Any]) -> None:
    for name in names:
        assert f"\n| `{name}`" in TEXT, name


@pytest.mark.parametrize("text", YAML)
def test_yaml_of_the_tables_is_sound(text: str) -> None:
    raw = yaml.safe_load(text)
    raw = raw.get("learner", raw)
    errors: list[Any] = []
    config = Builder(Source({"learner": raw}), errors).build(LearnerConfig, raw, ("learner",))
    assert not errors
    assert all(getattr(config, part).kind in kinds for part, kinds in KINDS.items())
    check_learner(config, "cpu")
    set_here = {f"{part}.{name}" for part, settings in raw.items() for name in settings}
    assert not set_here & {setting for setting, _, _ in idle(config)}


def test_there_are_tables() -> None:
    assert len(YAML) >= 20
