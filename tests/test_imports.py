"""Which package imports which library, read from the source. The order of our own packages: tests/house.py."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.house import PRODUCT, ROOT, files, imported, name_of, parsed

ONLY_IN = {"vllm": r"actors/engine/\w*\.py", "deepspeed": r"learners/ranks/rank\.py"}
LAZY = {"pyspiel", "textarena", "torch", "ray", "vllm", "deepspeed", "transformers", "sklearn", "wandb", "matplotlib"}
DISTRIBUTION = {
    "reasoning_gym": "reasoning-gym",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
    "pyspiel": "open_spiel",
    "zmq": "pyzmq",
}
SOURCES = files(*PRODUCT)


def top(name: str) -> str:
    return name.partition(".")[0]


def outside_functions(tree: ast.Module) -> Iterator[str]:
    """What is imported when the module is: not in functions, not under TYPE_CHECKING."""
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.If, ast.Try, ast.With)):
            yield from imported(node)


@pytest.mark.parametrize("path", files("protocols"), ids=name_of)
def test_protocols_use_the_standard_library_only(path: Path) -> None:
    names = {top(name) for name in imported(parsed(path))} - {"protocols"}
    assert names <= sys.stdlib_module_names
    assert not names & {"os", "time", "datetime", "socket", "subprocess", "pathlib", "io", "secrets", "uuid"}


@pytest.mark.parametrize("path", files("protocols/contract"), ids=name_of)
def test_the_contract_shares_no_code_with_what_it_checks(path: Path) -> None:
    """It knows the vocabulary and the shape of a play, not one line of the interpreters of kinds."""
    may = ("protocols.base.", "protocols.types.", "protocols.proposals.", "protocols.contract.")
    names = {name for name in imported(parsed(path)) if top(name) in PRODUCT}
    assert not {name for name in names if not name.startswith(may)}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_one_door_to_vllm_and_to_deepspeed(path: Path) -> None:
    for library, door in ONLY_IN.items():
        uses = any(top(name) == library for name in imported(parsed(path)))
        assert not uses or re.fullmatch(door, name_of(path)), f"{name_of(path)} imports {library}"


def test_the_doors_are_used() -> None:
    for library, door in ONLY_IN.items():
        behind = [path for path in SOURCES if re.fullmatch(door, name_of(path))]
        assert any(top(name) == library for path in behind for name in imported(parsed(path)))


def test_nothing_heavy_is_reached_from_the_command_line() -> None:
    """Modules that plan, replay and doctor import, and those these import in turn, are light."""
    seen: set[Path] = set()
    names = (
        *("launch", "driver/preflight/plan", "driver/preflight/doctor", "reporting/replay", "configs/load"),
        *("reporting/sketch/sketch", "reporting/sketch/view", "protocols/contract/properties"),
    )
    todo = [ROOT / f"{name}.py" for name in names]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        reached = set(outside_functions(parsed(path)))
        assert not {top(name) for name in reached} & LAZY, f"{name_of(path)} imports something heavy"
        for name in reached:
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
    for path in SOURCES:
        for module in (
            {top(name) for name in imported(parsed(path))} - {*PRODUCT} - sys.stdlib_module_names - {"__future__"}
        ):
            assert DISTRIBUTION.get(module, module) in names, f"{name_of(path)} imports {module}"


def test_every_package_is_installed() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {name_of(path.parent) for path in SOURCES if path.name == "__init__.py"}
    modules = {path.stem for path in ROOT.glob("*.py")}
    assert set(setup["packages"]) == {folder.replace("/", ".") for folder in folders}
    assert set(setup["py-modules"]) == modules
    assert set(PRODUCT) == {folder for folder in folders if "/" not in folder} | modules
