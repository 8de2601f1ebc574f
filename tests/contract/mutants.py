"""Seeded faults: each one patches the interpreter as a careless change might. The suite must catch them all.

`python -m tests.contract.mutants` prints which fault is caught by what.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from protocols import chat as views
from protocols.judges import panel as bench, reading as judging
from protocols.kinds import propose_solve
from protocols.phased import interpreter as phased, state as table
from protocols.rewards import belief, registry as rewards
from protocols.types import Outcome, Reply
from tests.contract import (
    mutants_blocks,
    mutants_games,
    mutants_grades,
    mutants_rooms,
    mutants_sides,
    mutants_subplays,
)
from tests.contract.seeding import HERE, MUTANTS, SHIPPED, mutant, noticed, seeded

__all__ = [
    "MUTANTS", "mutants_blocks", "mutants_games", "mutants_grades", "mutants_rooms", "mutants_sides",
    "mutants_subplays", "noticed", "seeded",
]  # fmt: skip

COUNCIL, HEARING, SALON, JURY, ASSEMBLY, TRIO = (
    HERE / "protocols" / f"{name}.yaml"
    for name in ("council", "hearing", "salon", "jury", "assembly", "trio")
)
PIXEL, PROPOSED, DEBATE = (
    SHIPPED / "pixel_debate.yaml",
    SHIPPED / "pixel_proposed.yaml",
    SHIPPED / "debate.yaml",
)


@mutant(COUNCIL, "asked [", table.Table, "_tell")
def public_scratchpad(tell: Any) -> Any:
    def broken(self: Any, phase: Any, speaker: Any, rejected: bool, statement: str) -> None:
        everyone = tuple(seat for seat in self.rules.seats if seat != speaker.seat)
        tell(self, phase, replace(speaker, audience=everyone), rejected, statement)

    return broken


@mutant(COUNCIL, "turns asked", phased.Phased, "_rounds")
def same_round_leak(rounds: Any) -> Any:
    def broken(self: Any, phase: Any, lap: int, places: Any) -> Iterator[Any]:
        for speakers in rounds(self, phase, lap, places):
            for speaker in speakers:
                yield (speaker,)

    return broken


@mutant(SALON, "first in all of", phased.Phased, "_draw")
def never_shuffled(draw: Any) -> Any:
    return lambda self, rng: {seat: place for place, seat in enumerate(self.seats)}


@mutant(SALON, "several orders", phased.Phased, "_line_up")
def shuffled_phase_by_phase(line_up: Any) -> Any:
    return lambda self, phase, seats: line_up(self, phase, seats[::-1] if phase.name == "reply" else seats)


@mutant(SALON, "turns asked", phased.Phased, "_line_up")
def never_alternating(line_up: Any) -> Any:
    def broken(self: Any, phase: Any, seats: Any) -> Any:
        return line_up(self, phase, tuple(phase.seats) if phase.speakers == "alternating" else seats)

    return broken


@mutant(SALON, "in private shows", table, "shown_parts")
def private_part_shown(shown: Any) -> Any:
    return lambda text, parts, joiner: text if shown(text, parts, joiner) else None


@mutant(SALON, "which it may not see", table, "shown_parts")
def unparsed_turn_shown(shown: Any) -> Any:
    return lambda text, parts, joiner: shown(text, parts, joiner) or text


@mutant(SALON, "which it may not see", table.Table, "_tell")
def whisper_to_the_judge(tell: Any) -> Any:
    def broken(self: Any, phase: Any, speaker: Any, silenced: bool, statement: str) -> None:
        audience = dict.fromkeys([*speaker.audience, *self.bench.jurors])
        tell(self, phase, replace(speaker, audience=tuple(audience)), silenced, statement)

    return broken


@mutant(SALON, "format paid", rewards, "REWARDS")
def unparsed_turn_goes_unfined(rules: Any) -> Any:
    def broken(record: Any, params: Any) -> Any:
        moves = [replace(move, unparsed=False) for move in record.moves]
        return rules["format"].pay(replace(record, moves=moves), params)

    return {**rules, "format": replace(rules["format"], pay=broken)}


@mutant(SALON, "chat has", table, "first_words")
def hard_limit_forgotten(cut: Any) -> Any:
    return lambda text, limit: text


@mutant(SALON, "length paid", table, "words")
def length_of_what_is_left(words: Any) -> Any:
    return lambda text: min(words(text), 8)


@mutant(SALON, "turns asked", table, "says")
def stopped_in_passing(says: Any) -> Any:
    return lambda text, word: word in text


@mutant(SALON, "turns asked", phased, "Table")
def deaf_to_the_stop(made: Any) -> Any:
    class Deaf(made):  # type: ignore[misc]
        stopped = property(lambda self: set(), lambda self, value: None)

    return Deaf


@mutant(PIXEL, "more than once", views.Chat, "ask")
def inbox_not_cleared(ask: Any) -> Any:
    def broken(self: Any, prompt: str) -> Any:
        kept = list(self._inbox)
        messages = ask(self, prompt)
        self._inbox.extend(kept)
        return messages

    return broken


@mutant(PIXEL, "not ('user'", views.Chat, "hear")
def message_lost(hear: Any) -> Any:
    def broken(self: Any, text: str) -> None:
        if self.turns != 1:
            hear(self, text)

    return broken


@mutant(DEBATE, "not ('assistant'", table.Table, "take")
def swapped_replies(take: Any) -> Any:
    return lambda self, phase, answers: take(self, phase, answers[::-1])


@mutant(PIXEL, "chat has", table.Table, "_seat_values")
def swapped_seats(values: Any) -> Any:
    def broken(self: Any, seat: str, role: str) -> dict[str, str]:
        right = values(self, seat, role)
        return {**right, "claim": right["other"], "other": right["claim"]}

    return broken


@mutant(PIXEL, "the right answer shows", table.Table, "_seat_values")
def answer_in_the_prompt(values: Any) -> Any:
    return lambda self, seat, role: {**values(self, seat, role), "image": f"image of {self.task.answer}"}


@mutant(COUNCIL, "saw hidden 'nobody'", table.Table, "_seat_values")
def hidden_from_nobody(values: Any) -> Any:
    def broken(self: Any, seat: str, role: str) -> dict[str, str]:
        everything = " ".join(hidden.text for hidden in self.task.hidden.values())
        return {**values(self, seat, role), "question": everything}

    return broken


@mutant(PIXEL, "an unreadable verdict did not make the play invalid", bench, "read_probs")
def verdict_from_a_bad_parse(read: Any) -> Any:
    def broken(probs: Any, labels: int, why: str = "") -> Any:
        try:
            return read(probs, labels, why)
        except judging.UnreadableVerdict:
            return (1.0 / labels,) * labels

    return broken


@mutant(PIXEL, "who argues which side shows", bench.Juror, "_claims")
def side_in_the_judges_view(claims: Any) -> Any:
    def broken(self: Any, order: tuple[int, ...]) -> dict[str, str]:
        right = claims(self, order)
        return {**right, "a": f"{right['a']} by {right['seat_a']}"}

    return broken


@mutant(PIXEL, "judge, poll", bench.Juror, "reveal")
def evidence_in_order_of_reveal(reveal: Any) -> Any:
    def broken(self: Any, *statements: str) -> None:
        before = self._revealed
        reveal(self, *statements)
        self._revealed = (*before, *statements)

    return broken


@mutant(PIXEL, "verdicts' mean", bench, "mean_belief")
def reversed_order_not_mapped_back(mean: Any) -> Any:
    return lambda orders, verdicts: mean([orders[0]] * len(orders), verdicts)


@mutant(PIXEL, "which it may not see", table.Table, "_tell")
def rejected_move_shown(tell: Any) -> Any:
    def broken(self: Any, phase: Any, speaker: Any, rejected: bool, statement: str) -> None:
        tell(self, phase, speaker, rejected, statement)
        for seat in self._chats.keys() & {*speaker.audience}:
            if rejected:
                self._chats[seat].hear(statement)

    return broken


@mutant(COUNCIL, "which it may not see", table.Table, "_tell")
def whisper_in_the_transcript(tell: Any) -> Any:
    """Everyone hears what only some should, but the judge, so that the order of turns stays right."""

    def broken(self: Any, phase: Any, speaker: Any, rejected: bool, statement: str) -> None:
        judge = {self.bench.rules.seat} - {*speaker.audience}
        audience = tuple(seat for seat in self.rules.seats if seat not in judge and seat != speaker.seat)
        tell(self, phase, replace(speaker, audience=audience), rejected, statement)

    return broken


@mutant(PIXEL, "choices is", table, "MOVES")
def revealed_twice(moves: Any) -> Any:
    return {**moves, "evidence": lambda task, revealed: task.evidence}


@mutant(COUNCIL, "chat has", table, "render")
def values_rendered_again(render: Any) -> Any:
    def broken(template: str, values: Any) -> str:
        known = {"question": "", "seat": "", "claim": "", **values}
        return str(render(render(template, known), known))

    return broken


@mutant(COUNCIL, "chat has", table, "quote")
def unquoted(quote: Any) -> Any:
    return lambda text: text


@mutant(JURY, "poll asked", bench, "read_vote")
def unreadable_vote_counts_half(read: Any) -> Any:
    def broken(reply: Any, answers: Any) -> Any:
        try:
            return read(reply, answers)
        except judging.UnreadableVerdict:
            return (1.0 / len(answers),) * len(answers)

    return broken


@mutant(JURY, "poll asked", bench, "read_vote")
def vote_anywhere_in_the_reply(read: Any) -> Any:
    def broken(reply: Any, answers: Any) -> Any:
        named = [answer for answer in answers if answer in reply.text]
        return read(replace(reply, text=named[0]) if named else reply, answers)

    return broken


@mutant(JURY, "poll asked", bench, "read_vote")
def cut_off_vote_counts(read: Any) -> Any:
    return lambda reply, answers: read(replace(reply, truncated=False), answers)


@mutant(JURY, "poll asked", bench.Juror, "take")
def retries_without_a_budget(take: Any) -> Any:
    def broken(self: Any, replies: Any) -> None:
        self._retries = 99
        take(self, replies)

    return broken


@mutant(TRIO, "judgments are", bench, "favourites")
def torn_member_votes_for_the_first(favourites: Any) -> Any:
    return lambda scores: favourites(scores)[:1]


@mutant(JURY, "judgments are", bench.Bench, "_together")
def panel_of_one(together: Any) -> Any:
    return lambda self, beliefs: together(self, beliefs[:1])


@mutant(SALON, "judgments are", bench.Bench, "_conclude")
def held_out_judge_decides(conclude: Any) -> Any:
    def broken(self: Any, present: Any, after_turn: int) -> None:
        self.deciding = [juror for juror in present if juror not in self.deciding] or self.deciding
        conclude(self, present, after_turn)

    return broken


@mutant(SALON, "judgments are", bench, "favourites")
def majority_is_the_first_label(favourites: Any) -> Any:
    return lambda scores: [0]


@mutant(ASSEMBLY, "by votes", table, "won")
def tied_vote_is_won(won: Any) -> Any:
    return lambda belief, truth: float(won(belief, truth) > 0)


@mutant(ASSEMBLY, "readable vote scored", table.Table, "_voted")
def no_vote_is_an_outcome(voted: Any) -> Any:
    def broken(self: Any, metrics: Any) -> Any:
        self._votes = self._votes or {"nobody": 0}
        return voted(self, metrics)

    return broken


@mutant(ASSEMBLY, "which it may not see", phased.Phased, "_speaker")
def everyone_listens_to_everyone(speaker: Any) -> Any:
    return lambda self, phase, place, seat: speaker(replace(self, listens={}), phase, place, seat)


@mutant(HEARING, "not 0", belief, "_sided")
def one_side_paid_double(sided: Any) -> Any:
    return lambda record: [(seat, side, team / (1 + side)) for seat, side, team in sided(record)]


@mutant(PIXEL, "belief changes sum", table.Table, "settle")
def belief_of_the_wrong_turn(settle: Any) -> Any:
    def broken(self: Any) -> None:
        if len(self._pending) > 1:
            settle(self)

    return broken


@mutant(PROPOSED, "not the one proposed", propose_solve, "SubPlay")
def child_of_the_wrong_task(sub_play: Any) -> Any:
    return lambda protocol, task, seed, key: sub_play(
        protocol, replace(task, id=task.parent or ""), seed, key
    )


@mutant(PROPOSED, "too few sub-plays", propose_solve.ProposeSolve, "_conclude")
def missing_data_scores_zero(conclude: Any) -> Any:
    def broken(self: Any, tried: Any, answers: list[Outcome | Reply]) -> Outcome:
        filled = [Outcome(score=0.0) if getattr(a, "score", None) is None else a for a in answers]
        done: Outcome = conclude(self, tried, filled)
        return done

    return broken


@mutant(SHIPPED / "round_table.yaml", "by votes", table, "vote_shares")
def votes_weigh_alike(shares: Any) -> Any:
    return lambda votes, levels, claims: shares({s: v for s, v in votes.items() if s in levels}, None, claims)


if __name__ == "__main__":
    for fault, (file, says, _) in MUTANTS.items():
        wrongs = [wrong for wrong in noticed(fault) if says in wrong]
        print(f"{fault:32} {file.stem:16} {wrongs[0][:200] if wrongs else 'NOT CAUGHT'}")
