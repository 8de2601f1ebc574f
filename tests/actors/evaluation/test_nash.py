"""Exact measurements: what is asked, what comes out, what is refused before anything starts."""

from __future__ import annotations

import asyncio
import math
import random
from pathlib import Path
from typing import Any

import pytest

from actors.evaluation.nash import curve_summary, nash_conv
from actors.players.base import AtTemperature, Seated, UniformPlayer
from actors.players.engine_player import EnginePlayer
from actors.serving.messages import GenRequest, GenResult
from actors.serving.router import Counters
from configs.load import load, load_protocol
from configs.machine import Machine
from configs.reading.errors import ConfigErrors
from driver.run import Run
from learners.credit.samples import build_samples
from protocols.kinds.game import GamePlay
from tasks.kinds.spiel import OpenSpiel
from tests.actors.players.test_memo import Codec

CONFIGS = Path(__file__).resolve().parent.parent.parent.parent / "configs"
TASK = OpenSpiel().train(random.Random(0))


def kuhn() -> GamePlay:
    protocol = load_protocol(CONFIGS / "protocol" / "kuhn.yaml")
    assert isinstance(protocol, GamePlay)
    return protocol


class Bettor:
    """A router whose engine bets with a chance that depends on the card: b[card] at temperature 1."""

    def __init__(self, bets: dict[str, float]) -> None:
        self.bets, self.counters, self.asked = bets, Counters(), 0

    async def generate(self, request: GenRequest) -> GenResult:
        self.asked += 1
        assert request.read
        words = "".join(map(chr, request.prompt_ids)).split()
        logits = [math.log(1 - self.bets[words[1]]), math.log(self.bets[words[1]])]
        scaled = [logit / request.temperature for logit in logits]
        total = math.log(sum(map(math.exp, scaled)))
        assert ["".join(map(chr, choice)) for choice in request.choices] == ["pass", "bet"]
        return GenResult(0, [], [], [0], choice_logprobs=[logit - total for logit in scaled])


def measured(bets: dict[str, float], temperature: float | None = None, own: float = 1.0) -> tuple[float, Bettor]:
    engine = Bettor(bets)
    player: Any = EnginePlayer(engine, Codec(), own, 8)  # type: ignore[arg-type]
    if temperature is not None:
        player = AtTemperature(player, temperature)
    return asyncio.run(nash_conv(kuhn(), TASK, {"player": Seated("p", player)})), engine


def test_uniform_moves() -> None:
    value = asyncio.run(nash_conv(kuhn(), TASK, {"player": Seated("u", UniformPlayer())}))
    assert value == pytest.approx(11 / 12)


def test_a_policy_is_read_once_in_every_information_state() -> None:
    value, engine = measured(dict.fromkeys("JQK", 0.5))
    assert value == pytest.approx(11 / 12)
    assert engine.asked == 12


def test_whoever_always_bets() -> None:
    """Against a seat that always bets, the best reply gives up J (-1), and calls with Q (0) and K (+2): 1/3 for either
    seat, while the bettors get 0 from each other."""
    value, _ = measured(dict.fromkeys("JQK", 1 - 1e-12))
    assert value == pytest.approx(2 / 3)


def test_the_temperature_is_that_of_the_plays() -> None:
    """Odds of 1 to 4 at temperature 1 are 1 to 2 at temperature 2, whoever sets it; at 0 the likelier is certain."""
    at_two = measured(dict.fromkeys("JQK", 2 / 3))[0]
    assert measured(dict.fromkeys("JQK", 0.8), temperature=2.0)[0] == pytest.approx(at_two)
    assert measured(dict.fromkeys("JQK", 0.8), own=2.0)[0] == pytest.approx(at_two)
    assert measured(dict.fromkeys("JQK", 0.8), temperature=0.0)[0] == pytest.approx(2 / 3)


def test_the_last_quarter() -> None:
    points = {"0": 0.9, "40": 0.5, "74": 0.4, "75": 0.2, "90": 0.1, "100": 0.3}
    assert curve_summary(points) == {"last": 0.3, "last_quarter": pytest.approx(0.2), "points": 6}
    assert curve_summary({"0": 0.9}) == {"last": 0.9, "last_quarter": 0.9, "points": 1}


def read(*overrides: str) -> Any:
    return load(CONFIGS / "kuhn.yaml", overrides, machine=Machine(2, 16 * 2**30))


@pytest.mark.parametrize(
    ("override", "key", "says"),
    [
        ("tasks.game=tic_tac_toe", "eval.arms.trained.measure", "more than 100,000 positions"),
        ("tasks.game=kuhn_poker(players=3)", "stages.self_play.protocol", "has 3 players, and there are 2 seats"),
        ("tasks={kind: lists, sampler: uniform}", "stages.self_play.protocol", "is no game"),
        ("protocols.kuhn={kind: game, seats: {a: player, b: player}, order: shuffled}", "eval.arms.trained.measure",
         "needs order: fixed"),
        ("protocols.kuhn={kind: game, seats: {a: player, b: player}, view: chat}", "eval.arms.trained.measure",
         "needs view: state"),
        ("policies.player={kind: remote, remote: {url: 'https://a.b', model: m}}", "eval.arms.trained.roles.player",
         "cannot be read"),
    ],
)  # fmt: skip
def test_what_has_no_exact_value_is_refused(override: str, key: str, says: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        read(override)
    assert any(error.key == key and says in error.message for error in caught.value.errors), str(caught.value)


def test_settings_without_effect_on_an_exact_measurement(tmp_path: Path) -> None:
    text = (CONFIGS / "kuhn.yaml").read_text().replace("protocol/", f"{CONFIGS}/protocol/")
    text = text.replace("measure: nash_conv}", "measure: nash_conv, episodes: 5}")
    path = tmp_path / "kuhn.yaml"
    path.write_text(text.replace("eval_arm: trained", "eval_arm: trained\n    eval_episodes: 5"))
    with pytest.raises(ConfigErrors) as caught:
        load(path, machine=Machine(2, 16 * 2**30))
    assert {error.key: error.message for error in caught.value.errors} == {
        "stages.self_play.eval_episodes": "has no effect on an exact measurement",
        "eval.arms.untrained.episodes": "has no effect with measure: nash_conv",
        "eval.arms.trained.episodes": "has no effect with measure: nash_conv",
    }


def test_checkpoints_keep_the_curve(tmp_path: Path) -> None:
    config: Any = read(f"run_dir={tmp_path}").config
    nothing: Any = None
    run = Run(config, nothing, nothing)
    run.exact = {"trained": {"0": 0.9, "5": 0.7}}
    run.state().write(tmp_path)
    resumed = Run(config, nothing, nothing)
    asyncio.run(resumed.restore(tmp_path, learners=False))
    assert resumed.exact == run.exact


def test_moves_are_compared_within_their_information_state() -> None:
    """The shipped config: a move's advantage is its return minus the mean return in the same information state."""
    from dataclasses import replace

    from actors.players.base import ScriptedPlayer
    from actors.rollout.loop import play_all
    from protocols.types import Reply, TokenTrace

    rng = random.Random(0)

    def act(request: Any) -> Reply:
        move = rng.randrange(2)
        trace = TokenTrace((1, 2), (move,), (math.log(0.5),), (0,), ((0, 1),))
        return Reply(request.choices[move], trace=trace)

    players = {"player": Seated("player", ScriptedPlayer(act))}
    plays = asyncio.run(play_all(kuhn(), [TASK] * 300, players, "t", seed=0))
    episodes = [replace(play[0]) for play in plays]
    advantage = read().config.policies["player"].learner.advantage
    samples, metrics = build_samples(episodes, "player", advantage)
    assert metrics["groups"] == 12
    paid: dict[str, list[float]] = {}
    for episode in episodes:
        returns = {reward.seat: reward.value for reward in episode.outcome.rewards}
        for turn in episode.turns:
            paid.setdefault(turn.situation, []).append(returns[turn.seat])
    expected = sorted(
        returns[turn.seat] - sum(paid[turn.situation]) / len(paid[turn.situation])
        for episode in episodes
        for returns in [{reward.seat: reward.value for reward in episode.outcome.rewards}]
        for turn in episode.turns
    )
    assert sorted(value for sample in samples for value in sample.advantages_L) == pytest.approx(expected)
