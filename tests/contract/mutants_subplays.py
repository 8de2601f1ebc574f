"""Seeded faults in plays within a phased play. Part of `tests.contract.mutants`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from protocols.phased import interpreter as phased, state as table, subplays
from protocols.types import Outcome
from tests.contract.seeding import HERE, mutant

SWAP, ERRAND = (HERE / "protocols" / f"{name}.yaml" for name in ("swap", "errand"))


@mutant(SWAP, "run 1", subplays, "SubPlay")
def second_play_is_the_same_again(sub_play: Any) -> Any:
    def broken(protocol: Any, task: Any, seed: int, key: str) -> Any:
        back = [replace(phase, seats=phase.seats[::-1]) for phase in protocol.phases]
        return sub_play(replace(protocol, phases=back) if key == "swapped" else protocol, task, seed, key)

    return broken


@mutant(SWAP, "believed", subplays, "_together")
def first_play_decides(together: Any) -> Any:
    return lambda rules, task, answers: together(rules, task, [answers[0], answers[0]])


@mutant(SWAP, "one of two plays is invalid", subplays, "_together")
def one_play_is_enough(together: Any) -> Any:
    def broken(rules: Any, task: Any, answers: Any) -> Any:
        sound = [answer for answer in answers if answer.status == "ok"]
        return together(rules, task, [sound[0], sound[-1]] if sound else answers)

    return broken


@mutant(ERRAND, "was to answer", table, "posed")
def whole_task_handed_on(posed: Any) -> Any:
    def broken(delegate: Any, task: Any, question: str, key: str, seed: int) -> Any:
        play = posed(delegate, task, question, key, seed)
        return replace(play, task=replace(play.task, hidden=task.hidden))

    return broken


@mutant(ERRAND, "chat has", table.Table, "answered")
def answers_to_the_wrong_seats(answered: Any) -> Any:
    return lambda self, phase, answers: answered(self, phase, answers[::-1])


@mutant(ERRAND, "chat has", table.Table, "answered")
def failed_play_answers(answered: Any) -> Any:
    def broken(self: Any, phase: Any, answers: Any) -> None:
        answered(self, phase, [Outcome(answer=answer.answer or "I do not know") for answer in answers])

    return broken


@mutant(ERRAND, "in private shows", phased.Phased, "play")
def private_words_are_the_answer(play: Any) -> Any:
    def broken(self: Any, task: Any, rng: Any) -> Any:
        said, running = "", play(self, task, rng)
        answers: Any = None
        try:
            while True:
                asks = next(running) if answers is None else running.send(answers)
                answers = yield asks
                said = getattr(answers[-1], "text", said)
        except StopIteration as end:
            return replace(end.value, answer=said if "eve" in self.seats else end.value.answer)

    return broken
