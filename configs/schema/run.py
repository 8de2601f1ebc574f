"""Every setting there is, with its default. A field's docstring stands under the field.

`configs/load.py` turns YAML into these classes and reports all mistakes at once; `configs/checks/checker.py`
finds the ones that need several settings together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from configs.schema.flow import (
    AuditConfig as AuditConfig,
    KeepConfig as KeepConfig,
)
from configs.schema.learner import (
    AdvantageConfig as AdvantageConfig,
    CriticConfig as CriticConfig,
    Device as Device,
    LearnerConfig as LearnerConfig,
    LoraConfig as LoraConfig,
    LossConfig as LossConfig,
    Packing as Packing,
    ReferenceConfig as ReferenceConfig,
    SignalConfig as SignalConfig,
)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]

@dataclass
class ModelConfig:
    """A model: either `path` (a Hugging Face name or folder) or a tiny one built from scratch."""

    path: str = ""
    """Hugging Face model name, local folder, or a model from a Python package (configs/packaged_models.py: smollm2).
    Empty: build the tiny model that the fields below describe."""
    arch: Literal["qwen3", "llama"] = "qwen3"
    """Tiny model."""
    hidden_size: int = 64
    layers: int = 2
    heads: int = 4
    kv_heads: int = 4
    intermediate_size: int = 128
    max_len: int = 256
    """Tiny model: longest sequence in tokens."""
    tie_embeddings: bool = True
    seed: int = 0
    trust_remote_code: bool = False


@dataclass
class EngineConfig:
    """Inference engines of one policy."""

    kind: str = "vllm"
    """Implementation of `actors.serving.engine.Engine`, by its name in `ENGINES`."""
    replicas: int = 1
    device: Device = "auto"
    """auto: cuda where Ray sees a GPU."""
    gpus: float = 1.0
    """CUDA only: GPUs per engine and tensor-parallel rank, as Ray counts them; fractions share a device."""
    dtype: Dtype = "auto"
    """auto: float32 on CPU, bfloat16 on CUDA."""
    max_model_len: int = 0
    """Tokens; 0: what the model allows."""
    max_num_seqs: int = 256
    kv_cache_mb: int = 128
    """CPU only: size of the KV cache."""
    gpu_memory_utilization: float = 0.85
    """CUDA only."""
    tensor_parallel: int = 1
    """CUDA only."""
    threads: int = 1
    """CPU only: OpenMP threads of one engine."""
    swap: Literal["keep", "drain"] = "keep"
    """When new weights come to requests under way. keep: at once; requests keep their tokens, whose activations are
    computed again, and go on with the new weights: a reply may be of several versions (each token carries its own).
    drain: they end with the old weights first, while new requests wait: each reply is of one version."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Passed to vLLM's EngineArgs as they are."""
    share: str = ""
    """Policy whose engines this one uses instead of engines of its own. Both begin with the same weights; whichever is
    trained has an adapter (`learner.lora`), which vLLM computes beside the base for each request."""


@dataclass
class WarmStartConfig:
    """Supervised start (SFT) on plays by random players: legal format, or verdicts from random evidence."""

    steps: int = 0
    batch: int = 256
    """Sequences per step."""
    lr: float = 3e-3
    protocol: str = ""
    """Which entry of `protocols` to play."""
    roles: list[str] = field(default_factory=list)
    """Roles whose turns are imitated: the right reply where it is known, else a random legal one."""
    tasks: dict[str, Any] = field(default_factory=dict)
    """Settings of the task source that differ in this warm start."""
    per_play: int = 0
    """Sequences kept of each play, drawn at random; 0: all. Those of one play are alike (a judge is asked about
    the same image again and again), so few of many plays teach more per step."""


@dataclass
class RemoteConfig:
    """A model behind an OpenAI-compatible chat-completions API."""

    url: str = ""
    """Up to and without `/chat/completions`, for example https://api.example.org/v1."""
    model: str = ""
    """What it is called there."""
    api_key_env: str = ""
    """Name of the environment variable that holds the key, never the key itself. Empty: none is sent."""
    timeout_s: float = 120.0
    """Seconds for one request."""
    retries: int = 5
    """How often a request is sent again after a timeout, a broken connection, 429 or 5xx."""
    rereads: int = 2
    """How often a choice is asked for again when the reply is none of the legal ones."""
    concurrency: int = 8
    """Most requests under way at once."""
    budget_requests: int = 10_000
    """Most requests of one run, repeated ones too; the run then ends."""
    budget_tokens: int = 10_000_000
    """Most tokens of one run, prompts and replies as the server counts them; the run then ends. Requests under way
    when it is reached are still paid for."""
    logprobs: bool = False
    """The API gives the probabilities of a reply's first token (top_logprobs): a judge's verdict is read from them."""


@dataclass
class PolicyConfig:
    """Named weights behind one or several roles."""

    kind: Literal["lm", "uniform", "remote", "past"] = "lm"
    """lm: a language model on vLLM. uniform: picks among the legal choices at random (a control). remote: a model
    behind a URL, never trained. past: the opponent checkpoints of the policies `of`, on engines of its own."""
    of: list[str] = field(default_factory=list)
    """past: trained policies, all with the same model. Each engine replica holds one opponent checkpoint at a time."""
    model: ModelConfig = field(default_factory=ModelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    remote: RemoteConfig = field(default_factory=RemoteConfig)
    trained: bool = False
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    """Used by warm starts too, with the warm start's learning rate."""
    warm_start: WarmStartConfig | None = None
    init_from: str = ""
    """Start from the warm-started weights of another policy instead of one's own."""
    temperature: float = 1.0
    max_tokens: int = 64
    """Longest free-text reply, in tokens."""
    memo: bool = False
    """Where decoding is limited to legal replies: their odds are read once for each prompt and version of the weights,
    and replies are drawn from them in the driver. Exact, and cheap where prompts repeat (small games); where they
    do not, a read costs more than a sample."""


@dataclass
class UpdateConfig:
    """When a policy is updated within a stage; without one, at every step. In between it plays with the weights that
    it has. Counted in steps of the stage, from 0."""

    every: int = 1
    """Steps of one round: of each, the policy is updated at the first `span`."""
    span: int = 1
    after: int = 0
    """Frozen before this step, where its first round begins: alternating policies begin one after the other."""
    until: int = 0
    """Frozen from this step on; 0: never."""


OPPONENT_RULES = ("latest", "uniform", "pfsp", "pfsp_even")
"""How opponent checkpoints are chosen (actors.league.pool.RULES)."""


@dataclass
class OpponentsConfig:
    """Whom the policies of a stage play against, besides themselves. Drawn once for all plays of a task."""

    seats: list[str] = field(default_factory=list)
    """Seats that an opponent takes, one in each play, in turn. The others are played as `roles` says, and so is this
    one in self-play."""
    mix: dict[str, float] = field(default_factory=lambda: {"self": 0.5, "pfsp": 0.5})
    """What share of plays is against whom: self (the newest weights; both sides learn), fixed (one of the policies
    `fixed`), or opponent checkpoints: latest, uniform, pfsp (those that are hard to beat), pfsp_even (those about
    as strong)."""
    past: str = ""
    """Policy of kind past that plays them."""
    against: list[str] = field(default_factory=list)
    """Policies whose opponent checkpoints are met; empty: all that `past` is of. An exploiter names the one that
    it exploits."""
    fixed: list[str] = field(default_factory=list)
    """Policies that learn nothing here: controls, other models."""
    every: int = 20
    """Learner steps between snapshots."""
    keep: int = 8
    """Opponent checkpoints of a policy that are kept: the first, the newest, and others spread evenly between."""
    redraw_every: int = 1
    """Learner steps after which other opponent checkpoints take the engines of `past`."""
    power: float = 1.0
    """pfsp: exponent of the chance to lose."""


@dataclass
class StageConfig:
    """One stretch of training: a protocol, who plays it, for how long."""

    protocol: str = ""
    roles: dict[str, str] = field(default_factory=dict)
    """role -> policy"""
    opponents: OpponentsConfig | None = None
    """Opponent checkpoints and others in the opponent's place. Unset: every seat is played as `roles` says."""
    tasks: dict[str, Any] = field(default_factory=dict)
    """Settings of the task source that differ in this stage."""
    train: list[str] = field(default_factory=list)
    """Policies updated in this stage. Empty: every trained policy that has a role here."""
    update: dict[str, UpdateConfig] = field(default_factory=dict)
    """policy -> at which steps, for those not updated at every one. Each learns from the plays of its own steps."""
    steps: int = 100
    """Learner steps."""
    plays_per_step: int = 32
    """Root plays per learner step (tasks, times `repeats`)."""
    repeats: int = 1
    """Root plays of the same task (siblings of a group), where the protocol does not repeat itself."""
    max_staleness: int = 0
    """Learner steps by which a reply may lag the newest weights; 0 is synchronous."""
    oversample: float = 1.0
    """Groups begun for each that a step needs. More than 1: a step takes those that end first, and what would lag more
    than `max_staleness` by then is cancelled. Favours short plays."""
    keep: KeepConfig | None = None
    """Which groups reach the learners. Unset: all that are sound."""
    archive: float = 0.0
    """Share of root plays that replay an earlier proposal instead of asking the proposer."""
    archive_frontier: float = 0.0
    """How replays are chosen: 0 all alike (guards against forgetting), 1 by learnability 4p(1-p) of their last
    solve rate p, between: a mixture of both."""
    archive_rates: list[float] = field(default_factory=list)
    """[least, most]: only proposals are replayed whose last solve rate lies between. Empty: all."""
    archive_of: str = ""
    """An earlier stage whose archive this one begins with, so that it replays what was proposed there."""
    real: float = 0.0
    """Share of root plays on the task source's own examples (those of warm starts): nobody is asked to propose."""
    distinct: float | None = None
    """A proposal that is as similar as this to an earlier one is invalid (ROUGE-L of words); 1: only repeats are.
    Unset: both are played."""
    audit: AuditConfig | None = None
    """Whether the right answers of the tasks are right. Unset: taken as they are."""
    eval_every: int = 0
    """Learner steps between small evaluations of `eval_arm`; 0: none."""
    eval_arm: str = ""
    eval_episodes: int = 128

    def trained(self, policies: Mapping[str, PolicyConfig]) -> list[str]:
        """The policies that this stage updates, in the order of its roles: those that are trained and, where `train`
        names some, are among them. Names that `policies` lacks are left out."""
        players = [name for name in dict.fromkeys(self.roles.values()) if name in policies and policies[name].trained]
        return [name for name in players if not self.train or name in self.train]


@dataclass
class ArmConfig:
    """One measurement on held-out tasks."""

    protocol: str = ""
    roles: dict[str, str] = field(default_factory=dict)
    """role -> policy"""
    when: Literal["start", "end"] = "end"
    """start: before any training (warm-started weights). end: after all stages."""
    measure: Literal["score", "nash_conv"] = "score"
    """score: of held-out plays. nash_conv: no plays; what the seats of a game together could gain by best responses to
    each other, exactly (OpenSpiel), from the odds of every move in every information state. 0 at an equilibrium."""
    episodes: int = 500
    temperature: float | None = None
    """Of every reply in this arm; 0: the likeliest one. Unset: that of each policy, as in training."""


@dataclass
class EvalConfig:
    arms: dict[str, ArmConfig] = field(default_factory=dict)
    ceiling: str = ""
    """Protocol whose exact minimax value is computed on the judge; empty: none."""
    ceiling_episodes: int = 500
    cross_play: str = ""
    """Stage whose opponent checkpoints play each other at the end, for ratings and a payoff matrix; empty: none."""
    cross_play_episodes: int = 64
    """Plays of each pair, half of them with seats exchanged."""


@dataclass
class TrackConfig:
    """Where figures go."""

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online with an API key, offline without."""
    project: str = "dissoi"
    transcripts_every: int = 20
    """Learner steps between sampled transcripts on screen and in W&B."""
    save_every: int = 0
    """Learner steps between checkpoints; 0: only at the end."""
    keep: int = 2
    """Newest checkpoints that stay on disk."""
    best: str = ""
    """Arm, measured during training (`eval_every`), whose best checkpoint stays too: `launch.py eval RUN --best`."""


@dataclass
class GuardConfig:
    """An alarm on a figure, and what it does. Figures are named as in W&B: learner/debater/approx_kl,
    rollout/debate/length/debater, eval/trained/score."""

    metric: str = ""
    against: str = ""
    """A second figure: watched is by how much more `metric` has risen than it, since both were first known."""
    above: float | None = None
    below: float | None = None
    steps: int = 1
    """How many values in a row must be outside."""
    action: Literal["warn", "stop", "roll_back"] = "warn"
    """warn: on screen and in the metrics. stop: the run ends, saved. roll_back: the policies of the stage go back to
    their newest checkpoint of before the alarm, and on with new plays; the stage's steps are not made up for."""
    times: int = 1
    """roll_back: how often; after that the run stops."""


@dataclass
class ClusterConfig:
    """Ray."""

    address: str = ""
    """A running cluster; empty: a local one is started."""
    cpus: int = 0
    """Local Ray: CPUs offered; 0: what the machine has."""
    gpus: int = -1
    """Local Ray: GPUs offered; -1: what the machine has."""


@dataclass
class RunConfig:
    """The root of a config file."""

    name: str = "run"
    run_dir: str = "runs/${name}"
    seed: int = 0
    deterministic: bool = False
    """The same config gives the same numbers bit for bit, also when the run was killed and resumed: every request has
    a seed of its own, and engines compute one sequence at a time without a prefix cache, which is much slower. On CPU,
    with max_staleness: 0."""
    plugins: list[str] = field(default_factory=list)
    """Modules of yours, imported before anything is looked up, so that what they register can be named here: kinds of
    tasks (tasks.registry.SOURCES), kinds of protocol (protocols.registry.KINDS), ... They must be installed, or stand
    on PYTHONPATH, wherever the run has processes."""
    tasks: dict[str, Any] | None = None
    """kind: ... and that kind's settings (tasks.registry.SOURCES)."""
    protocols: dict[str, Any] = field(default_factory=dict)
    """name -> file (relative to this one) or inline definition with kind: (protocols.registry.KINDS)."""
    policies: dict[str, PolicyConfig] = field(default_factory=dict)
    stages: dict[str, StageConfig] = field(default_factory=dict)
    eval: EvalConfig = field(default_factory=EvalConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    guards: list[GuardConfig] = field(default_factory=list)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
