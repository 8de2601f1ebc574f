"""Episodes -> pairs of replies to the same prompt, for the losses of learners/losses/preference.py."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from configs.schema.run import AdvantageConfig, SignalConfig
from learners.credit.advantages import Key, is_flat
from learners.credit.samples import Step, check_settings, figures_of, keys_of, pack, rewarded_steps
from learners.credit.truth import Answers
from learners.types import Pair, Sample
from protocols.types import Episode


def preference_pairs(
    episodes: Iterable[Episode], policy: str, config: AdvantageConfig, gamma: float = 7.0
) -> list[Pair]:
    """The pairs of `build_pairs`."""
    return build_pairs(episodes, policy, config, gamma)[0]


def build_pairs(
    episodes: Iterable[Episode],
    policy: str,
    config: AdvantageConfig,
    gamma: float = 7.0,
    mismatch: bool = False,
    answers: Answers | None = None,
) -> tuple[list[Pair], dict[str, float]]:
    """The best and the worst of all replies of `policy` that a group holds to the same prompt, token by token: two
    replies after different histories are no preference. None where their credits are alike. And figures as for
    samples; a group is the replies to one prompt, `groups_without_pair` counts those that teach nothing.

    The probability is 1 / (1 + e^(-gamma (r1 - r2))), r the credits (arXiv 2409.16636, whose rewards are in [0, 1] and
    whose gamma is 7); win rates are means of it over the group. Of `config`, `group_by`, `credit` and `discount` are
    read. `mismatch`: with replies to other prompts. `answers`: as for samples.
    """
    check_settings(config, SignalConfig())
    counts: Counter[str] = Counter()
    steps = rewarded_steps(episodes, policy, config, counts, answers)
    prompts: dict[tuple[Key, tuple[int, ...], float], list[Step]] = defaultdict(list)
    for step, key in zip(steps, keys_of(steps, config.group_by)):
        step.advantage, step.group = 1.0, " ".join(key)
        prompts[key, tuple(step.trace.prompt_ids_P), step.trace.temperature].append(step)
    pairs: list[Pair] = []
    extremes: list[tuple[Step, Step]] = []
    for members in prompts.values():
        counts["groups"] += 1
        counts["singleton_groups"] += len(members) == 1
        credits_G = np.array([step.credit for step in members])
        if is_flat(credits_G):
            counts["zero_variance_groups"] += len(members) > 1
            counts["groups_without_pair"] += 1
            continue
        best, worst = (choose(members, key=lambda step: step.credit) for choose in (max, min))
        best.live = worst.live = True
        chosen, rejected = (pack([step])[0] for step in (best, worst))
        wins = [float(np.mean(_beats(step.credit - credits_G, gamma))) for step in (best, worst)]
        probability = float(_beats(best.credit - worst.credit, gamma))
        pairs.append(Pair(chosen, rejected, probability, (wins[0], wins[1])))
        extremes.append((best, worst))
    if mismatch:
        pairs = [replace(pair, mismatched=_mismatched(extremes, i)) for i, pair in enumerate(pairs)]
    figures = figures_of(steps, [sample for pair in pairs for sample in (pair.chosen, pair.rejected)], counts)
    return pairs, figures | {"pairs": float(len(pairs)), "groups_without_pair": float(counts["groups_without_pair"])}


def _beats(gaps_G: Any, gamma: float) -> Any:
    """1 / (1 + e^(-gamma gap)), without overflow: that a reply whose credit is larger by `gap` is the better one."""
    return 0.5 + 0.5 * np.tanh(0.5 * gamma * gaps_G)


def _mismatched(extremes: Sequence[tuple[Step, Step]], i: int) -> Sample | None:
    """The prompt of pair i and a reply of the next pair with another prompt, by turns the best and the worst one;
    None where all prompts are alike."""
    prompt = extremes[i][0].trace.prompt_ids_P
    for j in range(i + 1, i + len(extremes)):
        other = extremes[j % len(extremes)][i % 2]
        if other.trace.prompt_ids_P != prompt:
            return pack([replace(other, trace=replace(other.trace, prompt_ids_P=prompt))])[0]
    return None
