"""Pretrained models for tests: installed with the extra, converted once, else the test is skipped with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.packaged_models import ModelNotInstalled, model_folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The Hugging Face folder of SmolLM2-135M-Instruct."""
    try:
        return model_folder("smollm2")
    except ModelNotInstalled as error:
        pytest.skip(f"smollm2 {error}")
