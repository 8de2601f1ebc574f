"""How the fields of a row become a question: by name, by a path (`choices.text`), or by a sandboxed template.

What a row holds is data. A field's text is never rendered as a template, and a template of the config sees the row's
values only (Jinja's SandboxedEnvironment, with undefined names refused).
"""

from __future__ import annotations

import dataclasses
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from tasks.questions.rows import BadRow, Row, _kind

AnswerForm = Literal["auto", "text", "index", "index_from_1", "letter", "label", "flags"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class HiddenField:
    """Material that some roles see and others (the judge, say) do not."""

    field: str
    """A field's name, or a template."""
    roles: list[str] = dataclasses.field(default_factory=list)
    """The roles that may see it."""


class Question(NamedTuple):
    """What one row says, read and checked. A named tuple, since a million of them are made in one scan."""

    id: str
    cluster: str
    text: str
    answer: str
    accepted: tuple[str, ...]
    """Every right answer, `answer` first."""
    choices: tuple[str, ...]
    """All choices of the row, `answer` among them; empty for free answers."""
    wrong: str
    """The wrong choice that the row itself names for two-claim tasks; empty where it names none."""
    hidden: Mapping[str, str]


@dataclass(frozen=True)
class FieldMap:
    """Which field of a row is what. A field is named, reached by a path with dots into nested fields
    (`choices.text`), or made by a template (`"{{ title }}: {{ body }}"`)."""

    question: str = "question"
    choices: tuple[str, ...] = ("choices",)
    """One field that holds a list of choices, or several fields that hold one each. By default `choices` in rows that
    have it; rows without choices are answered in free text."""
    fixed_choices: tuple[str, ...] = ()
    """The choices of every question, where no field holds them. With ["no", "yes"], an answer `true` is the second."""
    answer: str = "answer"
    answer_is: AnswerForm = "auto"
    """How `answer` names a choice: by its text, its index from 0 or from 1, its letter, its label in `labels`, or as a
    list of flags. auto: a list is flags, the text of a choice is that choice, a number an index, a letter a letter."""
    labels: str = ""
    """With answer_is: label, the field that lists the labels of the choices."""
    accepted: str = ""
    """A field that lists further right answers in free text."""
    wrong: str = ""
    """The field that holds the wrong claim of a task with two. Empty: one of the wrong choices is drawn."""
    hidden: Mapping[str, HiddenField] = dataclasses.field(default_factory=dict)
    """name -> material that only some roles see: the passage that debaters quote and the judge cannot read."""
    id: str = "id"
    """A unique name. By default `id` in rows that have it, else q1, q2, ... by place."""
    cluster: str = ""
    """What questions about the same material share (the passage): splits and intervals go by it. Empty: each question
    stands alone."""
    each: str = ""
    """A list field whose entries are the questions of a row (QuALITY's `questions`), which see the row's fields too."""

    def problems(self) -> list[tuple[str, str]]:
        """(key, what is wrong) of settings that contradict each other."""
        found = []
        names = {"question": self.question, "answer": self.answer, "labels": self.labels, "wrong": self.wrong,
                 "id": self.id, "cluster": self.cluster, "accepted": self.accepted}  # fmt: skip
        names |= {f"choices.{i}": name for i, name in enumerate(self.choices)}
        names |= {f"hidden.{name}.field": one.field for name, one in self.hidden.items()}
        found += [(key, problem) for key, name in names.items() if (problem := template_problem(name))]
        if (self.answer_is == "label") != bool(self.labels):
            found.append(("labels", "goes with answer_is: label, and that with labels"))
        if len(self.fixed_choices) == 1:
            found.append(("fixed_choices", "one choice is none; valid: two or more, or []"))
        if self.fixed_choices and self.choices != ("choices",):
            found.append(("choices", "has no effect beside fixed_choices"))
        found += [
            (f"hidden.{name}.roles", "names no role, so nobody would see it")
            for name, one in self.hidden.items() if not one.roles
        ]  # fmt: skip
        return found

    def read(self, row: Row, name: str) -> Question:
        """The question of a row, called `name` where no field names it. Raises BadRow with what is wrong."""
        text = _text(row, self.question, "question")
        choices = self._choices(row)
        answer, accepted = self._answer(row, choices)
        identity = _text(row, self.id, "id") if self.id and (self.id != "id" or "id" in row) else name
        cluster = _text(row, self.cluster, "cluster") if self.cluster else identity
        wrong = _text(row, self.wrong, "wrong") if self.wrong else ""
        if wrong and wrong == answer:
            raise BadRow(f"field {self.wrong!r}: the wrong answer is the right one")
        hidden = (
            {key: _text(row, one.field, f"hidden.{key}") for key, one in self.hidden.items()}
            if self.hidden
            else {}
        )
        return Question(identity, cluster, text, answer, accepted, choices, wrong, hidden)

    def _choices(self, row: Row) -> tuple[str, ...]:
        if self.fixed_choices:
            return self.fixed_choices
        if not self.choices or (self.choices == ("choices",) and "choices" not in row):
            return ()
        if len(self.choices) == 1:
            values = lookup(row, self.choices[0])
            if not isinstance(values, (list, tuple)):
                raise BadRow(f"field {self.choices[0]!r} is {_kind(values)}, not a list of choices")
        else:
            values = [lookup(row, name) for name in self.choices]
        if {*map(type, values)} != {str}:
            values = [_as_text(value, "a choice") for value in values]
        stripped = {*map(str.strip, values)}
        if "" in stripped:
            raise BadRow("has an empty choice")
        if len(stripped) < len(values):
            raise BadRow("names the same choice twice")
        if len(values) < 2:
            raise BadRow(f"has {len(values)} choices, at least 2 are needed")
        return tuple(values)

    def _answer(self, row: Row, choices: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        """The right answer, and all that are accepted."""
        raw = lookup(row, self.answer)
        if choices:
            right = choices[self._right(row, raw, choices)]
            return right, (right,)
        answer = _as_text(raw, f"field {self.answer!r}")
        if not answer.strip():
            raise BadRow(f"field {self.answer!r} is empty")
        more = lookup(row, self.accepted) if self.accepted else ()
        if not isinstance(more, (list, tuple)):
            raise BadRow(f"field {self.accepted!r} is {_kind(more)}, not a list of answers")
        return answer, tuple(dict.fromkeys((answer, *(_as_text(one, "an accepted answer") for one in more))))

    def _right(self, row: Row, raw: Any, choices: tuple[str, ...]) -> int:
        """The index of the right choice."""
        form = self.answer_is
        if form in ("auto", "text") and raw in choices:
            return choices.index(raw)
        if form == "flags" or (form == "auto" and isinstance(raw, (list, tuple))):
            if not isinstance(raw, (list, tuple)) or len(raw) != len(choices) or sum(map(bool, raw)) != 1:
                raise BadRow(f"field {self.answer!r} must flag exactly one of {len(choices)} choices")
            return next(i for i, flag in enumerate(raw) if flag)
        if form == "label":
            labels = lookup(row, self.labels)
            names = [_as_text(one, "a label") for one in labels] if isinstance(labels, (list, tuple)) else []
            if _as_text(raw, "the answer") in names and len(names) == len(choices):
                return names.index(_as_text(raw, "the answer"))
            raise _not_among(raw, names)
        if isinstance(raw, bool) and form in ("auto", "index") and len(choices) == 2:
            return int(raw)
        if isinstance(raw, str) and form in ("auto", "text") and raw.strip() in [c.strip() for c in choices]:
            return [c.strip() for c in choices].index(raw.strip())
        index = -1
        if form in ("auto", "index", "index_from_1"):
            index = _whole(raw) - int(form == "index_from_1")
        if index < 0 and form in ("auto", "letter") and isinstance(raw, str) and len(raw.strip()) == 1:
            index = LETTERS.find(raw.strip().upper())
        if not 0 <= index < len(choices):
            raise _not_among(raw, choices)
        return index


def claims_of(question: Question, count: int, seed: int) -> tuple[str, ...]:
    """The choices of a task: all of them (count 0), or the right one and count - 1 wrong ones, in an order that gives
    nothing away. Depends on the question and the seed alone."""
    digest = hashlib.sha256(f"claims {seed} {question.id}".encode()).digest()
    rng = random.Random(digest)
    wrong = [choice for choice in question.choices if choice != question.answer]
    if count:
        wrong = (
            [question.wrong]
            if question.wrong and count == 2
            else rng.sample(wrong, min(count - 1, len(wrong)))
        )
    claims = [question.answer, *wrong]
    rng.shuffle(claims)
    return tuple(claims)


@lru_cache(maxsize=4096)
def share_of(cluster: str) -> float:
    """A number in [0, 1) that depends on the cluster's name alone: which split it is in, in every run and process."""
    return int.from_bytes(hashlib.sha256(f"split {cluster}".encode()).digest()[:8], "big") / 2**64


def lookup(row: Row, name: str) -> Any:
    """The value of a field, a path with dots, or a template. Raises BadRow where there is none."""
    if name in row:
        value: Any = row[name]
    elif "{{" in name or "{%" in name:
        return template(name)(row)
    else:
        value = row
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise BadRow(f"has no field {name!r}; it has: {', '.join(map(str, row))}")
            value = value[part]
    if value is None:
        raise BadRow(f"field {name!r} is empty")
    return value


@lru_cache(maxsize=256)
def template(text: str) -> Callable[[Row], str]:
    """A function from rows to text. Raises jinja2.TemplateError for what is no template."""
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import SandboxedEnvironment

    compiled = SandboxedEnvironment(undefined=StrictUndefined, autoescape=False).from_string(text)

    def render(row: Row) -> str:
        try:
            return compiled.render(**{str(key): value for key, value in row.items()})
        except (TemplateError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
            raise BadRow(f"template {text[:60]!r}: {error}") from None

    return render


def template_problem(name: str) -> str:
    """Why a name cannot be rendered; empty where it can, or is a plain field."""
    if "{{" not in name and "{%" not in name:
        return ""
    from jinja2 import TemplateError

    try:
        template(name)
    except TemplateError as error:
        return f"no template of Jinja: {error}"
    return ""


def _text(row: Row, name: str, what: str) -> str:
    text = row.get(name)
    if (
        type(text) is str and text and not text.isspace()
    ):  # nearly always: a million rows are read in one scan
        return text
    if type(text) is int:
        return str(text)
    text = _as_text(lookup(row, name), f"field {name!r} ({what})")
    if not text.strip():
        raise BadRow(f"field {name!r} ({what}) is empty")
    return text


def _as_text(value: Any, what: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return str(value)
    raise BadRow(f"{what} is {_kind(value)}, not text")


def _whole(raw: Any) -> int:
    """A whole number, also one written as text; -1 for anything else."""
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    return int(raw) if isinstance(raw, str) and raw.strip().isdigit() else -1


def _not_among(raw: Any, choices: Sequence[str]) -> BadRow:
    shown = ", ".join(repr(choice[:40]) for choice in choices[:6])
    return BadRow(f"the answer {str(raw)[:60]!r} is not among the choices: {shown}")
