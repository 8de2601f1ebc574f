"""Several policies on the same engines: each has a lane of its own into their router, with the adapter that it names
and figures of its own. Only an adapter differs between them, chosen per request (actors/engine/lora.py)."""

from __future__ import annotations

from actors.serving.messages import GenRequest, GenResult
from actors.serving.router import Counters, Replica, Router


class Lane:
    """What one policy sees of a router: a router. `adapter`: "" for the base as it is. `host`: whose router it is, so
    that its figures are the router's, restarts and all."""

    def __init__(self, router: Router, adapter: str, host: bool = False):
        self.router, self.adapter = router, adapter
        self.counters = router.counters if host else Counters()

    @property
    def replicas(self) -> list[Replica]:
        return self.router.replicas

    async def generate(self, request: GenRequest) -> GenResult:
        request.adapter = self.adapter
        return await self.router.generate(request, self.counters)

    def stop(self) -> None:
        """Ends the router; the lanes of others too, so the owner of the engines calls it."""
        self.router.stop()


