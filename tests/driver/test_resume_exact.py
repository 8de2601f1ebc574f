"""Resume after kill -9 gives the losses of a run that nobody touched, bit for bit: `deterministic: true`, with real
Ray, vLLM and DeepSpeed. The seeds and the order of plays without engines: tests/actors/engine/test_deterministic.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from reporting.tracker import read_metrics

ROOT = Path(__file__).resolve().parent.parent.parent
STEPS, SAVE_EVERY = 6, 2

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]


def launch(log: Path, *args: str | Path) -> subprocess.Popen[bytes]:
    """In a process group of its own, so that everything that the run started can be killed with it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "launch.py"), "train", *map(str, args)], cwd=log.parent, env=environment,
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def fresh(folder: Path, name: str) -> tuple[Path, list[str | Path]]:
    run_dir = folder / name
    return run_dir, [
        ROOT / "configs" / "smoke.yaml", f"run_dir={run_dir}", "deterministic=true", f"track.save_every={SAVE_EVERY}",
        "track.wandb=disabled", f"stages.debate.steps={STEPS}", "stages.consultancy.max_staleness=0",
        "eval.ceiling_episodes=2",
    ]  # fmt: skip


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    try:
        code = process.wait(timeout=900)
    finally:
        process.kill()
    assert code == 0, log.read_text()


def learned(run_dir: Path) -> list[tuple[str, int, dict[str, Any]]]:
    """(policy, step, figures) of every learner step in the order written; those done again after a kill twice."""
    path = run_dir / "metrics.jsonl"
    lines = read_metrics(path) if path.exists() else ()
    return [(line["kind"], line["step"], line["values"]) for line in lines if line["kind"].startswith("learner/")]


def exact(figures: dict[str, Any]) -> dict[str, Any]:
    """What must be equal bit for bit: all but times and where the sampler was."""
    return {name: value for name, value in figures.items() if not name.endswith("_s")}


def kill_after(step: int, process: subprocess.Popen[bytes], run_dir: Path, log: Path) -> None:
    """kill -9, once the debater's step `step` has been logged and a play of the next one is on disk."""
    ledger = run_dir / "episodes.jsonl"
    while process.poll() is None and all(line[:2] != ("learner/debater", step) for line in learned(run_dir)):
        time.sleep(0.05)
    size = ledger.stat().st_size
    while process.poll() is None and ledger.stat().st_size == size:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, f"the run ended before it was killed:\n{log.read_text()}"
    time.sleep(5)  # Ray's own processes notice that their driver is gone


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("straight")
    run_dir, args = fresh(folder, "run")
    finish(launch(folder / "log", *args), folder / "log")
    return run_dir


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Killed after step 3, one past a checkpoint, and again after step 4, right on one."""
    folder = tmp_path_factory.mktemp("killed")
    run_dir, args = fresh(folder, "run")
    process = launch(folder / "0.log", *args)
    for number, step in enumerate((3, 4)):
        try:
            kill_after(step, process, run_dir, folder / f"{number}.log")
        finally:
            process.kill()
        process = launch(folder / f"{number + 1}.log", run_dir, "--resume")
    finish(process, folder / "2.log")
    return run_dir


def test_losses_are_the_same_bit_for_bit(straight: Path, killed: Path) -> None:
    expected = {(policy, step): exact(figures) for policy, step, figures in learned(straight)}
    assert {step for policy, step in expected if policy == "learner/debater"} == set(range(1, STEPS + 1))
    assert len({figures.get("loss") for figures in expected.values()}) > STEPS, "losses that do not change show nothing"
    found = learned(killed)
    assert len(found) > len(expected), "no step was done again: the kill came too late"
    for policy, step, figures in found:
        assert exact(figures) == expected[policy, step], (policy, step)
    assert {(policy, step) for policy, step, _ in found} == expected.keys()


def test_the_trained_weights_are_the_same_files(straight: Path, killed: Path) -> None:
    for policy, name in (("debater", "debate"), ("proposer", "debate"), ("consultant", "consultancy")):
        one, two = (run / "models" / policy / name / "model.safetensors" for run in (straight, killed))
        assert one.read_bytes() == two.read_bytes(), policy
