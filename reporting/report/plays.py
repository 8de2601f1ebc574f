"""The report's sample plays: the public record, and each seat's own view behind a fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from actors.rollout.records import Head
from protocols.types import Episode, Judgment, Turn
from reporting import transcript
from reporting.console import arm_label
from reporting.report import charts, html

SHOWN = 6


def choose(
    heads: Mapping[str, Head], arms: Mapping[str, Sequence[str]], parents: Mapping[str, Sequence[str]]
) -> list[str]:
    """Up to six ids worth reading: of the trained arm one play the truth won and one it lost, of every other arm
    one it lost where there is one, then the newest plays of training, a proposal with its first play first."""
    wanted: list[str] = []
    for arm in sorted(arms, key=lambda name: name != "trained"):
        lost = [id for id in arms[arm] if (heads[id].score or 0.0) < 0.5]  # type: ignore[operator]
        won = [id for id in arms[arm] if id not in set(lost)]
        wanted += [*won[:1], *lost[:1]] if arm == "trained" else (lost or won)[:1]
    newest = [
        head.id for head in reversed(list(heads.values())) if head.status == "ok" and "arm" not in head.meta
    ]
    proposal = next((id for id in newest if parents.get(id)), None)
    if proposal is not None:
        wanted = [*wanted[: SHOWN - 2], proposal, parents[proposal][0]]
    return list(dict.fromkeys([*wanted, *newest[: SHOWN - len(wanted)]]))[:SHOWN]


def cards(episodes: Sequence[Episode]) -> str:
    return f'<div class="plays">{"".join(map(card, episodes))}</div>' if episodes else ""


def card(episode: Episode) -> str:
    """One play. Nothing in it is trusted."""
    colours = charts.seat_colours(episode)
    arm = episode.meta.get("arm")
    origin = f"{arm_label(str(arm))} · {episode.id}" if arm else episode.id
    head = (
        f'<div><h3 class="claims">{_claims(episode)}</h3>'
        f'<div class="id">{escape(origin)} · {escape(episode.protocol)}</div></div>'
    )
    body = charts.pixels(episode, colours) + _said(episode, colours)
    views = "".join(_view(episode, seat, colours) for seat in _order(episode))
    return (
        f'<div class="panel"><div class="play-head">{head}{_badge(episode)}</div>'
        f'<div class="play">{body}</div>{html.details("what each seat saw", views)}</div>'
    )


def _claims(episode: Episode) -> str:
    task = episode.task
    if not task.choices:
        return escape(task.question[:120])
    claims = [
        f'<b class="true">{escape(choice)} ✓</b>'
        if choice == task.answer
        else f'<b class="false">{escape(choice)}</b>'
        for choice in task.choices
    ]
    return f"{escape(task.question[:80])} " + "<i>against</i>".join(claims)


def _badge(episode: Episode) -> str:
    outcome = episode.outcome
    if outcome.status != "ok":
        return f'<span class="badge bad">{escape(outcome.status)}: {escape(outcome.reason[:80])}</span>'
    if outcome.score is None:
        return ""
    right = outcome.score > 0.5
    if outcome.judgments:
        return f'<span class="badge{"" if right else " bad"}">{"truth won" if right else "truth lost"}</span>'
    return f'<span class="badge{"" if right else " bad"}">score {outcome.score:g}</span>'


def _said(episode: Episode, colours: Mapping[str, str]) -> str:
    """Public turns in order; each judgment stands beside the turn that it followed."""
    rows: list[tuple[str, str, str]] = []
    for event in transcript.events(episode):
        if event.turn is not None:
            rows.append((*_turn(episode, event.turn, colours), ""))
        elif event.judgment is not None:
            shown = _belief(event.judgment, episode.task.choices)
            if rows and not rows[-1][2]:
                rows[-1] = (rows[-1][0], rows[-1][1], shown)
            else:
                rows.append(('<span class="seat">judge</span>', "", shown))
    cells = "".join(
        f'<tr><td>{seat}</td><td>{text}</td><td class="says">{shown}</td></tr>' for seat, text, shown in rows
    )
    whole = "  ".join(
        f"{entry.seat} {entry.name} {entry.value:+.2f}"
        for entry in episode.outcome.rewards
        if entry.turn is None
    )
    return (
        f'<table class="said">{cells}{f"<tr><td></td><td>{escape(whole)}</td></tr>" if whole else ""}</table>'
    )


def _turn(episode: Episode, turn: Turn, colours: Mapping[str, str]) -> tuple[str, str]:
    seat = f'<b style="color:{colours.get(turn.seat, charts.FAINT)}">{escape(turn.seat)}</b>'
    text = escape(transcript.said(turn))
    if not transcript.legal(turn):
        text += ' <span class="illegal">not a legal move</span>'
    paid = " ".join(f"{value:+.2f}" for _, value in transcript.rewards(episode, turn.seat, turn.turn))
    return seat, text + (f'<span class="num">{escape(paid)}</span>' if paid else "")


def _belief(judgment: Judgment, choices: tuple[str, ...]) -> str:
    label = f'<span class="num">{escape(transcript.belief(judgment, choices))}</span>'
    return (charts.belief_bar(judgment.scores) if judgment.valid and judgment.scores else "") + label


def _order(episode: Episode) -> list[str]:
    speakers = transcript.speakers(episode)
    return speakers + [seat for seat in transcript.seats(episode) if seat not in speakers]


def _view(episode: Episode, seat: str, colours: Mapping[str, str]) -> str:
    turns = [turn for turn in episode.turns if turn.seat == seat]
    policies = ", ".join(dict.fromkeys(turn.policy for turn in turns))
    colour = colours.get(seat, charts.FAINT)
    who = " · ".join(map(escape, (seat, turns[0].role, policies)))
    parts = [f'<div class="view" style="border-color:{colour}"><h4>{who}</h4>']
    for index, chat in enumerate(transcript.chats(episode, seat)):
        parts.append('<div class="fresh">a fresh chat</div>' if index else "")
        parts += [
            f'<div class="msg {message.speaker}"><span>{message.speaker}</span><pre>{escape(message.text)}</pre></div>'
            for message in chat
        ]
    return "".join(parts) + "</div>"
