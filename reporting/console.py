"""What a run shows on screen. Takes plain data; knows no Ray, no files, no learners."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

from rich.bar import Bar
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from protocols.types import Episode, Judgment
from reporting import transcript

PALETTE = ("dodger_blue2", "dark_orange", "green3", "medium_purple1", "deep_pink2", "cyan3")
ARM_LABELS = {"random_evidence": "random evidence", "minimax_ceiling": "exact minimax ceiling"}


@dataclass(frozen=True)
class Seating:
    """Who plays a role, and where."""

    role: str
    policy: str
    device: str = ""
    """For example "cpu x1", "cuda:0"."""
    note: str = ""
    """For example "trained", "frozen"."""


@dataclass(frozen=True)
class Progress:
    """One moment of a stage."""

    stage: str
    step: int
    steps: int
    episodes: int = 0
    episodes_per_s: float = 0.0
    tokens_per_s: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What matters now, by name: {"judge accuracy": 0.83}."""
    seconds_left: float | None = None
    """None: estimated from the steps of this stage so far."""


class Screen:
    """Start panel, live line, sample debates, final panel.

    On a terminal the live line is redrawn in place; otherwise a plain line is printed every `every` steps, at
    the first and at the last step of a stage.
    """

    def __init__(self, every: int = 10, file: IO[str] | None = None, width: int | None = None) -> None:
        self.console = Console(file=file, width=width, highlight=False, soft_wrap=False)
        self.every = every
        self._live: Live | None = None
        self._drawn = 0.0
        self._stage = ""
        self._stage_start = (0.0, 0)

    def start(
        self, name: str, run_dir: str, seatings: Sequence[Seating], wandb: str, notes: Iterable[str] = ()
    ) -> None:
        """The start panel."""
        table = Table.grid(padding=(0, 2))
        for seating in seatings:
            table.add_row(
                Text(seating.role, "bold"),
                Text(f"-> {seating.policy}", "cyan"),
                Text(seating.device, "dim"),
                Text(seating.note, "green" if seating.note == "trained" else "dim"),
            )
        facts = Table.grid(padding=(0, 2))
        facts.add_row(Text("run", "bold"), Text(run_dir))
        facts.add_row(Text("W&B", "bold"), Text(wandb))
        for note in notes:
            facts.add_row("", Text(transcript.printable(note), "dim"))
        self.console.print(
            Panel(Group(table, Text(), facts), title=_title(name), title_align="left", padding=(1, 2))
        )

    def progress(self, now: Progress) -> None:
        """Redraws the live line (at most four times a second), or prints it now and then."""
        clock = time.monotonic()
        fresh = now.stage != self._stage
        if fresh:
            self._stage, self._stage_start = now.stage, (clock, now.step)
        last = now.step >= now.steps
        if self.console.is_terminal:
            if self._live is None:
                self._live = Live(console=self.console, auto_refresh=False, transient=True)
                self._live.start()
            if clock - self._drawn > 0.25 or last or fresh:
                self._live.update(self._line(now, clock), refresh=True)
                self._drawn = clock
        elif fresh or last or now.step % self.every == 0:
            self.console.print(self._line(now, clock), soft_wrap=True)

    def _line(self, now: Progress, clock: float) -> Text:
        left = now.seconds_left
        start, first_step = self._stage_start
        if left is None and now.step > first_step:
            left = (clock - start) / (now.step - first_step) * (now.steps - now.step)
        line = Text.assemble((f"{now.stage:<12} ", "bold cyan"), f"{now.step}/{now.steps}")
        parts = []
        if now.episodes:
            parts.append(f"{now.episodes:,} episodes")
        if now.episodes_per_s:
            parts.append(f"{now.episodes_per_s:,.1f}/s")
        if now.tokens_per_s:
            parts.append(f"{now.tokens_per_s:,.0f} tok/s")
        for part in parts:
            line.append(f"  {part}", "dim")
        for name, value in now.metrics.items():
            line.append(f"  {name} ").append(f"{value:.3f}", "bold")
        if left is not None and now.step < now.steps:
            line.append(f"  {duration(left)} left", "dim")
        return line

    def note(self, text: str, style: str = "") -> None:
        """One line of news."""
        self.console.print(Text(transcript.printable(text), style))

    def sample(self, episode: Episode) -> None:
        """One play, compact: claims, what was said, the judge's belief after each turn."""
        self.console.print(compact(episode))

    def final(self, name: str, summary: Mapping[str, Any], run_dir: str, commands: Mapping[str, str]) -> None:
        """The result panel: arms with intervals, gain, cost, and what to type next."""
        self.stop()
        blocks: list[Any] = []
        arms = summary.get("judge_accuracy") or summary.get("accuracy") or {}
        for says, some in by_score(arms, summary.get("scores") or {}).items():
            blocks += [_arms(says, some), Text()]
        for arm, curve in (summary.get("nash_conv") or {}).items():
            late = f"{curve['last']:.4f}, mean of the last quarter {curve['last_quarter']:.4f}"
            blocks += [Text(f"NashConv of {arm_label(arm)}: {late}", "bold"), Text()]
        blocks += [_facts(summary), Text()]
        table = Table.grid(padding=(0, 2))
        table.add_row(Text("report", "bold"), Text(f"{run_dir}/report.html"))
        for label, command in commands.items():
            table.add_row(Text(label, "bold"), Text(command, "cyan"))
        blocks.append(table)
        self.console.print(
            Panel(Group(*blocks), title=_title(f"{name}: result"), title_align="left", padding=(1, 2))
        )

    def stop(self) -> None:
        """Ends the live line. Safe to call twice."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def duration(seconds: float) -> str:
    """ "42 s", "3 min 05 s", "2 h 10 min"."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def compact(episode: Episode) -> Group:
    """A play in a few lines, as `Screen.sample` and `replay` show it."""
    task = episode.task
    names = transcript.speakers(episode)
    colours = {seat: PALETTE[index % len(PALETTE)] for index, seat in enumerate(names)}
    head = Text.assemble(
        (transcript.printable(episode.id), "bold"), ("  " + transcript.printable(episode.protocol), "dim")
    )
    if task.choices:
        for index, choice in enumerate(task.choices):
            mark = " (true)" if choice == task.answer else ""
            head.append("  " if index == 0 else "  against  ", "dim")
            head.append(transcript.printable(choice) + mark, "bold green" if mark else "bold red")
    elif task.question:
        head.append("  " + transcript.printable(task.question)[:100])
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_column()
    grid.add_column(no_wrap=True)
    pending: list[Any] | None = None
    for event in transcript.events(episode):
        if event.turn is not None:
            if pending:
                grid.add_row(*pending)
            text = Text(transcript.printable(transcript.said(event.turn)))
            if not transcript.legal(event.turn):
                text.append("  not a legal move", "red")
            pending = [Text(f"  {event.turn.seat}", colours.get(event.turn.seat, "")), text, "", ""]
        elif event.judgment is not None:
            row = pending or [Text("  before", "dim"), "", "", ""]
            row[2:] = _belief(event.judgment, task.choices)
            grid.add_row(*row)
            pending = None
    if pending:
        grid.add_row(*pending)
    return Group(head, grid, _verdict(episode))


def _belief(judgment: Judgment, choices: tuple[str, ...]) -> list[Any]:
    label = Text(transcript.printable(transcript.belief(judgment, choices)))
    if not judgment.valid or len(judgment.scores) != 2:
        return ["", label]
    return [Bar(1.0, 0.0, judgment.scores[0], width=16, color=PALETTE[0], bgcolor=PALETTE[1]), label]


def _verdict(episode: Episode) -> Text:
    outcome = episode.outcome
    if outcome.status != "ok":
        return Text(f"  {outcome.status}: {transcript.printable(outcome.reason)}", "red")
    line = Text("  ")
    if outcome.score is not None:
        line.append(f"score {outcome.score:g}", "bold green" if outcome.score > 0.5 else "bold red")
    totals: dict[str, float] = {}
    for reward in outcome.rewards:
        totals[reward.seat] = totals.get(reward.seat, 0.0) + reward.value
    for seat, value in totals.items():
        line.append(f"   {seat} {value:+.2f}", "dim")
    return line


Arms = Mapping[str, Mapping[str, float]]


def by_score(arms: Arms, scores: Mapping[str, str]) -> dict[str, dict[str, Mapping[str, float]]]:
    """What a score says -> the arms whose scores say that: only those can be compared."""
    found: dict[str, dict[str, Mapping[str, float]]] = {}
    for name, entry in arms.items():
        found.setdefault(scores.get(name, "score"), {})[name] = entry
    return found


def _arms(says: str, arms: Arms) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for header in (says, "", "95% interval", "n"):
        table.add_column(header, justify="left" if header in (says, "95% interval") else "right")
    for name, entry in arms.items():
        if not entry.get("n", 1):
            table.add_row(Text(arm_label(name)), Text("no score", "dim"))
            continue
        table.add_row(
            Text(arm_label(name), "bold green" if name == "trained" else ""),
            Text(f"{entry['mean']:.1%}", "bold"),
            f"{entry['low']:.1%} to {entry['high']:.1%}" if "low" in entry and "high" in entry else "",
            Text(f"{entry['n']:,}" if "n" in entry else "", "dim"),
        )
    if "trained" in arms and "untrained" in arms:
        gain = arms["trained"]["mean"] - arms["untrained"]["mean"]
        table.add_row("")
        table.add_row(
            Text("gain by training"), Text(f"{gain:+.1%}", "bold green" if gain > 0 else "bold red")
        )
        ceiling = arms.get("minimax_ceiling", {}).get("mean")
        if ceiling is not None and ceiling != arms["untrained"]["mean"]:
            share = gain / (ceiling - arms["untrained"]["mean"])
            table.add_row(Text("of the gap to the ceiling"), Text(f"{share:.0%}", "bold"))
    return table


def arm_label(name: str) -> str:
    """How an arm is called in print."""
    return ARM_LABELS.get(name, name.replace("_", " "))


def _facts(summary: Mapping[str, Any]) -> Text:
    parts = []
    if "wall_s" in summary:
        parts.append(duration(summary["wall_s"]))
    for key, label in (
        ("episodes", "episodes"),
        ("tokens", "tokens"),
        ("policy_updates", "policy updates"),
        ("invalid_episodes", "invalid"),
        ("lost_episodes", "lost"),
    ):
        if key in summary:
            parts.append(f"{summary[key]:,} {label}")
    return Text("  ·  ".join(parts), "dim")


def _title(name: str) -> Text:
    return Text(f" Dissoi  {transcript.printable(name)} ", "bold")
