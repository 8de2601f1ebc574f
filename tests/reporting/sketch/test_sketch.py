"""`protocol show` and `protocol check`: of protocols whose rules are known by hand, and of broken ones."""

from __future__ import annotations

import random
import shutil
import textwrap
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

import launch
from configs.load import load_protocol
from configs.reading.raw import read_raw
from protocols.base import Play, Protocol
from protocols.contract.properties import PROPERTIES, examine
from protocols.types import Message, Outcome, Reward, Task, TurnRequest
from reporting.sketch.sketch import Step, Unplayable, sketch
from tests.contract import mutants
from tests.protocols.phased.test_phased import OUTSIDE

ROOT = Path(__file__).resolve().parents[3]
SHIPPED = ROOT / "configs" / "protocol"
COUNCIL = ROOT / "tests" / "contract" / "protocols" / "council.yaml"
FILES = sorted([*SHIPPED.glob("*.yaml"), *COUNCIL.parent.glob("*.yaml")])


def sketched(path: Path) -> dict[tuple[str, str, int], Step]:
    """(phase, seat, how many turns it had in that phase before) -> step, judges left away."""
    found: dict[tuple[str, str, int], Step] = {}
    for step in sketch(load_protocol(path), read_raw(path)).steps:
        if step.how != "judges":
            found[step.phase, step.seat, sum(key[:2] == (step.phase, step.seat) for key in found)] = step
    return found


def test_who_sees_what_in_the_council_by_hand() -> None:
    steps = sketched(COUNCIL)
    assert steps["think", "ann", 0].seen == {"ben": False, "cid": False, "jay": False}, "visible_to: []"
    assert steps["whisper", "cid", 0].seen == {"ann": True, "ben": False, "jay": False}
    assert steps["plan", "ben", 0].seen == {"ann": True, "cid": False, "jay": False}
    assert steps["speak", "ann", 1].seen == {"ben": True, "cid": True, "jay": True}
    assert steps["show", "cid", 0].seen == {"ann": True, "ben": None, "jay": True}, "ben is not asked again"
    assert steps["note", "ann", 0].seen == {"ben": None, "cid": False, "jay": True}
    assert steps["vote", "cid", 0].seen == {"ann": None, "ben": None, "jay": True}, "a pick that has no mark"
    assert {steps["think", seat, 0].number for seat in ("ann", "ben", "cid")} == {"2"}, "after the first poll"
    assert steps["plan", "ben", 0].number != steps["plan", "ann", 0].number


def test_material_and_work_of_a_debate_by_hand() -> None:
    found = sketch(load_protocol(SHIPPED / "pixel_debate.yaml"), read_raw(SHIPPED / "pixel_debate.yaml"))
    assert found.material["hidden image"] == {"alice": True, "bob": True, "judge": False}
    assert found.material["claims"] == {"alice": True, "bob": True, "judge": True}
    assert "nobody" not in " ".join(found.material)
    assert {role: load.turns for role, load in found.loads.items()} == {"judge": 10, "debater": 4}
    assert found.loads["judge"].prompt == found.loads["judge"].fresh, "each reading is a fresh chat"
    assert found.loads["debater"].fresh < found.loads["debater"].prompt
    debate = sketch(load_protocol(SHIPPED / "debate.yaml"), read_raw(SHIPPED / "debate.yaml"))
    assert debate.loads["debater"].written == 4 * 200, "four turns of max_tokens: 200"


def test_one_sub_play_stands_for_all_and_sees_the_proposal() -> None:
    path = SHIPPED / "pixel_proposed.yaml"
    found = sketch(load_protocol(path), read_raw(path))
    assert [step.number for step in found.steps[:4]] == ["1", "2.1", "2.1", "2.2"]
    assert {step.fork for step in found.steps[1:]} == {8} and found.steps[0].fork == 1
    assert found.steps[0].seen == {"alice": True, "bob": True, "judge": True}, (
        "the proposal is one of the claims"
    )
    assert found.loads["judge"].turns == 80


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_protocol_can_be_shown_and_keeps_its_promises(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "out" / "p.svg"
    assert launch.main(["protocol", "show", str(path), "--svg", str(picture)]) == 0
    out = capsys.readouterr().out
    assert all(seat in out for seat in load_protocol(path).roles())
    rings = ET.fromstring(picture.read_text()).findall(".//{*}circle")
    steps = sketch(load_protocol(path), read_raw(path)).steps
    assert len(rings) == len(steps) + sum(seen is True for step in steps for seen in step.seen.values())
    assert launch.main(["protocol", "check", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(PROPERTIES) and all(line.startswith(("holds", "-")) for line in lines), lines
    assert sum(line.startswith("holds") for line in lines) >= 9


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A protocol that only its author knows, of a file that extends another, in another folder."""
    (tmp_path / "drafts").mkdir()
    (tmp_path / "drafts" / "base.yaml").write_text(textwrap.dedent(OUTSIDE))
    own = tmp_path / "own.yaml"
    own.write_text("extends: drafts/base.yaml\njudge: {combine: majority, max_tokens: 100}\n")
    return own


def test_an_own_protocol_by_hand(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, steps = sketch(load_protocol(own), read_raw(own)), sketched(own)
    assert found.drawn, "closings are shuffled"
    team = {"ann", "ben"}
    for seat in team:
        (mate,) = team - {seat}
        assert steps["strategy", seat, 1].seen == {s: s == mate for s in found.seats if s != seat}
    opening = steps["open", "cid", 0]
    assert opening.seen == dict.fromkeys(opening.seen, True)
    assert opening.parts == dict.fromkeys(opening.seen, ("argument",)), "and nobody the thoughts"
    assert steps["strategy", "ann", 0].parts == {}
    assert {key for key, step in steps.items() if step.ends} == {("cross", "eve", i) for i in range(3)}
    judged = [(step.seat, step.number) for step in found.steps if step.how == "judges"]
    assert judged == [(seat, "17") for seat in ("j1", "j2", "j3") for _ in range(4)], "two orders, two votes"
    assert {role: load.turns for role, load in found.loads.items()} == {
        "debater": 4 + 3 + 6 + 2, "examiner": 3, "strict": 4, "mild": 8}  # fmt: skip
    assert found.loads["strict"].written == 4 * 100, "reasons as long as they may be"
    assert launch.main(["protocol", "show", str(own)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "may end" in out and "drawn for each play" in out and "of a reply written in parts" in out
    assert launch.main(["protocol", "check", str(own)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("-")] == ["cards", "sides", "commitments"]


def test_long_replies_keep_their_parts(own: Path) -> None:
    """Where they did not, everyone would be sent `rejected`, which is short."""
    protocol, raw = load_protocol(own), read_raw(own)
    short = replace(protocol, phases=[replace(p, max_words=1) for p in protocol.phases])  # type: ignore[attr-defined]
    assert sketch(short, raw).loads["strict"].prompt < sketch(protocol, raw).loads["strict"].prompt / 2


def test_names_cannot_break_the_picture_or_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (SHIPPED / "solve.yaml").read_text() + 'seat: "<b>[red]&"\nname: "<script>"\n'
    (tmp_path / "odd.yaml").write_text(text)
    assert (
        launch.main(["protocol", "show", str(tmp_path / "odd.yaml"), "--svg", str(tmp_path / "odd.svg")]) == 0
    )
    assert "<b>[red]&" in capsys.readouterr().out
    texts = [node.text for node in ET.fromstring((tmp_path / "odd.svg").read_text()).findall(".//{*}text")]
    assert "<script>" in texts and "<b>[red]&" in texts


def failing(protocol: Protocol, raw: Mapping[str, object]) -> set[str]:
    return {
        finding.property.name for finding in examine(protocol, raw, seeds=range(3)) if finding.holds is False
    }


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("hidden_from_nobody", "hidden"),
        ("answer_in_the_prompt", "answer"),
        ("verdict_from_a_bad_parse", "missing data"),
        ("inbox_not_cleared", "once"),
        ("one_side_paid_double", "zero-sum"),
        ("side_in_the_judges_view", "sides"),
        ("public_scratchpad", "as written"),
        ("same_round_leak", "as written"),
        ("missing_data_scores_zero", "missing data"),
        ("no_vote_is_an_outcome", "missing data"),
        ("private_part_shown", "private"),
        ("never_shuffled", "speakers"),
        ("order_not_drawn", "speakers"),
        ("shown_the_cards_of_another_too", "cards"),
        ("hard_limit_forgotten", "as written"),
        ("retries_without_a_budget", "as written"),
        ("majority_is_the_first_label", "as written"),
    ],
)
def test_a_seeded_fault_is_named_by_its_property(fault: str, name: str) -> None:
    path = mutants.MUTANTS[fault][0]
    protocol, raw = load_protocol(path), read_raw(path)
    with mutants.seeded(fault):
        assert name in failing(protocol, raw)


@dataclass(frozen=True)
class Odd(Protocol):
    """A kind of its own, with one fault by `fault`."""

    kind: ClassVar[str] = "odd"
    fault: str = ""
    name: str = "odd"

    def play(self, task: Task, rng: random.Random) -> Play:
        draw = random.random() if self.fault == "repeatable" else 0.5
        chat = (Message("user", f"{task.question} {draw}"),)
        if self.fault == "raises":
            raise RuntimeError("dropped")
        first = (yield [TurnRequest("ann", "speaker", chat, 0)])[0]
        while self.fault == "ends":
            yield [TurnRequest("ann", "speaker", chat, 0, fresh=True)]
        again = chat if self.fault == "chats" else (
            *chat, Message("assistant", first.text), Message("user", "go on"))  # type: ignore[union-attr]  # fmt: skip
        yield [TurnRequest("eve" if self.fault == "seats" else "ann", "speaker", again, 1)]
        paid = float("nan") if self.fault == "rewards" else 1.0
        return Outcome(rewards=(Reward("ann", 1, paid, "odd"),))

    def roles(self) -> Mapping[str, str]:
        return {"ann": "speaker"}

    def literal_texts(self) -> list[str]:
        return []


@pytest.mark.parametrize("fault", ["ends", "repeatable", "seats", "chats", "rewards"])
def test_a_kind_without_an_oracle_is_checked_too(fault: str) -> None:
    raw = {"kind": "odd"}
    assert failing(Odd(), raw) == set()
    assert fault in failing(Odd(fault), raw)
    assert {f.property.name for f in examine(Odd(), raw) if f.holds is None} == {
        "cards",
        "commitments",
        "private",
        "sides",
        "speakers",
        "zero-sum",
        "as written",
    }


def test_a_kind_that_raises_is_named_not_traced() -> None:
    with pytest.raises(Unplayable, match="odd cannot be played on a made-up task: RuntimeError: dropped"):
        sketch(Odd("raises"), {"kind": "odd"})
    [ends, *others] = examine(Odd("raises"), {"kind": "odd"}, seeds=[0])
    assert ends.holds is False and "RuntimeError: dropped" in ends.wrong[0]
    assert {finding.holds for finding in others} == {None}, "nothing is known of the rest"


def test_what_a_file_extends_and_plays_is_read_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "base.yaml").write_text("kind: solve\nseat: ann\nrole: pupil\nmax_tokens: 9\n")
    (tmp_path / "top.yaml").write_text(
        "kind: propose_solve\nproposals: free\nchild: {extends: deep/base.yaml, max_tokens: 5}\nrepeats: 2\n"
    )
    raw = read_raw(tmp_path / "top.yaml")
    assert raw["child"] == {"kind": "solve", "seat": "ann", "role": "pupil", "max_tokens": 5}
    assert failing(load_protocol(tmp_path / "top.yaml"), raw) == set()


def test_what_is_extended_is_read_as_the_loader_reads_it(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("kind: solve\nprompt: a {{ question }}\nmax_tokens: 9\n")
    (tmp_path / "b.yaml").write_text("kind: solve\nrole: pupil\n")
    (tmp_path / "one.yaml").write_text("kind: propose_solve\nchild: a.yaml\nrepeats: 4\n")
    (tmp_path / "two.yaml").write_text("extends: one.yaml\nchild: b.yaml\nprompt: propose ${repeats}\n")
    (tmp_path / "three.yaml").write_text("extends: [one.yaml, two.yaml]\nrepeats: 2\n")
    (tmp_path / "four.yaml").write_text("extends: one.yaml\nchild: {max_tokens: null}\n")
    raw, built = read_raw(tmp_path / "three.yaml"), load_protocol(tmp_path / "three.yaml")
    assert raw["child"] == {"kind": "solve", "role": "pupil"}, "a file replaces a file"
    assert built.child.prompt != "a {{ question }}" and built.child.role == "pupil"  # type: ignore[attr-defined]
    assert raw["prompt"] == "propose 2" == built.prompt, "filled in when all is read"  # type: ignore[attr-defined]
    assert read_raw(tmp_path / "four.yaml")["child"] == {"kind": "solve", "prompt": "a {{ question }}"}
    assert failing(load_protocol(tmp_path / "four.yaml"), read_raw(tmp_path / "four.yaml")) == set()


def test_a_judge_can_be_taken_away_from_what_is_extended(tmp_path: Path) -> None:
    text = "judge: null\nzero_sum: false\nrewards: [{name: format}]\nseats: {judge: debater}\n"
    phase = "{name: talk, seats: [alice, bob, judge], parts: {thinking: private, argument: shown}}"
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        f"extends: {SHIPPED / 'debate_sequential.yaml'}\nsides: {{judge: 1}}\n{text}phases: [{phase}]\n"
    )
    assert failing(load_protocol(mine), read_raw(mine)) == set()


def test_check_fails_with_1_and_a_bad_file_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(SHIPPED / "pixel_debate.yaml", tmp_path / "mine.yaml")
    mine = tmp_path / "mine.yaml"
    with mutants.seeded("inbox_not_cleared"):
        assert launch.main(["protocol", "check", str(mine)]) == 1
    out = capsys.readouterr().out
    assert "FAILS  once" in out and "hears the same message twice" in out and "and " in out
    mine.write_text(mine.read_text().replace("seats: [alice, bob]", "seats: [alice, bbo]"))
    for command in ("check", "show"):
        assert launch.main(["protocol", command, str(mine)]) == 2
        assert "mine.yaml:17: phases[0].seats: there is no seat 'bbo'" in capsys.readouterr().err
    assert launch.main(["protocol", "check", str(tmp_path / "none.yaml")]) == 2
