"""The garbage collector in processes that make short-lived objects by the million beside a heap of modules."""

from __future__ import annotations

import gc

THRESHOLDS = (100_000, 20, 20)


def settle() -> None:
    """What is there now is never scanned again, and new objects less often. Scanning that heap again and again took a
    third of the driver's time, and a fifth of an engine's with a thousand debates under way on a tiny model."""
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
