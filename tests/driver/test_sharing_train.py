"""A whole run in which two policies learn as adapters in one learner process and on the engine of a third, frozen one.

The measurement of its checkpoint, for which each policy has merged weights and an engine of its own, is an oracle for
what the adapters did.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reporting.tracker import read_metrics
from tests.driver.test_system import ROOT, ended, launch, summary

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

CONFIG = """
name: shared
tasks: {kind: open_spiel, game: kuhn_poker}
protocols: {kuhn: game.yaml}
policies:
  base:
    model: {hidden_size: 64, layers: 2, heads: 2, kv_heads: 2, intermediate_size: 128, max_len: 32}
  first:
    model: ${policies.base.model}
    trained: true
    engine: {share: base}
    learner: &learner
      lr: 0.005
      lora: {rank: 8}
      loss: {kind: reinforce}
      advantage: {kind: dr_grpo, group_by: [protocol, role, situation]}
  second:
    model: ${policies.base.model}
    trained: true
    engine: {share: base}
    learner: {<<: *learner, share: first}
stages:
  main: {protocol: kuhn, roles: {first: first, second: second}, steps: 3, plays_per_step: 64, max_staleness: 0}
eval:
  arms:
    untrained: {protocol: kuhn, roles: {first: base, second: base}, when: start, measure: nash_conv}
    trained: {protocol: kuhn, roles: {first: first, second: second}, measure: nash_conv}
    frozen: {protocol: kuhn, roles: {first: base, second: base}, measure: nash_conv}
track: {wandb: disabled}
"""


def test_two_adapters_on_one_engine_learn_and_are_worth_the_same_when_merged(tmp_path: Path) -> None:
    game = (ROOT / "configs" / "protocol" / "kuhn.yaml").read_text()
    two = game.replace("{first: player, second: player}", "{first: first, second: second}")
    (tmp_path / "game.yaml").write_text(two)
    (tmp_path / "config.yaml").write_text(CONFIG)
    log, run_dir = tmp_path / "log", tmp_path / "run"
    ended(launch("train", tmp_path / "config.yaml", f"run_dir={run_dir}", log=log), log, 0)
    found = summary(run_dir)
    assert found["policy_updates"] == 6 and found["lost_episodes"] == found["invalid_episodes"] == 0

    lines = list(read_metrics(run_dir / "metrics.jsonl"))
    for name in ("first", "second"):
        steps = [line["values"] for line in lines if line["kind"] == f"learner/{name}"]
        assert [step["version"] for step in steps] == [1.0, 2.0, 3.0]
        assert all(step["sampler_gap_max"] < 1e-4 for step in steps), "the engine samples with this learner's adapter"
    worth = {name: exact(lines, name) for name in ("untrained", "trained", "frozen")}
    assert worth["frozen"] == pytest.approx(worth["untrained"], abs=1e-5), "nobody's adapter touches the base"
    assert abs(worth["trained"] - worth["untrained"]) > 0.02, "the step is too small for this test to show anything"

    ended(launch("eval", run_dir, log=log), log, 0)
    again = list(read_metrics(run_dir / "eval" / "metrics.jsonl"))
    assert exact(again, "trained") == pytest.approx(worth["trained"], abs=1e-4)


def exact(lines: list[dict[str, Any]], arm: str) -> float:
    """The last NashConv of an arm."""
    values = [line["values"] for line in lines if line["kind"] == f"eval/{arm}"]
    return float(values[-1]["nash_conv"])
