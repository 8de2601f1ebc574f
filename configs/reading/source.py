"""YAML files into one plain tree, with the file and line of every key.

`extends: [base.yaml]` merges files; under `protocols` a value that ends in .yaml is a file that is read in
its place, so that the tree, and the copy kept in a run directory, stands on its own. `key: null` takes away a
mapping of the file below. `key=value` overrides come last.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.reading.errors import ConfigError, ConfigErrors, Mark

KeyPath = tuple[Any, ...]
"""Keys (str) and list indices (int) from the root."""
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")
_STR_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")


def show_key(path: KeyPath) -> str:
    """('a', 'b', 0) -> 'a.b[0]'."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


@dataclass
class Source:
    """A tree of dicts, lists and scalars, interpolations still unresolved, and where each key stands."""

    tree: dict[str, Any] = field(default_factory=dict)
    marks: dict[KeyPath, Mark] = field(default_factory=dict)
    files: set[KeyPath] = field(default_factory=set)
    """Paths whose value was read from a file of their own: such a value replaces, it does not merge."""
    links: set[KeyPath] = field(default_factory=set)
    """Paths of mappings that are interpolations of others."""
    root: str = ""
    """Name of the main file, for messages about keys that are not there."""

    def mark(self, path: KeyPath) -> Mark | None:
        """The mark of `path` or of its nearest marked ancestor."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.marks:
                return self.marks[path[:end]]
        return None

    def error(self, path: KeyPath, message: str, valid: str = "") -> ConfigError:
        """A mistake at `path`, with its place."""
        return ConfigError(str(self.mark(path) or self.root), show_key(path), message, valid)

    def place(self, path: KeyPath, other: Source) -> None:
        """Put the tree of `other` at `path`, with its marks, in place of what stands there."""
        self.drop(path, keep_own=True)
        _set(self.tree, path, other.tree)
        self.marks.update({path + below: mark for below, mark in other.marks.items()})
        self.files |= {path, *(path + below for below in other.files)}

    def drop(self, path: KeyPath, keep_own: bool = False) -> None:
        """Forget the marks at and under `path`."""
        gone = [p for p in self.marks if p[: len(path)] == path and not (keep_own and p == path)]
        for p in gone:
            del self.marks[p]
        self.files = {p for p in self.files if p[: len(path)] != path}

    def merge(self, over: Source, path: KeyPath = ()) -> None:
        """Lay `over` on top. Mappings merge; null takes one away; another `kind` of tasks, protocol or policy replaces
        the old."""
        old, new = _get(self.tree, path), _get(over.tree, path)
        for key, value in new.items():
            here = (*path, key)
            before = old.get(key)
            if (
                isinstance(value, dict)
                and isinstance(before, dict)
                and not _replaces(here, before, value, over)
            ):
                if here in over.marks:
                    self.marks[here] = over.marks[here]
                self.merge(over, here)
                continue
            self.drop(here)
            if value is None and isinstance(before, dict):
                del old[key]
                continue
            old[key] = value
            self.marks.update({p: m for p, m in over.marks.items() if p[: len(here)] == here})
            self.files |= {p for p in over.files if p[: len(here)] == here}


def _replaces(path: KeyPath, old: dict[str, Any], new: dict[str, Any], over: Source) -> bool:
    if path in over.files:
        return True
    dispatched = path == ("tasks",) or (len(path) == 2 and path[0] in ("protocols", "policies"))
    return dispatched and "kind" in new and new["kind"] != old.get("kind", "lm")


def _get(tree: Any, path: KeyPath) -> Any:
    for part in path:
        tree = tree[part]
    return tree


def _set(tree: Any, path: KeyPath, value: Any) -> None:
    _get(tree, path[:-1])[path[-1]] = value


def read(path: Path, *, protocol: bool = False) -> Source:
    """The tree of a config file, or of a protocol file.

    Raises `ConfigErrors` with every unreadable file, syntax error, duplicate key and cycle met.
    """
    errors: list[ConfigError] = []
    source = _read(path, (), None, protocol, errors)
    source.root = _shown(path)
    if errors:
        raise ConfigErrors(errors)
    return source


def override(source: Source, overrides: Sequence[str], folder: Path) -> list[ConfigError]:
    """Apply `key=value` arguments, in order. Files named by them are relative to `folder`."""
    errors: list[ConfigError] = []
    for number, text in enumerate(overrides, 1):
        key, equals, value = text.partition("=")
        mark = Mark("", number, value)
        if not equals or not _KEY.fullmatch(key) or not value.strip():
            errors.append(ConfigError(str(mark), "", f"{text!r} is not a setting", "key.subkey=value"))
            continue
        try:
            [parsed] = _plain("- " + value.replace("\n", "\n  "))
        except (yaml.YAMLError, ValueError, OmegaConfBaseException) as error:
            message = f"cannot read the value {value!r}: {_first_line(error)}"
            errors.append(ConfigError(str(mark), key, message))
            continue
        path = tuple(key.split("."))
        tree: dict[str, Any] = {}
        inner = tree
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        inner[path[-1]] = parsed
        made = {path[:end]: Mark("", number) for end in range(1, len(path)) if path[:end] not in source.marks}
        over = Source(tree, {**made, path: mark, **{path + p: Mark("", number) for p in _paths(parsed)}})
        _include(over, folder, (), False, errors)
        source.merge(over)
    return errors


def _paths(value: Any) -> Iterator[KeyPath]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield (key,)
        yield from ((key, *path) for path in _paths(below))


def _read(
    path: Path, chain: tuple[Path, ...], asked: Mark | None, protocol: bool, errors: list[ConfigError]
) -> Source:
    """One file with what it extends and includes. `chain`: the files that led here. `asked`: who named it."""
    path = Path(os.path.abspath(path))
    shown, where = _shown(path), str(asked or "")
    if path in chain:
        cycle = " -> ".join(_shown(p) for p in (*chain[chain.index(path) :], path))
        valid = "delegate: {depth: 1} without protocol, to delegate to itself" if protocol else ""
        errors.append(ConfigError(where, "", f"files that lead back to themselves: {cycle}", valid))
        return Source()
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        errors.append(ConfigError(where, "", f"cannot read {shown}: {reason}", "a YAML file"))
        return Source()
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        errors.append(ConfigError(f"{shown}:{line}", "", f"not YAML: {error.problem}"))
        return Source()
    if not isinstance(node, yaml.MappingNode):
        errors.append(ConfigError(f"{shown}:1", "", "must be a mapping of settings", "key: value lines"))
        return Source()
    source = Source(root=shown)
    sound = len(errors)
    _walk(node, (), shown, source.marks, errors)
    if len(errors) > sound:
        return Source()
    try:
        source.tree = _plain(text)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        errors.append(ConfigError(shown, "", f"not YAML: {_first_line(error)}"))
        return Source()
    _include(source, path.parent, (*chain, path), protocol, errors)
    return source


def _include(
    source: Source, folder: Path, chain: tuple[Path, ...], protocol: bool, errors: list[ConfigError]
) -> None:
    """Read the files that `extends` and the protocols of `source` name, relative to `folder`."""
    for path, value in list(_protocol_values(source.tree, protocol)):
        mark = source.mark(path)
        if isinstance(value, str):
            found = _read(folder / value, chain, mark, True, errors)
            if found.tree and len(path) > (0 if protocol else 2):  # a child is called as its file is
                found.tree.setdefault("name", Path(value).stem)
            source.place(path, found)
        else:
            _extend(source, path, folder, chain, True, errors)
    _extend(source, (), folder, chain, protocol, errors)


def _protocol_values(tree: dict[str, Any], protocol: bool) -> Iterator[tuple[KeyPath, Any]]:
    """Where a protocol file may be named: values ending in .yaml, and inline mappings that extend one."""
    start: Any = tree if protocol else tree.get("protocols")
    for path in sorted(_paths(start), key=len, reverse=True):  # inner ones first
        value = _get(start, path)
        is_file = isinstance(value, str) and value.endswith((".yaml", ".yml")) and path[0] != "extends"
        if (is_file and "extends" not in path) or (isinstance(value, dict) and "extends" in value):
            yield (path if protocol else ("protocols", *path)), value


def _extend(
    source: Source,
    path: KeyPath,
    folder: Path,
    chain: tuple[Path, ...],
    protocol: bool,
    errors: list[ConfigError],
) -> None:
    """Lay the mapping at `path` over the files that its `extends` names."""
    own = _get(source.tree, path)
    if "extends" not in own:
        return
    here = (*path, "extends")
    bases, mark = own.pop("extends"), source.mark(here)
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        errors.append(source.error(here, "must list files", "extends: [base.yaml]"))
        return
    source.drop(here)
    below = Source()
    for base in bases:
        below.merge(_read(folder / base, chain, mark, protocol, errors))
    cut = len(path)
    over = Source(own, {p[cut:]: m for p, m in source.marks.items() if len(p) > cut and p[:cut] == path})
    over.files = {p[cut:] for p in source.files if len(p) > cut and p[:cut] == path}
    below.merge(over)
    if path:
        source.place(path, below)
        source.files.discard(path)
    else:
        source.tree, source.marks, source.files = below.tree, below.marks, below.files


def _walk(
    node: yaml.Node, path: KeyPath, file: str, marks: dict[KeyPath, Mark], errors: list[ConfigError]
) -> None:
    """Record where every key stands; refuse duplicate keys and keys that YAML does not read as text."""
    if isinstance(node, yaml.MappingNode):
        for key_node, value in node.value:
            key, mark = key_node.value, Mark(file, key_node.start_mark.line + 1, _scalar(value))
            here = (*path, key) if isinstance(key, str) else path
            if key_node.tag not in _STR_TAGS:
                message = "YAML reads this key as " + key_node.tag.rpartition(":")[2]
                errors.append(ConfigError(str(mark), show_key(here), message, "quote it"))
            elif here in marks:
                first = marks[here].line
                errors.append(ConfigError(str(mark), show_key(here), f"was already set on line {first}"))
            else:
                marks[here] = mark
                _walk(value, here, file, marks, errors)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            marks[(*path, index)] = Mark(file, value.start_mark.line + 1, _scalar(value))
            _walk(value, (*path, index), file, marks, errors)


def _scalar(node: yaml.Node) -> str:
    return node.value if isinstance(node, yaml.ScalarNode) else ""


def _plain(text: str) -> Any:
    # OmegaConf's YAML reads 1e-3 as a number, which PyYAML alone does not
    return OmegaConf.to_container(OmegaConf.create(text), resolve=False)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _shown(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
