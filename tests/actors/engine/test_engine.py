"""vLLM engines against a Hugging Face recomputation: log probabilities, choices, reads, weight updates.

One engine process serves the whole module, so the tests run in file order: each states the weights it needs,
and the last one kills the engine.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Iterator

import numpy as np
import pytest

from actors.serving.messages import GenRequest, GenResult
from configs.schema.run import EngineConfig
from tests.support.engine_oracle import Serving, buckets, hf_logprobs, in_this_process, worst_gap
from tests.support.local_channel import local_channel

VOCAB, STOP = 300, 1
TOLERANCE = 1e-4
"""Nats between vLLM and Hugging Face, both in float32 on CPU."""


@pytest.fixture(scope="module")
def serving(tmp_path_factory) -> Iterator[Serving]:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.15,
        eos_token_id=STOP,
        bos_token_id=None,
        pad_token_id=0,
    )
    model = Qwen3ForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    with in_this_process(folder, model, EngineConfig(max_num_seqs=64, kv_cache_mb=32)) as serving:
        yield serving


def mixed_batch(seed: int) -> list[GenRequest]:
    """Free text, choices and reads side by side, as vLLM batches them; the prompts share a long prefix."""
    rng = np.random.default_rng(seed)
    prefix = [int(t) for t in np.random.default_rng(99).integers(2, VOCAB, 70)]

    def tokens(count: int) -> list[int]:
        return [int(t) for t in rng.choice(np.arange(2, VOCAB), count, replace=False)]

    batch = []
    for i in range(4):
        a, b, c, d = tokens(4)
        deep = ((a, b, c, STOP), (a, b, d, STOP), (a, c, STOP), (d, STOP))
        batch += [
            GenRequest(i, prefix + tokens(5), max_tokens=6, stop_ids=(STOP,), temperature=0.7),
            GenRequest(i, prefix + tokens(5), max_tokens=4, temperature=1.0, seed=i),
            GenRequest(i, prefix + tokens(5), choices=tuple((t,) for t in tokens(33)), temperature=1.3),
            GenRequest(i, prefix + tokens(3), choices=deep, temperature=0.6),
            GenRequest(i, prefix + tokens(3), choices=deep, temperature=0.0),
            GenRequest(i, prefix + tokens(2), choices=((a,), (b,)), read=True),
        ]
    return batch


def sampled(batch: list[GenRequest], results: list[GenResult]) -> tuple[list[GenRequest], list[GenResult]]:
    pairs = [(q, r) for q, r in zip(batch, results) if not q.read]
    return [q for q, _ in pairs], [r for _, r in pairs]


def fresh_batch_gap(serving: Serving, seed: int) -> float:
    batch = mixed_batch(seed)
    return worst_gap(serving, *sampled(batch, serving.generate(batch)))


@pytest.mark.engine
def test_ready_reports_the_loaded_engine(serving):
    report = serving.run(serving.engine.ready())
    assert report["version"] == 0 and report["device"] == "cpu" and report["max_model_len"] == 256
    assert report["pid"] == os.getpid() and report["load_seconds"] > 0


@pytest.mark.engine
def test_logprobs_of_sampled_tokens_equal_hf(serving):
    batch = mixed_batch(0)
    results = serving.generate(batch)
    assert worst_gap(serving, *sampled(batch, results)) < TOLERANCE
    for request, result in zip(batch, results):
        assert result.id == request.id
        if not request.choices:
            ended = result.output_ids[-1] in request.stop_ids
            assert result.finish == ("stop" if ended else "length")
            assert ended or len(result.output_ids) == request.max_tokens
            assert not set(result.output_ids[:-1]) & set(request.stop_ids)


@pytest.mark.engine
def test_stop_id_is_returned_and_other_special_tokens_do_not_stop(serving):
    rng = np.random.default_rng(5)
    prompts = [[int(t) for t in rng.integers(2, VOCAB, 6)] for _ in range(8)]
    free = serving.generate([GenRequest(i, p, max_tokens=12, temperature=0.0) for i, p in enumerate(prompts)])
    assert all(len(result.output_ids) == 12 and result.finish == "length" for result in free)
    stops = [(result.output_ids[5],) for result in free]
    again = serving.generate(
        [
            GenRequest(i, p, max_tokens=12, temperature=0.0, stop_ids=s)
            for i, (p, s) in enumerate(zip(prompts, stops))
        ]
    )
    for first, result, (stop,) in zip(free, again, stops):
        cut = first.output_ids.index(stop) + 1
        assert result.output_ids == first.output_ids[:cut] and result.finish == "stop"


@pytest.mark.engine
def test_choices_return_a_legal_reply_with_its_mask(serving):
    batch = [request for request in mixed_batch(1) if request.choices and not request.read]
    for request, result in zip(batch, serving.generate(batch)):
        assert result.choice is not None and result.allowed is not None
        assert tuple(result.output_ids) == request.choices[result.choice]
        for step, allowed in enumerate(result.allowed):
            begun = [c for c in request.choices if c[:step] == tuple(result.output_ids[:step])]
            assert set(allowed) == {c[step] for c in begun}
            if len(allowed) == 1:
                assert result.logprobs[step] == 0.0


@pytest.mark.engine
def test_greedy_takes_the_likeliest_token_at_each_branching(serving):
    batch = [request for request in mixed_batch(2) if request.choices and request.temperature == 0.0]
    for request, result in zip(batch, serving.generate(batch)):
        for step, allowed in enumerate(result.allowed):
            scores = {
                t: hf_logprobs(serving.base, request.prompt_ids, result.output_ids[:step] + [t], 0.0,
                               [*result.allowed[:step], allowed])[-1]
                for t in allowed
            }  # fmt: skip
            assert result.output_ids[step] == max(scores, key=scores.__getitem__)


@pytest.mark.engine
def test_choice_is_sampled_with_the_probability_it_reports(serving):
    choices = ((10,), (11, 12), (11, 13))
    prompt = list(range(20, 30))
    results = serving.generate([GenRequest(i, prompt, choices=choices) for i in range(1500)])
    (read,) = serving.generate([GenRequest(0, prompt, choices=choices, read=True)])
    counts = np.bincount([result.choice for result in results], minlength=3)
    expected = 1500 * np.exp(read.choice_logprobs)
    # Chi-square with 2 degrees of freedom: above 20 once in 20,000 runs.
    assert ((counts - expected) ** 2 / expected).sum() < 20


@pytest.mark.engine
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize(
    "choices",
    [
        ((5,), (6,)),
        ((5, 7, STOP), (5, 8, STOP), (5, 9, STOP)),
        ((5, 7), (5, 8, 9), (5, 8, 10), (6, 7), (11,)),
        tuple((t,) for t in range(2, 160)),
        ((5, 6),),
    ],
    ids=["two", "shared-prefix", "deep", "more-than-vllm-takes-at-once", "single"],
)
def test_read_probabilities_equal_hf(serving, choices, temperature):
    prompt = [40, 50, 60, 70, 80]
    request = GenRequest(3, prompt, choices=choices, read=True, temperature=temperature)
    result, other = serving.generate([request, GenRequest(4, prompt, max_tokens=2)])
    model = serving.models[serving.engine.version]
    expected = []
    for choice in choices:
        masks = [{c[step] for c in choices if c[:step] == choice[:step]} for step in range(len(choice))]
        expected.append(sum(hf_logprobs(model, prompt, list(choice), temperature, masks)))
    assert result.choice_logprobs == pytest.approx(expected, abs=TOLERANCE)
    assert sum(map(math.exp, result.choice_logprobs)) == pytest.approx(1.0, abs=1e-6)
    assert result.output_ids == [] and result.versions == [serving.engine.version] and result.choice is None
    assert worst_gap(serving, [GenRequest(4, prompt, max_tokens=2)], [other]) < TOLERANCE


@pytest.mark.engine
def test_unservable_requests_end_as_errors_and_others_go_on(serving):
    good = GenRequest(0, [5, 6, 7], max_tokens=2)
    bad = {
        "too long": GenRequest(1, [5] * 300, max_tokens=2),
        "token beyond the vocabulary": GenRequest(2, [5, 100_000], max_tokens=2),
        "choice beyond the vocabulary": GenRequest(3, [5], choices=((100_000,), (6,))),
        "prefix choice": GenRequest(4, [5], choices=((6,), (6, 7))),
        "empty prompt": GenRequest(5, [], max_tokens=2),
        "temperature": GenRequest(6, [5], max_tokens=2, temperature=-1.0),
    }
    first, *refused, last = serving.generate([good, *bad.values(), good])
    assert len(first.output_ids) == len(last.output_ids) == 2
    for name, result in zip(bad, refused):
        assert result.finish == "error" and result.error, name


@pytest.mark.engine
def test_a_line_brings_each_result_once(serving):
    batch = [GenRequest(i, [5 + i % 50, 6], max_tokens=1 + 20 * (i % 2)) for i in range(150)]

    async def drive():
        async with local_channel(serving.engine) as channel:
            channel.submit(batch[:100])
            results = await channel.collect()
            status = await serving.engine.status()
            channel.submit(batch[100:])
            while len(results) < len(batch):
                more = await channel.collect()
                assert more
                results += more
            return status, results

    status, results = serving.run(drive())
    assert 0 < status["running"] <= 64 and status["running"] + status["waiting"] < 100
    assert sorted(result.id for result in results) == list(range(150))
    assert {result.id % 2: len(result.output_ids) for result in results} == {0: 1, 1: 21}
    assert serving.run(serving.engine.status())["running"] == 0


@pytest.mark.engine
def test_a_copied_request_is_what_vllm_would_have_made(serving):
    """Of every kind, also where another kind of the same parameters' values stood before it."""
    from types import SimpleNamespace

    from vllm.inputs import tokens_input

    from actors.engine.generation import client_error, sampling_params
    from actors.engine.requests import Requests

    llm, queued = serving.engine._llm, []
    core = SimpleNamespace(add_request=queued.append)
    ours = Requests(SimpleNamespace(
        model_config=llm.model_config, input_processor=llm.input_processor, engine_core=core,
        get_supported_tasks=llm.get_supported_tasks, output_processor=SimpleNamespace(add_request=lambda *_: None),
    ))  # fmt: skip
    kinds = [
        sampling_params(4, 0.7, stop_ids=(STOP,)),
        sampling_params(1, 1.0, allowed=(5, 9)),
        sampling_params(1, 1.0, allowed=(5, 9), read=(5,)),
        sampling_params(9, 0.0),
        sampling_params(2, 1.0, seed=3),
    ]
    for number in range(3):
        for params in kinds:
            ids = [7, 8, 20 + number] * (number + 1)
            ours.add(f"r{number}", ids, params, None)
            wanted = llm.input_processor.process_inputs(
                f"r{number}", tokens_input(ids), params, supported_tasks=llm.get_supported_tasks()
            )
            wanted.external_req_id = wanted.request_id
            wanted.arrival_time = queued[-1].arrival_time
            assert queued[-1] == wanted
    assert len(ours._kinds) == len(kinds)
    assert len({id(request.sampling_params) for request in queued}) == len(queued), "two requests share parameters"
    for wrong in ([], [5] * 256, [VOCAB]):
        with pytest.raises((ValueError, client_error())):
            ours.add("wrong", wrong, kinds[0], None)


# -- weights -----------------------------------------------------------------------------------------------


@pytest.mark.engine
def test_updates_are_exact_also_for_cached_prompts(serving):
    before = serving.run(serving.engine.status())["cached_tokens"]
    assert fresh_batch_gap(serving, 7) < TOLERANCE
    for version in (1, 2, 5):
        report = serving.update(version, serving.perturbed(version))
        assert (
            report["bytes"] == sum(p.numel() * 4 for p in serving.base.parameters()) and report["seconds"] > 0
        )
        for _ in range(2):  # the second time from the prefix cache
            batch = mixed_batch(7)
            results = serving.generate(batch)
            assert {v for result in results for v in result.versions} == {version}
            assert worst_gap(serving, *sampled(batch, results)) < TOLERANCE
    assert serving.run(serving.engine.status())["cached_tokens"] > before
    assert serving.run(serving.engine.ready())["version"] == 5


@pytest.mark.engine
def test_versions_tell_the_models_apart(serving):
    """The check above is worth something only if the wrong model's probabilities fail it."""
    serving.models[5], right = serving.models[2], serving.models[5]
    assert fresh_batch_gap(serving, 8) > 100 * TOLERANCE
    serving.models[5] = right
    assert fresh_batch_gap(serving, 8) < TOLERANCE


@pytest.mark.engine
@pytest.mark.parametrize(
    "part", ["model.layers.1.mlp", "model.layers.0.self_attn.q_norm", "model.embed_tokens"]
)
def test_stale_part_of_the_weights_is_noticed(serving, part):
    version = serving.engine.version + 1
    model = serving.perturbed(100 + version)
    old = serving.models[serving.engine.version]
    serving.run(serving.engine.update_weights(version, buckets(model, stale=part, stale_from=old)))
    serving.models[version] = model
    assert fresh_batch_gap(serving, 9) > 10 * TOLERANCE
    serving.update(version, model)
    assert fresh_batch_gap(serving, 9) < TOLERANCE


@pytest.mark.engine
def test_bad_updates_are_refused_and_the_old_version_keeps_serving(serving):
    version = serving.engine.version
    model = serving.perturbed(1000)
    good = buckets(model)
    flipped = buckets(model)
    flipped[1].data[17] ^= 1
    renamed = buckets(model)
    renamed[0].entries[0] = ("model.embed.weight", *renamed[0].entries[0][1:])
    misshaped = buckets(model)
    misshaped[0].entries[0] = (misshaped[0].entries[0][0], (64, VOCAB), *misshaped[0].entries[0][2:])
    refused = [
        (version + 1, flipped, "checksum"),
        (version + 1, good[:1] + good[2:], "missing"),
        (version + 1, renamed, "missing|unknown"),
        (version + 1, misshaped, "shape"),
        (version - 1, good, "older"),
    ]
    for number, sent, message in refused:
        with pytest.raises(ValueError, match=message):
            serving.run(serving.engine.update_weights(number, sent))
        assert serving.engine.version == version
    assert fresh_batch_gap(serving, 10) < TOLERANCE


@pytest.mark.engine
def test_generation_in_flight_during_an_update_goes_on_with_the_new_weights(serving):
    old, new = serving.engine.version, serving.engine.version + 1
    model = serving.perturbed(2000)
    batch = [GenRequest(i, [30 + i, 31, 32], max_tokens=200) for i in range(8)]

    async def update_under_way():
        task = asyncio.ensure_future(serving.engine.generate(batch))
        states = serving.engine._llm.output_processor.request_states
        while len(states) < len(batch) or any(state.is_prefilling for state in list(states.values())):
            await asyncio.sleep(0.001)
        await serving.engine.update_weights(new, buckets(model))
        return await task

    results = serving.run(update_under_way())
    serving.models[new] = model
    for result in results:
        assert result.finish == "length" and len(result.output_ids) == 200
        assert result.versions == sorted(result.versions) and set(result.versions) == {old, new}
    assert worst_gap(serving, batch[:2], results[:2]) < TOLERANCE


@pytest.mark.engine
def test_failure_inside_vllm_ends_the_actor_at_once(serving, monkeypatch):
    """Last: it breaks the engine. The actor would exit; here the exit is only recorded."""
    exits: list[int] = []
    monkeypatch.setattr("actors.engine.actor.os._exit", exits.append)
    monkeypatch.setattr(serving.engine._llm, "step", lambda: 1 // 0)

    async def until_exit():
        task = asyncio.ensure_future(serving.engine.generate([GenRequest(0, [5], max_tokens=200)]))
        while not exits:
            await asyncio.sleep(0.01)
        task.cancel()

    serving.run(until_exit())
    assert exits == [1]
