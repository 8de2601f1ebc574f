"""Runs small untrusted Python programs in a process of their own that is limited and killed.

Two fences. A program must pass `faults` first: no imports, no names or attributes that lead out of the language, so
that what is left is arithmetic, strings, containers and loops. Then it runs in a fresh interpreter that sees no
environment and no site packages and that may open no file, no socket and no process, with limits on processor time and
memory. This stops accidents and what a policy finds while it is trained; against a person who means harm, run the whole
in a virtual machine.
"""

from __future__ import annotations

import ast
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from protocols.types import VerifierError

CPU_SECONDS = 0.25
"""Processor time of one run, over all its inputs: a busy machine changes no verdict."""
MEMORY_MB = 256
"""Address space, the interpreter's own included."""
WALL_SECONDS = 300.0
"""After so long without a result the machine is at fault, not the program, which cannot sleep."""
LONGEST = 4000
"""Characters of a program, and of a value as it is written."""
ENTRY = "f"

BUILTINS = (
    "abs", "all", "any", "bin", "bool", "chr", "dict", "divmod", "enumerate", "filter", "float", "frozenset", "hex",
    "int", "isinstance", "len", "list", "map", "max", "min", "oct", "ord", "pow", "range", "repr", "reversed", "round",
    "set", "sorted", "str", "sum", "tuple", "zip", "ValueError", "KeyError", "IndexError", "TypeError",
    "ZeroDivisionError", "StopIteration", "Exception",
)  # fmt: skip
"""All that a program may call besides what it defines."""
_BANNED_NODES = (
    ast.Import, ast.ImportFrom, ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Await, ast.With, ast.ClassDef,
    ast.Global, ast.Delete, ast.Match,  # a pattern can name any attribute
)  # fmt: skip
_BANNED_ATTRIBUTES = {"format", "format_map", "mro"}
_FRAMES = ("gi_", "cr_", "ag_", "tb_", "f_", "func_", "co_")
"""Attributes that begin so lead from a generator or an error to frames, and from there anywhere."""

_RUNNER = f"""
import builtins, json, resource, signal, sys
job = json.load(sys.stdin)
allowed = {{name: getattr(builtins, name) for name in {BUILTINS!r}}}
out, sys.stdout = sys.stdout, None
resource.setrlimit(resource.RLIMIT_AS, (job["memory"], job["memory"]))
for name in ("RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_NPROC", "RLIMIT_NOFILE"):
    resource.setrlimit(getattr(resource, name), (0, 0))
sys.setrecursionlimit(500)
signal.setitimer(signal.ITIMER_PROF, job["seconds"])
results = []
for args in job["inputs"]:
    space = {{"__builtins__": dict(allowed)}}
    try:
        exec(compile(job["program"], "program", "exec"), space)
        written = repr(space[{ENTRY!r}](*eval(args, {{"__builtins__": {{}}}})))
        results.append([written, ""] if len(written) <= {LONGEST} else [None, "the result is too long"])
    except BaseException as error:
        results.append([None, type(error).__name__])
out.write("\\n" + job["token"] + json.dumps(results) + "\\n")
out.flush()
"""


@dataclass(frozen=True, slots=True)
class Ran:
    """What one call came to: `value` as Python writes it, or None and the error."""

    value: str | None
    error: str = ""


def faults(program: str) -> str:
    """Why `program` may not be run; empty where it may. It must define one function `f`."""
    if len(program) > LONGEST:
        return f"is longer than {LONGEST} characters"
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"does not parse: {type(error).__name__}"
    if not any(isinstance(node, ast.FunctionDef) and node.name == ENTRY for node in tree.body):
        return f"defines no function {ENTRY}"
    for node in ast.walk(tree):
        if isinstance(node, _BANNED_NODES):
            return f"uses {type(node).__name__}, which is not allowed"
        names = [getattr(node, key, None) for key in ("id", "attr", "name", "arg", "rest")]
        if any(isinstance(name, str) and name.startswith("_") for name in names):
            return "uses a name that begins with an underscore"
        if isinstance(node, ast.Attribute) and (
            node.attr in _BANNED_ATTRIBUTES or node.attr.startswith(_FRAMES)
        ):
            return f"uses the attribute {node.attr}, which is not allowed"
    return ""


def literals(text: str) -> str | None:
    """Arguments of a call, written as Python literals, as the source of a tuple; None where they are none."""
    if len(text) > LONGEST:
        return None
    try:
        values = ast.literal_eval(f"({text},)" if text.strip() else "()")
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    return repr(values)


def same_value(first: str, second: str) -> bool:
    """Whether two texts are literals of one type and value. A set may be written in any order."""
    try:
        one, other = ast.literal_eval(first), ast.literal_eval(second)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return False
    return type(one) is type(other) and bool(one == other)


def run(program: str, inputs: Sequence[str], seconds: float = CPU_SECONDS) -> list[Ran]:
    """`f(*input)` for each of `inputs`, which `literals` has written. `program` must have no `faults`.

    A program that runs out of time or memory, or crashes the interpreter, has that as the error of every call: this is
    its own doing. Raises `VerifierError` where no result came for another reason.
    """
    token = secrets.token_hex(16)
    job = {"program": program, "inputs": list(inputs), "memory": MEMORY_MB << 20, "seconds": seconds, "token": token}
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _RUNNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env={}, cwd="/", close_fds=True, start_new_session=True, text=True,
        )  # fmt: skip
    except OSError as error:
        raise VerifierError(f"no process could be started: {error}") from error
    try:
        out, _ = process.communicate(json.dumps(job), timeout=WALL_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise VerifierError(f"no result after {WALL_SECONDS:g} s") from error
    finally:
        _end(process)
    killed = {
        signal.SIGPROF: f"more than {seconds:g} s of processor time", signal.SIGXCPU: "too much processor time",
        signal.SIGSEGV: "the interpreter crashed", signal.SIGABRT: "the interpreter gave up",
    }  # fmt: skip
    for number, why in killed.items():
        if process.returncode == -number:
            return [Ran(None, why)] * len(inputs)
    line = next((line for line in out.splitlines() if line.startswith(token)), None)
    if line is None:
        raise VerifierError(f"the process ended with {process.returncode} and no result")
    return [Ran(value, error) for value, error in json.loads(line.removeprefix(token))]


def _end(process: subprocess.Popen[str]) -> None:
    """Kills whatever is left of it, and takes its exit status."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()
