"""System: starts Ray and the engines of every policy, keeps their weights current, and stops all that it started.

A learner puts weights into Ray's object store and engines read them there; the driver only passes the reference. It
keeps the latest reference of each policy, because a restarted engine loads the weights on disk and needs the
current ones before its first request.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import actors.engine.actor  # noqa: F401  registers "vllm"
from actors.concurrency import gather_or_cancel
from actors.players.base import AtTemperature, Player, Seated, UniformPlayer
from actors.players.chat import ChatCodec
from actors.players.engine_player import EnginePlayer
from actors.players.remote import RemotePlayer
from actors.serving.engine import ENGINES
from actors.serving.lane import Lane
from actors.serving.messages import EngineLost
from actors.serving.router import Replica, Router
from actors.serving.wire import ChannelHub, EngineChannel
from configs.policies import adapter_of, group_of, with_adapters
from configs.schema.run import ClusterConfig, EngineConfig, PolicyConfig
from protocols.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
REVIVE_SECONDS = 180.0


def start_ray(config: ClusterConfig, actors: int, store_bytes: int = 512 * 2**20) -> None:
    """Local Ray with an object store of `store_bytes`, or the running cluster at `config.address`.

    Local Ray gets at least `actors` CPU slots, even on fewer cores, because engines and learners mostly take turns.
    Call this before installing signal handlers: Ray replaces them.
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
    # "local": whatever RAY_ADDRESS says, and whatever Ray already runs on this machine.
    ray.init("local", num_cpus=max(cpus, actors), object_store_memory=store_bytes, **gpus, **quiet)
    # On few cores the driver yields to the engines (niceness 15, set by Ray): every policy waits for a delayed engine.
    os.setpriority(os.PRIO_PROCESS, 0, 19)


def cuda_offered() -> bool:
    """Whether Ray has GPUs, which is what `device: auto` resolves to."""
    import ray

    return bool(ray.cluster_resources().get("GPU", 0) > 0)


def on_gpu(engine: EngineConfig) -> bool:
    """Whether these engines run on GPUs in the connected cluster."""
    return engine.device == "cuda" or (engine.device == "auto" and cuda_offered())


def alone(engine: EngineConfig) -> EngineConfig:
    """The same engine without batching and prefix cache, so that the low bits of its numbers do not depend on other
    requests."""
    return replace(engine, max_num_seqs=1, extra={**engine.extra, "enable_prefix_caching": False})


@dataclass
class ServedPolicy:
    """A policy with running engines."""

    name: str
    config: PolicyConfig
    channels: list[EngineChannel]
    """One per engine; policies that share engines share the list."""
    router: Router | Lane
    player: EnginePlayer
    version: int = 0
    weights: Any = None
    """Ray reference to the latest pushed weights; None while the weights on disk are current."""
    sync_seconds: float = 0.0
    sync_bytes: int = 0
    drain_seconds: float = 0.0
    """Part of `sync_seconds` in which the slowest engine waited for running requests (`engine.swap: drain`)."""
    adapter: str = ""
    """Name of its adapter on shared engines; "" when it has none."""

    def update(self, channel: EngineChannel) -> Any:
        """Sends the latest weights to one engine; returns the Ray reference of its report
        (`Engine.update_weights`)."""
        return channel.engine.update_weights.remote(self.version, self.weights, *filter(None, [self.adapter]))

    def is_current(self, report: Mapping[str, Any]) -> bool:
        """Whether an engine with this status has the latest weights."""
        version = report["adapters"].get(self.adapter, 0) if self.adapter else report["version"]
        return bool(version == self.version)


class System:
    """The engines of a run. Policies of kind `uniform` and `remote` have none; the driver runs their players."""

    def __init__(self, policies: Mapping[str, PolicyConfig], seed: int, deterministic: bool = False):
        self.policies, self.seed, self.deterministic = policies, seed, deterministic
        self.served: dict[str, ServedPolicy] = {}
        self.remote: dict[str, RemotePlayer] = {}
        """One player per remote policy, because its budget covers the whole run."""
        self._hub: ChannelHub | None = None

    async def serve(
        self, name: str, model_dir: str, codec: ChatCodec, version: int = 0,
        config: PolicyConfig | None = None, seed: int | None = None,
    ) -> ServedPolicy:  # fmt: skip
        """Starts the engines of policy `name` on the weights in `model_dir`, of policy version `version`, and waits
        until they are connected. `config`: for a `name` that is not one of the run's policies. `seed`: of the first
        engine (default: the run's). Raises what the engine's constructor raises, and EngineUnreachable."""
        import ray

        config, first_seed = config or self.policies[name], self.seed if seed is None else seed
        if config.engine.share:
            host = self.served[config.engine.share]
            assert isinstance(host.router, Lane), "a policy that shares its engines has a lane itself"
            return self._register(name, config, host.channels, host.router.router, codec, version)
        if config.engine.kind not in ENGINES:
            raise UserError(f"policies.{name}.engine.kind: {ENGINES.unknown(config.engine.kind)}")
        adapter = adapter_of(self.policies, name)
        cuda = on_gpu(config.engine)
        place = {"num_cpus": 1, "num_gpus": config.engine.gpus * config.engine.tensor_parallel if cuda else 0}
        options = {"max_concurrency": 1000, "max_restarts": -1, "max_task_retries": 0}
        remote = ray.remote(ENGINES[config.engine.kind]).options(**options, **place)
        engine = alone(config.engine) if self.deterministic else config.engine
        if config.model.trust_remote_code:
            engine = replace(engine, extra={"trust_remote_code": True, **engine.extra})
        engine = with_adapters(self.policies, name, engine)
        if self._hub is None:
            self._hub = ChannelHub(ray.util.get_node_ip_address())
        engines = [
            remote.remote(name, model_dir, engine, 0 if adapter else version, first_seed + index)
            for index in range(config.engine.replicas)
        ]
        channels = [EngineChannel(self._hub, engine) for engine in engines]
        await gather_or_cancel([channel.connect() for channel in channels])
        router = Router(name, channels, lambda channel: self._revive(served, channel))
        served = self._register(name, config, channels, router, codec, version)
        return served

    def _register(
        self, name: str, config: PolicyConfig, channels: list[EngineChannel], router: Router, codec: ChatCodec,
        version: int,
    ) -> ServedPolicy:  # fmt: skip
        """Makes the player of a policy whose engines run."""
        adapter = adapter_of(self.policies, name)
        host = bool(group_of(self.policies, name))
        route = Lane(router, adapter, host) if host or config.engine.share else router
        memo_seed = f"{self.seed}/{name}/memo/{version}"
        player = EnginePlayer(route, codec, config.temperature, config.max_tokens, config.memo, memo_seed)
        served = ServedPolicy(name, config, channels, route, player, version, adapter=adapter)
        self.served[name] = served
        return served

    async def push(self, name: str, version: int, weights: Any) -> None:
        """Sends the weights behind the Ray reference `weights` to all live replicas of `name` and waits until they
        have loaded `version`. A dead replica receives them after its restart. Raises the ValueError of an engine
        that refuses them."""
        served = self.served[name]
        served.version, served.weights = version, weights
        start = time.monotonic()
        live = [replica for replica in served.router.replicas if replica.up]
        reports = await asyncio.gather(
            *(served.update(replica.channel) for replica in live), return_exceptions=True
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
        """Copies the pushed weights of `name` into the driver's ownership, for engines that die later. Call it
        before the learner ends, because Ray deletes a dead owner's objects."""
        import ray

        served = self.served[name]
        if served.weights is not None:
            served.weights = ray.put(await served.weights)

    async def refresh(self) -> None:
        """Pushes the current weights to engines that died and restarted unnoticed, while they had no requests."""
        for name, served in self.served.items():
            if served.weights is not None:
                calls = [replica.channel.engine.status.remote() for replica in served.router.replicas if replica.up]
                reports = await asyncio.gather(*calls, return_exceptions=True)
                stale = [r for r in reports if isinstance(r, BaseException) or not served.is_current(r)]
                if stale:
                    await self.push(name, served.version, served.weights)

    def _push_failed(self, served: ServedPolicy, replica: Replica, error: BaseException) -> None:
        from ray.exceptions import RayActorError

        if not isinstance(error, RayActorError):
            raise error
        replica.fail(error)

    async def _revive(self, served: ServedPolicy, channel: EngineChannel) -> None:
        """Waits for Ray to restart an engine, then loads the current weights of all policies that it serves. Raises
        EngineLost after REVIVE_SECONDS."""
        from ray.exceptions import ActorUnavailableError, RayActorError

        deadline = time.monotonic() + REVIVE_SECONDS
        while True:
            try:
                await channel.connect()
                sharing = [one for one in self.served.values() if one.channels is served.channels]
                pushed: dict[str, int] = {}
                while stale := [o for o in sharing if o.weights is not None and pushed.get(o.name) != o.version]:
                    pushed[stale[0].name] = stale[0].version
                    await stale[0].update(channel)
                return
            except (ActorUnavailableError, RayActorError) as error:
                if time.monotonic() > deadline:
                    raise EngineLost(f"engine of {served.name!r} did not come back: {error}") from error
                await asyncio.sleep(0.5)

    def players(self, roles: Mapping[str, str], temperature: float | None = None) -> dict[str, Seated]:
        """Role -> player, from role -> policy (served, uniform or remote). `temperature` overrides the policies'
        own."""
        players: dict[str, Player] = {role: self._player(policy) for role, policy in roles.items()}
        if temperature is not None:
            players = {role: AtTemperature(player, temperature) for role, player in players.items()}
        return {role: Seated(policy, players[role], self.deterministic) for role, policy in roles.items()}

    def _player(self, policy: str) -> Player:
        if self.policies[policy].kind == "uniform":
            return UniformPlayer(seed=self.seed)
        if self.policies[policy].kind == "remote":
            if policy not in self.remote:
                self.remote[policy] = RemotePlayer(policy, self.policies[policy])
            return self.remote[policy]
        return self.served[policy].player

    async def statuses(self) -> dict[str, list[dict[str, Any]]]:
        """Policy -> the status of each live engine (`Engine.status`)."""
        statuses: dict[str, list[dict[str, Any]]] = {}
        for name, served in self.served.items():
            live = [replica.channel.engine for replica in served.router.replicas if replica.up]
            statuses[name] = list(await asyncio.gather(*(engine.status.remote() for engine in live)))
        return statuses

    def retire(self, name: str) -> None:
        """Removes a policy and stops its engines, unless they belong to another policy."""
        import ray

        served = self.served.pop(name)
        if served.config.engine.share:
            return
        served.router.stop()
        for channel in served.channels:
            channel.close()
            ray.kill(channel.engine)

    def stop(self) -> None:
        """Stops all engines. The caller of `start_ray` stops Ray."""
        for name in list(self.served):
            self.retire(name)
        if self._hub is not None:
            self._hub.close()
            self._hub = None
