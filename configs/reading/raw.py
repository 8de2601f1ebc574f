"""A protocol file as plain data, as the contract's oracles read it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf


class _File(dict[str, Any]):
    """Read from a file of its own: it replaces what stands in its place."""


def read_raw(path: Path) -> dict[str, Any]:
    """A protocol's YAML as plain data: over what it extends, and with the file of its child read in its place.

    Read as `configs.load` reads it. A setting that is null is left away: it has its default.
    """
    return cast(
        "dict[str, Any]", _plain(OmegaConf.to_container(OmegaConf.create(_plain(_read(path))), resolve=True))
    )


def _read(path: Path) -> _File:
    tree = OmegaConf.create(path.read_text(encoding="utf-8"))  # reads 1e-3 as a number, as configs.load does
    return _File(_expanded(cast("dict[str, Any]", OmegaConf.to_container(tree)), path.parent))


def _expanded(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`raw`, written in a file of `folder`, with what its `extends` and `child` name."""
    child = raw.get("child")
    if child is not None:
        raw["child"] = _read(folder / child) if isinstance(child, str) else _expanded(child, folder)
    for phase in raw.get("phases") or []:
        if (phase.get("delegate") or {}).get("protocol"):
            own = phase["delegate"]["protocol"]
            read = _read(folder / own) if isinstance(own, str) else _expanded(own, folder)
            phase["delegate"] = {**phase["delegate"], "protocol": read}
    bases = raw.pop("extends", [])
    below: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        below = _over(below, _read(folder / base))
    return _over(below, raw)


def _over(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Mappings are merged key by key; everything else is replaced, and so is a file by another."""
    merged = type(base)(base)
    for key, value in own.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and not isinstance(value, _File):
            merged[key] = _over(old, value)
        else:
            merged[key] = value
    return merged


def _plain(value: Any) -> Any:
    """Dicts and lists without what is null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    return [_plain(item) for item in value] if isinstance(value, list) else value
