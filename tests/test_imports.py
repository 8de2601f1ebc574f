"""Who may import whom, read from the source: imports form a DAG, and heavy libraries stay behind one door each."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "protocols": {"protocols"},
    "tasks": {"tasks", "protocols"},
    "configs": {"configs", "tasks", "protocols"},
    "actors": {"actors", "configs", "tasks", "protocols"},
    "learners": {"learners", "configs", "tasks", "protocols"},
    "reporting": {"reporting", "actors", "configs", "tasks", "protocols"},
    "driver": {"driver", "reporting", "actors", "learners", "configs", "tasks", "protocols"},
}
OURS = {*MAY_IMPORT, *(path.stem for path in ROOT.glob("*.py"))}
ONLY_IN = {"vllm": r"actors/engine/\w*\.py", "deepspeed": r"learners/ranks/rank\.py"}
LAZY = {"pyspiel", "textarena", "torch", "ray", "vllm", "deepspeed", "transformers", "sklearn", "wandb", "matplotlib"}
DISTRIBUTION = {"sklearn": "scikit-learn", "yaml": "pyyaml", "pyspiel": "open_spiel", "zmq": "pyzmq"}


def sources() -> list[Path]:
    return [*ROOT.glob("*.py"), *(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))]


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of everything imported anywhere under `tree`; for `from a import b`, a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def top(name: str) -> str:
    return name.partition(".")[0]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def outside_functions(tree: ast.Module) -> Iterator[str]:
    """What is imported when the module is: not in functions, not under TYPE_CHECKING."""
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.If, ast.Try, ast.With)):
            yield from imported(node)


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_imports_follow_the_dag(path: Path) -> None:
    package = name_of(path).partition("/")[0]
    allowed = MAY_IMPORT.get(package, OURS)
    wrong = {name for name in imported(parsed(path)) if top(name) in OURS - allowed}
    assert not wrong, f"{name_of(path)} may import {sorted(allowed)} only"


@pytest.mark.parametrize("path", sorted((ROOT / "protocols").rglob("*.py")), ids=name_of)
def test_protocols_use_the_standard_library_only(path: Path) -> None:
    names = {top(name) for name in imported(parsed(path))} - {"protocols"}
    assert names <= sys.stdlib_module_names
    assert not names & {"os", "time", "datetime", "socket", "subprocess", "pathlib", "io", "secrets", "uuid"}


@pytest.mark.parametrize("path", sorted((ROOT / "protocols" / "contract").rglob("*.py")), ids=name_of)
def test_the_contract_shares_no_code_with_what_it_checks(path: Path) -> None:
    """It knows the vocabulary and the shape of a play, not one line of the interpreters of kinds."""
    may = ("protocols.base.", "protocols.types.", "protocols.proposals.", "protocols.contract.")
    names = {name for name in imported(parsed(path)) if top(name) in OURS}
    assert not {name for name in names if not name.startswith(may)}


@pytest.mark.parametrize("path", sources(), ids=name_of)
def test_one_door_to_vllm_and_to_deepspeed(path: Path) -> None:
    for library, door in ONLY_IN.items():
        uses = any(top(name) == library for name in imported(parsed(path)))
        assert not uses or re.fullmatch(door, name_of(path)), f"{name_of(path)} imports {library}"


def test_the_doors_are_used() -> None:
    for library, door in ONLY_IN.items():
        behind = [path for path in sources() if re.fullmatch(door, name_of(path))]
        assert any(top(name) == library for path in behind for name in imported(parsed(path)))


def test_nothing_heavy_is_reached_from_the_command_line() -> None:
    """Modules that plan, replay and doctor import, and those these import in turn, are light."""
    seen: set[Path] = set()
    todo = [
        ROOT / name
        for name in (
            "launch.py", "driver/preflight/plan.py", "reporting/replay.py", "driver/preflight/doctor.py", "configs/load.py",
            "reporting/sketch/sketch.py", "reporting/sketch/view.py", "protocols/contract/properties.py",
        )
    ]  # fmt: skip
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        names = set(outside_functions(parsed(path)))
        assert not {top(name) for name in names} & LAZY, f"{name_of(path)} imports something heavy"
        for name in names:
            parts = name.split(".")
            todo += [
                p
                for i in range(len(parts))
                if (p := ROOT.joinpath(*parts[: i + 1]).with_suffix(".py")).is_file()
            ]
    assert ROOT / "configs" / "schema" / "run.py" in seen


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [
        *project["dependencies"],
        *(d for extra in project["optional-dependencies"].values() for d in extra),
    ]
    names = {re.split(r"[\[=<>]", requirement)[0] for requirement in declared}
    for path in sources():
        for module in (
            {top(name) for name in imported(parsed(path))} - OURS - sys.stdlib_module_names - {"__future__"}
        ):
            assert DISTRIBUTION.get(module, module) in names, f"{name_of(path)} imports {module}"


def test_every_package_is_installed() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        path.parent.relative_to(ROOT)
        for package in MAY_IMPORT
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert set(setup["packages"]) == {".".join(folder.parts) for folder in found} >= set(MAY_IMPORT)
    assert {f"{name}.py" for name in setup["py-modules"]} == {path.name for path in ROOT.glob("*.py")}
