"""Kuhn poker by self-play on real engines: the odds that NashConv is computed from, and a step towards the magnet."""

from __future__ import annotations

from pathlib import Path

import pytest

from reporting.tracker import read_metrics
from tests.driver.test_system import ROOT, ended, launch, summary

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]


def test_self_play_is_measured_exactly_and_learned_from(tmp_path: Path) -> None:
    log, run_dir = tmp_path / "log", tmp_path / "run"
    small = ["stages.self_play.steps=3", "stages.self_play.plays_per_step=64", "stages.self_play.eval_every=1"]
    ended(launch("train", ROOT / "configs" / "kuhn.yaml", f"run_dir={run_dir}", *small, log=log), log, 0)
    found = summary(run_dir)
    assert found["policy_updates"] == 3 and found["lost_episodes"] == found["invalid_episodes"] == 0
    lines = list(read_metrics(run_dir / "metrics.jsonl"))
    curve = [line["values"]["nash_conv"] for line in lines if line["kind"] == "eval/trained"]
    assert len(curve) >= 3 and all(0.0 < value < 4.0 for value in curve)
    assert len(set(curve[:3])) == 3, "learning moved the policy, and the engines had it"
    steps = [line["values"] for line in lines if line["kind"] == "learner/player"]
    assert all(step["sampler_gap_max"] < 1e-3 for step in steps), "the memo's log-probabilities are the learner's"
    assert steps[0]["reference_kl"] == pytest.approx(0.0, abs=1e-6) and steps[2]["reference_kl"] > 0.0
