"""Settings of engines: what `engine.extra` may pass to vLLM, and where `engine.swap` makes no difference."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from configs.checks.groups import updated
from configs.policies import PAST, group_of
from configs.reading.source import KeyPath
from configs.schema.run import RunConfig


def no_swap(config: RunConfig, name: str) -> Iterator[tuple[str, KeyPath]]:
    """(why `engine.swap` of this policy has no effect, the setting that is to blame). Nothing about policies that have
    no engines of their own: there every setting of the engine is refused."""
    policy, policies = config.policies[name], config.policies
    if policy.kind == PAST:
        yield "on opponent checkpoints: they are exchanged when nobody plays against them", ("policies", name, "kind")
        return
    if policy.kind != "lm" or policy.engine.share:
        return
    learners = {one for one in group_of(policies, name) or [name] if policies[one].trained}
    if not learners:
        yield "on engines whose weights never change: the policy is not trained", ("policies", name, "trained")
        return
    stages = {key: stage for key, stage in config.stages.items() if learners & {*updated(config, stage)}}
    if stages and not any(stage.max_staleness for stage in stages.values()):
        # Between the last play of a step and the new weights no other play begins (actors/rollout/loop.py).
        why = f"with max_staleness: 0 where the policy learns ({', '.join(stages)}): no request is under way then"
        yield why, ("stages", next(iter(stages)), "max_staleness")


OWN_KEYS = (
    "model", "tokenizer", "skip_tokenizer_init", "logprobs_mode", "worker_extension_cls", "weight_transfer_config",
)  # fmt: skip
"""Of vLLM's settings, those that weights, tokens and log-probabilities of a run rest on."""


def extra_problems(extra: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(key below `engine.extra`, message, what would be valid)."""
    known = _engine_args()
    for key in extra:
        if key in OWN_KEYS:
            yield key, "is set by the engine itself, and a run rests on it", "remove it"
        elif key.startswith("spec"):
            message = "speculative decoding is not supported: masked replies end the engine, and the log-probabilities "
            yield key, message + "of drafted tokens are not those that they were sampled with", "remove it"
        elif known and key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            yield key, f"vLLM's EngineArgs has no {key!r}{hint}", "a field of vllm.engine.arg_utils.EngineArgs"


@cache
def _engine_args() -> frozenset[str]:
    """The fields of vLLM's EngineArgs, read without importing it (which takes ten seconds); empty where it is not
    installed."""
    found = importlib.util.find_spec("vllm")
    source = Path(found.origin).parent / "engine" / "arg_utils.py" if found and found.origin else None
    if source is None or not source.is_file():
        return frozenset()
    classes = [node for node in ast.parse(source.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    fields = [line for node in classes if node.name == "EngineArgs" for line in node.body]
    return frozenset(
        line.target.id for line in fields if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
    )
