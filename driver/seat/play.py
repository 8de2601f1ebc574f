"""`launch.py play`: a person takes a seat; the others are remote policies of the config, or pick at random.

Recorded in RUN/episodes.jsonl under the policy `human`, a name that no policy of a config may have: nothing here is
ever trained on.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actors.players.base import Seated, UniformPlayer
from actors.players.remote import RemotePlayer
from actors.rollout.ledger import Ledger
from actors.rollout.runner import run_play
from configs.checks.remote import HUMAN
from configs.load import Loaded, load_protocol, load_task_source
from configs.reading.raw import read_raw
from driver.seat.human import HumanPlayer, Left, Lines
from protocols.base import Protocol
from protocols.contract.drive import Scripted, drive
from protocols.contract.tasks import synthetic
from protocols.errors import UserError
from protocols.types import Episode, Task
from reporting import transcript


class CannotPlay(UserError):
    """The play that was asked for is not possible."""


@dataclass(frozen=True)
class Wish:
    """A task of one's own; parts that are None or empty are made up."""

    question: str | None = None
    choices: tuple[str, ...] = ()
    answer: str | None = None

    def __bool__(self) -> bool:
        return bool(self.question or self.choices or self.answer)


def play(name: str, loaded: Loaded | None, seats: tuple[str, ...], wish: Wish, folder: Path) -> int:
    """One play. Returns the exit code: 0, or 130 where the person left. Raises `CannotPlay`."""
    protocol, raw = _protocol(name, loaded)
    for seat in seats:
        if seat not in protocol.roles():
            raise CannotPlay(
                f"there is no seat {seat!r} in {protocol.name}; valid: {', '.join(protocol.roles())}"
            )
    players = others(protocol, name, loaded)
    _check_others(protocol, raw, seats, players)
    with closing(Ledger(folder)) as ledger:
        number = ledger.counts["roots"] + 1
        id, task = f"{HUMAN}-{number}", _task(protocol, raw, loaded, wish, number)
        beside = {seat: players[role].policy for seat, role in protocol.roles().items() if seat not in seats}
        print(
            f"You are {', '.join(seats)}. "
            + ", ".join(f"{seat}: {policy}" for seat, policy in beside.items())
        )
        print("Ctrl-D or Ctrl-C leaves; an unfinished play is not recorded.")
        try:
            episodes = asyncio.run(_run(protocol, task, number, players, seats, id))
        except Left:
            print("\nleft; nothing is recorded", file=sys.stderr)
            return 130
        ledger.commit(id, episodes, train=False)
    print(_ending(episodes[0]))
    print(f"recorded: python launch.py replay {folder} {id}")
    return 0


async def _run(
    protocol: Protocol, task: Task, seed: int, players: Mapping[str, Seated], seats: tuple[str, ...], id: str
) -> list[Episode]:
    def show(text: str) -> None:
        print(text, flush=True)

    person = Seated(HUMAN, HumanPlayer(Lines(sys.stdin.fileno()), show))
    meta = {"human": ", ".join(seats)}
    return await run_play(protocol, task, seed, players, id, meta=meta, seats=dict.fromkeys(seats, person))


def _protocol(name: str, loaded: Loaded | None) -> tuple[Protocol, Mapping[str, Any]]:
    if loaded is not None and name in loaded.protocols:
        return loaded.protocols[name], loaded.config.protocols[name]
    if not name.endswith((".yaml", ".yml")):
        known = ", ".join(loaded.protocols) if loaded else ""
        there = f"; the config has: {known}" if known else ""
        raise CannotPlay(f"there is no protocol {name!r}: name a YAML file{there}")
    return load_protocol(name), read_raw(Path(name))


def others(protocol: Protocol, name: str, loaded: Loaded | None) -> dict[str, Seated]:
    """role -> a remote policy, where the config's first stage or arm of this protocol has one; else chance."""
    players = {role: Seated("uniform", UniformPlayer()) for role in protocol.roles().values()}
    if loaded is None:
        return players
    config = loaded.config
    names = {name, *(key for key, entry in loaded.protocols.items() if entry == protocol)}
    bindings = [(stage.protocol, stage.roles) for stage in config.stages.values()]
    bindings += [(arm.protocol, arm.roles) for arm in config.eval.arms.values()]
    bound = next((roles for protocol_name, roles in bindings if protocol_name in names), {})
    remote: dict[str, RemotePlayer] = {}
    for role, policy in bound.items():
        if config.policies[policy].kind == "remote" and role in players:
            if policy not in remote:
                remote[policy] = RemotePlayer(policy, config.policies[policy])
            players[role] = Seated(policy, remote[policy])
    return players


def _check_others(
    protocol: Protocol, raw: Mapping[str, Any], seats: tuple[str, ...], players: Mapping[str, Seated]
) -> None:
    """Whoever picks at random cannot be asked for free text. Found by a dry play."""
    try:
        requests = drive(protocol, synthetic(raw, 0), 0, Scripted(0)).requests()
    except Exception as error:  # whatever a kind of one's own may raise
        print(f"Not checked who can answer what ({type(error).__name__}: {error}); it shows while playing.")
        return
    chance = {
        request.seat
        for request in requests
        if not request.choices and players[request.role].policy == "uniform"
    }
    for seat in sorted(chance - {*seats}):
        role = protocol.roles()[seat]
        raise CannotPlay(
            f"seat {seat!r} is asked for free text, which nobody could write: take it too (--as {seat}), or bind role "
            f"{role!r} to a remote policy in a config (--config)"
        )


def _task(protocol: Protocol, raw: Mapping[str, Any], loaded: Loaded | None, wish: Wish, number: int) -> Task:
    if loaded is not None and not wish:
        from actors.rollout.loop import training_task

        return training_task(
            load_task_source(loaded.config.tasks), protocol, random.Random(f"human/{number}")
        )
    task = synthetic(raw, number, evidence=8)
    if not wish:
        print("No --config and no --question: the task is made up, its words mean nothing.")
        return task
    choices = wish.choices or task.choices
    if wish.answer is not None and wish.choices and wish.answer not in choices:
        raise CannotPlay(f"--answer {wish.answer!r} is none of the choices: {', '.join(choices)}")
    answer = wish.answer if wish.answer is not None else None if wish.choices else task.answer
    return replace(task, question=wish.question or task.question, choices=choices, answer=answer)


def _ending(episode: Episode) -> str:
    """What came out, now that everybody may know."""
    outcome, lines = episode.outcome, [""]
    lines += [
        f"{j.seat} believes: {transcript.belief(j, episode.task.choices)}" for j in outcome.judgments[-1:]
    ]
    if episode.task.answer is not None:
        lines.append(f"right answer: {episode.task.answer}")
    if outcome.score is not None:
        lines.append(f"score: {outcome.score:g}")
    totals: dict[str, float] = {}
    for reward in outcome.rewards:
        totals[reward.seat] = totals.get(reward.seat, 0.0) + reward.value
    lines += (
        [f"rewards: {', '.join(f'{seat} {value:+.2f}' for seat, value in totals.items())}"] if totals else []
    )
    lines += [f"invalid: {outcome.reason}"] if outcome.status != "ok" else []
    return transcript.printable("\n".join(lines))
