"""One pass over all rows before anything starts: which can be used, in which split, and what is wrong with others."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tasks.questions.fields import FieldMap, Question, lookup
from tasks.questions.rows import BadRow, Row, Rows, _kind

ITEM_BITS = 16
"""A position is `row << ITEM_BITS | item`: with `each`, one row holds several questions."""
Split = Callable[[Row, Question], str]
"""`train` or `heldout`, or "" for a row that is left out."""
SPLITS = {"": 0, "train": 1, "heldout": 2}


@dataclass
class Scan:
    """What the pass found. Positions take eight bytes each, in the order of the rows."""

    train: array[int] = field(default_factory=lambda: array("Q"))
    heldout: array[int] = field(default_factory=lambda: array("Q"))
    bad: list[str] = field(default_factory=list)
    """`place: what is wrong`, in the order of the rows."""
    left_out: int = 0
    """Questions that the filter or the split leaves out."""


def items(row: Row, each: str) -> list[Row]:
    """The questions of one row: itself, or with `each` every entry of that list field over the row's own fields.
    Raises BadRow."""
    if not each:
        return [row]
    entries = lookup(row, each)
    if not isinstance(entries, (list, tuple)):
        raise BadRow(f"field {each!r} is {_kind(entries)}, not a list of questions")
    if len(entries) >= 1 << ITEM_BITS:
        raise BadRow(
            f"field {each!r} lists {len(entries)} questions, at most {(1 << ITEM_BITS) - 1} can be read"
        )
    shared = {key: value for key, value in row.items() if key != each}
    wrong = next((entry for entry in entries if not isinstance(entry, dict)), None)
    if wrong is not None:
        raise BadRow(f"field {each!r} holds {_kind(wrong)} where a question should be")
    return [{**shared, **entry} for entry in entries]


def question_id(number: int, index: int, each: str) -> str:
    """What a question is called where no field names it."""
    return f"q{number + 1}.{index + 1}" if each else f"q{number + 1}"


def scan(rows: Rows, fields: FieldMap, keep: Callable[[Row], bool] | None, split: Split) -> Scan:
    """Reads every row once. Ids and contents are compared by 64-bit hashes, so that a million rows take a few dozen
    megabytes."""
    import numpy as np  # here, so that sources can be listed without it

    bad: dict[int, list[str]] = {}
    positions, ids, contents, splits = array("Q"), array("q"), array("q"), bytearray()
    left_out = 0
    for number, row in enumerate(rows):
        try:
            if isinstance(row, BadRow):
                raise row
            questions = items(row, fields.each)
        except BadRow as error:
            bad.setdefault(number, []).append(str(error))
            continue
        for index, one in enumerate(questions):
            try:
                if keep is not None and not keep(one):
                    left_out += 1
                    continue
                question = fields.read(one, question_id(number, index, fields.each))
            except BadRow as error:
                bad.setdefault(number, []).append(str(error))
                continue
            positions.append(number << ITEM_BITS | index)
            ids.append(hash(question.id))
            contents.append(hash((question.text, question.choices, tuple(question.hidden.values()))))
            splits.append(SPLITS[split(one, question)])
    splits_N = np.frombuffer(splits, np.uint8)
    unusable: set[int] = set()
    for hashes, what in ((ids, "the same id"), (contents, "the same question")):
        for place, first in _repeats(hashes):
            if place not in unusable:
                unusable.add(place)
                line = f"{what} as {rows.place(positions[first] >> ITEM_BITS)}"
                bad.setdefault(positions[place] >> ITEM_BITS, []).append(line)
    usable_N = np.ones(len(positions), bool)
    usable_N[list(unusable)] = False
    positions_N = np.frombuffer(positions, np.uint64)
    train, heldout = (
        array("Q", positions_N[usable_N & (splits_N == SPLITS[name])].tobytes()) for name in ("train", "heldout")
    )
    listed = [f"{rows.place(number)}: {problem}" for number in sorted(bad) for problem in bad[number]]
    return Scan(train, heldout, listed, left_out + splits.count(SPLITS[""]))


def _repeats(hashes: array[int]) -> Iterator[tuple[int, int]]:
    """(place, first place) of every hash that stood before."""
    import numpy as np

    values = np.frombuffer(hashes, np.int64) if hashes else np.empty(0, np.int64)
    order = np.argsort(values, kind="stable")
    same = np.flatnonzero(values[order[1:]] == values[order[:-1]]) + 1
    first: dict[int, int] = {}
    for place in same:
        place_before = int(order[place - 1])
        first[int(order[place])] = first.get(place_before, place_before)
    yield from first.items()
