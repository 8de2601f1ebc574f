"""Order of the tests: fast ones first, so that a simple mistake shows before any engine has started."""

from __future__ import annotations

import pytest
from hypothesis import settings

import learners  # noqa: F401  registers the methods that a config can name

settings.register_profile("untimed", deadline=None)  # no test asserts a timing: the machine may be busy
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("engine") is not None)
