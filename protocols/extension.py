"""How something new is added: one entry in a registry, from a file of ours or from a package of the user's.

A config names the user's modules (`plugins: [my_package.rewards]`); importing them registers what they hold:

    from learners.credit.advantages import per_group

    @per_group("mine", source="Doe 2026, section 3")
    def mine(credits_G): ...

Checks, tables in the docs and error messages are made from the entries.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from protocols.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One thing that a config can name."""

    name: str
    value: T
    """What is called or instantiated."""
    reads: frozenset[str] = frozenset()
    """The settings of its section that it reads; any other that is set beside it has no effect, which is an error."""
    needs: frozenset[str] = frozenset()
    """What must be there for it to work, in the words of the registry that holds it."""
    source: str = ""
    """Paper, section and equation that it follows; empty for our own."""

    @property
    def summary(self) -> str:
        """The first sentence of its docstring."""
        text = " ".join((self.value.__doc__ or "").split())
        return text.partition(". ")[0].rstrip(".")


class Registry(Mapping[str, T], Generic[T]):
    """name -> value, in order of registration. `what` says in messages what the values are ("advantage")."""

    def __init__(self, what: str):
        self.what = what
        self.entries: dict[str, Entry[T]] = {}

    def register(
        self, name: str, *, reads: Iterable[str] = (), needs: Iterable[str] = (), source: str = ""
    ) -> Callable[[T], T]:
        """Decorator that adds a function or class under `name`. Raises UserError for a name that is taken."""

        def add(value: T) -> T:
            taken = self.entries.get(name)
            if taken is not None and taken.value is not value:
                raise UserError(f"{self.what} {name!r} is registered twice")
            self.entries[name] = Entry(name, value, frozenset(reads), frozenset(needs), source)
            return value

        return add

    def __getitem__(self, name: str) -> T:
        return self.entries[name].value

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def reads(self, name: str) -> frozenset[str]:
        """The settings that an entry reads; none for a name that is not registered."""
        return self.entries[name].reads if name in self.entries else frozenset()

    def needs(self, name: str) -> frozenset[str]:
        """What an entry needs; nothing for a name that is not registered."""
        return self.entries[name].needs if name in self.entries else frozenset()

    def unknown(self, name: str) -> str:
        """The message for a name that is not registered: what is valid, and what may have been meant."""
        return unknown(self.what, name, list(self))


def unknown(what: str, name: str, valid: Collection[str]) -> str:
    """"unknown WHAT 'NAME'; did you mean CLOSE? valid: ..."."""
    close = difflib.get_close_matches(name, valid, n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    return f"unknown {what} {name!r}; {meant}valid: {', '.join(valid)}"


def load_plugins(modules: Iterable[str]) -> None:
    """Imports the modules that a config names, so that they register what they hold. Idempotent. Call it in every
    process that looks something up. Raises UserError for one that cannot be imported."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(
                f"plugins: cannot import {module!r} ({error}); it must be installed or stand on PYTHONPATH"
            ) from error
