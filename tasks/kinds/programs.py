"""Small Python programs to reason about, in three ways (Absolute Zero, arXiv 2505.03335, section 3.3).

A proposal is a program with one function `f`, a line `---`, and arguments of it as literals, one call per line:

    deduction   program and arguments are shown, the answer is what f returns (one call)
    abduction   program and result are shown, any arguments that give that result are right (one call)
    induction   some calls and their results are shown, the answer is a program that agrees on all calls (four or more)

Programs run in a killable process (tasks/sandbox.py). A proposal that cannot be run, or that gives two results for one
call, is invalid; an answer that cannot be run is wrong; a process that fails for another reason is missing data.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import random
from dataclasses import dataclass
from typing import ClassVar

from protocols.proposals import carried_proposal, with_example, with_proposal
from protocols.types import Domain, Hidden, InvalidProposal, Task
from tasks.base import TaskSource
from tasks.sandbox import Ran, faults, literals, run, same_value

MODES = ("deduction", "abduction", "induction")
RULE = "---"
LEAST_CALLS = 4
"""Of an induction: half of them are shown."""
PROGRAM, CASES, HELDOUT = "program", "cases", "heldout"
"""Keys of `Task.hidden`, shown to nobody: the program, its calls as JSON [[arguments, result], ...], and on a held-out
root task the reserved proposal that it opens."""

SEEDS = (
    ("def f(x):\n    return sum(d * d for d in x)", ("[1, 2, 3]", "[4]", "[0, 5]", "[2, 2]")),
    ("def f(s):\n    return s[::-1].upper()", ("'abc'", "'no'", "'level'", "'x y'")),
    ("def f(n):\n    return [i for i in range(1, n + 1) if n % i == 0]", ("12", "7", "1", "18")),
    ("def f(a, b):\n    while b:\n        a, b = b, a % b\n    return a", ("12, 18", "7, 3", "10, 5", "9, 6")),
    ("def f(s):\n    return {c: s.count(c) for c in s}", ("'banana'", "'aa'", "'abc'", "'x'")),
    ("def f(x):\n    return sorted(x, key=lambda v: (v % 3, v))", ("[5, 3, 9, 1]", "[2, 1]", "[6, 7, 8]", "[4]")),
    ("def f(n):\n    a, b = 0, 1\n    for i in range(n):\n        a, b = b, a + b\n    return a",
     ("7", "1", "10", "3")),
    ("def f(s, k):\n    return ''.join(chr((ord(c) - 97 + k) % 26 + 97) for c in s)",
     ("'abc', 1", "'xyz', 3", "'hi', 13", "'a', 0")),
    ("def f(x):\n    return [b - a for a, b in zip(x, x[1:])]", ("[1, 4, 9]", "[2, 2]", "[5]", "[3, 0, 3]")),
    ("def f(n):\n    steps = 0\n    while n != 1:\n        n = n // 2 if n % 2 == 0 else 3 * n + 1\n"
     "        steps += 1\n    return steps", ("6", "1", "8", "5")),
    ("def f(words):\n    return max(words, key=len)", ("['a', 'bcd', 'ef']", "['x']", "['hi', 'you']", "['q', 'rs']")),
    ("def f(x, y):\n    return sorted(set(x) & set(y))",
     ("[1, 2, 3], [2, 3, 4]", "[1], [2]", "[5, 5], [5]", "[], [1]")),
)  # fmt: skip
"""(program, calls): examples for the proposer, and what held-out tasks are made of."""
RESERVED = SEEDS[8:]
"""Kept for evaluation: never shown, and invalid as proposals."""

_ASK = {
    "deduction": "{program}\n\nWhat does f({shown}) return? Reply with the value as a Python literal and nothing else.",
    "abduction": "{program}\n\nFor which arguments does f return {shown}? Reply with the arguments as Python literals, "
    "separated by commas, and nothing else.",
    "induction": "{shown}\n\nWrite a Python function f that agrees with these calls and with others like them. Reply "
    "with the program and nothing else.",
}
_PROPOSE = (
    "Write a task of {mode}: a Python program without imports that defines one deterministic function f, then a line "
    "that is ---, then arguments for f as Python literals, {calls}. For example:\n\n{example}"
)


@dataclass(frozen=True)
class ProgramDomain(Domain):
    """Derives and checks tasks of one mode. Both wait for a process: some hundredths of a second, or `CPU_SECONDS`."""

    mode: str

    def derive(self, task: Task, proposal: str) -> Task:
        program, calls = _split(proposal, self.mode)
        opened = task.hidden.get(HELDOUT)
        if _same_program(program) and (opened is None or opened.text != proposal):
            raise InvalidProposal("reserved for evaluation")
        if why := faults(program):
            raise InvalidProposal(f"the program {why}")
        first, second = run(program, calls), run(program, calls)  # two processes: sets of text differ in order
        results = [_agreed(one, other) for one, other in zip(first, second)]
        digest = hashlib.sha256(f"{self.mode}\n{program}\n{calls}".encode()).hexdigest()[:12]
        cases = [[call[1:-1].removesuffix(","), result] for call, result in zip(calls, results)]
        hidden = {
            PROGRAM: Hidden(program, ()),
            CASES: Hidden(json.dumps([[call, result] for call, result in zip(calls, results)]), ()),
        }
        shown, answer = _sides(self.mode, program, cases)
        question = _ASK[self.mode].format(program=program, shown=shown)
        return Task(
            f"{self.mode}/{digest}", question, answer, hidden=hidden, domain=self, parent=task.id
        )

    def check(self, task: Task, answer: str) -> bool:
        cases = json.loads(task.hidden[CASES].text)
        if self.mode == "deduction":
            return same_value(answer.strip(), cases[0][1])
        if self.mode == "abduction":
            call = literals(answer)
            return call is not None and _gives(task.hidden[PROGRAM].text, [[call, cases[0][1]]])
        answer = _unfenced(answer)
        return not faults(answer) and _gives(answer, cases)


@dataclass(frozen=True)
class Programs(TaskSource):
    """Root tasks `mode/N` ask for a task of the mode and show the example number N."""

    kind: ClassVar[str] = "programs"

    mode: str = "deduction"
    """deduction, abduction or induction."""

    def train(self, rng: random.Random) -> Task:
        return self.root(f"{self.mode}/{rng.randrange(len(SEEDS) - len(RESERVED))}")

    def warm(self, rng: random.Random) -> Task:
        """With another example to imitate than the one that is shown."""
        shown, told = rng.sample(range(len(SEEDS) - len(RESERVED)), 2)
        return with_example(self.root(f"{self.mode}/{shown}"), proposal_of(SEEDS[told], self.mode))

    def heldout(self, n: int, seed: int) -> list[Task]:
        """The reserved programs, one call after the other, each equally often."""
        order = [(seed_, turn) for turn in range(LEAST_CALLS) for seed_ in RESERVED]
        random.Random(f"programs heldout {seed}").shuffle(order)
        found = []
        for i in range(n):
            (program, calls), turn = order[i % len(order)]
            proposal = proposal_of((program, calls[turn:] + calls[:turn]), self.mode)
            root = self.root(f"{self.mode}/{i % (len(SEEDS) - len(RESERVED))}")
            opened = dataclasses.replace(root, hidden={HELDOUT: Hidden(proposal, ())})
            found.append(with_proposal(opened, proposal))
        return found

    def derived_heldout(self, n: int, seed: int) -> list[Task]:
        domain = ProgramDomain(self.mode)
        return [domain.derive(task, carried_proposal(task) or "") for task in self.heldout(n, seed)]

    def needs_proposer(self) -> bool:
        return True

    def root(self, task_id: str) -> Task:
        mode, _, number = task_id.partition("/")
        if mode != self.mode or not number.isdecimal() or int(number) >= len(SEEDS) - len(RESERVED):
            raise KeyError(task_id)
        calls = f"{LEAST_CALLS} or more calls, one per line" if mode == "induction" else "of one call"
        example = proposal_of(SEEDS[int(number)], mode)
        question = _PROPOSE.format(mode=mode, calls=calls, example=example)
        return Task(task_id, question, domain=ProgramDomain(mode))

    def words(self) -> list[str]:
        texts = [_PROPOSE, *_ASK.values(), *(proposal_of(seed, "induction") for seed in SEEDS)]
        return list(dict.fromkeys(word for text in texts for word in text.split()))

    def problems(self) -> list[tuple[str, str]]:
        if self.mode in MODES:
            return []
        return [("mode", f"must be one of {', '.join(MODES)}, not {self.mode!r}")]


def proposal_of(seed: tuple[str, tuple[str, ...]], mode: str) -> str:
    """A program and its calls as a proposer would write them."""
    program, calls = seed
    return "\n".join([program, RULE, *(calls if mode == "induction" else calls[:1])])


def _split(proposal: str, mode: str) -> tuple[str, list[str]]:
    """(program, source of the argument tuples). Raises `InvalidProposal`."""
    program, rule, rest = _unfenced(proposal).partition(f"\n{RULE}\n")
    lines = [line for line in rest.splitlines() if line.strip()]
    if not rule or not lines:
        raise InvalidProposal(f"must be a program, a line {RULE} and arguments")
    if (len(lines) != 1) if mode != "induction" else (len(lines) < LEAST_CALLS):
        least = f"at least {LEAST_CALLS} calls" if mode == "induction" else "one call"
        raise InvalidProposal(f"{mode} needs {least}, not {len(lines)}")
    calls = [literals(line) for line in lines]
    found = [call for call in calls if call is not None]
    if len(found) < len(calls) or len(set(found)) < len(found):
        raise InvalidProposal("arguments must be Python literals, and no call may stand twice")
    return program, found


def _unfenced(text: str) -> str:
    """Without the lines that begin and end a block of code in Markdown."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("```"))


def _agreed(first: Ran, second: Ran) -> str:
    """The value that two runs of a call gave. Raises `InvalidProposal`."""
    if first.value is None or second.value is None:
        raise InvalidProposal(f"the program fails: {first.error or second.error}")
    if not same_value(first.value, second.value):
        raise InvalidProposal("the program gives something that is no literal, or not the same every time")
    return first.value


def _sides(mode: str, program: str, cases: list[list[str]]) -> tuple[str, str]:
    """(what the solver is shown, a right answer). `cases`: arguments as they stand in a call, result."""
    if mode == "deduction":
        return cases[0][0], cases[0][1]
    if mode == "abduction":
        return cases[0][1], cases[0][0]
    shown = cases[: len(cases) // 2]
    return "\n".join(f"f({call}) returns {result}" for call, result in shown), program


def _gives(program: str, cases: list[list[str]]) -> bool:
    """Whether every call gives its result. An error, or too long a run, does not. Raises `VerifierError`."""
    ran = run(program, [call for call, _ in cases])
    return all(one.value is not None and same_value(one.value, result) for one, (_, result) in zip(ran, cases))


def _same_program(program: str) -> bool:
    """Whether it is a reserved one, however it is written."""
    return _shape(program) in {_shape(reserved) for reserved, _ in RESERVED}


def _shape(program: str) -> str:
    try:
        return ast.dump(ast.parse(program))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
