"""Packed rows give the log-probabilities and gradients of padded ones, on models of two families; plain torch."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, strategies as st

from configs.methods import LearnerConfigError
from learners.batches.batching import balance, collate
from learners.batches.packing import SHARED, families, layout, places, split, spread
from learners.models.packing_check import check_packing
from learners.models.token_model import TokenModel
from learners.types import Sample

VOCABULARY = 40
CPU = torch.device("cpu")


def model(arch: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    shape = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64, "initializer_range": 0.3,
        "attn_implementation": "sdpa",
    }  # fmt: skip
    if arch == "qwen3":
        return TokenModel(Qwen3ForCausalLM(Qwen3Config(head_dim=16, **shape)).eval())
    return TokenModel(LlamaForCausalLM(LlamaConfig(**shape)).eval())


def make(lengths: list[int], seed: int = 0) -> list[Sample]:
    rng = random.Random(seed)
    samples = []
    for length in lengths:
        ids = [rng.randrange(VOCABULARY) for _ in range(length)]
        positions = sorted(rng.sample(range(1, length), min(3, length - 1)))
        allowed = [tuple({*rng.sample(range(VOCABULARY), 5), ids[p]}) for p in positions]
        zeros = [0.0] * len(positions)
        samples.append(Sample(ids, positions, zeros, zeros, [0] * len(positions), allowed))
    return samples


def scored(
    lm: Any, samples: list[Sample], micro_tokens: int, packing: Any
) -> tuple[dict[Any, float], torch.Tensor, int]:
    """Log-probability and entropy by (sample, place), the gradient of a weighted sum of both, and tokens computed."""
    lm.zero_grad()
    found: dict[Any, float] = {}
    tokens = 0
    parts, width = split(samples, micro_tokens, packing)
    for part in parts:
        batch = collate(samples, part, CPU, width)
        tokens += batch.inputs["input_ids_BT"].numel()
        logprobs_L, entropy_L = lm(**batch.inputs, entropy_grad=True)
        weights_L = 1.0 + batch.index_L % 3
        ((logprobs_L + 0.5 * entropy_L) * weights_L).sum().backward()
        for owner, logprob, entropy in zip(batch.index_L.tolist(), logprobs_L.tolist(), entropy_L.tolist()):
            place = sum(key[0] == owner for key in found)
            found[owner, place] = logprob, entropy  # type: ignore[assignment]
    return found, torch.cat([p.grad.reshape(-1) for p in lm.parameters()]), tokens


def branching(rng: random.Random, prompts: int, replies: int) -> list[Sample]:
    """Replies to the same prompts, some of which part ways late, in any order."""
    lists = []
    for _ in range(prompts):
        prompt = [rng.randrange(VOCABULARY) for _ in range(rng.randint(4, 20))]
        middle = [rng.randrange(VOCABULARY) for _ in range(rng.randint(0, 4))]
        for _ in range(replies):
            begun = prompt + middle[: rng.randint(0, len(middle))]
            lists.append(begun + [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 6))])
    rng.shuffle(lists)
    samples = []
    for ids in [*lists, lists[0], lists[0][:-1]]:  # one twice, and one that another goes on from
        positions = sorted(rng.sample(range(1, len(ids)), min(3, len(ids) - 1)))
        zeros = [0.0] * len(positions)
        samples.append(Sample(ids, positions, zeros, zeros, [0] * len(positions)))
    return samples


@pytest.mark.parametrize("packing", ["rows", "prefixes"])
@pytest.mark.parametrize("arch", ["qwen3", "llama"])
@pytest.mark.parametrize("micro_tokens", [1, 90, 10_000])
def test_packing_changes_nothing_but_the_work(arch: str, micro_tokens: int, packing: str) -> None:
    lm = model(arch)
    skewed = make([30, 3, 2, 17, 9, 2, 25, 4, 13, 30, 6])
    samples = skewed if packing == "rows" else branching(random.Random(3), 5, 6)
    padded, padded_gradient, padded_tokens = scored(lm, samples, micro_tokens, "none")
    packed, packed_gradient, packed_tokens = scored(lm, samples, micro_tokens, packing)
    assert padded.keys() == packed.keys() and len(padded) == sum(len(s.positions_L) for s in samples)
    for key, values in padded.items():
        assert packed[key] == pytest.approx(values, abs=1e-5), key
    scale = float(padded_gradient.abs().max())
    torch.testing.assert_close(packed_gradient, padded_gradient, rtol=0, atol=1e-5 * scale)
    assert scale > 1 and packed_tokens <= (padded_tokens + 30 if packing == "rows" else 0.7 * padded_tokens)
    if packing == "rows" and micro_tokens == 10_000:
        assert packed_tokens == 5 * 30 < padded_tokens == 11 * 30


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 6))
def test_a_row_shows_every_sequence_its_own_tokens_only(seed: int, prompts: int, replies: int) -> None:
    """Read back from what the model is given: behind the mask of its last token, each sequence stands in order."""
    samples = branching(random.Random(seed), prompts, replies)
    (part,), width = split(samples, 10**9, "prefixes")
    assert sorted(part) == list(range(len(samples)))
    inputs, where = layout([samples[i] for i in part], width, CPU)
    ids, positions, mask = (inputs[name] for name in ("input_ids_BT", "position_ids_BT", "mask_B1TT"))
    for i, (row, columns) in zip(part, where):
        own = samples[i].token_ids_S
        for place, column in enumerate(columns):
            seen = mask[row, 0, column].nonzero().flatten().tolist()
            assert ids[row, seen].tolist() == own[: place + 1]
            assert positions[row, seen].tolist() == list(range(place + 1))
    assert bool(mask.any(-1).all()), "a row of the mask without anything to see gives NaN"


def test_what_begins_alike_stays_together() -> None:
    """By hand: two prompts with three replies each; the odd one out has too little in common with either."""
    lists = [[1, 2, 3, 4, 9], [5, 6, 7, 8], [1, 2, 3, 4, 7, 7], [1, 9, 9, 9], [5, 6, 7, 9], [1, 2, 3, 4], [5, 6, 7]]
    samples = [Sample(ids, [1], [0.0], [0.0], [0]) for ids in lists]
    assert sorted(map(sorted, families(samples, "prefixes"))) == [[0, 2, 5], [1, 4, 6], [3]]
    assert families(samples, "none") == families(samples, "rows") == [[i] for i in range(7)]
    rows = layout([samples[i] for i in (5, 0, 2)], SHARED, CPU)[0]
    assert rows["input_ids_BT"].tolist() == [[1, 2, 3, 4, 9, 7, 7]]
    assert rows["position_ids_BT"].tolist() == [[0, 1, 2, 3, 4, 4, 5]]


@pytest.mark.parametrize("packing", ["rows", "prefixes"])
def test_models_that_would_mix_sequences_are_refused(packing: Any) -> None:
    lm = model("qwen3")
    check_packing(lm, packing)
    if packing == "prefixes":
        real = lm.lm.base_model.forward
        lm.lm.base_model.forward = lambda **inputs: real(**{**inputs, "attention_mask": None})
        with pytest.raises(LearnerConfigError, match="packing: in Qwen3ForCausalLM sequences of one row see each"):
            check_packing(lm, packing)
        return
    real = lm.lm.base_model.forward
    lm.lm.base_model.forward = lambda **inputs: real(**{**inputs, "use_cache": True})
    with pytest.raises(LearnerConfigError, match="packing: in Qwen3ForCausalLM sequences of one row see each other"):
        check_packing(lm, packing)


LENGTHS = st.lists(st.integers(2, 50), min_size=1, max_size=30)


@given(LENGTHS, st.integers(1, 300))
def test_rows_hold_every_token_once(lengths: list[int], micro_tokens: int) -> None:
    samples = make(lengths)
    parts, width = split(samples, micro_tokens, packing="rows")
    assert sorted(i for part in parts for i in part) == list(range(len(lengths))) and width == max(lengths)
    rows = 0
    for part in parts:
        taken: set[tuple[int, int]] = set()
        where = places([lengths[i] for i in part], width)
        for i, (row, start) in zip(part, where):
            cells = {(row, column) for column in range(start, start + lengths[i])}
            assert not cells & taken and start + lengths[i] <= width
            taken |= cells
        count = where[-1][0] + 1
        assert count == 1 or count * width <= micro_tokens
        rows += count
        inputs = collate(samples, part, CPU, width).inputs
        ids = inputs["input_ids_BT"]
        for i, (row, start) in zip(part, where):
            assert ids[row, start : start + lengths[i]].tolist() == samples[i].token_ids_S
            if "position_ids_BT" in inputs:
                assert inputs["position_ids_BT"][row, start : start + lengths[i]].tolist() == list(range(lengths[i]))
    # First fit decreasing leaves no two rows that would fit into one.
    assert rows <= max(1, 2 * sum(lengths) / width)


@given(LENGTHS, st.integers(1, 4), st.integers(20, 200))
def test_ranks_have_as_many_micro_batches_none_idle_while_another_has_two(
    lengths: list[int], ranks: int, micro_tokens: int
) -> None:
    samples = make(lengths)
    shares = [[samples[i] for i in part] for part in balance(samples, ranks)]
    loads = [sum(len(s.token_ids_S) for s in share) for share in shares]
    assert max(loads) - min(loads) <= max(lengths)
    cut = [split(share, micro_tokens)[0] for share in shares]
    count = max(map(len, cut))
    for share, parts in zip(shares, cut):
        even = spread(parts, count, share)
        assert sorted(i for part in even for i in part) == list(range(len(share)))
        assert all(even) and (len(even) == count or all(len(part) == 1 for part in even))


def test_one_rank_is_left_as_it_is() -> None:
    samples = make([5, 9, 30])
    parts = split(samples, 20)[0]
    assert parts == [[2], [1, 0]] and spread(parts, 2, samples) == parts
    assert split([], 20, packing="rows") == ([], 0)
    empty = collate([], [], CPU, 0)
    assert empty.inputs["input_ids_BT"].tolist() == [[0]] and empty.index_L.tolist() == [-1]
