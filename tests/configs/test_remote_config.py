"""Remote policies in a config: its plan, its mistakes, the doctor, and who may be played from afar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actors.players.remote import MissingKey, check_keys, key_of
from configs.checks.remote import deaf_to
from configs.load import load, load_protocol
from configs.machine import Machine
from configs.reading.errors import ConfigErrors
from configs.reading.raw import read_raw
from configs.schema.run import RemoteConfig
from driver.preflight.doctor import examine
from driver.preflight.plan import make_plan

PROTOCOLS = Path(__file__).resolve().parent.parent.parent / "configs" / "protocol"
MACHINE = Machine(cpus=2, memory=16 * 2**30)

CONFIG = """\
tasks: {{kind: pixels}}
protocols: {{main: {protocol}}}
policies:
  api:
    kind: remote
    remote: {{url: "https://api.example.org/v1", model: big, api_key_env: ORACLE_KEY}}
  other: {{kind: uniform}}
eval:
  arms:
    main: {{protocol: main, roles: {roles}}}
"""


def config(
    tmp_path: Path, *overrides: str, protocol: str = "pixel_debate.yaml", role: str = "debater"
) -> Any:
    path = tmp_path / "c.yaml"
    roles = {"debater": "other", "judge": "other", role: "api"}
    roles_text = "{" + ", ".join(f"{key}: {value}" for key, value in roles.items()) + "}"
    path.write_text(CONFIG.format(protocol=PROTOCOLS / protocol, roles=roles_text))
    return load(path, overrides, machine=MACHINE)


def test_a_sound_config_its_plan_and_the_doctor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = config(tmp_path)
    monkeypatch.delenv("ORACLE_KEY", raising=False)
    plans = {policy.name: policy for policy in make_plan(loaded.config, loaded.protocols, MACHINE).policies}
    assert plans["api"].model == "big at api.example.org" and plans["api"].needs == ()
    assert "ORACLE_KEY is NOT set" in plans["api"].key
    found = {f.what: f for f in examine(tmp_path, MACHINE, loaded.config.policies)}
    assert found["policy api"].level == "fault" and "NOT set" in found["policy api"].text
    with pytest.raises(MissingKey, match="ORACLE_KEY is not set"):
        check_keys(loaded.config)
    monkeypatch.setenv("ORACLE_KEY", "sesame")
    check_keys(loaded.config)
    assert key_of(loaded.config.policies["api"].remote) == "sesame"
    plans = {policy.name: policy for policy in make_plan(loaded.config, loaded.protocols, MACHINE).policies}
    assert plans["api"].key == "key: ORACLE_KEY is set"
    found = {f.what: f for f in examine(tmp_path, MACHINE, loaded.config.policies)}
    assert found["policy api"].level == "ok" and "sesame" not in found["policy api"].text


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        (["API.remote.url=api.example.org"], "API.remote.url", "must be a URL"),
        (["API.remote.url=https://me:secret@host/v1"], "API.remote.url", "more than scheme, host and path"),
        (["API.remote.model=''"], "API.remote.model", "missing"),
        (
            ["API.remote.api_key_env=sk-proj-abc123"],
            "API.remote.api_key_env",
            "no name of an environment variable",
        ),
        (["API.remote.api_key=sk-proj-abc123"], "API.remote.api_key", "did you mean"),
        (["API.trained=true"], "API.trained", "never trained"),
        (["API={kind: remote, engine: {replicas: 2}}"], "API.engine", "no effect on a remote policy"),
        (["API={kind: remote, warm_start: {steps: 1}}"], "API.warm_start", "no effect on a remote policy"),
        (["API.remote.retries=-1"], "API.remote.retries", "out of range"),
        (["API.remote.budget_tokens=0"], "API.remote.budget_tokens", "out of range"),
        (
            ["policies.other={kind: uniform, remote: {url: x}}"],
            "policies.other.remote",
            "on a uniform policy",
        ),
        (
            ["policies.other={kind: uniform, temperature: 1}"],
            "policies.other.temperature",
            "on a uniform policy",
        ),
        (["policies.x={remote: {model: x}}"], "policies.x.remote", "not remote"),
        (["policies.human={kind: uniform}"], "policies.human", "policy of people"),
    ],
)
def test_mistakes(tmp_path: Path, overrides: list[str], key: str, says: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        config(tmp_path, *(text.replace("API", "policies.api") for text in overrides))
    found = {error.key: str(error) for error in caught.value.errors}
    assert says in found[key.replace("API", "policies.api")], found
    assert "sk-proj" not in str(caught.value) and "secret@" not in str(caught.value)


def test_a_judge_read_by_probability_needs_a_server_that_gives_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigErrors, match=r"roles.judge: role 'judge' is asked for probabilities"):
        config(tmp_path, role="judge")
    config(tmp_path, "policies.api.remote.logprobs=true", role="judge")


def test_what_is_heard_must_be_fenced(tmp_path: Path) -> None:
    raw = (PROTOCOLS / "debate.yaml").read_text()
    (tmp_path / "open.yaml").write_text(
        raw.replace("      The other side wrote:\n      {{ quoted }}", "      {{ text }}")
    )
    (tmp_path / "fenced.yaml").write_text(raw)
    config(tmp_path, protocol=str(tmp_path / "fenced.yaml"))
    with pytest.raises(
        ConfigErrors, match=r"roles.debater: role 'debater' hears .* fence it .*\{\{ quoted \}\}"
    ):
        config(tmp_path, protocol=str(tmp_path / "open.yaml"))


TALK = """
kind: phased
seats: {ann: debater, ben: critic, jay: judge}
sides: {ann: 0, ben: 1}
prompts:
  debater: {heard: "WROTE"}
  critic: {}
phases:
  - PHASE
judge:
  {seat: jay, view: transcript, when: end, votes: 1,
  prompt: "{{ a }}, {{ b }}?\\n{{ transcript }}", entry: "{{ quoted }}"}
"""


@pytest.mark.parametrize(
    "phase",
    [
        "{name: talk, seats: [ben, ann], parts: {thinking: private, argument: shown}}",
        "{name: talk, seats: [ann, ben], speakers: shuffled}",
        "{name: talk, seats: [ben, ann], repeat: 2, stop: {seat: ben, says: DONE}, max_words: 5}",
    ],
)
def test_what_is_heard_of_parts_and_of_either_order_must_be_fenced(tmp_path: Path, phase: str) -> None:
    def deaf(heard: str) -> list[str]:
        path = tmp_path / "talk.yaml"
        path.write_text(TALK.replace("PHASE", phase).replace("WROTE", heard))
        remote = {"debater": RemoteConfig(), "judge": RemoteConfig()}
        return [role for role, _, _ in deaf_to(load_protocol(path), read_raw(path), remote)]

    assert deaf("{{ text }}") == ["debater"]
    assert deaf("{{ quoted }}") == [], "and a judge who votes is not asked for probabilities"


def test_a_shuffled_phase_is_heard_in_every_order(tmp_path: Path) -> None:
    phase = "{name: talk, seats: [ann, ben], speakers: shuffled}"
    path = tmp_path / "talk.yaml"
    path.write_text(TALK.replace("PHASE", phase).replace("WROTE", "{{ text }}"))
    remote = {"debater": RemoteConfig(), "critic": RemoteConfig()}
    deaf = [role for role, _, _ in deaf_to(load_protocol(path), read_raw(path), remote)]
    assert deaf == ["critic", "debater"], "each hears the other in some plays, never both in one"



def test_what_cannot_be_checked_is_not_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: object) -> None:
        raise ZeroDivisionError("of its own")

    monkeypatch.setattr("configs.checks.remote.drive", raises)
    protocol = load_protocol(PROTOCOLS / "debate.yaml")
    [(role, message, _)] = deaf_to(protocol, read_raw(PROTOCOLS / "debate.yaml"), {"judge": RemoteConfig()})
    assert role == "judge" and "cannot be checked" in message and "of its own" in message
