"""The training batch of one learner step: samples, or pairs of replies that a preference loss compares.

A pair is never torn: both of its replies are on one rank and in one micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import replace

from configs.methods import LOSSES, is_preference
from configs.schema.run import LearnerConfig, Packing
from learners.batches.batching import spread
from learners.batches.packing import families, split as packing_split
from learners.credit.pairing import build_pairs
from learners.credit.samples import build_samples
from learners.credit.truth import Answers
from learners.types import Pair, Sample
from protocols.types import Episode

Example = Sample | Pair
LABEL_GAMMA = 7.0
"""Default of loss.label_gamma: that of arXiv 2409.16636, whose rewards are in [0, 1]."""


def build_training_batch(
    episodes: Iterable[Episode],
    policy: str,
    config: LearnerConfig,
    baselines: MutableMapping[str, float],
    answers: Answers | None = None,
) -> tuple[Sequence[Example], dict[str, float]]:
    """What the loss of `policy` learns from these episodes, and metrics about it.

    `baselines`: the policy's moving averages, kept from batch to batch. `answers`: which right answers the policy may
    learn from; None: all. Raises UnknownSetting.
    """
    loss = config.loss
    if not is_preference(loss.kind):
        answers = replace(answers or Answers(), every_choice="every choice" in LOSSES.needs(loss.kind))
        return build_samples(episodes, policy, config.advantage, baselines, config.signal, answers)
    gamma = LABEL_GAMMA if loss.label_gamma is None else loss.label_gamma
    mismatch = "mismatched" in LOSSES.needs(loss.kind)
    return build_pairs(episodes, policy, config.advantage, gamma, mismatch, answers)


def sequences(examples: Iterable[Example]) -> list[Sample]:
    """The samples that carry loss; those of a pair lie side by side, the chosen one first."""
    parts = ((one.chosen, one.rejected) if isinstance(one, Pair) else (one,) for one in examples)
    return [sample for part in parts for sample in part]


def mismatches(examples: Iterable[Example]) -> list[Sample]:
    """The replies to other prompts that KTO measures its drift on, in the order of their pairs."""
    pairs = (one for one in examples if isinstance(one, Pair))
    return [pair.mismatched for pair in pairs if pair.mismatched is not None]


def share(examples: Sequence[Example], ranks: int, packing: Packing = "none") -> list[list[int]]:
    """Indices of examples for each rank, so that ranks hold about the same number of tokens."""
    groups = kept_together(examples, packing)
    sizes = [sum(len(sample.token_ids_S) for i in group for sample in sequences([examples[i]])) for group in groups]
    return [[i for group in part for i in groups[group]] for part in spread(sizes, ranks)]


def kept_together(examples: Sequence[Example], packing: Packing) -> list[list[int]]:
    """Indices of examples that belong on one rank and in one minibatch, as they begin alike (packing: prefixes)."""
    if any(isinstance(one, Pair) for one in examples):
        return [[i] for i in range(len(examples))]
    return families(sequences(examples), packing)


def split(examples: Sequence[Example], micro_tokens: int, packing: Packing = "none") -> tuple[list[list[int]], int]:
    """Micro-batches as indices of `sequences(examples)`, and the width of a packed row: packing.split, with pairs kept
    together, which are not packed."""
    if not any(isinstance(one, Pair) for one in examples):
        return packing_split(sequences(examples), micro_tokens, packing)
    # Two rows as wide as the longer reply.
    longer = [max(sequences([one]), key=lambda sample: len(sample.token_ids_S)) for one in examples]
    parts, _ = packing_split(longer, micro_tokens // 2)
    return [[k for i in part for k in (2 * i, 2 * i + 1)] for part in parts], 0


def with_reference(
    examples: Sequence[Example], score: Callable[[Sequence[Sample]], list[list[float]]]
) -> list[Example]:
    """The examples with the reference's log-probability of every loss token, as `score` computes them."""
    values, others = iter(score(sequences(examples))), iter(score(mismatches(examples)))

    def scored(sample: Sample, logprobs: Iterator[list[float]]) -> Sample:
        return replace(sample, reference_logprobs_L=next(logprobs))

    done: list[Example] = []
    for one in examples:
        if isinstance(one, Pair):
            chosen, rejected = scored(one.chosen, values), scored(one.rejected, values)
            other = None if one.mismatched is None else scored(one.mismatched, others)
            done.append(replace(one, chosen=chosen, rejected=rejected, mismatched=other))
        else:
            done.append(scored(one, values))
    return done
