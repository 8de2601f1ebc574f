"""The kinds of task source: `tasks: {kind: ..., ...}` in a config names one of these.

A new kind is a frozen dataclass derived from `TaskSource` and one `register` call: here, or in a module of yours that
the config names under `plugins`. Its fields are its settings; any other key beside `kind` is refused.
"""

from __future__ import annotations

from protocols.extension import Registry
from tasks.base import TaskSource
from tasks.kinds.games import Bargains, TabooWords
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

SOURCES: Registry[type[TaskSource]] = Registry("kind of tasks")
"""`needs` of an entry: the optional extra of this package (`pip install 'dissoi[games]'`) without which it refuses."""

SOURCES.register("pixels", source="Irving et al. 2018, arXiv 1805.00899, section 3.1")(Pixels)
SOURCES.register("lists", source="Absolute Zero, arXiv 2505.03335; R-Zero, arXiv 2508.05004")(Lists)
SOURCES.register("open_spiel", needs={"games"}, source="Lanctot et al. 2019, arXiv 1908.09453")(OpenSpiel)
SOURCES.register("textarena", needs={"textarena"}, source="Guertler et al. 2025, arXiv 2504.11442")(TextArena)
SOURCES.register("words", source="SPAG, arXiv 2404.10642")(TabooWords)
SOURCES.register("bargains", source="Fu et al. 2023, arXiv 2305.10142")(Bargains)
SOURCES.register("programs", source="Absolute Zero, arXiv 2505.03335, section 3.3")(Programs)
SOURCES.register("ontology", source="Amini et al. 2024, arXiv 2404.10329")(Ontology)
SOURCES.register("taxonomy", source="LAB, Sudalairaj et al. 2024, arXiv 2403.01081")(Taxonomy)
SOURCES.register("toys")(Toys)
for cls in (JsonLinesSource, CsvSource, ParquetSource, HuggingFaceSource, Facts, ReasoningGym):
    SOURCES.register(cls.kind)(cls)
