"""What the learner tests compare DeepSpeed with: plain PyTorch on full logits, one unpadded sequence at a time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from configs.schema.run import LearnerConfig, LossConfig
from learners.ranks.group import LearnerGroup
from learners.types import Sample
from learners.weights import unpack

ROOT = Path(__file__).resolve().parent.parent.parent
VOCABULARY = 50
CONFIG = LearnerConfig(
    lr=1e-3,
    weight_decay=0.1,
    grad_clip=0.05,
    micro_tokens=40,
    device="cpu",
    loss=LossConfig(clip_low=0.1, clip_high=0.2, entropy=0.02),
)
T = TypeVar("T")


def slow(*values: Any) -> Any:
    """A case that only `make test-slow` runs."""
    return pytest.param(*values, marks=pytest.mark.slow)


def tiny_model(seed: int = 0) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # far from uniform, so that masks and temperatures matter
    return model


def make_samples(count: int, seed: int = 0) -> list[Sample]:
    """All kinds at once: 5 to 14 tokens, one or three of them with loss, masks here and there, temperatures."""
    rng = random.Random(seed)
    samples = []
    for i in range(count):
        ids = [rng.randrange(VOCABULARY) for _ in range(rng.randint(5, 14))]
        positions = sorted(rng.sample(range(1, len(ids)), rng.choice((1, 3))))
        allowed = [
            tuple(rng.sample(range(VOCABULARY), 6)) + (ids[p],) if rng.random() < 0.7 else ()
            for p in positions
        ]
        samples.append(
            Sample(
                token_ids_S=ids,
                positions_L=positions,
                advantages_L=[rng.gauss(0, 1) for _ in positions],
                logprobs_L=[rng.uniform(-3, -1) for _ in positions],
                versions_L=[i % 2 for _ in positions],
                allowed_L=allowed if i % 3 else None,
                temperature=(1.0, 0.7)[i % 2],
                tags={"role": ("alice", "bob")[i % 2]},
            )
        )
    return samples


# ---- the reference: nothing from learners/ but the Sample itself ---------------------------------------


def reference_tokens(model: Any, sample: Sample) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(log-probability, entropy) of every loss token: probabilities of the legal tokens, renormalised."""
    logits = model(input_ids=torch.tensor([sample.token_ids_S])).logits[0].double()
    found = []
    for i, position in enumerate(sample.positions_L):
        legal = (
            list(sample.allowed_L[i]) if sample.allowed_L and sample.allowed_L[i] else list(range(VOCABULARY))
        )
        weights = torch.exp(logits[position - 1] / sample.temperature)
        probs = {token: weights[token] / sum(weights[t] for t in set(legal)) for token in legal}
        found.append((probs[sample.token_ids_S[position]].log(), -sum(p * p.log() for p in probs.values())))
    return found


def reference_step(model: Any, optimizer: torch.optim.Optimizer, samples: list[Sample]) -> dict[str, float]:
    terms, entropies = [], []
    for sample in samples:
        for (logprob, entropy), old, advantage in zip(
            reference_tokens(model, sample), sample.logprobs_L, sample.advantages_L
        ):
            ratio = torch.exp(logprob - old)
            gain = torch.min(ratio * advantage, ratio.clamp(0.9, 1.2) * advantage)
            terms.append(-gain - 0.02 * entropy)
            entropies.append(entropy.item())
    loss = torch.stack(terms).mean()
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    optimizer.step()
    return {"loss": loss.item(), "grad_norm": norm.item(), "entropy": float(np.mean(entropies))}


# ---- real groups ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    import ray

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
    )
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()
    ray.shutdown()


class Rig:
    """A group, and plain calls of its methods."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, model_dir: Path, stage: int, ranks: int, **settings: Any
    ):
        self.loop, self.model_dir = loop, str(model_dir)
        config = replace(CONFIG, zero_stage=stage, ranks=ranks, **settings)
        self.group = LearnerGroup(f"stage {stage} ranks {ranks}", str(model_dir), config, timeout_s=60)
        self(self.group.ready())

    def __call__(self, awaitable: Awaitable[T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(awaitable, 300))

    def fresh(self) -> LearnerGroup:
        self(self.group.load_weights_from(self.model_dir))
        return self.group

    def weights(self) -> dict[str, torch.Tensor]:
        return dict(pair for bucket in self(self.group.export()) for pair in unpack(bucket))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
