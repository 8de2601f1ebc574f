"""Work that several await: done once, and given up when nobody awaits it any more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
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


async def gather_or_cancel(awaitables: list[Awaitable[Any]]) -> list[Any]:
    """asyncio.gather that leaves nothing running: when one fails, the others are cancelled and awaited."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def unless(event: asyncio.Event, awaitable: Awaitable[Any], error: type[Exception]) -> Any:
    """Awaits, but raises `error` as soon as `event` is set, even when the result is there: a busy loop would never
    stop otherwise."""
    task, stopping = asyncio.ensure_future(awaitable), asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
        if event.is_set():
            raise error
        return task.result()
    finally:
        for one in (task, stopping):
            one.cancel()
        await asyncio.gather(task, stopping, return_exceptions=True)
