"""Rows of a file by number, without holding the file in memory.

A `Rows` is opened once and indexed (eight bytes a row); a row is read from disk when it is asked for. A row that
cannot be read is a `BadRow`, with what is wrong; the scan (`scan.py`) collects all of them.
"""

from __future__ import annotations

import array
import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

Row = Mapping[str, Any]


class BadRow(ValueError):
    """A row that cannot be used, and why. The caller knows its place."""


class Rows(ABC):
    """Rows of one file or data set, numbered from 0."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, number: int) -> Row:
        """The row of that number. Raises BadRow."""

    @abstractmethod
    def place(self, number: int) -> str:
        """Where a person finds the row: `file:line` where there are lines."""

    def __iter__(self) -> Iterator[Row | BadRow]:
        """All rows in order, bad ones as the error that `read` raises. Faster than `read` one by one."""
        for number in range(len(self)):
            try:
                yield self.read(number)
            except BadRow as error:
                yield error


class JsonLines(Rows):
    """One JSON object a line. Empty lines are no rows."""

    def __init__(self, path: Path):
        self.path = path
        self._starts, self._lines = array.array("Q"), array.array("Q")
        start = 0
        with path.open("rb") as file:
            for line, text in enumerate(file, 1):
                if not text.isspace():
                    self._starts.append(start)
                    self._lines.append(line)
                start += len(text)
        self._file = path.open("rb")
        self._decode = msgspec.json.Decoder().decode

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, number: int) -> Row:
        self._file.seek(self._starts[number])
        return self._parsed(self._file.readline())

    def place(self, number: int) -> str:
        return f"{self.path}:{self._lines[number]}"

    def __iter__(self) -> Iterator[Row | BadRow]:
        decode = self._decode
        with self.path.open("rb") as file:
            for text in file:
                try:
                    row = decode(text)
                    if type(row) is dict:
                        yield row
                        continue
                except (msgspec.DecodeError, UnicodeDecodeError):
                    if text.isspace():
                        continue
                try:
                    yield self._parsed(text)
                except BadRow as error:
                    yield error

    def _parsed(self, text: bytes) -> Row:
        try:
            row = self._decode(text)
        except UnicodeDecodeError:
            raise BadRow("not UTF-8") from None
        except msgspec.DecodeError as error:
            try:
                text.decode()
            except UnicodeDecodeError:
                raise BadRow("not UTF-8") from None
            raise BadRow(f"broken JSON: {error}") from None
        if not isinstance(row, dict):
            raise BadRow(f"is {_kind(row)}, not an object with fields")
        return row


class CsvLines(Rows):
    """Comma-separated values with a header line (RFC 4180: a quoted value may hold line breaks)."""

    def __init__(self, path: Path):
        self.path = path
        self._starts, self._lines = array.array("Q"), array.array("Q")
        self._file = path.open("rb")
        header = self._record()
        self.columns = [] if header is None else [name.decode("utf-8-sig", "replace") for name in header]
        line = 2 + self._breaks
        while True:
            start = self._file.tell()
            record = self._record()
            if record is None:
                break
            if record:
                self._starts.append(start)
                self._lines.append(line)
            line += 1 + self._breaks

    def _record(self) -> list[bytes] | None:
        """The next record, empty for an empty line, None at the end. Bytes that are no UTF-8 survive as they are."""
        text = self._file.readline()
        self._breaks = 0
        if not text:
            return None
        while text.count(b'"') % 2 and (more := self._file.readline()):  # inside of a quoted value
            text += more
            self._breaks += 1
        if text.isspace():
            return []
        record = next(csv.reader(io.StringIO(text.decode("utf-8", "surrogateescape"), newline="")))
        return [value.encode("utf-8", "surrogateescape") for value in record]

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, number: int) -> Row:
        self._file.seek(self._starts[number])
        record = self._record() or []
        if len(record) != len(self.columns):
            raise BadRow(f"has {len(record)} values for {len(self.columns)} columns")
        try:
            return {name: value.decode() for name, value in zip(self.columns, record)}
        except UnicodeDecodeError:
            raise BadRow("not UTF-8") from None

    def place(self, number: int) -> str:
        return f"{self.path}:{self._lines[number]}"


class ParquetRows(Rows):
    """A Parquet file, read by row group."""

    def __init__(self, path: Path):
        from pyarrow import parquet

        self.path, self._file = path, parquet.ParquetFile(path, memory_map=True)
        groups = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._ends: list[int] = []
        for size in groups:
            self._ends.append(size + (self._ends[-1] if self._ends else 0))
        self._group = lru_cache(maxsize=4)(self._file.read_row_group)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, number: int) -> Row:
        group = next(i for i, end in enumerate(self._ends) if number < end)
        first = self._ends[group - 1] if group else 0
        row: Row = self._group(group).slice(number - first, 1).to_pylist()[0]
        return row

    def place(self, number: int) -> str:
        return f"{self.path}, row {number + 1}"

    def __iter__(self) -> Iterator[Row | BadRow]:
        for batch in self._file.iter_batches():
            yield from batch.to_pylist()


class ListedRows(Rows):
    """Rows that something else holds: a data set of the `datasets` library, or a list of mappings."""

    def __init__(self, rows: Sequence[Row], name: str):
        self._rows, self._name = rows, name

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, number: int) -> Row:
        return self._rows[number]

    def place(self, number: int) -> str:
        return f"{self._name}, row {number + 1}"


class ManyRows(Rows):
    """Several files one after the other."""

    def __init__(self, parts: Sequence[Rows]):
        self._parts = [part for part in parts if len(part)]
        self._ends = array.array("Q")
        for part in self._parts:
            self._ends.append(len(part) + (self._ends[-1] if self._ends else 0))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def _at(self, number: int) -> tuple[Rows, int]:
        part = next(i for i, end in enumerate(self._ends) if number < end)
        return self._parts[part], number - (self._ends[part - 1] if part else 0)

    def read(self, number: int) -> Row:
        part, within = self._at(number)
        return part.read(within)

    def place(self, number: int) -> str:
        part, within = self._at(number)
        return part.place(within)

    def __iter__(self) -> Iterator[Row | BadRow]:
        for part in self._parts:
            yield from part


def _kind(value: Any) -> str:
    """A value's type in a user's words."""
    names = {
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
        dict: "an object",
    }
    return names.get(type(value), "null" if value is None else type(value).__name__)
