"""The benchmarks' own arithmetic and page; nothing here measures anything."""

from __future__ import annotations

import ast
import asyncio
import functools
from pathlib import Path
from typing import Any

import pytest

from benchmarks import orchestrator, page, simulated
from benchmarks.__main__ import NAMES
from benchmarks.measure import ROOT, circumstances, figure, ratios, rounded, spread, target
from benchmarks.simulated import Died, Host, remote
from tasks.pixels import Pixels


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
        **circumstances(), "seconds": 3, "settings": {"seed": 0},
        "targets": [target("fast", 2.0, at_least=3.0, repeats=[1.0, 2.0]), target("small", 1.0, at_most=2.0)],
        "measured": {"turns": spread([1.0, 2.0, 3.0]), "by size": {"10": 4.5}},
        "figures": [figure("bars", "Bars", {"a": 1.0, "b": 2.0}), figure("lines", "Lines", {"a": [[1, 2], [2, 3]]})],
    }  # fmt: skip


def test_the_page_says_what_was_missed_and_names_no_place(tmp_path: Path) -> None:
    page.write({"driver": entry()}, tmp_path)
    text = (tmp_path / "benchmarks.md").read_text()
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


class LocalHost:
    """A host of simulated engines without Ray: its calls run in this loop, and what kills it is the actor's death."""

    def __init__(self, replicas: int, seed: int) -> None:
        self.host = Host(replicas, seed)
        for name in ("begin", "submit", "collect", "restart", "cpu_s"):
            setattr(self, name, remote(functools.partial(self._call, name)))

    def _call(self, name: str, *args: Any) -> asyncio.Task[Any]:
        return asyncio.ensure_future(self._run(name, *args))

    async def _run(self, name: str, *args: Any) -> Any:
        from ray.exceptions import RayActorError

        try:
            return await getattr(self.host, name)(*args)
        except Died:
            raise RayActorError() from None


def test_simulated_engines_fail_and_die_and_the_orchestrator_plays_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated, "REFUSED", 0.002)
    monkeypatch.setattr(orchestrator, "DEATHS", 0.01)
    monkeypatch.setattr(simulated, "RESTART_S", 0.01)
    monkeypatch.setattr(orchestrator, "ENGINES", 8)
    monkeypatch.setattr(orchestrator, "PER_STEP", 10)
    hosts = [LocalHost(4, 0), LocalHost(4, 1)]
    found = asyncio.run(orchestrator.measure(hosts, 8, 60, windows=2, seconds=0.3))
    assert found.counts["restarts"] > 0 and found.counts["sent again"] > 0 and found.counts["finished plays"] > 0
    assert all(window.turns > 0 and window.cpu_s > 0 for window in found.windows)
    few = orchestrator.Found(found.windows, found.resident - 40_000, found.counts)
    told = orchestrator.report({20: [few], 60: [found]}, (20, 60), hubs=[few])
    assert told["targets"][0]["measured"] == pytest.approx(1.0)
    assert told["measured"]["KiB of driver memory per waiting episode"]["median"] == rounded(1000 / 1024)
