"""System: starts Ray and the engines of every policy, keeps weights current, and ends everything it started.

A learner's weights travel learner -> Ray's object store -> engines; the driver only passes the reference on.
The last reference of each policy is kept: a restarted engine has the weights of the disk, so it is given the
current ones before its first token.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from actors.concurrency import gather_or_cancel
from actors.players.base import AtTemperature, Seated, UniformPlayer
from actors.players.chat import ChatCodec
from actors.players.engine_player import EnginePlayer
from actors.players.remote import RemotePlayer
from actors.serving.lane import Lane
from actors.serving.messages import EngineLost
from actors.serving.router import Router
from actors.serving.wire import Exchange, Line
from configs.policies import adapter_of, group_of, with_adapters
from configs.schema.run import ClusterConfig, EngineConfig, PolicyConfig

ROOT = Path(__file__).resolve().parent.parent
REVIVE_SECONDS = 180.0


def start_ray(config: ClusterConfig, actors: int) -> None:
    """Local Ray, or the running cluster at `config.address`.

    Locally an actor's CPU is a slot, not a core: a laptop's two cores hold engines and learners that mostly
    take turns, so at least `actors` slots are offered. Call before installing signal handlers: Ray replaces
    them.
    """
    import ray

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    if config.address:
        excludes = [".git", ".venv", "runs", "docs", "**/__pycache__"]
        environment = {"working_dir": str(ROOT), "excludes": excludes}
        ray.init(address=config.address, runtime_env=environment, log_to_driver=False, logging_level="ERROR")
        return
    cpus = config.cpus or os.cpu_count() or 1
    gpus = {} if config.gpus < 0 else {"num_gpus": config.gpus}
    ray.init(num_cpus=max(cpus, actors), object_store_memory=512 * 2**20, **gpus, **quiet)
    # Where cores are few, the driver gives way to engines, to which Ray gives 15: whatever takes a core from an engine
    # makes everybody wait.
    os.setpriority(os.PRIO_PROCESS, 0, 19)


def cuda_offered() -> bool:
    """Whether Ray has GPUs to place on: what `device: auto` resolves to."""
    import ray

    return ray.cluster_resources().get("GPU", 0) > 0


def on_gpu(engine: EngineConfig) -> bool:
    """Whether the engines of a policy run on GPUs, in the cluster at hand."""
    return engine.device == "cuda" or (engine.device == "auto" and cuda_offered())


def alone(engine: EngineConfig) -> EngineConfig:
    """An engine that computes each sequence by itself and remembers nothing between them, so that the low bits of its
    numbers do not depend on what else is asked."""
    return replace(engine, max_num_seqs=1, extra={**engine.extra, "enable_prefix_caching": False})


@dataclass
class ServedPolicy:
    """A policy that answers requests: its engines, router, codec and player."""

    name: str
    config: PolicyConfig
    lines: list[Line]
    """Ways to its engines."""
    router: Router | Lane
    player: EnginePlayer
    version: int = 0
    weights: Any = None
    """Reference to the newest pushed weights; None while those of the disk are current."""
    sync_seconds: float = 0.0
    sync_bytes: int = 0
    drain_seconds: float = 0.0
    """Of `sync_seconds`: how long the slowest engine waited for requests under way (`engine.swap: drain`)."""
    details: dict[str, Any] = field(default_factory=dict)
    adapter: str = ""
    """What engines that are shared know its adapter by."""

    def update(self, line: Line) -> Any:
        """Gives an engine the newest weights; awaits its report."""
        return line.engine.update_weights.remote(self.version, self.weights, *filter(None, [self.adapter]))

    def stands(self, report: Mapping[str, Any]) -> bool:
        """Whether an engine with this status has them."""
        version = report["adapters"].get(self.adapter, 0) if self.adapter else report["version"]
        return bool(version == self.version)


class System:
    """The engines of a run. `uniform` and `remote` policies have none: the driver plays or asks for them."""

    def __init__(self, policies: Mapping[str, PolicyConfig], seed: int, deterministic: bool = False):
        self.policies, self.seed, self.deterministic = policies, seed, deterministic
        self.served: dict[str, ServedPolicy] = {}
        self.remote: dict[str, RemotePlayer] = {}
        """One player per remote policy: its budget is that of the whole run."""
        self._exchange: Exchange | None = None

    async def serve(
        self, name: str, model_dir: str, codec: ChatCodec, version: int = 0,
        config: PolicyConfig | None = None, seed: int | None = None,
    ) -> ServedPolicy:  # fmt: skip
        """Starts the engines of policy `name` on the weights in `model_dir` and waits until they answer.
        `config`: where `name` is none of the run's policies. `seed`: of its first engine, in place of the run's."""
        import ray

        from actors.engine.actor import Engine

        config, first_seed = config or self.policies[name], self.seed if seed is None else seed
        if config.engine.share:
            return self._join(name, codec, version, config)
        adapter = adapter_of(self.policies, name)
        cuda = on_gpu(config.engine)
        place = {"num_cpus": 1, "num_gpus": config.engine.gpus * config.engine.tensor_parallel if cuda else 0}
        remote = ray.remote(Engine).options(max_concurrency=1000, max_restarts=-1, max_task_retries=0, **place)
        engine = alone(config.engine) if self.deterministic else config.engine
        if config.model.trust_remote_code:
            engine = replace(engine, extra={"trust_remote_code": True, **engine.extra})
        engine = with_adapters(self.policies, name, engine)
        if self._exchange is None:
            self._exchange = Exchange(ray.util.get_node_ip_address())
        engines = [
            remote.remote(name, model_dir, engine, 0 if adapter else version, first_seed + index)
            for index in range(config.engine.replicas)
        ]
        lines = [Line(self._exchange, engine) for engine in engines]
        details = await gather_or_cancel([line.connect() for line in lines])
        router = Router(name, lines, lambda line: self._revive(served, line))
        served = self._seat(name, config, lines, router, codec, version, details[0])
        return served

    def _join(self, name: str, codec: ChatCodec, version: int, config: PolicyConfig) -> ServedPolicy:
        """A policy on the engines of another, which have started."""
        host = self.served[config.engine.share]
        assert isinstance(host.router, Lane), "whose engines are shared has a lane like any other"
        return self._seat(name, config, host.lines, host.router.router, codec, version, host.details)

    def _seat(
        self, name: str, config: PolicyConfig, lines: list[Line], router: Router, codec: ChatCodec, version: int,
        details: dict[str, Any],
    ) -> ServedPolicy:  # fmt: skip
        """A player for a policy whose engines have started."""
        adapter = adapter_of(self.policies, name)
        host = bool(group_of(self.policies, name))
        way = Lane(router, adapter, host) if host or config.engine.share else router
        memo_seed = f"{self.seed}/{name}/memo/{version}"
        player = EnginePlayer(way, codec, config.temperature, config.max_tokens, config.memo, memo_seed)
        served = ServedPolicy(name, config, lines, way, player, version, details=details, adapter=adapter)
        self.served[name] = served
        return served

    async def push(self, name: str, version: int, weights: Any) -> None:
        """Gives every live replica of `name` the weights behind the reference `weights`; returns when all have
        acknowledged `version`. Replicas that are down get them when they are revived."""
        served = self.served[name]
        served.version, served.weights = version, weights
        start = time.monotonic()
        live = [replica for replica in served.router.replicas if replica.up]
        reports = await asyncio.gather(
            *(served.update(replica.line) for replica in live), return_exceptions=True
        )
        served.player.forget()
        served.drain_seconds = 0.0
        for replica, report in zip(live, reports):
            if isinstance(report, BaseException):
                self._push_failed(served, replica, report)
            else:
                served.sync_bytes = int(report["bytes"])
                served.drain_seconds = max(served.drain_seconds, report["drain_s"])
        served.sync_seconds = time.monotonic() - start

    async def keep(self, name: str) -> None:
        """Before the learner of `name` ends, which owns what it pushed and takes it along: the driver takes it over,
        for engines that die later."""
        import ray

        served = self.served[name]
        if served.weights is not None:
            served.weights = ray.put(await served.weights)

    async def refresh(self) -> None:
        """Brings engines to the current version that died unnoticed, while nothing was asked of them: Ray has
        restarted them with the weights of the disk."""
        for name, served in self.served.items():
            if served.weights is not None:
                asked = [replica.line.engine.status.remote() for replica in served.router.replicas if replica.up]
                reports = await asyncio.gather(*asked, return_exceptions=True)
                stale = [r for r in reports if isinstance(r, BaseException) or not served.stands(r)]
                if stale:
                    await self.push(name, served.version, served.weights)

    def _push_failed(self, served: ServedPolicy, replica: Any, error: BaseException) -> None:
        from ray.exceptions import RayActorError

        if not isinstance(error, RayActorError):
            raise error
        replica.fail(error)

    async def _revive(self, served: ServedPolicy, line: Line) -> None:
        """Waits for Ray to restart the actor, then brings it to the current version of all whom it serves."""
        from ray.exceptions import ActorUnavailableError, RayActorError

        deadline = time.monotonic() + REVIVE_SECONDS
        while True:
            try:
                await line.connect()
                there = [one for one in self.served.values() if one.lines is served.lines]
                pushed: dict[str, int] = {}
                while stale := [o for o in there if o.weights is not None and pushed.get(o.name) != o.version]:
                    pushed[stale[0].name] = stale[0].version
                    await stale[0].update(line)
                return
            except (ActorUnavailableError, RayActorError) as error:
                if time.monotonic() > deadline:
                    raise EngineLost(f"engine of {served.name!r} did not come back: {error}") from error
                await asyncio.sleep(0.5)

    def players(self, roles: Mapping[str, str], temperature: float | None = None) -> dict[str, Seated]:
        """role -> who plays it, for roles bound to served, uniform or remote policies. `temperature`: of all."""
        players = {role: self._player(policy) for role, policy in roles.items()}
        if temperature is not None:
            players = {role: AtTemperature(player, temperature) for role, player in players.items()}
        return {role: Seated(policy, players[role], self.deterministic) for role, policy in roles.items()}

    def _player(self, policy: str) -> Any:
        if self.policies[policy].kind == "uniform":
            return UniformPlayer(seed=self.seed)
        if self.policies[policy].kind == "remote":
            if policy not in self.remote:
                self.remote[policy] = RemotePlayer(policy, self.policies[policy])
            return self.remote[policy]
        return self.served[policy].player

    async def statuses(self) -> dict[str, list[dict[str, Any]]]:
        """Every live engine's own figures."""
        found: dict[str, list[dict[str, Any]]] = {}
        for name, served in self.served.items():
            live = [replica.line.engine for replica in served.router.replicas if replica.up]
            found[name] = list(await asyncio.gather(*(engine.status.remote() for engine in live)))
        return found

    def retire(self, name: str) -> None:
        """Ends the engines of a policy that is not needed any more, unless they are another's."""
        import ray

        served = self.served.pop(name)
        if served.config.engine.share:
            return
        served.router.stop()
        for line in served.lines:
            line.close()
            ray.kill(line.engine)

    def stop(self) -> None:
        """Ends all engines. Ray itself is ended by whoever started it."""
        for name in list(self.served):
            self.retire(name)
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None
