"""The kinds of task source: `tasks: {kind: ..., ...}` in a config names one of these."""

from __future__ import annotations

from tasks.base import TaskSource
from tasks.lists import Lists
from tasks.pixels import Pixels
from tasks.spiel import OpenSpiel
from tasks.textarena import TextArena

SOURCES: dict[str, type[TaskSource]] = {source.kind: source for source in (Pixels, Lists, OpenSpiel, TextArena)}
