"""The report and replay, from files alone."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from rich.console import Console

from actors.rollout.ledger import Ledger
from protocols.types import Episode, Hidden, Judgment, Message, Outcome, Reward, Task, Turn
from reporting import replay
from reporting.report import charts, curves as report_curves, page as report, plays as report_plays

EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&$x_{$"
IMAGE = ("r0c0=1", "r1c3=2", "r7c7=3")


def play(
    id, score=1.0, arm=None, parent=None, status="ok", text="r1c3=2", evidence=IMAGE, question="Which digit?"
):
    task = Task("image-1/8-3", question, answer="8", choices=("8", "3"), evidence=evidence,
                hidden={"image": Hidden(" ".join(evidence), ("debater",))}, parent="image-1")  # fmt: skip
    reveal = Turn(
        "alice", "debater", "player", 0, "reveal", (Message("user", "your image " + EVIL),), text, evidence
    )
    again = Turn(
        "bob", "debater", "player", 0, "reveal", (Message("user", "your image"),), "r7c7=3", evidence
    )
    reads = tuple(
        Turn(
            "judge",
            "judge",
            "judge",
            n,
            "",
            (Message("user", f"poll {n}"),),
            "A",
            ("A", "B"),
            probs,
            read=True,
            fresh=True,
        )
        for n, probs in enumerate([(0.5, 0.5), (0.5, 0.5), (0.8, 0.2), (0.3, 0.7), (0.9, 0.1), (0.2, 0.8)])
    )
    judgments = tuple(Judgment("judge", (p, 1 - p), True, n) for n, p in enumerate((0.5, 0.75, 0.85)))
    turns = (*reads[:2], reveal, *reads[2:4], again, *reads[4:])
    outcome = Outcome(
        status, judgments, (Reward("alice", 0, 0.75, "belief_change"),), score, reason="engine died"
    )
    return Episode(
        id, "debate", task, 1, turns, outcome, parent, {"arm": arm} if arm else {"stage": "selfplay"}
    )


def write(folder, episodes=(), metrics=(), summary=None):
    ledger = Ledger(folder)
    for episode in episodes:
        ledger.commit(episode.id, [episode])
    ledger.close()
    lines = [
        json.dumps({"time": 1.0, "kind": kind, "step": step, "values": values})
        for kind, step, values in metrics
    ]
    (folder / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    if summary is not None:
        (folder / "summary.json").write_text(json.dumps(summary))
    return report.write_report(folder).read_text()


class Page(HTMLParser):
    """Tags and attributes of a page, and whether every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


SUMMARY = {
    "scores": {"trained": "judge is right", "untrained": "judge is right", "minimax_ceiling": "judge is right"},
    "name": "pixel demo",
    "judge_accuracy": {
        "untrained": {"mean": 0.8, "low": 0.76, "high": 0.84, "n": 500},
        "trained": {"mean": 0.92, "low": 0.9, "high": 0.94, "n": 500},
        "minimax_ceiling": {"mean": 0.96, "low": 0.95, "high": 0.97, "n": 600},
    },
    "wall_s": 65.0,
    "episodes": 20480,
    "seed": 3,
}


def test_whole_page(tmp_path):
    metrics = [
        ("learner/player", step, {"kl": 0.01, "entropy/debater": 3 - step / 10, "odd": 1.0})
        for step in range(5)
    ]
    metrics += [
        ("rollout/selfplay", 1, {"score": 0.8}),
        ("sync/player", 1, {"seconds": 0.1}),
        ("eval/small", 1, {"score": 0.9}),
    ]
    text = write(
        tmp_path,
        [play("trained-0", 1.0, "trained"), play("trained-1", 0.0, "trained"), play("s-0")],
        metrics,
        SUMMARY,
    )
    page = Page(text)
    assert page.open == []
    for words in (
        "80.0% → 92.0%",
        "+12.0%",
        "75%",
        "n = 500 to 600 each",
        "1 min 05 s",
        "20,480 episodes",
        "seed 3",
    ):
        assert words in text
    for heading in (
        "Judge is right",
        "Judge",
        "Play",
        "Learning",
        "System",
        "Sample plays",
        "Other figures",
    ):
        assert f"<h2>{heading}</h2>" in text
    assert "truth won" in text
    assert "truth lost" in text
    assert "learner/player/odd" in text  # on no picture, so in the table
    assert "learner/player/kl" not in text


def test_the_only_role_of_a_policy_is_drawn_once():
    curve = [(0.0, 3.0), (1.0, 2.0)]
    same, other = [(0.0, 3.0 + 1e-7), (1.0, 2.0)], [(0.0, 3.0), (1.0, 1.9)]
    policy = {("learner/a", "entropy"): curve, ("learner/b", "entropy"): other}
    assert set(report_curves.labelled(report_curves.without_echoes(policy))) == {"a", "b"}
    only = {**policy, ("learner/a", "entropy/a"): same}
    assert report_curves.without_echoes(only) == policy
    several = {**only, ("learner/b", "entropy/debater"): curve}
    assert report_curves.without_echoes(several).keys() == {*policy, ("learner/b", "entropy/debater")}


def test_held_out_figures_stand_at_the_step_they_come_after(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(charts, "lines", lambda curves, points=None, salt="", **_: drawn.update({salt: points}) or "")
    steps = [("rollout/main", step, {"score": 0.5}) for step in range(1, 5)]
    held_out = [("eval/small", 18, {"score": 0.6}), ("eval/small", 37, {"score": 0.7})]  # three policies' updates
    write(tmp_path, metrics=[*steps[:2], held_out[0], *steps[2:], held_out[1]])
    assert drawn["Score"] == {"held-out small": [(2, 0.6), (4, 0.7)]}


def test_self_contained(tmp_path):
    page = Page(
        write(tmp_path, [play("trained-0", 1.0, "trained")], [("learner/p", 1, {"kl": 0.1})], SUMMARY)
    )
    assert not {"script", "link", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href"):
                assert value.startswith(("#", "data:")), (tag, value)


def test_nothing_a_seat_says_becomes_markup(tmp_path):
    hostile = play("trained-0", 1.0, "trained", text=EVIL, question=EVIL, evidence=(*IMAGE, EVIL))
    metrics = [(f"learner/{EVIL}", 1, {f"kl/{EVIL}": 0.1, EVIL: 0.2}), ("learner/a$b$c", 1, {"kl": 0.1})]
    summary = {
        **SUMMARY,
        "name": EVIL,
        "judge_accuracy": {EVIL: {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 10}},
    }
    page = Page(write(tmp_path, [hostile], metrics, summary))
    assert page.open == []
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_an_empty_run_is_still_a_page(tmp_path):
    text = report.write_report(tmp_path).read_text()
    assert tmp_path.name in text
    assert Page(text).open == []


def test_accuracy_by_length(tmp_path):
    by_length = {"warm_start": {"2": 0.9, "10": 0.1}, "trained": {"2": {"mean": 1.0}, "10": {"mean": 0.5}}}
    arms = {"warm_start": {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 100}}
    text = write(tmp_path, summary={"accuracy_by_length": by_length, "accuracy": arms})
    rows = re.findall(r"<tr>(<td>.*?)</tr>", text)
    assert [re.findall(r"<td>(.*?)</td>", row) for row in rows] == [
        ["warm start", "0.90", "0.10", "0.50"],
        ["trained", "1.00", "0.50", "0.75"],
    ]
    assert "<h2>Score</h2>" in text
    assert "<h2>Judge</h2>" not in text


def test_solve_rates_of_proposals(tmp_path):
    ledger = Ledger(tmp_path)
    for root in range(30):
        kids = [play(f"p-{root}/{n}", float(n < root // 4), parent=f"p-{root}") for n in range(8)]
        ledger.commit(f"p-{root}", [play(f"p-{root}"), *kids])
    ledger.close()
    assert "Solve rate of proposals" in report.write_report(tmp_path).read_text()


def test_sample_plays_show_both_outcomes():
    plays = [play(f"trained-{n}", float(n < 8), "trained") for n in range(10)] + [
        play("untrained-0", 1.0, "untrained")
    ]
    from actors.rollout import records

    heads = {head.id: head for head in map(records.decode_head, records.encode(plays).splitlines())}
    arms = {"untrained": ["untrained-0"], "trained": [f"trained-{n}" for n in range(10)]}
    assert report_plays.choose(heads, arms, {}) == ["trained-0", "trained-8", "untrained-0"]


# ---- pictures ----------------------------------------------------------------------------------------


def test_pixels_mark_the_reveals_in_order():
    image = ElementTree.fromstring(charts.pixels(play("e"), {"alice": "#a11ce0", "bob": "#b0b000"}))
    rects = [entry.attrib for entry in image if entry.tag == "rect"]
    assert len(rects) == 1 + 3 + 2
    assert [entry["fill"] for entry in rects[-2:]] == ["#a11ce0", "#b0b000"]
    cell = 176 / 8
    assert [
        (round(float(entry["x"]) / cell, 1), round(float(entry["y"]) / cell, 1)) for entry in rects[-2:]
    ] == [(3.0, 1.0), (7.0, 7.0)]
    assert [entry.text for entry in image if entry.tag == "text"] == ["1", "2"]
    shades = [int(re.findall(r"\d+", entry["fill"])[0]) for entry in rects[1:4]]
    assert shades == sorted(shades)
    assert shades[0] < shades[2]


def test_other_evidence_is_no_image():
    assert charts.pixels(play("e", evidence=("r0c0=1", "the cat sat")), {}) == ""
    assert charts.pixels(play("e", evidence=()), {}) == ""


def test_charts_are_wellformed_with_missing_values():
    for picture in (
        charts.lines(
            {"a": [(0, 1.0), (1, float("nan")), (2, 2.0)], "b": [(0, 0.0)]}, points={"c": [(1, 0.5)]}
        ),
        charts.bars(SUMMARY["judge_accuracy"], {"mean": 0.9}, {}),
        charts.histogram({"": [0.1, 0.5]}),
        charts.spark([1.0, float("nan"), 3.0]),
    ):
        ElementTree.fromstring(re.sub(r"xlink:", "", picture))


def test_running_mean_leaves_out_what_is_missing():
    import numpy as np

    smooth = charts.running_mean(np.array([1.0, np.nan, 3.0, 5.0]), 1)
    assert smooth == pytest.approx([1.0, 2.0, 4.0, 4.0])


def test_rates_follow_from_counts():
    found = report_curves.with_rates(
        {"tokens": 300.0, "step_s": 2.0, "groups": 8.0, "zero_variance_groups": 2.0}
    )
    assert (found["tokens_per_s"], found["zero_variance_share"]) == (150.0, 0.25)
    assert "episodes_per_s" not in found
    assert "tokens_per_s" not in report_curves.with_rates({"tokens": 1.0, "step_s": 0.0})


def test_curves_are_chosen_by_kind_and_part_of_the_name():
    metrics = {
        ("learner/player", "kl"): [(0, 1.0)],
        ("learner/player", "kl/debater"): [(0, 1.0)],
        ("learner/player", "klx"): [(0, 1.0)],
        ("rollout/s", "kl"): [(0, 1.0)],
        ("learner/other", "kl"): [(0, float("nan"))],
    }
    found = report_curves.select(metrics, "learner", "kl")
    assert list(found) == [("learner/player", "kl"), ("learner/player", "kl/debater")]


# ---- replay ------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    ledger = Ledger(tmp_path)
    for number in range(20):
        ledger.commit(f"selfplay-{number}", [play(f"selfplay-{number}")])
    ledger.commit("root-1", [play("root-1"), play("root-1/0", 0.0, parent="root-1")])
    ledger.commit("gone", [play("gone", status="lost")])
    ledger.close()
    return tmp_path


def shown(run, *arguments):
    out = io.StringIO()
    replay.show(run, *arguments, console=Console(file=out, width=110, highlight=False))
    return out.getvalue()


def test_replay_shows_every_view_of_one_episode(run):
    text = shown(run, "root-1/0", None)
    assert text.startswith("root-1/0")
    for words in ("score 0", "alice (debater, played by player) sees", "bob (debater", "judge (judge", "poll 5",
                  "8 85%", "alice  turn 0  belief_change +0.750", "parent=root-1"):  # fmt: skip
        assert words in text


def test_replay_of_one_seat_shows_only_that_seat(run):
    text = shown(run, "selfplay-3", "bob")
    assert "bob (debater" in text
    assert "alice" not in text
    assert "poll" not in text


def test_replay_without_an_id_lists_and_shows_the_newest(run):
    text = shown(run, None, None)
    assert re.search(r"debate +22 +0 +1 +0\.95", text)
    assert "selfplay-19" in text
    assert "root-1/0  debate" in text


def test_an_unknown_episode_names_near_ones(run):
    with pytest.raises(ValueError, match="selfplay-1") as caught:
        shown(run, "selfplay-111", None)
    assert isinstance(caught.value, replay.UnknownEpisode)
    with pytest.raises(ValueError, match="root-1"):
        shown(run, "rot-1", None)


def test_an_unknown_seat_names_the_seats(run):
    with pytest.raises(ValueError, match="alice, bob"):
        shown(run, "selfplay-1", "carol")


def test_a_retried_play_is_shown_as_it_ended(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.commit("a", [play("a", status="lost")])
    ledger.commit("a", [play("a", 0.0)])
    ledger.close()
    assert replay.find(tmp_path / "episodes.jsonl", "a").status == "ok"


def test_not_a_run_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"episodes\.jsonl"):
        shown(tmp_path, None, None)


def test_errors_survive_pickling():
    import pickle

    error = pickle.loads(pickle.dumps(replay.UnknownEpisode("a", ["b"])))
    assert str(error) == "no episode 'a'; near it: b"


def test_held_out_judges_have_a_table_of_their_own(tmp_path):
    auditor = Judgment("auditor", (0.4, 0.6), True, 2, decides=False)
    plays = []
    for number in range(3):
        one = play(f"trained-{number}", arm="trained")
        outcome = replace(one.outcome, judgments=(auditor, *one.outcome.judgments))
        plays.append(replace(one, outcome=outcome))
    text = write(tmp_path, plays)
    assert "believes the truth less by" in text and "auditor" in text
    assert "+0.450" in text, "0.85 of the judge who decides, 0.40 of the auditor"
    (tmp_path / "without").mkdir()
    assert "beside it" not in write(tmp_path / "without", [play("trained-0", arm="trained")])
