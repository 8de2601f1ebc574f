"""The one owner of figures: `metrics.jsonl`, W&B, the screen and `summary.json`.

One process holds it; actors send it their figures. W&B gets the same figures on step axes of their own
(`define_metric`), never with `step=`: a resumed offline run restarts W&B's own counter and would drop them.
"""

from __future__ import annotations

import math
import netrc
import os
import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from actors.rollout.files import cut_tail, write_atomically
from configs.schema.run import RunConfig
from protocols.errors import UserError
from protocols.types import Episode
from reporting import transcript
from reporting.console import Screen

AXES = {
    "learner": "step",
    "warm": "step",
    "sync": "step",
    "rollout": "episodes",
    "eval": "updates",  # of all policies together
    "guards": "step",
    "league": "step",
    "system": "step",
}
"""First part of a metric's name -> what it is plotted over (`learner/*` over `learner/step`)."""
INIT_TIMEOUT_S = 15
"""W&B online: how long to wait for the server before going on offline."""
TABLE_ROWS = 12
_HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
_SECRET = ("api_key", "token", "secret", "password")


class TrackingError(UserError):
    """`track:` asks for what the environment cannot give."""


def wandb_mode(setting: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """(mode, the line that says so) for the config's `track.wandb` (auto, online, offline, disabled).

    auto: `WANDB_MODE` if set; else online with an API key (variable or netrc), offline without. Never asks,
    never waits. Raises `TrackingError` for `online` without a key.
    """
    key = bool(environ.get("WANDB_API_KEY")) or _netrc_key(environ)
    if setting == "auto":
        named = environ.get("WANDB_MODE", "").lower()
        setting = {"dryrun": "offline", "run": "online"}.get(named, named)
        if setting not in ("online", "offline", "disabled"):
            setting = "online" if key else "offline"
            if not key:
                return "offline", "offline (no API key; wandb sync uploads it later)"
    if setting == "online" and not key:
        raise TrackingError("track.wandb is online, but there is no WANDB_API_KEY and no netrc entry for W&B")
    return setting, setting


def _netrc_key(environ: Mapping[str, str]) -> bool:
    path = Path(environ.get("NETRC") or Path.home() / ".netrc")
    try:
        hosts = netrc.netrc(path).hosts
    except (OSError, netrc.NetrcParseError):
        return False
    own = environ.get("WANDB_BASE_URL", "").split("//")[-1].split("/")[0]
    return any(host in hosts for host in (*_HOSTS, own) if host)


class Tracker:
    """Writes into `run_dir`. `yaml_text` is the config as the user wrote it, secrets removed."""

    def __init__(
        self, run_dir: Path | str, config: RunConfig, yaml_text: str, screen: Screen | None = None
    ) -> None:
        self.dir = Path(run_dir)
        self.dir.mkdir(parents=True, exist_ok=True)
        self.config = config
        self.screen = screen or Screen()
        if not (self.dir / "config.yaml").exists():
            write_atomically(self.dir / "config.yaml", yaml_text.encode())
        metrics = self.dir / "metrics.jsonl"
        if metrics.exists():
            cut_tail(metrics)
        self._metrics = metrics.open("ab", buffering=0)
        self._encoder = msgspec.json.Encoder(enc_hook=lambda value: value.item())
        self.mode, self.wandb_line = wandb_mode(config.track.wandb, os.environ)
        self.run_id = self._run_id()
        self._run: Any = None
        if self.mode != "disabled":
            self._start_wandb(yaml_text)

    # ---- figures ---------------------------------------------------------------------------------

    def log(self, prefix: str, step: int, values: Mapping[str, float]) -> None:
        """Figures of one moment, for example `log("learner/player", 3, {"loss": 0.1})`.

        A figure that is not finite is null in `metrics.jsonl` and left out of W&B.
        """
        line = {"time": time.time(), "kind": prefix, "step": step, "values": dict(values)}
        self._metrics.write(self._encoder.encode(line) + b"\n")
        if self._run is not None:
            family = prefix.split("/")[0]
            axis = AXES.get(family, "step")
            entry = {
                f"{prefix}/{name}": float(value) for name, value in values.items() if math.isfinite(value)
            }
            entry[f"{family}/{axis}"] = float(values.get(axis, step))
            self._run.log(entry)

    def transcripts_due(self, step: int) -> bool:
        """Whether `track.transcripts_every` asks for samples at this step."""
        every = self.config.track.transcripts_every
        return every > 0 and step % every == 0

    def transcripts(self, episodes: Sequence[Episode], step: int = 0) -> None:
        """A sample of plays: one on screen, up to twelve in a W&B table of their own (immutable: appending to
        one table costs quadratically)."""
        usable = [episode for episode in episodes if episode.turns]
        if not usable:
            return
        stride = max(1, len(usable) // TABLE_ROWS)
        chosen = usable[::stride][:TABLE_ROWS]
        self.screen.sample(next((entry for entry in chosen if entry.outcome.judgments), chosen[0]))
        if self._run is not None:
            import wandb

            columns = [
                "step",
                "episode",
                "protocol",
                "task",
                "claims",
                "answer",
                "score",
                "status",
                "rewards",
                "transcript",
            ]
            rows = [_row(step, episode) for episode in chosen]
            self._run.log({"transcripts": wandb.Table(columns=columns, data=rows, log_mode="IMMUTABLE"),
                           "transcripts/step": step})  # fmt: skip

    def summary(self, values: Mapping[str, Any]) -> None:
        """Replaces `summary.json` in one step (readers see the old or the new one) and sets W&B's summary."""
        text = msgspec.json.format(self._encoder.encode(dict(values)), indent=2)
        write_atomically(self.dir / "summary.json", text + b"\n")
        if self._run is not None:
            self._run.summary.update(dict(values))

    def close(self, exit_code: int = 0) -> None:
        """Ends the live line, the metrics file and the W&B run. Safe to call twice."""
        self.screen.stop()
        if not self._metrics.closed:
            os.fsync(self._metrics.fileno())
            self._metrics.close()
        if self._run is not None:
            run, self._run = self._run, None
            run.finish(exit_code=exit_code)

    # ---- W&B -------------------------------------------------------------------------------------

    def _run_id(self) -> str:
        """Kept in the run directory, so that a resumed run continues the same W&B run."""
        path = self.dir / "wandb_id"
        if not path.exists():
            write_atomically(path, secrets.token_hex(4).encode())
        return path.read_text().strip()

    def _start_wandb(self, yaml_text: str) -> None:
        home = (self.dir / "wandb").resolve()
        for name, folder in (
            ("WANDB_DATA_DIR", "data"),
            ("WANDB_CACHE_DIR", "cache"),
            ("WANDB_CONFIG_DIR", "config"),
        ):
            os.environ[name] = str(home / folder)
        os.environ["WANDB_SILENT"] = "true"
        import wandb
        import yaml

        config = redact(yaml.safe_load(yaml_text) or {})
        if self.mode == "online":
            try:
                self._run = self._init(wandb, "online", config)
            except wandb.errors.Error as error:
                wandb.teardown()  # the run id stays taken otherwise
                self.mode = "offline"
                reason = str(error).splitlines()[0]
                self.wandb_line = f"offline (W&B did not answer within {INIT_TIMEOUT_S} s: {reason})"
        if self._run is None:
            self._run = self._init(wandb, "offline", config)
        for family, axis in AXES.items():
            self._run.define_metric(f"{family}/{axis}", hidden=True)
            self._run.define_metric(f"{family}/*", step_metric=f"{family}/{axis}")
        self._run.define_metric("transcripts", step_metric="transcripts/step")

    def _init(self, wandb: Any, mode: str, config: Mapping[str, Any]) -> Any:
        settings = wandb.Settings(
            init_timeout=INIT_TIMEOUT_S,
            console="off",
            disable_git=True,
            disable_code=True,
            x_disable_stats=mode == "offline",
        )
        return wandb.init(
            project=self.config.track.project,
            name=self.config.name,
            id=self.run_id,
            resume="allow" if mode == "online" else None,
            dir=str(self.dir.resolve()),
            mode=mode,
            config=config,
            settings=settings,
        )


def redact(value: Any) -> Any:
    """A copy in which strings under keys that name a secret are masked (`api_key_env`, a name, is not)."""
    if isinstance(value, Mapping):
        return {
            key: "<redacted>"
            if isinstance(entry, str) and str(key).lower().endswith(_SECRET)
            else redact(entry)
            for key, entry in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(entry) for entry in value]
    return value


def read_metrics(path: Path | str) -> Iterable[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a last line that a crash cut off is left out."""
    with Path(path).open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):
                yield msgspec.json.decode(line)


def _row(step: int, episode: Episode) -> list[Any]:
    totals: dict[str, float] = {}
    for reward in episode.outcome.rewards:
        totals[reward.seat] = totals.get(reward.seat, 0.0) + reward.value
    task, outcome = episode.task, episode.outcome
    return [
        step,
        episode.id,
        episode.protocol,
        task.id,
        " / ".join(task.choices),
        task.answer or "",
        outcome.score if outcome.score is not None else float("nan"),
        outcome.status,
        "  ".join(f"{seat} {value:+.2f}" for seat, value in totals.items()),
        transcript.as_text(episode),
    ]
