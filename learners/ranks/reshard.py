"""A learner's state for another number of ranks: DeepSpeed's universal checkpoint (arXiv 2406.18820).

From ZeRO stage 1 on, every rank saves its slice of the optimizer. The converter that DeepSpeed brings puts the slices
of each parameter together; whatever ranks there are then cut their own out of them. At stage 0 nothing is sliced.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

CLIENT_STATE = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
"""What the converter wants to find in a checkpoint."""
TAG = "universal"


class ConversionFailed(RuntimeError):
    """DeepSpeed's converter did not understand a checkpoint."""


def place(folder: str, scratch: str) -> Path:
    """Where the converted state of `folder` goes: the same on all ranks, and not into the checkpoint, whose manifest
    lists all that may be in it."""
    name = hashlib.sha256(str(Path(folder).resolve()).encode()).hexdigest()[:16]
    return Path(scratch) / f".{TAG}-{name}"


def convert(state: Path, out: Path) -> None:
    """Writes what `state` (a folder of DeepSpeed's) holds to `out` / TAG. In a process of its own, which needs all of
    the optimizer in memory for a moment. Raises ConversionFailed."""
    shutil.rmtree(out, ignore_errors=True)
    (out / TAG).mkdir(parents=True)
    command = [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--num_extract_workers", "1",
               "--num_merge_workers", "1", "--input_folder", str(state), "--output_folder", str(out / TAG)]  # fmt: skip
    done = subprocess.run(command, env={**os.environ, "DS_ACCELERATOR": "cpu"}, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise ConversionFailed(f"{state}: {lines[-1] if lines else f'exit code {done.returncode}'}")
