"""Dataclasses from a resolved tree, by their type hints. Mistakes are collected; none stops the others."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

from omegaconf import BooleanNode, FloatNode, IntegerNode
from omegaconf.errors import ValidationError

from configs.reading.errors import ConfigError
from configs.reading.source import KeyPath, Source, show_key

Kinds = Mapping[str, type]
_BAD = object()
"""What a value becomes that could not be read; its mistake has been noted."""
_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_NODES: dict[type, Any] = {int: IntegerNode, float: FloatNode, bool: BooleanNode}


class Builder:
    """Builds from one source. `kinds`: for an abstract class, its implementations by `kind:`."""

    def __init__(self, source: Source, errors: list[ConfigError], kinds: Mapping[type, Kinds] | None = None):
        self.source = source
        self.errors = errors
        self.kinds = kinds or {}

    def error(self, path: KeyPath, message: str, valid: str = "") -> object:
        """Note a mistake at `path`; once, where the tree has it again by an interpolation."""
        error = self.source.error(path, message, valid)
        copied = any(path[:end] in self.source.links for end in range(len(path)))
        if not copied or all((e.message, e.valid) != (message, valid) for e in self.errors):
            self.errors.append(error)
        return _BAD

    def dispatch(self, kinds: Kinds, raw: Any, path: KeyPath) -> Any:
        """The dataclass that `kind:` names, or None after noting why not."""
        if isinstance(raw, str):
            self.error(
                path, f"{raw!r} is no definition", "a file name ending in .yaml, or a mapping with kind:"
            )
            return None
        if not isinstance(raw, Mapping):
            self.error(path, "must be a mapping with kind:", ", ".join(sorted(kinds)))
            return None
        kind = raw.get("kind")
        if not isinstance(kind, str) or kind not in kinds:
            message = f"there is no kind {kind!r}{_did_you_mean(kind, kinds)}" if kind else "needs a kind"
            self.error(path if kind is None else (*path, "kind"), message, ", ".join(sorted(kinds)))
            return None
        own_name = {"name": path[-1]} if path and _has_field(kinds[kind], "name") else {}
        settings = {key: value for key, value in raw.items() if key != "kind"}
        return self.build(kinds[kind], {**own_name, **settings}, path)

    def build(self, cls: type, raw: Mapping[str, Any], path: KeyPath) -> Any:
        """An instance of the dataclass `cls`, or None where a required field is missing or unreadable.

        A setting that could not be read keeps its default, so that later checks find what else is wrong.
        """
        hints = typing.get_type_hints(cls)
        fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
        values: dict[str, Any] = {}
        for key, value in raw.items():
            name, here = key, (*path, key)
            if key not in fields:
                near = difflib.get_close_matches(str(key), list(fields), 1)
                self.error(here, "there is no such setting" + _did_you_mean(key, fields), ", ".join(fields))
                if not near or near[0] in raw:
                    continue
                name = near[0]  # go on as if it had been spelled so
            built = self.value(hints[name], value, here)
            if built is not _BAD:
                values[name] = built
        missing = [name for name, f in fields.items() if name not in values and _required(f)]
        for name in missing:
            if name not in raw:
                self.error((*path, name), f"missing ({_describe(hints[name])})")
        if missing:
            return None
        try:
            return cls(**values)
        except ValueError as error:
            self.error(path, str(error))
            return None

    def value(self, hint: Any, raw: Any, path: KeyPath) -> Any:
        """`raw` as the type `hint` says, or _BAD after noting the mistake."""
        origin, args = get_origin(hint), get_args(hint)
        if hint is Any or hint is object:
            return raw
        if origin in (Union, types.UnionType):
            return self._union(args, raw, path)
        if raw is None:
            return self.error(path, "has no value", _describe(hint))
        if origin is Literal:
            return raw if raw in args and type(raw) in map(type, args) else self._choice(args, raw, path)
        if hint in self.kinds:
            built = self.dispatch(self.kinds[hint], raw, path)
            return _BAD if built is None else built
        if dataclasses.is_dataclass(hint):
            if not isinstance(raw, Mapping):
                keys = ", ".join(f.name for f in dataclasses.fields(hint))
                return self.error(path, "must be a mapping", keys)
            built = self.build(hint, raw, path)  # type: ignore[arg-type]
            return _BAD if built is None else built
        if (origin or hint) in (list, tuple, Sequence):
            return self._list(origin or hint, args, raw, path)
        if (origin or hint) in (dict, Mapping):
            if not isinstance(raw, Mapping):
                return self.error(path, "must be a mapping", "key: value lines")
            value_hint = args[1] if args else Any
            built = {key: self.value(value_hint, value, (*path, key)) for key, value in raw.items()}
            return {key: value for key, value in built.items() if value is not _BAD}
        assert hint in _NAMES, f"{show_key(path)}: settings of type {hint} are not supported"
        return self._scalar(hint, raw, path)

    def _union(self, args: tuple[Any, ...], raw: Any, path: KeyPath) -> Any:
        if raw is None and type(None) in args:
            return None
        args = tuple(arg for arg in args if arg is not type(None))
        by_kind: dict[Any, type] = {arg.kind: arg for arg in args if hasattr(arg, "kind")}
        if by_kind and len(by_kind) == len(args):
            built = self.dispatch(by_kind, raw, path)
            return _BAD if built is None else built
        trial = Builder(self.source, [], self.kinds)
        for arg in args:
            trial.errors = []
            built = trial.value(arg, raw, path)
            if not trial.errors:
                return built
        if len(args) == 1:
            self.errors += trial.errors
            return _BAD
        return self.error(path, f"cannot read {raw!r}", " or ".join(_describe(arg) for arg in args))

    def _list(self, kind: Any, args: tuple[Any, ...], raw: Any, path: KeyPath) -> Any:
        if not isinstance(raw, (list, tuple)):
            return self.error(path, "must be a list", "[a, b] or lines that begin with -")
        fixed = kind is tuple and args and args[-1] is not Ellipsis
        if fixed and len(raw) != len(args):
            return self.error(path, f"must have {len(args)} entries, has {len(raw)}")
        hints = args if fixed else [args[0] if args else Any] * len(raw)
        built = [self.value(hint, value, (*path, i)) for i, (hint, value) in enumerate(zip(hints, raw))]
        if fixed and _BAD in built:
            return _BAD
        built = [value for value in built if value is not _BAD]
        return built if kind is list else tuple(built)

    def _choice(self, args: tuple[Any, ...], raw: Any, path: KeyPath) -> object:
        valid = ", ".join(str(arg) for arg in args)
        note = self._trap(raw, path) + _did_you_mean(raw, args)
        return self.error(path, f"{raw!r} is not known{note}", valid)

    def _scalar(self, hint: Any, raw: Any, path: KeyPath) -> Any:
        trap = self._trap(raw, path)
        fits = {
            int: isinstance(raw, int) and not isinstance(raw, bool) and ":" not in trap,
            float: isinstance(raw, (int, float)) and not isinstance(raw, bool) and ":" not in trap,
            bool: isinstance(raw, bool),
            str: isinstance(raw, str),
        }[hint]
        if fits and hint is float:
            return float(raw) if math.isfinite(raw) else self.error(path, "must be finite", "a number")
        if fits:
            return raw
        if isinstance(raw, str) and hint in _NODES:  # quoted, or from an environment variable
            try:
                return _NODES[hint](raw)._value()
            except ValidationError:
                pass  # noted below, with its place
        shown = "a mapping" if isinstance(raw, Mapping) else "a list" if isinstance(raw, list) else repr(raw)
        return self.error(path, f"must be {_NAMES[hint]}, not {shown}{trap}", _NAMES[hint])

    def _trap(self, raw: Any, path: KeyPath) -> str:
        """A note when YAML 1.1 read something else than what was meant: `no` is false, `1:30` is 90."""
        mark = self.source.marks.get(path)
        text = mark.text.strip() if mark else ""
        if isinstance(raw, str) or not isinstance(raw, (bool, int, float)) or not text:
            return ""
        word = isinstance(raw, bool) and text.lower() not in ("true", "false")
        clock = not isinstance(raw, bool) and ":" in text
        note = f" (YAML reads {text} as {str(raw).lower()}; quote it to mean the text)"
        return note if word or clock else ""


def _did_you_mean(text: Any, valid: Iterable[Any]) -> str:
    near = difflib.get_close_matches(str(text), [str(v) for v in valid], 1)
    return f"; did you mean {near[0]}?" if near else ""


def _has_field(cls: type, name: str) -> bool:
    return any(field.name == name for field in dataclasses.fields(cls))


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _describe(hint: Any) -> str:
    """A type hint in a user's words."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(str(arg) for arg in args)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(arg) for arg in args if arg is not type(None))
    if (origin or hint) in (list, tuple, Sequence):
        return "a list"
    if hint in _NAMES:
        return _NAMES[hint]
    assert origin is not ClassVar
    return "a mapping"
