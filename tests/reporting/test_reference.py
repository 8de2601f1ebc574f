"""The reference pages say something about every setting and every entry of a registry."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest

from configs.schema.ranges import RANGES
from configs.schema.run import RunConfig
from protocols.extension import Registry
from reporting.reference import REGISTRIES, pages, registry_parts, sections, settings_table

PAGES = pages()


def test_every_section_and_setting_stands_on_the_page() -> None:
    page = PAGES["reference/settings.md"]
    found = dict(sections(RunConfig))
    assert set(RANGES) <= set(found.values())
    assert found["policies.NAME.learner.loss"].__name__ == "LossConfig"
    for path, cls in found.items():
        assert f"## {path or 'The file'}\n" in page
        for name in RANGES.get(cls, {}):
            assert f"| `{name}` |" in page
    assert re.search(r"\| `clip_low` \| `float` \| `0.2` \| 0 to 1 \|", page)


@pytest.mark.parametrize("page", REGISTRIES)
def test_every_entry_says_what_it_does(page: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*)", PAGES[f"reference/{page}.md"].partition("### ")[0], re.M)
    assert len(rows) > 5
    assert not [name for name, summary in rows if not summary.strip()]


def test_a_table_of_an_entry() -> None:
    registry: Registry[type] = Registry("thing")

    @registry.register("mine", reads={"b", "a"}, source="Doe et al. 2026, arXiv 2601.00001")
    @dataclass
    class Mine:
        """Does what Doe et al. say. Slowly."""

        size: int = 3
        """In | metres."""

    table, heading, settings = registry_parts(registry)
    link = "[arXiv 2601.00001](https://arxiv.org/abs/2601.00001)"
    assert table.splitlines()[-1] == f"| `mine` | Does what Doe et al. say | a, b | Doe et al. 2026, {link} |"
    assert heading == "### mine"
    assert settings == settings_table(Mine)
    assert settings.splitlines()[-1] == r"| `size` | `int` | `3` | In \| metres. |"
