"""`python -m tests.house`: does the project keep its own rules of size, order and naming?

The numbers come from the source as it stands: nothing is imported, so a broken module is measured like any other.
`tests/test_house.py` asserts them.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mypy.config_parser import parse_config_file
from mypy.options import Options

ROOT = Path(__file__).resolve().parent.parent
ORDER = (("protocols",), ("tasks",), ("configs",), ("actors", "learners"), ("reporting",), ("driver",), ("launch",))
"""From the bottom up. A package imports itself and what stands in a tuple before its own."""
PRODUCT = tuple(name for level in ORDER for name in level)
MOST_FILES, MOST_LINES, MOST_FUNCTION_LINES = 13, 400, 60
STRICT = (
    *("disallow_any_generics", "disallow_subclassing_any", "disallow_untyped_calls", "disallow_untyped_defs"),
    *("disallow_incomplete_defs", "check_untyped_defs", "disallow_untyped_decorators", "warn_return_any"),
    *("strict_equality", "extra_checks"),
)
"""What `mypy --strict` adds to a module; beside it implicit_reexport = false, and without warn_unused_ignores."""

Graph = Mapping[str, set[str]]


def files(*names: str) -> list[Path]:
    """The Python files of the named packages and modules of the project."""
    folders = [path for name in names for path in sorted((ROOT / name).rglob("*.py"))]
    return [*folders, *(path for name in names if (path := ROOT / f"{name}.py").is_file())]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    """actors/engine/actor.py -> actors.engine.actor; a folder's __init__.py -> the folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of everything imported anywhere under `tree`: at the top, in functions and under TYPE_CHECKING. For
    `from a import b`, a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_graph() -> dict[str, set[str]]:
    """Module -> the modules of the product that it imports."""
    modules = {module_of(path): path for path in files(*PRODUCT)}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        graph[module] = set()
        for name in imported(parsed(path)):
            while name and name not in modules:
                name = name.rpartition(".")[0]
            if name and name != module:
                graph[module].add(name)
    return graph


def circles(graph: Graph) -> list[list[str]]:
    """Strongly connected components of more than one node (Tarjan 1972), each sorted."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for after in sorted(graph.get(node, ())):
            if after not in index:
                visit(after)
            if after in stack:
                low[node] = min(low[node], low[after])
        if low[node] == index[node]:
            cut = stack.index(node)
            component, stack[cut:] = sorted(stack[cut:]), []
            if len(component) > 1:
                found.append(component)

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def folder_graphs(graph: Graph) -> dict[str, dict[str, set[str]]]:
    """Folder -> the graph of what lies directly in it: its files, and its subfolders as one node each. So files of
    `protocols/phased` may know `protocols/base.py`, and `protocols/registry.py` may know `protocols/phased`, but
    `phased` and `judges` may not know each other."""
    levels: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for start, ends in graph.items():
        for end in ends:
            a, b = start.split("."), end.split(".")
            depth = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
            if depth < len(a) and depth < len(b):
                levels["/".join(a[:depth]) or "."][a[depth]].add(b[depth])
    return levels


def folder_circles(graph: Graph) -> list[str]:
    return [
        f"{folder}: {', '.join(circle)}"
        for folder, level in sorted(folder_graphs(graph).items())
        for circle in circles(level)
    ]


def upward(graph: Graph) -> list[str]:
    """Imports of a package that ORDER does not put below the importer's own."""
    height = {name: level for level, names in enumerate(ORDER) for name in names}
    return sorted(
        f"{start} imports {end}"
        for start, ends in graph.items()
        for end in ends
        if (a := start.partition(".")[0]) != (b := end.partition(".")[0]) and height[b] >= height[a]
    )


def full_folders() -> list[str]:
    counts = Counter(path.parent for path in files(*PRODUCT, "benchmarks", "tests"))
    return sorted(f"{name_of(folder)}: {n}" for folder, n in counts.items() if n > MOST_FILES)


def long_files() -> list[str]:
    sized = ((path, lines(path)) for path in files(*PRODUCT, "benchmarks", "tests"))
    return [f"{name_of(path)}: {n}" for path, n in sized if n > MOST_LINES]


def long_functions() -> list[str]:
    return [
        f"{name_of(path)}: {node.name} ({n})"
        for path in files(*PRODUCT, "benchmarks", "tests")
        for node in ast.walk(parsed(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (n := (node.end_lineno or 0) - node.lineno + 1) > MOST_FUNCTION_LINES
    ]


def classes_named_twice() -> list[str]:
    where: dict[str, list[str]] = defaultdict(list)
    for path in files(*PRODUCT):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                where[node.name].append(name_of(path))
    return sorted(f"{name}: {', '.join(paths)}" for name, paths in where.items() if len(paths) > 1)


def strict_modules(paths: Iterable[Path]) -> list[Path]:
    """Those that mypy checks with all of STRICT, by pyproject.toml."""
    options = Options()
    parse_config_file(options, lambda: None, str(ROOT / "pyproject.toml"))

    def is_strict(path: Path) -> bool:
        mine = options.clone_for_module(module_of(path))
        on = all(getattr(mine, flag) for flag in STRICT)
        return on and not mine.implicit_reexport and not mine.ignore_errors

    return [path for path in paths if is_strict(path)]


@dataclass(frozen=True)
class House:
    """What was measured. Every list holds offenders, in words."""

    full_folders: list[str]
    module_circles: list[str]
    folder_circles: list[str]
    long_files: list[str]
    long_functions: list[str]
    classes_named_twice: list[str]
    upward_imports: list[str]
    strict_share: float
    """Of the product's lines, those that mypy checks strictly."""
    product_lines: int
    benchmark_lines: int

    def offenders(self) -> dict[str, list[str]]:
        """Rule -> what breaks it."""
        return {name: value for name, value in vars(self).items() if isinstance(value, list)}


def measure() -> House:
    graph = module_graph()
    product = files(*PRODUCT)
    total = sum(map(lines, product))
    return House(
        full_folders=full_folders(),
        module_circles=[", ".join(circle) for circle in circles(graph)],
        folder_circles=folder_circles(graph),
        long_files=long_files(),
        long_functions=long_functions(),
        classes_named_twice=classes_named_twice(),
        upward_imports=upward(graph),
        strict_share=sum(map(lines, strict_modules(product))) / total,
        product_lines=total,
        benchmark_lines=sum(map(lines, files("benchmarks"))),
    )


def main() -> None:
    house = measure()
    titles = {
        "full_folders": f"folders with more than {MOST_FILES} Python files",
        "module_circles": "import circles of modules",
        "folder_circles": "import circles of files and folders within one folder",
        "long_files": f"files over {MOST_LINES} lines",
        "long_functions": f"functions over {MOST_FUNCTION_LINES} lines",
        "classes_named_twice": "class names used twice in the product",
        "upward_imports": "imports against the order of packages",
    }
    for rule, offenders in house.offenders().items():
        print(f"{titles[rule]}: {len(offenders) or 'none'}")
        for offender in offenders:
            print(f"  {offender}")
    print(f"share of the product's lines under mypy strict: {house.strict_share:.1%}")
    print(f"lines of Python: product {house.product_lines:,}, benchmarks {house.benchmark_lines:,}")


if __name__ == "__main__":
    main()
