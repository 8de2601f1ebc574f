"""An episode as people read it: what was said in order, what the judge believed after it, each seat's own view.

Pure; shared by the screen, `replay`, the report and W&B.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from protocols.types import Episode, Judgment, Message, Turn


@dataclass(frozen=True, slots=True)
class Event:
    """One turn, or one judgment (the readings behind a judgment are not shown by themselves)."""

    turn: Turn | None = None
    judgment: Judgment | None = None


def events(episode: Episode) -> Iterator[Event]:
    """Turns and judgments in the order they happened. A judge that is asked k times per judgment (once per claim
    order, say) judges after every k-th of its turns; where that does not come out even, `after_turn` decides."""
    judgments: dict[str, list[Judgment]] = {}
    for judgment in episode.outcome.judgments:
        judgments.setdefault(judgment.seat, []).append(judgment)
    turns = Counter(turn.seat for turn in episode.turns if turn.seat in judgments)
    asked: Counter[str] = Counter()
    loose = sorted(
        (
            entry
            for seat, found in judgments.items()
            if not turns[seat] or turns[seat] % len(found)
            for entry in found
        ),
        key=lambda entry: entry.after_turn,
    )
    said = 0
    for turn in episode.turns:
        while loose and loose[0].after_turn <= said:
            yield Event(judgment=loose.pop(0))
        found = judgments.get(turn.seat, [])
        if turn.seat not in judgments:
            said += 1
        if turn.seat not in judgments or not turn.read:
            yield Event(turn=turn)
        if found and turns[turn.seat] % len(found) == 0:
            asked[turn.seat] += 1
            per_judgment = turns[turn.seat] // len(found)
            if asked[turn.seat] % per_judgment == 0:
                yield Event(judgment=found[asked[turn.seat] // per_judgment - 1])
    for judgment in loose:
        yield Event(judgment=judgment)


def seats(episode: Episode) -> list[str]:
    """In order of first speaking."""
    return list(dict.fromkeys(turn.seat for turn in episode.turns))


def speakers(episode: Episode) -> list[str]:
    """The seats that do not judge, in order of first speaking."""
    judges = {judgment.seat for judgment in episode.outcome.judgments}
    return [seat for seat in seats(episode) if seat not in judges]


def chats(episode: Episode, seat: str) -> list[tuple[Message, ...]]:
    """What a seat saw and said: one chat where it only grew, a new one wherever it was rendered anew."""
    found: list[tuple[Message, ...]] = []
    for turn in episode.turns:
        if turn.seat != seat:
            continue
        chat = (*turn.messages, Message("assistant", said(turn)))
        if found and turn.messages[: len(found[-1])] == found[-1]:
            found[-1] = chat
        else:
            found.append(chat)
    return found


def said(turn: Turn) -> str:
    """The reply; for a reading, the probability of each choice."""
    if turn.read and turn.probs:
        return "  ".join(
            f"{choice} {prob:.3f}" for choice, prob in zip(turn.choices, turn.probs, strict=False)
        )
    return turn.text


def legal(turn: Turn) -> bool:
    """Whether the reply is one of the moves that the turn named; True where it named none, and of a judge."""
    return turn.phase == "judge" or turn.read or not turn.choices or turn.text in turn.choices


def rewards(episode: Episode, seat: str, turn: int | None) -> list[tuple[str, float]]:
    """(name, value) of the rewards for one turn of a seat; turn None: those for the whole episode."""
    return [
        (entry.name, entry.value)
        for entry in episode.outcome.rewards
        if (entry.seat, entry.turn) == (seat, turn)
    ]


def belief(judgment: Judgment, choices: tuple[str, ...]) -> str:
    """ "8 61%" for the favoured choice; "unreadable" for an invalid judgment."""
    if not judgment.valid or not judgment.scores:
        return "unreadable"
    best = max(range(len(judgment.scores)), key=judgment.scores.__getitem__)
    name = choices[best] if len(choices) == len(judgment.scores) else f"choice {best}"
    return f"{name} {judgment.scores[best]:.0%}"


def printable(text: str) -> str:
    """Text of a seat made safe for a terminal: control characters (escape sequences among them) become visible."""
    return "".join(
        char if char in "\n\t" or char.isprintable() or char == " " else f"\\x{ord(char):02x}"
        for char in text
    )


def as_text(episode: Episode) -> str:
    """The public view in plain text, one line per event (for W&B tables)."""
    lines = []
    for event in events(episode):
        if event.turn is not None:
            lines.append(f"{event.turn.seat}: {event.turn.text}")
        elif event.judgment is not None:
            lines.append(f"  [{event.judgment.seat}: {belief(event.judgment, episode.task.choices)}]")
    return "\n".join(lines)
