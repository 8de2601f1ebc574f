"""Seeds of single requests, for runs that must come out the same every time (`deterministic: true`).

    run seed ─► play (stage, index) ─► turn (seat, turn, how often asked) ─► branching (tokens chosen so far)

Each is a hash of its parent and a name, and of nothing that depends on time: not on which reply came first, which
engine served it, or what else was asked meanwhile.
"""

from __future__ import annotations

import hashlib


def derive(parent: int, *names: object) -> int:
    """A number in [0, 2**63) out of `parent` and `names`, well mixed in the low 32 bits: some use no more."""
    text = "/".join([str(parent), *map(repr, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def turn_seed(play: int, seat: str, turn: int, asked: int) -> int:
    """Of one request of the play with seed `play`. `asked`: how often its seat was asked for its turn before (a
    vote that could not be read is asked for again, and must not come out the same)."""
    return derive(play, seat, turn, asked)


def branch_seed(turn: int, chosen: int) -> int:
    """Of one choice among tokens within a reply of which `chosen` tokens stand. With the reply's own seed at each of
    them, a token that luck favours once would be favoured at every place."""
    return derive(turn, chosen)
