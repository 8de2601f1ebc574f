"""Questions of one's own, from a file: the kinds `jsonl`, `csv`, `parquet` and `huggingface`.

    tasks:
      kind: jsonl
      path: questions.jsonl
      fields: {choices: [options], cluster: article_id, hidden: {text: {field: article, roles: [debater]}}}

All rows are read and checked before anything starts (tasks/questions/scan.py); later a row is read from disk when its
task is drawn. A task is played as it is: nothing is proposed and nothing derived.
"""

from __future__ import annotations

import importlib.resources
import json
import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from protocols.types import Domain, Hidden, InvalidProposal, Task
from tasks.base import TaskSource
from tasks.questions.checks import CHECKS
from tasks.questions.fields import FieldMap, Question, claims_of, lookup, share_of, template, template_problem
from tasks.questions.rows import CsvLines, JsonLines, ListedRows, ManyRows, ParquetRows, Row, Rows
from tasks.questions.scan import ITEM_BITS, Scan, items, question_id, scan

FEW = 1000
SHOWN = 50
"""So many bad rows are listed in one message."""


@dataclass(frozen=True)
class QuestionDomain(Domain):
    """Checks answers to one question."""

    check_name: str
    settings: tuple[tuple[str, Any], ...]
    accepted: tuple[str, ...]

    def derive(self, task: Task, proposal: str) -> Task:
        raise InvalidProposal("questions of a file are played as they are")

    def check(self, task: Task, answer: str) -> bool:
        return self.grade(task, answer) >= 1.0

    def grade(self, task: Task, answer: str) -> float:
        return CHECKS[self.check_name](answer, self.accepted, task.choices, **dict(self.settings))


@dataclass(frozen=True)
class Splits:
    """Which questions are kept for evaluation. A cluster is never in both splits unless a field or a file says so."""

    share: float = 0.2
    """Of the clusters, by a hash of their names: the same in every run. Not with `by` or files of its own."""
    by: str = ""
    """The field of a row that names its split."""
    heldout: list[str] = field(default_factory=lambda: ["validation", "test", "dev"])
    """With `by`: the values that mean evaluation; rows with other values are for training."""


@dataclass(frozen=True)
class QuestionSource(TaskSource):
    """What the kinds share."""

    fields: FieldMap = field(default_factory=FieldMap)
    """Which field of a row is what."""
    claims: int = 2
    """How many choices a task has: the right one and wrong ones, drawn once for each question. 0: all of them."""
    where: str = ""
    """A template; only rows for which it renders "True" or "true" are used."""
    splits: Splits = field(default_factory=Splits)
    limit: int = 0
    """At most so many questions of each split, drawn by `seed`. 0: all."""
    seed: int = 0
    """Of the draw of `limit`, and of which wrong choices become claims, in which order."""
    bad_rows: Literal["refuse", "skip"] = "refuse"
    """What becomes of bad rows: the file is refused and all of them are listed, or they are left out and counted."""
    check: str = ""
    """How a written answer is checked (docs/questions.md). Empty: `choice` where there are choices, else `text`."""
    check_with: dict[str, Any] = field(default_factory=dict)
    """Settings of the check, such as {tolerance: 0.01} of `number`."""

    def files(self) -> list[tuple[Rows, str]]:
        """(rows, split) of every file; the split is empty where each row decides. Raises OSError or ValueError."""
        raise LookupError(f"the kind {self.kind!r} opens no files")

    def heldout_apart(self) -> bool:
        """Whether evaluation has a file or split of its own."""
        return False

    def train(self, rng: random.Random) -> Task:
        return self._task(rng.choice(self._opened.train))

    def heldout(self, n: int, seed: int) -> list[Task]:
        order = list(self._opened.heldout)
        random.Random(f"questions heldout {seed}").shuffle(order)
        return [self._task(order[i % len(order)]) for i in range(n)]

    def derived_heldout(self, n: int, seed: int) -> list[Task]:
        return self.heldout(n, seed)

    def heldout_problem(self) -> str:
        message = "no question is kept for evaluation; splits.share or heldout_path says which are"
        return "" if self._opened.heldout else message

    def root(self, task_id: str) -> Task:
        for positions in (self._opened.train, self._opened.heldout):
            for position in positions:
                task = self._task(position)
                if task.id == task_id:
                    return task
        raise KeyError(task_id)

    def words(self) -> list[str]:
        words: dict[str, None] = {}
        for positions in (self._opened.train, self._opened.heldout):
            for position in positions:
                task = self._task(position)
                texts = (
                    task.question,
                    task.answer or "",
                    *task.choices,
                    *(one.text for one in task.hidden.values()),
                )
                words.update(dict.fromkeys(word for text in texts for word in text.split()))
        return list(words)

    def problems(self) -> list[tuple[str, str]]:
        found = [
            (f"fields.{key}", message) for key, message in self.fields.problems()
        ] + self._setting_problems()
        if found:
            return found
        try:
            result = self._opened.scan
        except (OSError, ValueError, ImportError) as error:
            return [("path", str(error))]
        if result.bad and self.bad_rows == "refuse":
            more = len(result.bad) - SHOWN
            rest = (
                [("path", f"and {more} more bad rows (bad_rows: skip leaves them out)")] if more > 0 else []
            )
            return [("path", line) for line in result.bad[:SHOWN]] + rest
        if not result.train:
            bad = f"; {len(result.bad)} bad rows were skipped" if result.bad else ""
            return [("path", f"leaves no question for training{bad}")]
        return []

    @property
    def skipped(self) -> list[str]:
        """Bad rows that `bad_rows: skip` leaves out, as `place: what is wrong`."""
        return self._opened.scan.bad

    def _setting_problems(self) -> list[tuple[str, str]]:
        found = []
        if self.claims < 0 or self.claims == 1:
            found.append(("claims", "must be 0 (all choices) or at least 2"))
        if self.fields.wrong and self.claims != 2:
            found.append(("fields.wrong", "has no effect but with claims: 2"))
        if self.limit < 0:
            found.append(("limit", "must be at least 0"))
        if problem := template_problem(self.where):
            found.append(("where", problem))
        if not 0.0 < self.splits.share < 1.0:
            found.append(("splits.share", "must be above 0 and below 1"))
        if self.splits.by and self.heldout_apart():
            found.append(("splits.by", "has no effect where evaluation has a file or split of its own"))
        if self.check and self.check not in CHECKS:
            found.append(("check", CHECKS.unknown(self.check)))
        else:
            known = CHECKS.entries[self.check].reads if self.check else frozenset()
            for key in sorted(set(self.check_with) - known):
                valid = ", ".join(sorted(known)) or "none"
                message = f"{self.check or 'the default check'} has no such setting; valid: {valid}"
                found.append((f"check_with.{key}", message))
        return found

    @cached_property
    def _opened(self) -> Opened:
        """The files, read once in a process however often a config names them."""
        key = repr(self)
        if key not in _OPENED:
            _OPENED[key] = self._open()
        return _OPENED[key]

    def _open(self) -> Opened:
        """Scans all files; numbers of rows count on from file to file."""
        files, total, offset = self.files(), Scan(), 0
        for rows, named in files:
            found = scan(rows, self.fields, self._keep if self.where else None, partial(self._split, named))
            total.train.extend(position + (offset << ITEM_BITS) for position in found.train)
            total.heldout.extend(position + (offset << ITEM_BITS) for position in found.heldout)
            total.bad += found.bad
            total.left_out += found.left_out
            offset += len(rows)
        if not total.heldout and not self.splits.by and not self.heldout_apart() and len(total.train) < FEW:
            self._keep_one(ManyRows([rows for rows, _ in files]), total)
        drawn = []
        for name, positions in (("train", total.train), ("heldout", total.heldout)):
            if self.limit and len(positions) > self.limit:
                rng = random.Random(f"questions {name} {self.seed}")
                positions = array("Q", sorted(rng.sample(positions, self.limit)))
            drawn.append(positions)
        return Opened(ManyRows([rows for rows, _ in files]), total, drawn[0], drawn[1])

    def _keep_one(self, rows: Rows, total: Scan) -> None:
        """Of a small file from which the hash keeps nothing, keeps the cluster that a larger share would keep first."""
        clusters = [self._question(rows, position).cluster for position in total.train]
        first = min(clusters, key=share_of, default="")
        if any(cluster != first for cluster in clusters):
            pairs = list(zip(clusters, total.train))
            total.heldout = array("Q", [position for cluster, position in pairs if cluster == first])
            total.train = array("Q", [position for cluster, position in pairs if cluster != first])

    def _question(self, rows: Rows, position: int) -> Question:
        number, index = position >> ITEM_BITS, position & ((1 << ITEM_BITS) - 1)
        row = items(rows.read(number), self.fields.each)[index]
        return self.fields.read(row, question_id(number, index, self.fields.each))

    def _split(self, named: str, row: Row, question: Question) -> str:
        if named:
            return named
        if self.splits.by:
            return "heldout" if str(lookup(row, self.splits.by)) in self.splits.heldout else "train"
        return "heldout" if share_of(question.cluster) < self.splits.share else "train"

    def _keep(self, row: Row) -> bool:
        return template(self.where)(row).strip() in ("True", "true")

    def _task(self, position: int) -> Task:
        question = self._question(self._opened.rows, position)
        name = self.check or ("choice" if question.choices else "text")
        domain = QuestionDomain(name, tuple(sorted(self.check_with.items())), question.accepted)
        hidden = {
            key: Hidden(text, tuple(self.fields.hidden[key].roles)) for key, text in question.hidden.items()
        }
        claims = claims_of(question, self.claims, self.seed) if question.choices else ()
        # The cluster stands where derived tasks have the task that they come from: both say which plays go together.
        parent = question.cluster if question.cluster != question.id else None
        return Task(
            question.id, question.text, question.answer, claims, hidden=hidden, domain=domain, parent=parent
        )


@dataclass(frozen=True)
class Opened:
    """Files that have been scanned, and the questions drawn from them."""

    rows: Rows
    scan: Scan
    train: Sequence[int]
    heldout: Sequence[int]


_OPENED: dict[str, Opened] = {}


@dataclass(frozen=True)
class FileSource(QuestionSource):
    """Questions in files of one format."""

    path: str | list[str] = ""
    """The file, or several. `~` is the home directory; a relative path starts at the working directory."""
    heldout_path: str | list[str] = field(default_factory=list)
    """Files for evaluation; then all of `path` is for training."""

    reader: ClassVar[type[JsonLines] | type[CsvLines] | type[ParquetRows]] = JsonLines

    def files(self) -> list[tuple[Rows, str]]:
        apart = self.heldout_apart()
        named = [(path, "train" if apart else "") for path in _paths(self.path)]
        named += [(path, "heldout") for path in _paths(self.heldout_path)]
        missing = [str(path) for path, _ in named if not path.is_file()]
        if missing or not named:
            raise ValueError(
                f"there is no file {', '.join(missing)}" if missing else "missing (a file with questions)"
            )
        return [(self.reader(path), split) for path, split in named]

    def heldout_apart(self) -> bool:
        return bool(self.heldout_path)


@dataclass(frozen=True)
class JsonLinesSource(FileSource):
    """One JSON object a line."""

    kind: ClassVar[str] = "jsonl"


@dataclass(frozen=True)
class CsvSource(FileSource):
    """Comma-separated values with a header."""

    kind: ClassVar[str] = "csv"
    reader = CsvLines


@dataclass(frozen=True)
class ParquetSource(FileSource):
    """Parquet, by the library pyarrow (extra `data`)."""

    kind: ClassVar[str] = "parquet"
    reader = ParquetRows


@dataclass(frozen=True)
class HuggingFaceSource(QuestionSource):
    """A data set that the library `datasets` opens (extra `data`): a folder on disk, or a name on the hub."""

    kind: ClassVar[str] = "huggingface"

    path: str = ""
    """A folder that `datasets` saved or can load, or a name such as `openai/gsm8k`."""
    name: str = ""
    """Which configuration of the data set (`main`, `gpqa_diamond`)."""
    train_split: str = "train"
    """Its split for training, in the library's notation (`train[:10%]` too)."""
    heldout_split: str = ""
    """Its split for evaluation. Empty: a share of the clusters of `train_split`."""
    revision: str = ""
    """A commit or tag on the hub, so that a run can be repeated."""
    streaming: bool = False
    """Reads rows as they arrive instead of downloading all; needs `limit`, and holds that many of each split."""

    def files(self) -> list[tuple[Rows, str]]:
        named = [(self.train_split, "train" if self.heldout_split else "")]
        named += [(self.heldout_split, "heldout")] if self.heldout_split else []
        return [(ListedRows(self._load(split), f"{self.path}[{split}]"), to) for split, to in named]

    def heldout_apart(self) -> bool:
        return bool(self.heldout_split)

    def _setting_problems(self) -> list[tuple[str, str]]:
        found = super()._setting_problems()
        if not self.path:
            found.append(("path", "missing (a folder, or a data set's name on the hub)"))
        if self.streaming and not self.limit:
            found.append(("limit", "streaming never ends by itself; valid: 1 or more"))
        return found

    def _load(self, split: str) -> Sequence[Row]:
        try:
            import datasets
        except ImportError:
            raise ImportError("needs the library datasets: make install EXTRAS=data") from None
        folder = Path(self.path).expanduser()
        datasets.disable_progress_bars()
        try:
            if (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file():
                saved = datasets.load_from_disk(str(folder))
                return saved[split] if isinstance(saved, dict) else saved  # type: ignore[no-any-return]
            name = str(folder) if folder.is_dir() else self.path
            settings = {"split": split, "streaming": self.streaming, "revision": self.revision or None}
            loaded = datasets.load_dataset(name, self.name or None, **settings)
        except (OSError, ValueError, KeyError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(f"datasets cannot open {self.path!r} ({split}): {first}") from None
        return list(loaded.take(self.limit)) if self.streaming else loaded


@dataclass(frozen=True)
class Facts(QuestionSource):
    """The 260 pairs of a true and a false statement that the library TextArena (Guertler et al. 2025, arXiv
    2504.11442) ships for its game of truth and deception (extra `textarena`)."""

    kind: ClassVar[str] = "facts"

    def files(self) -> list[tuple[Rows, str]]:
        try:
            folder = importlib.resources.files("textarena")
        except ModuleNotFoundError:
            raise ImportError("needs the library textarena: pip install 'dissoi[textarena]'") from None
        text = folder.joinpath("envs", "TruthAndDeception", "facts.json").read_text(encoding="utf-8")
        rows = [
            {
                "id": f"fact{number}",
                "question": "Which of the two statements is true?",
                "choices": [pair["facts"]["fact1"], pair["facts"]["fact2"]],
                "answer": pair["facts"][pair["correct_fact"]],
            }
            for number, pair in enumerate(json.loads(text), 1)
        ]
        return [(ListedRows(rows, "facts"), "")]


def _paths(named: str | list[str]) -> list[Path]:
    return [Path(one).expanduser() for one in ([named] if isinstance(named, str) else named) if one]
