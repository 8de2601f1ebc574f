"""Peer: seconds to the same reward on a single-turn task, Dissoi against TRL's GRPOTrainer.

Adding two digits, with an exact verifier; a language model of 0.6 million parameters that imitation has taught the form
of an answer, and some of the sums. Both start from the same weights and see the same prompts in the same order, 8
samples each, as many samples and updates (one per batch), the same advantages (GRPO), loss (clipped, token mean),
learning rate and optimizer, and the rewards of configs/protocol/solve.yaml. TRL generates with Hugging Face, as it does
on a CPU, with as many threads as torch takes; ours is one run from the command line. The seconds are those of training,
without imports and start-up. The reward to reach is the lower of the two final shares of right answers, both as running
means.

Two cases: `instructed`, the question after instructions and worked examples (benchmarks/peer_instructed.yaml), about
120 tokens that all prompts begin with, as system prompts do; `bare`, a prompt of nothing but the question.

TRL is installed from PyPI into runs/benchmarks-peer, beside the packages of this environment, and is not a dependency.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from actors.players.chat import ChatCodec
from actors.rollout.loop import training_task
from benchmarks.harness.measure import PROTOCOLS, ROOT, Json, figure, ratios, rounded, spread, target
from benchmarks.overlap import stage_metrics
from configs.load import load_protocol, load_task_source
from protocols.types import TurnRequest
from reporting.tracker import read_metrics

TRL = "trl==1.16.0"
PLACE = ROOT / "runs" / "benchmarks-peer"
CASES = {"instructed": (ROOT / "benchmarks" / "peer_instructed.yaml", 200), "bare": (PROTOCOLS / "solve.yaml", 100)}
"""Protocol, and steps of imitation: a bare question is learned in fewer."""
SEEDS, STAGE, REPEATS, LR, WINDOW = (0, 1, 2), "adding", 8, 1e-4, 10
TASKS = {"kind": "lists", "op": "add", "min_len": 1, "max_len": 1, "easy_max_len": 1, "sampler": "uniform"}
MODEL = {"hidden_size": 128, "layers": 3, "heads": 4, "kv_heads": 2, "intermediate_size": 384, "max_len": 192}
TOKENS = 12
"""Longest reply."""
PACKED = {"packing": "prefixes", "micro_tokens": 4096}
PARTS = {
    "the learner's step": ("learner/solver", "step_s"),
    "the weights' way to the engine": ("learner/solver", "sync_s"),
    "waiting for plays": (f"rollout/{STAGE}", "wait_s"),
}
"""Of one of our updates, one after the other: kind and name in metrics.jsonl. Medians, so they do not add up: most
updates hardly wait for plays, a few wait long."""
Curve = list[tuple[float, float]]
"""Of each update: seconds since training began, share of right answers in its batch."""


def main(quick: bool = False) -> Json:
    python = install()
    steps, batch, seeds = (3, 32, SEEDS[:1]) if quick else (100, 256, SEEDS)
    found: dict[str, dict[str, list[Curve]]] = {}
    parts: dict[str, list[dict[str, float]]] = {case: [] for case in CASES}
    facts: Json = {}
    with tempfile.TemporaryDirectory() as name:
        for case, (protocol, warm_steps) in CASES.items():
            folder = Path(name) / case
            model = warm_model(folder, protocol, 40 if quick else warm_steps)
            found[case] = {"Dissoi": [], "TRL": []}
            for seed in seeds:
                found[case]["Dissoi"].append(ours(folder / f"ours-{seed}", protocol, model, steps, batch, seed))
                parts[case].append(parts_of_an_update(folder / f"ours-{seed}"))
                curve, facts = theirs(python, folder / f"trl-{seed}", protocol, model, steps, batch, seed)
                found[case]["TRL"].append(curve)
    facts["settings not taken"] = ", ".join(facts.pop("not taken")) or "none"
    results = {case: compared(case, curves, parts[case]) for case, curves in found.items()}
    return {
        "settings": {"seeds": str(seeds), "task": "add two digits", "model": "0.6M parameters",
                     "updates": steps, "samples of an update": batch, "samples of a prompt": REPEATS,
                     "learning rate": LR, "our max_staleness": 1, "our packing": "prefixes", "TRL": facts},
        "targets": [aim for aim, _ in results.values()],
        "measured": {name: value for _, told in results.values() for name, value in told.items()},
        "figures": [figure("lines", f"Right answers over time ({case}, seed {seeds[0]}, running mean)", {
            who: [[rounded(x), rounded(y)] for x, y in smooth(several[0])] for who, several in curves.items()},
            "seconds of training", "share of right answers") for case, curves in found.items()],
    }  # fmt: skip


def compared(
    case: str, curves: dict[str, list[Curve]], parts: Sequence[dict[str, float]]
) -> tuple[Json, Json]:
    """The target and what else is told of one case."""
    goals = [min(smooth(one)[-1][1], smooth(other)[-1][1]) for one, other in zip(*curves.values())]
    reached = {who: [reach(curve, goal) for curve, goal in zip(found, goals)] for who, found in curves.items()}
    faster = ratios(reached["TRL"], reached["Dissoi"])
    told = {
        f"share of right answers to reach, {case}": spread(goals),
        **{f"seconds to it, {who}, {case}": spread(found) for who, found in reached.items()},
        **{f"seconds of all updates, {who}, {case}": spread([curve[-1][0] for curve in found])
           for who, found in curves.items()},
        **{f"share of right answers at the beginning, {who}, {case}": spread([smooth(curve)[WINDOW - 1][1]
           for curve in found]) for who, found in curves.items() if len(found[0]) >= WINDOW},
        **{f"share of right answers at the end, {who}, {case}": spread([smooth(curve)[-1][1] for curve in found])
           for who, found in curves.items()},
        **{f"seconds of an update, {who}, {case}": spread([curve[-1][0] / len(curve) for curve in found])
           for who, found in curves.items()},
        **{f"in the median update, {part}, Dissoi, {case}": spread([one[part] for one in parts]) for part in PARTS},
    }  # fmt: skip
    aim = target(f"seconds to the same reward, TRL over Dissoi, {case}", statistics.median(faster), at_least=3.0,
                 repeats=faster)  # fmt: skip
    return aim, told


def install() -> Path:
    """The interpreter of an environment that has TRL and, through a .pth file, everything that is installed here."""
    python, stamp = PLACE / "venv" / "bin" / "python", PLACE / "installed"
    if not stamp.exists() or stamp.read_text() != TRL:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(PLACE / "venv")], check=True)
        asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"]
        site = Path(subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip())
        (site / "beside.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", TRL], check=True)
        stamp.write_text(TRL)
    return python


def warm_model(folder: Path, protocol: Path, steps: int) -> Path:
    """A small model that has imitated answers: a run without any stage."""
    warm = {"steps": steps, "batch": 256, "lr": 1e-3, "protocol": "attempt", "roles": ["solver"]}
    policy = {"model": MODEL, "max_tokens": TOKENS, "warm_start": warm, "learner": PACKED}
    arms = {"warm": {"protocol": "attempt", "roles": {"solver": "solver"}, "when": "start", "episodes": 70}}
    run(folder / "warm", protocol, {"policies": {"solver": policy}, "eval": {"arms": arms}}, seed=0)
    return folder / "warm" / "models" / "solver" / "warm"


def ours(folder: Path, protocol: Path, model: Path, steps: int, batch: int, seed: int) -> Curve:
    """One run from the command line."""
    policy = {"model": {"path": str(model)}, "max_tokens": TOKENS, "trained": True,
              "learner": {**PACKED, "lr": LR}}  # fmt: skip
    stage = {"protocol": "attempt", "roles": {"solver": "solver"}, "steps": steps, "plays_per_step": batch,
             "repeats": REPEATS, "max_staleness": 1}  # fmt: skip
    run(folder, protocol, {"policies": {"solver": policy}, "stages": {STAGE: stage}}, seed)
    figures = stage_metrics(folder, STAGE)
    return list(zip(accumulate(step["step_s"] for step in figures), (step["score/attempt"] for step in figures)))


def parts_of_an_update(folder: Path) -> dict[str, float]:
    """Seconds, the median over all updates of one of our runs."""
    rows = list(read_metrics(folder / "metrics.jsonl"))
    return {part: statistics.median([row["values"][name] for row in rows if row["kind"] == kind])
            for part, (kind, name) in PARTS.items()}  # fmt: skip


def run(folder: Path, protocol: Path, settings: Json, seed: int) -> None:
    """Trains as `settings` say, into `folder`."""
    folder.parent.mkdir(exist_ok=True)
    common = {"name": "peer", "run_dir": str(folder), "seed": seed, "tasks": TASKS, "track": {"wandb": "disabled"},
              "protocols": {"attempt": str(protocol)}}  # fmt: skip
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**common, **settings}))
    call([sys.executable, "launch.py", "train", str(file)], dict(os.environ))


def theirs(
    python: Path, folder: Path, protocol: Path, model: Path, steps: int, batch: int, seed: int
) -> tuple[Curve, Json]:
    """The same with TRL. Returns its curve and what it ran with."""
    folder.mkdir()
    settings = {
        "learning_rate": LR, "max_steps": steps, "per_device_train_batch_size": batch, "seed": seed, "epsilon": 0.2,
        "num_generations": REPEATS, "max_completion_length": TOKENS, "temperature": 1.0,
    }  # fmt: skip
    job = {"model": str(model), "rows": prompts(protocol, model, steps * batch // REPEATS, seed), "settings": settings,
           "folder": str(folder), "out": str(folder / "found.json")}  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    offline = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    call([str(python), str(ROOT / "benchmarks" / "peer_trl.py"), str(folder / "job.json")], {**environment, **offline})
    found = json.loads((folder / "found.json").read_text())
    return [(line["seconds"], line["correct"]) for line in found["lines"]], found["facts"]


def prompts(file: Path, model: Path, count: int, seed: int) -> list[Json]:
    """The tasks that our run of that seed draws (Rollouts.draw), in its order."""
    protocol, source = load_protocol(file), load_task_source(TASKS)
    codec, rows = ChatCodec.from_pretrained(model), []
    for group in range(count):
        rng = random.Random(f"{seed}/{STAGE}/task/{group}")
        rng.random()  # Rollouts.draw first asks whether the archive shall be replayed
        task = training_task(source, protocol, rng)
        (asked,) = next(protocol.play(task, rng))
        assert isinstance(asked, TurnRequest)
        chat = [{"role": said.speaker, "content": said.text} for said in asked.messages]
        rows.append({"chat": chat, "answer": task.answer, "ids": list(codec.prompt(asked.messages))})
    return rows


def call(command: Sequence[str], environment: dict[str, str]) -> None:
    """Runs it from the root; its output only where it fails."""
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")


def smooth(curve: Curve) -> Curve:
    """Running mean of the share over the last `WINDOW` updates."""
    shares: list[Any] = [share for _, share in curve]
    return [(at, statistics.fmean(shares[max(0, i + 1 - WINDOW) : i + 1])) for i, (at, _) in enumerate(curve)]


def reach(curve: Curve, goal: float) -> float:
    """Seconds until the running mean is there."""
    return next(at for at, share in smooth(curve) if share >= goal)
