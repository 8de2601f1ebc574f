"""configs/: refusing. What a message must say is written out by hand in every test."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.machine import Machine
from configs.reading.errors import ConfigErrors
from tests.support.config_files import CONFIGS, mistakes, read, write

__all__ = ["write"]



def test_a_cycle_of_extends_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: [b.yaml]\n")
    (tmp_path / "b.yaml").write_text("seed: 1\nextends: [a.yaml]\n")
    [error] = mistakes(tmp_path / "a.yaml").values()
    assert "a.yaml -> " in error.message and error.message.endswith("a.yaml")
    assert error.where.endswith("b.yaml:2")


def test_a_secret_written_out_is_refused_but_token_counts_are_not(write: Callable[..., Path]) -> None:
    path = write(("judge: {", "judge: {engine: {extra: {hf_token: abc}}, max_tokens: 5, "))
    [(key, error)] = mistakes(path).items()
    assert key == "policies.judge.engine.extra.hf_token"
    assert "${oc.env:HF_TOKEN}" in error.valid
    assert "abc" not in str(error)


def test_all_mistakes_come_at_once_with_place_and_hint(write: Callable[..., Path]) -> None:
    path = write(
        ("trained: true", "traned: true"), ("steps: 3", "stepz: 3"), ("debater: debater", "debater: nobody")
    )
    machine = Machine(cpus=2, memory=16 * 2**30, gpus=1, gpu_memory=80 * 2**30)
    found = mistakes(
        path, "policies.judge.engine.replicas=4", "policies.judge.engine.device=cuda", machine=machine
    )
    assert set(found) == {
        "policies.debater.traned", "stages.main.stepz", "stages.main.roles.debater", "policies.judge.engine"
    }  # fmt: skip
    assert found["policies.debater.traned"].where.endswith("c.yaml:7")
    assert "did you mean trained?" in found["policies.debater.traned"].message
    assert "did you mean steps?" in found["stages.main.stepz"].message
    assert "repeats" in found["stages.main.stepz"].valid
    assert "(judge engine 4, debater learner 1)" in found["policies.judge.engine"].message
    assert "there are 1" in found["policies.judge.engine"].message


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ("name: no", "name", "YAML reads no as false"),
        ("name: 1:30", "name", "YAML reads 1:30 as 90"),
        ("name: 7", "name", "must be text, not 7"),
        ("seed: 1:30", "seed", "YAML reads 1:30 as 90"),
        ("seed: yes", "seed", "must be a whole number, not True"),
        ("seed: 1.5", "seed", "must be a whole number"),
        ("seed:", "seed", "has no value"),
        ("seed: [1]", "seed", "not a list"),
        ("track: 3", "track", "must be a mapping"),
        ("track: {wandb: off}", "track.wandb", "YAML reads off as false"),
        ("track: {wandb: offlin}", "track.wandb", "did you mean offline?"),
        ("eval: {ceiling: debat}", "eval.ceiling", "did you mean debate?"),
        ("seed: ${nowhere}", "seed", "cannot be resolved"),
        ("seed: 1\nseed: 2", "seed", "already set on line 15"),
        ("1: 2", "1", "YAML reads this key as int"),
    ],
)
def test_what_yaml_misread_and_what_is_no_value(
    write: Callable[..., Path], text: str, key: str, says: str
) -> None:
    [(found, error)] = mistakes(write(more=text + "\n")).items()
    assert found == key
    assert says in error.message
    assert f"c.yaml:{15 + text.count(chr(10))}" in error.where


@pytest.mark.parametrize("text", ["seed", "a.b=", "=3", "a..b=1", "a b=1", "seed=[1"])
def test_overrides_that_are_none_say_which(write: Callable[..., Path], text: str) -> None:
    [error] = mistakes(write(), "name=x", text).values()
    assert error.where == "command line, override 2"
    assert text.partition("=")[2] in error.message


@pytest.mark.parametrize("text", ["polices.debater.trained=true", "stages.mian.steps=3"])
def test_a_key_that_only_an_override_made_is_not_the_files(write: Callable[..., Path], text: str) -> None:
    found = mistakes(write(), "name=x", text)
    assert {error.where for error in found.values()} == {"command line, override 2"}


REPEATED = "stages.main={repeats: 2}"
ARM = "eval.arms.a={protocol: debate, roles: {debater: debater, judge: judge}, temperature: -1}"
GREEDY = ARM.replace("-1", "0")


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        (["EXTRA.enforce_eagr=true"], "EXTRA.enforce_eagr", "enforce_eager?"),
        (["EXTRA.logprobs_mode=raw"], "EXTRA.logprobs_mode", "rests on it"),
        (
            ["EXTRA.speculative_config={method: ngram}"],
            "EXTRA.speculative_config",
            "speculative decoding is not supported",
        ),
        (["stages.main.protocol=debat"], "stages.main.protocol", "did you mean debate?"),
        (["stages.main.roles.critic=judge"], "stages.main.roles.critic", "has no role 'critic'"),
        (["stages.main.train=[judge]"], "stages.main.train[0]", "is not trained"),
        (["policies.debater.trained=false"], "stages.main.roles", "no policy with a role here is trained"),
        (["stages.main.steps=0"], "stages.main.steps", "out of range"),
        (["stages.main.archive=0.5"], "stages.main.archive", "kind phased"),
        (["stages.main.eval_every=5"], "stages.main.eval_arm", "names no arm"),
        (["stages.main.eval_episodes=5"], "stages.main.eval_episodes", "has no effect without eval_every"),
        (["LEARNER.advantage.kind=grpo"], "stages.main.repeats", "groups of one"),
        (["LEARNER.advantage.kind=gro"], "LEARNER.advantage.kind", "no advantage"),
        (["LEARNER.advantage.group_by=[tusk]"], "LEARNER.advantage.group_by[0]", "task"),
        (["LEARNER.loss={kind: sft, clip_low: .1}"], "LEARNER.loss.clip_low", "no effect"),
        (["LEARNER.signal.kind=winner"], "LEARNER.signal.kind", "did you mean winners?"),
        (["LEARNER={signal: {kind: winners, best: 2}}"], "LEARNER.signal.best", "'winners', which reads threshold"),
        (["LEARNER.signal={threshold: 1}"], "LEARNER.signal.threshold", "reads no other setting"),
        (
            ["LEARNER={signal: {kind: winners}, advantage: {kind: rloo}}"],
            "LEARNER.advantage.kind",
            "no effect with the signal 'winners'",
        ),
        (["LEARNER={signal: {kind: rejection}}"], "stages.main.repeats", "groups of one: rejection compares"),
        (["LEARNER.signal={kind: winners, threshold: high}"], "LEARNER.signal.threshold", "must be a number"),
        (["LEARNER.loss={kind: gspo, dual_clip: 3}"], "LEARNER.loss.dual_clip", "'gspo', which reads clip_high"),
        (["LEARNER.loss={dual_clip: .5}"], "LEARNER.loss.dual_clip", "more than 1"),
        (["LEARNER.loss={normalise: word}"], "LEARNER.loss.normalise", "sequence"),
        (["LEARNER.loss={normalise: constant}"], "LEARNER.loss.constant", "1 or more"),
        (["LEARNER.loss={kind: gspo, constant: 9}"], "LEARNER.loss.constant", "with normalise: sequence"),
        (["LEARNER.loss={correction_high: 3}"], "LEARNER.loss.correction_high", "with correction: none"),
        (["LEARNER.loss={correction: truncate, correction_low: 0}"], "LEARNER.loss.correction_low", "truncate"),
        (["LEARNER.loss={kl_estimator: k1}"], "LEARNER.loss.kl_estimator", "without kl"),
        (["LEARNER.loss={kl: -1}"], "LEARNER.loss.kl", "out of range"),
        (["LEARNER={loss: {kind: dpo, gamma: 1}}", REPEATED], "LEARNER.loss.gamma", "'dpo', which reads beta, sft"),
        (["LEARNER={loss: {kind: clip, beta: .1}}"], "LEARNER.loss.beta", "on the loss 'clip'"),
        (["LEARNER={loss: {kind: dpo, clip_low: .1}}", REPEATED], "LEARNER.loss.clip_low", "on the loss 'dpo'"),
        (["LEARNER={loss: {kind: dpo, kl: .1}}", REPEATED], "LEARNER.loss.kl", "on the loss 'dpo'"),
        (["LEARNER={loss: {kind: sft, kl_estimator: k1}}"], "LEARNER.loss.kl_estimator", "on the loss 'sft'"),
        (["LEARNER={loss: {kind: ipo, constant: 3}}", REPEATED], "LEARNER.loss.constant", "which reads sft, tau"),
        (["LEARNER={loss: {kind: ipo, tau: 0}}", REPEATED], "LEARNER.loss.tau", "out of range"),
        (["LEARNER={loss: {kind: ipo}, signal: {kind: winners}}", REPEATED], "LEARNER.signal.kind", "compares replies"),
        (["LEARNER={loss: {kind: dpo}, advantage: {kind: grpo}}", REPEATED], "LEARNER.advantage.kind", "'dpo'"),
        (["LEARNER={loss: {kind: simpo}, reference: {kind: ema}}", REPEATED], "LEARNER.reference.kind", "nothing"),
        (["LEARNER={loss: {kind: spin}}", REPEATED], "LEARNER.reference.kind", "the policy of the iteration before"),
        (
            ["LEARNER={loss: {kind: sppo}, reference: {kind: ema}}", REPEATED],
            "LEARNER.reference.kind",
            "not with 'ema'; valid: previous",
        ),
        (["LEARNER={loss: {kind: kto}}"], "stages.main.repeats", "groups of one: kto compares"),
        (["LEARNER.reference={kind: ema}"], "LEARNER.reference.kind", "no effect without kl"),
        (["LEARNER.reference={decay: .9}"], "LEARNER.reference.decay", "no effect without kl"),
        (["LEARNER={loss: {kl: .1}, reference: {every: 3}}"], "LEARNER.reference.every", "the reference 'initial'"),
        (
            ["LEARNER={loss: {kl: .1}, reference: {kind: ema, every: 3}}"],
            "LEARNER.reference.every",
            "'ema', which reads decay",
        ),
        (["LEARNER={loss: {kl: .1}, reference: {kind: ema, decay: 1}}"], "LEARNER.reference.decay", "out of range"),
        (["LEARNER={loss: {kl: .1}, reference: {kind: base}}"], "LEARNER.reference.kind", "previous"),
        (
            ["LEARNER={loss: {kl: .1}, reference: {kind: previous, every: 1}}"],
            "LEARNER.reference.every",
            "nothing to differ from",
        ),
        (["LEARNER.advantage={kind: grpo, decay: .9, group_by: [role]}"], "LEARNER.advantage.decay", "group_by"),
        (["LEARNER.advantage={kind: role_ema, group_by: [role]}"], "LEARNER.advantage.group_by", "baseline_by"),
        (["LEARNER.advantage={kind: role_ema, baseline_by: [rle]}"], "LEARNER.advantage.baseline_by[0]", "role"),
        (
            ["LEARNER.advantage={kind: reinforce, credit: trajectory, discount: .5}"],
            "LEARNER.advantage.discount",
            "with credit: trajectory",
        ),
        (["LEARNER.advantage={kind: reinforce, credit: game}"], "LEARNER.advantage.credit", "trajectory"),
        (["LEARNER.loss.kind=ppo"], "LEARNER.loss.kind", "there is no loss 'ppo'"),
        (["LEARNER.dtype=bfloat16"], "LEARNER.dtype", "zero_stage"),
        (["LEARNER.zero_stage=4"], "LEARNER.zero_stage", "out of range"),
        ([ARM], "eval.arms.a.temperature", "0 or more"),
        (["policies.debater.temperature=0"], "policies.debater.temperature", "must explore"),
        (["JUDGE.learner.lr=1"], "JUDGE.learner", "neither trained nor warm-started"),
        (["JUDGE.trained=true", "stages.main.train=[debater]"], "JUDGE.trained", "no stage updates"),
        (["policies.judge={kind: uniform, temperature: 1}"], "JUDGE.temperature", "on a uniform policy"),
        (["JUDGE.model={path: ./nowhere}"], "JUDGE.model.path", "there is no folder ./nowhere"),
        (["JUDGE.model={path: x, layers: 1}"], "JUDGE.model.layers", "beside model.path"),
        (["JUDGE.model.hidden_size=30"], "JUDGE.model.hidden_size", "multiple of twice the 4 heads"),
        (["JUDGE.model.kv_heads=3"], "JUDGE.model.kv_heads", "not a multiple of 3"),
        (["JUDGE.engine={device: cpu, gpus: 1}"], "JUDGE.engine.gpus", "with device: cpu"),
        (["JUDGE.engine.max_model_len=129"], "JUDGE.engine.max_model_len", "max_len 128"),
        (["JUDGE.warm_start={steps: 1, protocol: debate}"], "JUDGE.warm_start.roles", "names no role"),
        (["JUDGE.init_from=judge"], "JUDGE.init_from", "no other policy 'judge'"),
        (["JUDGE.engine.replicas=40"], "policies.judge", "of cpu memory are needed"),
        (["eval.ceiling=debate", "protocols.debate.judge.votes=3"], "eval.ceiling", "not a panel, votes or grades"),
        (["eval.ceiling_episodes=9"], "eval.ceiling_episodes", "without eval.ceiling"),
        ([GREEDY, "eval.ceiling=debate", "JUDGE={kind: uniform}"], "eval.arms.a.roles.judge", "to be searched"),
        (["eval.ceiling=debate"], "eval.ceiling", "no arm plays 'debate'"),
        (["cluster.gpus=1"], "cluster.gpus", "there are 0"),
        (["tasks={kind: pixls}"], "tasks.kind", "did you mean pixels?"),
        (["tasks=null"], "tasks", "missing"),
        (["protocols.other={kind: phased}", "protocols.other.phases=[]"], "protocols.other.seats", "missing"),
        (["protocols.other=nope.yaml"], "", "cannot read"),
        (["stages=null", "stages={}"], "stages", "nothing to run"),
    ],
)  # fmt: skip
def test_cross_checks(write: Callable[..., Path], overrides: list[str], key: str, says: str) -> None:
    names = {"LEARNER": "policies.debater.learner", "JUDGE": "policies.judge", "EXTRA": "policies.judge.engine.extra"}
    for short, full in names.items():
        key = key.replace(short, full)
        overrides = [text.replace(short, full) for text in overrides]
    found = mistakes(write(), *overrides)
    assert key in found, found
    assert says in str(found[key])
    if says not in ("cannot read", "missing", "is not trained"):
        assert len(found) == 1, found


def test_a_role_bound_to_no_policy(write: Callable[..., Path]) -> None:
    [(key, error)] = mistakes(write((", judge: judge}", "}"))).items()
    assert key == "stages.main.roles"
    assert "role 'judge' of protocol 'debate' is bound to no policy" in error.message
    assert error.valid == "debater, judge"
    assert error.where.endswith("c.yaml:13")


def test_an_override_may_switch_off_what_a_file_set_up(write: Callable[..., Path]) -> None:
    arm = "{protocol: debate, roles: {debater: debater, judge: judge}}"
    extra = f"    eval_every: 2\n    eval_arm: a\neval: {{arms: {{a: {arm}}}}}\n"
    assert read(write(more=extra), "stages.main.eval_every=0").config.stages["main"].eval_every == 0


def test_tasks_that_need_a_proposer_get_one() -> None:
    sampler = "stages.uniform.tasks.sampler=proposer"
    [(key, error)] = mistakes(CONFIGS / "propose_solve_controls.yaml", sampler).items()
    assert key == "stages.uniform.protocol" and "nobody proposes" in error.message


def test_a_folder_that_is_no_model_names_those_below_that_are(write: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "run" / "warm").mkdir(parents=True)
    (tmp_path / "run" / "warm" / "config.json").write_text("{}")
    [(key, error)] = mistakes(write(), f"policies.judge.model={{path: {tmp_path}/run}}").items()
    assert key == "policies.judge.model.path" and "holds no config.json" in error.message
    assert error.valid == f"{tmp_path}/run/warm"
    read(write(), f"policies.judge.model={{path: {tmp_path}/run/warm}}")
    read(write(), "policies.judge.model={path: Qwen/Qwen3-0.6B}")


def test_errors_survive_pickling(write: Callable[..., Path]) -> None:
    with pytest.raises(ConfigErrors) as caught:
        read(write(), "stepz=1")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(copy, ValueError)
    assert str(copy) == str(caught.value)
    assert copy.errors == caught.value.errors


def test_a_role_bound_to_an_unknown_policy_is_one_mistake(write: Callable[..., Path]) -> None:
    """Not a second one about the policy that now learns nowhere."""
    assert list(mistakes(write(), "stages.main.roles.debater=nobody")) == ["stages.main.roles.debater"]
