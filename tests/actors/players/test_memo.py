"""Replies drawn from odds that were read once, against an engine that samples them token by token."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, strategies as st

from actors.players.engine_player import EnginePlayer
from actors.players.memo import Odds
from actors.serving.messages import GenRequest, GenResult, RequestRefused
from actors.serving.router import Counters
from protocols.types import Message, Reply, TurnRequest

CHOICES = ("ab c", "ab d", "b", "ca a b", "ca a c", "ca b")
"""Several steps with a choice, and some without."""


class Codec:
    """Letters are tokens; spaces are left away."""

    stop_ids = (0,)

    def prompt(self, messages: Sequence[Message], history: Any = ()) -> list[int]:
        return [ord(letter) for letter in messages[-1].text]

    def choices(self, texts: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(map(ord, text.replace(" ", ""))) for text in texts)


def logit(version: int, prefix: Sequence[int], token: int) -> float:
    return 3 * random.Random(f"{version} {list(prefix)} {token}").random()


def step(version: int, prefix: list[int], legal: Sequence[int], temperature: float) -> dict[int, float]:
    """token -> log-probability after temperature and mask."""
    scores = {token: logit(version, prefix, token) / temperature for token in legal}
    total = math.log(sum(map(math.exp, scores.values())))
    return {token: score - total for token, score in scores.items()}


class Engine:
    """A router whose engine walks the legal replies letter by letter, as vLLM would."""

    def __init__(self) -> None:
        self.counters, self.version, self.asked, self.rng = Counters(), 0, [], random.Random(1)
        self.gate: asyncio.Event | None = None

    async def generate(self, request: GenRequest) -> GenResult:
        self.asked.append(request)
        version = self.version
        if self.gate is not None:
            await self.gate.wait()
        if request.read:
            logprobs = [self.whole(version, request, choice) for choice in request.choices]
            return GenResult(0, [], [], [version], choice_logprobs=logprobs)
        weights = [math.exp(self.whole(version, request, choice)) for choice in request.choices]
        choice = self.rng.choices(request.choices, weights)[0]
        steps, allowed = self.walk(version, request, choice)
        at = request.choices.index(choice)
        return GenResult(0, list(choice), steps, [version] * len(choice), allowed, choice=at)

    def whole(self, version: int, request: GenRequest, choice: tuple[int, ...]) -> float:
        return sum(self.walk(version, request, choice)[0])

    @staticmethod
    def walk(version: int, request: GenRequest, choice: tuple[int, ...]) -> tuple[list[float], list[list[int]]]:
        logprobs, allowed = [], []
        for i, token in enumerate(choice):
            legal = list(dict.fromkeys(c[i] for c in request.choices if c[:i] == choice[:i] and len(c) > i))
            logprobs.append(step(version, [*request.prompt_ids, *choice[:i]], legal, request.temperature)[token])
            allowed.append(legal)
        return logprobs, allowed


def ask(text: str = "q", **settings: Any) -> TurnRequest:
    return TurnRequest("s", "r", (Message("user", text),), 0, **{"choices": CHOICES, **settings})


def player(engine: Engine, memo: bool, temperature: float = 1.0, seed: int = 0) -> EnginePlayer:
    return EnginePlayer(engine, Codec(), temperature, 8, memo, seed)  # type: ignore[arg-type]


async def replies(engine: EnginePlayer, n: int, **settings: Any) -> list[Reply]:
    return list(await asyncio.gather(*(engine(ask(**settings), ()) for _ in range(n))))


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
def test_every_drawn_reply_is_one_the_engine_could_have_sent(temperature: float) -> None:
    engine = Engine()
    drawn, sampled = (
        {reply.text: reply for reply in asyncio.run(replies(player(engine, memo, temperature), 3000))}
        for memo in (True, False)
    )
    assert set(drawn) == set(sampled) == set(CHOICES)
    for text, reply in drawn.items():
        ours, theirs = reply.trace, sampled[text].trace
        assert ours is not None and theirs is not None
        assert ours.logprobs_T == pytest.approx(theirs.logprobs_T, abs=1e-12)
        assert (ours.prompt_ids_P, ours.output_ids_T) == (theirs.prompt_ids_P, theirs.output_ids_T)
        assert (ours.allowed_T, ours.versions_T) == (theirs.allowed_T, theirs.versions_T)
        assert (ours.temperature, reply.truncated) == (theirs.temperature, sampled[text].truncated)


def test_the_odds_are_those_of_the_engine() -> None:
    engine, n = Engine(), 20_000
    counted = Counter(reply.text for reply in asyncio.run(replies(player(engine, True), n)))
    assert len(engine.asked) == 1 and engine.counters.memo_hits == n - 1
    for text, ids in zip(CHOICES, Codec().choices(CHOICES)):
        p = math.exp(engine.whole(0, engine.asked[0], ids))
        assert abs(counted[text] / n - p) < 4 * math.sqrt(p * (1 - p) / n)


def test_draws_come_from_the_seed() -> None:
    first, again, other = (
        [reply.text for reply in asyncio.run(replies(player(Engine(), True, seed=seed), 30))] for seed in (3, 3, 4)
    )
    assert first == again != other


def test_new_weights_are_asked_anew_and_old_odds_keep_their_version() -> None:
    """A read that is on its way while weights change is used by those who waited for it, under its own version."""

    async def run() -> None:
        engine = Engine()
        asked = player(engine, True)
        engine.gate = asyncio.Event()
        waiting = [asyncio.ensure_future(asked(ask(), ())) for _ in range(3)]
        while not engine.asked:
            await asyncio.sleep(0)
        engine.version = 1
        asked.forget()
        fresh = asyncio.ensure_future(asked(ask(), ()))
        while len(engine.asked) < 2:
            await asyncio.sleep(0)
        engine.gate.set()
        old, new = await asyncio.gather(*waiting), await fresh
        assert len(engine.asked) == 2
        for reply, version in (*((reply, 0) for reply in old), (new, 1)):
            trace = reply.trace
            assert trace is not None and set(trace.versions_T) == {version}
            steps, _ = engine.walk(version, engine.asked[0], trace.output_ids_T)
            assert trace.logprobs_T == pytest.approx(steps, abs=1e-12)
        assert set((await asked(ask(), ())).trace.versions_T) == {1}  # type: ignore[union-attr]

    asyncio.run(run())


def test_what_is_not_remembered() -> None:
    """Free text, replies verified afterwards, temperature 0; another prompt, list or temperature is asked by itself."""

    async def run() -> None:
        engine = Engine()
        asked = player(engine, True)
        await asked(ask(), ())
        for other in (ask("p"), ask(choices=CHOICES[1:]), ask(temperature=0.5)):
            await asked(other, ())
        assert [request.read for request in engine.asked] == [True] * 4
        with pytest.raises(ZeroDivisionError):  # it reached the engine of this test, which cannot
            await asked(ask(temperature=0.0), ())
        assert not engine.asked[-1].read
        await asked(ask(temperature=0.5, read=True), ())  # a verdict is read at temperature 1, which was asked before
        assert len(engine.asked) == 5

    asyncio.run(run())


def test_probabilities_at_temperature_zero_are_the_greedy_reply() -> None:
    engine = Engine()
    asked = player(engine, False)
    probs = asyncio.run(asked.probabilities(ask(temperature=0.0)))
    prefix: tuple[int, ...] = ()
    sequences = Codec().choices(CHOICES)
    while prefix not in sequences:
        legal = {c[len(prefix)] for c in sequences if c[: len(prefix)] == prefix}
        odds = step(0, [ord("q"), *prefix], sorted(legal), 1.0)
        prefix = (*prefix, max(odds, key=lambda token, odds=odds: odds[token]))
    assert probs == tuple(float(sequence == prefix) for sequence in sequences)
    assert sum(asyncio.run(asked.probabilities(ask()))) == pytest.approx(1.0)


@given(st.lists(st.floats(-60, 0), min_size=6, max_size=6))
def test_token_steps_multiply_to_the_reply(raw: list[float]) -> None:
    """However unlikely some replies are: the steps of each sum to its log-probability, and those of a node to 1."""
    total = math.log(math.fsum(map(math.exp, raw)))
    logprobs = [value - total for value in raw]
    odds = Odds([1], CHOICES, Codec().choices(CHOICES), logprobs, 0, 1.0)
    steps: dict[tuple[int, ...], dict[int, float]] = {}
    for choice, sequence in enumerate(odds.sequences):
        trace = odds._reply(choice).trace
        assert trace is not None
        assert math.fsum(trace.logprobs_T) == pytest.approx(logprobs[choice], abs=1e-9)
        for i, (token, logprob) in enumerate(zip(sequence, trace.logprobs_T)):
            steps.setdefault(sequence[:i], {})[token] = logprob
    for taken in steps.values():
        assert math.fsum(map(math.exp, taken.values())) == pytest.approx(1.0)


def test_words_of_choices_are_a_trie() -> None:
    """The choices of these tests have what tries can have: forced steps before, between and after branchings."""
    sequences = Codec().choices(CHOICES)
    assert not any(a == b[: len(a)] for a, b in itertools.permutations(sequences, 2))


def test_the_memo_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen judge is never told to forget: what was not asked for longest goes first."""
    monkeypatch.setattr("actors.players.engine_player.REMEMBERED", 2)

    async def run() -> None:
        engine = Engine()
        asked = player(engine, True)
        for text in ("p", "q", "p", "r", "p", "q"):
            await asked(ask(text), ())
        assert [chr(request.prompt_ids[0]) for request in engine.asked] == ["p", "q", "r", "q"]

    asyncio.run(run())


class Refusing(Engine):
    """An engine whose context is full."""

    async def generate(self, request: GenRequest) -> GenResult:
        self.asked.append(request)
        raise RequestRefused("the prompt is longer than the context")


@pytest.mark.parametrize("read", [False, True])
def test_a_refused_request_is_an_unreadable_reply_and_is_asked_once(read: bool) -> None:
    engine = Refusing()
    asked = TurnRequest("s", "r", (Message("user", "x"),), 0, choices=CHOICES, enforce=read, read=read)
    reply = asyncio.run(EnginePlayer(engine, Codec(), 1.0, 8)(asked, ()))  # type: ignore[arg-type]
    assert reply == Reply("", unreadable="the engine refused the request: the prompt is longer than the context")
    assert len(engine.asked) == 1
