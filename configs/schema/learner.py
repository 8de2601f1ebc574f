"""The settings of learners: the `learner:` of a policy. Part of configs/schema/run.py, which has all others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Device = Literal["auto", "cpu", "cuda"]
Packing = Literal["none", "rows", "prefixes"]


@dataclass
class LossConfig:
    """Loss of one trained policy."""

    kind: str = "clip"
    """A loss of tokens (learners/losses/policy_gradient.py, scoring.py) or of pairs of replies (preference.py)."""
    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    """clip: where the advantage is negative, the ratio counts at most this much (more than 1); 0: no such bound."""
    normalise: Literal["auto", "token", "sequence", "constant"] = "auto"
    """Every token weighs the same (DAPO), every reply (GRPO), or every reply as if it had `constant` tokens
    (Dr. GRPO). auto: as the paper of the loss says."""
    constant: int = 0
    """normalise: constant. Tokens, such as the longest reply allowed."""
    correction: str = "none"
    """What to do where the learner's probabilities at the start of a step are not the sampler's, w their ratio:
    truncate weighs a token by min(w, correction_high); mask by w, or 0 outside [correction_low, correction_high];
    reject drops replies whose geometric mean of w is outside."""
    correction_low: float = 0.5
    correction_high: float = 2.0
    kl: float = 0.0
    """Weight of the KL divergence (nats per token) from the policy to its `reference` (ReferenceConfig)."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """All have the gradient of the divergence; they differ in variance."""
    entropy: float = 0.0
    """Weight of the entropy bonus (nats)."""
    beta: float | None = None
    """dpo, smoothed_dpo, kto (unset: 0.1), simpo (2): how much a log-ratio counts."""
    tau: float | None = None
    """ipo (unset: 0.1): the margin aims at 1 / (2 tau)."""
    gamma: float | None = None
    """simpo (unset: 1): the margin asked for."""
    scale: float | None = None
    """spin (unset: 0.1): lambda."""
    eta: float | None = None
    """sppo (unset: 1000): a log-ratio aims at eta (win rate - 1/2)."""
    desirable_weight: float | None = None
    undesirable_weight: float | None = None
    """kto (unset: 1)."""
    label_gamma: float | None = None
    """smoothed_dpo, sppo (unset: 7): reply 1 beats 2 with probability 1 / (1 + e^(-label_gamma (credit 1 - 2)))."""
    sft: float = 0.0
    """Preference losses: weight of -log p per token of the chosen reply."""


@dataclass
class AdvantageConfig:
    """How rewards become advantages."""

    kind: str = "grpo"
    """An estimator (learners/credit/advantages.py, gae.py)."""
    group_by: list[str] = field(default_factory=lambda: ["task", "protocol", "role", "situation", "turn"])
    """The group key: rewards are compared within equal values of these."""
    baseline_by: list[str] = field(default_factory=lambda: ["protocol", "role", "situation", "opponent"])
    """role_ema: each combination of these has a moving average of its own."""
    decay: float = 0.95
    """role_ema: weight of the old average at each step of it."""
    credit: Literal["turn", "trajectory"] = "turn"
    """turn: a turn is credited with its own rewards and, by `discount`, with what followed. trajectory: every turn
    of a seat with all that the seat was paid in the episode."""
    discount: float = 0.0
    """credit: turn. A turn is credited with its own reward plus discount times the credit of the seat's next turn."""
    gamma: float = 1.0
    """gae: discount from each sampled token to the next."""
    lam: float = 0.95
    """gae: 0 trusts the critic (one token ahead), 1 the rewards."""


@dataclass
class CriticConfig:
    """The value head that advantage: {kind: gae} needs: a linear map of the policy's last hidden state."""

    coef: float = 0.1
    """Weight of its loss beside the policy's; it moves the policy's features too."""
    clip: float = 0.2
    """How far a value may move in one step before its loss stops pulling, in units of the rewards; 0: any distance."""
    lr: float | None = None
    """Of the head alone. Unset: the learner's."""


@dataclass
class SignalConfig:
    """How much each turn of a policy counts: by its advantage, or by a weight that says whether to imitate it."""

    kind: str = "advantage"
    """advantage (see AdvantageConfig); a weight of imitation (learners/credit/signals.py), best with loss: {kind: sft};
    or truth, for judges whose probabilities are read: the right answers to their polls, with loss: {kind: log_score}
    or brier."""
    threshold: float = 0.0
    """winners: a turn is imitated when its credit is above this."""
    best: int = 1
    """rejection: how many of each group are imitated."""
    temperature: float = 1.0
    """reward_weighted: in units of the credit; the lower, the more the best of a group weigh."""
    consistency: float = 0.0
    """truth: weight of the agreement between both orders of the claims (judge.orders: both), beside the truth's 1."""


@dataclass
class ReferenceConfig:
    """The copy of the policy that its learner compares it with, where the loss does (`kl`, most preference losses)."""

    kind: str = "initial"
    """initial: the weights at the start of the stage. previous: those of a while ago. ema: a moving average of the
    policy's weights (a magnet)."""
    every: int = 10
    """previous: learner steps after which the policy's weights are copied again."""
    decay: float = 0.99
    """ema: weight of the old average at each learner step."""


@dataclass
class LoraConfig:
    """A low-rank adapter (arXiv 2106.09685): trained in place of the weights, which stay as they are."""

    rank: int = 8
    alpha: float = 16.0
    """The adapter counts alpha / rank times."""
    target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    """Names of the linear layers that get one."""
    push: Literal["adapter", "merged"] = "adapter"
    """What engines are sent at each step. adapter: A and B, often a hundredth of the bytes; engines read the plain
    model's folder and merge by themselves, to the same bits. merged: all weights; for a plain model that engines cannot
    read (no safetensors, a folder on another machine)."""


@dataclass
class LearnerConfig:
    """DeepSpeed learner group of one trained policy."""

    ranks: int = 1
    device: Device = "auto"
    gpus: float = 1.0
    """CUDA only: GPUs per rank, as Ray counts them; fractions share a device."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    zero_stage: int = 0
    lr: float = 1e-3
    schedule: Literal["constant", "linear"] = "constant"
    """Learning rate over the steps of a stage; linear falls to zero at its end."""
    warmup_steps: int = 0
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    epochs: int = 1
    """Passes over each batch."""
    minibatches: int = 1
    """Optimizer steps per pass."""
    micro_tokens: int | Literal["auto"] = "auto"
    """Tokens per forward pass, padding included. auto: as many as fit, by what the model keeps of one token (measured
    when the learner starts): on a CPU at most 4,096 and 768 MiB of activations, on a GPU 16,384 and what is free."""
    gradient_checkpointing: bool | Literal["auto"] = "auto"
    """Compute activations again on the way back instead of keeping them: less memory, about a third more time. auto:
    only for a sequence that is longer than micro_tokens."""
    offload: Literal["none", "optimizer", "parameters"] = "none"
    """CUDA only: keep the optimizer's state in the machine's memory (zero_stage 1 or more), or weights as well
    (zero_stage 3)."""
    packing: Packing = "none"
    """none: one sequence to a row, padded. rows: several share a row as long as the longest: less padding where lengths
    differ much. prefixes: what sequences have in common at their beginning is computed once: for long prompts that
    are answered several times (`repeats`), whose samples are then kept in one minibatch."""
    threads: int = 1
    """CPU only: torch threads of one rank."""
    lora: LoraConfig | None = None
    """Train an adapter; engines serve the merged weights. Unset: all weights are trained."""
    share: str = ""
    """Policy whose learner's processes hold this one as well: one base model in memory, an adapter, an optimizer and
    settings of its own for each. Both are trained adapters (`lora`) of the same model."""
    loss: LossConfig = field(default_factory=LossConfig)
    signal: SignalConfig = field(default_factory=SignalConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)
    critic: CriticConfig | None = None
    """advantage: {kind: gae} needs one, and nothing else does. Each stage begins with a new one."""
    trusted: float = 1.0
    """Judges: share of the tasks (told by a hash of their names) whose right answers may be learned from, by the signal
    truth, by the reward right_verdict and by a warm start. The other tasks are judged, and measured."""
    deepspeed: dict[str, Any] = field(default_factory=dict)
    """DeepSpeed JSON keys, passed through; keys that the fields above already set are refused."""
