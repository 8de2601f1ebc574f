"""How one GenRequest becomes vLLM requests and then a GenResult.

A generation submits vLLM requests (`Submit`) and receives their outputs (`take`), all on the engine thread.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, Protocol

from actors.serving.messages import GenRequest, GenResult
from actors.serving.seeds import branch_seed
from actors.serving.trie import Node, Place, branchings, build_trie, choice_logprobs, forced_path

READ_WIDTH = 128
"""The most logprob_token_ids that vLLM accepts in one request."""


class Submit(Protocol):
    """Queues one vLLM request of a generation; `tag` comes back with its output."""

    def __call__(self, generation: Generation, prompt_ids: list[int], params: Any, tag: Any) -> None: ...


@lru_cache(maxsize=4096)
def sampling_params(
    max_tokens: int,
    temperature: float,
    top_p: float = 1.0,
    stop_ids: tuple[int, ...] = (),
    allowed: tuple[int, ...] = (),
    read: tuple[int, ...] = (),
    seed: int | None = None,
) -> Any:
    """vLLM SamplingParams, shared between equal requests, since building one costs as much as serving a small request.

    `allowed`: the legal token ids, () for all. `read`: token ids whose log-probabilities are wanted. Sampling requests
    ask for logprobs=0 (the sampled token only): in a batch with reads, vLLM overwrites any others.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        stop_token_ids=list(stop_ids),
        allowed_token_ids=list(allowed) or None,
        logprobs=None if read else 0,
        logprob_token_ids=list(read) or None,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        skip_clone=True,
    )


@lru_cache(maxsize=1024)
def read_plan(
    choices: tuple[tuple[int, ...], ...],
) -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """The vLLM requests that read `choices`: (tokens before a branching, its children, the children to read)."""
    plan = []
    for prefix, node in branchings(build_trie(choices)):
        children = tuple(node)
        plan += [
            (prefix, children, children[i : i + READ_WIDTH]) for i in range(0, len(children), READ_WIDTH)
        ]
    return plan


class Generation(ABC):
    """One GenRequest under way. `version`: the policy version at its start."""

    def __init__(self, request: GenRequest, submit: Submit, finish: Callable[[GenResult], None], version: int):
        self.request, self.submit, self.finish, self.version = request, submit, finish, version
        self.prompt_tokens = self.cached_tokens = 0
        """Summed over the vLLM requests that have finished."""

    @abstractmethod
    def start(self) -> None:
        """Submits the first vLLM requests."""

    @abstractmethod
    def take(self, completion: Any, versions: list[int], tag: Any) -> None:
        """Continues with one vLLM output. `completion`: a CompletionOutput; `versions`: policy version per token."""

    def attempt(self, step: Callable[..., None], *args: Any) -> None:
        """Runs `step`. A request that vLLM refuses gets an error result; other requests continue."""
        try:
            step(*args)
        except (ValueError, client_error()) as error:
            self.fail(str(error))

    def fail(self, reason: str) -> None:
        self.conclude(GenResult(self.request.id, [], [], [], finish="error", error=reason))

    def conclude(self, result: GenResult) -> None:
        """Delivers the result; later outputs and results are ignored."""
        result.prompt_tokens, result.cached_tokens = self.prompt_tokens, self.cached_tokens
        finish, self.finish = self.finish, lambda _: None
        finish(result)


def client_error() -> type[Exception]:
    """The exception with which vLLM refuses a request."""
    from vllm.exceptions import VLLMClientError

    refused: type[Exception] = VLLMClientError
    return refused


class FreeGeneration(Generation):
    """Free text, ended by a stop id or max_tokens."""

    def start(self) -> None:
        r = self.request
        params = sampling_params(r.max_tokens, r.temperature, r.top_p, r.stop_ids, seed=r.seed)
        self.submit(self, r.prompt_ids, params, None)

    def take(self, completion: Any, versions: list[int], tag: Any) -> None:
        finish: Literal["stop", "length"] = "length" if completion.finish_reason == "length" else "stop"
        logprobs = [next(iter(position.values())).logprob for position in completion.logprobs]
        if not math.isfinite(math.fsum(logprobs)):
            self.fail("the engine sampled a token whose log-probability is not a number")
            return
        self.conclude(GenResult(self.request.id, list(completion.token_ids), logprobs, versions, finish=finish))


class ChoiceGeneration(Generation):
    """One legal reply, sampled token by token along the trie of all legal replies.

    It submits a vLLM request at each branching; forced tokens have probability 1 and need none.
    """

    def start(self) -> None:
        self.output_ids: list[int] = []
        self.logprobs: list[float] = []
        self.versions: list[int] = []
        self.allowed: list[list[int]] = []
        self.walk(build_trie(self.request.choices))

    def walk(self, place: Place) -> None:
        """Appends the forced tokens after `place`, then concludes or samples at the next branching."""
        path, end = forced_path(place)
        for token in path:
            self.append(token, 0.0, self.versions[-1] if self.versions else self.version, [token])
        if not isinstance(end, dict):
            ids, logprobs, versions, allowed = self.output_ids, self.logprobs, self.versions, self.allowed
            self.conclude(GenResult(self.request.id, ids, logprobs, versions, allowed, choice=end))
            return
        r = self.request
        seed = None if r.seed is None else branch_seed(r.seed, len(self.output_ids))
        params = sampling_params(1, r.temperature, r.top_p, allowed=tuple(end), seed=seed)
        self.submit(self, r.prompt_ids + self.output_ids, params, end)

    def take(self, completion: Any, versions: list[int], tag: Node) -> None:
        (token,) = completion.token_ids
        self.append(token, completion.logprobs[0][token].logprob, versions[0], list(tag))
        self.walk(tag[token])

    def append(self, token: int, logprob: float, version: int, allowed: list[int]) -> None:
        self.output_ids.append(token)
        self.logprobs.append(logprob)
        self.versions.append(version)
        self.allowed.append(allowed)


class ReadGeneration(Generation):
    """The probability of every legal reply: one vLLM request per branching of the trie, all submitted at once.

    Temperature 0 reads at temperature 1; top_p is ignored. When a weight update falls between the outputs, they
    belong to two policy versions, and the generation starts again.
    """

    def start(self) -> None:
        r = self.request
        plan = read_plan(r.choices)
        self.pending = len(plan)
        self.logprobs: dict[tuple[int, ...], dict[int, float]] = {}
        self.versions: set[int] = set()
        if not plan:
            self.end(self.version)
        for prefix, children, part in plan:
            params = sampling_params(1, r.temperature or 1.0, allowed=children, read=part)
            self.submit(self, [*r.prompt_ids, *prefix], params, (prefix, part))

    def take(self, completion: Any, versions: list[int], tag: tuple[tuple[int, ...], Sequence[int]]) -> None:
        prefix, part = tag
        position = completion.logprobs[0]
        self.logprobs.setdefault(prefix, {}).update({token: position[token].logprob for token in part})
        self.versions.update(versions)
        self.pending -= 1
        if self.pending == 0:
            if len(self.versions) == 1:
                self.end(versions[0])
            else:
                self.start()

    def end(self, version: int) -> None:
        logprobs = choice_logprobs(self.request.choices, self.logprobs)
        self.conclude(GenResult(self.request.id, [], [], [version], choice_logprobs=logprobs))
