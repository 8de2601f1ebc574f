"""What passes `plan` trains: protocol, signal, loss and kinds of policies are drawn, and what is not refused is played
by stand-ins for engines, until the policy that the stage updates has something to learn from."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, Phase, event, given, settings, strategies as st

from actors.players.base import Seated, UniformPlayer
from actors.rollout.loop import play_all, training_task
from configs.load import Loaded, load, load_task_source
from configs.methods import LOSSES, SIGNALS, is_preference
from configs.reading.errors import ConfigErrors
from configs.rehearsal import Pretender, hints
from learners.batches.training_batch import build_training_batch
from learners.credit.truth import Answers
from protocols.types import Reply, TokenTrace, Turn, TurnRequest
from tests.support.config_files import CONFIGS, LAPTOP

PROTOCOLS = sorted(path.stem for path in (CONFIGS / "protocol").glob("*.yaml"))
TASKS = [{"kind": "toys"}, {"kind": "lists", "sampler": "uniform"}, {"kind": "pixels"}, {"kind": "taxonomy"}]
BATCHES, GROUPS, REPEATS = 8, 3, 8


@dataclass
class Stand:
    """Writes as rehearsals do, and leaves a trace as an engine would."""

    rng: random.Random
    hints: tuple[str, ...]

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        reply = Pretender(self.rng, self.hints)(request)
        digest = hashlib.sha256(repr(request.messages).encode()).digest()
        ids, logprobs = ((), ()) if request.read else ((1, 2), (-0.5, -0.5))
        trace = TokenTrace(tuple(digest[:8]), ids, logprobs, (0, 0))
        if request.choices and request.enforce and not request.read:
            legal = len(request.choices) > 1
            trace = replace(trace, allowed_T=((1, 9) if legal else (1,), (2,)))
        return replace(reply, trace=replace(trace, versions_T=(0,)) if request.read else trace)


def written(folder: Path, draw: Mapping[str, Any]) -> Path:
    """The config of a draw."""
    from configs.load import load_protocol

    protocol = load_protocol(CONFIGS / "protocol" / f"{draw['protocol']}.yaml")
    roles = sorted(set(protocol.roles().values()))
    kinds = [draw["kinds"][i % len(draw["kinds"])] for i in range(len(roles))]
    reference = {"kind": "previous", "every": 1} if draw["loss"] in ("spin", "sppo") else None
    learner: dict[str, Any] = {"signal": {"kind": draw["signal"]}, "loss": {"kind": draw["loss"]}}
    learner |= {"reference": reference} if reference else {}
    if is_preference(draw["loss"]):
        del learner["signal"]
    policies: dict[str, Any] = {
        "trained": {"trained": True, "learner": learner}, "frozen": {}, "uniform": {"kind": "uniform"},
    }  # fmt: skip
    stage = {
        "protocol": "p", "roles": dict(zip(roles, kinds)), "plays_per_step": GROUPS * REPEATS, "repeats": REPEATS,
        "steps": 1,
    }  # fmt: skip
    config = {
        "tasks": draw["tasks"], "protocols": {"p": str(CONFIGS / "protocol" / f"{draw['protocol']}.yaml")},
        "policies": {name: policies[name] for name in policies if name in kinds}, "stages": {"main": stage},
    }  # fmt: skip
    path = folder / "drawn.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def learns(loaded: Loaded) -> bool:
    """Whether the trained policy of the stage gets an example, within some steps."""
    stage, config = loaded.config.stages["main"], loaded.config.policies["trained"].learner
    source, protocol = load_task_source(loaded.config.tasks), loaded.protocols["p"]
    known = hints(training_task(source, protocol, random.Random(0)), source)
    players = {
        role: Seated(name, UniformPlayer(None, 1) if name == "uniform" else Stand(random.Random(role), known))
        for role, name in stage.roles.items()
    }
    answers = Answers(cluster=source.cluster, encode=lambda choices: [(i,) for i in range(len(choices))])
    for step in range(BATCHES):
        rng = random.Random(step)
        tasks = [task for task in (training_task(source, protocol, rng) for _ in range(GROUPS)) for _ in range(REPEATS)]
        plays = asyncio.run(play_all(protocol, tasks, players, "main", seed=step))
        episodes = [episode for play in plays for episode in play]
        if build_training_batch(episodes, "trained", config, {}, answers)[0]:
            return True
    return False


DRAWS = st.fixed_dictionaries({
    "protocol": st.sampled_from(PROTOCOLS), "tasks": st.sampled_from(TASKS), "signal": st.sampled_from(sorted(SIGNALS)),
    "loss": st.sampled_from(sorted(LOSSES)),
    "kinds": st.permutations(["trained", "trained", "frozen", "uniform"]).map(tuple),
})  # fmt: skip


@settings(
    max_examples=60, deadline=None, phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(draw=DRAWS)
def test_what_passes_plan_trains_and_does_not_die(draw: dict[str, Any], tmp_path: Path) -> None:
    try:
        loaded = load(written(tmp_path, draw), machine=LAPTOP)
    except ConfigErrors as errors:
        event("refused: " + errors.errors[0].key.split(".")[-1])
        return
    event("plays")
    assert learns(loaded), draw
