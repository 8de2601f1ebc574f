"""Seeded faults in quotes, names and conditions that end a phase. Part of `tests.contract.mutants`."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from protocols import chat as views
from protocols.phased import interpreter as phased, state as table
from tests.contract.seeding import HERE, mutant

QUORUM, BOUT = (HERE / "protocols" / f"{name}.yaml" for name in ("quorum", "bout"))


@mutant(QUORUM, "chat has", table, "tag_quotes")
def forged_mark_stays(tag: Any) -> Any:
    def broken(text: str, sources: Any) -> Any:
        tagged, found = tag(text, sources)
        return re.sub(r"\((/?v_quote)\)", r"<\1>", tagged), found

    return broken


@mutant(QUORUM, "chat has", table, "tag_quotes")
def words_quoted_in_any_order(tag: Any) -> Any:
    return lambda text, sources: tag(text, [*sources, *(" ".join(source.split()[::-1]) for source in sources)])


@mutant(QUORUM, "unverified_quotes paid", table.Table, "_verified")
def misquotes_go_unfined(verified: Any) -> Any:
    def broken(self: Any, phase: Any, statement: str, move: Any) -> Any:
        return verified(self, phase, statement, move)[0], move

    return broken


@mutant(QUORUM, "asked [", table.Table, "check_end")
def never_agreed(check: Any) -> Any:
    return lambda self, phase: None


@mutant(QUORUM, "asked [", table.Table, "check_end")
def agreed_as_soon_as_one_has_chosen(check: Any) -> Any:
    def broken(self: Any, phase: Any) -> None:
        if phase.stop is not None and phase.stop.agreed and len(set(self._choices.values())) == 1:
            self.stopped.add(phase.name)

    return broken


@mutant(BOUT, "play went on", table.Table, "check_end")
def sure_at_the_first_belief(check: Any) -> Any:
    def broken(self: Any, phase: Any) -> None:
        beliefs = self.bench.beliefs
        self.bench.beliefs = beliefs[:1]
        check(self, phase)
        self.bench.beliefs = beliefs

    return broken


@mutant(QUORUM, "chat has", views.Cast, "name")
def real_names_in_the_transcript(name: Any) -> Any:
    return lambda self, seat: seat


@mutant(BOUT, "chat has", phased.Phased, "_bench")
def judge_has_other_names(bench: Any) -> Any:
    def broken(self: Any, task: Any, cast: Any) -> Any:
        names = dict(zip(cast.names, [*cast.names.values()][::-1]))
        return bench(self, task, replace(cast, names=names))

    return broken
