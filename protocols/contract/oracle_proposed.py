"""What plays of the kinds `solve` and `propose_solve` must look like. Shares no code with `protocols/`."""

from __future__ import annotations

from collections.abc import Sequence

from protocols.base import SubPlay
from protocols.contract.drive import Trace
from protocols.contract.text import Raw
from protocols.types import Outcome, Reply, Task, TurnRequest


def solved(raw: Raw, trace: Trace) -> list[str]:
    """What is wrong with a play of the kind `solve`."""
    (((request, reply),),) = trace.rounds
    assert isinstance(request, TurnRequest) and isinstance(reply, Reply)
    task, outcome = trace.task, trace.outcome
    found = _secrets(request, task)
    if task.answer and any(task.answer in message.text for message in request.messages):
        found.append("the solver saw the answer")
    if task.question not in request.messages[-1].text:
        found.append("the solver did not see its own question")
    if "undecidable" in reply.text:
        if outcome.status != "invalid" or outcome.rewards or outcome.score is not None or not outcome.reason:
            found.append("an undecided verifier scored")
    elif outcome.status != "ok" or outcome.score != float(reply.text == task.answer):
        found.append(
            f"{outcome.status} with score {outcome.score} for a reply that is {reply.text == task.answer}"
        )
    else:  # the synthetic verifier grades all or nothing
        for term in raw.get("rewards", [{"name": "correct"}]):
            paid = [r.value for r in outcome.rewards if r.name == term["name"]]
            if term["name"] in ("correct", "partly_correct") and paid != [
                outcome.score * term.get("weight", 1.0)
            ]:
                found.append(f"score {outcome.score} was paid {outcome.rewards}")
    return found


def proposed(raw: Raw, trace: Trace) -> list[str]:
    """What is wrong with a play of the kind `propose_solve`, but for its sub-plays."""
    found: list[str] = []
    task, rounds = trace.task, list(trace.rounds)
    brought, batch, repeats = task.hidden.get("proposal"), raw.get("batch", 1), raw.get("repeats", 8)
    choices = list(task.proposals) if raw.get("proposals", "free") == "choices" else []
    said = [brought.text] if brought else []
    if brought is None:
        asked = rounds.pop(0)
        if [getattr(ask, "turn", None) for ask, _ in asked] != [*range(batch)]:
            found.append(f"{len(asked)} proposals were asked for, not {batch}")
        for request, reply in asked:
            assert isinstance(request, TurnRequest) and isinstance(reply, Reply)
            found += _secrets(request, task)
            if list(request.choices) != choices or request.fresh != (batch > 1):
                found.append(f"the proposer may choose {request.choices}, not {choices}, fresh: {request.fresh}")
            said.append(reply.text.strip())
    valid = [bool(brought) or (text in choices if choices else not text.startswith("nonsense")) for text in said]
    plays = [ask for asks in rounds for ask, _ in asks]
    if len(plays) != repeats * sum(valid) or len(rounds) > 1:
        return [*found, f"{len(plays)} sub-plays in {len(rounds)} yields of proposals that are {valid}"]
    sound = [text for text, good in zip(said, valid) if good]
    for i, ask in enumerate(plays):
        assert isinstance(ask, SubPlay)
        if ask.task.id != f"{task.id}/{sound[i // repeats]}" or ask.task.parent != task.id:
            found.append(f"a sub-play got task {ask.task.id}, not the one proposed")
    keys, seeds = ({getattr(ask, name) for ask in plays} for name in ("key", "seed"))
    if len(keys) != len(plays) or len(seeds) != len(plays):
        found.append("sub-plays share keys or seeds")
    scores, children = [], [child.outcome for child in trace.children]
    for good in valid:
        own, children = (children[:repeats], children[repeats:]) if good else ([], children)
        scores.append([o.score for o in own if o.score is not None and o.status == "ok"])
    return found + _proposer_pay(raw, trace.outcome, said if brought is None else [], valid, scores)


def _proposer_pay(
    raw: Raw, outcome: Outcome, said: list[str], valid: list[bool], scores: Sequence[list[float]]
) -> list[str]:
    """`said`: by a proposer who was asked. Scripted proposals are equal, or nothing alike."""
    repeats = raw.get("repeats", 8)
    rates = {i: sum(own) / len(own) for i, own in enumerate(scores) if len(own) >= max(2, repeats / 2)}
    if any(valid) and not rates:
        wrong = outcome.status != "invalid" or bool(outcome.rewards) or outcome.score is not None
        return ["too few sub-plays had a score, and yet it counted"] if wrong else []
    p = sum(rates.values()) / len(rates) if rates else None
    near = p is not None and outcome.score is not None and abs(outcome.score - p) < 1e-9
    if outcome.status != "ok" or not (near or outcome.score is p is None):
        return [f"{outcome.status} with score {outcome.score}, not {p}"]
    terms = {t["name"]: t for t in raw.get("rewards", [{"name": "learnability"}, {"name": "invalid_proposal"}])}
    due: dict[tuple[str, int], float] = {}
    for turn, text in enumerate(said):
        alike = said.count(text) / len(said) if len(said) > 1 else 0.0
        fine = terms.get("r_zero", {}).get("params", {}).get("duplicates", 1.0)
        q = rates.get(turn)
        worth = {"invalid_proposal": None if valid[turn] else -1.0}
        if q is not None:
            worth |= {"learnability": 4 * q * (1 - q), "azr": 1 - q if q else 0.0}
            worth["r_zero"] = min(q, 1 - q) - fine * alike
        due |= {(name, turn): value * terms[name].get("weight", 1.0) for name, value in worth.items()
                if name in terms and value is not None}  # fmt: skip
    paid = {(r.name, r.turn): r.value for r in outcome.rewards}
    if paid.keys() != due.keys() or any(abs(paid[key] - due[key]) > 1e-9 for key in due):
        return [f"the proposer was paid {paid}, not {due}"]
    return []


def _secrets(request: TurnRequest, task: Task) -> list[str]:
    chat = "\n".join(message.text for message in request.messages)
    return [f"{request.seat} saw hidden {name!r}" for name, hidden in task.hidden.items()
            if hidden.text in chat and request.role not in hidden.roles]  # fmt: skip
