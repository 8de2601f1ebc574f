"""Seeding faults into the interpreter, one at a time, and asking the contract suite about them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).resolve().parent
SHIPPED = HERE.parents[1] / "configs" / "protocol"
Patch = Callable[[contextlib.ExitStack], None]
MUTANTS: dict[str, tuple[Path, str, Patch]] = {}
"""name -> (protocol that shows it, what the suite must say about it, how to break the code)"""


def mutant(
    path: Path, says: str, owner: Any, attribute: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register `make(original) -> broken` for an attribute."""

    def register(make: Callable[..., Any]) -> Callable[..., Any]:
        broken = make(getattr(owner, attribute))
        MUTANTS[make.__name__] = (path, says, lambda stack: _patch(stack, owner, attribute, broken))
        return make

    return register


def _patch(stack: contextlib.ExitStack, owner: Any, attribute: str, broken: Any) -> None:
    stack.enter_context(mock.patch.object(owner, attribute, broken))


@contextlib.contextmanager
def seeded(name: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        MUTANTS[name][2](stack)
        yield


def noticed(name: str, seeds: int = 6) -> list[str]:
    """What the suite says about a seeded fault, on the first seed on which it says anything."""
    from configs.load import load_protocol
    from configs.reading.raw import read_raw
    from protocols.contract import suite

    path = MUTANTS[name][0]
    protocol, raw = load_protocol(path), read_raw(path)
    with seeded(name):
        for seed in range(seeds):
            found = suite.violations(protocol, raw, seed)
            if found:
                return found
    return []
