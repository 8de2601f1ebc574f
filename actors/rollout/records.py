"""Episode <-> one line of JSON: the format of `episodes.jsonl`.

One line holds one episode. To keep a line short, a turn stores only what is new since the same seat's previous
turn: `messages` after the first `keep` ones, `prompt` token ids after the first `keep` ids of the previous prompt +
output; `role`, `policy`, `phase`, `choices`, `read`, `fresh` only when they changed. Choices taken from
`Task.evidence` or `Task.proposals` are stored as `["evidence", i, ...]` with `listed`: the indices that are
*missing*. Fields at their default are left out. `Task.domain` and `Task.game` are code, not record, and are left out;
`meta` must be JSON (tuples come back as lists). Everything else comes back exactly, non-finite floats included (as the
strings "nan", "inf", "-inf").

The head of a line (`Head`) can be read without decoding the turns: a file of 160 MB is scanned in half a second.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from protocols.errors import UserError
from protocols.types import (
    Episode,
    Hidden,
    Judgment,
    Message,
    Outcome,
    Reward,
    Status,
    Task,
    TokenTrace,
    Turn,
)

Float = float | str


class DamagedRecord(UserError):
    """A line that is not an episode, and not the last line of the file (which a crash may cut off)."""


class Head(msgspec.Struct, omit_defaults=True):
    """What a line says before its turns."""

    id: str
    protocol: str
    parent: str | None = None
    status: Status = "ok"
    score: float | str | None = None
    tokens: int = 0
    """Tokens sampled in this episode, reads excluded."""
    meta: dict[str, Any] = {}


class TraceRecord(msgspec.Struct, omit_defaults=True, gc=False):
    keep: int = 0
    prompt: tuple[int, ...] = ()
    output: tuple[int, ...] = ()
    logprobs: tuple[Float, ...] = ()
    versions: tuple[int, ...] = ()
    allowed: tuple[tuple[int, ...], ...] = ()
    temperature: Float | None = None
    """None: 1."""


class TurnRecord(msgspec.Struct, omit_defaults=True, gc=False):
    """None means: as in the seat's previous turn."""

    seat: str
    turn: int = 0
    role: str | None = None
    policy: str | None = None
    phase: str | None = None
    keep: int = 0
    messages: Sequence[tuple[Literal["system", "user", "assistant"], str]] = ()
    text: str = ""
    choices: tuple[str | int, ...] | None = None
    listed: bool = False
    """`choices` is the name of a list of the task and the indices that are missing from it."""
    probs: tuple[Float, ...] = ()
    read: bool | None = None
    fresh: bool | None = None
    target: str | None = None
    situation: str = ""
    truncated: bool = False
    trace: TraceRecord | None = None


class TaskRecord(msgspec.Struct, omit_defaults=True, gc=False):
    id: str
    question: str
    answer: str | None = None
    choices: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    hidden: dict[str, tuple[str, tuple[str, ...]]] = {}
    proposals: tuple[str, ...] = ()
    parent: str | None = None


class JudgmentRecord(msgspec.Struct, omit_defaults=True, gc=False):
    seat: str
    scores: tuple[Float, ...] = ()
    valid: bool = True
    after_turn: int = 0
    rationale: str = ""
    decides: bool = True


class RewardRecord(msgspec.Struct, omit_defaults=True, gc=False):
    seat: str
    name: str
    value: Float
    turn: int | None = None


class EpisodeRecord(Head, omit_defaults=True):
    seed: int = 0
    reason: str = ""
    task: TaskRecord = msgspec.field(default_factory=lambda: TaskRecord("", ""))
    judgments: Sequence[JudgmentRecord] = ()
    rewards: Sequence[RewardRecord] = ()
    metrics: dict[str, Float] = {}
    turns: Sequence[TurnRecord] = ()


_ENCODER = msgspec.json.Encoder(enc_hook=lambda value: value.item())  # numpy scalars
_DECODER = msgspec.json.Decoder(EpisodeRecord)
_HEAD = msgspec.json.Decoder(Head)
_FIRST = Turn(seat="", role="", policy="", turn=0, phase="", messages=(), text="")
"""What a seat's first turn is compared with."""


def encode(episodes: Sequence[Episode]) -> bytes:
    """JSON lines, one per episode, each ended by a newline."""
    return b"".join(_ENCODER.encode(_pack(episode)) + b"\n" for episode in episodes)


def decode_line(line: bytes) -> Episode:
    """Inverse of `encode` for one line. Raises `msgspec.DecodeError` (a ValueError) when it is not an episode."""
    return _unpack(_DECODER.decode(line))


def decode_head(line: bytes) -> Head:
    """The head of one line; the rest is skipped (but must be well-formed JSON)."""
    return _HEAD.decode(line)


class Reader:
    """Iterates over the episodes of a file. `truncated` counts lines cut off at the end of the file (0 or 1)."""

    def __init__(self, path: Path | str, ids: Collection[str] | None = None) -> None:
        self.truncated = 0
        self._episodes = self._read(Path(path), None if ids is None else frozenset(ids))

    def __iter__(self) -> Iterator[Episode]:
        return self

    def __next__(self) -> Episode:
        return next(self._episodes)

    def _read(self, path: Path, ids: frozenset[str] | None) -> Iterator[Episode]:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    if ids is not None and _HEAD.decode(line).id not in ids:
                        continue
                    episode = decode_line(line)
                except msgspec.DecodeError as error:
                    if line.endswith(b"\n"):
                        raise DamagedRecord(f"{path}:{number}: {error}") from error
                    self.truncated += 1
                    return
                yield episode


def read(path: Path | str, ids: Collection[str] | None = None) -> Reader:
    """Episodes in file order, only those in `ids` where given. Raises `DamagedRecord`."""
    return Reader(path, ids)


def heads(path: Path | str) -> Iterator[tuple[Head, int, int]]:
    """(head, byte offset, byte length) of every whole line. Raises `DamagedRecord`."""
    offset = 0
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                head = _HEAD.decode(line)
            except msgspec.DecodeError as error:
                raise DamagedRecord(f"{path}:{number}: {error}") from error
            yield head, offset, len(line)
            offset += len(line)


def read_at(path: Path | str, places: Iterable[tuple[int, int]]) -> Iterator[Episode]:
    """Episodes at the (byte offset, byte length) places that `heads` gave."""
    with open(path, "rb") as file:
        for offset, length in places:
            file.seek(offset)
            yield decode_line(file.read(length))


def _pack(episode: Episode) -> EpisodeRecord:
    outcome = episode.outcome
    previous: dict[str, Turn] = {}
    turns = []
    tokens = 0
    for turn in episode.turns:
        turns.append(_pack_turn(turn, previous.get(turn.seat), episode.task))
        previous[turn.seat] = turn
        if turn.trace is not None:
            tokens += len(turn.trace.output_ids_T)
    return EpisodeRecord(
        id=episode.id,
        protocol=episode.protocol,
        parent=episode.parent,
        status=outcome.status,
        score=None if outcome.score is None else _float(outcome.score),
        tokens=tokens,
        meta=dict(episode.meta),
        seed=episode.seed,
        reason=outcome.reason,
        task=_pack_task(episode.task),
        judgments=[
            JudgmentRecord(j.seat, _floats(j.scores), j.valid, j.after_turn, j.rationale, j.decides)
            for j in outcome.judgments
        ],
        rewards=[RewardRecord(r.seat, r.name, _float(r.value), r.turn) for r in outcome.rewards],
        metrics={name: _float(value) for name, value in outcome.metrics.items()},
        turns=turns,
    )


def _pack_task(task: Task) -> TaskRecord:
    hidden = {name: (entry.text, entry.roles) for name, entry in task.hidden.items()}
    return TaskRecord(
        task.id, task.question, task.answer, task.choices, task.evidence, hidden, task.proposals, task.parent
    )


def _pack_turn(turn: Turn, before: Turn | None, task: Task) -> TurnRecord:
    choices: tuple[str | int, ...] | None
    if before is None:
        keep, trace_before, before = 0, None, _FIRST
    else:
        keep, trace_before = _shared(before.messages, turn.messages), before.trace
    choices, listed = (None, False) if turn.choices == before.choices else _pack_choices(turn.choices, task)
    return TurnRecord(
        turn.seat,
        turn.turn,
        None if turn.role == before.role else turn.role,
        None if turn.policy == before.policy else turn.policy,
        None if turn.phase == before.phase else turn.phase,
        keep,
        [(message.speaker, message.text) for message in turn.messages[keep:]],
        turn.text,
        choices,
        listed,
        _floats(turn.probs),
        None if turn.read == before.read else turn.read,
        None if turn.fresh == before.fresh else turn.fresh,
        turn.target,
        turn.situation,
        turn.truncated,
        None if turn.trace is None else _pack_trace(turn.trace, trace_before),
    )


def _pack_trace(trace: TokenTrace, before: TokenTrace | None) -> TraceRecord:
    keep = 0 if before is None else _shared(before.prompt_ids_P + before.output_ids_T, trace.prompt_ids_P)
    return TraceRecord(
        keep,
        trace.prompt_ids_P[keep:],
        trace.output_ids_T,
        _floats(trace.logprobs_T),
        trace.versions_T,
        trace.allowed_T,
        None if trace.temperature == 1.0 else _float(trace.temperature),
    )


def _pack_choices(choices: tuple[str, ...], task: Task) -> tuple[tuple[str | int, ...], bool]:
    """Names the list of the task that `choices` is an ordered part of, where that is shorter."""
    if len(choices) > 3:
        for name, whole in (("evidence", task.evidence), ("proposals", task.proposals)):
            chosen = set(choices)
            if 2 * len(choices) > len(whole) and tuple([text for text in whole if text in chosen]) == choices:
                return (name, *[index for index, text in enumerate(whole) if text not in chosen]), True
    return choices, False


def _without(whole: tuple[str, ...], missing: Sequence[int]) -> tuple[str, ...]:
    gone = set(missing)
    return tuple(text for index, text in enumerate(whole) if index not in gone)


def _shared(old: tuple[Any, ...], new: tuple[Any, ...]) -> int:
    """Length of the common prefix."""
    length = min(len(old), len(new))
    if old[:length] == new[:length]:
        return length
    return next(index for index in range(length) if old[index] != new[index])


def _float(value: float) -> Float:
    return value if math.isfinite(value) else repr(float(value))


def _floats(values: tuple[float, ...]) -> tuple[Float, ...]:
    return values if all(map(math.isfinite, values)) else tuple(map(_float, values))


def _unpack(record: EpisodeRecord) -> Episode:
    hidden = {name: Hidden(text, roles) for name, (text, roles) in record.task.hidden.items()}
    entry = record.task
    task = Task(
        entry.id,
        entry.question,
        entry.answer,
        entry.choices,
        entry.evidence,
        hidden,
        entry.proposals,
        parent=entry.parent,
    )
    outcome = Outcome(
        status=record.status,
        judgments=tuple(
            Judgment(j.seat, tuple(map(float, j.scores)), j.valid, j.after_turn, j.rationale, j.decides)
            for j in record.judgments
        ),
        rewards=tuple(Reward(r.seat, r.turn, float(r.value), r.name) for r in record.rewards),
        score=None if record.score is None else float(record.score),
        metrics={name: float(value) for name, value in record.metrics.items()},
        reason=record.reason,
    )
    previous: dict[str, Turn] = {}
    turns = []
    for turn_record in record.turns:
        turn = _unpack_turn(turn_record, previous.get(turn_record.seat), task)
        previous[turn.seat] = turn
        turns.append(turn)
    return Episode(
        record.id, record.protocol, task, record.seed, tuple(turns), outcome, record.parent, record.meta
    )


def _unpack_turn(record: TurnRecord, before: Turn | None, task: Task) -> Turn:
    before = before or _FIRST
    if record.choices is None:
        choices = before.choices
    elif record.listed:
        name, *missing = record.choices
        choices = _without(task.evidence if name == "evidence" else task.proposals, missing)  # type: ignore[arg-type]
    else:
        choices = record.choices  # type: ignore[assignment]
    new = tuple(Message(speaker, text) for speaker, text in record.messages)
    return Turn(
        seat=record.seat,
        role=before.role if record.role is None else record.role,
        policy=before.policy if record.policy is None else record.policy,
        turn=record.turn,
        phase=before.phase if record.phase is None else record.phase,
        messages=before.messages[: record.keep] + new,
        text=record.text,
        choices=choices,
        probs=tuple(map(float, record.probs)),
        read=before.read if record.read is None else record.read,
        fresh=before.fresh if record.fresh is None else record.fresh,
        target=record.target,
        situation=record.situation,
        truncated=record.truncated,
        trace=None if record.trace is None else _unpack_trace(record.trace, before.trace),
    )


def _unpack_trace(record: TraceRecord, before: TokenTrace | None) -> TokenTrace:
    old = () if before is None else (before.prompt_ids_P + before.output_ids_T)[: record.keep]
    return TokenTrace(
        prompt_ids_P=old + record.prompt,
        output_ids_T=record.output,
        logprobs_T=tuple(map(float, record.logprobs)),
        versions_T=record.versions,
        allowed_T=record.allowed,
        temperature=1.0 if record.temperature is None else float(record.temperature),
    )
