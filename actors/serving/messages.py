"""What crosses the wire between the router and an engine. Plain structures, no vllm, no ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec


class GenRequest(msgspec.Struct, array_like=True):
    """One generation. Token ids in; nothing is tokenised in the engine."""

    id: int
    prompt_ids: list[int]
    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    stop_ids: tuple[int, ...] = ()
    choices: tuple[tuple[int, ...], ...] = ()
    """Legal replies as token sequences (none a prefix of another: end with a stop id where needed).
    Empty: free text, ended by `stop_ids` or `max_tokens`."""
    read: bool = False
    """With choices: return the probability of every choice instead of sampling one."""
    seed: int | None = None
    play: str = ""
    """The play that asks, for the router: its prompts share beginnings."""
    adapter: str = ""
    """On engines that several policies share: whose adapter it is computed with; "" for the base as it is."""


class GenResult(msgspec.Struct, array_like=True):
    """Axes: T sampled tokens, C choices."""

    id: int
    output_ids: list[int]
    """Sampled tokens, the stop id included when one was sampled. Empty for reads."""
    logprobs: list[float]
    """Natural log, processed (after temperature, top-p and mask), one per output token."""
    versions: list[int]
    """Policy step that sampled each token (for reads: one entry, the step that was read)."""
    allowed: list[list[int]] | None = None
    """With choices: the legal token ids at each step."""
    choice: int | None = None
    choice_logprobs: list[float] | None = None
    finish: Literal["stop", "length", "error"] = "stop"
    error: str = ""
    prompt_tokens: int = 0
    """Of all that the engine was asked for this (a choice asks once per branching), and how many of those its
    prefix cache had."""
    cached_tokens: int = 0


@dataclass(slots=True)
class WeightBucket:
    """Consecutive parameters in one flat buffer: (name, shape, dtype, byte offset, byte length) each."""

    entries: list[tuple[str, tuple[int, ...], str, int, int]]
    data: Any
    """numpy uint8 array; lives in Ray's object store between learner and engine."""
    sha256: str = ""
    base: str = ""
    """Of an adapter: folder or name of the plain model that it belongs to. The entries are then A and B of its layers
    (actors/engine/adapter.py). Empty: entries are whole parameters."""
    scaling: float = 0.0
    """Of an adapter: how much B A counts."""


class EngineLost(RuntimeError):
    """A request could not be answered: its engines died several times, or refused it."""
