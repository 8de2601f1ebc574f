"""Exported episodes: what a row holds, what is left out, and that `datasets` reads the folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import launch
from actors.rollout import records
from protocols.types import Episode, Message, Outcome, Reward, Task, Turn
from reporting.export import ExportError, Wanted, export

ASKED = (Message("system", "Debate."), Message("user", "Which?"))


def said(text: str, value: float, id: str, status: Any = "ok", meta: dict[str, Any] | None = None) -> Episode:
    turns = (Turn("alice", "debater", "p", 0, "talk", ASKED, text),
             Turn("judge", "judge", "j", 0, "", ASKED, "A", ("A", "B"), (0.7, 0.3), read=True))  # fmt: skip
    outcome = Outcome(
        status, rewards=(Reward("alice", 0, value, "win"), Reward("alice", None, 0.5, "form")), score=1.0
    )
    return Episode(id, "debate", Task("t", "Which?", "x", ("x", "y")), 0, turns, outcome, meta=meta or {})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    plays = [said("good", 1.0, "a"), said("bad", -1.0, "b"), said("fair", 0.0, "c")]
    plays += [said("broken", 9.0, "d", "invalid"), said("measured", 9.0, "e", meta={"arm": "trained"})]
    (folder / "episodes.jsonl").write_bytes(records.encode(plays))
    (folder / "config.yaml").write_text("name: demo\nseed: 3\npolicies: {p: {model: '${x}'}}\n")
    (folder / "summary.json").write_text(json.dumps({"policies": {"p": {"model": "models/p"}}}))
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]


def test_preferences_are_the_best_and_worst_replies_to_one_prompt(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out", Wanted("preferences"), "jsonl")
    (row,) = rows(tmp_path / "out")
    assert row["prompt"] == [{"role": "system", "content": "Debate."}, {"role": "user", "content": "Which?"}]
    assert row["chosen"] == [{"role": "assistant", "content": "good"}] and row["reward_chosen"] == 1.5
    assert row["rejected"] == [{"role": "assistant", "content": "bad"}] and row["reward_rejected"] == -0.5


def test_sft_holds_what_was_paid_enough_and_nothing_that_was_measured(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "all", Wanted("sft"), "jsonl")
    assert [row["messages"][-1]["content"] for row in rows(tmp_path / "all")] == ["good", "bad", "fair"]
    export(run, tmp_path / "best", Wanted("sft", least_reward=1.0), "jsonl")
    assert [row["reward"] for row in rows(tmp_path / "best")] == [1.5]
    with pytest.raises(ExportError, match="nothing to export"):
        export(run, tmp_path / "none", Wanted("sft", policy="nobody"), "jsonl")
    assert not (tmp_path / "none" / "data.jsonl").exists()


def test_episodes_and_the_record_itself(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "episodes", Wanted("episodes"), "jsonl")
    assert [row["id"] for row in rows(tmp_path / "episodes")] == ["a", "b", "c", "e"]
    export(run, tmp_path / "record", Wanted("jsonl"), "jsonl")
    assert [row["id"] for row in rows(tmp_path / "record")] == ["a", "b", "c", "d", "e"]


def test_the_card_says_what_is_in_it(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "out", Wanted("sft", least_reward=1.0), "jsonl")
    card = (tmp_path / "out" / "README.md").read_text()
    for part in ("demo: sft", "debate 5", "ok 4, invalid 1", "p: models/p", "least_reward: 1.0", "seed: 3"):
        assert part in card


def test_the_command_refuses_in_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["export", str(tmp_path)]) == 2
    assert "no episodes.jsonl" in capsys.readouterr().err
    assert launch.main(["export", str(run)]) == 0 and launch.main(["export", str(run)]) == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("kind", ["episodes", "sft", "preferences"])
def test_the_library_datasets_reads_the_folder(
    run: Path, tmp_path: Path, kind: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    export(run, tmp_path / "out", Wanted(kind), form)
    read = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    columns = {"episodes": "turns", "sft": "messages", "preferences": "chosen"}
    assert len(read) and columns[kind] in read.column_names
