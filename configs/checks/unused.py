"""Policies that nobody plays: mostly a name mistyped, so that what was set went nowhere."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from configs.machine import used_policies
from configs.reading.source import KeyPath, Source
from configs.schema.run import RunConfig


def unplayed(config: RunConfig, source: Source) -> Iterator[tuple[KeyPath, str, str]]:
    """(path, message, what would be valid) for each policy that only an override names, or only a file that extends
    others. What those others define may have lost its role on purpose. (A run's own copy of its config is one file.)"""
    used = set(used_policies(config))
    used |= {policy.engine.share for policy in config.policies.values()}
    used |= {name for policy in config.policies.values() for name in policy.of}
    extends = {mark.file for mark in source.marks.values()} - {"", source.root}
    changed = any(mark.file == "" and key[0] in ("stages", "eval") for key, mark in source.marks.items())
    for name in [name for name in config.policies if name not in used]:
        places = {key: mark.file for key, mark in source.marks.items() if key[:2] == ("policies", name)}
        files = {*places.values()}
        if files == {""} or (extends and not changed and files <= {"", source.root}):
            near = difflib.get_close_matches(name, used, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            played = [policy for policy in config.policies if policy in used]
            yield next(iter(places)), f"nobody plays policy {name!r}{hint}", ", ".join(played)
