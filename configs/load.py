"""A config file and its overrides become a RunConfig, or one message with everything that is wrong."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.checks.checker import Checker
from configs.machine import Machine
from configs.packaged_models import MODELS, ModelNotInstalled, model_folder
from configs.reading.build import Builder, Kinds
from configs.reading.errors import ConfigError, ConfigErrors, Mark
from configs.reading.source import KeyPath, Source, override, read
from configs.rehearsal import Purpose, Rehearsal, Rehearse, rehearse
from configs.schema.run import RunConfig
from protocols.base import Protocol
from protocols.errors import UserError
from protocols.extension import load_plugins
from protocols.kinds.propose_solve import ProposeSolve
from protocols.registry import KINDS
from tasks.base import TaskSource, real_task
from tasks.registry import SOURCES

_SECRET = re.compile(r"(^|_)(api_?key|token|secret|password)$", re.IGNORECASE)
_DEFAULTS = {"name": RunConfig.name, "run_dir": RunConfig.run_dir, "seed": RunConfig.seed}
"""Settings that others may refer to as ${name} without their being in the file."""


@dataclass(frozen=True)
class Loaded:
    """A sound configuration."""

    config: RunConfig
    tree: DictConfig
    """As written, files merged, interpolations unresolved: what a run directory keeps."""
    explicit: dict[KeyPath, Mark]
    """Every key that was set, and where."""
    protocols: dict[str, Protocol]


def load(path: str | Path, overrides: Sequence[str] = (), *, machine: Machine | None = None) -> Loaded:
    """Read `path`, apply `key=value` overrides and check everything.

    `machine` is what the run may use (None: nothing is checked against hardware). Import `learners` first: it registers
    the methods that a `learner:` section can name. Raises `ConfigErrors` with every mistake found.
    """
    path = Path(path)
    source = read(path)
    errors = override(source, overrides, path.parent)
    source.tree = {**_DEFAULTS, **source.tree}
    resolved = _resolve(source, errors)
    _import_plugins(source, resolved, errors)
    builder = _builder(source, errors)
    tasks = resolved.get("tasks")
    if not isinstance(tasks, Mapping):
        message = "missing" if tasks is None else f"{tasks!r} is no source of tasks"
        builder.error(("tasks",), message, f"a mapping with kind: {', '.join(SOURCES)}")
        resolved.pop("tasks", None)
    config = Builder(source, errors).build(RunConfig, resolved, ())
    _packaged(builder, config)
    if config.tasks is not None:
        _checked(builder, SOURCES, config.tasks, ("tasks",))
        for name, stage in config.stages.items():
            _own_tasks(builder, config.tasks, stage.tasks, ("stages", name, "tasks"))
        for name, policy in config.policies.items():
            if policy.warm_start is not None:
                path_to = ("policies", name, "warm_start", "tasks")
                _own_tasks(builder, config.tasks, policy.warm_start.tasks, path_to)
    protocols = {name: _protocol(builder, raw, ("protocols", name)) for name, raw in config.protocols.items()}
    _proposers(builder, config, protocols)
    _examples(builder, config)
    _heldout(builder, config)
    _games(builder, config, protocols)
    Checker(config, source, protocols, machine, errors, _rehearsals(config, protocols)).run()
    if errors:
        raise ConfigErrors(_sorted(errors))
    sound = {name: protocol for name, protocol in protocols.items() if protocol is not None}
    return Loaded(config, OmegaConf.create(source.tree), dict(source.marks), sound)


def load_protocol(path: str | Path) -> Protocol:
    """The protocol of one YAML file. Raises `ConfigErrors`."""
    path = Path(path)
    source = read(path, protocol=True)
    errors: list[ConfigError] = []
    raw = {"name": path.stem, **_resolve(source, errors)}
    protocol = _protocol(_builder(source, errors), raw, ())
    if errors:
        raise ConfigErrors(_sorted(errors))
    assert protocol is not None, "a protocol that could not be built leaves errors"
    return protocol


def load_task_source(tasks: Mapping[str, Any] | None, own: Mapping[str, Any] | None = None) -> TaskSource:
    """The source that a `tasks:` mapping (RunConfig.tasks) describes, with the `own` settings of a stage or a warm
    start over it. Raises `ConfigErrors`."""
    settings = {**(tasks or {}), **(own or {})}
    errors: list[ConfigError] = []
    builder = _builder(Source({"tasks": settings}), errors)
    built = _checked(builder, SOURCES, settings, ("tasks",))
    if errors:
        raise ConfigErrors(errors)
    source: TaskSource = built
    return source


def build_protocols(config: RunConfig) -> dict[str, Protocol]:
    """name -> protocol of a config. Raises `ConfigErrors`, and UserError for plugins that cannot be imported."""
    load_plugins(config.plugins)
    errors: list[ConfigError] = []
    builder = _builder(Source({"protocols": config.protocols}), errors)
    built = {name: _protocol(builder, raw, ("protocols", name)) for name, raw in config.protocols.items()}
    if errors:
        raise ConfigErrors(errors)
    return {name: protocol for name, protocol in built.items() if protocol is not None}


def to_yaml(tree: DictConfig) -> str:
    """The tree as YAML, interpolations (and so `${oc.env:...}`) unresolved: no secret is written out."""
    return OmegaConf.to_yaml(tree, resolve=False)


def _import_plugins(source: Source, resolved: Mapping[str, Any], errors: list[ConfigError]) -> None:
    """The modules of `plugins`, imported before anything that they may register is looked up."""
    modules = resolved.get("plugins")
    for index, module in enumerate(modules if isinstance(modules, list) else ()):
        try:
            load_plugins([module] if isinstance(module, str) else ())
        except UserError as error:
            errors.append(source.error(("plugins", index), str(error).removeprefix("plugins: ")))


def _builder(source: Source, errors: list[ConfigError]) -> Builder:
    return Builder(source, errors, {Protocol: KINDS})


def _protocol(builder: Builder, raw: Any, path: KeyPath) -> Protocol | None:
    built: Protocol | None = _checked(builder, builder.kinds[Protocol], raw, path)
    return built


def _packaged(builder: Builder, config: RunConfig) -> None:
    """A packaged model's name becomes the folder that it lies in."""
    for name, policy in config.policies.items():
        if policy.model.path in MODELS:
            try:
                policy.model.path = str(model_folder(policy.model.path))
            except ModelNotInstalled as error:
                builder.error(("policies", name, "model", "path"), f"{policy.model.path} {error}")


def _own_tasks(builder: Builder, base: Mapping[str, Any], own: Mapping[str, Any], path: KeyPath) -> None:
    """The own settings that a stage or a warm start has of the task source, taken together with those of the run."""
    if "kind" in own:
        builder.error((*path, "kind"), "the kind of tasks is the run's", "settings of that kind")
    elif own:
        _checked(builder, SOURCES, {**base, **own}, path)


def _proposers(builder: Builder, config: RunConfig, protocols: Mapping[str, Protocol | None]) -> None:
    """Where nobody proposes, the tasks of a stage must say what to play."""
    for name, stage in config.stages.items():
        protocol = protocols.get(stage.protocol)
        if protocol is None or protocol.kind.startswith("propose_solve") or config.tasks is None:
            continue
        try:
            source = load_task_source(config.tasks, stage.tasks)
        except ConfigErrors:
            continue  # noted already
        if source.needs_proposer():
            message = f"nobody proposes in a protocol of kind {protocol.kind}, and these tasks need a proposer"
            valid = "a protocol of kind propose_solve, or other tasks: in this stage"
            builder.error(("stages", name, "protocol"), message, valid)


def _examples(builder: Builder, config: RunConfig) -> None:
    """Where a share of the plays is on real tasks, the source must have some."""
    for name, stage in config.stages.items():
        if stage.real <= 0 or config.tasks is None:
            continue
        try:
            real_task(load_task_source(config.tasks, stage.tasks), random.Random(0))
        except ConfigErrors:
            continue  # noted already
        except LookupError:
            message = "these tasks have no examples of their own"
            builder.error(("stages", name, "real"), message, "0, or tasks that warm starts of a proposer imitate")


def _heldout(builder: Builder, config: RunConfig) -> None:
    """Where something is measured, the source must keep tasks for evaluation."""
    if config.tasks is None or not config.eval.arms:
        return
    try:
        problem = load_task_source(config.tasks).heldout_problem()
    except ConfigErrors:
        return  # noted already
    if problem:
        builder.error(("tasks",), problem)


def _games(builder: Builder, config: RunConfig, protocols: Mapping[str, Protocol | None]) -> None:
    """Where a game is played, the tasks must be games, for as many players as there are seats."""
    bound: list[tuple[tuple[str, ...], str, Mapping[str, Any]]]
    bound = [(("stages", name), stage.protocol, stage.tasks) for name, stage in config.stages.items()]
    bound += [(("eval", "arms", name), arm.protocol, {}) for name, arm in config.eval.arms.items()]
    for path, name, own in bound:
        protocol = protocols.get(name)
        if protocol is None or protocol.kind != "game" or config.tasks is None:
            continue
        try:
            source = load_task_source(config.tasks, own)
        except ConfigErrors:
            continue  # noted already
        if problem := protocol.unplayable(source.train(random.Random(0))):
            builder.error((*path, "protocol"), problem)
        elif path[0] == "eval" and config.eval.arms[path[-1]].measure == "nash_conv":
            if problem := source.exact_problem():
                builder.error((*path, "measure"), f"NashConv of these tasks: {problem}")


def _rehearsals(config: RunConfig, protocols: Mapping[str, Protocol | None]) -> Rehearse:
    """Plays each protocol on the tasks that it is for, once, when a check asks."""
    done: dict[tuple[str, str, Purpose, frozenset[str]], Rehearsal | None] = {}

    def seen(name: str, own: Mapping[str, Any], purpose: Purpose, even: frozenset[str]) -> Rehearsal | None:
        key = (name, repr(own), purpose, even)
        if key not in done:
            done[key] = None
            try:
                source = load_task_source(config.tasks, own)
            except ConfigErrors:
                return None  # noted already
            protocol = protocols.get(name)
            needy = purpose != "heldout" and source.needs_proposer() and not isinstance(protocol, ProposeSolve)
            if protocol is not None and not needy and not (purpose == "heldout" and source.heldout_problem()):
                done[key] = rehearse(protocol, source, purpose, even)
        return done[key]

    return seen


def _checked(builder: Builder, kinds: Kinds, raw: Any, path: KeyPath) -> Any:
    """Built and found sound by its own `problems()`, or None."""
    built = builder.dispatch(kinds, raw, path)
    problems = built.problems() if built is not None else []
    for key, message in problems:
        parts = (int(part) if part.isdigit() else part for part in re.split(r"[.\[\]]+", key) if part)
        builder.error((*path, *parts), message)
    return None if problems else built


def _resolve(source: Source, errors: list[ConfigError]) -> dict[str, Any]:
    """Interpolations filled in; those that cannot be, and secrets written out, are noted and left away."""
    tree = OmegaConf.create(source.tree)
    return dict(_resolved(tree, (), source, errors))


def _resolved(
    node: Any, path: KeyPath, source: Source, errors: list[ConfigError]
) -> Iterator[tuple[Any, Any]]:
    keys: Any = node if isinstance(node, DictConfig) else range(len(node))
    for key in keys:
        here = (*path, key)
        linked = OmegaConf.is_interpolation(node, key)
        try:
            value = node[key]
        except OmegaConfBaseException as error:
            errors.append(source.error(here, f"cannot be resolved: {str(error).splitlines()[0]}"))
            continue
        if isinstance(value, str) and value and _SECRET.search(str(key)) and not linked:
            message = "a secret must not be written here: it would be kept with the run"
            valid = f"an environment variable, ${{oc.env:{str(key).upper()}}}"
            errors.append(source.error(here, message, valid))
        elif isinstance(value, DictConfig):
            if linked:
                source.links.add(here)
            value = dict(_resolved(value, here, source, errors))
        elif isinstance(value, ListConfig):
            value = [item for _, item in _resolved(value, here, source, errors)]
        yield key, value


def _sorted(errors: list[ConfigError]) -> list[ConfigError]:
    """In the order of the files, each mistake once."""

    def place(error: ConfigError) -> tuple[str, int]:
        file, _, line = error.where.rpartition(":")
        return (file, int(line)) if line.isdigit() else (error.where, 0)

    return sorted(dict.fromkeys(errors), key=place)
