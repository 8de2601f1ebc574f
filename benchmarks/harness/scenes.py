"""What several benchmarks play on: made-up words and questions, tiny models from scratch, a debate in free text."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.players.base import Player, Seated
from actors.players.chat import ChatCodec
from actors.players.engine_player import EnginePlayer
from actors.serving.lane import Lane
from actors.serving.messages import GenRequest, GenResult
from actors.serving.router import Router
from configs.schema.run import EngineConfig, ModelConfig, PolicyConfig
from learners.models.tiny import build_model, build_tokenizer
from protocols.base import Protocol
from protocols.phased.interpreter import Phased
from protocols.phased.rules import Phase
from protocols.prompts import RolePrompt
from protocols.types import Reply, Task, Turn, TurnRequest

WORDS = tuple(f"w{number}" for number in range(4000))
MEDIUM = ModelConfig(hidden_size=512, layers=7, heads=8, kv_heads=2, intermediate_size=1728, max_len=4096)
"""About 25 million parameters with the vocabulary of `WORDS`."""
SMALL = ModelConfig(hidden_size=128, layers=3, heads=4, kv_heads=2, intermediate_size=384, max_len=4096)
"""About one million."""


def folder_of(model: ModelConfig, folder: Path) -> str:
    """A random model with its tokenizer, written to `folder`."""
    return str(build_model(model, build_tokenizer([*WORDS, *debate(1, 1).literal_texts()]), folder))


def policy(model_dir: str, replicas: int = 1, kv_cache_mb: int = 1024, width: int = 256) -> PolicyConfig:
    """A served policy on the CPU, one thread for each engine."""
    engine = EngineConfig(device="cpu", replicas=replicas, kv_cache_mb=kv_cache_mb, max_num_seqs=width)
    return PolicyConfig(model=ModelConfig(path=model_dir), engine=engine)


def debate(rounds: int, tokens: int) -> Phased:
    """Two debaters speak in turn, `rounds` times each, at most `tokens` a turn; nobody judges."""
    prompt = RolePrompt(opening="debate {{ question }} for {{ seat }}", heard="they said {{ text }}")
    return Phased(
        phases=[Phase("debate", ["alice", "bob"], repeat=rounds, prompt="go on", max_tokens=tokens)],
        seats={"alice": "debater", "bob": "debater"}, prompts={"debater": prompt}, joiner=" ", name="free",
    )  # fmt: skip


def questions(count: int, words: int, seed: int) -> list[Task]:
    """Tasks of `words` drawn words each, all different."""
    rng = random.Random(f"questions {seed}")
    return [Task(f"q{seed}-{i}", " ".join(rng.choices(WORDS, k=words))) for i in range(count)]


def seated(protocol: Protocol, player: Player) -> Mapping[str, Seated]:
    """One player for every role."""
    return {role: Seated("bench", player) for role in set(protocol.roles().values())}


class DrawnLength:
    """Replies of lognormal length in tokens, the same for the same chat and turn whoever plays when."""

    def __init__(self, player: Player, median: int, sigma: float, longest: int):
        self.player, self.median, self.sigma, self.longest = player, median, sigma, longest

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        # The opening names the question and the seat; what anybody generated after it must not matter.
        opening = request.messages[0].text.partition(" go on")[0].partition(" they said")[0]
        rng = random.Random(f"{opening}/{request.turn}")
        drawn = round(self.median * rng.lognormvariate(0.0, self.sigma))
        return await self.player(replace(request, max_tokens=max(1, min(self.longest, drawn))), history)


class Recorder:
    """Stands before a router and keeps what it was asked and what came back."""

    def __init__(self, router: Router | Lane):
        self.router, self.counters = router, router.counters
        self.seen: list[tuple[GenRequest, GenResult]] = []

    async def generate(self, request: GenRequest) -> GenResult:
        result = await self.router.generate(request)
        self.seen.append((request, result))
        return result


def recorded(player: EnginePlayer) -> tuple[EnginePlayer, Recorder]:
    """A player like `player` whose traffic is kept, with a memo of its own."""
    recorder: Any = Recorder(player.router)
    return EnginePlayer(recorder, player.codec, player.temperature, player.max_tokens), recorder


def codec_of(model_dir: str) -> ChatCodec:
    return ChatCodec.from_pretrained(model_dir)
