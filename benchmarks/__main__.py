"""python -m benchmarks [NAME ...] [--quick]: measure, add to benchmarks/results.json, write docs/benchmarks.md.

Each benchmark runs in a process of its own. With --quick it is only shown that it runs: sizes are tiny, and the
results go to runs/benchmarks-quick.

`python -m benchmarks ablation --help` is about one more, which takes hours: how well each method learns.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import page
from benchmarks.harness.measure import ROOT, Json, circumstances

NAMES = ("driver", "orchestrator", "learner", "bubbles", "prefix", "saturation", "overlap", "peer")
"""Modules with a `main(quick)` that returns settings, targets, measured and metrics."""


def main() -> int:
    if sys.argv[1:2] == ["ablation"]:  # two hours, and options and a page of its own: not among NAMES
        from benchmarks.ablation import run as ablation

        return ablation.main(sys.argv[2:])
    args = parse()
    if args.alone:
        Path(args.alone).write_text(json.dumps(measure(args.names[0], args.quick)))
        return 0
    folder = ROOT / "runs" / "benchmarks-quick" if args.quick else ROOT / "benchmarks"
    docs = folder if args.quick else ROOT / "docs"
    folder.mkdir(parents=True, exist_ok=True)
    file, failed = folder / "results.json", []
    for name in args.names or NAMES:
        print(f"== {name}", flush=True)
        found = in_a_process(name, args.quick)
        if found is None:
            failed.append(name)
            continue
        results = json.loads(file.read_text()) if file.exists() else {}
        results[name] = found
        ordered = {known: results[known] for known in NAMES if known in results}
        file.write_text(json.dumps(ordered, indent=1) + "\n")
        page.write(ordered, docs)
        for target in found["targets"]:
            print("  " + page.sentence(target), flush=True)
    if failed:
        print(f"failed, earlier results kept: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition(":")[2])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--alone", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; valid: {', '.join(NAMES)}")
    return args


def measure(name: str, quick: bool) -> Json:
    """Runs one benchmark here. What was done, where and when stands beside what it found."""
    facts, begun = circumstances(), time.monotonic()
    module = importlib.import_module(f"benchmarks.{name}")
    found: Json = module.main(quick)
    return {"about": (module.__doc__ or "").strip(), **facts, "seconds": round(time.monotonic() - begun), **found}


def in_a_process(name: str, quick: bool) -> Json | None:
    """None where it failed; its output is the reader's."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "benchmarks", name, "--alone", str(out), *(["--quick"] if quick else [])]
        if subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode:
            return None
        found: Json = json.loads(out.read_text())
        return found


if __name__ == "__main__":
    sys.exit(main())
