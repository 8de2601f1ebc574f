"""Figures reach metrics.jsonl, W&B (offline) and the screen; secrets and escape sequences do not."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys

import pytest

from configs.schema.run import RunConfig
from protocols.types import Episode, Judgment, Message, Outcome, Reward, Task, Turn
from reporting import transcript
from reporting.console import Progress, Screen, Seating, duration
from reporting.tracker import Tracker, TrackingError, read_metrics, redact, wandb_mode

KEY = {"WANDB_API_KEY": "k" * 40}


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def config(mode="disabled"):
    made = RunConfig(name="test")
    made.track.wandb = mode
    return made


def tracker(folder, mode="disabled", yaml_text="name: test\n"):
    return Tracker(folder, config(mode), yaml_text, Screen(file=io.StringIO(), width=100))


@pytest.mark.parametrize(
    ("setting", "environ", "mode"),
    [
        ("auto", {}, "offline"),
        ("auto", KEY, "online"),
        ("auto", {**KEY, "WANDB_MODE": "offline"}, "offline"),
        ("auto", {**KEY, "WANDB_MODE": "disabled"}, "disabled"),
        ("auto", {"WANDB_MODE": "dryrun"}, "offline"),
        ("offline", KEY, "offline"),
        ("disabled", KEY, "disabled"),
        ("online", KEY, "online"),
    ],
)
def test_mode_never_needs_a_question(setting, environ, mode, tmp_path):
    assert wandb_mode(setting, {"NETRC": str(tmp_path / "none"), **environ})[0] == mode


def test_a_netrc_entry_is_a_key(tmp_path):
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert wandb_mode("auto", {"NETRC": str(tmp_path / "netrc")})[0] == "online"


def test_online_without_a_key_is_the_users_mistake(tmp_path):
    with pytest.raises(TrackingError, match="WANDB_API_KEY"):
        wandb_mode("online", {"NETRC": str(tmp_path / "none")})
    with pytest.raises(TrackingError):
        wandb_mode("auto", {"NETRC": str(tmp_path / "none"), "WANDB_MODE": "online"})


def test_metrics_lines(tmp_path):
    made = tracker(tmp_path)
    made.log("learner/player", 3, {"loss": 0.25, "kl": float("nan")})
    made.close()
    (line,) = read_metrics(tmp_path / "metrics.jsonl")
    assert (line["kind"], line["step"], line["values"]) == ("learner/player", 3, {"loss": 0.25, "kl": None})
    assert line["time"] > 1.6e9


def test_reopening_continues_after_a_cut_line(tmp_path):
    made = tracker(tmp_path)
    made.log("a", 1, {"x": 1.0})
    made.close()
    made.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"time": 1, "kind": "a", "st')
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1]
    again = tracker(tmp_path)
    again.log("a", 2, {"x": 1.0})
    again.close()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]
    assert again.run_id == made.run_id


def test_summary_is_replaced_whole(tmp_path):
    made = tracker(tmp_path)
    made.summary({"judge_accuracy": {"trained": {"mean": 0.9}}})
    made.summary({"seed": 1})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"seed": 1}
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_config_is_kept_as_written_and_not_overwritten(tmp_path):
    tracker(tmp_path, yaml_text="name: test  # mine\n").close()
    tracker(tmp_path, yaml_text="name: other\n").close()
    assert (tmp_path / "config.yaml").read_text() == "name: test  # mine\n"


def test_secrets_are_masked():
    given = {
        "a": [{"api_key": "sk-1", "api_key_env": "MY_KEY"}],
        "hf_token": "t",
        "max_tokens": 64,
        "token": 3,
    }
    assert redact(given) == {
        "a": [{"api_key": "<redacted>", "api_key_env": "MY_KEY"}],
        "hf_token": "<redacted>",
        "max_tokens": 64,
        "token": 3,
    }


def test_wandb_offline_gets_axes_of_its_own_and_a_table(tmp_path):
    """Read back with W&B's own reader. Its files lie in the run directory."""
    script = f"""
import sys, io
sys.path[:0] = {sys.path!r}
from tests.reporting.test_tracker import tracker, debate
made = tracker({str(tmp_path)!r}, "auto", "policies: {{judge: {{api_key: sk-private}}}}")
assert made.mode == "offline", made.mode
assert "offline" in made.wandb_line
for step in (5, 3):
    made.log("learner/player", step, {{"loss": 0.5, "bad": float("inf")}})
made.log("rollout/selfplay", 7, {{"episodes": 640, "score": 0.5}})
made.transcripts([debate()] * 30, step=5)
made.summary({{"seed": 0}})
made.close(0)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "wandb").glob("offline-run-*-*")
    assert run.name.endswith((tmp_path / "wandb_id").read_text())
    shown = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(run)], capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    found = [json.loads(line) for line in shown.stdout.splitlines()]
    history = [entry["history"]["item"] for entry in found if entry["type"] == "history"]
    learner = [
        (item["learner/step"], item["learner/player/loss"]) for item in history if "learner/step" in item
    ]
    assert learner == [(5, 0.5), (3, 0.5)]  # an earlier step is not dropped
    assert all("learner/player/bad" not in item for item in history)
    assert [item["rollout/episodes"] for item in history if "rollout/episodes" in item] == [640]
    axes = {
        entry["metric"].get("glob_name"): entry["metric"].get("step_metric")
        for entry in found
        if "metric" in entry
    }
    assert axes["learner/*"] == "learner/step"
    assert axes["rollout/*"] == "rollout/episodes"
    assert axes["eval/*"] == "eval/updates"
    (table,) = run.rglob("*.table.json")
    rows = json.loads(table.read_text())["data"]
    assert 8 <= len(rows) <= 16
    assert "alice: r1c1=2" in rows[0][-1]
    assert rows[0][0] == 5
    recorded = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert b"sk-private" not in recorded


# ---- the screen --------------------------------------------------------------------------------------


def screen(**options):
    out = io.StringIO()
    return Screen(file=out, width=100, **options), out


def test_plain_lines_every_n_steps_when_not_a_terminal():
    made, out = screen(every=10)
    for step in range(26):
        made.progress(
            Progress(
                "selfplay", step, 25, episodes=step * 8, tokens_per_s=1234.5, metrics={"judge accuracy": 0.83}
            )
        )
    steps = re.findall(r"selfplay +(\d+)/25", out.getvalue())
    assert steps == ["0", "10", "20", "25"]
    assert "1,234 tok/s" in out.getvalue()
    assert "judge accuracy 0.830" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_start_panel_names_roles_policies_devices():
    made, out = screen()
    made.start("demo", "runs/demo", [Seating("debater", "player", "cpu x1", "trained")], "offline (no key)")
    for word in ("debater", "player", "cpu x1", "trained", "runs/demo", "offline (no key)"):
        assert word in out.getvalue()


def test_final_panel_states_gain_and_share_of_the_gap():
    made, out = screen()
    arms = {"untrained": interval(0.80), "trained": interval(0.92), "minimax_ceiling": interval(0.96)}
    made.final(
        "demo",
        {"judge_accuracy": arms, "wall_s": 65.0, "episodes": 20480},
        "runs/demo",
        {"replay": "launch replay x"},
    )
    text = out.getvalue()
    for words in ("+12.0%", "75%", "90.0% to 94.0%", "1 min 05 s", "20,480 episodes", "launch replay x"):
        assert words in text


def test_final_panel_keeps_scores_of_different_meaning_apart():
    made, out = screen()
    arms = {"solver": interval(0.25), "debate": interval(0.75), "essay": interval(0.5) | {"n": 0}}
    says = {"solver": "answer is right", "debate": "judge is right", "essay": "judge is right"}
    curve = {"last": 0.1, "last_quarter": 0.2}
    made.final("demo", {"judge_accuracy": arms, "scores": says, "nash_conv": {"arm": curve}}, "runs/demo", {})
    lines = out.getvalue().splitlines()
    assert "demo: result" in lines[0], "an arm's name is no title"
    rows = [" ".join(line.strip("│ ").split()) for line in lines]
    columns = [i for i, row in enumerate(rows) if row.endswith("95% interval n")]
    assert [rows[i].split(" 95%")[0] for i in columns] == ["answer is right", "judge is right"]
    assert rows[columns[0] + 1].startswith("solver 25.0%") and rows[columns[1] + 1].startswith("debate 75.0%")
    assert rows[columns[1] + 2] == "essay no score"


def test_sample_shows_turns_and_beliefs():
    made, out = screen()
    made.sample(debate())
    lines = out.getvalue().splitlines()
    assert "(true)" in lines[0]
    assert [line.split()[0] for line in lines[1:4]] == ["before", "alice", "bob"]
    assert "8 75%" in lines[2]
    assert "not a legal move" in lines[3]


def test_text_of_a_seat_cannot_drive_the_terminal():
    made, out = screen()
    made.sample(debate(text="\x1b[2J[bold red]x[/] \x07\u202eevil"))
    assert "\x1b" not in out.getvalue()
    assert "\x07" not in out.getvalue()
    assert "[bold red]x[/]" in out.getvalue()
    assert "\u202e" not in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


# ---- transcripts -------------------------------------------------------------------------------------


def test_events_put_judgments_after_the_reads_behind_them():
    order = [
        event.turn.seat if event.turn else f"judged {event.judgment.scores[0]}"
        for event in transcript.events(debate())
    ]
    assert order == ["judged 0.5", "alice", "judged 0.75", "bob", "judged 0.4"]


def test_events_without_reads_go_by_turns_taken():
    play = debate()
    spoken = Episode(
        play.id, play.protocol, play.task, 0, tuple(t for t in play.turns if not t.read), play.outcome
    )
    order = [
        event.turn.seat if event.turn else f"judged {event.judgment.scores[0]}"
        for event in transcript.events(spoken)
    ]
    assert order == ["judged 0.5", "alice", "judged 0.75", "bob", "judged 0.4"]


def test_a_judge_s_reasons_are_no_illegal_move():
    reasons = Turn("judge", "judge", "j", 0, "judge", (), "Because.\nA", ("A", "B"))
    assert transcript.legal(reasons)
    assert not transcript.legal(Turn("bob", "debater", "p", 0, "reveal", (), "r9c9=9", ("r1c1=2",)))


def test_a_growing_chat_is_one_view_and_a_fresh_one_another():
    said = Turn("a", "r", "p", 0, "", (Message("user", "one"),), "x")
    grown = Turn(
        "a", "r", "p", 1, "", (Message("user", "one"), Message("assistant", "x"), Message("user", "two")), "y"
    )
    fresh = Turn("a", "r", "p", 2, "", (Message("user", "anew"),), "z", fresh=True)
    play = Episode("e", "debate", Task("t", "q"), 0, (said, grown, fresh), Outcome())
    views = [[message.text for message in chat] for chat in transcript.chats(play, "a")]
    assert views == [["one", "x", "two", "y"], ["anew", "z"]]


def interval(mean):
    return {"mean": mean, "low": mean - 0.02, "high": mean + 0.02, "n": 500}


def debate(text="r1c1=2"):
    """Two reveals, the second not legal; the judge is read in both orders before and after each."""
    task = Task("t", "Which digit?", answer="8", choices=("8", "3"), evidence=("r1c1=2", "r2c2=1"))
    beliefs = (0.5, 0.75, 0.4)
    turns = []
    for poll, _ in enumerate(beliefs):
        for order in range(2):
            turns.append(Turn("judge", "judge", "j", 2 * poll + order, "", (Message("user", "A or B"),), "A",
                              ("A", "B"), (0.5, 0.5), read=True, fresh=True))  # fmt: skip
        if poll == 0:
            turns.append(
                Turn("alice", "debater", "p", 0, "", (Message("user", "go"),), text, (text, "r2c2=1"))
            )
        if poll == 1:
            turns.append(Turn("bob", "debater", "p", 0, "", (Message("user", "go"),), "r9c9=9", ("r2c2=1",)))
    judgments = tuple(Judgment("judge", (p, 1 - p), True, i) for i, p in enumerate(beliefs))
    rewards = (Reward("alice", 0, 0.25, "belief_change"), Reward("bob", 0, 0.35, "belief_change"))
    return Episode(
        "e1", "debate", task, 0, tuple(turns), Outcome("ok", judgments, rewards, 0.0), meta={"arm": "trained"}
    )
