"""`deterministic: true`, the parts that need no engine: seeds that no timing enters, and batches that come out the same
whichever reply is first and wherever the run was killed. With real engines: tests/driver/test_resume_exact.py."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from actors.engine.generation import ChoiceGeneration
from actors.players.base import AtTemperature, Seated, UniformPlayer
from actors.players.engine_player import EnginePlayer
from actors.rollout.ledger import Ledger
from actors.rollout.loop import Rollouts
from actors.rollout.runner import run_play
from actors.serving.messages import GenRequest
from actors.serving.seeds import branch_seed, turn_seed
from actors.system import System, alone
from configs.load import load, load_protocol
from configs.machine import Machine
from configs.reading.errors import ConfigErrors
from configs.schema.run import EngineConfig, PolicyConfig, StageConfig
from protocols.base import Play, Protocol, SubPlay
from protocols.types import Episode, Message, Outcome, Reply, Task, Turn, TurnRequest
from tasks.archive import Archive
from tasks.kinds.pixels import Pixels

ROOT = Path(__file__).resolve().parent.parent.parent.parent
SOURCE = Pixels()
PROPOSED = load_protocol(ROOT / "configs" / "protocol" / "pixel_proposed.yaml")


# ---- seeds -------------------------------------------------------------------------------------------


def test_seeds_are_the_same_in_every_process() -> None:
    """Python's own hash of a text is not."""
    script = "from actors.serving.seeds import turn_seed; print(turn_seed(7, 'alice', 2, 0))"
    found = {
        int(subprocess.check_output([sys.executable, "-c", script], cwd=ROOT,
                                    env={**os.environ, "PYTHONHASHSEED": salt, "PYTHONPATH": str(ROOT)}))
        for salt in ("1", "2")
    }  # fmt: skip
    assert found == {turn_seed(7, "alice", 2, 0)}


PLACE = st.tuples(st.integers(0, 2**63), st.text(max_size=4), st.integers(0, 99), st.integers(0, 9))


@given(PLACE, PLACE)
def test_different_places_have_different_seeds(one: Any, two: Any) -> None:
    seeds = turn_seed(*one), turn_seed(*two)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Only the low 32 bits reach torch's generator on CPU.
    assert (seeds[0] & 0xFFFFFFFF == seeds[1] & 0xFFFFFFFF) == (one == two)


def test_names_that_run_together_are_kept_apart() -> None:
    assert turn_seed(1, "a/1", 1, 0) != turn_seed(1, "a", 1, 0) and turn_seed(1, "a", 11, 0) != turn_seed(1, "a", 1, 10)
    assert len({branch_seed(5, chosen) for chosen in range(100)}) == 100


def test_each_choice_within_a_reply_has_its_own_luck(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one seed for all, the noise that makes 7 the first digit would make it the second as well."""
    seeds: list[int] = []

    class Completion:
        token_ids = (7,)
        logprobs = [{7: type("Logprob", (), {"logprob": -0.5})}]

    def ask(flight: Any, prompt_ids: list[int], params: Any, tag: Any) -> None:
        seeds.append(params["seed"])

    monkeypatch.setattr("actors.engine.generation.sampling_params", lambda *args, **settings: settings)
    digits = tuple((a, b, c) for a in (7, 8) for b in (7, 8) for c in (7, 8))
    flight = ChoiceGeneration(GenRequest(0, [5], choices=digits, seed=3), ask, lambda result: None, 0)
    flight.start()
    for _ in range(2):
        flight.take(Completion, [0], {7: {7: {7: 0, 8: 1}, 8: 2}, 8: 3} if len(seeds) == 1 else {7: {7: 0, 8: 1}, 8: 2})
    assert len(seeds) == len(set(seeds)) == 3
    unseeded = ChoiceGeneration(GenRequest(0, [5], choices=digits), ask, lambda result: None, 0)
    unseeded.start()
    assert seeds[-1] is None


# ---- plays -------------------------------------------------------------------------------------------


class Talk(Protocol):
    """Three seats at once, one of them asked for the same turn again, then a sub-play of one turn."""

    kind, name = "test", "talk"

    def play(self, task: Task, rng: random.Random) -> Play:
        def ask(seat: str, turn: int) -> TurnRequest:
            return TurnRequest(seat, "r", (Message("user", "x"),), turn, choices=tuple("0123456789"))

        yield [ask("a", 0), ask("b", 0), ask("c", 0), ask("c", 0)]
        yield [ask("a", 1), SubPlay(One(), task, rng.randrange(2**31), "sub")]
        return Outcome()

    def roles(self) -> Mapping[str, str]:
        return dict.fromkeys("abc", "r")

    def literal_texts(self) -> list[str]:
        return []


class One(Talk):
    name = "one"

    def play(self, task: Task, rng: random.Random) -> Play:
        yield [TurnRequest("a", "r", (Message("user", "x"),), 0, choices=tuple("0123456789"))]
        return Outcome()


class Slow:
    """Draws by the request's seed, after a while that depends on `clock`."""

    def __init__(self, clock: int):
        self.rng, self.seeds, self.player = random.Random(clock), list[Any](), UniformPlayer(seed=clock)

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        self.seeds.append(request.seed)
        for _ in range(self.rng.randrange(30)):
            await asyncio.sleep(0)
        if request.read:  # some belief that prompts decide
            text = str(request.messages[-1].text)
            p = random.Random(text).random()
            return Reply(request.choices[0], (p, 1 - p))
        return await self.player(request, history)


def talk(clock: int, seed: int = 5, seeded: bool = True) -> tuple[list[str], Slow]:
    player = Slow(clock)
    episodes = asyncio.run(run_play(Talk(), Task("t", "q"), seed, {"r": Seated("p", player, seeded)}, "p"))
    return [turn.text for episode in episodes for turn in episode.turns], player


def test_replies_depend_on_the_play_and_not_on_who_was_first() -> None:
    plays = [talk(clock) for clock in range(8)]
    assert all(texts == plays[0][0] for texts, _ in plays)
    assert all(len(set(player.seeds)) == 6 and None not in player.seeds for _, player in plays)
    assert talk(0, seed=6)[0] != plays[0][0]
    unseeded = {tuple(talk(clock, seeded=False)[0]) for clock in range(8)}
    assert len(unseeded) > 1, "without seeds it matters, so that this test can fail"
    assert set(talk(0, seeded=False)[1].seeds) == {None}, "a seed costs time: only where it is asked for"


def test_the_seed_reaches_the_engine_through_a_temperature() -> None:
    asked: list[GenRequest] = []

    class Router:
        async def generate(self, request: GenRequest) -> Any:
            asked.append(request)
            raise EOFError

    codec: Any = type("Codec", (), {"prompt": lambda *_: [1], "choices": lambda *_: ((1,),), "stop_ids": ()})()
    router: Any = Router()
    player = AtTemperature(EnginePlayer(router, codec, 1.0, 5), 0.5)
    request = TurnRequest("a", "r", (Message("user", "x"),), 0, seed=11)
    with pytest.raises(EOFError):
        asyncio.run(player(request, ()))
    assert (asked[0].seed, asked[0].temperature) == (11, 0.5)


def test_engines_of_such_a_run_compute_one_sequence_at_a_time() -> None:
    engine = alone(EngineConfig(extra={"swap_space": 0}))
    assert engine.max_num_seqs == 1 and engine.extra == {"swap_space": 0, "enable_prefix_caching": False}
    for deterministic in (False, True):
        system = System({"u": PolicyConfig(kind="uniform")}, 0, deterministic)
        assert system.players({"r": "u"})["r"].seeded == deterministic


# ---- stages ------------------------------------------------------------------------------------------

STEPS = 6


class Killed(Exception):
    pass


def stage(folder: Path, clock: int, saved: dict[str, Any], kill_after: int | None = None) -> list[list[Episode]]:
    """Batches of a stage with an archive of proposals, from where `saved` says. A "checkpoint" goes into `saved` after
    every second step; `kill_after`: the step in the middle of whose plays everything is gone."""

    async def main() -> list[list[Episode]]:
        ledger = Ledger(folder)
        ledger.sync = lambda: None  # type: ignore[method-assign]  # what a power cut leaves is not the question here
        player, config = Slow(clock), StageConfig(plays_per_step=3, archive=0.5, steps=STEPS)
        players = {role: Seated("p", player, seeded=True) for role in PROPOSED.roles().values()}
        archive = Archive.restore(saved["archive"]) if saved else Archive()
        done = dict(saved.get("done", {"step": 0, "group": 0, "again": []}))
        rollouts = Rollouts("s", config, PROPOSED, SOURCE, players, ledger, 7, archive, done, deterministic=True)
        loop = asyncio.ensure_future(rollouts.run())
        batches: list[list[Episode]] = []
        try:
            for step in range(done["step"], STEPS):
                if step == kill_after:
                    while ledger.counts["roots"] < 3 * step + 2:  # two of three are on disk
                        await asyncio.sleep(0)
                    raise Killed
                plays = await ledger.batch(rollouts.groups_per_step)
                plays.sort(key=lambda play: play[0].meta["index"])
                batches.append([episode for play in plays for episode in play])
                rollouts.release(plays)
                done.update(rollouts.state(), step=step + 1)
                if step % 2:
                    saved.update(done=dict(done), archive=archive.state())
            return batches
        except Killed:
            return batches
        finally:
            loop.cancel()
            await asyncio.gather(loop, return_exceptions=True)
            ledger.close()

    return asyncio.run(main())


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> list[list[Episode]]:
    return stage(tmp_path_factory.mktemp("straight"), 0, {})


@pytest.mark.parametrize("kill_after", range(2, STEPS))
def test_a_killed_stage_goes_on_with_the_same_batches(tmp_path: Path, straight: Any, kill_after: int) -> None:
    assert len(straight) == STEPS
    saved: dict[str, Any] = {}
    before = stage(tmp_path / "killed", 1, saved, kill_after)
    after = stage(tmp_path / "killed", 2, dict(saved))
    step = saved["done"]["step"]
    assert len(before) == kill_after and step == 2 * (kill_after // 2)
    assert [*before[:step], *after] == straight
    assert any(e.parent is None and not e.turns for batch in straight for e in batch), "nothing came from the archive"


# ---- settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages.debate.max_staleness=1"], "stages.debate.max_staleness"),
        (["policies.judge.engine.device=cuda"], "policies.judge.engine.device"),
        (["policies.debater.learner.device=cuda"], "policies.debater.learner.device"),
        (["policies.judge.engine.extra={enable_prefix_caching: true}"], "policies.judge.engine.extra"),
    ],
)
def test_what_would_break_the_promise_is_refused(overrides: list[str], message: str) -> None:
    config, laptop = ROOT / "configs" / "smoke.yaml", Machine(2, 64 * 2**30, gpus=4, gpu_memory=80 * 2**30)
    cpu = [f"policies.{name}.{part}.device=cpu" for name in ("judge", "debater", "proposer", "consultant")
           for part in ("engine", "learner")]  # fmt: skip
    cpu += ["stages.consultancy.max_staleness=0"]  # inherited as 1
    sound = ["deterministic=true", *cpu]
    assert load(config, sound, machine=laptop).config.deterministic
    with pytest.raises(ConfigErrors, match=message):
        load(config, [*sound, *overrides], machine=laptop)
    load(config, [*cpu, *overrides], machine=laptop)
