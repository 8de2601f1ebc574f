"""Policies on one engine or in one learner (`engine.share`, `learner.share`): one base, and an adapter for each that
is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from configs.policies import RANKS, adapter_of, group_of
from configs.schema.run import PolicyConfig, RunConfig

Problem = tuple[tuple[str | int, ...], str, str]
"""(path, message, what would be valid)"""


def sharing_problems(config: RunConfig) -> Iterator[Problem]:
    """Mistakes in `engine.share`."""
    policies = config.policies
    for name, policy in policies.items():
        host, here = policy.engine.share, ("policies", name, "engine", "share")
        if not host:
            continue
        able = [n for n, p in policies.items() if p.kind == "lm" and not p.engine.share and n != name]
        if policy.kind != "lm":
            yield here, f"a policy of kind {policy.kind} has no adapter: it cannot share engines", "remove it"
        elif host not in able:
            yield here, _why_not(policies, name, host), ", ".join(able) or "no policy has engines to share"
        else:
            yield from _guest(policies, name, host)
    for host in policies:
        for name in group_of(policies, host):
            yield from _member(config, name)
    for name, policy in policies.items():
        if policy.learner.share:
            yield from _fellow(config, name, policy.learner.share)


def _why_not(policies: Mapping[str, PolicyConfig], name: str, host: str) -> str:
    if host not in policies:
        return f"there is no policy {host!r}"
    if host == name:
        return "a policy has its own engines anyway"
    kind = policies[host].kind
    return f"{host!r} shares engines itself" if kind == "lm" else f"{host!r} is of kind {kind}: others cannot use it"


def _guest(policies: Mapping[str, PolicyConfig], name: str, host: str) -> Iterator[Problem]:
    one, other = policies[name], policies[host]
    if one.model != other.model:
        message = f"{name!r} has another model than {host!r}: an engine holds one"
        yield ("policies", name, "model"), message, f"${{policies.{host}.model}}"
    if _origin(policies, name) != _origin(policies, host):
        message = f"{name!r} starts from other weights than {host!r}, whose engines it shares"
        yield ("policies", name, "init_from"), message, f"{_origin(policies, host) or 'remove it'}"
    if not any(adapter_of(policies, member) for member in (host, name)):
        message = f"neither {name!r} nor {host!r} is trained: they are the same policy"
        yield ("policies", name, "engine", "share"), message, f"one policy for the roles of both, {host!r}"


def _origin(policies: Mapping[str, PolicyConfig], name: str) -> str:
    """The policy whose warm start made the weights that this one begins with; "" for those of the model."""
    return policies[name].init_from or (name if policies[name].warm_start else "")


def _member(config: RunConfig, name: str) -> Iterator[Problem]:
    """What a trained policy on shared engines must be: an adapter of their base, from its first update to its last."""
    policies, path = config.policies, ("policies", name)
    policy = policies[name]
    if not policy.trained:
        return
    lora = policy.learner.lora
    if lora is None:
        message = f"{name!r} trains all weights, and its engines are shared"
        yield (*path, "learner", "lora"), message, "an adapter, such as {rank: 8}"
        return
    if lora.push != "adapter":
        yield (*path, "learner", "lora", "push"), "shared engines hold one base: it is not replaced", "adapter"
    if lora.rank > RANKS[-1]:
        message = f"vLLM serves adapters up to rank {RANKS[-1]} side by side, this has {lora.rank}"
        yield (*path, "learner", "lora", "rank"), message, f"1 to {RANKS[-1]}"
    if policy.warm_start:
        message = "is merged into the base, which is shared"
        yield (*path, "warm_start"), message, "init_from: a policy that is warm-started and not trained"
    stages = [key for key, stage in config.stages.items() if name in stage.trained(policies)]
    if len(stages) > 1:
        message = f"{name!r} is trained in {len(stages)} stages; after the first its adapter is merged into its base"
        yield ("stages", stages[1], "train"), message, "one stage, or engines of its own"


def _fellow(config: RunConfig, name: str, host: str) -> Iterator[Problem]:
    """Mistakes in `learner.share`, which names `host`."""
    policies, path = config.policies, ("policies", name, "learner")
    able = [n for n, p in policies.items() if n != name and p.trained and p.learner.lora and not p.learner.share]
    valid = ", ".join(able) or "no other policy trains an adapter"
    if host not in able:
        yield (*path, "share"), f"{host!r} is no other policy that trains an adapter in processes of its own", valid
        return
    one, other = policies[name], policies[host]
    if not one.trained or one.learner.lora is None:
        yield (*path, "share"), f"{name!r} trains no adapter", "an adapter, such as lora: {rank: 8}, or remove it"
    if one.model != other.model or _origin(policies, name) != _origin(policies, host):
        message = f"{name!r} starts from other weights than {host!r}, whose base model it shares"
        yield ("policies", name, "model"), message, f"${{policies.{host}.model}}"
    for member in (name, host):
        if policies[member].warm_start:
            message, valid = "would train a base that is shared", "init_from: a policy that is only warm-started"
            yield ("policies", member, "warm_start"), message, valid
    if other.learner.zero_stage == 3:
        message = "cuts the base model into slices, which only one learner can use"
        yield ("policies", host, "learner", "zero_stage"), message, "0 to 2"
    stages = {key: stage.trained(policies) for key, stage in config.stages.items()}
    mine = [key for key, trained in stages.items() if name in trained]
    if mine != [key for key, trained in stages.items() if host in trained] or len(mine) > 1:
        message = f"{name!r} and {host!r} are not trained in the same one stage; after it, each has a base of its own"
        yield (*path, "share"), message, "remove it, or train both in one stage"
