"""One policy's share of a router whose engines serve several policies, each with its own LoRA adapter."""

from __future__ import annotations

from actors.serving.messages import GenRequest, GenResult
from actors.serving.router import Counters, Replica, Router


class Lane:
    """Has the interface of a Router, adds the policy's adapter to each request and counts the policy's requests.

    `adapter`: name of the adapter, "" for the base model. `host`: whether the policy owns the engines; its counters
    are then the router's own, which include engine restarts.
    """

    def __init__(self, router: Router, adapter: str, host: bool = False):
        self.router, self.adapter = router, adapter
        self.counters = router.counters if host else Counters()

    @property
    def replicas(self) -> list[Replica]:
        return self.router.replicas

    async def generate(self, request: GenRequest) -> GenResult:
        """As `Router.generate`."""
        request.adapter = self.adapter
        return await self.router.generate(request, self.counters)

    def stop(self) -> None:
        """Stops the router, for all policies that share it."""
        self.router.stop()
