"""StageLeague: what opponents add to a stage. Joins the league (actors), engines for opponent checkpoints, and
learners.

    begin ─► snapshots of the weights so far, engines, who is held
    after each step ─► results into the league; a snapshot when due; other opponent checkpoints take the engines
    end ─► a snapshot of the result          later: cross_play, and arms in which opponent checkpoints have a role

Opponent checkpoints are kept as folders, which outlive learners and interruptions. They reach their engines
through Ray's object store like any other weights, but out of the folder: the driver reads it.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from actors.concurrency import gather_or_cancel
from actors.evaluation.arms import heldout_tasks
from actors.league.opponents import Opponents, OpponentSlot
from actors.league.pool import Snapshot, meetings
from actors.league.ratings import Results, table
from actors.players.base import AtTemperature, PastPlayer, Seated
from actors.rollout.loop import play_all
from configs.policies import PAST, as_served, rules_of
from configs.schema.run import ArmConfig, StageConfig
from driver.run import Run
from learners.weights import read_folder
from protocols.types import Episode, Task


class StageLeague:
    """The opponents of one stage, from its first step to its last. Without any in the config it does nothing."""

    def __init__(self, run: Run, name: str, stage: StageConfig):
        self.run, self.name, self.settings = run, name, stage.opponents
        self.learners = run.trained_in(stage)
        self.steps = stage.steps
        self.opponents: Opponents | None = None

    async def begin(self, step: int) -> None:
        """Once learners run. A stage that starts (not one that is resumed) starts with a snapshot."""
        if self.settings is None:
            return
        run, settings = self.run, self.settings
        past_of = run.config.policies[settings.past].of if rules_of(settings) else []
        slots = await start_slots(run, settings.past) if past_of else []
        await run.serve(settings.fixed)
        fixed = run.system.players({name: name for name in settings.fixed})
        self.opponents = Opponents(
            self.name, settings, run.league, slots, fixed, self.learners, past_of, run.config.seed
        )
        self.past_of = past_of
        for policy in past_of if step == 0 else ():
            await snapshot(run, policy, settings.keep)
        if slots:
            await self.opponents.redraw(step)

    @asynccontextmanager
    async def seating(self, group: int) -> AsyncIterator[dict[str, Seated]]:
        """seat -> its opponent in the plays of a group (`Rollouts.seating`)."""
        if self.opponents is None:
            yield {}
            return
        async with self.opponents.seating(group) as seats:
            yield seats

    async def after(self, step: int, plays: Sequence[Sequence[Episode]]) -> None:
        """When `step` steps have been learned and the engines have the result, before the next plays begin. Waits for
        plays under way against opponent checkpoints that are exchanged."""
        if self.settings is None or self.opponents is None:
            return
        opponents, league = self.opponents, self.run.league
        names = {one.name for one in opponents.candidates} | set(self.settings.fixed)
        for episode in (episode for play in plays for episode in play):
            for learner, opponent, score in meetings(episode, self.learners, names):
                league.record(learner, opponent, score)
        self.run.log(f"league/{self.name}", step, self._metrics(sorted(names)))
        due = step % self.settings.every == 0
        for policy in self.past_of if due else ():
            await snapshot(self.run, policy, self.settings.keep)
        if opponents.slots and step < self.steps and (due or step % self.settings.redraw_every == 0):
            await opponents.redraw(step)

    def _metrics(self, names: Sequence[str]) -> dict[str, float]:
        """The learners' recent score against everybody whom they may meet: one half is even."""
        rates = {
            f"{learner}/{name}": self.run.league.win_rate(learner, name) for learner in self.learners for name in names
        }
        metrics = {f"win_rate/{pair}": rate for pair, rate in rates.items()}
        metrics |= {"win_rate_mean": sum(rates.values()) / len(rates), "win_rate_lowest": min(rates.values())}
        return metrics | {"opponent_checkpoints": float(len(self.run.league.pool))}

    async def end(self) -> None:
        """Before learners are dismissed: what they ended as is an opponent checkpoint too."""
        if self.settings is not None:
            for policy in self.past_of:
                await snapshot(self.run, policy, self.settings.keep)


async def snapshot(run: Run, policy: str, keep: int) -> None:
    """The weights of a policy as they are now become an opponent checkpoint, unless they are one already."""
    version, own = run.versions.get(policy, 0), run.league.of([policy])
    if own and own[-1].version >= version:
        return
    folder = Path(run.models[policy])
    if policy in run.learners:
        folder = run.dir / "models" / policy / f"past-{version}"
        await run.learners[policy].save_hf(str(folder))
    run.league.add(Snapshot(policy, version, os.path.relpath(folder, run.dir)), keep)


async def start_slots(run: Run, past: str) -> list[OpponentSlot]:
    """The engines of a policy of kind past, started where they have not been: each is served under a name of its own,
    because each holds weights of its own."""
    policies = run.config.policies
    origin, engine = policies[past].of[0], policies[past].engine
    config = replace(as_served(policies, policies[past]), engine=replace(engine, replicas=1))
    names = [f"{past}.{index}" for index in range(engine.replicas)]
    await gather_or_cancel([
        # Engines of equal seeds would draw alike, and an opponent checkpoint must not know what the learner draws.
        run.system.serve(name, run.models[origin], run.codecs[origin], config=config,
                         seed=(run.config.seed + zlib.crc32(name.encode())) % 2**31)
        for name in names if name not in run.system.served
    ])  # fmt: skip
    return [OpponentSlot(_loader(run, name)) for name in names]


def _loader(run: Run, slot: str):  # type: ignore[no-untyped-def]
    async def load(one: Snapshot) -> Seated:
        import ray

        served = run.system.served[slot]
        buckets = await asyncio.to_thread(read_folder, run.dir / one.folder)
        # Engines take no older version than they have, so theirs counts exchanges.
        await run.system.push(slot, served.version + 1, ray.put(buckets))
        return Seated(one.name, PastPlayer(served.player, one.version), run.config.deterministic)

    return load


async def cross_play(run: Run, seed: int) -> None:
    """Every opponent checkpoint of a stage against every other on the same held-out tasks, each half of the plays
    in either seat: what ratings and the payoff matrix rest on. Pairs that have met stand (a resumed run)."""
    name = run.config.eval.cross_play
    if not name:
        return
    stage = run.config.stages[name]
    assert stage.opponents is not None, "checked: a stage with opponents"
    past = stage.opponents.past
    await run.serve(stage.roles.values())
    one, other = (await start_slots(run, past))[:2]
    pool = run.league.of(run.config.policies[past].of)
    plays = max(1, run.config.eval.cross_play_episodes // 2)
    tasks = heldout_tasks(run.source, run.protocols[stage.protocol], plays, seed)
    for index, first in enumerate(pool):
        for second in pool[:index]:
            if not run.league.results.met(first.name, second.name):
                await one.hold(first)
                await other.hold(second)
                await run.or_stop(_match(run, stage, tasks, (one, other), seed))
    found = table(run.league.results)
    metrics = {f"rating/{player}": rating["points"] for player, rating in found["ratings"].items()}
    metrics |= {"cycles": float(len(found["cycles"])), "cyclic_share": found["cyclic_share"]}
    run.tracker.log("league/cross_play", run.updates, metrics)
    run.tracker.screen.note(f"league: {len(pool)} opponent checkpoints, {len(found['cycles'])} cycles among them")


async def _match(
    run: Run, stage: StageConfig, tasks: Sequence[Task], pair: tuple[OpponentSlot, OpponentSlot], seed: int
) -> None:
    """Plays of one pair; both orders meet the same tasks and draws. Noted together or, when stopped, not at all."""
    assert stage.opponents is not None
    players, found = run.system.players(stage.roles), []
    for order in (pair, pair[::-1]):
        async with order[0].playing() as first, order[1].playing() as second:
            seats = dict(zip(stage.opponents.seats, (first, second)))
            name = f"cross/{first.policy}/{second.policy}"
            plays = await play_all(run.protocols[stage.protocol], tasks, players, name, seed, seats=seats)
        for play in plays:
            run.ledger.commit(play[0].id, play, train=False)
            cluster = run.source.cluster(play[0].task)
            for episode in play:
                found += [(*met, cluster) for met in meetings(episode, [pair[0].held], [pair[1].held])]
    for entry in found:
        run.league.results.add(*entry)


def plays_past(run: Run, arm: ArmConfig) -> bool:
    """Whether opponent checkpoints have a role in an arm."""
    return any(run.config.policies[policy].kind == PAST for policy in arm.roles.values())


async def arm_with_past(run: Run, name: str, arm: ArmConfig, tasks: Sequence[Task], seed: int) -> list[list[Episode]]:
    """An arm in which opponent checkpoints have a role: each plays an equal share of the tasks, so the arm
    measures their
    average. Drawing one opponent checkpoint per play is playing the average of their strategies (Kuhn 1953)."""
    plays: list[list[Episode]] = []
    async for share, shares, players in each_past(run, arm):
        only = range(share, len(tasks), shares)
        plays += await play_all(run.protocols[arm.protocol], tasks, players, name, seed, only=only)
    return plays


async def each_past(run: Run, arm: ArmConfig) -> AsyncIterator[tuple[int, int, dict[str, Seated]]]:
    """(number, of how many, role -> who plays it), with one opponent checkpoint after another in its role. Between
    stages only: nobody may be playing against opponent checkpoints."""
    past = [policy for policy in dict.fromkeys(arm.roles.values()) if run.config.policies[policy].kind == PAST]
    slots = {policy: (await start_slots(run, policy))[0] for policy in past}
    for learner in (learner for policy in past for learner in run.config.policies[policy].of):
        if not run.league.of([learner]):
            await snapshot(run, learner, 1)
    pools = {policy: run.league.of(run.config.policies[policy].of) for policy in past}
    bound = {role: policy for role, policy in arm.roles.items() if policy not in past}
    shares = max(map(len, pools.values()))
    for share in range(shares):
        players = run.system.players(bound, arm.temperature)
        for policy, slot in slots.items():
            await slot.hold(pools[policy][share % len(pools[policy])])
        for role, policy in arm.roles.items():
            if policy in slots:
                async with slots[policy].playing() as seated:
                    player = seated.player
                    if arm.temperature is not None:
                        player = AtTemperature(player, arm.temperature)
                    players[role] = replace(seated, player=player)
        yield share, shares, players


def forget_results(run: Run) -> None:
    """Before everything is measured again."""
    run.league.results = Results()
