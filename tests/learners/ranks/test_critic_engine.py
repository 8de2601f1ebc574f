"""A critic under DeepSpeed against plain PyTorch: two parameter groups, one loss, a state that comes back bit by bit.

Ranks are plain processes here, without Ray: what the driver adds (learners/credit/gae.py) has tests of its own.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.schema.run import AdvantageConfig, CriticConfig, LearnerConfig, LoraConfig, LossConfig
from learners.batches.batching import balance
from learners.ranks.rank import LearnerRank
from learners.types import Sample
from learners.weights import unpack
from tests.support.learner_oracle import make_samples, reference_tokens, slow, tiny_model

CONFIG = LearnerConfig(
    lr=1e-3, weight_decay=0.1, grad_clip=0.5, micro_tokens=40, device="cpu", loss=LossConfig("reinforce"),
    advantage=AdvantageConfig(kind="gae"), critic=CriticConfig(coef=0.5, clip=0.3, lr=1e-2),
)  # fmt: skip
STEPS = 4


def batch(seed: int) -> list[Sample]:
    rng = random.Random(seed)

    def some(sample: Sample) -> list[float]:
        return [rng.gauss(0, 1) for _ in sample.positions_L]

    return [replace(s, values_L=some(s), returns_L=some(s)) for s in make_samples(11, seed)]


def plain() -> tuple[dict[str, torch.Tensor], list[list[float]]]:
    """Weights after STEPS steps (the head's as head.weight, head.bias), and the values of batch 9 then."""
    model, head = tiny_model(), torch.nn.Linear(32, 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    groups = [{"params": list(model.parameters()), "lr": 1e-3}, {"params": list(head.parameters()), "lr": 1e-2}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.1)

    def values(sample: Sample) -> torch.Tensor:
        hidden = model.model(input_ids=torch.tensor([sample.token_ids_S])).last_hidden_state[0]
        return head(hidden[[p - 1 for p in sample.positions_L]]).squeeze(-1)

    for step in range(STEPS):
        terms = []
        for sample in batch(step):
            for i, (logprob, _) in enumerate(reference_tokens(model, sample)):
                assert sample.values_L and sample.returns_L
                old, aim, now = sample.values_L[i], sample.returns_L[i], values(sample)[i]
                worst = torch.maximum((now - aim) ** 2, (now.clamp(old - 0.3, old + 0.3) - aim) ** 2)
                policy = -torch.exp(logprob - sample.logprobs_L[i]) * sample.advantages_L[i]
                terms.append(policy + 0.5 * 0.5 * worst)
        optimizer.zero_grad()
        torch.stack(terms).mean().backward()
        torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 0.5)  # type: ignore[attr-defined]
        optimizer.step()
    trained = {name: p.detach() for name, p in model.named_parameters()}
    return trained, [values(sample).tolist() for sample in batch(9)]


def work(rank: int, world: int, folder: str, config: LearnerConfig) -> None:
    """One rank: STEPS steps, then save, go on, take up, go on again. Rank 0 writes what it saw."""
    at = Path(folder)
    torch.set_num_threads(1)
    learner = LearnerRank(rank, world, str(at / "model"), config, timeout_s=120)
    if rank == 0:
        (at / "port.tmp").write_text(json.dumps(learner.open_store()))
        (at / "port.tmp").rename(at / "port")
    while not (at / "port").exists():
        time.sleep(0.05)
    learner.connect(*json.loads((at / "port").read_text()))

    def mine(samples: list[Sample]) -> list[Sample]:
        return [samples[i] for i in balance(samples, world)[rank]]

    assert not any(v for values in learner.values(mine(batch(9))) for v in values), "a new head says zero"
    metrics = [learner.step(mine(batch(step))).result() for step in range(STEPS)]
    buckets = learner.export()
    values = learner.values(mine(batch(9)))
    (at / "state").mkdir(exist_ok=True)
    learner.save(str(at / "state"))
    learner.save_hf(str(at / "hf"))
    after = []
    for again in (False, True):
        if again:
            learner.load(str(at / "state"))
            assert learner.values(mine(batch(9))) == values, "the head must come back"
        learner.step(mine(batch(5)))
        after.append((learner.values(mine(batch(9))), learner.logprobs(mine(batch(9)))))
    assert after[0] == after[1] and after[0][0] != values, "bit by bit, momenta of the head included"
    # A warm start: no returns, and at two ranks more samples than one of them has.
    warm = [replace(s, values_L=None, returns_L=None) for s in batch(6)]
    learner.step(mine(warm[:1]), loss="sft")
    index = balance(batch(9), world)[rank]
    seen = {"index": index, "values": values, "metrics": metrics, "after": after[0][0]}
    torch.save(seen, at / f"seen-{rank}")
    if rank == 0:
        torch.save(dict(pair for bucket in buckets for pair in unpack(bucket)), at / "weights")
    learner.close()


def take_up(rank: int, world: int, folder: str, config: LearnerConfig) -> None:
    """One rank that goes on where others stopped."""
    at = Path(folder)
    learner = LearnerRank(rank, world, str(at / "model"), config, timeout_s=120)
    learner.connect(*learner.open_store())
    learner.load(str(at / "state"), folder)
    torch.save(learner.values(batch(9)), at / "taken-up")
    learner.step(batch(5))
    torch.save(learner.values(batch(9)), at / "gone-on")
    learner.close()


def run(folder: Path, world: int, config: LearnerConfig) -> dict[str, Any]:
    tiny_model().save_pretrained(folder / "model")
    torch.multiprocessing.spawn(work, (world, str(folder), config), nprocs=world)
    seen = [torch.load(folder / f"seen-{rank}") for rank in range(world)]
    joined = {name: {i: v for one in seen for i, v in zip(one["index"], one[name])} for name in ("values", "after")}
    return {"weights": torch.load(folder / "weights"), "metrics": seen[0]["metrics"], **joined}


@pytest.mark.engine
@pytest.mark.parametrize(("stage", "world"), [(0, 1), (3, 2), slow(1, 2), slow(2, 2)])
def test_steps_equal_plain_adamw_with_two_groups(stage: int, world: int, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    found = run(tmp_path, world, replace(CONFIG, zero_stage=stage, ranks=world))
    trained, values = plain()
    assert found["weights"].keys() == trained.keys(), "engines get the language model, and nothing of the head"
    for name, parameter in trained.items():
        torch.testing.assert_close(found["weights"][name], parameter, rtol=0, atol=5e-5)
    for i, expected in enumerate(values):
        assert found["values"][i] == pytest.approx(expected, abs=2e-4)
    saved = load_file(tmp_path / "hf" / "model.safetensors")
    assert saved.keys() == trained.keys()
    assert all("value_loss" in metrics and metrics["updates"] == 1 for metrics in found["metrics"])


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_state_is_taken_up_by_another_number_of_ranks(stage: int, tmp_path: Path) -> None:
    config = replace(CONFIG, zero_stage=stage, ranks=2)
    found = run(tmp_path, 2, config)
    torch.multiprocessing.spawn(take_up, (1, str(tmp_path), replace(config, ranks=1)), nprocs=1)
    for i, values_L in enumerate(torch.load(tmp_path / "taken-up")):
        assert values_L == pytest.approx(found["values"][i], abs=1e-5)
    gone_on = dict(enumerate(torch.load(tmp_path / "gone-on")))
    for i, values_L in found["after"].items():
        assert gone_on[i] == pytest.approx(values_L, abs=1e-3), "with the momenta of both groups"


@pytest.mark.engine
@pytest.mark.parametrize(("stage", "world"), [(0, 1), slow(3, 2)])
def test_an_adapter_has_a_critic_too(stage: int, world: int, tmp_path: Path) -> None:
    lora = LoraConfig(rank=2, target_modules=["q_proj", "v_proj"])
    found = run(tmp_path, world, replace(CONFIG, zero_stage=stage, ranks=world, lora=lora))
    start = dict(tiny_model().named_parameters())
    moved = {name for name, weight in found["weights"].items() if not torch.equal(weight, start[name].detach())}
    assert found["weights"].keys() == start.keys() and moved and all("q_proj" in n or "v_proj" in n for n in moved)
    assert any(value for values in found["values"].values() for value in values)
