"""What is refused about opponent checkpoints and opponents, and what they ask of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.league.pool import RULES
from configs.load import Loaded, load
from configs.machine import Machine, needs, used_policies
from configs.policies import as_served
from configs.reading.errors import ConfigErrors
from configs.schema.run import OPPONENT_RULES
from driver.preflight.plan import make_plan

PROTOCOLS = Path(__file__).resolve().parent.parent.parent / "configs" / "protocol"
LAPTOP = Machine(cpus=2, memory=16 * 2**30)
BASE = f"""\
tasks: {{kind: pixels}}
protocols:
  debate: {PROTOCOLS}/pixel_debate.yaml
policies:
  judge: {{model: {{max_len: 128}}}}
  debater:
    trained: true
    temperature: 0.7
    learner: {{advantage: {{kind: reinforce}}}}
  past: {{kind: past, of: [debater], engine: {{replicas: 2}}}}
stages:
  main:
    protocol: debate
    roles: {{debater: debater, judge: judge}}
    opponents:
      seats: [alice, bob]
      mix: {{self: 0.5, pfsp: 0.4, latest: 0.1}}
      past: past
eval: {{cross_play: main}}
"""


def read(tmp_path: Path, *overrides: str, more: str = "", base: str = BASE) -> Loaded:
    path = tmp_path / "c.yaml"
    path.write_text(base + more)
    return load(path, overrides, machine=LAPTOP)


def mistakes(tmp_path: Path, *overrides: str, more: str = "", base: str = BASE) -> dict[str, str]:
    """key -> what is wrong there."""
    with pytest.raises(ConfigErrors) as caught:
        read(tmp_path, *overrides, more=more, base=base)
    return {error.key: f"{error.message} | {error.valid}" for error in caught.value.errors}


def test_a_league_is_sound_and_has_engines_of_its_own(tmp_path: Path) -> None:
    loaded = read(tmp_path)
    config = loaded.config
    assert used_policies(config) == ["judge", "debater", "past"]
    served = as_served(config.policies, config.policies["past"])
    assert (served.kind, served.trained, served.temperature, served.engine.replicas) == ("lm", False, 0.7, 2)
    engines = {need.policy: need for need in needs(config, LAPTOP) if need.part == "engine"}
    assert engines["past"].count == 2 and engines["past"].memory == engines["debater"].memory > 0
    assert not [need for need in needs(config, LAPTOP) if need.policy == "past" and need.part != "engine"]
    (plan,) = [policy for policy in make_plan(config, loaded.protocols, LAPTOP).policies if policy.name == "past"]
    assert plan.roles == ("alice", "bob") and not plan.trained


def test_the_rules_of_the_config_are_those_of_the_league() -> None:
    assert set(OPPONENT_RULES) == set(RULES)


OPPONENTS = "stages.main.opponents"


@pytest.mark.parametrize(("override", "key", "says"), [
    (f"{OPPONENTS}.mix={{pfps: 1}}", f"{OPPONENTS}.mix.pfps", "there is no such opponent | self, fixed, latest"),
    (f"{OPPONENTS}.mix={{pfsp: -1}}", f"{OPPONENTS}.mix.pfsp", "-1 is out of range | 0 or more"),
    (f"{OPPONENTS}.mix={{self: 1}}", f"{OPPONENTS}.mix", "has nobody but oneself"),
    (f"{OPPONENTS}.mix={{fixed: 1}}", f"{OPPONENTS}.fixed", "names no policy | judge"),
    (f"{OPPONENTS}.past=debater", f"{OPPONENTS}.past", "'debater' is no policy of kind past | past"),
    (f"{OPPONENTS}.past=''", f"{OPPONENTS}.past", "names no policy of kind past | past"),
    (f"{OPPONENTS}.against=[judge]", f"{OPPONENTS}.against.0", "no opponent checkpoints of 'judge' | debater"),
    (f"{OPPONENTS}.seats=[carol]", f"{OPPONENTS}.seats.0", "has no seat 'carol' | alice, bob, judge"),
    (f"{OPPONENTS}.seats=[]", f"{OPPONENTS}.seats", "names no seat that an opponent takes"),
    (f"{OPPONENTS}.keep=0", f"{OPPONENTS}.keep", "0 is out of range | 1 or more"),
    ("policies.past.of=[judge]", "policies.past.of.0", "'judge' is no trained policy: it has no past | debater"),
    ("policies.past.of=[]", "policies.past.of", "names no policy whose opponent checkpoints it plays | debater"),
    ("policies.judge.of=[debater]", "policies.judge.of", "has no effect on a policy that is not past"),
    ("stages.main.roles.debater=past", "stages.main.roles.debater", "takes a seat of the opponents"),
    ("eval.cross_play=other", "eval.cross_play", "no stage with opponent checkpoints among its opponents | main"),
    ("policies.past.engine.replicas=1", "eval.cross_play", "two opponent checkpoints at once need two engines"),
    (f"{OPPONENTS}.seats=[bob]", "eval.cross_play", "stages.main.opponents.seats has 1"),
])  # fmt: skip
def test_what_is_refused(tmp_path: Path, override: str, key: str, says: str) -> None:
    base, changes = BASE, [override]
    if ".mix=" in override:  # an override would be merged into the mapping
        base, changes = BASE.replace("{self: 0.5, pfsp: 0.4, latest: 0.1}", override.partition("=")[2]), []
    found = mistakes(tmp_path, *changes, base=base)
    shown = {name.replace("[", ".").replace("]", ""): text for name, text in found.items()}
    assert says in shown.get(key, ""), found


def test_settings_without_effect(tmp_path: Path) -> None:
    warm = BASE.replace("kind: past, of", "kind: past, temperature: 0.5, of")
    assert "has no effect on a past policy" in mistakes(tmp_path, base=warm)["policies.past.temperature"]
    fixed = BASE.replace("mix: {self: 0.5, pfsp: 0.4, latest: 0.1}", "mix: {uniform: 1}\n      power: 2.0")
    assert "without pfsp in the mix" in mistakes(tmp_path, base=fixed)["stages.main.opponents.power"]
    alone = BASE.replace("mix: {self: 0.5, pfsp: 0.4, latest: 0.1}", "mix: {fixed: 1}\n      fixed: [judge]")
    found = mistakes(tmp_path, base=alone)
    assert "without opponent checkpoints in the mix" in found["stages.main.opponents.past"]
    assert "no stage with opponent checkpoints" in found["eval.cross_play"]


def test_somebody_must_be_left_who_learns(tmp_path: Path) -> None:
    """A judge in training: an opponent in its seat would leave two frozen debaters."""
    text = BASE.replace("judge: {model: {max_len: 128}}", "judge: {trained: true, model: {max_len: 128}}")
    text = text.replace("    opponents:\n", "    train: [judge]\n    opponents:\n").replace("[alice, bob]", "[judge]")
    found = mistakes(tmp_path, "eval.cross_play=''", base=text)
    assert "nobody is left who learns | judge" in found["stages.main.opponents.seats[0]"]


def test_opponent_checkpoints_of_two_policies_share_engines_only_if_alike(tmp_path: Path) -> None:
    """An exploiter with a seed of its own is alike; one of another width is not."""
    exploiter = "  exploiter: {trained: true, model: {seed: 1}, learner: {advantage: {kind: reinforce}}}\n"
    stage = (
        "  exploit:\n    protocol: debate\n    roles: {debater: exploiter, judge: judge}\n"
        "    opponents: {seats: [alice, bob], mix: {latest: 1}, past: past, against: [debater]}\n"
    )
    text = BASE.replace("of: [debater]", "of: [debater, exploiter]").replace("stages:\n", exploiter + "stages:\n")
    text = text.replace("eval:", stage + "eval:")
    assert read(tmp_path, base=text).config.policies["past"].of == ["debater", "exploiter"]
    found = mistakes(tmp_path, "policies.exploiter.model.hidden_size=128", base=text)
    assert "'exploiter' has another model than 'debater'" in found["policies.past.of[1]"]


def test_opponent_checkpoints_are_not_measured_while_they_are_opponents(tmp_path: Path) -> None:
    text = BASE.replace("    opponents:\n", "    eval_every: 1\n    eval_arm: mean\n    opponents:\n")
    text = text.replace("cross_play: main", "arms: {mean: {protocol: debate, roles: {debater: past, judge: judge}}}")
    assert "their engines cannot be measured" in mistakes(tmp_path, base=text)["stages.main.eval_arm"]
    assert read(tmp_path, base=text.replace("    eval_every: 1\n    eval_arm: mean\n", "")).config.eval.arms


def test_a_past_that_nobody_meets(tmp_path: Path) -> None:
    text = BASE[: BASE.index("    opponents:")]
    assert "no stage has it among its opponents" in mistakes(tmp_path, base=text)["policies.past.kind"]
