"""EnginePlayer: a role played by a language model behind a router. Text in, text and token trace out."""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from functools import partial

from actors.concurrency import Shared
from actors.players.base import PLAY
from actors.players.chat import ChatCodec
from actors.players.memo import Odds
from actors.serving.lane import Lane
from actors.serving.messages import GenRequest, GenResult, RequestRefused
from actors.serving.router import Router
from protocols.types import Reply, TokenTrace, Turn, TurnRequest

Key = tuple[tuple[int, ...], tuple[str, ...], float]
"""Prompt, legal replies, temperature."""
REMEMBERED = 50_000
"""Prompts whose odds one policy keeps: those not asked for longest go first, since a frozen judge never forgets."""


class EnginePlayer:
    """Turns a TurnRequest into a GenRequest and the result into a Reply.

    The odds of legal replies are deterministic given the weights, so equal prompts under equal weights share one
    engine call: a memo per policy version, exact by construction (`forget` empties it when weights change). It
    answers reads (`request.read`), and with `memo` every turn with enforced choices: drawn here, in the order of calls,
    from `seed`. Replies at temperature 0 are the engine's. A call that several plays wait for is given up when all of
    them have been.
    """

    def __init__(
        self, router: Router | Lane, codec: ChatCodec, temperature: float, max_tokens: int,
        memo: bool = False, seed: int | str = 0,
    ):  # fmt: skip
        self.router, self.codec = router, codec
        self.temperature, self.max_tokens, self.memo = temperature, max_tokens, memo
        self.rng = random.Random(seed)
        self._memo: OrderedDict[Key, Shared[Odds]] = OrderedDict()

    def forget(self) -> None:
        """New weights: nothing remembered holds any more."""
        self._memo.clear()

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        """The policy's reply. One that the engine refuses to make (the chat outgrew the context) is an unreadable
        reply with the engine's reason: the play ends as invalid, and is not tried again until it is short."""
        try:
            return await self._answer(request, history)
        except RequestRefused as error:
            return Reply("", unreadable=f"the engine refused the request: {error}")

    async def _answer(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        prompt_ids = self.codec.prompt(request.messages, history)
        if request.read:
            return (await self._odds(request, prompt_ids, 1.0)).verdict
        enforced = bool(request.choices) and request.enforce
        temperature = self.temperature if request.temperature is None else request.temperature
        if enforced and self.memo and temperature > 0:
            return (await self._odds(request, prompt_ids, temperature)).draw(self.rng)
        result = await self.router.generate(
            GenRequest(
                id=0,
                prompt_ids=prompt_ids,
                max_tokens=request.max_tokens or self.max_tokens,
                temperature=temperature,
                stop_ids=() if enforced else self.codec.stop_ids,
                choices=self.codec.choices(request.choices) if enforced else (),
                seed=request.seed,
                play=PLAY.get(),
            )
        )
        return self._reply(request, prompt_ids, result, temperature)

    async def probabilities(self, request: TurnRequest) -> tuple[float, ...]:
        """How likely each legal reply to a fresh chat is, at the temperature of the request, else the policy's."""
        temperature = self.temperature if request.temperature is None else request.temperature
        odds = await self._odds(request, self.codec.prompt(request.messages), temperature or 1.0)
        if temperature > 0:
            return odds.probs_C
        best = odds.greedy()
        return tuple(float(choice == best) for choice in range(len(request.choices)))

    def _reply(self, request: TurnRequest, prompt_ids: list[int], result: GenResult, temperature: float) -> Reply:
        trace = TokenTrace(
            prompt_ids_P=tuple(prompt_ids),
            output_ids_T=tuple(result.output_ids),
            logprobs_T=tuple(result.logprobs),
            versions_T=tuple(result.versions),
            allowed_T=tuple(map(tuple, result.allowed or ())),
            temperature=temperature,
        )
        text = self.codec.text(result.output_ids) if result.choice is None else request.choices[result.choice]
        return Reply(text, trace=trace, truncated=result.finish == "length")

    async def _odds(self, request: TurnRequest, prompt_ids: list[int], temperature: float) -> Odds:
        key = (tuple(prompt_ids), request.choices, temperature)
        known = self._memo.get(key)
        if known is not None and not known.given_up:
            self.router.counters.memo_hits += 1
        else:
            known = self._memo[key] = Shared(self._ask(request, prompt_ids, temperature))
            known.task.add_done_callback(partial(self._drop_failed, key, known))
        self._memo.move_to_end(key)
        if len(self._memo) > REMEMBERED:
            self._memo.popitem(last=False)
        return await known.result()

    def _drop_failed(self, key: Key, shared: Shared[Odds], done: asyncio.Future[Odds]) -> None:
        if (done.cancelled() or done.exception() is not None) and self._memo.get(key) is shared:
            del self._memo[key]

    async def _ask(self, request: TurnRequest, prompt_ids: list[int], temperature: float) -> Odds:
        choices = self.codec.choices(request.choices)
        result = await self.router.generate(GenRequest(
            id=0, prompt_ids=prompt_ids, max_tokens=1, temperature=temperature, choices=choices, read=True,
            play=PLAY.get(),
        ))  # fmt: skip
        assert result.choice_logprobs is not None, "engine answered a read without probabilities"
        (version,) = result.versions
        return Odds(prompt_ids, request.choices, choices, result.choice_logprobs, version, temperature)


