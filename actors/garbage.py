"""The garbage collector in processes that make short-lived objects by the million beside a heap of modules."""

from __future__ import annotations

import gc

THRESHOLDS = (100_000, 20, 200)


def settle() -> None:
    """What is there now is never scanned again, and new objects less often: with thousands of plays under way scanning
    that heap again and again costs the driver, and an engine of a tiny model, much of their time."""
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
