"""What is wrong with settings that are each well written: numbers out of range, names of nothing, settings
without effect, and more hardware than there is. Every check runs on whatever could be read."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.checks.engines import extra_problems, no_swap
from configs.checks.flow import flow_problems
from configs.checks.groups import group_problems
from configs.checks.hardware import hardware_problems
from configs.checks.learner import check_learner, unused_settings
from configs.checks.measures import measure_problems
from configs.checks.opponents import USED, cross_play_problems, idle, opponents_problems, past_problems
from configs.checks.promises import best_problems, repeatable_problems
from configs.checks.remote import HUMAN, deaf_to, remote_problems
from configs.checks.sharing import sharing_problems
from configs.checks.training import training_problems
from configs.checks.unused import unplayed
from configs.machine import Machine, resolve_device, used_policies
from configs.methods import CORRECTIONS, GROUP_FIELDS, LOSSES, SECTIONS
from configs.policies import OF_THE_PROCESS, PAST
from configs.reading.errors import ConfigError
from configs.reading.source import KeyPath, Source, show_key
from configs.rehearsal import Rehearse, no_rehearsal
from configs.schema.ranges import INF, RANGES, show_range
from configs.schema.run import (
    EngineConfig,
    ModelConfig,
    PolicyConfig,
    RunConfig,
    StageConfig,
    WarmStartConfig,
)
from protocols.base import Protocol


@dataclass
class Checker:
    """One pass over a config. `protocols`: name -> protocol, None for those that could not be built."""

    config: RunConfig
    source: Source
    protocols: Mapping[str, Protocol | None]
    machine: Machine | None
    errors: list[ConfigError]
    rehearse: Rehearse = no_rehearsal

    def run(self) -> None:
        """Adds every mistake to `errors`; nothing about hardware without a machine (a remote cluster)."""
        self.ranges(self.config, ())
        if not self.config.stages and not self.config.eval.arms:
            self.error(("stages",), "nothing to run: there are neither stages nor eval.arms")
        for name, policy in self.config.policies.items():
            self.policy(name, policy, ("policies", name))
        for name, stage in self.config.stages.items():
            self.stage(stage, ("stages", name))
        for name, arm in self.config.eval.arms.items():
            self.bindings(arm.protocol, arm.roles, ("eval", "arms", name))
            if arm.measure != "score":
                where = ("eval", "arms", name)
                self.unused(where, ["episodes"], f"with measure: {arm.measure}", (*where, "measure"))
        if not any(".roles" in error.key for error in self.errors):  # whom was that one meant for?
            for path, message, valid in unplayed(self.config, self.source):
                if not any(error.key.startswith(show_key(path[:2])) for error in self.errors):
                    self.error(path, message, valid)
        self.never_updated()
        self.promises()
        for problems in (measure_problems, flow_problems):
            for path, message, valid in problems(self.config, self.protocols):
                self.error(path, message, valid)
        rehearse = no_rehearsal if self.errors else self.rehearse  # what is to be played must be sound first
        for path, message, valid in training_problems(self.config, self.protocols, rehearse):
            self.error(path, message, valid)
        if self.config.eval.ceiling:
            self.named(self.config.eval.ceiling, self.protocols, "protocol", ("eval", "ceiling"))
        else:
            self.unused(("eval",), ["ceiling_episodes"], "without eval.ceiling", ("eval", "ceiling"))
        if self.config.eval.cross_play:
            self.noted(cross_play_problems(self.config), ("eval",))
        else:
            self.unused(("eval",), ["cross_play_episodes"], "without eval.cross_play", ("eval", "cross_play"))
        if self.config.track.wandb == "disabled":
            self.unused(("track",), ["project"], "with wandb: disabled", ("track", "wandb"))
        if self.machine is not None and not self.config.cluster.address:
            for path, message, valid in hardware_problems(self.config, self.machine):
                self.error(path, message, valid)

    # helpers

    def error(self, path: KeyPath, message: str, valid: str = "") -> None:
        self.errors.append(self.source.error(path, message, valid))

    def named(self, name: str, known: Collection[str], what: str, path: KeyPath) -> bool:
        """Whether `name` is one of `known`; notes it when not."""
        if name in known:
            return True
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        message = f"there is no {what} {name!r}{hint}" if name else f"names no {what}"
        self.error(path, message, _list(known))
        return False

    def unused(self, path: KeyPath, fields: Iterable[str], why: str, switch: KeyPath) -> None:
        """Note each of `fields` that was set although it has no effect, because of what `switch` is.

        Not where the switch was set elsewhere than the field: a file that extends another, or an override,
        may turn something off without taking its settings away.
        """
        marks = self.source.marks
        for field in fields:
            here = (*path, field)
            mark = next((mark for key, mark in marks.items() if key[: len(here)] == here), None)
            if mark and (switch not in marks or marks[switch].file == mark.file):
                self.errors.append(
                    ConfigError(str(mark), show_key(here), f"has no effect {why}", "remove it")
                )

    def ranges(self, value: Any, path: KeyPath) -> None:
        if isinstance(value, dict):
            for key, below in value.items():
                self.ranges(below, (*path, key))
        elif isinstance(value, list):
            for index, below in enumerate(value):
                self.ranges(below, (*path, index))
        elif dataclasses.is_dataclass(value) and type(value) in {RunConfig, *RANGES}:
            limits = RANGES.get(type(value), {})
            for field in dataclasses.fields(value):
                below = getattr(value, field.name)
                low, high = limits.get(field.name, (-INF, INF))
                if isinstance(below, (int, float)) and not low <= below <= high:
                    self.error((*path, field.name), f"{below:g} is out of range", show_range(low, high))
                self.ranges(below, (*path, field.name))

    def noted(self, problems: Iterable[tuple[str, str, str]], path: KeyPath) -> None:
        """Notes (setting below `path`, message, what would be valid)."""
        for key, message, valid in problems:
            parts = (int(part) if part.isdigit() else part for part in key.split(".") if part)
            self.error((*path, *parts), message, valid)

    # policies

    def policy(self, name: str, policy: PolicyConfig, path: KeyPath) -> None:
        if name == HUMAN:
            self.error(path, f"{HUMAN!r} is the policy of people (launch.py play)", "another name")
        if policy.kind != "lm":
            used = (
                {"kind", "remote", "temperature", "max_tokens", "trained"}
                if policy.kind == "remote"
                else {*USED} if policy.kind == PAST else {"kind"}
            )
            others = (f.name for f in dataclasses.fields(PolicyConfig) if f.name not in used)
            self.unused(path, others, f"on a {policy.kind} policy", (*path, "kind"))
            for key, message, valid in remote_problems(policy) if policy.kind == "remote" else ():
                self.error((*path, *key.split(".")), message, valid)
            if policy.kind == PAST:
                self.noted(past_problems(self.config, name), path)
            return
        self.unused(path, ["remote"], "on a policy that is not remote", (*path, "kind"))
        self.unused(path, ["of"], "on a policy that is not past", (*path, "kind"))
        warm, model = policy.warm_start, policy.model
        self.model(model, (*path, "model"))
        self.engine(policy, path)
        if policy.trained and policy.temperature == 0:
            self.error((*path, "temperature"), "a trained policy must explore", "more than 0")
        if policy.trained or warm:
            self.learner(policy, (*path, "learner"))
        else:
            self.unused(path, ["learner"], "on a policy neither trained nor warm-started", (*path, "trained"))
        if warm:
            self.warm_start(warm, (*path, "warm_start"))
        if policy.init_from:
            self.init_from(name, policy, path)

    def model(self, model: ModelConfig, path: KeyPath) -> None:
        tiny = [
            f.name for f in dataclasses.fields(ModelConfig) if f.name not in ("path", "trust_remote_code")
        ]
        if model.path:
            self.unused(path, tiny, "beside model.path: it describes the tiny model", (*path, "path"))
            if self.machine is not None:  # on a remote cluster the folder may lie elsewhere
                self.folder(model.path, (*path, "path"))
            return
        self.unused(path, ["trust_remote_code"], "without model.path", (*path, "path"))
        if min(model.heads, model.kv_heads) < 1:
            return
        if model.hidden_size % (2 * model.heads):
            message = f"{model.hidden_size} is not a multiple of twice the {model.heads} heads"
            self.error((*path, "hidden_size"), message, "heads of even size")
        if model.heads % model.kv_heads:
            message = f"{model.heads} heads are not a multiple of {model.kv_heads} kv_heads"
            self.error((*path, "kv_heads"), message)

    def folder(self, name: str, path: KeyPath) -> None:
        """A model that is given as a local folder has to be one; else it is a Hugging Face name, looked up later."""
        folder = Path(name).expanduser()
        if folder.is_dir() and not (folder / "config.json").is_file():
            below = [str(found.parent) for found in sorted(folder.glob("*/config.json"))]
            valid = _list(below) if below else "a Hugging Face name, or a folder in its format"
            self.error(path, f"{name} holds no config.json, so it is no model", valid)
        elif not folder.exists() and (name.startswith(("/", ".", "~")) or name.count("/") > 1):
            self.error(path, f"there is no folder {name}", "a Hugging Face name, or a folder in its format")

    def engine(self, policy: PolicyConfig, path: KeyPath) -> None:
        engine, here = policy.engine, (*path, "engine")
        if engine.share:
            others = (f.name for f in dataclasses.fields(EngineConfig) if f.name != "share")
            self.unused(here, others, "on a policy that shares engines", (*here, "share"))
            return
        self.noted(extra_problems(engine.extra), (*here, "extra"))
        gpu_only = ["gpus", "gpu_memory_utilization", "tensor_parallel"]
        if engine.device == "cpu":
            self.unused(here, gpu_only, "with device: cpu", (*here, "device"))
        if engine.device == "cuda":
            self.unused(here, ["kv_cache_mb", "threads"], "with device: cuda", (*here, "device"))
        if engine.tensor_parallel > 1 and engine.gpus != 1:
            self.error((*here, "gpus"), "tensor parallel ranks cannot share a device", "1")
        if not policy.model.path and engine.max_model_len > policy.model.max_len:
            message = (
                f"{engine.max_model_len} tokens are more than the model's max_len {policy.model.max_len}"
            )
            self.error((*here, "max_model_len"), message, f"0 to {policy.model.max_len}")

    def learner(self, policy: PolicyConfig, path: KeyPath) -> None:
        learner = policy.learner
        if learner.share:
            self.unused(path, OF_THE_PROCESS, "on a policy that shares a learner's processes", (*path, "share"))
        if not policy.trained:
            why = "on a policy that is only warm-started"
            goals = ["lr", "loss", "signal", "advantage", "reference", "critic"]
            self.unused(path, goals, why, (*path[:-1], "trained"))
        if learner.device == "cpu":
            self.unused(path, ["gpus"], "with device: cpu", (*path, "device"))
        if learner.device == "cuda":
            self.unused(path, ["threads"], "with device: cuda", (*path, "device"))
        assert LOSSES, "`import learners` registers the methods that a config can name; it comes before `load`"
        kinds = [(getattr(learner, part).kind, part, (part, "kind")) for part in SECTIONS]
        known = [self.named(kind, SECTIONS[part], part, (*path, *key)) for kind, part, key in kinds]
        known.append(self.named(learner.loss.correction, CORRECTIONS, "correction", (*path, "loss", "correction")))
        for setting, why, switch in unused_settings(learner) if all(known) else ():
            *parents, name = setting.split(".")
            self.unused((*path, *parents), [name], why, (*path, *switch.split(".")))
        for keys in ("group_by", "baseline_by"):
            for index, part in enumerate(getattr(learner.advantage, keys)):
                here = (*path, "advantage", keys, index)
                self.named(part, GROUP_FIELDS, "part of a group key,", here)
        try:
            check_learner(learner, resolve_device(learner.device, self.machine or Machine(1, 0)))
        except ValueError as error:
            key, _, message = str(error).partition(": ")
            if not any(e.key.endswith(f".learner.{key}") for e in self.errors):
                self.error((*path, *key.split(".")), message)

    def warm_start(self, warm: WarmStartConfig, path: KeyPath) -> None:
        if not self.named(warm.protocol, self.protocols, "protocol", (*path, "protocol")):
            return
        roles = self.roles_of(warm.protocol)
        if not warm.roles:
            self.error((*path, "roles"), "names no role whose turns are imitated", _list(roles or ()))
        for index, role in enumerate(warm.roles if roles else ()):
            self.has_role(warm.protocol, role, (*path, "roles", index))

    def init_from(self, name: str, policy: PolicyConfig, path: KeyPath) -> None:
        here, others = (*path, "init_from"), [other for other in self.config.policies if other != name]
        if policy.warm_start:
            self.error((*path, "warm_start"), "has no effect beside init_from", "one of the two")
        if not self.named(policy.init_from, others, "other policy", here):
            return
        origin = self.config.policies[policy.init_from]
        if not origin.warm_start:
            self.error(here, f"{policy.init_from!r} is not warm-started itself", "a policy with warm_start")
        if origin.model != policy.model:
            valid = f"model: ${{policies.{policy.init_from}.model}}"
            self.error(here, f"{policy.init_from!r} has another model", valid)

    # stages and arms

    def roles_of(self, protocol: str) -> set[str] | None:
        """Roles of a protocol, None where it could not be built."""
        built = self.protocols.get(protocol)
        return None if built is None else set(built.roles().values())

    def has_role(self, protocol: str, role: str, path: KeyPath) -> None:
        there = self.roles_of(protocol) or set()
        if role not in there:
            self.error(path, f"protocol {protocol!r} has no role {role!r}", _list(there))

    def bindings(self, protocol: str, roles: Mapping[str, str], path: KeyPath) -> None:
        """Every role of the protocol is played by a policy that there is, and no other role is bound."""
        for role, policy in roles.items():
            self.named(policy, self.config.policies, "policy", (*path, "roles", role))
        if not self.named(protocol, self.protocols, "protocol", (*path, "protocol")):
            return
        there = self.roles_of(protocol)
        if there is None:
            return
        for role in sorted(there - set(roles)):
            message = f"role {role!r} of protocol {protocol!r} is bound to no policy"
            self.error((*path, "roles"), message, _list(self.config.policies))
        for role in roles:
            self.has_role(protocol, role, (*path, "roles", role))
        built = self.protocols[protocol]
        remote = {role: self.config.policies[name].remote for role, name in roles.items()
                  if name in self.config.policies and self.config.policies[name].kind == "remote"}  # fmt: skip
        for role, message, valid in (
            deaf_to(built, self.config.protocols[protocol], remote) if built and remote else ()
        ):
            self.error((*path, "roles", role), message, valid)

    def stage(self, stage: StageConfig, path: KeyPath) -> None:
        self.bindings(stage.protocol, stage.roles, path)
        self.noted(opponents_problems(self.config, stage, self.protocols.get(stage.protocol)), path)
        for key, why in idle(stage.opponents) if stage.opponents else ():
            self.unused((*path, "opponents"), [key], why, (*path, "opponents", "mix"))
        for index, name in enumerate(stage.train):
            here = (*path, "train", index)
            if not self.named(name, self.config.policies, "policy", here):
                continue
            if not self.config.policies[name].trained:
                self.error(here, f"policy {name!r} is not trained", f"policies.{name}.trained: true")
            elif name not in stage.roles.values():
                self.error(
                    here, f"policy {name!r} has no role in this stage", _list(set(stage.roles.values()))
                )
        if not stage.train and stage.roles and self.whole(stage) and not self.updated(stage):
            trained = [name for name, policy in self.config.policies.items() if policy.trained]
            self.error((*path, "roles"), "no policy with a role here is trained", _list(trained))
        if stage.eval_every:
            self.named(stage.eval_arm, self.config.eval.arms, "arm of eval.arms,", (*path, "eval_arm"))
            if getattr(self.config.eval.arms.get(stage.eval_arm), "measure", "score") != "score":
                self.unused(path, ["eval_episodes"], "on an exact measurement", (*path, "eval_arm"))
        else:
            self.unused(path, ["eval_arm", "eval_episodes"], "without eval_every", (*path, "eval_every"))
        if stage.audit is not None:
            self.bindings(stage.audit.protocol, stage.audit.roles, (*path, "audit"))
        protocol = self.protocols.get(stage.protocol)
        if protocol is None:
            return
        if stage.archive and not protocol.kind.startswith("propose_solve"):
            self.error(
                (*path, "archive"), f"has no effect on a protocol of kind {protocol.kind}", "propose_solve"
            )
        if not stage.archive:
            settings = ["archive_frontier", "archive_rates", "archive_of"]
            self.unused(path, settings, "without archive", (*path, "archive"))
        for where, message, valid in group_problems(self.config, stage, protocol):
            self.error((*path, *where), message, valid)

    def updated(self, stage: StageConfig) -> set[str]:
        """Policies that this stage updates."""
        return set(stage.trained(self.config.policies))

    def whole(self, stage: StageConfig) -> bool:
        """Whether every role of a stage is bound to a policy that there is."""
        there = self.roles_of(stage.protocol) or set()
        return there <= set(stage.roles) and set(stage.roles.values()) <= set(self.config.policies)

    def never_updated(self) -> None:
        """A trained policy that plays but that no stage updates."""
        if not all(self.whole(stage) for stage in self.config.stages.values()):
            return  # it may be who is missing there
        players = set(used_policies(self.config))
        updated = {name for stage in self.config.stages.values() for name in self.updated(stage)}
        for name, policy in self.config.policies.items():
            if policy.trained and policy.kind != "remote" and name in players - updated:
                self.error(("policies", name, "trained"), "has no effect: no stage updates this policy")

    def promises(self) -> None:
        problems = repeatable_problems(self.config, self.machine or Machine(1, 0))
        for path, message, valid in (*problems, *best_problems(self.config), *sharing_problems(self.config)):
            self.error(path, message, valid)
        for name in self.config.policies:
            for why, switch in no_swap(self.config, name):
                self.unused(("policies", name, "engine"), ["swap"], why, switch)
        for name in self.config.policies if self.config.deterministic else ():
            path = ("policies", name, "engine")
            self.unused(path, ["max_num_seqs"], "with deterministic: true", ("deterministic",))


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none are defined"
