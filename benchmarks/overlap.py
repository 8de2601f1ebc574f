"""Overlap: seconds of training when plays may lag the newest weights by one step, and when they may not.

The main job without its consultancy control and without the ceiling, `max_staleness: 0` and 1 with each of several
seeds, one run after the other, from the command line. Seconds are those of the training stage (all learner steps, the
waits for plays among them). The accuracy is that of the arm `trained` on held-out plays.
"""

from __future__ import annotations

import json
import math
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness.measure import ROOT, Json, figure, ratios, rounded, spread, target
from reporting.tracker import read_metrics

SEEDS = (0, 1, 2)
CONFIG = "configs/pixel_debate_base.yaml"
SETTINGS = ("track.wandb=disabled", 'eval.ceiling=""')
QUICK = (
    "policies.judge.warm_start.steps=4", "policies.judge.warm_start.batch=32", "stages.debate.steps=3",
    "stages.debate.plays_per_step=4", "eval.arms.random_evidence.episodes=8", "eval.arms.untrained.episodes=8",
    "eval.arms.trained.episodes=8",
)  # fmt: skip


def main(quick: bool = False) -> Json:
    seeds = SEEDS[:1] if quick else SEEDS
    seconds: dict[int, list[float]] = {0: [], 1: []}
    arms: dict[int, list[dict[str, float]]] = {0: [], 1: []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            for staleness in (0, 1):
                run = Path(folder) / f"{staleness}-{seed}"
                train(run, [f"seed={seed}", f"stages.debate.max_staleness={staleness}", *(QUICK if quick else ())])
                seconds[staleness].append(stage_seconds(run))
                arms[staleness].append(json.loads((run / "summary.json").read_text())["judge_accuracy"]["trained"])
    share = ratios(seconds[1], seconds[0])
    apart, half = difference(arms[0], arms[1])
    return {
        "settings": {"config": CONFIG, "overrides": " ".join((*SETTINGS, *(QUICK if quick else ()))),
                     "seeds": str(seeds), "held-out plays of a run": int(arms[0][0]["n"])},
        "targets": [
            target("seconds of training, max_staleness 1 over 0", statistics.median(share), at_most=0.99,
                   repeats=share),
            target("difference of accuracy over the half-width of its 95% interval", abs(apart) / half, at_most=1.0),
        ],
        "measured": {
            "difference of accuracy, 1 less 0": rounded(apart),
            "half-width of its 95% interval": rounded(half),
            **{f"accuracy, max_staleness {k}": spread([arm["mean"] for arm in found]) for k, found in arms.items()},
            **{f"seconds of training, max_staleness {k}": spread(found) for k, found in seconds.items()},
        },
        "figures": [figure("bars", "Seconds of training", {
            f"max_staleness {k}": rounded(statistics.median(found)) for k, found in seconds.items()})],
    }  # fmt: skip


def train(folder: Path, overrides: list[str]) -> None:
    """One run from the command line; its output only where it fails."""
    command = [sys.executable, "launch.py", "train", CONFIG, f"run_dir={folder}", "name=overlap", *SETTINGS, *overrides]
    done = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")


def stage_seconds(run: Path, stage: str = "debate") -> float:
    """Of all learner steps together, waiting included."""
    return float(sum(step["step_s"] for step in stage_metrics(run, stage)))


def stage_metrics(run: Path, stage: str) -> list[dict[str, Any]]:
    """The figures of every learner step of a stage."""
    return [line["values"] for line in read_metrics(run / "metrics.jsonl") if line["kind"] == f"rollout/{stage}"]


def difference(
    before: list[dict[str, float]], after: list[dict[str, float]]
) -> tuple[float, float]:
    """Mean difference of accuracy and the half-width of its 95% interval, the larger of two: from the spread of the
    held-out plays, and from that of the seeds (normal, of the mean over seeds)."""
    gaps = [b["mean"] - a["mean"] for a, b in zip(before, after)]
    plays = math.hypot(*((arm["high"] - arm["low"]) / 2 for arm in (*before, *after))) / len(gaps)
    seeds = 1.96 * statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
    return statistics.mean(gaps), max(plays, seeds)
