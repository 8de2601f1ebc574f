"""Peer: seconds to the same reward on a single-turn task, Dissoi against TRL's GRPOTrainer.

Adding two numbers of one or two digits, with an exact verifier; a language model of 0.17 million parameters that
imitation has taught the form of an answer, and some of the sums. Both start from the same weights and see the same
prompts in the same order, 8 samples each, as many samples and updates (one per batch), the same advantages (GRPO), loss
(clipped, token mean), learning rate and optimizer, and the rewards of configs/protocol/solve.yaml. TRL generates with
Hugging Face, as it does on a CPU, with as many threads as torch takes; ours is one run from the command line. The
seconds are those of training, without imports and start-up. The reward to reach is the lower of the two final shares of
right answers, both as running means.

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

from actors.chat import ChatCodec
from actors.rollouts import training_task
from benchmarks.measure import PROTOCOLS, ROOT, Json, figure, ratios, rounded, spread, target
from benchmarks.overlap import stage_figures
from configs.load import load_protocol, load_task_source
from protocols.types import Message

TRL = "trl==1.16.0"
PLACE = ROOT / "runs" / "benchmarks-peer"
SEEDS, STAGE, REPEATS, LR, WINDOW = (0, 1, 2), "adding", 8, 1e-3, 10
TASKS = {"kind": "lists", "op": "add", "min_len": 1, "max_len": 2, "easy_max_len": 2, "sampler": "uniform"}
MODEL = {"hidden_size": 64, "layers": 2, "heads": 2, "kv_heads": 2, "intermediate_size": 256, "max_len": 64}
TOKENS = 12
"""Longest reply."""
Curve = list[tuple[float, float]]
"""Of each update: seconds since training began, share of right answers in its batch."""


def main(quick: bool = False) -> Json:
    python = install()
    steps, batch, seeds = (3, 32, SEEDS[:1]) if quick else (150, 256, SEEDS)
    curves: dict[str, list[Curve]] = {"Dissoi": [], "TRL": []}
    facts: Json = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = warm_model(folder, 40 if quick else 400)
        for seed in seeds:
            curves["Dissoi"].append(ours(folder / f"ours-{seed}", model, steps, batch, seed))
            curve, facts = theirs(python, folder / f"trl-{seed}", model, steps, batch, seed)
            curves["TRL"].append(curve)
    goals = [min(smooth(one)[-1][1], smooth(other)[-1][1]) for one, other in zip(*curves.values())]
    reached = {who: [reach(curve, goal) for curve, goal in zip(found, goals)] for who, found in curves.items()}
    facts["settings not taken"] = ", ".join(facts.pop("not taken")) or "none"
    whole = {who: [curve[-1][0] for curve in found] for who, found in curves.items()}
    faster = ratios(reached["TRL"], reached["Dissoi"])
    return {
        "settings": {"seeds": str(seeds), "task": "add numbers of 1 or 2 digits", "model": "0.17M parameters",
                     "updates": steps, "samples of an update": batch, "samples of a prompt": REPEATS,
                     "learning rate": LR, "our max_staleness": 1, "TRL": facts},
        "targets": [target("seconds to the same reward, TRL over Dissoi", statistics.median(faster), at_least=3.0,
                           repeats=faster)],
        "measured": {
            "share of right answers to reach": spread(goals),
            **{f"seconds to it, {who}": spread(found) for who, found in reached.items()},
            **{f"seconds of all updates, {who}": spread(found) for who, found in whole.items()},
            **{f"share of right answers at the end, {who}": spread([smooth(curve)[-1][1] for curve in found])
               for who, found in curves.items()},
        },
        "figures": [figure("lines", f"Right answers over time (seed {seeds[0]}, running mean)", {
            who: [[rounded(x), rounded(y)] for x, y in smooth(found[0])] for who, found in curves.items()},
            "seconds of training", "share of right answers")],
    }  # fmt: skip


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


def warm_model(folder: Path, steps: int) -> Path:
    """A small model that has imitated answers: a run without any stage."""
    warm = {"steps": steps, "batch": 256, "lr": 3e-3, "protocol": "attempt", "roles": ["solver"]}
    policy = {"model": MODEL, "max_tokens": TOKENS, "warm_start": warm}
    arms = {"warm": {"protocol": "attempt", "roles": {"solver": "solver"}, "when": "start", "episodes": 70}}
    run(folder / "warm", {"policies": {"solver": policy}, "eval": {"arms": arms}}, seed=0)
    return folder / "warm" / "models" / "solver" / "warm"


def ours(folder: Path, model: Path, steps: int, batch: int, seed: int) -> Curve:
    """One run from the command line."""
    policy = {"model": {"path": str(model)}, "max_tokens": TOKENS, "trained": True, "learner": {"lr": LR}}
    stage = {"protocol": "attempt", "roles": {"solver": "solver"}, "steps": steps, "plays_per_step": batch,
             "repeats": REPEATS, "max_staleness": 1}  # fmt: skip
    run(folder, {"policies": {"solver": policy}, "stages": {STAGE: stage}}, seed)
    figures = stage_figures(folder, STAGE)
    return list(zip(accumulate(step["step_s"] for step in figures), (step["score/attempt"] for step in figures)))


def run(folder: Path, settings: Json, seed: int) -> None:
    """Trains as `settings` say, into `folder`."""
    common = {"name": "peer", "run_dir": str(folder), "seed": seed, "tasks": TASKS, "track": {"wandb": "disabled"},
              "protocols": {"attempt": str(PROTOCOLS / "solve.yaml")}}  # fmt: skip
    file = folder.with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**common, **settings}))
    call([sys.executable, "launch.py", "train", str(file)], dict(os.environ))


def theirs(python: Path, folder: Path, model: Path, steps: int, batch: int, seed: int) -> tuple[Curve, Json]:
    """The same with TRL. Returns its curve and what it ran with."""
    folder.mkdir()
    settings = {
        "learning_rate": LR, "max_steps": steps, "per_device_train_batch_size": batch, "seed": seed, "epsilon": 0.2,
        "num_generations": REPEATS, "max_completion_length": TOKENS, "temperature": 1.0,
    }  # fmt: skip
    job = {"model": str(model), "rows": prompts(model, steps * batch // REPEATS, seed), "settings": settings,
           "folder": str(folder), "out": str(folder / "found.json")}  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "OMP_NUM_THREADS")}
    offline = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    call([str(python), str(ROOT / "benchmarks" / "peer_trl.py"), str(folder / "job.json")], {**environment, **offline})
    found = json.loads((folder / "found.json").read_text())
    return [(line["seconds"], line["correct"]) for line in found["lines"]], found["facts"]


def prompts(model: Path, count: int, seed: int) -> list[Json]:
    """The tasks that our run of that seed draws (Rollouts.draw), in its order."""
    protocol, source = load_protocol(PROTOCOLS / "solve.yaml"), load_task_source(TASKS)
    codec, rows = ChatCodec.from_pretrained(model), []
    for group in range(count):
        rng = random.Random(f"{seed}/{STAGE}/task/{group}")
        rng.random()  # Rollouts.draw first asks whether the archive shall be replayed
        task = training_task(source, protocol, rng)
        ids = codec.prompt([Message("user", task.question)])
        rows.append({"question": task.question, "answer": task.answer, "ids": list(ids)})
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
