"""`track.best` needs a measurement for every checkpoint; settings of adapters, offload and packing that cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.deepspeed import deepspeed_json
from configs.load import load
from configs.machine import Machine
from configs.reading.errors import ConfigErrors

SMOKE = Path(__file__).resolve().parent.parent.parent / "configs" / "smoke.yaml"
LAPTOP = Machine(2, 64 * 2**30)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["track.best=trained"], r"track\.save_every: checkpoints are compared .*a multiple of 1"),
        (["track.best=trained", "track.save_every=3", "stages.debate.eval_every=2"], r"a multiple of 2"),
        (["track.best=untrained", "track.save_every=1"], r"track\.best: no stage measures .*'untrained'.*trained\)"),
        (["track.keep=0"], r"track\.keep: 0 is out of range"),
        (["policies.debater.learner.lora={rank: 0}"], r"learner\.lora\.rank: 0 is out of range"),
        (["policies.debater.learner.lora={target_modules: []}"], r"lora\.target_modules: names no layer"),
        (["policies.debater.learner.lora={ranks: 2}"], r"lora\.ranks: there is no such setting.*did you mean rank"),
        (["policies.debater.learner.offload=optimizer"], r"learner\.offload: optimizer needs zero_stage 1 or more"),
        (["policies.debater.learner={offload: parameters, zero_stage: 2}"], r"offload: parameters needs zero_stage 3"),
        (["policies.debater.learner={offload: optimizer, zero_stage: 2}"], r"offload: has no effect on the CPU"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigErrors, match=message):
        load(SMOKE, overrides, machine=LAPTOP)


@pytest.mark.parametrize(
    "overrides",
    [
        ["track.best=trained", "track.save_every=2", "track.keep=5"],
        ["policies.debater.learner.lora={rank: 4, alpha: 8, target_modules: [q_proj]}"],
        ["policies.debater.learner.packing=rows", "policies.debater.learner.gradient_checkpointing=true"],
    ],
)
def test_what_can_be_kept_is_not(overrides: list[str]) -> None:
    load(SMOKE, overrides, machine=LAPTOP)


def test_offload_is_written_in_deepspeeds_words() -> None:
    override = ["policies.debater.learner={offload: parameters, zero_stage: 3}"]
    learner = load(SMOKE, [*override, "policies.debater.learner.device=cuda"]).config.policies["debater"].learner
    pinned = {"device": "cpu", "pin_memory": True}
    zero = deepspeed_json(learner, "cuda")["zero_optimization"]
    assert zero == {"stage": 3, "offload_optimizer": pinned, "offload_param": pinned}
