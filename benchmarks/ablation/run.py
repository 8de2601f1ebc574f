"""python -m benchmarks ablation: what to learn with, eight methods on two tasks, three seeds each.

Runs one `launch.py train` after the other, or `--at-once` so many, and writes benchmarks/ablation.json,
docs/ablation.md and its pictures after each. Replies and optimizer steps of these runs take turns (max_staleness 0), so
that one alone leaves a second core mostly idle: `--at-once 2` is for two cores. Ctrl-C ends it, the runs under way are
lost; started again it goes on with the runs that have not finished, and repeats those whose configuration has changed
since.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from benchmarks.ablation import page as ablation_page
from benchmarks.ablation.jobs import (
    ARENAS,
    JUDGE,
    QUICK_RUNS,
    SEEDS,
    Job,
    fingerprint,
    finished,
    jobs,
    methods,
    result,
    text_of,
)
from benchmarks.harness.measure import ROOT, Json, circumstances
from configs.reading.errors import ConfigErrors

INTERRUPTED = 130
Launch = Callable[[Job], int]


def main(arguments: Sequence[str] | None = None, launch: Launch | None = None, root: Path = ROOT) -> int:
    """Exit code: 0, 1 where runs failed, 2 for a configuration that cannot work, 130 when interrupted. `root`: where
    runs, benchmarks and docs lie."""
    args = parse(arguments)
    chosen = list(jobs(args.tasks, args.methods, args.seeds, args.quick, root))
    try:
        texts = {job: text_of(job) for job in chosen}
    except ConfigErrors as error:
        print(error, file=sys.stderr)
        return 2
    if args.dry_run:
        for job in chosen:
            print("done: " if finished(job, texts[job]) else "to do:", *map(quoted, ["python", *job.command[1:]]))
        return 0
    seeds = args.seeds if args.quick else sorted({*args.seeds, *SEEDS})
    book = Book(list(jobs([*ARENAS], [*methods()], seeds, args.quick, root)), root / QUICK_RUNS if args.quick else root)
    book.write()
    return work(chosen, book, launch or run, args.at_once)


def work(chosen: Sequence[Job], book: Book, launch: Launch, at_once: int = 1) -> int:
    """Runs what has not finished, `at_once` at a time. One that fails does not keep the others from running."""
    over, lock = threading.Event(), threading.Lock()
    begun: dict[str, Future[bool]] = {}

    def one(number: int, job: Job) -> bool:
        """Whether it is finished. A run whose judge is under way waits for it."""
        if job.needs in begun:
            begun[job.needs].result()
        if over.is_set():
            return False
        place, text = f"[{number}/{len(chosen)}] {job.name}", text_of(job)
        if finished(job, text):
            print(f"{place}: finished before", flush=True)
            return True
        print(f"{place} ...", flush=True)
        code = launch(job)
        if code == INTERRUPTED or code < 0:
            over.set()
            return False
        if code or not finished(job, text):
            print(f"{place}: failed, see {log_of(job)}", file=sys.stderr)
            return False
        with lock:
            book.write(new=True)
            print(f"{place}: {book.told(job)}", flush=True)
        return True

    with ThreadPoolExecutor(at_once) as pool:
        for number, job in enumerate(chosen, 1):
            begun[job.name] = pool.submit(one, number, job)
        try:
            failed = [name for name, done in begun.items() if not done.result()]
        except KeyboardInterrupt:  # the runs have had the signal too, and end their actors before themselves
            over.set()
    if over.is_set():
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    about = (__doc__ or "").partition(": ")[2]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks ablation", description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", choices=[*ARENAS], default=[*ARENAS], metavar="TASK",
                        help=", ".join(ARENAS))  # fmt: skip
    names = [*methods()]
    parser.add_argument("--methods", nargs="+", choices=names, default=names, metavar="METHOD", help=", ".join(names))
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help=f"default: {' '.join(map(str, SEEDS))}")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument("--quick", action="store_true", help=f"tiny runs of one seed, into {QUICK_RUNS}")
    parser.add_argument("--dry-run", action="store_true", help="check and show every command, start nothing")
    args = parser.parse_args(arguments)
    if args.at_once < 1:
        parser.error("--at-once: at least 1")
    args.seeds = args.seeds or list(SEEDS[:1] if args.quick else SEEDS)
    return args


def run(job: Job) -> int:
    """The exit code of a run; what it says goes to a file."""
    log = log_of(job)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        return subprocess.run(job.command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT).returncode


def log_of(job: Job) -> Path:
    return job.folder.parent / "logs" / f"{job.name}.log"


def quoted(word: str) -> str:
    return f"'{word}'" if set(word) & set(" {}[]") else word


class Book:
    """The results on disk: those of the run directories, and older ones of the same configurations that
    ablation.json still has."""

    def __init__(self, every: Sequence[Job], root: Path) -> None:
        self.every = every
        self.file, self.docs = root / "benchmarks" / "ablation.json", root / "docs"
        self.found: dict[str, Json] = {}

    def write(self, new: bool = False) -> None:
        """`new`: something was measured just now, here."""
        before: Json = json.loads(self.file.read_text()) if self.file.exists() else {}
        older = {f"{one['task']}-{one['method']}-{one['seed']}": one for one in before.get("runs", [])}
        self.found = {}
        for job in self.every:
            text, kept = text_of(job), older.get(job.name)
            if finished(job, text):
                self.found[job.name] = result(job, text)
            elif kept is not None and kept["config"] == fingerprint(text):
                self.found[job.name] = kept
        facts = before.get("facts")
        results: Json = {"facts": circumstances() if new or not facts else facts, "runs": list(self.found.values())}
        if self.found:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(json.dumps(results, indent=1) + "\n")
        ablation_page.write(results, sorted({job.seed for job in self.every}), self.docs)

    def told(self, job: Job) -> str:
        one = self.found[job.name]
        shown = ablation_page.shown(job.task, one["value"]) + (" on random evidence" if job.method == JUDGE else "")
        return f"{shown} in {one['wall_s']:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
