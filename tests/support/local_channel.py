"""A channel to an engine in the process of the test, over a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from actors.serving.wire import ChannelHub, EngineChannel


def actor(engine: Any) -> Any:
    """The calls of an engine that a channel makes, as a handle has them."""
    return SimpleNamespace(**{name: SimpleNamespace(remote=getattr(engine, name)) for name in ("connect", "watch")})


@asynccontextmanager
async def local_channel(engine: Any) -> AsyncIterator[EngineChannel]:
    hub = ChannelHub("127.0.0.1")
    channel = EngineChannel(hub, actor(engine))
    await channel.connect()
    try:
        yield channel
    finally:
        channel.close()
        # An engine whose driver goes ends its process, and this one is the tests' too.
        unplugged = asyncio.Event()
        loop = asyncio.get_running_loop()
        engine._do(lambda: (engine._endpoint._disconnect(), loop.call_soon_threadsafe(unplugged.set)))
        await unplugged.wait()
        hub.close()
