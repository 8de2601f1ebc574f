"""What a learner step takes: samples one by one, or pairs of replies that a preference loss compares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from configs.schema.run import Packing
from learners.batches.batching import spread
from learners.batches.packing import families, split as packing_split
from learners.types import Pair, Sample

Lesson = Sample | Pair


def sequences(lessons: Iterable[Lesson]) -> list[Sample]:
    """The samples that train. Those of a pair lie side by side, the chosen one first."""
    parts = ((one.chosen, one.rejected) if isinstance(one, Pair) else (one,) for one in lessons)
    return [sample for part in parts for sample in part]


def mismatches(lessons: Iterable[Lesson]) -> list[Sample]:
    """Those that only measure (KTO), in the order of their pairs."""
    pairs = (one for one in lessons if isinstance(one, Pair))
    return [pair.mismatched for pair in pairs if pair.mismatched is not None]


def share(lessons: Sequence[Lesson], ranks: int, packing: Packing = "none") -> list[list[int]]:
    """Indices of lessons for each rank, so that ranks hold about the same number of tokens."""
    groups = kept_together(lessons, packing)
    sizes = [sum(len(sample.token_ids_S) for i in group for sample in sequences([lessons[i]])) for group in groups]
    return [[i for group in part for i in groups[group]] for part in spread(sizes, ranks)]


def kept_together(lessons: Sequence[Lesson], packing: Packing) -> list[list[int]]:
    """Indices of lessons that one rank and one minibatch should have, since they begin alike (packing: prefixes)."""
    if any(isinstance(one, Pair) for one in lessons):
        return [[i] for i in range(len(lessons))]
    return families(sequences(lessons), packing)


def split(lessons: Sequence[Lesson], micro_tokens: int, packing: Packing = "none") -> tuple[list[list[int]], int]:
    """Micro-batches as indices of `sequences(lessons)`, and the width of a packed row: packing.split, with pairs kept
    together, which are not packed."""
    if not any(isinstance(one, Pair) for one in lessons):
        return packing_split(sequences(lessons), micro_tokens, packing)
    # Two rows as wide as the longer reply.
    longer = [max(sequences([one]), key=lambda sample: len(sample.token_ids_S)) for one in lessons]
    parts, _ = packing_split(longer, micro_tokens // 2)
    return [[k for i in part for k in (2 * i, 2 * i + 1)] for part in parts], 0


def compared(lessons: Sequence[Lesson], score: Callable[[Sequence[Sample]], list[list[float]]]) -> list[Lesson]:
    """The lessons with the reference's log-probabilities, which `score` gives for every loss token."""
    values, others = iter(score(sequences(lessons))), iter(score(mismatches(lessons)))

    def known(sample: Sample, found: Iterator[list[float]]) -> Sample:
        return replace(sample, reference_logprobs_L=next(found))

    done: list[Lesson] = []
    for one in lessons:
        if isinstance(one, Pair):
            chosen, rejected = known(one.chosen, values), known(one.rejected, values)
            other = None if one.mismatched is None else known(one.mismatched, others)
            done.append(replace(one, chosen=chosen, rejected=rejected, mismatched=other))
        else:
            done.append(known(one, values))
    return done
