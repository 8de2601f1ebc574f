"""Exact NashConv of the policies that play a game: their odds in every information state, read and not sampled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from actors.concurrency import gather_or_cancel
from actors.players.base import AtTemperature, PastPlayer, Seated, UniformPlayer
from actors.players.engine_player import EnginePlayer
from protocols.kinds.game import GamePlay
from protocols.types import Task, TurnRequest
from tasks.kinds.spiel import SpielGame, SpielState


async def nash_conv(protocol: GamePlay, task: Task, players: Mapping[str, Seated]) -> float:
    """What both seats together could gain by best responses, in the game's own units: 0 at an equilibrium.

    `players`: role -> who plays it. What each policy is asked is what plays ask it.
    """
    assert isinstance(task.game, SpielGame), "checked by configs: only these have an exact value"
    return task.game.nash_conv(await strategy(protocol, task, players))


async def strategy(protocol: GamePlay, task: Task, players: Mapping[str, Seated]) -> dict[str, dict[str, float]]:
    """Information state, by OpenSpiel's name -> move -> how likely whoever moves there makes it."""
    game, seats = task.game, list(protocol.seats)
    assert isinstance(game, SpielGame), "checked by configs: only these have an exact value"

    async def odds(position: SpielState, player: int) -> dict[str, float]:
        seat = seats[player]
        request = protocol.request(task, position, player, seat)
        probs = await probabilities(players[protocol.seats[seat]].player, request)
        return dict(zip(request.choices, probs, strict=True))

    states = game.information_states()
    found = await gather_or_cancel([odds(*place) for place in states.values()])
    return dict(zip(states, found))


def average_nash_conv(task: Task, strategies: Sequence[Mapping[str, Mapping[str, float]]]) -> float:
    """That of drawing one of these strategies for each play, all alike."""
    game = task.game
    assert isinstance(game, SpielGame), "checked by configs: only these have an exact value"
    paths = {name: game.own_path(*place) for name, place in game.information_states().items()}
    return game.nash_conv(average_strategy(strategies, paths))


async def probabilities(player: Any, request: TurnRequest) -> tuple[float, ...]:
    """How likely a player makes each legal move."""
    if isinstance(player, AtTemperature):
        request, player = replace(request, temperature=player.temperature), player.player
    if isinstance(player, PastPlayer):
        player = player.player
    if isinstance(player, EnginePlayer):
        return await player.probabilities(request)
    assert isinstance(player, UniformPlayer), f"checked by configs: {type(player).__name__} cannot be read"
    return (await player(request, ())).probs


def curve_summary(points: Mapping[str, float]) -> dict[str, float]:
    """Of a curve, policy updates -> value: the last value, the mean over the last quarter of the updates, and the
    number of points."""
    steps = {int(updates): value for updates, value in points.items()}
    end = max(steps)
    late = [value for updates, value in steps.items() if updates >= 0.75 * end]
    return {"last": steps[end], "last_quarter": sum(late) / len(late), "points": len(steps)}


Strategy = Mapping[str, Mapping[str, float]]
"""What a player knows (an information state) -> move -> its chance there."""


def average_strategy(
    strategies: Sequence[Strategy], paths: Mapping[str, Sequence[tuple[str, str]]]
) -> dict[str, dict[str, float]]:
    """The strategy that is worth the same as drawing one of `strategies` for each play, against anybody (Kuhn 1953).

    `paths`: information state -> the player's own (information state, move) on the way there; there is one way, where
    nobody forgets what he knew and did. In each state a strategy counts by the chance that its own moves lead there,
    which is what a plain mean leaves out. Where none of them leads, the plain mean.
    """
    average = {}
    for state, path in paths.items():
        reach_N = [math.prod(strategy[before][move] for before, move in path) for strategy in strategies]
        weights_N = reach_N if sum(reach_N) > 0 else [1.0] * len(strategies)
        average[state] = {
            move: sum(w * strategy[state][move] for w, strategy in zip(weights_N, strategies)) / sum(weights_N)
            for move in strategies[0][state]
        }
    return average
