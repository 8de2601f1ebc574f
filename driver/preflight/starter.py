"""`launch.py init`: a commented configuration from a file of questions and the names of two models.

Nothing is asked: which field is what is guessed from its name and form, and said.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from protocols.errors import UserError
from tasks.questions.rows import BadRow, CsvLines, JsonLines, ParquetRows, Row, Rows

PROTOCOLS = Path(__file__).resolve().parent.parent.parent / "configs" / "protocol"
READERS: Mapping[str, tuple[str, type[JsonLines] | type[CsvLines] | type[ParquetRows]]] = {
    ".jsonl": ("jsonl", JsonLines),
    ".json": ("jsonl", JsonLines),
    ".csv": ("csv", CsvLines),
    ".parquet": ("parquet", ParquetRows),
}
NAMES: Mapping[str, Sequence[str]] = {
    "question": ("question", "problem", "prompt", "query", "input"),
    "choices": ("choices", "options", "answers", "candidates", "choices.text", "mc1_targets.choices"),
    "answer": (
        "answer",
        "gold_label",
        "label",
        "target",
        "correct",
        "correct_answer",
        "answerkey",
        "answer_index",
        "correct answer",
        "mc1_targets.labels",
    ),
    "id": ("id", "uid", "question_id", "question_unique_id", "record id", "unique_id"),
    "text": ("article", "passage", "context", "text", "document", "story"),
    "cluster": ("article_id", "passage_id", "document_id", "story_id", "group"),
    "each": ("questions",),
}
"""What a field may be called, the likeliest first; compared without case."""
LOOKED_AT = 50


class NoGuess(UserError):
    """The file's fields cannot be told apart."""


@dataclass
class Guess:
    """Which field is what, and how that was told."""

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    hidden: str = ""
    """The field with material for the debaters alone."""
    said: list[str] = field(default_factory=list)


def init(questions: Path, judge: str, debater: str, out: Path) -> list[str]:
    """Writes the configuration `out`; returns what was guessed, line by line. Raises NoGuess, and UserError where the
    file is missing or `out` is there already."""
    if not questions.is_file():
        raise UserError(f"there is no file {questions}")
    if out.exists():
        raise UserError(f"{out} is there already: name another file with --out")
    guess = guess_fields(questions)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(_config(questions, guess, judge, debater, out), encoding="utf-8")
    return guess.said


def guess_fields(questions: Path) -> Guess:
    """Looks at the first rows. Raises NoGuess."""
    kind, reader = READERS.get(questions.suffix.lower(), ("jsonl", JsonLines))
    guess = Guess(kind)
    rows = _sample(reader(questions))
    if not rows:
        raise NoGuess(f"{questions}: none of the first {LOOKED_AT} rows can be read as {kind}")
    nested = _named(rows, "each", list)
    if nested:
        _say(guess, "each", nested)
        rows = [{**row, **entry} for row in rows for entry in row[nested] if isinstance(entry, dict)]
    for what in ("question", "answer", "id", "cluster"):
        name = _named(rows, what)
        if name:
            _say(guess, what, name)
        elif what in ("question", "answer"):
            known = ", ".join(map(str, rows[0]))
            raise NoGuess(f"{questions}: no field looks like the {what}; there are: {known}. Write the configuration "
                          f"by hand (docs/questions.md): fields: {{{what}: ...}}")  # fmt: skip
    _guess_choices(guess, rows)
    text = _named(rows, "text")
    if text:
        guess.hidden = text
        guess.said.append(f"debaters read the field {text!r}, the judge does not")
    return guess


def _guess_choices(guess: Guess, rows: Sequence[Row]) -> None:
    name = _named(rows, "choices", (list, tuple))
    if name:
        _say(guess, "choices", [name])
    else:
        several = [
            key for key in rows[0] if str(key).lower().startswith(("choice", "option", "incorrect answer"))
        ]
        several += (
            [guess.fields["answer"]] if several and str(several[0]).lower().startswith("incorrect") else []
        )
        if len(several) < 2:
            raise NoGuess(
                "no field holds a list of choices, and a debate needs two claims; write `fields: {choices: [...]}` "
                "into a configuration of your own (docs/questions.md)"
            )
        _say(guess, "choices", several)
    if name.endswith(".text") and (labels := name.removesuffix("text") + "label") and _at(rows[0], labels):
        guess.fields |= {"answer_is": "label", "labels": labels}
        guess.said.append(f"the answer is one of the labels in {labels}")
    elif name:
        sizes = [(_at(row, guess.fields["answer"]), len(_at(row, name))) for row in rows]
        numbers = [
            (value, size) for value, size in sizes if isinstance(value, int) and not isinstance(value, bool)
        ]
        # An index from 0 would be 0 now and then.
        from_1 = any(value == size for value, size in numbers) or (len(numbers) >= 10 and min(numbers)[0] == 1)
        if len(numbers) == len(sizes) and from_1:
            _say(guess, "answer_is", "index_from_1")


def _sample(rows: Rows) -> list[Row]:
    return [row for row in islice(rows, LOOKED_AT) if not isinstance(row, BadRow)]


def _named(rows: Sequence[Row], what: str, kind: type | tuple[type, ...] = object) -> str:
    """The likeliest field that all rows have with a value of this type; empty for none."""
    known = {str(key).lower(): str(key) for key in rows[0]}
    for name in NAMES[what]:
        real = known.get(name, name if "." in name else "")
        values = [_at(row, real) for row in rows] if real else [None]
        if all(value is not None and isinstance(value, kind) for value in values):
            return real
    return ""


def _at(row: Row, name: str) -> Any:
    value: Any = row.get(name)
    if value is None and "." in name:
        outer, _, inner = name.partition(".")
        value = row[outer].get(inner) if isinstance(row.get(outer), dict) else None
    return value


def _say(guess: Guess, what: str, name: Any) -> None:
    guess.fields[what] = name
    guess.said.append(f"{what}: {name if isinstance(name, str) else ', '.join(map(str, name))}")


def _flow(values: Mapping[str, Any] | Iterable[Any]) -> str:
    """A mapping or a list on one line of YAML: JSON is YAML."""
    return json.dumps(values, ensure_ascii=False)


def _config(questions: Path, guess: Guess, judge: str, debater: str, out: Path) -> str:
    here = out.resolve().parent

    def protocol(name: str) -> str:
        return os.path.relpath(PROTOCOLS / f"{name}.yaml", here)

    fields = dict(guess.fields)
    if guess.hidden:
        fields["hidden"] = {"text": {"field": guess.hidden, "roles": ["debater", "consultant"]}}
    lines = "\n".join(f"    {key}: {_flow(value)}" for key, value in fields.items())
    shown = "debate_quotes" if guess.hidden else "debate"
    consultancy = protocol("consultancy")
    if guess.hidden:
        consultancy = CONSULTANCY.format(path=consultancy)
    return TEMPLATE.format(
        out=out.name, questions=_flow(str(questions.resolve())), kind=guess.kind, fields=lines, judge=_flow(judge),
        debater=_flow(debater), debate=protocol(shown), direct=protocol("direct_qa"), name=out.stem,
        consultancy=consultancy,
    )  # fmt: skip


CONSULTANCY = """
    extends: [{path}]
    prompts:
      consultant:
        hidden: [text]
        opening: |-
          Question: {{{{ question }}}}

          You argue for: {{{{ claim }}}}
          The other answer is: {{{{ other }}}}

          The text, which the judge cannot read:
          {{{{ text }}}}"""

TEMPLATE = """\
# Written by `launch.py init`. Does debate help this judge on these questions, and does training the debaters help?
#
#   python launch.py plan  {out}      what would run where; refuses what cannot
#   python launch.py train {out}
name: {name}

# Which field of a row is what. docs/questions.md has every setting: filters, splits, checks of written answers.
tasks:
  kind: {kind}
  path: {questions}
  fields:
{fields}
  splits: {{share: 0.2}}        # of the questions (of the clusters, where there are) are kept for evaluation

# The rules. `launch.py protocol show FILE` prints who speaks when and who sees what.
protocols:
  debate: {debate}
  direct: {direct}    # the judge alone
  # One adviser for either side, and nobody argues back.
  consultancy: {consultancy}

policies:
  judge:
    model: {{path: {judge}}}
  debater:
    model: {{path: {debater}}}
    trained: true
    learner: {{lora: {{rank: 16}}, lr: 1.0e-4}}

stages:
  debate:
    protocol: debate
    roles: {{debater: debater, judge: judge}}
    steps: 50
    plays_per_step: 16            # episodes of one update
    repeats: 4                    # episodes of one question, whose rewards are compared

# What is measured on the questions that were kept: before training, and at the end.
eval:
  arms:
    judge_alone: {{protocol: direct, roles: {{reader: judge}}, when: start, episodes: 100}}
    consultancy: {{protocol: consultancy, roles: {{consultant: debater, judge: judge}}, when: start, episodes: 100}}
    untrained: {{protocol: debate, roles: {{debater: debater, judge: judge}}, when: start, episodes: 100}}
    trained: {{protocol: debate, roles: {{debater: debater, judge: judge}}, episodes: 100}}
"""
