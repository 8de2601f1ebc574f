"""The signal `truth`: a judge learns from the right answers of the questions that it was asked itself.

A verdict is a read of probabilities: nothing is sampled, so nothing could be reinforced. But the episode holds the
question, and the right reply where the task has an answer. Each choice of a question becomes one sample: the prompt
that the judge saw, that choice, and the probability that the judge should have given it, for the losses of
learners/losses/scoring.py. Only tasks of the trusted slice train (tasks/trusted.py); the metrics also cover the other
tasks, so that they show a judge that learns its slice by heart.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from configs.methods import SIGNALS
from learners.types import Sample
from protocols.types import Episode, Task, Turn
from tasks.trusted import trusted

UNKNOWN_VERSION = -1
"""Of tokens whose own probability was not recorded: `sampler_gap` leaves them out."""


@dataclass(frozen=True)
class Answers:
    """What one learner may know of the right answers, and how its policy writes them."""

    trusted: float = 1.0
    """Share of the tasks whose right answers the learner may know (LearnerConfig.trusted)."""
    cluster: Callable[[Task], str] = lambda task: task.parent or task.id
    """TaskSource.cluster."""
    encode: Callable[[tuple[str, ...]], Sequence[tuple[int, ...]]] | None = None
    """Token ids of each of several legal replies, none a prefix of another. None: no poll can be learned from."""
    every_choice: bool = False
    """Whether choices that should have probability 0 are samples too (the Brier score reads them)."""

    def known(self, task: Task) -> bool:
        """Whether this learner may be told what is right."""
        return trusted(self.cluster(task), self.trusted)


@dataclass(slots=True)
class Poll:
    """One question to a judge and what it said. `targets_C`: the probabilities that it should have given."""

    episode: Episode
    turn: Turn
    right: int
    known: bool
    mirror: Poll | None = None
    """The same question with the claims in the other order."""

    def targets(self, consistency: float) -> list[float]:
        """(y + w q) / (1 + w), y the truth, q the probabilities that the same claims got in the other order, w the
        weight of their agreement.

        (p - y)^2 + w (p - q)^2 is (1 + w) (p - t)^2 and a constant with that t, and q is not moved by this half of the
        pair: both halves together have the gradient of w (p - q)^2. Where judge and truth agree on a probability in
        both orders, t is that probability in the mean: the score stays proper there.
        """
        target_C = [float(c == self.right) for c in range(len(self.turn.choices))]
        if self.mirror is None or not consistency:
            return target_C
        other_C = self.mirror.turn.probs[::-1]
        return [(y + consistency * q) / (1.0 + consistency) for y, q in zip(target_C, other_C)]


@SIGNALS.register("truth", reads={"consistency"}, needs={"polls"})
def truth_samples(
    episodes: Iterable[Episode], policy: str, consistency: float, answers: Answers
) -> tuple[list[Sample], dict[str, float]]:
    """The samples of the polls of `policy` on trusted tasks, and metrics about all its polls (`_poll_metrics`)."""
    assert answers.encode is not None, "a judge's answers need a tokenizer"
    counts: Counter[str] = Counter()
    polls = list(_polls(episodes, policy, answers, counts))
    codes: dict[tuple[str, ...], list[tuple[int, ...]]] = {}
    samples: list[Sample] = []
    for poll in polls:
        if not poll.known:
            continue
        choices = poll.turn.choices
        if choices not in codes:
            codes[choices] = [tuple(ids) for ids in answers.encode(choices)]
        samples += _samples(poll, codes[choices], poll.targets(consistency), answers.every_choice)
    metrics = {name: float(counts[name]) for name in ("polls", "polls_without_answer", "polls_without_trace")}
    metrics |= {"polls_trained": float(sum(poll.known for poll in polls)), "samples": float(len(samples))}
    metrics["loss_tokens"] = float(sum(len(sample.positions_L) for sample in samples))
    return samples, metrics | _poll_metrics(polls)


def _polls(
    episodes: Iterable[Episode], policy: str, answers: Answers, counts: Counter[str]
) -> Iterator[Poll]:
    """The readable polls of `policy` whose right answer there is, those of one pair of orders side by side."""
    for episode in episodes:
        if episode.status != "ok":
            continue
        known = answers.known(episode.task)
        asked: dict[str, Poll] = {}
        for turn in episode.turns:
            if turn.policy != policy or not turn.read or len(turn.probs) != len(turn.choices):
                continue
            counts["polls"] += 1
            if turn.target not in turn.choices:
                counts["polls_without_answer"] += 1
            elif turn.trace is None or not turn.trace.prompt_ids_P:
                counts["polls_without_trace"] += 1
            else:
                poll = Poll(episode, turn, turn.choices.index(turn.target), known)
                before = asked.get(turn.seat)
                if before and (before.turn.situation, turn.situation) == ("given", "reversed"):
                    before.mirror, poll.mirror = poll, before
                asked[turn.seat] = poll
                yield poll


def _samples(
    poll: Poll, codes_C: Sequence[tuple[int, ...]], targets_C: Sequence[float], every_choice: bool
) -> Iterator[Sample]:
    turn, trace = poll.turn, poll.turn.trace
    assert trace is not None
    start = len(trace.prompt_ids_P)
    version = trace.versions_T[0] if trace.versions_T else UNKNOWN_VERSION
    for ids, target, prob in zip(codes_C, targets_C, turn.probs):
        allowed_T = legal_tokens(codes_C, ids)
        branches = [i for i, allowed in enumerate(allowed_T) if len(allowed) > 1]
        if not branches or not (target or every_choice):
            continue
        # The probability of a choice is that of its one token that was a choice at all; of several, only the product
        # is on record.
        recorded = len(branches) == 1 and prob > 0.0
        size = len(branches)
        yield Sample(
            token_ids_S=[*trace.prompt_ids_P, *ids[: branches[-1] + 1]],
            positions_L=[start + i for i in branches],
            advantages_L=[target] * size,
            logprobs_L=[math.log(prob) if recorded else 0.0] * size,
            versions_L=[version if recorded else UNKNOWN_VERSION] * size,
            allowed_L=[allowed_T[i] for i in branches],
            temperature=trace.temperature,
            group=f"task={poll.episode.task.id} poll={turn.turn} {turn.situation}",
            tags={"episode": poll.episode.id, "seat": turn.seat, "role": turn.role},
            segments_L=[0] * size,
        )


def legal_tokens(codes_C: Sequence[tuple[int, ...]], ids: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The token ids that are legal at each step of `ids`, ascending, when the reply must be one of `codes_C`."""
    legal_T = []
    open_C = list(codes_C)
    for step, token in enumerate(ids):
        legal_T.append(tuple(sorted({code[step] for code in open_C})))
        open_C = [code for code in open_C if code[step] == token]
    return legal_T


def _poll_metrics(polls: Sequence[Poll]) -> dict[str, float]:
    """How good the verdicts were *before* this step, for trusted tasks and for the others: accuracy (a tie counts as a
    guess), log_score (nats), brier (halved: from 0 to 1); and the share of pairs of orders whose verdicts differ."""
    values: dict[str, list[float]] = defaultdict(list)
    for poll in polls:
        probs_C = np.array(poll.turn.probs)
        truth_C = np.eye(len(probs_C))[poll.right]
        best_C = probs_C >= probs_C.max() - 1e-12
        part = "trusted" if poll.known else "others"
        values[f"accuracy/{part}"].append(float(best_C[poll.right] / best_C.sum()))
        values[f"log_score/{part}"].append(-math.log(max(float(probs_C[poll.right]), 1e-30)))
        values[f"brier/{part}"].append(float(((probs_C - truth_C) ** 2).sum() / 2))
        if poll.mirror is not None and poll.turn.situation == "reversed":
            other_C = np.array(poll.mirror.turn.probs[::-1])
            values["swap_gap"].append(float(np.abs(probs_C - other_C).max()))
            values["swap_flip_rate"].append(float(probs_C.argmax() != other_C.argmax()))
    return {name: float(np.mean(numbers)) for name, numbers in values.items()}
