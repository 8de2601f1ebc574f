"""What becomes of proposals: repeats refused, real tasks beside them, replays chosen, audits."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies as st

from actors.players.base import Seated
from actors.rollout import records
from actors.rollout.audit import Audit, audit_of
from actors.rollout.ledger import Ledger
from actors.rollout.loop import Rollouts
from actors.serving.messages import EngineLost
from configs.load import load_protocol
from configs.schema.run import AuditConfig, StageConfig
from protocols.kinds.propose_solve import ProposeSolve
from protocols.proposals import carried_proposal
from protocols.types import InvalidProposal, Reply, Turn, TurnRequest
from tasks.archive import Archive
from tasks.base import real_task
from tasks.distinct import Distinct, common, rouge_l
from tasks.kinds.lists import Lists
from tests.support.config_files import mistakes, read
from tests.support.rollout_stage import Running, run

ROOT = Path(__file__).resolve().parent.parent.parent.parent
PROTOCOL = load_protocol(ROOT / "configs" / "protocol" / "propose_solve.yaml")
SOLVE = load_protocol(ROOT / "configs" / "protocol" / "solve.yaml")
SOURCE = Lists(op="sort", max_len=8, warm_decay=1.0)


# ---- likeness -----------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from("abc"), max_size=9), st.lists(st.sampled_from("abc"), max_size=9))
def test_the_longest_common_subsequence_against_its_recursion(one: list[str], other: list[str]) -> None:
    @lru_cache(None)
    def oracle(i: int, j: int) -> int:
        if i == len(one) or j == len(other):
            return 0
        return 1 + oracle(i + 1, j + 1) if one[i] == other[j] else max(oracle(i + 1, j), oracle(i, j + 1))

    assert common(one, other) == oracle(0, 0)


def test_rouge_l_by_hand() -> None:
    assert rouge_l("1 2 3".split(), "1 2 3".split()) == 1.0
    assert rouge_l("1 2 3".split(), "1 9 3 4".split()) == pytest.approx(2 * 2 / 7)
    assert rouge_l("1 2".split(), "3".split()) == 0.0 and rouge_l([], []) == 1.0


def refused(distinct: Distinct, proposal: str, play: int = 99, root: str = "sort") -> bool:
    try:
        distinct.admit(root, proposal, play)
    except InvalidProposal:
        return True
    return False


def test_repeats_and_near_repeats() -> None:
    exact = Distinct(1.0, [("sort", "1 2 3")])
    assert refused(exact, "1 2  3 ") and not refused(exact, "1 2 4", 1) and not refused(exact, "1 2 3", root="add")
    assert refused(exact, "1 2 4", 2) and not refused(exact, "1 2 4", 1), "a play that was lost may say it again"
    assert exact.refused == 2
    near = Distinct(0.7)
    assert not refused(near, "1 2 3 4", 0)
    assert not refused(near, "1 2 3 5", 0), "its own earlier proposal does not count"
    assert refused(near, "7 1 2 3", 1) and not refused(near, "1 2 7 8", 1), "likeness 0.75 and 0.5"


def test_what_describes_no_task_is_not_noted() -> None:
    distinct = Distinct(1.0)
    task = distinct.guard(SOURCE.root("sort"), 0)
    assert task.domain is not None
    with pytest.raises(InvalidProposal, match="single digits"):
        task.domain.derive(task, "one two")
    derived = task.domain.derive(task, legal())
    assert task.domain.check(derived, derived.answer or "") and task.domain.grade(derived, derived.answer or "") == 1.0
    other = distinct.guard(SOURCE.root("sort"), 1)
    assert other.domain is not None
    with pytest.raises(InvalidProposal, match="proposed before"):
        other.domain.derive(other, legal())
    assert derived.domain == SOURCE.root("sort").domain, "derived tasks know nothing of it"


# ---- while a stage runs --------------------------------------------------------------------------------


def legal(skip: int = 0) -> str:
    """A list that is not reserved for evaluation."""
    root, found = SOURCE.root("sort"), []
    for seed in range(100):
        proposal = " ".join(random.Random(seed).choices("0123456789", k=4))
        try:
            root.domain.derive(root, proposal)  # type: ignore[union-attr]
            found.append(proposal)
        except InvalidProposal:
            pass
    return found[skip]


class Players:
    """A proposer that says the same, or always something new; a solver that is right in every second play."""

    def __init__(self, proposals: Any = lambda count: legal()):
        self.proposals, self.counts = proposals, Counter[str]()

    async def __call__(self, request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
        await asyncio.sleep(0)
        self.counts[request.role] += 1
        count = self.counts[request.role]
        if request.role == "proposer":
            return Reply(self.proposals(count - 1))
        if request.role == "auditor":
            return Reply(" ".join(sorted(request.messages[-1].text.split()[1:])) if count % 4 else "")
        digits = sorted(request.messages[-1].text.split()[1:])
        return Reply(" ".join(digits if count % 2 else [*digits, "0"]))


def stage(ledger: Ledger, player: Any, kept: Archive | None = None, **settings: Any) -> Rollouts:
    assert isinstance(PROTOCOL, ProposeSolve)
    players = {role: Seated("p", player) for role in PROTOCOL.roles().values()}
    config = StageConfig(**{"plays_per_step": 4, "steps": 2, **settings})
    return Rollouts("s", config, replace(PROTOCOL, repeats=2), SOURCE, players, ledger, 7, kept or Archive())


def test_a_proposer_that_repeats_itself_is_fined_and_nobody_plays(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        player = Players()
        subject = stage(ledger, player, distinct=1.0)
        async with Running(subject, ledger):
            plays = await subject.batch()
        first = [play for play in plays if play[0].outcome.metrics["proposal_valid"]]
        again = [play for play in plays if not play[0].outcome.metrics["proposal_valid"]]
        assert (len(first), len(again), player.counts["solver"]) == (1, 3, 2)
        fines = [sum(reward.value for reward in play[0].outcome.rewards) for play in again]
        assert all(fine < 0 for fine in fines) and all(len(play) == 1 for play in again)
        assert subject.metrics()["proposals_refused"] == 3 and len(subject.archive) == 1

    run(tmp_path, scenario)


def test_what_was_proposed_before_a_run_was_taken_up_is_known(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        archive = Archive()
        archive.add(legal(), "sort", 0.5)
        subject = stage(ledger, Players(), archive, distinct=1.0)
        async with Running(subject, ledger):
            plays = await subject.batch()
        assert not any(play[0].outcome.metrics["proposal_valid"] for play in plays)

    run(tmp_path, scenario)


def test_real_tasks_beside_proposed_ones(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        archive = Archive()
        archive.add(legal(), "sort", 0.5)
        subject = stage(ledger, Players(), archive, real=0.3, archive=0.2)
        origins = Counter(subject._draw(index)[1] for index in range(2000))
        assert abs(origins["real"] - 600) < 80 and abs(origins["replayed"] - 400) < 70
        drawn = [subject._draw(index) for index in range(200)]
        assert all((carried_proposal(task) is None) == (origin == "proposed") for task, origin in drawn)
        assert {carried_proposal(task) for task, origin in drawn if origin == "replayed"} == {legal()}

        player = Players(legal)
        only = stage(ledger, player, real=1.0)
        async with Running(only, ledger):
            await only.batch()
        figures = only.metrics()
        assert player.counts["proposer"] == 0 and len(only.archive) == 0, "real tasks are no proposals"
        assert figures["solve_rate/real"] == 0.5 and "solve_rate/proposed" not in figures

    run(tmp_path, scenario)


def test_real_tasks_are_the_examples_of_the_source() -> None:
    tasks = [real_task(SOURCE, random.Random(seed)) for seed in range(20)]
    assert all(task.domain is not None and carried_proposal(task) for task in tasks)
    examples = [SOURCE.warm(random.Random(seed)).hidden["example"].text for seed in range(20)]
    assert [carried_proposal(task) for task in tasks] == examples


def test_replays_within_a_band_of_solve_rates(tmp_path: Path) -> None:
    archive = Archive()
    for place, rate in enumerate((0.0, 0.25, 0.5, 1.0)):
        archive.add(legal(place), "sort", rate)
    found = {archive.draw(random.Random(seed), rates=(0.25, 0.5)).solve_rate for seed in range(40)}
    assert found == {0.25, 0.5}
    with pytest.raises(IndexError, match="no solve rate lies in"):
        archive.draw(random.Random(0), rates=(0.6, 0.9))

    async def scenario(ledger: Ledger) -> None:
        banded = stage(ledger, Players(), archive, archive=1.0, archive_rates=[0.2, 0.6])
        assert {carried_proposal(banded.draw(index)) for index in range(40)} == {legal(1), legal(2)}
        empty = stage(ledger, Players(), archive, archive=1.0, archive_rates=[0.6, 0.9])
        assert carried_proposal(empty.draw(0)) is None, "with nothing to replay the proposer is asked"

    run(tmp_path, scenario)


# ---- audits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [1.0, 1e-9])
def test_audits_tell_how_often_another_policy_disagrees(tmp_path: Path, share: float) -> None:
    """The auditor sorts right, but for every fourth task, which it leaves."""

    async def scenario(ledger: Ledger) -> None:
        player = Players(legal)
        subject = stage(ledger, player, plays_per_step=8)
        auditor = Seated("auditor", lambda request, history: player(replace(request, role="auditor"), history))
        config = AuditConfig(share, "attempt", {"solver": "auditor"})
        subject.audit = Audit("s", config, SOLVE, {"solver": auditor}, ledger, 7)
        async with Running(subject, ledger) as running:
            plays = await subject.batch()
            await running.settle()
            figures = subject.metrics()
        if share < 1:
            assert figures["audits"] == 0 and "audit_disagreement/proposed" not in figures
            return
        assert (figures["audits"], figures["audit_disagreement/proposed"]) == (8, 0.25)
        assert "audit_disagreement/proposed" not in subject.metrics(), "each audit is told once"
        audits = [one for one in records.read(ledger.path) if one.id.startswith("audit-")]
        assert {one.meta["audits"] for one in audits} == {play[0].id for play in plays}
        assert all(one.meta["arm"] == "audit@s" and one.turns[0].policy == "auditor" for one in audits)
        assert not any(one.id.startswith("audit-") for play in plays for one in play), "audits train nobody"

    run(tmp_path, scenario)


def test_a_stage_without_an_audit_has_none(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        def players(roles: Mapping[str, str]) -> dict[str, Seated]:
            return {role: Seated(policy, Players()) for role, policy in roles.items()}

        asked = AuditConfig(0.5, "attempt", {"solver": "auditor"})
        assert audit_of("s", StageConfig(), {}, players, ledger, 0) is None
        made = audit_of("s", StageConfig(audit=asked), {"attempt": SOLVE}, players, ledger, 0)
        assert made is not None and made.protocol is SOLVE and made.players["solver"].policy == "auditor"

    run(tmp_path, scenario)


def test_audits_that_fail_are_missing_data(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        async def gone(request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
            raise EngineLost("gone")

        async def never(request: TurnRequest, history: tuple[Turn, ...]) -> Reply:
            await asyncio.Event().wait()
            raise AssertionError

        for player, at_once in ((gone, 4), (never, 0)):
            subject = stage(Ledger(tmp_path / player.__name__), Players(legal))
            config = AuditConfig(1.0, "attempt", {"solver": "auditor"})
            subject.audit = Audit("s", config, SOLVE, {"solver": Seated("auditor", player)}, subject.ledger, 7)
            async with Running(subject, subject.ledger) as running:
                await subject.batch()
                await running.settle()
                figures = subject.metrics()
                assert (figures["audits"], figures["audits_failed"]) == (0, at_once)
                assert not any(name.startswith("audit_disagreement") for name in figures)
            assert subject.metrics()["audits_failed"] == 4, "those under way at the end too"
            subject.ledger.close()

    run(tmp_path, scenario)


# ---- what is refused before anything starts -------------------------------------------------------------

STAGE = "stages.proposed"
AUDITOR = "policies.auditor={model: \"${policies.solver.model}\", init_from: solver}"


def audit(roles: str, protocol: str = "attempt", share: float = 0.1) -> str:
    return f"{STAGE}.audit={{share: {share}, protocol: {protocol}, roles: {roles}}}"


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        ([f"{STAGE}.archive=0.25", f"{STAGE}.real=0.8"], f"{STAGE}.real", "archive 0.25 and real 0.8"),
        ([f"{STAGE}.real=-0.1"], f"{STAGE}.real", "0 to 1"),
        ([f"{STAGE}.distinct=1.2"], f"{STAGE}.distinct", "more than 0, at most 1"),
        ([f"{STAGE}.archive_of=other", f"{STAGE}.archive=0.5"], f"{STAGE}.archive_of", "no earlier stage 'other'"),
        ([f"{STAGE}.archive_rates=[0.5]"], f"{STAGE}.archive_rates", "[least, most]"),
        ([f"{STAGE}.archive_rates=[0, 1]"], f"{STAGE}.archive_rates", "has no effect"),
        ([audit("{solver: solver}")], f"{STAGE}.audit.roles.solver", "learns in this stage"),
        ([audit("{solver: nobody}")], f"{STAGE}.audit.roles.solver", "no policy 'nobody'"),
        ([audit("{}")], f"{STAGE}.audit.roles", "is bound to no policy"),
        ([AUDITOR, audit("{solver: auditor}", share=0)], f"{STAGE}.audit.share", "more than 0"),
        ([AUDITOR, audit("{solver: auditor, proposer: auditor}", "proposed")], f"{STAGE}.audit.protocol", "propose"),
    ],
)  # fmt: skip
def test_mistakes(overrides: list[str], key: str, says: str) -> None:
    found = mistakes(ROOT / "configs" / "propose_solve.yaml", *overrides)
    assert set(found) == {key} and says in str(found[key]), found


def test_where_nobody_proposes_these_settings_are_refused() -> None:
    config = ROOT / "configs" / "propose_solve_controls.yaml"
    found = mistakes(config, "stages.uniform.real=0.5", "stages.uniform.distinct=1")
    assert {*found} >= {"stages.uniform.real", "stages.uniform.distinct"}
    assert "kind solve" in found["stages.uniform.distinct"].message


def test_a_sound_curriculum_is_taken() -> None:
    settings = [AUDITOR, audit("{solver: auditor}"), f"{STAGE}.real=0.25", f"{STAGE}.distinct=0.7",
                f"{STAGE}.archive_rates=[0.1, 0.9]",
                "guards=[{metric: rollout/proposed/audit_disagreement/proposed, above: 0.3, steps: 3}]"]  # fmt: skip
    config = read(ROOT / "configs" / "propose_solve.yaml", *settings).config
    assert config.stages["proposed"].distinct == 0.7
