"""Sample: the one thing a learner consumes. Learners know nothing of protocols, judges or algorithms."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Sample:
    """One training sequence for one policy. Axes: S sequence tokens, L tokens that carry loss."""

    token_ids_S: list[int]
    positions_L: list[int]
    """Indices into token_ids_S of the tokens that carry loss; each is predicted from the token before it."""
    advantages_L: list[float]
    """Policy gradient: advantage of each token. Imitation: its weight."""
    logprobs_L: list[float]
    """Log-probability under the policy that sampled it (0 where unknown, as in SFT)."""
    versions_L: list[int]
    allowed_L: list[tuple[int, ...]] | None = None
    """Legal token ids at each loss position (the mask that decoding used); None: all are legal."""
    temperature: float = 1.0
    group: str = ""
    """The group key (task, protocol, role, situation, turn) as text, for inspection."""
    tags: dict[str, str] = field(default_factory=dict)
    """episode, role, ...: for metrics per role."""
    segments_L: list[int] | None = None
    """Which reply of the sequence each token belongs to, for losses and normalisation per reply; None: all to one."""
    proximal_logprobs_L: list[float] | None = None
    """Log-probability under the learner's weights at the start of the step; None: not computed."""
    reference_logprobs_L: list[float] | None = None
    """Log-probability under a frozen reference, with the same mask and temperature; None: there is none."""
    rewards_L: list[float] | None = None
    """For a critic (learners/credit/gae.py): what was paid after each token, before the next; None: there is none."""
    values_L: list[float] | None = None
    """The critic's value before each token, at the start of the step."""
    returns_L: list[float] | None = None
    """What the critic aims at before each token."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two replies to the same prompt, one sample each, for the losses of learners/losses/preference.py."""

    chosen: Sample
    rejected: Sample
    probability: float
    """That the chosen one is better, from the rewards of both; more than 1/2."""
    win_rates: tuple[float, float] = (0.75, 0.25)
    """Of the chosen and the rejected one: mean probability of being better than a reply to this prompt, itself
    included (1/2)."""
    mismatched: Sample | None = None
    """A reply to another prompt after this one, where a loss measures that (KTO)."""
