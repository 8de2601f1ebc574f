"""The range of every number among the settings."""

from __future__ import annotations

from configs.schema.run import (
    AdvantageConfig,
    ArmConfig,
    AuditConfig,
    ClusterConfig,
    CriticConfig,
    EngineConfig,
    EvalConfig,
    GuardConfig,
    KeepConfig,
    LearnerConfig,
    LoraConfig,
    LossConfig,
    ModelConfig,
    OpponentsConfig,
    PolicyConfig,
    ReferenceConfig,
    RemoteConfig,
    SignalConfig,
    StageConfig,
    TrackConfig,
    UpdateConfig,
    WarmStartConfig,
)

INF = float("inf")
TINY = 1e-12  # for numbers that must be more than zero
_COUNT, _FROM_0 = (1, INF), (0, INF)
RANGES: dict[type, dict[str, tuple[float, float]]] = {
    ModelConfig: {
        **dict.fromkeys(("hidden_size", "layers", "heads", "kv_heads", "intermediate_size"), _COUNT),
        "max_len": (2, INF),
    },
    EngineConfig: {
        **dict.fromkeys(("replicas", "max_num_seqs", "kv_cache_mb", "tensor_parallel", "threads"), _COUNT),
        "max_model_len": _FROM_0,
        "gpus": (TINY, INF),
        "gpu_memory_utilization": (TINY, 1),
    },
    LossConfig: {
        **dict.fromkeys(("clip_high", "dual_clip", "constant", "correction_low", "kl", "entropy"), _FROM_0),
        **dict.fromkeys(("gamma", "desirable_weight", "undesirable_weight", "sft"), _FROM_0),
        **dict.fromkeys(("beta", "tau", "scale", "eta", "label_gamma"), (TINY, INF)),
        "clip_low": (0, 1),
        "correction_high": (TINY, INF),
    },
    SignalConfig: {"best": _COUNT, "temperature": (TINY, INF), "consistency": _FROM_0},
    AdvantageConfig: {"discount": (0, 1), "decay": (0, 0.9999), "gamma": (0, 1), "lam": (0, 1)},
    CriticConfig: {"coef": (TINY, INF), "clip": _FROM_0, "lr": (TINY, INF)},
    ReferenceConfig: {"every": _COUNT, "decay": (0, 0.999999)},
    LearnerConfig: {
        **dict.fromkeys(("ranks", "epochs", "minibatches", "micro_tokens", "threads"), _COUNT),
        **dict.fromkeys(("warmup_steps", "weight_decay", "grad_clip"), _FROM_0),
        **dict.fromkeys(("lr", "gpus"), (TINY, INF)),
        "zero_stage": (0, 3),
        "trusted": (TINY, 1),
    },
    LoraConfig: {"rank": _COUNT, "alpha": (TINY, INF)},
    WarmStartConfig: {"steps": _FROM_0, "batch": _COUNT, "lr": (TINY, INF), "per_play": _FROM_0},
    PolicyConfig: {"temperature": _FROM_0, "max_tokens": _COUNT},
    RemoteConfig: {
        **dict.fromkeys(("concurrency", "budget_requests", "budget_tokens"), _COUNT),
        **dict.fromkeys(("retries", "rereads"), _FROM_0),
        "timeout_s": (TINY, INF),
    },
    StageConfig: {
        **dict.fromkeys(("steps", "plays_per_step", "repeats", "eval_episodes"), _COUNT),
        **dict.fromkeys(("max_staleness", "eval_every"), _FROM_0),
        "oversample": (1, 10),
        **dict.fromkeys(("archive", "archive_frontier", "real"), (0, 1)),
        "distinct": (TINY, 1),
    },
    AuditConfig: {"share": (TINY, 1)},
    KeepConfig: {"limit": (TINY, INF)},
    UpdateConfig: {**dict.fromkeys(("every", "span"), _COUNT), **dict.fromkeys(("after", "until"), _FROM_0)},
    GuardConfig: {"steps": _COUNT, "times": _COUNT},
    OpponentsConfig: {**dict.fromkeys(("every", "keep", "redraw_every"), _COUNT), "power": (TINY, INF)},
    ArmConfig: {"episodes": _COUNT, "temperature": _FROM_0},
    EvalConfig: {"ceiling_episodes": _COUNT, "cross_play_episodes": (2, INF)},
    TrackConfig: {"transcripts_every": _FROM_0, "save_every": _FROM_0, "keep": _COUNT},
    ClusterConfig: {"cpus": _FROM_0, "gpus": (-1, INF)},
}


def show_range(low: float, high: float) -> str:
    """The range in words."""
    if low == TINY:
        return "more than 0" + (f", at most {high:g}" if high < INF else "")
    return f"{low:g} or more" if high == INF else f"{low:g} to {high:g}"
