"""`launch.py replay`: what a run's plays were, as each seat saw them."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import get_args

import msgspec
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from actors.rollout import records
from actors.rollout.ledger import FREE
from protocols.errors import UserError
from protocols.types import Episode, Status
from reporting import transcript
from reporting.console import PALETTE, compact

LISTED = 12


class UnknownEpisode(UserError):
    """No such episode in the run."""

    def __init__(self, id: str, near: Sequence[str]) -> None:
        super().__init__(id, near)
        self.id, self.near = id, near

    def __str__(self) -> str:
        return f"no episode {self.id!r}; near it: {', '.join(self.near) or 'none'}"


class UnknownSeat(UserError):
    """No such seat in the episode."""

    def __init__(self, seat: str, known: Sequence[str]) -> None:
        super().__init__(seat, known)
        self.seat, self.known = seat, known

    def __str__(self) -> str:
        return f"no seat {self.seat!r}; there are: {', '.join(self.known)}"


def show(
    run_dir: Path | str, episode: str | None, seat: str | None = None, console: Console | None = None
) -> None:
    """Prints one episode; without an id, a list of what there is and the last play.

    With `seat` only that seat's view. Raises `UnknownEpisode`, `UnknownSeat`, FileNotFoundError, `DamagedRecord`.
    """
    console = console or Console(highlight=False)
    path = Path(run_dir) / "episodes.jsonl"
    if not path.exists():
        raise FileNotFoundError(f"{run_dir} holds no episodes.jsonl: is it a run directory?")
    if episode is None:
        last = _list(path, console)
        if last is None:
            return
        found = next(iter(records.read_at(path, [last])))
    else:
        found = find(path, episode)
    if seat is not None and seat not in transcript.seats(found):
        raise UnknownSeat(seat, transcript.seats(found))
    _transcript(found, seat, console)


def find(path: Path, id: str) -> Episode:
    """The episode of that id (where attempts share it, the last one that is not `lost` or `cancelled`). Raises
    `UnknownEpisode`.

    Only lines that contain the id are decoded.
    """
    needle = msgspec.json.encode(id)[1:-1]
    best: bytes | None = None
    with path.open("rb") as lines:
        for line in lines:
            if needle in line and line.endswith(b"\n"):
                head = records.decode_head(line)
                if head.id == id and (best is None or head.status not in FREE):
                    best = line
    if best is None:
        raise UnknownEpisode(id, nearest(id, [head.id for head, _, _ in records.heads(path)]))
    return records.decode_line(best)


def nearest(id: str, known: Iterable[str], n: int = 5) -> list[str]:
    """Up to `n` ids like `id`: those that contain it (or are contained), then those of similar spelling."""
    known = list(dict.fromkeys(known))
    inside = sorted(
        (name for name in known if id and (id in name or name in id)),
        key=lambda name: abs(len(name) - len(id)),
    )
    if len(inside) < n:
        same_start = [name for name in known if name[:3] == id[:3]] or known
        inside += [name for name in difflib.get_close_matches(id, same_start[:5000], n) if name not in inside]
    return inside[:n]


def _list(path: Path, console: Console) -> tuple[int, int] | None:
    """Prints counts and the newest root plays. Returns the place of the newest play that has no sub-plays (an `ok`
    one where there is one), for showing."""
    statuses: Counter[tuple[str, str]] = Counter()
    plays: list[tuple[records.Head, tuple[int, int]]] = []
    scores: dict[str, list[float]] = {}
    for head, offset, length in records.heads(path):
        statuses[head.protocol, head.status] += 1
        if isinstance(head.score, float):
            scores.setdefault(head.protocol, []).append(head.score)
        plays.append((head, (offset, length)))
    if not plays:
        console.print("no episodes yet")
        return None
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    met = {status for _, status in statuses}
    listed = [status for status in get_args(Status) if status in {"ok", "invalid", "lost", *met}]
    for header in ("protocol", *listed, "mean score"):
        table.add_column(header, justify="left" if header == "protocol" else "right")
    for protocol in dict.fromkeys(name for name, _ in statuses):
        counts = [f"{statuses[protocol, status]:,}" for status in listed]
        values = scores.get(protocol, [])
        table.add_row(
            transcript.printable(protocol), *counts, f"{sum(values) / len(values):.3f}" if values else ""
        )
    console.print(table)
    console.print()
    newest = [transcript.printable(head.id) for head, _ in plays if head.parent is None][-LISTED:]
    console.print(Text("newest: " + "  ".join(newest), "dim"))
    console.print()
    parents = {head.parent for head, _ in plays}
    leaves = [(head, place) for head, place in plays if head.id not in parents] or plays
    return next((place for head, place in reversed(leaves) if head.status == "ok"), leaves[-1][1])


def _transcript(episode: Episode, seat: str | None, console: Console) -> None:
    if seat is None:
        console.print(compact(episode))
        _rewards(episode, console)
        meta = "  ".join(f"{key}={value}" for key, value in episode.meta.items())
        origin = f"  parent={episode.parent}" if episode.parent else ""
        console.print(
            Text(
                transcript.printable(f"  task {episode.task.id}  seed={episode.seed}{origin}  {meta}"), "dim"
            )
        )
    speakers = transcript.speakers(episode)
    order = speakers + [name for name in transcript.seats(episode) if name not in speakers]
    for index, name in enumerate(order):
        if seat in (None, name):
            _view(episode, name, PALETTE[index % len(PALETTE)], console)


def _rewards(episode: Episode, console: Console) -> None:
    for reward in episode.outcome.rewards:
        turn = "episode" if reward.turn is None else f"turn {reward.turn}"
        console.print(Text(f"  reward  {reward.seat}  {turn}  {reward.name} {reward.value:+.3f}", "dim"))


def _view(episode: Episode, seat: str, colour: str, console: Console) -> None:
    """One seat's own chats, word for word."""
    turns = [turn for turn in episode.turns if turn.seat == seat]
    policies = ", ".join(dict.fromkeys(turn.policy for turn in turns))
    versions = sorted({version for turn in turns if turn.trace for version in turn.trace.versions_T})
    played = f" at step {versions[0]}" + (f"-{versions[-1]}" if len(versions) > 1 else "") if versions else ""
    console.print()
    title = f"{seat} ({turns[0].role}, played by {policies}{played}) sees"
    console.print(Rule(Text(transcript.printable(title), colour), align="left", style=colour))
    for index, chat in enumerate(transcript.chats(episode, seat)):
        if index:
            console.print(Text("  a fresh chat", "dim"))
        for message in chat:
            style = {"system": "dim italic", "assistant": f"bold {colour}"}.get(message.speaker, "")
            grid = Table.grid(padding=(0, 2))
            grid.add_column(width=9, no_wrap=True)
            grid.add_column(overflow="fold")
            text = transcript.printable(message.text)
            grid.add_row(Text(message.speaker, "dim"), Text(text, style))
            console.print(grid)
