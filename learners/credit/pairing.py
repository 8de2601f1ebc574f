"""Episodes become pairs of replies to the same prompt, for the losses of learners/losses/preference.py."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from configs.schema.run import AdvantageConfig, SignalConfig
from learners.credit.advantages import Floats, Key, is_flat
from learners.credit.samples import check_settings, sample_metrics
from learners.credit.sequences import to_sequences
from learners.credit.truth import Answers
from learners.credit.turns import CreditedTurn, credited_turns, keys_of
from learners.types import Pair, Sample
from protocols.types import Episode


def build_pairs(
    episodes: Iterable[Episode],
    policy: str,
    config: AdvantageConfig,
    gamma: float = 7.0,
    mismatch: bool = False,
    answers: Answers | None = None,
) -> tuple[list[Pair], dict[str, float]]:
    """Pairs of the best and the worst reply of `policy` that a group holds to the same prompt, and metrics about them.

    Prompts are compared token by token: two replies after different histories are no preference. Replies of equal
    credit make no pair. The probability of a pair is 1 / (1 + e^(-gamma (r1 - r2))), r the credits (arXiv 2409.16636,
    whose rewards are in [0, 1] and whose gamma is 7); win rates are means of it over the group. Of `config`,
    `group_by`, `credit` and `discount` are read. `mismatch`: with replies to other prompts. `answers` and metrics: as
    for samples; a group is the replies to one prompt, and `groups_without_pair` counts those that teach nothing.
    """
    check_settings(config, SignalConfig())
    counts: Counter[str] = Counter()
    turns = credited_turns(episodes, policy, config, counts, answers)
    prompts: dict[tuple[Key, tuple[int, ...], float], list[CreditedTurn]] = defaultdict(list)
    for turn, key in zip(turns, keys_of(turns, config.group_by)):
        turn.advantage, turn.group = 1.0, " ".join(key)
        prompts[key, tuple(turn.trace.prompt_ids_P), turn.trace.temperature].append(turn)
    pairs: list[Pair] = []
    extremes: list[tuple[CreditedTurn, CreditedTurn]] = []
    for group in prompts.values():
        counts["groups"] += 1
        counts["singleton_groups"] += len(group) == 1
        credits_G = np.array([turn.credit for turn in group])
        if is_flat(credits_G):
            counts["zero_variance_groups"] += len(group) > 1
            counts["groups_without_pair"] += 1
            continue
        best, worst = (choose(group, key=lambda turn: turn.credit) for choose in (max, min))
        best.live = worst.live = True
        chosen, rejected = (to_sequences([turn])[0] for turn in (best, worst))
        wins = [float(np.mean(_beats(turn.credit - credits_G, gamma))) for turn in (best, worst)]
        probability = float(_beats(np.array(best.credit - worst.credit), gamma))
        pairs.append(Pair(chosen, rejected, probability, (wins[0], wins[1])))
        extremes.append((best, worst))
    if mismatch:
        pairs = [replace(pair, mismatched=_mismatched(extremes, i)) for i, pair in enumerate(pairs)]
    metrics = sample_metrics(turns, [sample for pair in pairs for sample in (pair.chosen, pair.rejected)], counts)
    return pairs, metrics | {"pairs": float(len(pairs)), "groups_without_pair": float(counts["groups_without_pair"])}


def _beats(gaps_G: Floats, gamma: float) -> Floats:
    """1 / (1 + e^(-gamma gap)), without overflow: that a reply whose credit is larger by `gap` is the better one."""
    return 0.5 + 0.5 * np.tanh(0.5 * gamma * gaps_G)


def _mismatched(extremes: Sequence[tuple[CreditedTurn, CreditedTurn]], i: int) -> Sample | None:
    """The prompt of pair i and a reply of the next pair with another prompt, alternately the best and the worst one;
    None where all prompts are alike."""
    prompt = extremes[i][0].trace.prompt_ids_P
    for j in range(i + 1, i + len(extremes)):
        other = extremes[j % len(extremes)][i % 2]
        if other.trace.prompt_ids_P != prompt:
            return to_sequences([replace(other, trace=replace(other.trace, prompt_ids_P=prompt))])[0]
    return None
