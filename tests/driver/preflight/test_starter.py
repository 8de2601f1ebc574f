"""`launch.py init`: what is guessed of a file, and that `plan` accepts what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import launch
from driver.preflight.starter import NoGuess, guess_fields

SAMPLES = Path(__file__).resolve().parent.parent.parent / "tasks" / "samples"


@pytest.mark.parametrize(
    ("sample", "fields"),
    [
        (
            "quality/train",
            {
                "each": "questions",
                "answer": "gold_label",
                "choices": ["options"],
                "answer_is": "index_from_1",
            },
        ),
        ("arc/train", {"choices": ["choices.text"], "labels": "choices.label", "answer_is": "label"}),
        ("mmlu_pro/test", {"choices": ["options"], "answer": "answer", "id": "question_id"}),
        ("truthfulqa/validation", {"choices": ["mc1_targets.choices"], "answer": "mc1_targets.labels"}),
        ("gpqa/train", {"answer": "Correct Answer", "question": "Question"}),
    ],
)
def test_fields_are_guessed(sample: str, fields: dict[str, object]) -> None:
    guess = guess_fields(SAMPLES / f"{sample}.jsonl")
    assert {key: guess.fields.get(key) for key in fields} == fields


def test_what_is_written_is_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine.yaml"
    question = SAMPLES / "quality" / "train.jsonl"
    command = ["init", str(question), "--judge", "org/judge", "--debater", "org/debater", "--out", str(out)]
    assert launch.main(command) == 0
    assert "debaters read the field 'article'" in capsys.readouterr().out
    tiny = ["policies.judge.model={}", "policies.debater.model={}"]  # nothing is downloaded in a test
    assert launch.main(["plan", str(out), *tiny]) == 0
    assert launch.main(command) == 2 and "is there already" in capsys.readouterr().err


def test_a_file_that_tells_nothing_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"a": 1}) + "\n")
    with pytest.raises(NoGuess, match="no field looks like the question; there are: a"):
        guess_fields(path)
