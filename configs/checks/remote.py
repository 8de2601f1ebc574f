"""What is wrong with remote policies, and with the places where they are to play."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from configs.schema.run import PolicyConfig, RemoteConfig
from protocols.base import Protocol
from protocols.contract.drive import Trace, drive, parts_of, phases_of
from protocols.contract.tasks import synthetic
from protocols.types import Reply, TurnRequest

HUMAN = "human"
"""The policy under which people play."""
ORDERS = 16
"""Plays in which everyone is heard by everyone who may ever hear them, where the order of turns is drawn."""
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
Problem = tuple[str, str, str]
"""(setting, message, what would be valid)"""


def remote_problems(policy: PolicyConfig) -> Iterator[Problem]:
    """Mistakes in the settings of one policy of kind remote."""
    remote = policy.remote
    url = urlsplit(remote.url)
    if url.scheme not in ("http", "https") or not url.netloc:
        yield "remote.url", "must be a URL", "for example https://api.example.org/v1"
    elif url.username or url.password or url.query or url.fragment:
        yield "remote.url", "holds more than scheme, host and path", "a key goes into a variable: api_key_env"
    if not remote.model:
        yield "remote.model", "missing", "the model's name at that URL"
    if remote.api_key_env and not _VARIABLE.fullmatch(remote.api_key_env):
        # Not repeated: it may be the key.
        yield (
            "remote.api_key_env",
            "is no name of an environment variable",
            "a name, for example OPENAI_API_KEY",
        )
    if policy.trained:
        yield "trained", "a remote policy is never trained", "false"


def deaf_to(
    protocol: Protocol, raw: Mapping[str, Any], remote: Mapping[str, RemoteConfig]
) -> Iterator[tuple[str, str, str]]:
    """(role, message, what would be valid) of roles that no remote policy can or should play.

    Found by driving the protocol, of which `raw` is the YAML. `remote`: role -> the policy to play it.
    """
    drawn = any(phase.get("speakers") == "shuffled" for phase in phases_of(raw))
    try:
        traces = [
            drive(protocol, synthetic(raw, seed), seed, _Writer(raw))
            for seed in range(ORDERS if drawn else 1)
        ]
    except Exception as error:  # whatever a kind of one's own may raise: what was not checked is not let through
        for role in sorted(remote):
            said = f"{type(error).__name__}: {error}"
            message = f"whether a remote policy can play {role!r} cannot be checked on a made-up task: {said}"
            yield role, message, "another policy, or a protocol that `protocol check` can play"
        return
    read = {request.role for trace in traces for request in trace.requests() if request.read}
    for role, settings in remote.items():
        if role in read and not settings.logprobs:
            valid = "logprobs: true, where the API gives them; another policy, or a judge whose replies are counted"
            yield (
                role,
                f"role {role!r} is asked for probabilities, which a remote policy does not have",
                valid,
            )
    for role in sorted(set().union(*map(_unfenced, traces)) & set(remote)):
        message = f"role {role!r} hears what others write without a mark on each line: a prompt to an API must fence it"
        yield role, message, "{{ quoted }} in place of {{ text }}"


class _Writer:
    """Two marked lines wherever anything may be written, in each part of a turn that has parts."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.parts = parts_of(raw)
        self.rng = random.Random(0)
        self.said = 0

    def __call__(self, request: TurnRequest) -> Reply:
        if request.read:
            return Reply(request.choices[0], tuple(1 / len(request.choices) for _ in request.choices))
        if request.choices:
            return Reply(self.rng.choice(request.choices))
        self.said += 1
        lines = f"zq{self.said:05d}a\nzq{self.said:05d}b"
        parts = self.parts.get(request.phase, ())
        return Reply("".join(f"<{name}>\n{lines}\n</{name}>" for name in parts) or lines)


def _unfenced(trace: Trace) -> set[str]:
    """Roles that hear free text of another seat of the same play on lines that do not begin with `> `."""
    found: set[str] = set()
    asked = [(ask, answer) for asks in trace.rounds for ask, answer in asks if isinstance(ask, TurnRequest)]
    marks = {
        line: ask.seat for ask, answer in asked if not ask.choices and isinstance(answer, Reply)
        for line in answer.text.split("\n") if line.startswith("zq")
    }  # fmt: skip
    for ask, _ in asked:
        lines = [line for m in ask.messages if m.speaker != "assistant" for line in m.text.splitlines()]
        bare = [line for line in lines if not line.startswith("> ")]
        if any(mark in line for mark, seat in marks.items() if seat != ask.seat for line in bare):
            found.add(ask.role)
    return found.union(*(_unfenced(child) for child in trace.children))
