"""Stand-ins for engines: they answer, die and come back when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from ray.exceptions import RayActorError

from actors.serving.messages import GenRequest, GenResult
from actors.serving.router import Router


class FakeEngine:
    """The channel to an engine that answers when the test says so."""

    def __init__(self) -> None:
        self.batches: list[list[GenRequest]] = []
        self.open: dict[int, GenRequest] = {}
        self.collecting = 0
        self.done: list[GenResult] = []
        self._dead = False
        self._news = asyncio.Event()

    def submit(self, batch: list[GenRequest]) -> None:
        self.batches.append(batch)
        if not self._dead:
            self.open.update({request.id: request for request in batch})

    async def collect(self) -> list[GenResult]:
        self.collecting += 1
        assert self.collecting == 1, "two long polls at once: each would take the other's results"
        try:
            while not self.done and not self._dead:
                self._news.clear()
                await self._news.wait()
            if self._dead:
                raise RayActorError()
            done, self.done = self.done, []
            return done
        finally:
            self.collecting -= 1

    def abort(self, ids: list[int]) -> None:
        """It runs them to their end."""

    def answer(self, *ids: int, error: str = "") -> None:
        for id in ids or tuple(self.open):
            request = self.open.pop(id)
            result = GenResult(id, [] if error else list(request.prompt_ids), [], [])
            if error:
                result.finish, result.error = "error", error
            self.done.append(result)
        self._news.set()

    def die(self) -> None:
        self._dead, self.done, self.open = True, [], {}
        self._news.set()

    def restart(self) -> None:
        self._dead = False


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def ask(router: Router, *prompts: int) -> list[asyncio.Task[GenResult]]:
    """One request per prompt, all made in this tick of the loop. The reply repeats the prompt."""
    return [asyncio.ensure_future(router.generate(GenRequest(0, [prompt]))) for prompt in prompts]


def ask_for(router: Router, play: str, *prompts: int) -> list[asyncio.Task[GenResult]]:
    requests = [GenRequest(0, [prompt], play=play) for prompt in prompts]
    return [asyncio.ensure_future(router.generate(request)) for request in requests]


async def replies(tasks: list[asyncio.Task[GenResult]]) -> list[int]:
    return [result.output_ids[0] for result in await asyncio.wait_for(asyncio.gather(*tasks), 5)]


def prompts(batch: list[GenRequest]) -> list[int]:
    return [request.prompt_ids[0] for request in batch]


class Revival:
    """`revive` as the system passes it: holds until the test lets go, then the engine is back."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.go = asyncio.Event()

    async def __call__(self, channel: Any) -> None:
        self.asked.append(channel)
        await self.go.wait()
        channel.restart()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(), 20)
        assert asyncio.all_tasks() == {asyncio.current_task()}, "the router left something running"

    asyncio.run(bounded())
