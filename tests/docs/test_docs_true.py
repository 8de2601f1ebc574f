"""What README, ARCHITECTURE, CONTRIBUTING and docs/ name exists, and every command in them parses."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

import launch
from configs.load import load
from tests.house import PRODUCT, ROOT

WRITTEN = [ROOT / f"{name}.md" for name in ("README", "ARCHITECTURE", "CONTRIBUTING")] + [
    path for path in sorted((ROOT / "docs").glob("*.md")) if path.stem not in ("shipped", "benchmarks", "ablation")
]
"""Pages that people write; the others are made."""
PAGES = [*WRITTEN, *(ROOT / "docs" / f"{name}.md" for name in ("shipped", "benchmarks", "ablation"))]
SPAN = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"(?:[\w.-]+/)*[\w-]+\.py|(?:[\w.-]+/)+(?:[\w-]+\.(?:yaml|json|toml))?")
DOTTED = re.compile(rf"(?:{'|'.join(PRODUCT)})(?:\.\w+){{2,}}")
THEIRS = ("runs/", "RUN_DIR/", "mine/", "adapter/")
"""Where the reader's own files are."""
COLUMNS = 100


def spans(path: Path) -> list[str]:
    return SPAN.findall(path.read_text(encoding="utf-8"))


def commands(path: Path) -> list[str]:
    """Arguments of every `python launch.py`, without remarks and prompts."""
    text = path.read_text(encoding="utf-8")
    return [match.split("#")[0].strip() for match in re.findall(r"python launch\.py ([^`\n]*)", text)]


def is_file_of_ours(name: str) -> bool:
    """Whether a name is a path from the root, from docs/ or configs/, or the name of a Python file somewhere."""
    below = any((ROOT / start / name).exists() for start in ("", "configs", "docs"))
    return below or ("/" not in name and any(ROOT.glob(f"*/**/{name}")))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_files_and_names_exist(path: Path) -> None:
    names = {span for span in spans(path) if not span.startswith(THEIRS)}
    missing = [name for name in names if FILE.fullmatch(name) and not is_file_of_ours(name)]
    missing += [name for name in names if DOTTED.fullmatch(name) and not FILE.fullmatch(name) and not is_name(name)]
    assert not missing


def is_name(dotted: str) -> bool:
    """Whether `package.module.NAME` is a module, or something that a module defines or imports."""
    parts = dotted.split(".")
    for i in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:i])
        module = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
        if module.is_file():
            words = {n.id for n in ast.walk(ast.parse(module.read_text())) if isinstance(n, ast.Name)}
            defined = re.findall(r"^(?:class|def) (\w+)", module.read_text(), re.M)
            return i == len(parts) or parts[i] in {*words, *defined}
    return False


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    made = {"reference/settings.md", "reference/rewards.md", "reference/advantages.md"}
    made |= {"reference/losses.md", "reference/tasks.md", "reference/kinds.md"}
    missing = [link for link in links if not (path.parent / link).exists() and link.removeprefix("docs/") not in made]
    assert not missing


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.stem)
def test_commands_parse(path: Path) -> None:
    for command in commands(path):
        plain = re.sub(r"[\[\]](?=\s|$)|(?<=\s)\[", "", command).replace("seed=S", "seed=0")
        args = launch.parse(shlex.split(plain))
        config = getattr(args, "config", None)
        if config is not None and str(config).startswith("configs/"):
            load(ROOT / config, getattr(args, "overrides", ()))


def test_there_are_commands() -> None:
    assert sum(len(commands(path)) for path in WRITTEN) > 25


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.stem)
def test_prose_is_narrow(path: Path) -> None:
    """Tables, code and a single command may be wider."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    may_be_wide = re.compile(r"\||!\[|\s*`[^`]+`[.,;]?$")
    wide = [line for line in text.splitlines() if len(line) > COLUMNS and not may_be_wide.match(line)]
    assert not wide
