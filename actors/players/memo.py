"""The odds of every legal reply to one prompt under one version of a policy: read once, drawn from again and again.

Exact: what vLLM would sample token by token along the trie of legal replies has these very odds, and a reply drawn here
carries the same tokens, log-probabilities (but for rounding), legal tokens and version. Small games ask the same
few prompts thousands of times between two updates.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import cached_property

from actors.serving.trie import Node, build_trie
from protocols.types import Reply, TokenTrace

Ids = tuple[int, ...]


class Odds:
    """Axes: C choices. Replies are shared: each is made once."""

    def __init__(
        self, prompt_ids: Sequence[int], texts: tuple[str, ...], sequences: tuple[Ids, ...],
        logprobs_C: Sequence[float], version: int, temperature: float,
    ):  # fmt: skip
        """`logprobs_C`: natural log, of whole replies, at `temperature`; `sequences`: their token ids."""
        self.prompt_ids, self.texts, self.sequences = tuple(prompt_ids), texts, sequences
        self.logprobs_C, self.version, self.temperature = tuple(logprobs_C), version, temperature
        self._drawn: dict[int, Reply] = {}

    @cached_property
    def probs_C(self) -> tuple[float, ...]:
        return tuple(map(math.exp, self.logprobs_C))

    @cached_property
    def verdict(self) -> Reply:
        """As a read: all probabilities, and the likeliest reply."""
        best = max(range(len(self.texts)), key=self.probs_C.__getitem__)
        return Reply(self.texts[best], self.probs_C, TokenTrace(self.prompt_ids, (), (), (self.version,)))

    def draw(self, rng: random.Random) -> Reply:
        """A reply as if sampled."""
        choice = rng.choices(range(len(self.texts)), self.probs_C)[0]
        if choice not in self._drawn:
            self._drawn[choice] = self._reply(choice)
        return self._drawn[choice]

    def greedy(self) -> int:
        """The reply that takes the likeliest token at every step, as an engine at temperature 0."""
        node: Node | int = build_trie(self.sequences)
        while isinstance(node, dict):
            node = max(node.values(), key=self._mass)
        return node

    def _reply(self, choice: int) -> Reply:
        output_ids, allowed_T, logprobs_T = self.sequences[choice], [], []
        node: Node | int = build_trie(self.sequences)
        for token in output_ids:
            assert isinstance(node, dict), "a reply goes on after its end"
            allowed_T.append(tuple(node))
            logprobs_T.append(self._mass(node[token]) - self._mass(node) if len(node) > 1 else 0.0)
            node = node[token]
        trace = TokenTrace(
            self.prompt_ids, output_ids, tuple(logprobs_T), (self.version,) * len(output_ids), tuple(allowed_T),
            self.temperature,
        )  # fmt: skip
        return Reply(self.texts[choice], trace=trace)

    def _mass(self, place: Node | int) -> float:
        """Log-probability of all replies that lie beyond a place of the trie."""
        if isinstance(place, int):
            return self.logprobs_C[place]
        below = [self._mass(child) for child in place.values()]
        top = max(below)
        return top if top == -math.inf else top + math.log(math.fsum(math.exp(mass - top) for mass in below))
