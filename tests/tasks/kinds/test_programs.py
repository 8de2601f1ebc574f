"""Programs in a killable process: what may be run, what becomes of what misbehaves, and the three kinds of task."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from typing import Any

import pytest

from protocols.proposals import carried_proposal
from protocols.types import Hidden, InvalidProposal, Task, VerifierError
from tasks import sandbox
from tasks.kinds.programs import HELDOUT, RESERVED, SEEDS, ProgramDomain, Programs, proposal_of
from tasks.sandbox import Ran, faults, literals, run, same_value

GOOD = "def f(x, y=2):\n    return [x * y]"


def test_values_and_errors_come_back_by_call() -> None:
    ran = run(GOOD, ["(3,)", "(1, 5)", "('ab',)", "()"])
    assert ran == [Ran("[6]"), Ran("[5]"), Ran("['abab']"), Ran(None, "TypeError")]
    assert run("def f(x):\n    return [0] * 10 ** 9", ["(1,)"])[0].error == "MemoryError"
    assert run("def f(x):\n    return f(x)", ["(1,)"])[0].error == "RecursionError"
    assert run("def f(n):\n    return 'a' * n", ["(5000,)"])[0].error == "the result is too long"


@pytest.mark.parametrize("body", ["while True:\n        pass", "return len(str(9 ** 9 ** 7))"])
def test_what_does_not_end_is_killed_by_processor_time(body: str) -> None:
    (ran,) = run(f"def f(x):\n    {body}", ["(1,)"], seconds=0.02)
    assert ran.value is None and "processor time" in ran.error


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("import os\ndef f(): pass", "Import"), ("def f(x): return ().__class__", "underscore"),
        ("def f(x): return __import__('os')", "underscore"), ("def g(): pass", "no function f"),
        ("def f(x): return (i for i in x).gi_frame", "gi_frame"), ("def f(:", "does not parse"),
        ("def f(x): return '{0.real}'.format(x)", "format"), ("class A: pass\ndef f(): pass", "ClassDef"),
        ("def f(x):\n    match x:\n        case int(real=r): return r", "Match"),
        ("def f(x):\n    with x: pass", "With"), ("def f(_x): pass", "underscore"), ("#" * 5000, "longer"),
        ("def f(x):\n    try: x\n    except Exception as e: return e.tb_frame", "tb_frame"),
    ],
)  # fmt: skip
def test_what_may_not_be_run(program: str, says: str) -> None:
    assert says in faults(program)
    assert faults(GOOD) == ""


def test_the_second_fence_holds_without_the_first() -> None:
    """Code that has got hold of files and sockets cannot open any."""
    find = "[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == 'FileIO'][0]"
    (ran,) = run(f"def f(x):\n    return {find}(x).read()", ["('/etc/hostname',)"])
    assert ran.value is None and ran.error in ("OSError", "IndexError"), ran
    (ran,) = run("def f(x):\n    return open(x).read()", ["('/etc/hostname',)"])
    assert ran.error == "NameError", "builtins that are not listed are not there"


def test_a_process_that_fails_by_itself_is_missing_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_RUNNER", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(VerifierError, match=f"ended with -{signal.SIGKILL}"):
        run(GOOD, ["(1,)"])
    monkeypatch.setattr(sandbox, "_RUNNER", "import time; time.sleep(100)")
    monkeypatch.setattr(sandbox, "WALL_SECONDS", 0.1)
    with pytest.raises(VerifierError, match="no result after"):
        run(GOOD, ["(1,)"])
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(VerifierError, match="could be started"):
        run(GOOD, ["(1,)"])


def test_nothing_is_left_running(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []
    real = subprocess.Popen

    def noted(*args: Any, **kwargs: Any) -> subprocess.Popen[str]:
        started.append(real(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(sandbox.subprocess, "Popen", noted)
    monkeypatch.setattr(sandbox, "_RUNNER", "import time; time.sleep(100)")
    monkeypatch.setattr(sandbox, "WALL_SECONDS", 0.1)
    with pytest.raises(VerifierError):
        run(GOOD, ["(1,)"])
    assert started[0].returncode == -signal.SIGKILL


def test_literals_and_values() -> None:
    assert literals("3, [1, 'a']") == "(3, [1, 'a'])" and literals("") == "()"
    assert literals("f(3)") is None and literals("3)(4") is None and literals("1 +") is None
    assert same_value("{1, 2}", "{2, 1}") and same_value("1.0", "1.00")
    assert not same_value("1", "True") and not same_value("1", "1.0") and not same_value("x", "x")


def derived(mode: str, proposal: str) -> Task:
    return ProgramDomain(mode).derive(Task("root", "", domain=ProgramDomain(mode)), proposal)


def test_deduction_by_hand() -> None:
    task = derived("deduction", f"{GOOD}\n---\n3, 4\n")
    assert task.answer == "[12]" and "f(3, 4)" in task.question and GOOD in task.question
    assert task.domain is not None and task.parent == "root"
    assert task.domain.check(task, " [12] ") and task.domain.check(task, "[12,]")
    assert not task.domain.check(task, "[13]") and not task.domain.check(task, "f(3, 4)")


def test_abduction_by_hand() -> None:
    task = derived("abduction", "def f(x):\n    return x * x\n---\n3")
    assert task.domain is not None and "return 9?" in task.question
    assert task.domain.check(task, "3") and task.domain.check(task, "-3"), "any arguments that give the result"
    assert not task.domain.check(task, "4") and not task.domain.check(task, "'a'")
    assert not task.domain.check(task, "f(3)"), "no literal: nothing is run"
    assert "3" not in task.question.split("9?")[0].split("x * x")[1]


def test_induction_by_hand() -> None:
    task = derived("induction", "def f(x):\n    return x + 1 if x < 5 else 0\n---\n1\n2\n7\n9")
    assert task.domain is not None
    assert "f(1) returns 2\nf(2) returns 3" in task.question and "f(7)" not in task.question
    assert task.domain.check(task, "def f(y):\n    return 0 if y >= 5 else y + 1")
    assert not task.domain.check(task, "def f(y):\n    return y + 1"), "wrong on a call that is not shown"
    assert not task.domain.check(task, "import os\ndef f(y):\n    return 0")
    assert task.domain.check(task, "```python\ndef f(y):\n    return 0 if y >= 5 else y + 1\n```"), "in a code block"


@pytest.mark.parametrize(
    ("mode", "proposal", "says"),
    [
        ("deduction", GOOD, "a line ---"), ("deduction", f"{GOOD}\n---\n1\n2", "one call"),
        ("induction", f"{GOOD}\n---\n1\n2", "at least 4"), ("deduction", f"{GOOD}\n---\ng(1)", "literals"),
        ("induction", f"{GOOD}\n---\n1\n1\n2\n3", "twice"),
        ("deduction", "def f(x): return 1 / x\n---\n0", "fails: Zero"),
        ("deduction", "def f(x): return x.__class__\n---\n0", "underscore"),
        ("deduction", "def f(x): return (i for i in [x])\n---\n0", "no literal"),
        ("deduction", proposal_of(RESERVED[0], "deduction"), "reserved"),
        ("deduction", proposal_of(RESERVED[0], "deduction").replace("x]", "x]  # mine"), "reserved"),
    ],
)  # fmt: skip
def test_proposals_that_describe_no_task(mode: str, proposal: str, says: str) -> None:
    with pytest.raises(InvalidProposal, match=says):
        derived(mode, proposal)


@pytest.mark.parametrize("mode", ["deduction", "abduction", "induction"])
def test_shipped_programs_are_sound_tasks(mode: str) -> None:
    source, domain = Programs(mode), ProgramDomain(mode)
    assert source.problems() == [] and source.needs_proposer()
    rng = random.Random(0)
    asked = {source.train(rng).question for _ in range(50)}
    assert len(asked) == len(SEEDS) - len(RESERVED)
    assert not any(program in question for question in asked for program, _ in RESERVED)
    tasks = source.heldout(3, 0)
    assert [task.hidden[HELDOUT].text for task in tasks] == [carried_proposal(task) for task in tasks]
    for task in source.derived_heldout(2, 0):
        assert domain.check(task, task.answer or ""), "the answer it came from is right"
    task = derived(mode, proposal_of(SEEDS[0], mode))
    assert task.domain is not None and task.domain.check(task, task.answer or "")
    assert all(hidden == Hidden(hidden.text, ()) for hidden in task.hidden.values()), "shown to nobody"


def test_an_unknown_mode_is_refused() -> None:
    assert "deduction" in Programs("magic").problems()[0][1]
