"""The garbage collector in processes that make short-lived objects by the million beside a heap of modules."""

from __future__ import annotations

import gc

THRESHOLDS = (1_000_000, 20, 200)
"""Plays and requests leave next to no cycles, so that scans find next to nothing; with 50,000 plays under way, whose
objects live long enough to be scanned and lie far apart, they are dear (`python -m benchmarks orchestrator`)."""


def settle() -> None:
    """What is there now is never scanned again, and new objects less often: with thousands of plays under way scanning
    that heap again and again costs the driver, and an engine of a tiny model, much of their time."""
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
