"""The kinds of task source: `tasks: {kind: ..., ...}` in a config names one of these."""

from __future__ import annotations

from tasks.base import TaskSource
from tasks.kinds.games import Bargains, Words
from tasks.kinds.lists import Lists
from tasks.kinds.ontology import Ontology
from tasks.kinds.pixels import Pixels
from tasks.kinds.programs import Programs
from tasks.kinds.questions import CsvSource, Facts, HuggingFaceSource, JsonLinesSource, ParquetSource
from tasks.kinds.reasoning import ReasoningGym
from tasks.kinds.spiel import OpenSpiel
from tasks.kinds.taxonomy import Taxonomy
from tasks.kinds.textarena import TextArena
from tasks.kinds.toys import Toys

SOURCES: dict[str, type[TaskSource]] = {
    source.kind: source
    for source in (
        Pixels,
        Lists,
        OpenSpiel,
        TextArena,
        Words,
        Bargains,
        Programs,
        Ontology,
        Taxonomy,
        Toys,
        JsonLinesSource,
        CsvSource,
        ParquetSource,
        HuggingFaceSource,
        Facts,
        ReasoningGym,
    )
}
