"""The ablation: every combination is sound, tables are right, what has finished is not run again. Nothing trains."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from benchmarks.ablation import page as ablation_page, run as ablation
from benchmarks.ablation.jobs import (
    ARENAS,
    CONFIGS,
    JUDGE,
    Job,
    flow,
    jobs,
    methods,
    settings,
    text_of,
)
from configs.load import load
from configs.machine import Machine
from configs.schema.run import RunConfig

pytest.importorskip("pyspiel")
LAPTOP = Machine(cpus=2, memory=16 * 2**30)
PAIRS = [(task, method) for task in ARENAS for method in methods()]
PAIRED = ("dpo", "spin")


@cache
def read(config: Path, overrides: tuple[str, ...]) -> RunConfig:
    return load(config, overrides).config


def config_of(job: Job) -> RunConfig:
    return read(job.config, job.overrides)


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("task, method", PAIRS)
def test_every_combination_is_sound_and_so_is_the_copy_that_its_run_directory_keeps(
    task: str, method: str, judge: Path, tmp_path: Path
) -> None:
    (job,) = (job for job in jobs([task], [method], [0]) if job.method == method)
    there = [f"policies.judge.model.path={judge}"] if ARENAS[task].judge else []
    loaded = load(job.config, [*job.overrides, *there], machine=LAPTOP)
    assert loaded.config.run_dir == f"runs/ablation/{task}-{method}-0" and loaded.config.seed == 0
    assert job.folder.name == Path(loaded.config.run_dir).name
    saved = tmp_path / "config.yaml"
    saved.write_text(text_of(job))
    again = load(saved, there, machine=LAPTOP).config  # in one file: no setting in it is without effect
    assert again.policies[ARENAS[task].policy].learner == loaded.config.policies[ARENAS[task].policy].learner


def test_a_seed_has_one_judge_and_everybody_reads_that_one() -> None:
    for quick in (False, True):
        first, *others = jobs(["pixels"], [*methods()], [2], quick)
        assert first.method == JUDGE
        trained = config_of(first)
        for job in others:
            config = config_of(job)
            assert config.policies["judge"].model.path == f"{trained.run_dir}/models/judge/warm"
            assert config.policies["judge"].warm_start is None and not config.policies["judge"].trained
            assert set(config.protocols) <= set(trained.protocols)


@pytest.mark.parametrize("task", ARENAS)
def test_methods_differ_in_nothing_but_the_learner(task: str) -> None:
    seen = []
    for job in jobs([task], [*methods()], [0]):
        config = config_of(job)
        if job.method == JUDGE:
            continue
        learner = config.policies[ARENAS[task].policy].learner
        assert learner.schedule == "linear" and learner.epochs == 1
        assert learner.advantage.credit == "turn" and learner.advantage.discount == 0
        assert all(stage.max_staleness == 0 for stage in config.stages.values())
        seen.append((config.stages, config.eval, config.policies[ARENAS[task].policy].model, learner.minibatches))
    assert len(seen) == 8 and all(one == seen[0] for one in seen)


def test_pairs_in_kuhn_poker_are_of_siblings_and_policy_gradients_compare_the_batch() -> None:
    for job in jobs(["kuhn"], [*methods()], [0]):
        learner = config_of(job).policies["player"].learner
        if job.method in ("grpo", "rloo", "reinforce_pp_baseline"):
            assert "task" not in learner.advantage.group_by and "situation" in learner.advantage.group_by
        if job.method in PAIRED:
            assert "task" in learner.advantage.group_by
            assert learner.reference.kind == {"dpo": "initial", "spin": "previous"}[job.method]


# -- the runner, with runs that write their results at once


def value_of(job: Job) -> float:
    place = [*methods()].index(job.method) if job.method != JUDGE else 0
    return round(0.5 + 0.05 * place + 0.01 * job.seed, 6)


def pretend(job: Job) -> int:
    """Writes what a run would."""
    job.folder.mkdir(parents=True)
    (job.folder / "config.yaml").write_text(text_of(job))
    summary = {"finished": True, "wall_s": 60.0 + job.seed, "episodes": 9, "policy_updates": 3, "skipped_updates": 0,
               "stages": {"debate": {}}}  # fmt: skip
    value, lines = value_of(job), []
    if job.method == JUDGE:
        summary |= {"judge_accuracy": {"random_evidence": {"mean": 0.8}}, "stages": {}}
    elif job.task == "kuhn":
        curve = {"last": value + 0.1, "last_quarter": value}
        summary |= {"nash_conv": {"trained": curve, "untrained": {"last": 0.9}}, "stages": {"self_play": {}}}
        lines = [("eval/trained", step, {"nash_conv": value + step}) for step in (2, 4, 4)]
    else:
        summary |= {"judge_accuracy": {"trained": {"mean": value}, "untrained": {"mean": 0.75}}}
        lines = [("rollout/debate", step, {"score/debate": value, "tokens": 3}) for step in (1, 2)]
    if job.method in PAIRED:
        lines += [(f"learner/{ARENAS[job.task].policy}", step, {"pairs": 10.0 * step, "entropy": entropy})
                  for step, entropy in ((1, 2.0), (2, 1.25))]  # fmt: skip
    told = [json.dumps({"time": 0, "kind": kind, "step": step, "values": values}) for kind, step, values in lines]
    (job.folder / "metrics.jsonl").write_text("\n".join(told))
    whole = job.folder / "written"
    whole.write_text(json.dumps(summary))
    whole.replace(job.folder / "summary.json")  # at once, as a run does
    return 0


class Counting:
    def __init__(self, launch: Callable[[Job], int] = pretend) -> None:
        self.launch, self.names = launch, []

    def __call__(self, job: Job) -> int:
        self.names.append(job.name)
        return self.launch(job)


KUHN = ["--tasks", "kuhn", "--methods", "grpo", "dpo"]


def cells(page: str, title: str, section: str) -> list[str]:
    part = page.partition(f"## {section}")[2].partition("\n## ")[0]
    (line,) = (line for line in part.splitlines() if line.startswith(f"| {title} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_tables_hold_means_deviations_and_seeds(tmp_path: Path) -> None:
    for job in jobs([*ARENAS], [*methods()], [0, 1, 2], root=tmp_path):
        pretend(job)
    launched = Counting()
    assert ablation.main([], launched, tmp_path) == 0 and not launched.names
    page = (tmp_path / "docs" / "ablation.md").read_text()
    # 50, 51, 52%: mean 51, sample standard deviation 1
    assert cells(page, "GRPO", "Pixel debate") == ["GRPO", "**51.0%**", "1.0%", "50.0%", "51.0%", "52.0%", ""]
    # the sixth method: .75, .76, .77
    assert cells(page, "DPO", "Kuhn poker") == ["DPO", "**0.760**", "0.010", "0.750", "0.760", "0.770", "2.00 to 1.25"]
    assert cells(page, "untrained", "Kuhn poker")[1:3] == ["**0.900**", "0.000"]
    assert cells(page, "random evidence", "Pixel debate")[1] == "**80.0%**"
    assert "Not measured yet" not in page and "DPO 15, SPIN-like 15." in page
    for name in ("pixels", "pixels_curves", "kuhn", "kuhn_curves"):
        assert (tmp_path / "docs" / "ablation" / f"{name}.svg").read_text().rstrip().endswith("</svg>")
        assert f"(ablation/{name}.svg)" in page
    for method, about in methods().items():
        assert flow(settings(method, "pixels")) in page and about["source"] in page
    found = json.loads((tmp_path / "benchmarks" / "ablation.json").read_text())["runs"]
    assert len(found) == 3 * (1 + 8 + 8)
    (kuhn,) = (one for one in found if (one["task"], one["method"], one["seed"]) == ("kuhn", "grpo", 0))
    assert kuhn["curve"] == [[2, 2.5], [4, 4.5]] and kuhn["last"] == 0.6


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    assert ablation.main([*KUHN, "--seeds", "0", "2"], pretend, tmp_path) == 0
    page = (tmp_path / "docs" / "ablation.md").read_text()
    assert cells(page, "GRPO", "Kuhn poker") == ["GRPO", "**0.510**", "0.014", "0.500", "-", "0.520", ""]
    assert cells(page, "RLOO", "Kuhn poker")[1:6] == ["**-**", "-", "-", "-", "-"]
    missing = "GRPO (seed 1); RLOO; REINFORCE++; REINFORCE++ with baseline; RAE (SPIRAL); DPO (seed 1); "
    assert f"**Not measured yet:** {missing}" in page
    assert not (tmp_path / "docs" / "ablation" / "pixels.svg").exists()


def test_finished_runs_are_not_run_again_changed_and_unfinished_ones_are(tmp_path: Path) -> None:
    command, first, second = [*KUHN, "--seeds", "0"], Counting(), Counting()
    assert ablation.main(command, first, tmp_path) == 0 and first.names == ["kuhn-grpo-0", "kuhn-dpo-0"]
    assert ablation.main(command, second, tmp_path) == 0 and not second.names
    folder = tmp_path / "runs" / "ablation"
    saved = folder / "kuhn-grpo-0" / "config.yaml"
    saved.write_text(saved.read_text().replace("steps: 120", "steps: 12"))
    summary = folder / "kuhn-dpo-0" / "summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "finished": False}))
    third = Counting(lambda job: 0)  # runs through, and leaves things as they are
    assert ablation.main(command, third, tmp_path) == 1
    assert third.names == ["kuhn-grpo-0", "kuhn-dpo-0"]


def test_results_outlive_their_run_directories_while_the_configuration_stands(tmp_path: Path) -> None:
    ablation.main([*KUHN, "--seeds", "0"], pretend, tmp_path)
    (tmp_path / "runs").rename(tmp_path / "gone")
    assert ablation.main([*KUHN, "--seeds", "1"], pretend, tmp_path) == 0
    file = tmp_path / "benchmarks" / "ablation.json"
    assert len(json.loads(file.read_text())["runs"]) == 4
    file.write_text(file.read_text().replace('"config": "', '"config": "0', 1))
    (tmp_path / "runs").rename(tmp_path / "gone too")
    ablation.main(["--tasks", "kuhn", "--methods", "rloo", "--seeds", "0"], pretend, tmp_path)
    names = [(one["method"], one["seed"]) for one in json.loads(file.read_text())["runs"]]
    assert len(names) == 4 and ("grpo", 0) not in names


def test_a_failure_is_told_and_the_others_run_an_interruption_ends_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failing = Counting(lambda job: 1 if job.method == "grpo" else pretend(job))
    assert ablation.main([*KUHN, "--seeds", "0"], failing, tmp_path) == 1
    assert failing.names == ["kuhn-grpo-0", "kuhn-dpo-0"]
    assert "failed: kuhn-grpo-0" in capsys.readouterr().err
    for code in (130, -2):
        stopped = Counting(lambda job, code=code: code)
        assert ablation.main([*KUHN, "--seeds", "1"], stopped, tmp_path) == 130
        assert stopped.names == ["kuhn-grpo-1"]


def test_several_run_at_once_and_each_after_its_judge(tmp_path: Path) -> None:
    both, lock, over = threading.Barrier(2, timeout=30), threading.Lock(), []

    def launch(job: Job) -> int:
        if job.method != JUDGE:
            assert f"pixels-{JUDGE}-{job.seed}" in over
            both.wait()  # ends only where two are under way
        code = pretend(job)
        with lock:
            over.append(job.name)
        return code

    command = ["--tasks", "pixels", "--methods", "grpo", "rloo", "--seeds", "0", "1", "--at-once", "2"]
    assert ablation.main(command, launch, tmp_path) == 0
    assert len(over) == 6 and len(json.loads((tmp_path / "benchmarks" / "ablation.json").read_text())["runs"]) == 6


def test_an_interruption_starts_nothing_more(tmp_path: Path) -> None:
    stopped = Counting(lambda job: 130)
    command = ["--tasks", "kuhn", "--at-once", "2"]  # 24 runs
    assert ablation.main(command, stopped, tmp_path) == 130
    assert 1 <= len(stopped.names) <= 2


def test_starts_that_differ_are_told(tmp_path: Path) -> None:
    runs = [{"task": "kuhn", "method": method, "seed": 0, "value": 0.5, "untrained": start, "wall_s": 1.0, "skipped": 2,
             "curve": []} for method, start in (("grpo", 0.8), ("rloo", 0.9))]  # fmt: skip
    told = "\n".join(ablation_page.notes("kuhn", runs, [0]))
    assert "Seed 0: untrained from 0.800 to 0.900" in told and "4 optimizer steps were skipped" in told


def test_a_dry_run_shows_commands_for_a_shell_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launched = Counting()
    assert ablation.main([*KUHN, "--seeds", "0", "--dry-run"], launched, tmp_path) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("to do: python launch.py train configs/ablation/kuhn.yaml name=kuhn-grpo-0 seed=0 ")
    assert "'policies.player.learner={loss: {kind: clip, kl: 1.0}, " in out[0] and len(out) == 2
    assert not launched.names and not list(tmp_path.iterdir())


def test_quick_runs_keep_to_themselves(tmp_path: Path) -> None:
    launched = Counting()
    assert ablation.main(["--quick", "--methods", "rae", "dpo"], launched, tmp_path) == 0
    assert launched.names == ["pixels-judge-0", "pixels-rae-0", "pixels-dpo-0", "kuhn-rae-0", "kuhn-dpo-0"]
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert (tmp_path / "runs" / "ablation-quick" / "docs" / "ablation.md").is_file()


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ablation.main(["--methods", "ppo"])
    assert "grpo" in capsys.readouterr().err
    assert {path.name for path in CONFIGS.glob("*.yaml")} == {"judge.yaml", "pixels.yaml", "kuhn.yaml", "methods.yaml"}
