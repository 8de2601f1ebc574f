"""A and B instead of all weights: real vLLM and DeepSpeed on Ray. After every push the engine's log-probabilities are
the learner's, within the tolerance of full pushes; also after a push of whole weights, after a restart, and where two
policies have an adapter each on one engine."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from actors.concurrency import gather_or_cancel
from actors.players.base import Seated, UniformPlayer
from actors.system import System
from configs.schema.run import EngineConfig, LearnerConfig, LoraConfig
from learners.ranks.group import LearnerGroup
from tests.driver.test_system import TOLERANCE, Learning, versions
from tests.support.rigs import rigged

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

LORA = LoraConfig(rank=4, alpha=16.0, target_modules=["q_proj", "o_proj", "up_proj"])
"""Of the fused layers (q, k, v; gate, up) one part each."""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Learning]:
    with rigged(lambda: Learning(tmp_path_factory.mktemp("model"), LORA), actors=5) as rig:
        yield rig


def nbytes(buckets: Any) -> int:
    return sum(entry[4] for bucket in buckets for entry in bucket["entries"])


def learn_and_push(rig: Learning, seed: int) -> None:
    samples = rig.samples(rig.play(seed, 3), seed)
    assert versions(samples) == {rig.served.version}
    assert rig.gap(samples) < TOLERANCE
    rig.learn(samples)
    assert rig.gap(samples) > 100 * TOLERANCE, "the learner has not moved: nothing was tested"
    rig.push()


def agree(rig: Learning, seed: int) -> bool:
    samples = rig.samples(rig.play(seed, 3), seed)
    assert versions(samples) == {rig.served.version}
    return rig.gap(samples) < TOLERANCE


def test_only_the_adapter_travels_and_the_engine_agrees_after_every_push(rig: Learning) -> None:
    for seed in range(3):
        learn_and_push(rig, seed)
    assert agree(rig, 3)
    # A and B of q (64 -> 2 heads of 32), o (back) and up (64 -> 128) in two layers, 4 bytes a number.
    assert rig.served.sync_bytes == 2 * 4 * (4 * (64 + 64) + 4 * (64 + 64) + 4 * (64 + 128))
    assert rig.served.sync_bytes * 10 < nbytes(rig(rig.learner.export()))


def test_bad_adapters_are_refused_and_the_old_one_keeps_serving(rig: Learning) -> None:
    import ray

    version = rig.served.version

    def refused(message: str, **changes: Any) -> None:
        (bucket,) = ray.get(rig(rig.learner.export_ref()))
        with pytest.raises(ValueError, match=message):
            rig(rig.served.channels[0].engine.update_weights.remote(version + 1, [{**bucket, **changes}]))

    (good,) = ray.get(rig(rig.learner.export_ref()))
    data = good["data"].copy()
    data[17] ^= 1
    refused("checksum does not match", data=data)
    refused("is missing", entries=good["entries"][1:])
    refused("no model 'no/such' on this machine", base="no/such")
    assert agree(rig, 10)


def test_whole_weights_in_between_are_replaced(rig: Learning) -> None:
    import ray

    other = rig(rig.learner.export())
    for bucket in other:  # everything half as large, the embeddings too, which no adapter touches
        bucket["data"] = (bucket["data"].view("float32") * 0.5).view("uint8")
        bucket["sha256"] = hashlib.sha256(bucket["data"].tobytes()).hexdigest()
    rig(rig.system.push("p", rig.served.version + 1, ray.put(other)))
    assert not agree(rig, 20)
    rig.push()
    assert agree(rig, 21)
    learn_and_push(rig, 22)
    assert agree(rig, 23)


def test_a_restarted_engine_has_the_current_adapter_before_its_first_token(rig: Learning) -> None:
    (before,) = rig(rig.system.statuses())["p"]
    os.kill(before["pid"], signal.SIGKILL)
    assert agree(rig, 30)
    (now,) = rig(rig.system.statuses())["p"]
    assert now["pid"] != before["pid"] and now["version"] == before["version"] > 0
    learn_and_push(rig, 31)
    assert agree(rig, 32)


# ---- two policies on one engine ----------------------------------------------------------------------


class Guest(Learning):
    """One of the policies that share an engine, seen as `Learning` sees the only one."""

    def __init__(self, name: str, system: System, learner: LearnerGroup, rig: Learning):
        self.name, self.system, self.learner = name, system, learner
        self.loop, self.source, self.choosing, self.writing = rig.loop, rig.source, rig.choosing, rig.writing
        self.served = system.served[name]
        self.players = {"debater": Seated(name, self.served.player), "judge": Seated("u", UniformPlayer())}

    def push(self) -> int:
        version = self.served.version + 1
        self(self.system.push(self.name, version, self(self.learner.export_ref())))
        return version


@pytest.fixture(scope="module")
def guests(rig: Learning) -> Iterator[tuple[Guest, Guest]]:
    base = replace(rig.policy, trained=False, learner=LearnerConfig())
    shared = EngineConfig(share="base")
    bob = replace(rig.policy.learner, lora=LoraConfig(rank=2, target_modules=["v_proj", "gate_proj", "down_proj"]))
    alice = replace(rig.policy, engine=shared)
    policies = {"base": base, "alice": alice, "bob": replace(alice, learner=bob)}
    system = System(policies, seed=0)
    learners = [LearnerGroup(name, rig.model_dir, policies[name].learner, seed=i) for i, name in enumerate(policies)
                if name != "base"]  # fmt: skip
    rig(gather_or_cancel([system.serve("base", rig.model_dir, rig.codec), *(one.ready() for one in learners)]))
    for name in ("alice", "bob"):
        rig(system.serve(name, rig.model_dir, rig.codec))
    yield tuple(Guest(name, system, learner, rig) for name, learner in zip(("alice", "bob"), learners))  # type: ignore[misc]
    for learner in learners:
        learner.stop()
    system.stop()


def test_policies_on_one_engine_learn_apart(guests: tuple[Guest, Guest]) -> None:
    alice, bob = guests
    assert alice.served.channels is bob.served.channels and len(alice.served.channels) == 1
    for seed, one in enumerate((alice, bob, alice)):
        learn_and_push(one, 40 + seed)
        assert agree(alice, 50 + seed) and agree(bob, 60 + seed)
    assert (alice.served.version, bob.served.version) == (2, 1)
    judge = alice.system.served["base"]
    samples = alice.samples(alice.play(70, 3), 70)
    bob.players["debater"] = Seated("base", judge.player)
    assert versions(bob.samples(bob.play(70, 3), 70)) == {0}, "the base is nobody's adapter"
    bob.players["debater"] = Seated("bob", bob.served.player)
    assert bob.gap(samples) > 100 * TOLERANCE, "both have the same weights: nothing was tested"


def test_a_restarted_shared_engine_has_both_adapters(guests: tuple[Guest, Guest]) -> None:
    alice, bob = guests
    before = alice(alice.system.statuses())["base"][0]
    os.kill(before["pid"], signal.SIGKILL)
    assert agree(bob, 80) and agree(alice, 81)
    now = alice(alice.system.statuses())["base"][0]
    assert now["pid"] != before["pid"] and now["adapters"] == {"alice": 2, "bob": 1}
    assert alice.system.served["base"].router.counters.restarts == 1
