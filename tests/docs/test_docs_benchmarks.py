"""README's table of speeds says what benchmarks/results.json holds, misses included."""

from __future__ import annotations

import json

import pytest

from tests.support.rigs import ROOT

RESULTS = json.loads((ROOT / "benchmarks" / "results.json").read_text())
ROWS = {
    "over bare vLLM, pixel debate": ("saturation", 0),
    "over bare vLLM, long debate": ("saturation", 1),
    "lock-step": ("bubbles", 0),
    "random routing": ("prefix", 0),
    "`max_staleness: 1`": ("overlap", 0),
    "after a system prompt": ("peer", 0),
    "bare question": ("peer", 1),
    "plain PyTorch": ("learner", 0),
    "50,000 episodes": ("orchestrator", 0),
    "3,000 turns": ("orchestrator", 1),
}


@pytest.mark.parametrize("row", ROWS)
def test_readme_says_what_was_measured(row: str) -> None:
    (line,) = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("|") and row in line]
    _, _, bound, measured, _ = (cell.strip() for cell in line.split("|"))
    name, number = ROWS[row]
    target = RESULTS[name]["targets"][number]
    wanted = f"at most {target['at_most']:g}" if "at_most" in target else f"at least {target['at_least']:g}"
    assert bound == wanted
    value = f"{target['measured']:.2f}"
    assert measured == (value if target["met"] else f"{value}, **missed**")
