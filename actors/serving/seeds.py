"""Seeds of single requests, for runs that repeat bit by bit (`deterministic: true`).

    run seed ─► play (stage, index) ─► turn (seat, turn, attempt) ─► branching (number of tokens before it)

Each seed hashes its parent seed and a name. It depends neither on the order of replies, nor on the engine, nor on
other requests.
"""

from __future__ import annotations

import hashlib


def derive(parent: int, *names: object) -> int:
    """Hashes `parent` and `names` to a number in [0, 2**63); its low 32 bits are well mixed, as some users keep only
    these."""
    text = "/".join([str(parent), *map(repr, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def turn_seed(play: int, seat: str, turn: int, asked: int) -> int:
    """Seed of one request of the play with seed `play`. `asked`: how many times the seat was asked for this turn
    before; a retry of an unreadable vote must not repeat it."""
    return derive(play, seat, turn, asked)


def branch_seed(turn: int, chosen: int) -> int:
    """Seed of one branching of a reply, after `chosen` tokens. One seed for all branchings of a reply would favour the
    same token at each of them."""
    return derive(turn, chosen)
