"""The runs of the ablation: which there are, whether one is finished, what it found. Nothing is started here."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from benchmarks.harness.measure import ROOT, Json, rounded
from configs.load import load, to_yaml

CONFIGS = ROOT / "configs" / "ablation"
RUNS = Path("runs") / "ablation"
QUICK_RUNS = Path("runs") / "ablation-quick"
"""Where the configs put their run directories, and where the tiny ones go."""
SEEDS = (0, 1, 2)
JUDGE = "judge"
"""In the place of a method: the run that trains a seed's judge."""


@dataclass(frozen=True)
class Arena:
    """A task that the methods are compared on."""

    title: str
    config: str
    policy: str
    """Who learns."""
    measured: str
    """What the table shows, and which way is better."""
    curve: str
    percent: bool
    quick: tuple[str, ...]
    """Overrides that leave enough to see that it runs."""
    judge: str = ""
    """Config that trains its judge, once per seed."""
    judge_quick: tuple[str, ...] = field(default=())


ARENAS: dict[str, Arena] = {
    "pixels": Arena(
        "Pixel debate", "pixels.yaml", "debater",
        "judge is right, 500 held-out debates, greedy (higher is better)",
        "share of training debates that the truth wins, sampled, over learner steps", True,
        ("stages.debate.steps=2", "stages.debate.plays_per_step=16",
         "eval.arms.untrained.episodes=8", "eval.arms.trained.episodes=8"),
        "judge.yaml",
        ("policies.judge.warm_start.steps=4", "policies.judge.warm_start.batch=32",
         "eval.arms.random_evidence.episodes=8"),
    ),
    "kuhn": Arena(
        "Kuhn poker", "kuhn.yaml", "player",
        "exact NashConv, mean of the last quarter of training (lower is better; an equilibrium has 0)",
        "exact NashConv over learner steps", False,
        ("stages.self_play.steps=4", "stages.self_play.plays_per_step=32", "stages.self_play.eval_every=2"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One run of `launch.py train`."""

    task: str
    method: str
    seed: int
    config: Path
    overrides: tuple[str, ...]
    folder: Path
    needs: str = ""
    """Name of the run that has to finish before this one: that of its judge."""

    @property
    def name(self) -> str:
        return f"{self.task}-{self.method}-{self.seed}"

    @property
    def command(self) -> list[str]:
        return [sys.executable, "launch.py", "train", str(self.config.relative_to(ROOT)), *self.overrides]


@cache
def written() -> Json:
    """configs/ablation/methods.yaml."""
    return dict(OmegaConf.to_container(OmegaConf.load(CONFIGS / "methods.yaml")))  # type: ignore[arg-type]


def methods() -> dict[str, Json]:
    """method -> title, about, source, family, and settings."""
    return dict(written()["methods"])


def settings(method: str, task: str) -> Json:
    """What a method sets below `learner` on a task."""
    entry = methods()[method]
    family = written()["families"][entry["family"]]
    merged = OmegaConf.merge(entry["always"], family.get(task, {}), entry.get(task, {}))
    return dict(OmegaConf.to_container(merged))  # type: ignore[arg-type]


def flow(value: Any) -> str:
    """YAML on one line."""
    return str(yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)).strip()


def jobs(
    tasks: Sequence[str], chosen: Sequence[str], seeds: Sequence[int], quick: bool = False, root: Path = ROOT
) -> Iterator[Job]:
    """Every run: the judges, then seed by seed, so that whoever stops early has all methods. `root`: holds `runs`."""
    runs = QUICK_RUNS if quick else RUNS

    def job(task: str, method: str, seed: int, config: str, own: Sequence[str], needs: str = "") -> Job:
        name = f"{task}-{method}-{seed}"
        where = [f"run_dir={runs / name}"] if quick else []
        overrides = (f"name={name}", *where, f"seed={seed}", *own)
        return Job(task, method, seed, CONFIGS / config, overrides, root / runs / name, needs)

    judged = [task for task in tasks if ARENAS[task].judge]
    for seed in seeds:
        for task in judged:
            yield job(task, JUDGE, seed, ARENAS[task].judge, ARENAS[task].judge_quick if quick else ())
    for seed in seeds:
        for task in tasks:
            arena = ARENAS[task]
            always, needs = list(arena.quick) if quick else [], f"{task}-{JUDGE}-{seed}" if task in judged else ""
            if needs and quick:
                always.append(f"policies.judge.model.path={runs / needs / 'models' / 'judge' / 'warm'}")
            for method in chosen:
                learner = f"policies.{arena.policy}.learner={flow(settings(method, task))}"
                yield job(task, method, seed, arena.config, [learner, *always], needs)


def text_of(job: Job) -> str:
    """The configuration as its run directory keeps it. Raises ConfigErrors for one that cannot work. Hardware, and
    whether the judge is there already, are checked when it is launched."""
    return _text(job.config, job.overrides)


@cache
def _text(config: Path, overrides: tuple[str, ...]) -> str:
    return to_yaml(load(config, overrides).tree)


@cache
def fingerprint(text: str) -> str:
    """Short hash of a configuration; where the run directories are does not matter."""
    tree = yaml.safe_load(text)
    for key in ("run_dir", "name"):
        tree.pop(key, None)
    model = tree.get("policies", {}).get("judge", {}).get("model", {})
    if "path" in model:
        model["path"] = JUDGE
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]


def finished(job: Job, text: str) -> bool:
    """Whether its run directory holds a finished run of this very configuration."""
    saved, summary = job.folder / "config.yaml", job.folder / "summary.json"
    if not (saved.is_file() and summary.is_file() and json.loads(summary.read_text()).get("finished")):
        return False
    return fingerprint(saved.read_text(encoding="utf-8")) == fingerprint(text)


def result(job: Job, text: str) -> Json:
    """What a finished run found. `curve`: [learner step, value]."""
    summary = json.loads((job.folder / "summary.json").read_text())
    found: Json = {
        "task": job.task, "method": job.method, "seed": job.seed, "config": fingerprint(text),
        "wall_s": summary["wall_s"], "episodes": summary["episodes"], "updates": summary["policy_updates"],
        "skipped": summary["skipped_updates"],
    }  # fmt: skip
    accuracy, exact = summary.get("judge_accuracy") or {}, summary.get("nash_conv") or {}
    if job.method == JUDGE:
        return {**found, "value": accuracy["random_evidence"]["mean"]}
    if "trained" in exact:
        found |= {"value": rounded(exact["trained"]["last_quarter"]), "last": rounded(exact["trained"]["last"]),
                  "untrained": rounded(exact["untrained"]["last"])}  # fmt: skip
        points = {line["step"]: line["values"]["nash_conv"] for line in _lines(job.folder, "eval/trained")}
    else:
        found |= {"value": accuracy["trained"]["mean"], "untrained": accuracy["untrained"]["mean"]}
        rollout = next((f"rollout/{stage}" for stage in summary["stages"]), "")
        points = {line["step"]: _score(line["values"]) for line in _lines(job.folder, rollout)}
    found["curve"] = [[step, rounded(value)] for step, value in sorted(points.items())]
    steps = [line["values"] for line in _lines(job.folder, f"learner/{ARENAS[job.task].policy}")]
    return {**found, "pairs": _mean_pairs(steps), "entropy": _entropy(steps)}


def _lines(folder: Path, kind: str) -> Iterator[Json]:
    with (folder / "metrics.jsonl").open(encoding="utf-8") as lines:
        for line in map(json.loads, lines):
            if line["kind"] == kind:
                yield line


def _score(values: Mapping[str, float]) -> float:
    return next(value for name, value in values.items() if name.startswith("score/"))


def _mean_pairs(steps: Sequence[Json]) -> float | None:
    """Pairs per learner step, for methods that compare replies."""
    found = [values["pairs"] for values in steps if "pairs" in values]
    return rounded(sum(found) / len(found)) if found else None


def _entropy(steps: Sequence[Json]) -> list[float]:
    """Of a sampled token (natural log), at the first learner step and on average over the last quarter of them."""
    found = [values["entropy"] for values in steps if "entropy" in values]
    last = found[-max(1, len(found) // 4) :]
    return [rounded(found[0]), rounded(sum(last) / len(last))] if found else []
