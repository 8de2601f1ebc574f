"""Guards: alarms on metrics, and what they ask for. Pure: the loop sees to it that it is done.

A guard is told every figure that is logged. It sounds when `steps` values in a row were outside its bounds, and not
again before one was inside. Missing and non-finite values are no news: they neither sound nor end an alarm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from configs.schema.run import GuardConfig


@dataclass(frozen=True)
class Alarm:
    """One alarm, for the summary and the screen."""

    metric: str
    against: str
    value: float
    step: int
    """As the figure counts: steps of the stage, or updates for held-out metrics."""
    action: str
    """What was asked for: warn, stop or roll_back; `roll_back` becomes stop when it has been done often enough."""

    def __str__(self) -> str:
        gap = f" against {self.against}" if self.against else ""
        return f"guard: {self.metric}{gap} is {self.value:.4g} at step {self.step}: {self.action.replace('_', ' ')}"


@dataclass
class _State:
    outside: int = 0
    """Values outside in a row."""
    sounded: bool = False
    rolled_back: int = 0
    seen: bool = False
    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, float] = field(default_factory=dict)


class Guards:
    """All guards of a run. `tell` them metrics, then `take` what they ask for."""

    def __init__(self, configs: Sequence[GuardConfig]) -> None:
        self.configs = list(configs)
        self.states = [_State() for _ in self.configs]
        self.history: list[dict[str, Any]] = []
        """Every alarm of the run."""
        self._asked: list[Alarm] = []

    @property
    def alarmed(self) -> bool:
        """Whether a guard that rolls back has seen a value outside: no checkpoint of now should be gone back to."""
        return any(s.outside and c.action == "roll_back" for c, s in zip(self.configs, self.states))

    @property
    def unseen(self) -> list[str]:
        """Guarded metrics that never came up."""
        return [config.metric for config, state in zip(self.configs, self.states) if not state.seen]

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """The metrics `kind`/name of one moment, as the tracker logs them."""
        for config, state in zip(self.configs, self.states):
            for name in (config.against, config.metric):  # the one that is watched last
                value = values.get(name.removeprefix(f"{kind}/")) if name.startswith(f"{kind}/") else None
                if value is not None and math.isfinite(value):
                    state.last[name] = float(value)
                    if name == config.metric:
                        self._judge(config, state, step)

    def take(self) -> list[Alarm]:
        """What the guards have asked for since the last call."""
        asked, self._asked = self._asked, []
        return asked

    def rolled_back(self) -> None:
        """The weights are those of before: whoever asked for it starts afresh."""
        for state in self.states:
            state.outside, state.sounded = 0, False

    def _judge(self, config: GuardConfig, state: _State, step: int) -> None:
        state.seen = True
        value = _watched(config, state)
        if value is None:
            return
        over = config.above is not None and value > config.above
        under = config.below is not None and value < config.below
        state.outside = state.outside + 1 if over or under else 0
        state.sounded = state.sounded and state.outside > 0
        if state.outside >= config.steps and not state.sounded:
            state.sounded = True
            action: str = config.action
            if action == "roll_back":
                state.rolled_back += 1
                action = action if state.rolled_back <= config.times else "stop"
            alarm = Alarm(config.metric, config.against, value, step, action)
            self.history.append(asdict(alarm))
            self._asked.append(alarm)

    def state(self) -> dict[str, Any]:
        """For a checkpoint. Also how often was rolled back: a run that is resumed has no more tries than one that
        is not."""
        return {"states": [asdict(state) for state in self.states], "history": self.history}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Takes up `state`; from scratch where the guards are others than they were."""
        states = saved.get("states", [])
        self.history = list(saved.get("history", []))
        if len(states) == len(self.states):
            self.states = [_State(**state) for state in states]


def _watched(config: GuardConfig, state: _State) -> float | None:
    """The value that the bounds are for: the figure, or how much more it has risen than the other one."""
    if not config.against:
        return state.last[config.metric]
    if config.against not in state.last:
        return None
    if not state.first:
        state.first = dict(state.last)
    rise, other = (state.last[name] - state.first[name] for name in (config.metric, config.against))
    return rise - other
