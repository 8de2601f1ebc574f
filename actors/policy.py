"""EnginePlayer: a role played by a language model behind a router. Text in, text and token trace out."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace

from actors.chat import ChatCodec
from actors.messages import GenRequest, GenResult
from actors.players import Player
from actors.router import Router
from actors.runner import PLAY
from protocols.types import Reply, TokenTrace, Turn, TurnRequest


class EnginePlayer:
    """Turns a TurnRequest into a GenRequest and the result into a Reply.

    Reads (`request.read`) are deterministic given the weights, so equal prompts under equal weights share one
    engine call: a memo per policy version, exact by construction (`forget` empties it when weights change).
    """

    def __init__(self, router: Router, codec: ChatCodec, temperature: float, max_tokens: int):
        self.router, self.codec = router, codec
        self.temperature, self.max_tokens = temperature, max_tokens
        self._memo: dict[tuple[tuple[int, ...], tuple[str, ...]], asyncio.Future[Reply]] = {}

    def forget(self) -> None:
        """New weights: nothing remembered holds any more."""
        self._memo.clear()

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        prompt_ids = self.codec.prompt(request.messages, history)
        if request.read:
            return await self._read(request, prompt_ids)
        enforced = bool(request.choices) and request.enforce
        temperature = self.temperature if request.temperature is None else request.temperature
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

    async def _read(self, request: TurnRequest, prompt_ids: list[int]) -> Reply:
        key = (tuple(prompt_ids), request.choices)
        known = self._memo.get(key)
        if known is not None and not known.cancelled():
            self.router.counters.memo_hits += 1
            return await asyncio.shield(known)
        future = self._memo[key] = asyncio.ensure_future(self._ask(request, prompt_ids))
        future.add_done_callback(lambda done: self._drop_failed(key, done))
        return await asyncio.shield(future)

    def _drop_failed(self, key: tuple[tuple[int, ...], tuple[str, ...]], done: asyncio.Future[Reply]) -> None:
        if (done.cancelled() or done.exception() is not None) and self._memo.get(key) is done:
            del self._memo[key]

    async def _ask(self, request: TurnRequest, prompt_ids: list[int]) -> Reply:
        choices = self.codec.choices(request.choices)
        result = await self.router.generate(GenRequest(
            id=0, prompt_ids=prompt_ids, max_tokens=1, temperature=1.0, choices=choices, read=True, play=PLAY.get(),
        ))  # fmt: skip
        assert result.choice_logprobs is not None, "engine answered a read without probabilities"
        probs = tuple(math.exp(logprob) for logprob in result.choice_logprobs)
        best = max(range(len(probs)), key=probs.__getitem__)
        trace = TokenTrace(tuple(prompt_ids), (), (), tuple(result.versions))
        return Reply(request.choices[best], probs, trace)


class AtTemperature:
    """A player whose every reply is sampled at one temperature, whatever the policy's and the protocol's."""

    def __init__(self, player: Player, temperature: float):
        self.player, self.temperature = player, temperature

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        return await self.player(replace(request, temperature=self.temperature), history)
