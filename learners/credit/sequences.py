"""Turns become training sequences: the turns of a seat share one while its chat only grew, checked on token ids."""

from __future__ import annotations

from collections.abc import Sequence

from learners.credit.turns import CreditedTurn, loss_steps
from learners.types import Sample
from protocols.types import TokenTrace


def to_sequences(turns: Sequence[CreditedTurn]) -> list[Sample]:
    """One sample per seat and episode while its chat only grew; a new one where it did not.

    `turns` have those of a seat in order and side by side. A sample has one temperature, and either all of its tokens
    have a mask or none has: turns that differ start a new one. Only sampled tokens carry loss: not prompts, and not
    tokens that were the only legal one.
    """
    samples: list[Sample] = []
    seat: tuple[str, str] | None = None
    for one in turns:
        last = samples[-1] if samples and seat == (one.episode.id, one.turn.seat) else None
        if last is None or not _continues(last, one.trace):
            last = _start(one)
            samples.append(last)
        elif one.group not in last.group.split("; "):
            last.group += f"; {one.group}"
        seat = (one.episode.id, one.turn.seat)
        _append(last, one)
    return samples


def _continues(sample: Sample, trace: TokenTrace) -> bool:
    length = len(sample.token_ids_S)
    return (
        sample.temperature == trace.temperature
        and (sample.allowed_L is not None) == bool(trace.allowed_T)
        and sample.token_ids_S == list(trace.prompt_ids_P[:length])
    )


def _start(one: CreditedTurn) -> Sample:
    tags = {"episode": one.episode.id, "seat": one.turn.seat, "role": one.turn.role}
    allowed_L: list[tuple[int, ...]] | None = [] if one.trace.allowed_T else None
    return Sample([], [], [], [], [], allowed_L, one.trace.temperature, one.group, tags, segments_L=[])


def _append(sample: Sample, one: CreditedTurn) -> None:
    trace = one.trace
    start = len(trace.prompt_ids_P)
    length = len(trace.output_ids_T)
    assert start > 0, "the first token of a sequence cannot be predicted"
    assert len(trace.versions_T) == length and len(trace.logprobs_T) in (0, length), "trace of unequal lengths"
    sample.token_ids_S = [*trace.prompt_ids_P, *trace.output_ids_T]
    steps = loss_steps(trace)
    sample.positions_L += [start + i for i in steps]
    sample.advantages_L += [one.advantage] * len(steps)
    sample.logprobs_L += [trace.logprobs_T[i] if trace.logprobs_T else 0.0 for i in steps]
    sample.versions_L += [trace.versions_T[i] for i in steps]
    if one.paid is not None:
        sample.rewards_L = [*(sample.rewards_L or ()), *[0.0] * (len(steps) - 1), one.paid]
    assert sample.segments_L is not None
    sample.segments_L += [max(sample.segments_L, default=-1) + 1] * len(steps)
    if sample.allowed_L is not None:
        sample.allowed_L += [trace.allowed_T[i] for i in steps]
