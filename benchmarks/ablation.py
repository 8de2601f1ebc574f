"""python -m benchmarks ablation: what to learn with, seven methods on two tasks, three seeds each.

Runs one `launch.py train` after the other, about two hours on two idle cores, and writes benchmarks/ablation.json,
docs/ablation.md and its pictures after each. Ctrl-C ends it, the run under way is lost; started again it goes on with
the runs that have not finished, and repeats those whose configuration has changed since.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import ablation_page
from benchmarks.ablation_jobs import (
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
from benchmarks.measure import ROOT, Json, circumstances
from configs.errors import ConfigErrors

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
    return work(chosen, book, launch or run)


def work(chosen: Sequence[Job], book: Book, launch: Launch) -> int:
    """Runs what has not finished, one after the other. One that fails does not keep the others from running."""
    failed: list[str] = []
    for number, job in enumerate(chosen, 1):
        place = f"[{number}/{len(chosen)}] {job.name}"
        if finished(job, text_of(job)):
            print(f"{place}: finished before", flush=True)
            continue
        print(f"{place} ...", flush=True)
        code = launch(job)
        if code == INTERRUPTED or code < 0:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            return INTERRUPTED
        if code or not finished(job, text_of(job)):
            failed.append(job.name)
            print(f"{place}: failed, see {log_of(job)}", file=sys.stderr)
            continue
        book.write(new=True)
        print(f"{place}: {book.told(job)}", flush=True)
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
    parser.add_argument("--quick", action="store_true", help=f"tiny runs of one seed, into {QUICK_RUNS}")
    parser.add_argument("--dry-run", action="store_true", help="check and show every command, start nothing")
    args = parser.parse_args(arguments)
    args.seeds = args.seeds or list(SEEDS[:1] if args.quick else SEEDS)
    return args


def run(job: Job) -> int:
    """The exit code of a run; what it says goes to a file."""
    log = log_of(job)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        process = subprocess.Popen(job.command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # it has had the signal too, and ends its actors before itself
                continue


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
