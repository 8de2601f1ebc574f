"""What `plan` says of audits and critics, by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from configs.load import load
from configs.machine import Machine, Need, peak
from configs.memory import learner_memory
from configs.schema.run import CriticConfig, LearnerConfig, LoraConfig, LossConfig, ModelConfig, PolicyConfig
from driver.preflight.plan import Plan, make_plan

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
LAPTOP = Machine(cpus=2, memory=16 * 2**30)
AUDITED = (
    "policies.auditor={model: \"${policies.solver.model}\", init_from: solver}",
    "stages.proposed.audit={share: 0.1, protocol: attempt, roles: {solver: auditor}}",
)  # fmt: skip
FIXED = ["stages.proposed.steps=220", "stages.proposed.archive=0.25"]
"""What the numbers below are worked out from, whatever the shipped file has."""


def plan(*overrides: str) -> Plan:
    loaded = load(CONFIGS / "propose_solve.yaml", [*FIXED, *overrides], machine=LAPTOP)
    return make_plan(loaded.config, loaded.protocols, LAPTOP)


@pytest.mark.parametrize(
    ("overrides", "plays"),
    [
        # 220 steps of 64 plays are 14,080, of which a quarter are replays that nobody audits
        ([], 1056),
        (["stages.proposed.real=0.25"], 1056),
        # a quarter on one real task each, half on four proposals: 3,520 + 28,160 tasks
        (["stages.proposed.real=0.25", "protocols.proposed.batch=4"], 3168),
        (["stages.proposed.archive=0.5"], 704),
    ],
)
def test_audits_are_counted_with_the_measurements(overrides: list[str], plays: int) -> None:
    before, after = plan(*overrides), plan(*AUDITED, *overrides)
    assert after.stages == before.stages and after.arms[:-1] == before.arms
    audits = after.arms[-1]
    assert (audits.name, audits.protocol, audits.steps, audits.trains) == ("audit@proposed", "attempt", 0, ())
    assert (audits.plays, audits.requests, audits.total) == (plays, {"solver": 1}, plays)


def test_who_audits_has_a_role_and_an_engine() -> None:
    before, after = plan(), plan(*AUDITED)
    auditor = after.policies[-1]
    assert (auditor.name, auditor.roles, auditor.trained) == ("auditor", ("solver",), False)
    assert [need.part for need in auditor.needs] == ["engine"]
    assert after.memory - before.memory == auditor.needs[0].memory > 0


def extra(model: ModelConfig, learner: LearnerConfig, device: str = "cpu") -> int:
    """Bytes that a critic adds to a rank."""
    policy = PolicyConfig(model=model, trained=True)
    with_head = replace(learner, critic=CriticConfig())
    return learner_memory(policy, with_head, device) - learner_memory(policy, learner, device)


def test_the_head_of_a_critic_by_hand(tmp_path: Path) -> None:
    tiny = ModelConfig(hidden_size=8, layers=1, heads=2, kv_heads=2, intermediate_size=16)
    # 8 weights and a bias: each with a gradient and two moments of 4 bytes; an adapter leaves the head as it is
    assert extra(tiny, LearnerConfig()) == extra(tiny, LearnerConfig(lora=LoraConfig())) == 9 * 16
    # in bfloat16 2 + 2 bytes, and 12 of the optimizer; over nine ranks each has one of nine
    assert extra(tiny, LearnerConfig(zero_stage=3, ranks=9), "cuda") == 2 + 2 + 12
    assert extra(tiny, LearnerConfig(zero_stage=1, ranks=9), "cuda") == 9 * (2 + 2) + 12
    # the reference is a copy of the head too, whole on every rank
    assert extra(tiny, LearnerConfig(loss=LossConfig(kl=0.1))) == 9 * (16 + 4)
    assert extra(tiny, LearnerConfig(loss=LossConfig(kl=0.1), lora=LoraConfig())) == 9 * (16 + 4)
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 32, **shape}))
    assert extra(ModelConfig(path=str(tmp_path)), LearnerConfig()) == 33 * 16


def test_on_the_cpu_only_an_engine_of_its_own_waits_for_a_warm_start() -> None:
    """Engines (1 GB each) and learners (3 GB) are up while a judge of 5 GB is taught, whose engine comes after."""
    found = [
        Need("judge", "warm start", 1, "cpu", 0, 5),
        Need("judge", "engine", 2, "cpu", 0, 1),
        Need("debater", "engine", 1, "cpu", 0, 1),
        Need("debater", "learner", 2, "cpu", 0, 3),
    ]
    assert peak(found, "cpu", "memory") == 5 + 1 + 2 * 3
    on_gpus = [replace(need, device="cuda", gpus=1.0) for need in found]
    assert peak(on_gpus, "cuda", "memory") == 2 + 1 + 6, "there the judge is taught before all else"
    assert peak(on_gpus, "cuda", "gpus") == 2 + 1 + 2
