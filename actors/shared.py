"""Work that several await: done once, and given up when nobody awaits it any more."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Shared(Generic[T]):
    """`task` does the work. It outlives any of those who await `result`, but not the last of them."""

    def __init__(self, work: Coroutine[Any, Any, T]):
        self.task = asyncio.ensure_future(work)
        self._waiting = 0

    @property
    def given_up(self) -> bool:
        """Whether there will be no result: from the moment on in which the last who waited has gone."""
        return self.task.cancelling() > 0 or self.task.cancelled()

    async def result(self) -> T:
        """What the work came to, or its error."""
        if self.task.done():
            return self.task.result()
        self._waiting += 1
        try:
            return await asyncio.shield(self.task)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self.task.cancel()  # nothing happens to one that is done
