"""The trusted slice: the tasks whose right answers a judge may learn from. All others can still be judged."""

from __future__ import annotations

import hashlib


def trusted(cluster: str, share: float) -> bool:
    """Whether the tasks of `cluster` (`TaskSource.cluster`: one image, say) are among the trusted `share` of all.

    Told by a hash of the name alone, so every run, seed and process has the same slice, and a smaller one lies inside
    a larger one. By cluster, since the answer to one task about an image gives away all others about it.
    """
    digest = hashlib.sha256(f"trusted {cluster}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64
