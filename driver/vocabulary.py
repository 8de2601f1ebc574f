"""The words that a tiny model should know."""

from __future__ import annotations

import random
from collections.abc import Iterable

from actors.players.base import Seated, UniformPlayer
from actors.rollout.loop import play_all, training_task
from protocols.base import Protocol
from protocols.types import Reply, Turn, TurnRequest
from tasks.base import TaskSource

PLAYS = 64
"""Plays of each protocol from which words are gathered."""


async def words_in_play(source: TaskSource, protocols: Iterable[Protocol]) -> list[str]:
    """What gets a token of its own: the words of tasks and prompts, and those that only arise when a prompt is
    filled in (found by playing; a word that is missed is spelled in bytes)."""
    words = dict.fromkeys(source.words())
    player = Seated("teacher", _Taciturn())
    for protocol in protocols:
        texts = list(protocol.literal_texts())
        rng = random.Random(0)
        tasks = [training_task(source, protocol, rng, warm=True) for _ in range(PLAYS)]
        players = dict.fromkeys(protocol.roles().values(), player)
        for play in await play_all(protocol, tasks, players, "words", seed=0):
            for turn in (turn for episode in play for turn in episode.turns):
                texts += [turn.text, *(message.text for message in turn.messages)]
        words |= dict.fromkeys(word for text in texts for word in text.split())
    return list(words)


class _Taciturn:
    """Replies what is known to be right, else picks at random, and says nothing where free text is asked for."""

    def __init__(self) -> None:
        self.teacher = UniformPlayer(None, seed=0, teacher=True)

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        if request.choices or request.target is not None:
            return await self.teacher(request, history)
        return Reply("")
