"""Recorded plays from which the tests make samples."""

from configs.schema.run import AdvantageConfig
from protocols.types import Episode, Message, Outcome, Reward, Task, TokenTrace, Turn

DR_GRPO = AdvantageConfig(kind="dr_grpo")
FREE = ()
LEGAL = ((7, 8, 9),)


def trace(prompt, output, allowed=FREE, temperature=1.0, version=3) -> TokenTrace:
    logprobs = tuple(-0.1 * (i + 1) for i in range(len(output)))
    return TokenTrace(tuple(prompt), tuple(output), logprobs, (version,) * len(output), allowed, temperature)


def turn(index=0, seat="alice", prompt=(1, 2), output=(7,), allowed=LEGAL, **fields) -> Turn:
    fields = {"role": "debater", "policy": "p", "trace": trace(prompt, output, allowed), **fields}
    return Turn(seat=seat, turn=index, phase="", messages=(Message("user", "x"),), text="y", **fields)


def episode(turns, rewards, id="e", task="t", status="ok", protocol="debate") -> Episode:
    """`rewards`: {(seat, turn or None): value}"""
    given = tuple(Reward(seat, index, value, "r") for (seat, index), value in rewards.items())
    outcome = Outcome(status=status, rewards=given)
    return Episode(id, protocol, Task(task, "?"), 0, tuple(turns), outcome)


def advantages(samples) -> dict[str, list[float]]:
    return {sample.tags["episode"]: sample.advantages_L for sample in samples}


def siblings(values, **fields):
    """Episodes of one turn each, rewarded with `values`."""
    return [episode([turn(**fields)], {("alice", 0): value}, id=f"e{i}") for i, value in enumerate(values)]


def three_turns(rewards, id="e"):
    turns = [turn(i, prompt=(10 + i,), output=(7,)) for i in range(3)]
    return episode(turns, {("alice", i): value for i, value in rewards.items()}, id=id)


def answers(prompt, values, task):
    """Episodes that answer `prompt` with the tokens 10, 11, ..., rewarded with `values`."""
    return [
        episode([turn(prompt=prompt, output=(10 + i, 30 + i), allowed=FREE)], {("alice", 0): value},
                id=f"{task}{i}", task=task)
        for i, value in enumerate(values)
    ]  # fmt: skip
