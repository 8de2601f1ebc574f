"""Several policies on the same engines: each has a lane of its own into their router, with the adapter that it names
and figures of its own. Only an adapter differs between them, chosen per request (actors/engine_lora.py)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from actors.messages import GenRequest, GenResult
from actors.router import Counters, Replica, Router
from actors.runner import gather_or_cancel
from configs.sharing import adapter_of, apart


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


async def serve(run: Any, names: Iterable[str]) -> None:
    """Starts the engines of these policies of a run (loop.py), where they have not started yet: first of those whose
    engines others share. A learner that goes on gives shared engines its adapter, which no folder of theirs holds."""
    policies, system = run.config.policies, run.system
    names = [name for name in dict.fromkeys(names) if name in run.models]
    hosts = dict.fromkeys(policies[name].engine.share or name for name in names)
    for some in (hosts, names):
        await gather_or_cancel([
            system.serve(name, run.models[name], run.codecs[name], run.versions.get(name, 0))
            for name in some if name not in system.served
        ])  # fmt: skip
    for name, learner in run.learners.items():
        served = system.served.get(name)
        if served is not None and adapter_of(policies, name) and served.version and served.weights is None:
            await system.push(name, served.version, await learner.export_ref())
    await system.refresh()


def settle(run: Any, going_on: Iterable[str]) -> None:
    """When a run is taken up: engines can be shared as long as every adapter of theirs is that of a learner which goes
    on. Else (measuring a checkpoint, a stage that is over) they are merged, and each policy has engines of its own."""
    policies, going_on = run.config.policies, set(going_on)
    if any(adapter_of(policies, name) and run.versions.get(name) and name not in going_on for name in policies):
        run.config.policies = run.system.policies = apart(policies)
