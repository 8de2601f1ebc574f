"""Parcel: what is sent comes out as it was, whoever pickles it."""

from __future__ import annotations

import pickle
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st
from ray import cloudpickle

from actors.messages import GenRequest, GenResult, Parcel

IDS = st.lists(st.integers(0, 2**31), max_size=8)
LOGPROBS = st.lists(st.floats(allow_nan=False, max_value=0.0), max_size=8)
REQUESTS = st.builds(
    GenRequest,
    id=st.integers(0, 2**62),
    prompt_ids=IDS,
    temperature=st.floats(0, 10),
    stop_ids=IDS.map(tuple),
    choices=st.lists(IDS.map(tuple), max_size=4).map(tuple),
    read=st.booleans(),
    seed=st.none() | st.integers(0, 2**63 - 1),
    play=st.text(max_size=8),
    adapter=st.text(max_size=8),
)
RESULTS = st.builds(
    GenResult,
    id=st.integers(0, 2**62),
    output_ids=IDS,
    logprobs=LOGPROBS,
    versions=IDS,
    allowed=st.none() | st.lists(IDS, max_size=4),
    choice=st.none() | st.integers(0, 9),
    choice_logprobs=st.none() | LOGPROBS,
    finish=st.sampled_from(["stop", "length", "error"]),
    error=st.text(max_size=8),
)


@given(st.lists(REQUESTS, max_size=5) | st.lists(RESULTS, max_size=5))
def test_what_is_sent_comes_out(messages: list[Any]) -> None:
    for pickler in (pickle, cloudpickle):
        found = pickle.loads(pickler.dumps(Parcel(messages)))
        assert type(found) is Parcel and found == messages
        for one, other in zip(found, messages):
            assert type(one) is type(other)
            for name in one.__struct_fields__:  # a tuple stays one: choices are keys of caches in the engine
                assert type(getattr(one, name)) is type(getattr(other, name)), name
                assert all(type(a) is type(b) for a, b in zip(nested(one, name), nested(other, name)))


def nested(message: Any, name: str) -> list[Any]:
    value = getattr(message, name)
    return list(value) if isinstance(value, list | tuple) else []


def test_a_parcel_may_be_changed_after_it_has_travelled() -> None:
    found = pickle.loads(pickle.dumps(Parcel([GenResult(1, [2], [-0.5], [3])])))
    found += [GenResult(2, [], [], [])]
    assert type(found) is Parcel and [result.id for result in pickle.loads(pickle.dumps(found))] == [1, 2]


def test_two_kinds_in_one_parcel_are_a_mistake() -> None:
    data = pickle.dumps(Parcel([GenRequest(1, [2]), GenResult(2, [3], [-0.5], [4])]))
    with pytest.raises(msgspec.ValidationError):
        pickle.loads(data)
