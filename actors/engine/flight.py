"""Flights: how one GenRequest becomes vLLM requests and then a GenResult.

A flight asks (`Ask`) and is called back (`take`), all in the engine thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, Protocol

from actors.serving.messages import GenRequest, GenResult
from actors.serving.seeds import branch_seed
from actors.serving.trie import Node, Place, branchings, build_trie, choice_logprobs, forced_path

READ_WIDTH = 128
"""Most logprob_token_ids that vLLM takes in one request."""


class Ask(Protocol):
    """Queues one vLLM request of a flight; `tag` comes back with the output."""

    def __call__(self, flight: Flight, prompt_ids: list[int], params: Any, tag: Any) -> None: ...


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
    """vLLM SamplingParams, shared between equal requests: building one costs as much as serving a small one.

    Policies ask for logprobs=0 (the sampled token only): in a batch with reads, vLLM overwrites all others.
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
    """What to ask to read `choices`: (tokens before the branching, its children, those of them to read)."""
    plan = []
    for prefix, node in branchings(build_trie(choices)):
        children = tuple(node)
        plan += [
            (prefix, children, children[i : i + READ_WIDTH]) for i in range(0, len(children), READ_WIDTH)
        ]
    return plan


class Flight(ABC):
    """One GenRequest on its way. `version` is the policy step at its start."""

    def __init__(self, request: GenRequest, ask: Ask, finish: Callable[[GenResult], None], version: int):
        self.request, self.ask, self.finish, self.version = request, ask, finish, version
        self.prompt_tokens = self.cached_tokens = 0
        """Of what vLLM has answered so far."""

    @abstractmethod
    def start(self) -> None:
        """Asks vLLM for the first step."""

    @abstractmethod
    def take(self, completion: Any, versions: list[int], tag: Any) -> None:
        """`completion`: vLLM's CompletionOutput. `versions`: policy step of each of its tokens."""

    def attempt(self, step: Callable[..., None], *args: Any) -> None:
        """Runs a step; a request that cannot be served ends as a result that says why, and others go on."""
        try:
            step(*args)
        except (ValueError, client_error()) as error:
            self.fail(str(error))

    def fail(self, reason: str) -> None:
        self.conclude(GenResult(self.request.id, [], [], [], finish="error", error=reason))

    def conclude(self, result: GenResult) -> None:
        """Ends the flight; whatever else it has asked for is ignored."""
        result.prompt_tokens, result.cached_tokens = self.prompt_tokens, self.cached_tokens
        finish, self.finish = self.finish, ignore
        finish(result)


def ignore(result: GenResult) -> None:
    pass


def client_error() -> type[Exception]:
    """What vLLM raises for a request that it refuses."""
    from vllm.exceptions import VLLMClientError

    return VLLMClientError


class FreeFlight(Flight):
    """Free text, ended by a stop id or max_tokens."""

    def start(self) -> None:
        r = self.request
        self.ask(
            self,
            r.prompt_ids,
            sampling_params(r.max_tokens, r.temperature, r.top_p, r.stop_ids, seed=r.seed),
            None,
        )

    def take(self, completion: Any, versions: list[int], tag: Any) -> None:
        finish: Literal["stop", "length"] = "length" if completion.finish_reason == "length" else "stop"
        logprobs = [next(iter(position.values())).logprob for position in completion.logprobs]
        self.conclude(GenResult(self.request.id, list(completion.token_ids), logprobs, versions, finish=finish))


class ChoiceFlight(Flight):
    """One legal reply, sampled token by token along the trie of all of them.

    vLLM is asked only where there is a choice; forced tokens have probability 1.
    """

    def start(self) -> None:
        self.output_ids: list[int] = []
        self.logprobs: list[float] = []
        self.versions: list[int] = []
        self.allowed: list[list[int]] = []
        self.walk(build_trie(self.request.choices))

    def walk(self, place: Place) -> None:
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
        self.ask(self, r.prompt_ids + self.output_ids, params, end)

    def take(self, completion: Any, versions: list[int], tag: Node) -> None:
        (token,) = completion.token_ids
        self.append(token, completion.logprobs[0][token].logprob, versions[0], list(tag))
        self.walk(tag[token])

    def append(self, token: int, logprob: float, version: int, allowed: list[int]) -> None:
        self.output_ids.append(token)
        self.logprobs.append(logprob)
        self.versions.append(version)
        self.allowed.append(allowed)


class ReadFlight(Flight):
    """The probability of every legal reply: one vLLM request per branching of their trie, all at once.

    Temperature 0 reads at temperature 1; top_p is ignored. A weight update between the answers would mix two
    policies, so everything is then asked again.
    """

    def start(self) -> None:
        r = self.request
        questions = read_plan(r.choices)
        self.pending = len(questions)
        self.read: dict[tuple[int, ...], dict[int, float]] = {}
        self.readers: set[int] = set()
        if not questions:
            self.end(self.version)
        for prefix, children, part in questions:
            params = sampling_params(1, r.temperature or 1.0, allowed=children, read=part)
            self.ask(self, [*r.prompt_ids, *prefix], params, (prefix, part))

    def take(self, completion: Any, versions: list[int], tag: tuple[tuple[int, ...], Sequence[int]]) -> None:
        prefix, part = tag
        position = completion.logprobs[0]
        self.read.setdefault(prefix, {}).update({token: position[token].logprob for token in part})
        self.readers.update(versions)
        self.pending -= 1
        if self.pending == 0:
            if len(self.readers) == 1:
                self.end(versions[0])
            else:
                self.start()

    def end(self, version: int) -> None:
        logprobs = choice_logprobs(self.request.choices, self.read)
        self.conclude(GenResult(self.request.id, [], [], [version], choice_logprobs=logprobs))
