"""A user's mistakes in a configuration: collected, and reported together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from protocols.errors import UserError


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a setting was written: line of a file, or number of an override (both from 1)."""

    file: str
    line: int
    text: str = ""
    """A scalar as it was written, before YAML read it."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.file else f"command line, override {self.line}"


@dataclass(frozen=True, slots=True)
class ConfigError:
    """One mistake. `where` is file:line; `valid` says what would be right."""

    where: str
    key: str
    message: str
    valid: str = ""

    def __str__(self) -> str:
        valid = f" (valid: {self.valid})" if self.valid else ""
        return ": ".join(part for part in (self.where, self.key, self.message) if part) + valid


class ConfigErrors(UserError):
    """Every mistake found in a configuration, one per line."""

    def __init__(self, errors: Sequence[ConfigError]):
        self.errors = list(errors)
        super().__init__(self.errors)  # the one argument, so that the exception survives pickling

    def __str__(self) -> str:
        count = len(self.errors)
        head = "1 mistake in the configuration:" if count == 1 else f"{count} mistakes in the configuration:"
        return "\n".join([head, *(f"  {error}" for error in self.errors)])
