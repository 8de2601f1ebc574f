"""The benchmarks' own arithmetic and page; nothing here measures anything."""

from __future__ import annotations

import ast
import asyncio
import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.engine.generation import ChoiceGeneration
from actors.serving.messages import GenRequest, GenResult
from actors.serving.wire import Restarted
from benchmarks import bubbles, orchestrator, overlap, peer
from benchmarks.__main__ import NAMES
from benchmarks.harness import page, scenes, simulated
from benchmarks.harness.measure import ROOT, circumstances, figure, ratios, rounded, spread, target
from benchmarks.harness.simulated import Died, Host
from benchmarks.saturation import vllm_requests
from protocols.types import Reply, Task, Turn, TurnRequest
from tasks.kinds.pixels import Pixels


def test_a_target_is_met_on_its_own_side_of_the_bound_only() -> None:
    assert target("speed", 3.0, at_least=3.0)["met"] and not target("speed", 2.99, at_least=3.0)["met"]
    assert target("cost", 1.3, at_most=1.3)["met"] and not target("cost", 1.31, at_most=1.3)["met"]
    assert not target("broken", float("nan"), at_least=0.0)["met"]
    with pytest.raises(AssertionError):
        target("both", 1.0, at_least=0.0, at_most=2.0)


def test_repeats_are_told_with_their_spread() -> None:
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    assert spread([1.0, 5.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 5.0, "repeats": 3}
    found = target("speed", 2.0, at_least=3.0, repeats=[1.0, 5.0, 2.0])
    assert (found["low"], found["high"], found["repeats"]) == (1.0, 5.0, 3)
    assert (rounded(12345.678), rounded(0.00123456)) == (12350.0, 0.001235)


def entry() -> dict:
    return {
        "about": "Driver: how fast.\n\nAs it was.", "remark": "Busy.",
        **circumstances(), "seconds": 3, "settings": {"seed": 0},
        "targets": [target("fast", 2.0, at_least=3.0, repeats=[1.0, 2.0]), target("small", 1.0, at_most=2.0)],
        "measured": {"turns": spread([1.0, 2.0, 3.0]), "by size": {"10": 4.5}},
        "metrics": [figure("bars", "Bars", {"a": 1.0, "b": 2.0}), figure("lines", "Lines", {"a": [[1, 2], [2, 3]]})],
    }  # fmt: skip


def test_the_page_says_what_was_missed_and_names_no_place(tmp_path: Path) -> None:
    page.write({"driver": entry()}, tmp_path)
    text = (tmp_path / "benchmarks.md").read_text()
    assert "\n\nBusy.\n\n| measured |" in text
    assert "## driver\n\nHow fast.\n\nAs it was.\n" in text
    assert "| fast | at least 3 | 2 | 1 to 2 (2 runs) | **no** |" in text
    assert "| small | at most 2 | 1 |  | yes |" in text
    assert "| turns | 2 (1 to 3) |" in text and "| by size, 10 | 4.5 |" in text
    assert str(ROOT) not in text and str(Path.home()) not in text
    for picture in ("driver.svg", "driver1.svg"):
        assert f"(benchmarks/{picture})" in text
        assert (tmp_path / "benchmarks" / picture).read_text().rstrip().endswith("</svg>")


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_says_what_it_does_and_has_a_main(name: str) -> None:
    tree = ast.parse((ROOT / "benchmarks" / f"{name}.py").read_text())
    assert (ast.get_docstring(tree) or "").startswith(f"{name.capitalize()}: ")
    mains = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    assert [argument.arg for argument in mains[0].args.args] == ["quick"]


def test_the_script_of_the_driver_plays_every_protocol_to_a_sound_end() -> None:
    from benchmarks.driver import PLAYED, PROTOCOLS, measure
    from configs.load import load_protocol

    tasks = Pixels().derived_heldout(4, 0)
    for name in PLAYED:
        assert measure(load_protocol(PROTOCOLS / f"{name}.yaml"), tasks, 4, 8) > 0


class Local:
    """An actor of the simulation without Ray: its calls run in this loop, and what kills it is the actor's death."""

    def __init__(self, host: Host) -> None:
        self.host = host
        for name in ("begin", "call"):
            setattr(self, name, SimpleNamespace(remote=functools.partial(self._call, name)))

    def _call(self, name: str, *args: Any) -> asyncio.Task[Any]:
        return asyncio.ensure_future(self._run(name, *args))

    async def _run(self, name: str, *args: Any) -> Any:
        from ray.exceptions import RayActorError

        try:
            return await getattr(self.host, name)(*args)
        except (Died, Restarted):
            raise RayActorError() from None


def test_simulated_engines_fail_and_die_and_the_orchestrator_plays_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "REFUSED", 0.0005)
    monkeypatch.setattr(orchestrator, "DEATHS", 0.002)
    monkeypatch.setattr(simulated, "RESTART_S", 0.01)
    monkeypatch.setattr(orchestrator, "ENGINES", 8)
    monkeypatch.setattr(orchestrator, "PER_STEP", 10)
    hosts = [Local(Host(0)), Local(Host(1))]
    found = asyncio.run(orchestrator.measure(hosts, "127.0.0.1", 40, windows=2, seconds=1.0))
    assert found.counts["restarts"] > 0 and found.counts["sent again"] > 0 and found.counts["finished plays"] >= 40
    assert all(window.turns > 0 and window.cpu_s > 0 for window in found.windows)
    few = orchestrator.Found(found.windows, found.resident - 40_000, found.counts)
    told = orchestrator.report({"few": [few], "many": [found]}, (20, 60))
    assert told["targets"][0]["measured"] == pytest.approx(1.0)
    assert told["measured"]["KiB of driver memory per waiting episode"] == rounded(1000 / 1024)


def test_bare_vllm_is_asked_what_the_engine_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.engine.generation.sampling_params", lambda *args, **settings: settings)
    asked: list[tuple[list[int], Any, Any]] = []
    results: list[GenResult] = []
    request = GenRequest(0, [5], choices=((7, 8, 1), (7, 8, 2), (7, 9, 3)))
    generation = ChoiceGeneration(
        request, lambda generation, ids, params, tag: asked.append((ids, params, tag)), results.append, 0
    )
    generation.start()
    for token in (8, 2):
        position = {token: SimpleNamespace(logprob=-1.0)}
        generation.take(SimpleNamespace(token_ids=[token], logprobs=[position]), [0], asked[-1][2])
    (result,) = results
    again = list(vllm_requests(request, result))
    assert [ids for ids, _ in again] == [ids for ids, _, _ in asked] == [[5, 7], [5, 7, 8]]
    assert [params["allowed"] for _, params in again] == [params["allowed"] for _, params, _ in asked]

    read = GenRequest(0, [5], choices=((7, 1), (7, 2), (8,)), read=True)
    answered = GenResult(0, [], [], [0])
    (first, one), (second, two) = sorted(vllm_requests(read, answered), key=lambda each: len(each[0]))
    assert (first, set(one["read"])) == ([5], {7, 8}) and (second, set(two["read"])) == ([5, 7], {1, 2})


@pytest.mark.parametrize("way", [bubbles.continuous, bubbles.lock_step])
def test_lock_step_holds_every_play_at_its_round_and_continuous_play_does_not(way: bubbles.Way) -> None:
    ahead = 0
    turns: dict[str, int] = {}

    async def player(request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        nonlocal ahead
        question = request.messages[0].text.split()[1]
        turns[question] = turns.get(question, 0) + 1
        ahead = max(ahead, turns[question] - min(turns.values()))
        for _ in range(20 if question.endswith("0") else 1):
            await asyncio.sleep(0)
        return Reply("said")

    tasks = [Task(f"q{i}", f"question{i}") for i in range(4)]
    plays = asyncio.run(way(scenes.debate(rounds=5, tokens=8), tasks, player, 4))  # type: ignore[arg-type]
    assert [len(play[0].turns) for play in plays] == [10] * 4
    assert ahead == 1 if way is bubbles.lock_step else ahead > 1


def test_drawn_lengths_are_heavy_tailed_and_the_same_whoever_spoke_before() -> None:
    asked: list[int] = []

    async def player(request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        asked.append(request.max_tokens or 0)
        return Reply("word " * len(asked))  # longer and longer

    drawn = scenes.DrawnLength(player, median=16, sigma=1.0, longest=256)
    protocol, tasks = scenes.debate(rounds=8, tokens=8), scenes.questions(40, 12, seed=0)
    asyncio.run(bubbles.continuous(protocol, tasks, drawn, 1))
    first, asked[:] = list(asked), []
    asyncio.run(bubbles.continuous(protocol, tasks, drawn, 1))
    assert asked == first and len(set(first)) > 20
    assert 12 <= sorted(first)[len(first) // 2] <= 20 and max(first) > 100


def test_the_difference_of_arms_has_the_wider_of_two_intervals() -> None:
    def arm(mean: float, half: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - half, "high": mean + half}

    gap, half = overlap.difference([arm(0.9, 0.03)], [arm(0.92, 0.04)])
    assert (gap, half) == (pytest.approx(0.02), pytest.approx(0.05))  # 3, 4, 5
    gap, half = overlap.difference([arm(0.9, 0.0), arm(0.9, 0.0)], [arm(0.9, 0.0), arm(0.94, 0.0)])
    assert (gap, half) == (pytest.approx(0.02), pytest.approx(1.96 * 0.02))


def test_the_peers_race_to_a_running_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "WINDOW", 2)
    curve = [(1.0, 0.0), (2.0, 0.4), (3.0, 0.4), (4.0, 0.8)]
    assert [round(share, 6) for _, share in peer.smooth(curve)] == [0.0, 0.2, 0.4, 0.6]
    assert peer.reach(curve, 0.3) == 3.0
