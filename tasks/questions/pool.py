"""Checks that may never end, in a process that is killed: one worker for each kind of check, warmed once, replaced
after a time-out or a crash."""

from __future__ import annotations

import atexit
import json
import select
import subprocess
import sys
import threading
from functools import cache
from typing import Any

from protocols.types import VerifierError

START_SECONDS = 120.0
"""How long a worker may take to import what it needs, on a busy machine."""

_COMMON = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
out, sys.stdout = sys.stdout, sys.stderr
"""
_LOOP = """
out.write("ready\\n"); out.flush()
for line in sys.stdin:
    try:
        reply = {"value": float(check(*json.loads(line)))}
    except Exception as error:
        reply = {"error": f"{type(error).__name__}: {error}"[:300]}
    out.write(json.dumps(reply) + "\\n"); out.flush()
"""
_CHECKS = {
    "math": """
import logging
logging.disable(logging.CRITICAL)
from math_verify import parse, verify
def check(reply, accepted):
    said = parse(reply, parsing_timeout=None)
    right = [parse(one if "\\\\boxed" in one or "$" in one else f"${one}$", parsing_timeout=None) for one in accepted]
    if not any(right):
        raise ValueError("the answer of the task is no mathematics")
    return any(verify(one, said, timeout_seconds=None) for one in right)
""",
    "regex": """
import re
def check(text, patterns, ignore_case):
    return any(re.fullmatch(one, text, re.IGNORECASE if ignore_case else 0) for one in patterns)
""",
    "schema": """
import jsonschema
def check(value, schema):
    return jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema).is_valid(value)
""",
    "reasoning_gym": """
import functools, reasoning_gym
@functools.lru_cache(maxsize=16)
def generator(dataset, settings, seed):
    return reasoning_gym.create_dataset(dataset, size=1_000_000, seed=seed, **json.loads(settings))
def check(dataset, settings, seed, index, answer):
    made = generator(dataset, settings, seed)
    return made.score_answer(answer=answer, entry=made[index])
""",
}


class Worker:
    """One killable process. Safe to call from several threads; one question at a time."""

    def __init__(self, kind: str):
        self.kind = kind
        self._program = _COMMON + _CHECKS[kind] + _LOOP
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(self, arguments: list[Any], seconds: float) -> float:
        """The check's grade. Raises VerifierError after `seconds`, on a crash, or when the check itself fails."""
        with self._lock:
            process = self._process if self._process and self._process.poll() is None else self._start()
            assert process.stdin is not None
            try:
                process.stdin.write(json.dumps(arguments).encode() + b"\n")
                process.stdin.flush()
            except OSError:
                self.end()
                raise VerifierError(f"the process of the {self.kind} check has died") from None
            reply = json.loads(self._line(process, seconds))
        if "error" in reply:
            raise VerifierError(f"{self.kind} check: {reply['error']}")
        return float(reply["value"])

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", self._program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, cwd="/", env={}, start_new_session=True,
        )  # fmt: skip
        self._line(self._process, START_SECONDS)
        return self._process

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> bytes:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], seconds)[0]:
            self.end()
            raise VerifierError(f"the {self.kind} check took more than {seconds:g} s")
        line = process.stdout.readline()
        if not line:
            self.end()
            raise VerifierError(f"the process of the {self.kind} check has died")
        return line

    def end(self) -> None:
        """Kills the process; the next question starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@cache
def shared(kind: str) -> Worker:
    """The one worker of a kind in this process."""
    worker = Worker(kind)
    atexit.register(worker.end)
    return worker
