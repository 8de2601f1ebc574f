"""What the router and an engine send each other. Plain structures; imports neither vllm nor ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import msgspec


class GenRequest(msgspec.Struct, array_like=True):
    """One generation. The prompt is given as token ids; engines never tokenise."""

    id: int
    """Unique among the requests of a router, which sets it."""
    prompt_ids: list[int]
    max_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    stop_ids: tuple[int, ...] = ()
    choices: tuple[tuple[int, ...], ...] = ()
    """Legal replies as token sequences, none a prefix of another (append a stop id where needed).
    Empty: free text, ended by `stop_ids` or `max_tokens`."""
    read: bool = False
    """With choices: return the probability of every choice instead of sampling one."""
    seed: int | None = None
    play: str = ""
    """Id of the play, whose prompts share prefixes: the router sends them to one replica."""
    adapter: str = ""
    """Name of the LoRA adapter to apply; "" for the base model."""


class GenResult(msgspec.Struct, array_like=True):
    """The engine's answer to one GenRequest. Axes: T sampled tokens, C choices."""

    id: int
    output_ids: list[int]
    """T sampled tokens, including a sampled stop id. Empty for reads."""
    logprobs: list[float]
    """Natural log-probability of each of the T tokens, after temperature, top-p and mask."""
    versions: list[int]
    """Policy version that sampled each of the T tokens; for reads one entry."""
    allowed: list[list[int]] | None = None
    """With choices: the legal token ids at each of the T steps."""
    choice: int | None = None
    """With choices: index of the sampled one."""
    choice_logprobs: list[float] | None = None
    """For reads: natural log-probability of each of the C choices; they sum to one."""
    finish: Literal["stop", "length", "error", "died"] = "stop"
    """died: the answer to no request, but the last word of an engine."""
    error: str = ""
    prompt_tokens: int = 0
    """Prompt tokens over all engine calls for this request: a choice needs one call per branching of the trie."""
    cached_tokens: int = 0
    """How many of `prompt_tokens` the prefix cache held."""


@dataclass(slots=True)
class WeightBucket:
    """Consecutive parameters in one flat buffer, as (name, shape, dtype, byte offset, byte length) each."""

    entries: list[tuple[str, tuple[int, ...], str, int, int]]
    data: Any
    """NumPy uint8 array; Ray's object store holds it between learner and engine."""
    sha256: str = ""
    base: str = ""
    """For a LoRA adapter: folder or name of its base model; the entries are then A and B of its layers
    (actors/engine/adapter.py). Empty: the entries are whole parameters."""
    scaling: float = 0.0
    """For a LoRA adapter: the factor of B A (alpha / rank)."""


class EngineLost(RuntimeError):
    """A request could not be answered, because its engines died several times. The play is tried again."""


class RequestRefused(RuntimeError):
    """An engine refused a request and is well: a prompt that is longer than the context, say. To ask again would not
    help; what the reply would have been is missing data."""
