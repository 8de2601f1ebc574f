"""Players that need no model. The one backed by an engine is `actors/players/engine_player.py`."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from protocols.errors import UserError
from protocols.types import Reply, TokenTrace, Turn, TurnRequest

if TYPE_CHECKING:
    from actors.players.chat import ChatCodec


class Player(Protocol):
    """Answers for a seat. `history`: the seat's earlier turns in this chat, with their traces."""

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply: ...


class NoChoices(UserError):
    """A player that only picks among legal replies was asked for free text."""

    def __init__(self, role: str):
        super().__init__(role)
        self.role = role

    def __str__(self) -> str:
        return (
            f"role {self.role!r} is asked for free text: a uniform policy needs turns that list their choices"
        )


class ScriptedPlayer:
    """Replies with `function(request)`: a Reply, or a text. For tests and fixed opponents."""

    def __init__(self, function: Callable[[TurnRequest], Reply | str]):
        self.function = function

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        reply = self.function(request)
        return Reply(reply) if isinstance(reply, str) else reply


class UniformPlayer:
    """Picks uniformly among the legal replies. Draws depend on the request's seed alone where it has one, else on
    the order of calls and the player's seed.

    With a codec it leaves the token trace that an engine would: prompt, reply, legal tokens and the
    log-probability of each token under the uniform choice. As `teacher` it replies the target wherever
    the protocol knows one, reads included; these are the plays that warm starts imitate.
    """

    def __init__(self, codec: ChatCodec | None = None, seed: int | random.Random = 0, teacher: bool = False):
        self.codec, self.teacher = codec, teacher
        self.rng = seed if isinstance(seed, random.Random) else random.Random(seed)

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        choices = request.choices
        told = self.teacher and request.target is not None
        if told:
            text = request.target or ""
        elif choices:
            rng = self.rng if request.seed is None else random.Random(request.seed)
            text = rng.choice(choices)
        else:
            raise NoChoices(request.role)
        trace = self._trace(request, history, text, told) if self.codec is not None else None
        return Reply(text, (1.0 / len(choices),) * len(choices) if choices else (), trace)

    def _trace(self, request: TurnRequest, history: tuple[Turn, ...], text: str, told: bool) -> TokenTrace:
        codec = self.codec
        assert codec is not None
        prompt_ids = tuple(codec.prompt(request.messages, history))
        if request.read and not told:
            return TokenTrace(prompt_ids, (), (), (0,))
        if not (request.choices and request.enforce):
            return self._free_trace(request, prompt_ids, text)
        assert text in request.choices, f"target {text!r} of role {request.role!r} is not among its choices"
        sequences = codec.choices(request.choices)
        output_ids = sequences[request.choices.index(text)]
        allowed, logprobs = walk(sequences, output_ids)
        return TokenTrace(
            prompt_ids, output_ids, () if request.read else logprobs, (0,) * len(output_ids), allowed
        )

    def _free_trace(self, request: TurnRequest, prompt_ids: tuple[int, ...], text: str) -> TokenTrace:
        """A reply as if written freely: it ends with the end token, and every token was legal."""
        codec = self.codec
        assert codec is not None
        output_ids = (*codec.encode(text), codec.end_id)
        logprobs = (0.0,) * len(output_ids)
        if request.choices and text in request.choices:
            ended = tuple((*codec.encode(choice), codec.end_id) for choice in request.choices)
            logprobs = walk(ended, output_ids)[1]
        return TokenTrace(prompt_ids, output_ids, logprobs, (0,) * len(output_ids))


def walk(
    sequences: Sequence[tuple[int, ...]], output_ids: tuple[int, ...]
) -> tuple[tuple[tuple[int, ...], ...], tuple[float, ...]]:
    """The way of `output_ids` through the trie of equally likely `sequences` (none a prefix of another).

    Returns the legal token ids at each step, ascending, and the natural log-probability of each step: the
    share of the sequences still possible that take it. Forced steps have 0; the sum is -log(len(sequences)).
    """
    allowed, logprobs = [], []
    open_sequences: Sequence[tuple[int, ...]] = sequences
    for step, token in enumerate(output_ids):
        taken = [sequence for sequence in open_sequences if sequence[step] == token]
        allowed.append(tuple(sorted({sequence[step] for sequence in open_sequences})))
        logprobs.append(math.log(len(taken) / len(open_sequences)))
        open_sequences = taken
    return tuple(allowed), tuple(logprobs)


PLAY: ContextVar[str] = ContextVar("PLAY", default="")
"""Id of the play on whose behalf a player is asked. Routers keep the turns of a play together."""


@dataclass(frozen=True, slots=True)
class Seated:
    """Who answers for a role."""

    policy: str
    player: Player
    seeded: bool = False
    """Each of its requests gets a seed of its own, out of the play's (actors/serving/seeds.py)."""


class PastPlayer:
    """An opponent checkpoint: replies are recorded under the version that it had, not the count of its engine's
    updates."""

    def __init__(self, player: Player, version: int):
        self.player, self.version = player, version

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        reply = await self.player(request, history)
        if reply.trace is None:
            return reply
        assert len(set(reply.trace.versions_T)) <= 1, "an opponent checkpoint was exchanged while it was playing"
        versions_T = (self.version,) * len(reply.trace.versions_T)
        return replace(reply, trace=replace(reply.trace, versions_T=versions_T))


class AtTemperature:
    """A player whose every reply is sampled at one temperature, whatever the policy's and the protocol's."""

    def __init__(self, player: Player, temperature: float):
        self.player, self.temperature = player, temperature

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        return await self.player(replace(request, temperature=self.temperature), history)
