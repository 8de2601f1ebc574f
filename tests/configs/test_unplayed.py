"""A policy that nobody plays is a mistake where only an override or an extending file names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.load import load
from configs.reading.errors import ConfigErrors
from tests.support.rigs import ROOT

MAIN = ROOT / "configs" / "pixel_debate.yaml"


def mistakes(path: Path, *overrides: str) -> list[str]:
    try:
        load(path, list(overrides))
    except ConfigErrors as errors:
        return [str(error) for error in errors.errors]
    return []


def extending(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(f"extends: [{MAIN}]\n{text}")
    return path


def test_a_mistyped_override_is_named_with_what_was_meant() -> None:
    (found,) = mistakes(MAIN, "policies.debatr.temperature=0.5")
    assert found.startswith("command line, override 1: policies.debatr") and "did you mean debater?" in found
    assert "judge, debater, proposer, uniform, consultant" in found


def test_a_mistyped_policy_of_an_extending_file_is_found_where_it_stands(tmp_path: Path) -> None:
    (found,) = mistakes(extending(tmp_path, "policies:\n  judgee: {temperature: 0.5}\n"))
    assert "mine.yaml:3" in found and "policies.judgee" in found and "did you mean judge?" in found


@pytest.mark.parametrize(
    "overrides",
    [
        ["stages.debate.roles.proposer=uniform"],  # the proposer's settings stand, and nobody plays it
        ["policies.second.temperature=0.5", "stages.debate.roles.proposer=second", "policies.second.kind=uniform"],
    ],
)
def test_a_base_may_lose_a_policy_and_a_new_one_may_be_played(overrides: list[str]) -> None:
    assert not [found for found in mistakes(MAIN, *overrides) if "nobody plays" in found]


def test_whose_engines_or_opponent_checkpoints_are_played_is_used(tmp_path: Path) -> None:
    assert mistakes(ROOT / "configs" / "kuhn_league.yaml") == []
    text = (
        "policies:\n"
        "  host: {model: {hidden_size: 64, layers: 2, heads: 2, kv_heads: 2, intermediate_size: 128, max_len: 128,"
        " tie_embeddings: false}}\n"
        "  debater: {engine: {share: host}, learner: {lora: {rank: 4}}}\n"
    )
    assert not [found for found in mistakes(extending(tmp_path, text)) if "nobody plays" in found]
