"""SIGTERM in an actor with async methods. Ray (2.60) then waits for calls under way, and one of an engine's never
returns: it would neither answer any more nor end, and everybody would wait for ever."""

from __future__ import annotations

import ctypes
import signal


def ends_this_actor() -> None:
    """At once, as SIGKILL does, so that Ray restarts it. Does nothing outside of an actor. By libc, since such actors
    are made in a thread that may not set Python's handlers."""
    import ray

    if ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None:
        set_handler = ctypes.CDLL(None).signal
        set_handler.argtypes, set_handler.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
        set_handler(signal.SIGTERM, None)  # SIG_DFL
