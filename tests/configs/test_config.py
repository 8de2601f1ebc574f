"""configs/: reading, overriding, building. What is refused: tests/configs/test_config_mistakes.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings, strategies as st
from omegaconf import OmegaConf

from configs.load import build_protocols, load_protocol, load_task_source, to_yaml
from configs.machine import Machine, needs, peak
from configs.memory import parameters
from configs.reading.build import Builder
from configs.reading.errors import ConfigError, ConfigErrors
from configs.reading.source import Source
from configs.schema.run import ModelConfig, PolicyConfig, RunConfig, StageConfig
from tests.support.config_files import CONFIGS, LAPTOP, read, write

__all__ = ["write"]



@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_is_sound(path: Path) -> None:
    loaded = read(path)
    assert loaded.config.policies
    assert set(loaded.protocols) == set(loaded.config.protocols)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("protocol/*.yaml")), ids=lambda path: path.name)
def test_every_shipped_protocol_is_sound(path: Path) -> None:
    assert load_protocol(path).name == path.stem


def test_values_defaults_and_places(write: Callable[..., Path]) -> None:
    loaded = read(write())
    assert loaded.config.stages["main"].steps == 3
    assert loaded.config.stages["main"].plays_per_step == StageConfig().plays_per_step
    assert loaded.config.run_dir == "runs/run"
    assert loaded.explicit[("stages", "main", "steps")].line == 14
    assert ("stages", "main", "plays_per_step") not in loaded.explicit
    assert loaded.protocols["debate"].roles() == {"alice": "debater", "bob": "debater", "judge": "judge"}


def test_overrides_are_yaml_and_reach_into_protocol_files(write: Callable[..., Path]) -> None:
    loaded = read(
        write(), "stages.main.steps=7", "policies.debater.learner.lr=1e-4", "name=x", "protocols.debate.phases=[]",
        "protocols.debate.phases=[{name: talk, seats: [alice, bob], moves: evidence, repeat: 5}]",
    )  # fmt: skip
    assert loaded.config.stages["main"].steps == 7
    assert loaded.config.policies["debater"].learner.lr == 1e-4
    assert loaded.config.run_dir == "runs/x"
    assert loaded.protocols["debate"].phases[0].repeat == 5  # type: ignore[attr-defined]
    assert loaded.explicit[("name",)].file == ""


def test_extends_merges_in_order_and_relative_to_the_file(write: Callable[..., Path], tmp_path: Path) -> None:
    write()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.yaml").write_text("extends: [../c.yaml]\nseed: 1\nstages: {main: {steps: 10}}\n")
    (tmp_path / "b.yaml").write_text("seed: 2\n")
    top = tmp_path / "top.yaml"
    top.write_text("extends: [deep/a.yaml, b.yaml]\nstages: {main: {repeats: 4}}\n")
    config = read(top).config
    assert (config.seed, config.stages["main"].steps, config.stages["main"].repeats) == (2, 10, 4)


def test_another_kind_replaces_what_it_does_not_share(write: Callable[..., Path]) -> None:
    debate = CONFIGS / "protocol" / "debate.yaml"
    prose = f"protocols.prose={{extends: [{debate}], zero_sum: false, rewards: [{{name: format}}]}}"
    changes = ["policies.judge.kind=uniform", "tasks={kind: toys}", prose, "stages.main.protocol=prose"]
    config = read(write(), *changes).config
    assert config.policies["judge"] == PolicyConfig(kind="uniform")
    assert config.tasks == {"kind": "toys"}


def test_null_takes_away_a_mapping_of_the_file_below(write: Callable[..., Path], tmp_path: Path) -> None:
    write(more="  more: {protocol: debate, roles: {debater: debater, judge: judge}, steps: 1}\n")
    (tmp_path / "d.yaml").write_text("extends: [c.yaml]\nstages: {main: null}\n")
    assert list(read(tmp_path / "d.yaml").config.stages) == ["more"]
    assert list(read(tmp_path / "c.yaml", "stages.more=null").config.stages) == ["main"]


def test_saved_copy_stands_alone_and_means_the_same(write: Callable[..., Path], tmp_path: Path) -> None:
    first = read(write(), "stages.main.steps=5", "seed=3")
    copy = tmp_path / "elsewhere" / "config.yaml"
    copy.parent.mkdir()
    copy.write_text(to_yaml(first.tree))
    assert read(copy).config == first.config
    assert build_protocols(first.config) == first.protocols


def test_interpolations_are_resolved_for_use_and_kept_in_the_copy(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISSOI_TEST_STEPS", "12")
    monkeypatch.setenv("DISSOI_TEST_KEY", "very-secret")
    key = "policies.judge.engine.extra.served_model_name=${oc.env:DISSOI_TEST_KEY}"
    loaded = read(write(), "stages.main.steps=${oc.env:DISSOI_TEST_STEPS}", key)
    assert loaded.config.stages["main"].steps == 12
    assert loaded.config.policies["judge"].engine.extra == {"served_model_name": "very-secret"}
    assert "very-secret" not in to_yaml(loaded.tree)


def test_task_source_alone() -> None:
    assert type(load_task_source({"kind": "pixels", "levels": 2})).kind == "pixels"
    with pytest.raises(ConfigErrors, match="did you mean levels"):
        load_task_source({"kind": "pixels", "level": 2})


@dataclass(frozen=True)
class Red:
    kind: ClassVar[str] = "red"
    size: int


@dataclass(frozen=True)
class Blue:
    kind: ClassVar[str] = "blue"
    pair: tuple[int, float] = (1, 2.0)


@dataclass(frozen=True)
class Box:
    needed: str
    items: tuple[Red | Blue, ...] = ()
    maybe: int | None = None
    either: int | str = 0
    by_name: dict[str, Red | Blue] = field(default_factory=dict)
    mode: Literal["a", "b"] = "a"


def build(raw: dict[str, Any]) -> tuple[Any, list[str]]:
    errors: list[ConfigError] = []
    return Builder(Source(raw), errors).build(Box, raw, ()), [f"{e.key}: {e.message}" for e in errors]


def test_builder_reads_nested_kinds() -> None:
    raw = {
        "needed": "x", "items": [{"kind": "red", "size": 3}, {"kind": "blue", "pair": [4, 5]}], "maybe": 2,
        "either": "s", "by_name": {"k": {"kind": "red", "size": 1}}, "mode": "b",
    }  # fmt: skip
    assert build(raw) == (Box("x", (Red(3), Blue((4, 5.0))), 2, "s", {"k": Red(1)}, "b"), [])


def test_builder_collects_everything() -> None:
    raw = {
        "items": [{"kind": "read", "size": 3}, {"kind": "blue", "pair": [4]}, {"kind": "red"}],
        "maybe": "m",
        "mode": "c",
    }
    box, errors = build(raw)
    assert box is None
    assert errors == [
        "items[0].kind: there is no kind 'read'; did you mean red?",
        "items[1].pair: must have 2 entries, has 1",
        "items[2].size: missing (a whole number)",
        "maybe: must be a whole number, not 'm'",
        "mode: 'c' is not known",
        "needed: missing (text)",
    ]


TREES = st.recursive(
    st.integers(),
    lambda inner: st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), TREES), st.dictionaries(st.sampled_from("abc"), TREES))
def test_merge_is_that_of_omegaconf(below: dict[str, Any], above: dict[str, Any]) -> None:
    expected = OmegaConf.to_container(OmegaConf.merge(OmegaConf.create(below), OmegaConf.create(above)))
    source = Source(OmegaConf.to_container(OmegaConf.create(below)))  # type: ignore[arg-type]
    source.merge(Source(above))
    assert source.tree == expected


def test_parameters_of_a_tiny_model_by_hand() -> None:
    # 600 words x 8, then one layer: four 8x8 projections, three 8x16 ones, two norms of 8; one final norm
    assert parameters(ModelConfig(hidden_size=8, layers=1, heads=2, kv_heads=2, intermediate_size=16)) == (
        600 * 8 + 4 * 64 + 3 * 128 + 16 + 8
    )
    assert parameters(ModelConfig(path="org/model-1.5B-instruct")) == 1_500_000_000
    assert parameters(ModelConfig(path="org/model-large")) is None


def test_needs_count_engines_of_players_and_learners_of_trained_policies(write: Callable[..., Path]) -> None:
    config = read(write()).config
    machine = Machine(cpus=8, memory=2**36, gpus=8, gpu_memory=2**36)
    found = {
        (need.policy, need.part): (need.count, need.device, need.gpus) for need in needs(config, machine)
    }
    assert found == {
        ("judge", "engine"): (1, "cuda", 1.0),
        ("debater", "engine"): (1, "cuda", 1.0),
        ("debater", "learner"): (1, "cuda", 1.0),
    }
    assert peak(needs(config, machine), "cuda", "gpus") == 3
    assert peak(needs(config, LAPTOP), "cuda", "gpus") == 0
    assert needs(RunConfig(), machine) == []
