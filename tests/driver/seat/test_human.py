"""A person at the terminal: sees the seat's own view, plays legal moves, is recorded as human."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

import launch
from actors.players.base import ScriptedPlayer, Seated
from actors.rollout import records
from actors.rollout.runner import run_play
from configs.load import load, load_protocol
from driver.seat.human import HumanPlayer, Left, Lines, read_percent
from driver.seat.play import others
from protocols.judges.grading import GradeRules, read_grades
from protocols.types import Episode, Hidden, Message, Reply, Task, TurnRequest

ROOT = Path(__file__).resolve().parents[3]
PROTOCOLS = ROOT / "configs" / "protocol"
ASK = TurnRequest(
    "alice", "debater", (Message("system", "Be brief."), Message("user", "Pick.")), 0, phase="talk"
)
EVIDENCE = ("r0c3=2", "r1c5=4", "r2c2=1", "r3c3=3", "r4c4=2")


def person(lines: Iterable[str]) -> tuple[HumanPlayer, list[str]]:
    """A player who is typed for by `lines`, and what is shown."""
    typed, shown = iter(lines), []

    async def line() -> str:
        try:
            return next(typed)
        except StopIteration:
            raise Left from None

    return HumanPlayer(line, shown.append), shown


def answer(lines: list[str], **changes: object) -> tuple[Reply, list[str]]:
    player, shown = person(lines)
    return asyncio.run(player(replace(ASK, **changes), ())), shown  # type: ignore[arg-type]


def test_moves_by_text_or_number_and_nothing_else() -> None:
    choices = ("7", "3", "#1")
    for typed, said in [("7", "7"), ("#2", "3"), ("#1", "#1"), (" 3 ", "3")]:
        assert answer([typed], choices=choices)[0] == Reply(said), "a text comes before a number"
    reply, shown = answer(["1", "#0", "#4", "", "#3"], choices=choices)
    assert reply == Reply("#1") and sum("is not legal" in text for text in shown) == 4
    listed = next(text for text in shown if text.startswith("[legal here"))
    assert all(f"#{n} {choice}" in listed for n, choice in enumerate(choices, 1))


def test_what_the_protocol_verifies_may_be_typed_freely() -> None:
    assert answer(["", "nonsense"], choices=("7",), enforce=False)[0] == Reply("nonsense")


def test_speeches_end_with_an_empty_line_or_the_end_of_input() -> None:
    assert answer(["", "one", "two", "", "three"])[0].text == "one\ntwo"
    assert answer(["one"])[0].text == "one"
    with pytest.raises(Left):
        answer([])


def test_a_verdict_is_what_the_person_says_it_is() -> None:
    reply, shown = answer(["A", "70", "70 40", "-10 110", "25% 75"], choices=("A", "B"), read=True)
    assert reply == Reply("B", (0.25, 0.75)) and sum("that sum to 100" in text for text in shown) == 4
    assert read_percent("33 33 33", 3) == pytest.approx((1 / 3,) * 3)
    assert read_percent("nan 50", 2) is None and read_percent("inf 0", 2) is None


def test_a_graded_verdict_is_asked_for_one_number_at_a_time() -> None:
    scales = (("ann", 1.0, 5.0), ("ben", 0.0, 1.0))
    reply, shown = answer(["", "6", "nan", "good", "4", "-1", "0.25"], grades=scales, phase="judge")
    assert reply.text == '{"ann": 4, "ben": 0.25}'
    assert [text for text in shown if "your grade" in text] == [
        "[your grade of ann: a number from 1 to 5]", "[your grade of ben: a number from 0 to 1]"]  # fmt: skip
    assert sum("is no grade: a number from 1 to 5" in text for text in shown) == 4
    assert sum("is no grade: a number from 0 to 1" in text for text in shown) == 1
    assert read_grades(reply, ("ben", "ann"), GradeRules(min=0, max=5)) == pytest.approx((0.05, 0.8))


def test_a_written_vote_is_one_of_the_labels() -> None:
    ask = {"choices": ("A", "B"), "enforce": False, "phase": "judge"}
    reply, shown = answer(["because", "", "C", "#2"], **ask)
    assert reply == Reply("B") and sum("is not legal" in text for text in shown) == 3


@pytest.mark.parametrize(("judge", "typed_in", "score", "scores"), [
    ("grade: {min: 1, max: 5}, orders: given", "7\n5\n\n3\n", None, (2 / 3, 1 / 3)),
    ("grade: {of: seats, seats: [ann], min: 1, max: 5}, orders: given", "x\n2\n", None, (0.25,)),
    ("votes: 1, orders: both", "maybe\nA\n#1\n", 0.5, (0.5, 0.5)),
    ("orders: given", "120 10\n90 10\n", 0.0, (0.9, 0.1)),
])  # fmt: skip
def test_a_person_judges(
    judge: str, typed_in: str, score: float | None, scores: tuple[float, ...], tmp_path: Path
) -> None:
    (tmp_path / "p.yaml").write_text(
        "kind: phased\nseats: {ann: writer, jay: judge}\nprompts: {writer: {opening: '{{ question }}'}}\n"
        "phases: [{name: talk, seats: [ann]}]\n"
        f"judge: {{seat: jay, view: transcript, when: end, prompt: '{{{{ transcript }}}}', {judge}}}\n"
    )
    own = ["--question", "Why?", "--choice", "yes", "--choice", "no", "--answer", "no", "--out", "r"]
    done = typed(f"So.\n\n{typed_in}", "p.yaml", "--as", "ann", "--as", "jay", *own, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [episode] = episodes(tmp_path / "r")
    assert episode.outcome.status == "ok" and episode.outcome.judgments[-1].scores == pytest.approx(scores)
    assert {turn.policy for turn in episode.turns} == {"human"}
    assert score is None or episode.outcome.score == score


@given(st.text())
def test_percentages_are_read_or_refused(said: str) -> None:
    probs = read_percent(said, 2)
    assert probs is None or sum(probs) == pytest.approx(1.0)


def test_control_characters_cannot_reach_the_terminal() -> None:
    _, shown = answer(["x"], messages=(Message("user", "\x1b[2Jgone"),))
    assert "\x1b" not in "".join(shown) and "\\x1b[2Jgone" in "".join(shown)


def task() -> Task:
    return Task("t", "", "7", ("3", "7"), EVIDENCE, {"image": Hidden(" ".join(EVIDENCE), ("debater",))})


def test_the_person_sees_the_seats_own_chat_each_message_once_and_no_one_elses() -> None:
    player, shown = person(["#1", "#1"])
    seats = {"alice": Seated("human", player)}
    other = Seated("script", ScriptedPlayer(lambda r: Reply("3", (0.5, 0.5)) if r.read else r.choices[-1]))
    protocol = load_protocol(PROTOCOLS / "pixel_debate.yaml")
    [episode] = asyncio.run(
        run_play(protocol, task(), 0, {"debater": other, "judge": other}, "p", seats=seats)
    )
    assert {(turn.seat, turn.policy) for turn in episode.turns} == {
        ("alice", "human"), ("bob", "script"), ("judge", "script")}  # fmt: skip
    told = [text for text in shown if not text.startswith(("[", "\n---"))]
    own = [turn for turn in episode.turns if turn.seat == "alice"]
    assert told == [message.text for message in own[-1].messages if message.speaker == "user"]
    assert told[1] == "they r4c4=2" and [turn.text for turn in own] == ["r0c3=2", "r1c5=4"]


def test_lines_of_files_and_pipes(tmp_path: Path) -> None:
    async def all_lines(descriptor: int) -> list[str]:
        lines, found = Lines(descriptor), []
        while True:
            try:
                found.append(await lines())
            except Left:
                return found

    (tmp_path / "typed").write_bytes("a\r\n\nüb\xff".encode() + b"\xff\nlast")
    with (tmp_path / "typed").open() as file:
        assert asyncio.run(all_lines(file.fileno())) == ["a", "", "üb\xff\ufffd", "last"]
    read, write = os.pipe()
    os.write(write, b"one\ntw")
    os.write(write, b"o\n")
    os.close(write)
    assert asyncio.run(all_lines(read)) == ["one", "two"]
    os.close(read)


def command(*args: str | Path) -> list[str]:
    return [sys.executable, str(ROOT / "launch.py"), "play", *map(str, args)]


def typed(text: str, *args: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*args), input=text, cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


def episodes(folder: Path) -> list[Episode]:
    return [records.decode_line(line) for line in (folder / "episodes.jsonl").read_bytes().splitlines()]


def test_a_play_at_the_terminal_is_recorded_as_human(tmp_path: Path) -> None:
    config = ROOT / "configs" / "pixel_debate.yaml"
    for number in (1, 2):
        done = typed("#1\n#2\n", "debate", "--as", "alice", "--config", config, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"replay runs/human human-{number}" in done.stdout and "judge believes" in done.stdout
    first, second = episodes(tmp_path / "runs" / "human")
    assert [turn.policy for turn in first.turns if turn.seat == "alice"] == ["human", "human"]
    assert {turn.policy for turn in first.turns if turn.seat != "alice"} == {"uniform"}
    assert first.task.id != second.task.id or first.seed != second.seed


def test_several_seats_and_a_task_of_ones_own(tmp_path: Path) -> None:
    speech = "I say so.\n\n"
    seats = ["--as", "alice", "--as", "bob", "--as", "judge"]
    own = ["--question", "Is it raining?", "--choice", "yes", "--choice", "no", "--answer", "no"]
    done = typed(
        speech * 4 + "20 80\n80 20\n", PROTOCOLS / "debate.yaml", *seats, *own, "--out", "r", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    [episode] = episodes(tmp_path / "r")
    assert {turn.policy for turn in episode.turns} == {"human"}
    assert episode.outcome.score == 1.0 and episode.outcome.judgments[-1].scores == pytest.approx((0.2, 0.8))
    assert "Question: Is it raining?" in done.stdout


def test_ctrl_d_leaves_and_records_nothing(tmp_path: Path) -> None:
    done = typed("#1\n", PROTOCOLS / "pixel_debate.yaml", "--as", "bob", "--out", "r", cwd=tmp_path)
    assert done.returncode == 130 and done.stderr == "\nleft; nothing is recorded\n"
    assert episodes(tmp_path / "r") == []


def test_ctrl_c_leaves_and_records_nothing(tmp_path: Path) -> None:
    args = command(PROTOCOLS / "pixel_debate.yaml", "--as", "bob", "--out", tmp_path / "r")
    pipe = subprocess.PIPE
    with subprocess.Popen(args, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        while "legal here" not in process.stdout.readline():
            assert process.poll() is None
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    # The signal and the end of the input that follows it are told apart by whichever is noticed first.
    assert process.returncode == 130 and "Traceback" not in errors
    assert "interrupted" in errors or "nothing is recorded" in errors
    assert episodes(tmp_path / "r") == []


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["debate", "--as", "alice"], "there is no protocol 'debate': name a YAML file"),
        (
            [str(PROTOCOLS / "debate.yaml"), "--as", "eve"],
            "no seat 'eve' in debate; valid: alice, bob, judge",
        ),
        ([str(PROTOCOLS / "debate.yaml"), "--as", "judge"], "'alice' is asked for free text"),
        (
            [
                str(PROTOCOLS / "pixel_debate.yaml"),
                "--as",
                "bob",
                "--choice",
                "a",
                "--choice",
                "b",
                "--answer",
                "c",
            ],
            "--answer 'c' is none of the choices: a, b",
        ),
    ],
)
def test_what_cannot_be_played_is_said_at_once(
    args: list[str],
    says: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert launch.main(["play", *args]) == 2
    assert says in capsys.readouterr().err


def test_opponents_are_the_remote_policies_of_the_config(tmp_path: Path) -> None:
    remote = "{kind: remote, remote: {url: 'http://localhost:1/v1', model: m}}"
    text = f"tasks: {{kind: pixels}}\nprotocols: {{debate: {PROTOCOLS}/pixel_debate.yaml}}\n"
    text += f"policies: {{debater: {remote}, judge: {{kind: uniform}}}}\n"
    text += "eval: {arms: {trained: {protocol: debate, roles: {debater: debater, judge: judge}}}}\n"
    (tmp_path / "c.yaml").write_text(text)
    loaded = load(tmp_path / "c.yaml")
    found = others(loaded.protocols["debate"], "debate", loaded)
    assert {role: seated.policy for role, seated in found.items()} == {
        "debater": "debater",
        "judge": "uniform",
    }
    found = others(loaded.protocols["debate"], "debate", None)
    assert {seated.policy for seated in found.values()} == {"uniform"}


def test_play_imports_nothing_heavy(tmp_path: Path) -> None:
    heavy = ("torch", "ray", "vllm", "deepspeed", "transformers", "aiohttp")
    argv = ["launch.py", "play", str(PROTOCOLS / "pixel_debate.yaml"), "--as", "bob", "--out", str(tmp_path)]
    code = (
        f"import sys; sys.argv = {argv!r}; sys.path.insert(0, {str(ROOT)!r}); import launch; launch.main()\n"
        f"print('heavy:', [m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="#1\n#1\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "heavy: []"
