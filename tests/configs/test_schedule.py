"""When policies are updated, and configurations that would train nothing: refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from configs.load import load
from configs.machine import Machine
from configs.reading.errors import ConfigErrors
from configs.schedule import due, due_in, says
from configs.schema.run import StageConfig, UpdateConfig

PROTOCOLS = Path(__file__).resolve().parent.parent.parent / "configs" / "protocol"
LAPTOP = Machine(cpus=2, memory=16 * 2**30)


def steps(**update: int) -> list[int]:
    return [step for step in range(12) if due(UpdateConfig(**update), step)]


def test_schedules_by_hand() -> None:
    assert steps() == list(range(12))
    assert steps(every=4) == [0, 4, 8]
    assert steps(every=4, after=2) == [2, 6, 10]
    assert steps(after=9) == [9, 10, 11]
    assert steps(every=3, until=6) == [0, 3]
    assert steps(every=4, span=2, after=2, until=11) == [2, 3, 6, 7, 10]


@given(st.integers(1, 6), st.integers(1, 6))
def test_policies_that_take_turns_share_the_steps(one: int, two: int) -> None:
    first, second = UpdateConfig(one + two, one), UpdateConfig(one + two, two, one)
    for step in range(one, 40):
        assert due(first, step) != due(second, step)
    assert all(due(first, step) for step in range(one))


def test_who_is_not_named_is_always_due() -> None:
    stage = StageConfig(update={"judge": UpdateConfig(after=2)})
    assert [due_in(stage, name, step) for name in ("judge", "debater") for step in (1, 2)] == [False, True, True, True]
    assert says(UpdateConfig(4, 2, 8, 20)) == "2 of every 4 steps from 8 until 20" and says(UpdateConfig()) == ""


# -- what is refused

BASE = """\
tasks: {kind: pixels}
protocols:
  debate: PROTOCOLS/pixel_debate.yaml
  proposed: PROTOCOLS/pixel_proposed.yaml
  panel: PROTOCOLS/debate_panel.yaml
  audited: {extends: [PROTOCOLS/pixel_debate.yaml], seats: {auditor: auditor}, judge: {held_out: [auditor]}}
policies:
  judge:
    trained: true
    learner: {signal: {kind: truth, consistency: 0.5}, loss: {kind: brier}, trusted: 0.2}
  debater:
    trained: true
    learner: {advantage: {kind: grpo, group_by: [role]}}
  proposer: {trained: true, learner: {advantage: {kind: grpo, group_by: [role]}}}
stages:
  main:
    protocol: proposed
    roles: {proposer: proposer, debater: debater, judge: judge}
    steps: 10
    eval_every: 5
    eval_arm: held
    update: {judge: {every: 2, after: 4}}
eval:
  arms: {held: {protocol: debate, roles: {debater: debater, judge: judge}}}
guards:
  - {metric: learner/debater/approx_kl, above: 0.1, steps: 3, action: roll_back, times: 2}
  - {metric: rollout/main/score/debate, against: eval/held/score, above: 0.2}
track: {save_every: 2}
"""


def found(tmp_path: Path, *changes: str) -> dict[str, str]:
    """key -> the mistake there. A change is an override, or a text of the base and what replaces it, around =>."""
    text, overrides = BASE, []
    for change in changes:
        old, arrow, new = change.partition(" => ")
        if arrow:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        else:
            overrides.append(change)
    path = tmp_path / "c.yaml"
    path.write_text(text.replace("PROTOCOLS", str(PROTOCOLS)))
    try:
        load(path, overrides, machine=LAPTOP)
    except ConfigErrors as errors:
        return {error.key: str(error) for error in errors.errors}
    return {}


def test_the_base_is_sound(tmp_path: Path) -> None:
    assert found(tmp_path) == {}
    assert found(tmp_path, "stages.main.update={judge: {every: 4, span: 2}, debater: {until: 5}}") == {}


def test_without_steps_only_that_is_wrong(tmp_path: Path) -> None:
    steps = f"{MAIN}.steps"
    assert list(found(tmp_path, f"{MAIN}.update={{judge: {{every: 4}}}}", f"{steps}=-1")) == [steps]


JUDGE, MAIN = "policies.judge.learner", "stages.main"
DEBATER = "learner: {advantage: {kind: grpo, group_by: [role]}}\n  proposer"
TRUTH = "{signal: {kind: truth, consistency: 0.5}, loss: {kind: brier}, trusted: 0.2}"


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        # schedules
        ([f"{MAIN}.update={{judge: {{after: 10}}}}"], f"{MAIN}.update.judge", "would never be updated"),
        ([f"{MAIN}.update={{judge: {{after: 6, until: 6}}}}"], f"{MAIN}.update.judge", "lies before step 6"),
        ([f"{MAIN}.update={{judge: {{every: 2, span: 3}}}}"], f"{MAIN}.update.judge.span", "1 to 2"),
        ([f"{MAIN}.update={{juge: {{every: 2}}}}"], f"{MAIN}.update.juge", "proposer, debater, judge"),
        ([f"{MAIN}.update={{judge: {{every: 0}}}}"], f"{MAIN}.update.judge.every", "out of range"),
        ([f"{MAIN}.train=[debater, proposer]"], f"{MAIN}.update.judge", "is not updated in this stage"),
        (
            [f"{MAIN}.update={{judge: {{after: 1}}, debater: {{after: 2}}, proposer: {{after: 1}}}}"],
            f"{MAIN}.update", "frozen before step 1",
        ),
        # signals
        ([f"{JUDGE}.loss.kind=clip"], f"{JUDGE}.loss.kind", "log_score, brier"),
        (["policies.debater.learner.loss.kind=brier"], "policies.debater.learner.loss.kind", "{kind: truth}"),
        ([f"{TRUTH} => {{}}"], f"{MAIN}.roles", "'judge' would learn nothing: it is only asked"),
        ([f"{TRUTH} => {TRUTH[:-1]}, advantage: {{kind: rloo}}}}"], f"{JUDGE}.advantage.kind", "signal 'truth'"),
        ([f"{TRUTH} => {TRUTH[:-1]}, advantage: {{discount: 1}}}}"], f"{JUDGE}.advantage.discount", "signal 'truth'"),
        ([f"{TRUTH} => {TRUTH[:-1]}, advantage: {{group_by: []}}}}"], f"{JUDGE}.advantage.group_by", "signal 'truth'"),
        ([f"{JUDGE}.trusted=0"], f"{JUDGE}.trusted", "more than 0, at most 1"),
        (
            [f"{DEBATER} => learner: {{signal: {{kind: truth}}, loss: {{kind: brier}}}}\n  proposer"],
            f"{MAIN}.roles", "none of its roles is read",
        ),
        (
            ["policies.debater.learner.trusted=0.5"],
            "policies.debater.learner.trusted", "learns from no right answers",
        ),
        (["protocols.proposed.child.judge={orders: given}"], f"{JUDGE}.signal.consistency", "one order only"),
        (["protocols.proposed.rewards=[]"], f"{MAIN}.roles", "'proposer' would learn nothing: no reward"),
        (
            ["protocols.debate.rewards=[{name: right_verdict}]"],
            "protocols.debate.rewards[0].name", "judge.votes: 1 or more",
        ),
        # judges held out
        (
            ["eval.arms.held={protocol: audited, roles: {debater: debater, judge: judge, auditor: judge}}"],
            "eval.arms.held.roles.auditor", "it measures nothing",
        ),
        # guards
        (["guards=[{metric: learner/debater/approx_kl}]"], "guards[0]", "has no bound"),
        (["guards=[{metric: learner/debater/approx_kl, above: 0, below: 1}]"], "guards[0].above", "always sound"),
        (["guards=[{metric: learner/debatr/approx_kl, above: 1}]"], "guards[0].metric", "no updated policy 'debatr'"),
        (["guards=[{metric: approx_kl, above: 1}]"], "guards[0].metric", "learner/POLICY/NAME"),
        (["guards=[{metric: rollout/main, above: 1}]"], "guards[0].metric", "names no figure"),
        (["guards=[{above: 1}]"], "guards[0].metric", "names no figure"),
        (["guards=[{metric: eval/trained/score, below: 1}]"], "guards[0].metric", "held"),
        (["guards=[{metric: rollout/main/x, above: 1, against: x}]"], "guards[0].against", "names no figure"),
        (["guards=[{metric: rollout/main/x, above: 1, steps: 0}]"], "guards[0].steps", "out of range"),
        (["guards=[{metric: rollout/main/x, above: 1, times: 3}]"], "guards[0].times", "with action: warn"),
        (["track.save_every=0"], "guards[0].action", "no checkpoint to go back to"),
    ],
)  # fmt: skip
def test_what_would_train_nothing_is_refused(tmp_path: Path, overrides: list[str], key: str, says: str) -> None:
    mistakes = found(tmp_path, *overrides)
    assert key in mistakes, mistakes
    assert says in mistakes[key], mistakes[key]


PANEL = """\
tasks: {kind: pixels}
protocols:
  panel:
    extends: [PROTOCOLS/debate_panel.yaml]
    zero_sum: false  # the debaters' rewards are; the judges' are not
    rewards: [{name: win_probability}, {name: right_verdict}]
policies:
  judge:
    trained: true
    learner: {advantage: {kind: grpo, group_by: [role]}, trusted: 0.2}
  debater: {}
stages:
  main: {protocol: panel, roles: {debater: debater, skeptic: judge, expert: judge, layperson: judge}, steps: 1}
"""


@pytest.mark.parametrize(
    ("change", "key", "says"),
    [
        ("", "", ""),
        (", {name: right_verdict}] => ]", f"{MAIN}.roles", "no reward of protocol 'panel' is for its roles"),
        ("{name: right_verdict} => {name: right_verdict, to: [expert]}", "", ""),
        (
            "{advantage: {kind: grpo, group_by: [role]} => {signal: {kind: truth}, loss: {kind: brier}",
            f"{MAIN}.roles", "none of its roles is read",
        ),
    ],
)  # fmt: skip
def test_a_panel_that_writes_is_trained_by_its_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, key: str, says: str
) -> None:
    monkeypatch.setitem(globals(), "BASE", PANEL)
    mistakes = found(tmp_path, *filter(None, [change]))
    assert set(mistakes) == ({key} if key else set()), mistakes
    assert says in mistakes.get(key, "")
