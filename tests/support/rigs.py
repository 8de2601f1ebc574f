"""Parts on a real Ray: an event loop that a plain test can wait on, and an end that leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from actors.system import System, start_ray
from configs.schema.run import ClusterConfig

ROOT = Path(__file__).resolve().parent.parent.parent
T = TypeVar("T")


class Rig:
    """A system and the event loop it lives on. `rig(awaitable)` waits, at most two minutes."""

    system: System

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()

    def __call__(self, awaitable: Awaitable[T]) -> T:
        async def bounded() -> T:
            return await asyncio.wait_for(awaitable, 120)

        return self.loop.run_until_complete(bounded())

    def stop(self) -> None:
        self.system.stop()
        self(asyncio.sleep(0.1))  # what was cancelled comes to its end
        self.loop.close()


R = TypeVar("R", bound=Rig)


@contextmanager
def rigged(make: Callable[[], R], actors: int) -> Iterator[R]:
    """A rig on a Ray with room for so many actors, whose workers find our modules; both are gone afterwards."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        start_ray(ClusterConfig(), actors=actors)
        try:
            rig = make()
            yield rig
            rig.stop()
        finally:
            ray.shutdown()
