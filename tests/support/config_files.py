"""What tests of configurations write, read and expect to be refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from configs.load import Loaded, load
from configs.machine import Machine
from configs.reading.errors import ConfigError, ConfigErrors

CONFIGS = Path(__file__).resolve().parent.parent.parent / "configs"
LAPTOP = Machine(cpus=2, memory=16 * 2**30)

BASE = """\
tasks: {kind: pixels}
protocols:
  debate: PROTOCOLS/pixel_debate.yaml
policies:
  judge: {model: {max_len: 128}}
  debater:
    trained: true
    learner:
      advantage: {kind: reinforce}
stages:
  main:
    protocol: debate
    roles: {debater: debater, judge: judge}
    steps: 3
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a config: BASE with replacements, and text appended."""

    def _write(*replaced: tuple[str, str], more: str = "", name: str = "c.yaml") -> Path:
        text = BASE
        for old, new in replaced:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / name
        path.write_text((text + more).replace("PROTOCOLS", str(CONFIGS / "protocol")))
        return path

    return _write


def read(path: Path, *overrides: str) -> Loaded:
    return load(path, overrides, machine=LAPTOP)


def mistakes(path: Path, *overrides: str, machine: Machine = LAPTOP) -> dict[str, ConfigError]:
    """key -> the mistake there. Each key may have one only."""
    with pytest.raises(ConfigErrors) as caught:
        load(path, overrides, machine=machine)
    errors = caught.value.errors
    assert len({error.key for error in errors}) == len(errors), str(caught.value)
    return {error.key: error for error in errors}
