"""launch.py and what its fast commands need: exit codes, messages, run directories, the plan, the doctor."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

import launch
from actors.players.remote import MissingKey
from configs.load import load, load_protocol
from configs.machine import Machine
from configs.schema.run import RunConfig
from driver import checkpoint, run_folder
from driver.preflight.doctor import examine, torchvision_finding, vllm_finding
from driver.preflight.plan import count_requests, make_plan, render

ROOT = Path(__file__).resolve().parent.parent.parent
CONFIGS = ROOT / "configs"
LAPTOP = Machine(cpus=2, memory=16 * 2**30)
HEAVY = ("torch", "ray", "vllm", "deepspeed", "transformers", "sklearn", "wandb", "matplotlib")

BROKEN = """\
extends: [pixel_debate.yaml]
policies:
  debater:
    traned: true
    learner: {device: cuda, ranks: 4096, gpus: 1}
stages:
  consultancy:
    stepz: 5
    protocol: proposed
"""


def command(*args: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *map(str, args)],
        cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False,
    )  # fmt: skip


def heavy_imports(argv: list[str], cwd: Path) -> list[str]:
    """Heavy modules that are imported after the command has run in a fresh process."""
    code = (
        "import json, sys, contextlib, io\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import launch\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        f"    launch.main({argv!r})\n"
        f"print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120, check=True
    )
    loaded: list[str] = json.loads(done.stdout.splitlines()[-1])
    return loaded


def test_plan_lists_all_mistakes_in_one_message_and_starts_nothing(tmp_path: Path) -> None:
    shutil.copytree(CONFIGS, tmp_path / "configs", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    path = tmp_path / "configs" / "broken.yaml"
    path.write_text(BROKEN)
    done = command("plan", path)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert f"{len(lines) - 1} mistakes" in lines[0]
    for where, text in [
        ("broken.yaml:4", "policies.debater.traned: there is no such setting; did you mean trained?"),
        ("broken.yaml:8", "stages.consultancy.stepz: there is no such setting; did you mean steps?"),
        ("broken.yaml:5", "debater learner 4096"),
        (
            "",
            "role 'debater' of protocol 'proposed' is bound to no policy (valid: consultant, debater, judge,",
        ),
    ]:
        assert any(where in line and text in line for line in lines), (text, done.stderr)
    assert "Traceback" not in done.stderr
    assert "ray" not in heavy_imports(["plan", str(path)], tmp_path)


def test_a_role_without_policy_is_named_with_those_there_are(tmp_path: Path) -> None:
    shutil.copytree(CONFIGS, tmp_path / "configs", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    path = tmp_path / "configs" / "unbound.yaml"
    path.write_text("extends: [pixel_debate.yaml]\nstages: {debate: {roles: {judge: nobody}}}\n")
    done = command("plan", path)
    assert done.returncode == 2
    assert "unbound.yaml:2: stages.debate.roles.judge: there is no policy 'nobody'" in done.stderr
    assert "consultant, debater, judge, proposer" in done.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"], ["plan", str(CONFIGS / "pixel_debate.yaml")], ["doctor"],
        ["protocol", "show", str(CONFIGS / "protocol" / "debate.yaml")],
        ["protocol", "check", str(CONFIGS / "protocol" / "debate.yaml")],
    ],
)  # fmt: skip
def test_quick_commands_import_nothing_heavy(argv: list[str], tmp_path: Path) -> None:
    assert heavy_imports(argv, tmp_path) == []


def test_replay_imports_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "episodes.jsonl").write_text("")
    assert heavy_imports(["replay", str(tmp_path)], tmp_path) == []


def test_plan_works_from_any_folder(tmp_path: Path) -> None:
    done = command("plan", CONFIGS / "smoke.yaml", "name=elsewhere", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "debater" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["plan", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (["eval", "nowhere"], "nowhere is no run directory"),
        (["replay", "nowhere"], "nowhere is no run directory"),
        (["train", str(CONFIGS / "smoke.yaml"), "--resume", "run_dir=nowhere"], "nothing to resume"),
        (["train", str(CONFIGS / "smoke.yaml"), "steps"], "'steps' is not a setting"),
    ],
)
def test_user_mistakes_are_one_message_and_exit_code_2(
    argv: list[str],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert launch.main(argv) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_command_is_refused_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        launch.main(["trian"])
    assert caught.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


def test_defects_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: object) -> int:
        raise ValueError("not a user's mistake")

    monkeypatch.setattr("driver.commands.doctor", broken)
    with pytest.raises(ValueError, match="not a user's mistake"):
        launch.main(["doctor"])


@pytest.mark.parametrize("saved", [False, True], ids=["nothing saved", "a checkpoint"])
def test_a_run_that_fails_says_where_its_traceback_is_and_how_to_go_on(
    saved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(config: RunConfig, folder: Path, resume: bool) -> int:
        if saved:
            with checkpoint.writing(folder / "checkpoints", "step-1") as made:
                (made / "run.json").write_text("{}")
        raise RuntimeError("the engine is gone\nand much else")

    monkeypatch.setattr("driver.experiment.train", train)
    run = tmp_path / "run"
    assert launch.main(["train", str(CONFIGS / "smoke.yaml"), f"run_dir={run}"]) == 1
    said = capsys.readouterr().err
    assert "train failed: RuntimeError: the engine is gone\n" in said and "Traceback" not in said
    assert str(run / "logs" / "error.log") in said
    assert (f"python launch.py train {run} --resume" in said) == saved
    log = (run / "logs" / "error.log").read_text()
    assert "Traceback" in log and "in train\n" in log and "and much else" in log


def test_a_users_mistake_in_a_run_stays_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that a Ray actor raised: what the actor said, without Ray's wrapper."""
    wrapped = RayTaskError("step", "Traceback ...", MissingKey("set API_KEY")).as_instanceof_cause()
    for error in (MissingKey("set API_KEY"), wrapped):

        def train(config: RunConfig, folder: Path, resume: bool, error: Exception = error) -> int:
            raise error

        monkeypatch.setattr("driver.experiment.train", train)
        assert launch.main(["train", str(CONFIGS / "smoke.yaml"), f"run_dir={tmp_path / 'run'}"]) == 2
        assert capsys.readouterr().err.strip() == "set API_KEY"
    assert not (tmp_path / "run" / "logs").exists()


def test_a_finished_run_is_moved_aside(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "demo"
    run_folder.fresh_folder(folder, "a: 1\n")
    assert run_folder.set_aside(folder) is None  # nothing was played in it
    for number in (1, 2):
        (folder / "episodes.jsonl").write_text(f"{number}\n")
        assert run_folder.set_aside(folder) == tmp_path / "runs" / f"demo.{number}"
        run_folder.fresh_folder(folder, "a: 3\n")
    assert (tmp_path / "runs" / "demo.1" / "episodes.jsonl").read_text() == "1\n"
    assert (tmp_path / "runs" / "demo.2" / "episodes.jsonl").read_text() == "2\n"
    assert [path.name for path in folder.iterdir()] == ["config.yaml"]
    assert (folder / "config.yaml").read_text() == "a: 3\n"


def test_resuming_keeps_the_episodes_and_the_first_configuration(tmp_path: Path) -> None:
    run_folder.fresh_folder(tmp_path, "a: 1\n")
    (tmp_path / "episodes.jsonl").write_text("x\n")
    run_folder.continue_folder(tmp_path, "a: 1\n")
    assert not (tmp_path / "config.1.yaml").exists()
    run_folder.continue_folder(tmp_path, "a: 2\n")
    assert (tmp_path / "config.1.yaml").read_text() == "a: 1\n"
    assert (tmp_path / "config.yaml").read_text() == "a: 2\n"
    assert (tmp_path / "episodes.jsonl").read_text() == "x\n"


def test_train_hands_over_the_config_and_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def train(config: RunConfig, folder: Path, resume: bool) -> int:
        (folder / "episodes.jsonl").touch()
        calls.append((config.seed, folder, resume))
        return 0

    monkeypatch.setattr("driver.experiment.train", train)
    run = tmp_path / "run"
    assert launch.main(["train", str(CONFIGS / "smoke.yaml"), f"run_dir={run}", "seed=5"]) == 0
    assert launch.main(["train", str(run), "--resume"]) == 0
    assert launch.main(["train", str(CONFIGS / "smoke.yaml"), "--resume", f"run_dir={run}", "seed=6"]) == 0
    assert launch.main(["train", str(run)]) == 2
    assert launch.main(["train", str(CONFIGS / "smoke.yaml"), f"run_dir={run}"]) == 0
    assert calls == [(5, run, False), (5, run, True), (6, run, True), (0, run, False)]
    assert (tmp_path / "run.1" / "config.1.yaml").is_file()


def test_a_checkout_that_is_not_this_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "protocols").mkdir()
    (tmp_path / "protocols" / "__init__.py").touch()
    paths = [str(tmp_path), str(ROOT)]
    code = f"import sys; sys.path[:0] = {paths!r}; import launch; sys.exit(launch.main(['doctor']))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr


def test_requests_of_a_debate_by_hand() -> None:
    # 2 seats x 2 reveals; the judge before the first and after each, in both orders: (1 + 4) x 2
    assert count_requests(load_protocol(CONFIGS / "protocol" / "pixel_debate.yaml")) == {
        "debater": 4,
        "judge": 10,
    }
    # three judges, three votes in each order; nobody stops the cross-examination of four rounds
    shipped = CONFIGS / "protocol"
    panel = {"debater": 6, "skeptic": 6, "expert": 6, "layperson": 6}
    assert count_requests(load_protocol(shipped / "debate_panel.yaml")) == panel
    crossed = {"debater": 2 + 8 + 2, "examiner": 4, "judge": 2}
    assert count_requests(load_protocol(shipped / "debate_cross_examination.yaml")) == crossed
    # one proposal, eight debates
    proposed = {"proposer": 1, "debater": 32, "judge": 80}
    found = count_requests(load_protocol(CONFIGS / "protocol" / "pixel_proposed.yaml"))
    assert found is not None
    assert {role: count for role, count in found.items() if count} == proposed


def test_plan_of_the_smoke_config() -> None:
    loaded = load(CONFIGS / "smoke.yaml", machine=LAPTOP)
    plan = make_plan(loaded.config, loaded.protocols, LAPTOP)
    policies = {policy.name: policy for policy in plan.policies}
    assert policies["judge"].roles == ("judge",)
    assert not policies["judge"].trained
    assert {need.part for need in policies["judge"].needs} == {"engine", "warm start"}
    assert {need.part for need in policies["debater"].needs} == {"engine", "learner"}
    assert policies["uniform"].needs == ()
    assert plan.gpus == 0
    assert 0 < plan.memory < LAPTOP.memory
    stage = plan.stages[0]
    assert (
        stage.plays
        == loaded.config.stages[stage.name].steps * loaded.config.stages[stage.name].plays_per_step
    )
    assert stage.total == stage.plays * sum((stage.requests or {}).values())
    assert render(plan) is not None


def test_doctor_names_the_traps() -> None:
    assert vllm_finding("0.32.0", "0.32.0", 0).level == "fault"
    assert "both installed" in vllm_finding("0.32.0", "0.32.0", 0).text
    assert vllm_finding(None, None, 0).level == "fault"
    assert vllm_finding("0.32.0", None, 0).level == "fault"
    assert vllm_finding("0.32.0", None, 1).level == "ok"
    assert vllm_finding(None, "0.32.0", 0).level == "ok"
    assert vllm_finding(None, "0.32.0", 1).level == "note"
    assert torchvision_finding("2.13.0+cpu", "0.28.0", True).level == "fault"
    assert torchvision_finding("2.13.0+cpu", "0.99.0", False).level == "ok"
    assert torchvision_finding("2.13.0", "0.28.0", True).level == "ok"


def test_doctor_finds_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    levels = {finding.what: finding.level for finding in examine(blocked, LAPTOP)}
    assert levels["writing"] == "fault"
    assert {finding.what: finding.level for finding in examine(tmp_path / "new", LAPTOP)}["writing"] == "ok"
