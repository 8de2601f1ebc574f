"""The kinds of task source: `tasks: {kind: ..., ...}` in a config names one of these."""

from __future__ import annotations

from tasks.base import TaskSource
from tasks.games import Bargains, Words
from tasks.lists import Lists
from tasks.ontology import Ontology
from tasks.pixels import Pixels
from tasks.programs import Programs
from tasks.spiel import OpenSpiel
from tasks.taxonomy import Taxonomy
from tasks.textarena import TextArena
from tasks.toys import Toys

SOURCES: dict[str, type[TaskSource]] = {
    source.kind: source
    for source in (Pixels, Lists, OpenSpiel, TextArena, Words, Bargains, Programs, Ontology, Taxonomy, Toys)
}
