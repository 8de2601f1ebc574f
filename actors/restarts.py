"""Restarts: an actor that Ray has brought back remembers nothing, and its caller may not have noticed.

It may have died while nobody waited for it, or a request may have died with it in the tick of its end. So it drops what
it is sent, and says so to whoever waits for answers, until it has been asked `ready`: the router takes that for a death
like any other, gives it the current weights, and asks again.
"""

from __future__ import annotations


class Restarted(RuntimeError):
    """This actor was restarted since its caller spoke with it."""


def restarted() -> bool:
    """Whether this process is an actor that Ray has restarted."""
    import ray

    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return False
    return bool(ray.get_runtime_context().was_current_actor_reconstructed)
