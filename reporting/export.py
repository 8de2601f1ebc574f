"""`launch.py export`: a run's episodes as data sets that the libraries `datasets` and TRL read, with a data card.

    episodes      one row an episode: task, public transcript, judgments, rewards
    sft           conversational language modelling: `messages`, a row for each seat that was paid enough
    preferences   conversational preferences: `prompt`, `chosen`, `rejected`: the best and the worst of all replies of
                  one policy to the same prompt
    jsonl         the record itself, one JSON object an episode, as `jq` reads it

Only episodes with status `ok` are used, but for `jsonl`: what has no verdict teaches nothing. Plays on held-out tasks
are not in `sft` and `preferences`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from actors.rollout import records
from protocols.errors import UserError
from protocols.types import Episode, Message, Turn

Row = dict[str, Any]


class ExportError(UserError):
    """What was asked for cannot be written."""


@dataclass(frozen=True)
class Wanted:
    """What is exported. `policy` and `protocol`: only these; empty for all."""

    kind: str
    policy: str = ""
    protocol: str = ""
    least_reward: float | None = None
    """Of `sft`: only seats whose rewards sum to at least this."""


@dataclass
class Counts:
    """What the data card tells."""

    rows: int = 0
    episodes: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    protocols: Counter[str] = field(default_factory=Counter)
    policies: Counter[str] = field(default_factory=Counter)
    versions: dict[str, tuple[int, int]] = field(default_factory=dict)
    """policy -> lowest and highest version that sampled a token."""

    def add(self, episode: Episode) -> None:
        """Counts an episode of the run."""
        self.statuses[episode.status] += 1
        self.protocols[episode.protocol] += 1
        for turn in episode.turns:
            self.policies[turn.policy] += 1
            if turn.trace is not None and turn.trace.versions_T:
                low, high = self.versions.get(turn.policy, (turn.trace.versions_T[0],) * 2)
                seen = turn.trace.versions_T
                self.versions[turn.policy] = min(low, *seen), max(high, *seen)


def export(run: Path, out: Path, wanted: Wanted, form: str) -> Counts:
    """Writes `out/data.jsonl` or `out/data.parquet` and `out/README.md`. Returns what was written. Raises ExportError
    where nothing is left to write, the folder holds something already, or a library is missing."""
    source = run / "episodes.jsonl"
    if not source.is_file():
        raise ExportError(f"{run} is no run directory: it has no episodes.jsonl")
    if out.exists() and any(out.iterdir()):
        raise ExportError(f"{out} is not empty: name another folder with --out")
    counts = Counts()
    rows = KINDS[wanted.kind](_episodes(source, wanted, counts), wanted)
    out.mkdir(parents=True, exist_ok=True)
    write = _parquet if form == "parquet" else _jsonl
    counts.rows = write(out / f"data.{form}", rows)
    if not counts.rows:
        (out / f"data.{form}").unlink()
        raise ExportError(
            f"nothing to export: {counts.episodes} episodes of {source} hold no {wanted.kind} data"
        )
    (out / "README.md").write_text(_card(run, wanted, form, counts), encoding="utf-8")
    return counts


def _episodes(source: Path, wanted: Wanted, counts: Counts) -> Iterator[Episode]:
    for episode in records.read(source):
        counts.add(episode)
        whole = wanted.kind == "jsonl"
        if wanted.kind in ("sft", "preferences") and "arm" in episode.meta:
            continue  # what was measured on held-out tasks is not to be trained on
        if (whole or episode.status == "ok") and wanted.protocol in ("", episode.protocol):
            counts.episodes += 1
            yield episode


def _whole(episodes: Iterator[Episode], wanted: Wanted) -> Iterator[Row]:
    for episode in episodes:
        yield json.loads(records.encode([episode]))


def _transcripts(episodes: Iterator[Episode], wanted: Wanted) -> Iterator[Row]:
    for episode in episodes:
        task, outcome = episode.task, episode.outcome
        yield {
            "id": episode.id,
            "parent": episode.parent,
            "protocol": episode.protocol,
            "task_id": task.id,
            "question": task.question,
            "choices": list(task.choices),
            "answer": task.answer,
            "score": outcome.score,
            "turns": [
                {"seat": t.seat, "role": t.role, "policy": t.policy, "phase": t.phase, "text": t.text,
                 "choices": list(t.choices), "probs": list(t.probs)}
                for t in episode.turns
            ],
            "judgments": [asdict(judgment) for judgment in outcome.judgments],
            "rewards": [asdict(reward) for reward in outcome.rewards],
        }  # fmt: skip


def _sft(episodes: Iterator[Episode], wanted: Wanted) -> Iterator[Row]:
    for episode in episodes:
        for seat in dict.fromkeys(turn.seat for turn in episode.turns):
            turns = [turn for turn in episode.turns if turn.seat == seat and not turn.read]
            paid = sum(reward.value for reward in episode.outcome.rewards if reward.seat == seat)
            if not turns or wanted.policy not in ("", turns[0].policy):
                continue
            if wanted.least_reward is not None and paid < wanted.least_reward:
                continue
            for turn in (
                one for one, after in zip(turns, [*turns[1:], None]) if after is None or after.fresh
            ):
                messages = [*_chat(turn.messages), {"role": "assistant", "content": turn.text}]
                about = {
                    "episode": episode.id,
                    "seat": seat,
                    "role": turn.role,
                    "policy": turn.policy,
                    "reward": paid,
                }
                yield {"messages": messages, **about}


def _preferences(episodes: Iterator[Episode], wanted: Wanted) -> Iterator[Row]:
    """Keeps the best and the worst reply to each prompt."""
    ends: dict[tuple[str, tuple[Message, ...]], list[tuple[float, str, str]]] = {}
    for episode in episodes:
        for turn in episode.turns:
            if turn.read or wanted.policy not in ("", turn.policy):
                continue
            reply = (_credit(episode, turn), turn.text, episode.id)
            known = ends.setdefault((turn.policy, turn.messages), [reply, reply])
            known[:] = [max(known[0], reply, key=_value), min(known[1], reply, key=_value)]
    for (policy, messages), (best, worst) in ends.items():
        if best[0] > worst[0] and best[1] != worst[1]:
            yield {
                "prompt": _chat(messages),
                "chosen": [{"role": "assistant", "content": best[1]}],
                "rejected": [{"role": "assistant", "content": worst[1]}],
                "policy": policy,
                "reward_chosen": best[0],
                "reward_rejected": worst[0],
                "episode_chosen": best[2],
                "episode_rejected": worst[2],
            }


def _value(reply: tuple[float, str, str]) -> float:
    return reply[0]


def _credit(episode: Episode, turn: Turn) -> float:
    """What a turn was paid: its own rewards, and those of its seat for the whole episode."""
    mine = (reward for reward in episode.outcome.rewards if reward.seat == turn.seat)
    return sum(reward.value for reward in mine if reward.turn in (None, turn.turn))


def _chat(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [{"role": message.speaker, "content": message.text} for message in messages]


KINDS: dict[str, Callable[[Iterator[Episode], Wanted], Iterator[Row]]] = {
    "episodes": _transcripts,
    "sft": _sft,
    "preferences": _preferences,
    "jsonl": _whole,
}


def _jsonl(path: Path, rows: Iterator[Row]) -> int:
    written = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            written += 1
    return written


def _parquet(path: Path, rows: Iterator[Row]) -> int:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ExportError("--format parquet needs pyarrow: pip install 'dissoi[data]'") from None
    table = pyarrow.Table.from_pylist(list(rows))
    parquet.write_table(table, path)
    return int(table.num_rows)


def _card(run: Path, wanted: Wanted, form: str, counts: Counts) -> str:
    """The data card, whose head tells `datasets` where the data is."""
    config = (
        yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        if (run / "config.yaml").is_file()
        else {}
    )
    summary = json.loads((run / "summary.json").read_text()) if (run / "summary.json").is_file() else {}
    models = {name: policy.get("model", "unknown") for name, policy in summary.get("policies", {}).items()}
    head = yaml.safe_dump(
        {"configs": [{"config_name": "default", "data_files": f"data.{form}"}]}, sort_keys=False
    )
    filters = [
        f"{key}: {value}" for key, value in vars(wanted).items() if key != "kind" and value not in ("", None)
    ]
    lines = [
        f"# {config.get('name', run.name)}: {wanted.kind}",
        "",
        f"{counts.rows} rows from {counts.episodes} episodes, exported by Dissoi (`launch.py export`).",
        "",
        f"- protocols: {_listed(counts.protocols)}",
        f"- status of the run's episodes: {_listed(counts.statuses)}"
        + ("" if wanted.kind == "jsonl" else "; only `ok` ones are here"),
        f"- turns by policy: {_listed(counts.policies)}",
        *(f"- {name}: {model}" for name, model in models.items()),
        *(f"- versions of {name}: {low} to {high}" for name, (low, high) in sorted(counts.versions.items())),
        f"- filters: {', '.join(filters) or 'none'}",
        f"- seed: {config.get('seed', 'unknown')}",
    ]
    return f"---\n{head}---\n\n" + "\n".join(lines) + "\n"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common()) or "none"
