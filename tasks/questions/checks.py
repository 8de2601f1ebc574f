"""Exact checks of answers, named in YAML (`check: math`). A check grades one reply against the accepted answers.

    grade(reply, accepted, choices, **settings) -> a number in [0, 1]; 1 means right

A reply that holds no readable answer is wrong (0); a check that cannot decide raises VerifierError, which is missing
data. Replies are read from their end, at most `LONGEST` characters of them: an answer of a megabyte costs no more
than a short one.
"""

from __future__ import annotations

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

from protocols.extension import Registry
from protocols.types import VerifierError
from tasks.questions import pool

LONGEST = 4000
Check = Callable[..., float]
CHECKS: Registry[Check] = Registry("check")

_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")
_SAYS = re.compile(r"answer\**\s*(?:is|:|=)\s*:?\s*", re.IGNORECASE)
_NUMBER = re.compile(
    r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?(?:\s*/\s*\d+)?%?|[-+]?\.\d+%?"
)
_MARKS = "*_`$\"' \t.,;:!"


def final(reply: str) -> str:
    """The part of a reply that states its answer: the last \\boxed{...}, else what follows the last "answer is" or
    "Answer:", else the last line that is not empty."""
    text = reply[-LONGEST:].strip()
    boxed = _BOXED.findall(text)
    if boxed:
        return str(boxed[-1]).strip()
    said = [match.end() for match in _SAYS.finditer(text)]
    if said and text[said[-1] :].strip():
        return text[said[-1] :].strip().splitlines()[0].strip()
    return text.splitlines()[-1].strip() if text else ""


@CHECKS.register("choice")
def choice(reply: str, accepted: Sequence[str], choices: Sequence[str] = ()) -> float:
    """The reply names the right choice, by its letter or its text, and no other one.

    "B", "(b)", "**B.**", "Answer: B) Paris" and "Paris" name one; "A or B" and "not A" name none.
    """
    said = pick(final(reply), choices)
    return float(said is not None and choices[said] in accepted)


def pick(text: str, choices: Sequence[str]) -> int | None:
    """The index of the one choice that a short text names; None where it names none or several."""
    plain = normalised(text)
    whole = [i for i, one in enumerate(choices) if normalised(one) == plain]
    if len(whole) == 1:
        return whole[0]
    stripped = text.strip(_MARKS + "()[]")
    if len(stripped) == 1 and stripped.upper() in string.ascii_uppercase[: len(choices)]:
        return string.ascii_uppercase.index(stripped.upper())
    led = re.match(r"[\W_]*([A-Za-z])[\W_]*[).:\]][\W_]*(.*)", text)
    if led and led[1].upper() in string.ascii_uppercase[: len(choices)]:
        index = string.ascii_uppercase.index(led[1].upper())
        rest = normalised(led[2])
        others = [i for i, one in enumerate(choices) if i != index and normalised(one) == rest]
        agrees = not rest or normalised(choices[index]) == rest
        return index if agrees and not others else None
    return None


@CHECKS.register(
    "text", reads={"keep_articles"}, source="SQuAD evaluation, Rajpurkar et al. 2016, section 6.1"
)
def text(
    reply: str, accepted: Sequence[str], choices: Sequence[str] = (), keep_articles: bool = False
) -> float:
    """The reply equals an accepted answer but for case, punctuation, articles and white space."""
    said = normalised(final(reply), keep_articles)
    return float(any(said == normalised(one, keep_articles) for one in accepted))


def normalised(value: str, keep_articles: bool = False) -> str:
    """Lower case, without punctuation and (unless kept) a, an, the; single spaces."""
    kept = "".join(char if char.isalnum() or char.isspace() else " " for char in value[-LONGEST:].lower())
    words = [word for word in kept.split() if keep_articles or word not in ("a", "an", "the")]
    return " ".join(words)


@CHECKS.register("number", reads={"tolerance", "relative"})
def number(
    reply: str,
    accepted: Sequence[str],
    choices: Sequence[str] = (),
    tolerance: float = 0.0,
    relative: float = 0.0,
) -> float:
    """The last number of the reply's answer equals an accepted one, within `tolerance` or `relative` times its size.
    Thousands commas, fractions, per cent and exponents are read; numbers are compared exactly."""
    said = _last_number(final(reply))
    for one in accepted:
        right = _last_number(one)
        if right is None:
            raise VerifierError(f"the answer {one[:40]!r} of the task is no number")
        if said is None:
            return 0.0
        bound = max(Fraction(tolerance), Fraction(relative) * abs(right[0]))
        # Per cent may be meant or be a unit: "50%" is 0.5 and 50.
        if any(abs(mine - theirs) <= bound for mine in said for theirs in right):
            return 1.0
    return 0.0


def _last_number(value: str) -> tuple[Fraction, ...] | None:
    """The last number of a text; two readings of one with a per cent sign."""
    matches = _NUMBER.findall(value[-LONGEST:].replace("\u2212", "-"))
    if not matches:
        return None
    last = matches[-1].replace(",", "").replace(" ", "")
    above, _, below = last.rstrip("%").partition("/")
    exponent = re.search(r"[eE][-+]?(\d+)", above)
    if (exponent and len(exponent[1]) > 3) or (below and int(below) == 0):
        return None  # 1e999999999 would take gigabytes as an exact number
    value_read = Fraction(above) / Fraction(below or 1)
    return (value_read, value_read / 100) if last.endswith("%") else (value_read,)


@CHECKS.register(
    "math", reads={"seconds"}, source="math-verify (Kydlíček 2025); the answer protocol of MATH-500"
)
def math(reply: str, accepted: Sequence[str], choices: Sequence[str] = (), seconds: float = 5.0) -> float:
    """The reply's last expression equals an accepted one as mathematics (math-verify, in a process that is killed
    after `seconds`: `9^9^9^9` never ends)."""
    return float(pool.shared("math").ask([reply[-LONGEST:], list(accepted)], seconds))


@CHECKS.register("regex", reads={"ignore_case"})
def regex(
    reply: str, accepted: Sequence[str], choices: Sequence[str] = (), ignore_case: bool = False
) -> float:
    """An accepted answer, a regular expression, matches the whole of the reply's answer (in a killable process:
    a pattern can take for ever)."""
    return float(pool.shared("regex").ask([final(reply), list(accepted), ignore_case], 2.0))


@CHECKS.register("json_schema", source="JSON Schema, draft 2020-12")
def json_schema(reply: str, accepted: Sequence[str], choices: Sequence[str] = ()) -> float:
    """The reply holds one JSON value (alone, or in a code block) that fits the schema which is the task's answer."""
    fenced = re.findall(r"```(?:json)?\s*\n(.*?)```", reply[-LONGEST * 4 :], re.DOTALL)
    try:
        value = json.loads(fenced[-1] if fenced else reply[-LONGEST * 4 :])
    except (ValueError, RecursionError):
        return 0.0
    try:
        schema = json.loads(accepted[0])
    except ValueError as error:
        raise VerifierError(f"the answer of the task is no JSON schema: {error}") from None
    return float(pool.shared("schema").ask([value, schema], 2.0))


@CHECKS.register("set_f1", reads={"separator"}, source="F1 over sets; van Rijsbergen 1979, chapter 7")
def set_f1(reply: str, accepted: Sequence[str], choices: Sequence[str] = (), separator: str = ",") -> float:
    """F1 between the items of the reply's answer and those of the task's, both split at `separator` and normalised.
    A multiset: an item named twice counts twice."""
    said, right = (
        Counter(filter(None, map(normalised, one.split(separator)))) for one in (final(reply), accepted[0])
    )
    shared = (said & right).total()
    return 2 * shared / (said.total() + right.total()) if shared else 0.0


@CHECKS.register("python_tests")
def python_tests(reply: str, accepted: Sequence[str], choices: Sequence[str] = ()) -> float:
    """The reply's last code block defines `f`, which passes the task's tests: a JSON list of [arguments, result]
    pairs (in the sandbox of `tasks/sandbox.py`). The share of tests that pass."""
    from tasks import sandbox

    blocks = re.findall(r"```(?:python)?\s*\n(.*?)```", reply[-LONGEST * 4 :], re.DOTALL)
    program = blocks[-1] if blocks else reply[-LONGEST:]
    try:
        tests = [(str(arguments), str(result)) for arguments, result in json.loads(accepted[0])]
    except (ValueError, TypeError) as error:
        raise VerifierError(
            f"the answer of the task is no list of [arguments, result] pairs: {error}"
        ) from None
    if sandbox.faults(program):
        return 0.0
    ran = sandbox.run(program, [sandbox.literals(arguments) or "()" for arguments, _ in tests])
    passed = [
        one.value is not None and sandbox.same_value(one.value, right) for one, (_, right) in zip(ran, tests)
    ]
    return sum(passed) / len(passed) if passed else 0.0
