"""Exact checks of answers against the conventions of public data sets, and against replies that mean harm."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from protocols.types import VerifierError
from tasks.questions.checks import CHECKS, final, normalised, number

CITIES = ("Paris", "London", "Berlin", "Rome")
RIGHT = (
    "A",
    "a",
    "(a)",
    "[A]",
    "A.",
    "A)",
    "**A**",
    "*A*",
    "`A`",
    "Answer: A.",
    "answer: a",
    "The answer is A",
    "The answer is (A).",
    "The answer is A) Paris",
    "Paris",
    "paris.",
    "**Paris**",
    "The correct answer is: **Paris**",
    "\\boxed{A}",
    "The answer is \\boxed{A}",
    "\\boxed{Paris}",
    "Because it is old.\nAnswer: A",
    "A. Paris",
    "(A) Paris",
    "A: Paris",
    "Final answer: A",
    "So the answer is B... no, the answer is A",
    "I first thought B.\n\nA",
    "**Answer:** A",
)
WRONG = (
    "B",
    "",
    "   ",
    "A or B",
    "not A",
    "Answer: A or B",
    "neither A nor B",
    "A) London",
    "Not Paris",
    "Paris or London",
    "I think it is Paris",
    "AB",
    "E",
    "The answer is unknown",
    "A B C D",
    "Answer:",
    "\\boxed{A or B}",
    "everything",
    "A, B",
    "A/B",
)


@pytest.mark.parametrize("reply", RIGHT)
def test_a_reply_that_names_the_right_choice_alone_is_right(reply: str) -> None:
    assert CHECKS["choice"](reply, ("Paris",), CITIES) == 1.0


@pytest.mark.parametrize("reply", WRONG)
def test_a_reply_that_names_none_or_several_is_wrong(reply: str) -> None:
    assert CHECKS["choice"](reply, ("Paris",), CITIES) == 0.0


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("42", "42", 1),
        ("#### 42", "42", 1),
        ("The answer is 1,234.50", "1234.5", 1),
        ("3/4", "0.75", 1),
        ("50%", "0.5", 1),
        ("50%", "50", 1),
        ("-7", "7", 0),
        ("x = 1e3", "1000", 1),
        ("$42$", "42", 1),
        ("42 apples", "42", 1),
        ("\u22125", "-5", 1),
        ("1e999999999", "1", 0),
        ("none", "1", 0),
        ("", "1", 0),
        (".5", "0.5", 1),
        ("1/0", "1", 0),
        ("\\boxed{72}", "72", 1),
        ("12 - 5 = 7", "7", 1),
        ("The answer is 10. Not 11.", "11", 1),
        ("1,000,000", "1000000", 1),
        ("4.0", "4", 1),
    ],
)
def test_numbers(reply: str, answer: str, right: int) -> None:
    assert number(reply, (answer,)) == right


def test_tolerances_are_absolute_or_relative() -> None:
    assert number("3.14", ("3.14159",)) == 0.0
    assert number("3.14", ("3.14159",), tolerance=0.01) == 1.0
    assert number("101", ("100",), relative=0.01) == 1.0 and number("102", ("100",), relative=0.01) == 0.0


@given(st.integers(-(10**12), 10**12))
def test_every_whole_number_is_read_as_itself(value: int) -> None:
    assert number(f"So it is {value:,}", (str(value),)) == 1.0
    assert number(f"So it is {value}", (str(value + 1),)) == 0.0


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("The Eiffel Tower.", "eiffel tower", 1),
        ("an  apple", "Apple", 1),
        ("U.S.A.", "U S A", 1),
        ("towers", "tower", 0),
        ("Answer: the Nile", "Nile", 1),
        ("", "Nile", 0),
        ("Nile or Rhine", "Nile", 0),
    ],
)
def test_texts_are_compared_as_squad_compares_them(reply: str, answer: str, right: int) -> None:
    assert CHECKS["text"](reply, (answer,)) == right
    assert CHECKS["text"](reply, ("something else", answer)) == right


@given(st.text(max_size=300))
def test_no_text_breaks_a_pure_check(reply: str) -> None:
    final(reply), normalised(reply)
    for name in ("choice", "text", "number", "set_f1"):
        assert 0.0 <= CHECKS[name](reply, ("1",), ("1", "2")) <= 1.0


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [
        ("$\\frac{1}{2}$", "0.5", 1),
        ("\\boxed{x^2+2x+1}", "(x+1)^2", 1),
        ("\\boxed{3}", "\\sqrt{9}", 1),
        ("\\boxed{4}", "5", 0),
        ("\\boxed{\\frac{3}{2}}", "\\frac{6}{4}", 1),
        ("\\boxed{(1, 2)}", "(1,2)", 1),
        ("no idea", "5", 0),
    ],
)
def test_mathematics(reply: str, answer: str, right: int) -> None:
    pytest.importorskip("math_verify")
    assert CHECKS["math"](reply, (answer,)) == right


def test_what_never_ends_is_missing_data_and_the_next_check_works() -> None:
    with pytest.raises(VerifierError, match="more than"):
        CHECKS["regex"]("a" * 40, ("(a+)+$b",))
    assert CHECKS["regex"]("2024-05-01", (r"\d{4}-\d\d-\d\d",)) == 1.0
    pytest.importorskip("math_verify")
    with pytest.raises(VerifierError, match="more than"):
        CHECKS["math"]("$9^{9^{9^9}}$", ("9",), seconds=3.0)
    assert CHECKS["math"]("$9$", ("9",), seconds=60.0) == 1.0


@pytest.mark.parametrize("name", ["choice", "text", "number", "set_f1", "json_schema", "python_tests"])
def test_a_megabyte_of_answer_is_wrong(name: str) -> None:
    accepted = {"json_schema": '{"type": "object"}', "python_tests": '[["3", "6"]]'}.get(name, "Paris")
    assert (
        CHECKS[name](
            "1" * 10**6 if name != "number" else "x" * 10**6, ("7" if name == "number" else accepted,), CITIES
        )
        == 0.0
    )


def test_json_must_fit_the_schema() -> None:
    pytest.importorskip("jsonschema")
    schema = '{"type": "object", "required": ["side"], "properties": {"side": {"enum": ["A", "B"]}}}'
    grade = CHECKS["json_schema"]
    assert grade('{"side": "A"}', (schema,)) == 1.0 and grade('```json\n{"side": "B"}\n```', (schema,)) == 1.0
    assert (
        grade('{"side": "C"}', (schema,)) == 0.0
        and grade("side: A", (schema,)) == 0.0
        and grade("[" * 9999, (schema,)) == 0.0
    )


def test_sets_are_graded_by_f1() -> None:
    assert CHECKS["set_f1"]("red, green, blue", ("green, red",)) == pytest.approx(0.8)
    assert (
        CHECKS["set_f1"]("green", ("green, red",)) == pytest.approx(2 / 3)
        and CHECKS["set_f1"]("", ("red",)) == 0.0
    )


def test_programs_are_graded_by_their_tests() -> None:
    grade, tests = CHECKS["python_tests"], ('[["3", "6"], ["4", "9"]]',)
    assert grade("```python\ndef f(x):\n    return x * 2\n```", tests) == 0.5
    assert grade("import os", tests) == 0.0
    assert grade("def f(x):\n    while True: pass", tests) == 0.0
