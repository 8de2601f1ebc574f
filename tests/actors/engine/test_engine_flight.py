"""Tries of legal replies and the flights over them, without vLLM."""

from __future__ import annotations

import math

import numpy as np
import pytest

from actors.engine.generation import ChoiceGeneration, ReadGeneration
from actors.serving.messages import GenRequest
from actors.serving.trie import branchings, build_trie, choice_logprobs, forced_path

STOP = 1


def test_trie_forces_tokens_without_alternative_and_branches_where_choices_differ():
    root = build_trie(((7, 8, 1), (7, 8, 2), (7, 9, 3, 4)))
    path, node = forced_path(root)
    assert path == [7] and isinstance(node, dict) and set(node) == {8, 9}
    assert forced_path({9: node[9]}) == ([9, 3, 4], 2)
    assert {prefix: set(children) for prefix, children in branchings(root)} == {(7,): {8, 9}, (7, 8): {1, 2}}


def test_trie_of_one_choice_has_nothing_to_ask():
    root = build_trie(((5, 6),))
    assert forced_path(root) == ([5, 6], 0) and list(branchings(root)) == []
    assert choice_logprobs([(5, 6)], {}) == [0.0]


@pytest.mark.parametrize(
    "choices", [((),), ((1,), (1,)), ((1,), (1, 2)), ((1, 2), (1,)), ((1, 2, 3), (1, 2))]
)
def test_trie_refuses_empty_repeated_and_prefix_choices(choices):
    with pytest.raises(ValueError, match="choice"):
        build_trie(choices)


def test_choice_logprobs_multiply_along_paths():
    choices = [(7, 8, 1), (7, 8, 2), (7, 9)]
    read = {(7,): {8: math.log(0.25), 9: math.log(0.75)}, (7, 8): {1: math.log(0.1), 2: math.log(0.9)}}
    assert np.exp(choice_logprobs(choices, read)) == pytest.approx([0.025, 0.225, 0.75])


class Asked:
    """Stands for vLLM: remembers what a flight asks for."""

    def __init__(self, monkeypatch):
        monkeypatch.setattr("actors.engine.generation.sampling_params", lambda *args, **settings: settings)
        self.requests: list[tuple[list[int], dict, object]] = []

    def __call__(self, flight, prompt_ids, params, tag):
        self.requests.append((prompt_ids, params, tag))


class Completion:
    def __init__(self, logprobs: dict[int, float]):
        self.logprobs = [
            {token: type("Logprob", (), {"logprob": value}) for token, value in logprobs.items()}
        ]


def test_read_that_an_update_cut_in_two_is_asked_again(monkeypatch):
    asked, results = Asked(monkeypatch), []
    choices = ((7, 1), (7, 2), (8,))
    flight = ReadGeneration(GenRequest(0, [5], choices=choices, read=True), asked, results.append, 3)
    flight.start()
    answers = {(): {7: math.log(0.5), 8: math.log(0.5)}, (7,): {1: math.log(0.9), 2: math.log(0.1)}}
    assert sorted(prompt for prompt, _, _ in asked.requests) == [[5], [5, 7]]
    for (_, _, tag), version in zip(list(asked.requests), (3, 4)):
        flight.take(Completion(answers[tag[0]]), [version], tag)
    assert results == [] and len(asked.requests) == 4
    for _, params, tag in asked.requests[2:]:
        assert set(params["allowed"]) == set(params["read"]) == set(answers[tag[0]])
        flight.take(Completion(answers[tag[0]]), [4], tag)
    (result,) = results
    assert result.versions == [4] and np.exp(result.choice_logprobs) == pytest.approx([0.45, 0.05, 0.5])


def test_a_result_says_how_much_of_its_prompts_the_cache_had(monkeypatch):
    asked, results = Asked(monkeypatch), []
    flight = ChoiceGeneration(GenRequest(0, [5], choices=((7, 1), (7, 2), (8, 3))), asked, results.append, 0)
    flight.start()
    for token, (prompted, cached) in zip((7, 2), ((100, 0), (101, 96))):
        flight.prompt_tokens += prompted  # as Engine does before it hands over what vLLM answered
        flight.cached_tokens += cached
        completion = Completion({token: -1.0})
        completion.token_ids = [token]
        flight.take(completion, [0], asked.requests[-1][2])
    (result,) = results
    assert (result.output_ids, result.prompt_tokens, result.cached_tokens) == ([7, 2], 201, 96)
