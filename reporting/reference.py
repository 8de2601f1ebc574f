"""Reference pages of the documentation, made from the schema and the registries each time the site is built.

`mkdocs.yml` names this file as a hook. `python -m reporting.reference FOLDER` writes the pages as Markdown.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.schema import run as schema
from configs.schema.ranges import RANGES, show_range
from protocols.extension import Entry, Registry

ROOT = Path(__file__).resolve().parent.parent
REGISTRIES = {
    "rewards": ("What a protocol can pay", [("protocols.rewards.registry", "REWARDS", "`rewards: [{name: ...}]`")]),
    "advantages": (
        "Advantages, signals and what they compare",
        [
            ("learners", "ADVANTAGES", "`learner.advantage.kind`"),
            ("learners", "SIGNALS", "`learner.signal.kind`"),
        ],
    ),
    "losses": (
        "Losses",
        [
            ("learners", "LOSSES", "`learner.loss.kind`"),
            ("learners", "CORRECTIONS", "Off-policy: `learner.loss.correction`"),
            ("learners", "REFERENCES", "`learner.reference.kind`"),
        ],
    ),
    "tasks": ("Task kinds", [("tasks.registry", "SOURCES", "`tasks: {kind: ...}`")]),
    "kinds": ("Protocol kinds", [("protocols.registry", "KINDS", "`kind: ...` of a protocol file")]),
}
"""Page -> its title and the registries on it: module, name, where a config names an entry."""
REPOSITORY_PAGES = {"README.md": "index.md", "ARCHITECTURE.md": "architecture.md", "CONTRIBUTING.md": "contributing.md"}
"""Files of the repository's root -> their place on the site."""


def pages() -> dict[str, str]:
    """Path below docs/ -> Markdown, of every page that is made and not written."""
    made = {f"reference/{name}.md": registry_page(*about) for name, about in REGISTRIES.items()}
    return {"reference/settings.md": settings_page(), **made, **dict(repository_pages())}


def repository_pages() -> Iterator[tuple[str, str]]:
    """README and its neighbours, with their links as seen from docs/."""
    for name, place in REPOSITORY_PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        for other, target in REPOSITORY_PAGES.items():
            text = text.replace(f"]({other}", f"]({target}")
        yield place, text


# Settings.


def settings_page() -> str:
    """Every section of a config, from the root down."""
    parts = [
        "# Settings",
        "Made from `configs/schema/`. `NAME` stands for a name that you choose. A config can name any key on the "
        "command line: `stages.debate.steps=200`.",
    ]
    for path, cls in sections(schema.RunConfig):
        parts += [f"## {path or 'The file'}", about(cls), settings_table(cls)]
    return "\n\n".join(parts) + "\n"


def sections(cls: type, path: str = "", seen: tuple[type, ...] = ()) -> Iterator[tuple[str, type]]:
    """(path in the YAML, dataclass) of a section and of all below it; a section that stands in several places, once."""
    yield path, cls
    for name, hint in typing.get_type_hints(cls).items():
        inner, step = _section_in(hint)
        if inner is not None and inner not in seen:
            yield from sections(inner, ".".join(filter(None, (path, name + step))), (*seen, cls))


def _section_in(hint: Any) -> tuple[type | None, str]:
    """The dataclass within a type, and what is added to the path: dict[str, X] -> .NAME, list[X] -> []."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint, ""
    steps = {dict: ".NAME", list: "[]"}
    for argument in typing.get_args(hint):
        inner, step = _section_in(argument)
        if inner is not None:
            return inner, steps.get(typing.get_origin(hint), "") + step
    return None, ""


def settings_table(cls: type) -> str:
    """Field, type, default, range and docstring of a dataclass, fields of nested sections left out."""
    docs, ranges = field_docs(cls), RANGES.get(cls, {})
    rows = []
    for field in dataclasses.fields(cls):
        kind = str(field.type)
        if field.name.startswith("_") or _section_in(typing.get_type_hints(cls)[field.name])[0]:
            continue
        allowed = show_range(*ranges[field.name]) if field.name in ranges else ""
        rows.append((f"`{field.name}`", f"`{kind}`", f"`{default_of(field)}`", allowed, docs.get(field.name, "")))
    return table(("setting", "type", "default", "range", "meaning"), rows) if rows else ""


def default_of(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    return repr(field.default_factory()) if field.default_factory is not dataclasses.MISSING else "required"


def field_docs(cls: type) -> dict[str, str]:
    """Field -> the docstring under it, inherited ones included."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:]):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                docs[ast.unparse(field.target)] = one_line(str(text.value.value))
    return docs


# Registries.


def registry_page(title: str, registries: list[tuple[str, str, str]]) -> str:
    parts = [f"# {title}"]
    for module, name, where in registries:
        registry: Mapping[str, Any] = getattr(importlib.import_module(module), name)
        parts += [f"## {where}", f"Registry: `{module}.{name}`.", *registry_parts(registry)]
    return "\n\n".join(parts) + "\n"


def registry_parts(registry: Mapping[str, Any]) -> Iterator[str]:
    """A table of the entries, and below it the settings of those that are dataclasses."""
    plain = {name: Entry(name, value) for name, value in registry.items()}
    entries = list((registry.entries if isinstance(registry, Registry) else plain).values())
    rows = [
        (f"`{e.name}`", summary(e), ", ".join(sorted(e.reads)), ", ".join(sorted(e.needs)), linked(e.source))
        for e in entries
    ]
    yield table(("name", "what it does", "settings it reads", "needs", "source"), rows)
    for e in entries:
        if isinstance(e.value, type) and dataclasses.is_dataclass(e.value):
            body = settings_table(e.value)
            if body:
                yield f"### {e.name}"
                yield body


def summary(entry: Entry[Any]) -> str:
    """The first sentence of the docstring of the function or class behind an entry."""
    value = getattr(entry.value, "pay", entry.value)
    return re.split(r"(?<!et al)\.(?: |$)", one_line(value.__doc__ or ""), maxsplit=1)[0]


def about(cls: type) -> str:
    """A dataclass's own docstring, or nothing where dataclasses made one up."""
    text = cls.__doc__ or ""
    return "" if text.startswith(f"{cls.__name__}(") else one_line(text)


def linked(source: str) -> str:
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", source)


def one_line(text: str) -> str:
    return " ".join(text.split())


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Markdown; columns that are empty in every row are left out."""
    keep = [i for i in range(len(head)) if i == 0 or any(row[i] for row in rows)]
    cells = ([row[i].replace("|", r"\|") for i in keep] for row in rows)
    lines = [[head[i] for i in keep], ["---"] * len(keep), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# What mkdocs calls.


def on_files(files: Any, config: Any) -> Any:
    """mkdocs hook: adds the made pages to the site."""
    from mkdocs.structure.files import File

    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """mkdocs hook: links from docs/ to files of the repository's root lead to their place on the site."""
    for name, place in REPOSITORY_PAGES.items():
        depth = page.file.src_uri.count("/")
        markdown = markdown.replace(f"](../{name}", f"]({'../' * depth}{place}")
    return markdown


def main() -> None:
    folder = Path(sys.argv[1])
    for path, text in pages().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
