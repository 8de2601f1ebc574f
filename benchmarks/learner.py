"""Learner: our step against plain PyTorch, packed against padded sequences, and the speed of a weight push.

One rank, 25 million parameters, float32 on the CPU with one thread. The same samples go to plain PyTorch (a Hugging
Face model, the same micro-batches, logits at the loss positions only, clipped policy gradient, fused AdamW) and
through `LearnerGroup.step` at ZeRO stages 0 and 2, one after the other in each repeat. Plain PyTorch is timed inside
its process, ours from outside, so that the way through Ray counts as ours. Padded: plain PyTorch again, eight sequences
a micro-batch in the order in which they came, each padded to the longest of its eight, as trainers with a fixed batch
size do; `packing: rows` goes through `LearnerGroup.step`. Our own `packing: none` sorts by length first, which leaves
little to pad; it is measured beside them. A push is `export_ref` and `System.push`: from the learner's memory into a
vLLM engine that samples with the new weights, checksums included.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from actors import process as garbage
from actors.system import System, start_ray
from benchmarks.harness.measure import Json, figure, ratios, rounded, spread, target
from benchmarks.harness.scenes import MEDIUM, SMALL, codec_of, folder_of, policy
from configs.schema.run import ClusterConfig, LearnerConfig, Packing
from learners.batches.batching import split_by_length
from learners.ranks.group import LearnerGroup
from learners.types import Sample

SEED, VOCABULARY = 0, 4000
MICRO_TOKENS = 2048
CONFIG = LearnerConfig(device="cpu", lr=1e-4, threads=1, micro_tokens=MICRO_TOKENS)
STAGES = {0: 1.15, 2: 1.6}
"""ZeRO stage -> at most so many times as long as plain PyTorch."""
PACKINGS: dict[str, Packing] = {"padded, sorted by length (packing: none)": "none", "packed": "rows"}
PADDED, MICRO_SEQUENCES = "padded", 8


def main(quick: bool = False) -> Json:
    start_ray(ClusterConfig(), actors=6)
    import ray

    try:
        with tempfile.TemporaryDirectory() as folder:
            return asyncio.run(measure(folder_of(SMALL if quick else MEDIUM, Path(folder)), quick))
    finally:
        ray.shutdown()


async def measure(model_dir: str, quick: bool) -> Json:
    repeats = 2 if quick else 5
    even = make_samples([64 if quick else 128] * (8 if quick else 32), SEED)
    skewed = make_samples(skewed_lengths(16 if quick else 64), SEED + 1)
    garbage.settle()
    seconds = await steps(model_dir, even, repeats)
    slower = {stage: ratios(seconds[f"stage {stage}"], seconds["plain PyTorch"]) for stage in STAGES}
    targets = [
        target(f"step at ZeRO stage {stage} over plain PyTorch", statistics.median(slower[stage]),
               at_most=bound, repeats=slower[stage])
        for stage, bound in STAGES.items()
    ]  # fmt: skip
    measured: Json = {f"seconds per step, {name}": spread(values) for name, values in seconds.items()}
    packings = await packed_and_padded(model_dir, skewed, repeats)
    faster = ratios(packings[PADDED], packings["packed"])
    targets.append(target("packed over padded, speed on skewed lengths", statistics.median(faster),
                          at_least=1.8, repeats=faster))  # fmt: skip
    measured |= {f"seconds per step on skewed lengths, {name}": spread(values) for name, values in packings.items()}
    pushed, copied, nbytes = await pushes(model_dir, repeats)
    measured |= {
        "weight push, GB/s": spread([nbytes / s / 1e9 for s in pushed]),
        "memcpy of as many bytes, GB/s": spread([nbytes / s / 1e9 for s in copied]),
        "push over memcpy, times as long": spread(ratios(pushed, copied)),
        "megabytes pushed": rounded(nbytes / 1e6),
    }
    return {
        "settings": {"seed": SEED, "model": "1M parameters" if quick else "25M parameters", "repeats": repeats,
                     "batch": f"{len(even)} sequences of {len(even[0].token_ids_S)} tokens, loss on half of them",
                     "skewed lengths": f"{len(skewed)} sequences, lognormal, 16 to 512 tokens",
                     "micro_tokens": CONFIG.micro_tokens},
        "targets": targets, "measured": measured,
        "metrics": [figure("bars", "Seconds per step", {
            name: rounded(statistics.median(values)) for name, values in seconds.items()})],
    }  # fmt: skip


def make_samples(lengths: Sequence[int], seed: int) -> list[Sample]:
    """Random tokens; the second half of each sequence carries loss."""
    rng, found = random.Random(seed), []
    for length in lengths:
        loss = list(range(length // 2, length))
        found.append(Sample(
            token_ids_S=[rng.randrange(VOCABULARY) for _ in range(length)], positions_L=loss,
            advantages_L=[rng.gauss(0, 1) for _ in loss], logprobs_L=[-8.3] * len(loss), versions_L=[0] * len(loss),
        ))  # fmt: skip
    return found


def skewed_lengths(count: int) -> list[int]:
    """Lognormal: most are short, a few reach 512."""
    rng = random.Random(SEED)
    return [max(16, min(512, round(48 * rng.lognormvariate(0.0, 1.0)))) for _ in range(count)]


async def steps(model_dir: str, samples: list[Sample], repeats: int) -> dict[str, list[float]]:
    """Seconds of each repeat after one that does not count, the ways of learning one after the other."""
    import ray

    plain = ray.remote(Plain).options(num_cpus=0.25).remote(model_dir)
    groups = {stage: LearnerGroup("bench", model_dir, replace(CONFIG, zero_stage=stage), SEED) for stage in STAGES}
    for group in groups.values():
        await group.ready()
    seconds: dict[str, list[float]] = {name: [] for name in ("plain PyTorch", *(f"stage {s}" for s in STAGES))}
    for repeat in range(repeats + 1):
        took = {"plain PyTorch": await plain.step.remote(samples)}
        for stage, group in groups.items():
            took[f"stage {stage}"] = await step_seconds(group, samples)
        if repeat:
            for name, value in took.items():
                seconds[name].append(value)
    for group in groups.values():
        group.stop()
    ray.kill(plain)
    return seconds


async def step_seconds(group: LearnerGroup, samples: list[Sample]) -> float:
    begun = time.perf_counter()
    metrics = await group.step(samples)
    assert metrics["updates"] == 1 and not metrics["skipped"], metrics
    return time.perf_counter() - begun


async def packed_and_padded(model_dir: str, samples: list[Sample], repeats: int) -> dict[str, list[float]]:
    """Seconds of each repeat, one way after the other."""
    import ray

    plain = ray.remote(Plain).options(num_cpus=0.25).remote(model_dir)
    groups = {name: LearnerGroup("bench", model_dir, replace(CONFIG, packing=packing), SEED)
              for name, packing in PACKINGS.items()}  # fmt: skip
    for group in groups.values():
        await group.ready()
    seconds: dict[str, list[float]] = {name: [] for name in (PADDED, *PACKINGS)}
    for repeat in range(repeats + 1):
        took = {PADDED: await plain.step.remote(samples, MICRO_SEQUENCES)}
        for name, group in groups.items():
            took[name] = await step_seconds(group, samples)
        if repeat:
            for name, value in took.items():
                seconds[name].append(value)
    for group in groups.values():
        group.stop()
    ray.kill(plain)
    return seconds


async def pushes(model_dir: str, repeats: int) -> tuple[list[float], list[float], int]:
    """Seconds of pushes and of plain copies of as many bytes, and the bytes."""
    system = System({"bench": policy(model_dir)}, SEED)
    group = LearnerGroup("bench", model_dir, CONFIG, SEED)
    pushed, copied, nbytes = [], [], 0
    try:
        await group.ready()
        served = await system.serve("bench", model_dir, codec_of(model_dir))
        for version in range(1, repeats + 2):
            begun = time.perf_counter()
            await system.push("bench", version, await group.export_ref())
            pushed.append(time.perf_counter() - begun)
            nbytes = served.sync_bytes
            copied.append(copy_seconds(nbytes))
    finally:
        group.stop()
        system.stop()
    return pushed[1:], copied[1:], nbytes


def copy_seconds(nbytes: int) -> float:
    source, sink = np.ones(nbytes, dtype=np.uint8), np.zeros(nbytes, dtype=np.uint8)
    begun = time.perf_counter()
    np.copyto(sink, source)
    return time.perf_counter() - begun


class Plain:
    """The same step without our learner: torch and a Hugging Face model."""

    def __init__(self, model_dir: str):
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self.lm: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="sdpa")
        self.optimizer = torch.optim.AdamW(self.lm.parameters(), lr=CONFIG.lr, weight_decay=0.0, fused=True)

    def step(self, samples: list[Sample], sequences: int = 0) -> float:
        """Seconds of one optimizer step. `sequences`: that many in a micro-batch, in the order given; else as ours."""
        import torch

        begun = time.perf_counter()
        total = sum(len(sample.positions_L) for sample in samples)
        order = range(len(samples))
        parts = [list(order[i : i + sequences]) for i in order[::sequences]] if sequences else (
            split_by_length(samples, MICRO_TOKENS))  # fmt: skip
        for part in parts:
            chosen = [samples[i] for i in part]
            width = max(len(s.token_ids_S) for s in chosen)
            ids_BT = torch.tensor([s.token_ids_S + [0] * (width - len(s.token_ids_S)) for s in chosen])
            rows_L = torch.tensor([row for row, s in enumerate(chosen) for _ in s.positions_L])
            places_L = torch.tensor([place for s in chosen for place in s.positions_L])
            old_L = torch.tensor([p for s in chosen for p in s.logprobs_L])
            advantages_L = torch.tensor([a for s in chosen for a in s.advantages_L])
            hidden_BTD = self.lm.model(input_ids=ids_BT, use_cache=False).last_hidden_state
            logits_LV = self.lm.lm_head(hidden_BTD[rows_L, places_L - 1])
            logprobs_L = torch.log_softmax(logits_LV, -1).gather(1, ids_BT[rows_L, places_L][:, None]).squeeze(1)
            ratio_L = torch.exp(logprobs_L - old_L)
            gain_L = torch.minimum(ratio_L * advantages_L, ratio_L.clamp(0.8, 1.2) * advantages_L)
            (-gain_L.sum() / total).backward()
        torch.nn.utils.clip_grad_norm_(self.lm.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - begun
