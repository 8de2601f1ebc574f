import random
import re
from collections import Counter

import pytest

from protocols.base import SubPlay
from protocols.kinds.propose_solve import ProposeSolve
from protocols.kinds.solve import Solve
from protocols.proposals import carried_proposal, with_proposal
from protocols.types import InvalidProposal, Task
from tasks.kinds.lists import Lists, solve


def derive(source: Lists, proposal: str) -> Task:
    task = source.root(source.op)
    assert task.domain is not None
    return task.domain.derive(task, proposal)


@pytest.mark.parametrize(
    ("op", "proposal", "answer"),
    [
        ("reverse", "3 1 4", "4 1 3"),
        ("sort", "3 1 4 1", "1 1 3 4"),
        ("add", "4 7 + 8 5", "1 3 2"),
        ("add", "0 0 + 0 0", "0"),
        ("add", "9 9 9 + 0 0 1", "1 0 0 0"),
    ],
)
def test_answers(op: str, proposal: str, answer: str) -> None:
    assert solve(op, proposal) == answer


def test_derived_task() -> None:
    source = Lists(op="reverse", min_len=2, max_len=6)
    task = derive(source, " 3  1 4\n")
    assert (task.question, task.answer, task.parent) == ("reverse 3 1 4", "4 1 3", "reverse")
    assert re.fullmatch(r"reverse/3/[0-9a-f]{12}", task.id)
    assert derive(source, "reverse 3 1 4") == task
    assert derive(source, "3 1 5").id != task.id
    assert derive(Lists(op="add", min_len=1, max_len=4), "4 7 + 8 6").id.startswith("add/2/")


@pytest.mark.parametrize(
    ("op", "proposal", "reason"),
    [
        ("reverse", "", "2 to 6 digits, not 0"),
        ("reverse", "3", "2 to 6 digits, not 1"),
        ("reverse", "1 2 3 4 5 6 7", "not 7"),
        ("reverse", "12 3", "single digits"),
        ("reverse", "sort 1 2", "single digits"),
        ("reverse", "1 ² 3", "single digits"),
        ("reverse", "1 ٣ 3", "single digits"),
        ("reverse", "1 2 + 3 4", "single digits"),
        ("add", "1 2 3 4", "two numbers"),
        ("add", "1 2 + 3 4 + 5 6", "two numbers"),
        ("add", "1 2 + 3", "same number"),
        ("add", "1 + 3", "2 to 6 digits, not 1"),
        ("add", "1 2 + 3 x", "single digits"),
    ],
)
def test_invalid_proposals_say_why(op: str, proposal: str, reason: str) -> None:
    with pytest.raises(InvalidProposal, match=re.escape(reason)):
        derive(Lists(op=op, min_len=2, max_len=6), proposal)


def test_check_is_exact_up_to_whitespace() -> None:
    task = derive(Lists(), "3 1 4")
    assert task.domain is not None
    check = task.domain.check
    assert check(task, "4 1 3") and check(task, " 4  1 3\n")
    for wrong in ("413", "4 1", "4 1 3 3", "4, 1, 3", "answer 4 1 3", ""):
        assert not check(task, wrong)


@pytest.mark.parametrize("op", ["reverse", "sort", "add"])
def test_heldout_is_reserved_balanced_and_deterministic(op: str) -> None:
    source = Lists(op=op, min_len=2, max_len=9, easy_max_len=4)
    tasks = source.derived_heldout(400, seed=3)
    assert tasks == source.derived_heldout(400, seed=3)
    assert tasks != source.derived_heldout(400, seed=4)
    assert Counter(int(task.id.split("/")[1]) for task in tasks) == dict.fromkeys(range(2, 10), 50)
    for task in tasks:
        with pytest.raises(InvalidProposal, match="reserved"):
            derive(source, task.question)
    long = [task.id for task in tasks if int(task.id.split("/")[1]) > 3]
    assert len(set(long)) == len(long)
    short = Counter(task.id for task in tasks if "/2/" in task.id)
    assert max(short.values()) - min(short.values()) <= 1


def test_about_a_tenth_is_reserved() -> None:
    source = Lists(min_len=2, max_len=3)
    for length in (2, 3):
        reserved = 0
        for number in range(10**length):
            try:
                derive(source, " ".join(f"{number:0{length}d}"))
            except InvalidProposal:
                reserved += 1
        assert 0.05 * 10**length <= reserved <= 0.2 * 10**length


def test_a_heldout_task_opens_only_its_own_proposal() -> None:
    source = Lists()
    first, second = source.heldout(2, seed=0)
    assert first.domain is not None
    with pytest.raises(InvalidProposal, match="reserved"):
        first.domain.derive(first, carried_proposal(second) or "")
    with pytest.raises(InvalidProposal, match="reserved"):  # as a replayed archive entry would be
        proposal = carried_proposal(first) or ""
        first.domain.derive(with_proposal(source.root("reverse"), proposal), proposal)


def test_heldout_tasks_pass_through_the_protocol() -> None:
    """ProposeSolve takes the carried proposal off before it derives; held-out lists must survive that."""
    source = Lists(max_len=8)
    for task in source.heldout(14, seed=0):
        asked = next(ProposeSolve(child=Solve(), repeats=3).play(task, random.Random(0)))
        assert [type(ask) for ask in asked] == [SubPlay] * 3, "the proposer is not asked"
        [question] = {ask.task.question for ask in asked if isinstance(ask, SubPlay)}
        assert question == f"reverse {carried_proposal(task)}"


@pytest.mark.parametrize(("sampler", "longest"), [("uniform", 12), ("easy", 4)])
def test_controls_carry_valid_training_proposals(sampler: str, longest: int) -> None:
    source = Lists(max_len=12, easy_max_len=4, sampler=sampler)
    rng = random.Random(0)
    lengths = Counter[int]()
    for _ in range(3000):
        task = source.train(rng)
        assert task.hidden["proposal"].roles == ()
        proposal = carried_proposal(task) or ""
        assert derive(source, proposal).question == f"reverse {proposal}"
        lengths[len(proposal.split())] += 1
    assert set(lengths) == set(range(2, longest + 1))
    mean = 3000 / len(lengths)
    assert all(0.7 * mean < count < 1.3 * mean for count in lengths.values())


@pytest.mark.parametrize("sampler", ["proposer", "uniform", "easy"])
def test_warm_starts_are_the_same_for_every_sampler(sampler: str) -> None:
    source = Lists(max_len=12, easy_max_len=4, sampler=sampler)
    rng, reference = random.Random(1), random.Random(1)
    for _ in range(200):
        task = source.warm(rng)
        assert carried_proposal(task) is None
        example = task.hidden["example"].text
        assert example == Lists(max_len=12, easy_max_len=4).warm(reference).hidden["example"].text
        derive(source, example)


def test_each_length_of_a_warm_start_is_half_as_frequent_as_the_one_before() -> None:
    source, rng = Lists(max_len=12, warm_decay=0.5), random.Random(2)
    lengths = Counter(len(source.warm(rng).hidden["example"].text.split()) for _ in range(4096))
    for length, expected in {2: 2048, 3: 1024, 4: 512, 5: 256, 6: 128}.items():
        assert abs(lengths[length] - expected) < 5 * expected**0.5
    assert set(lengths) <= set(range(2, 13))


def test_proposer_root_carries_nothing() -> None:
    task = Lists().train(random.Random(0))
    assert task.hidden == {} and task.id == "reverse" and task.proposals == () and task.answer is None
    assert carried_proposal(with_proposal(task, "1 2")) == "1 2"
    assert Lists().root("reverse") == task
    with pytest.raises(KeyError):
        Lists().root("sort")


@pytest.mark.parametrize("op", ["reverse", "sort", "add"])
def test_words_cover_every_text(op: str) -> None:
    source = Lists(op=op)
    words = source.words()
    assert len(words) == len(set(words))
    for task in [source.root(op), *source.derived_heldout(200, seed=0)]:
        assert set(f"{task.question} {task.answer or ''}".split()) <= {*words}


def test_problems_name_the_setting() -> None:
    assert Lists().problems() == []
    bad = Lists(op="multiply", sampler="hard", min_len=1, max_len=0, warm_decay=0.0, easy_max_len=5)
    assert [key for key, _ in bad.problems()] == [
        "op",
        "sampler",
        "min_len",
        "max_len",
        "easy_max_len",
        "warm_decay",
    ]
    assert Lists(op="add", min_len=1, max_len=4, easy_max_len=2).problems() == []


@pytest.mark.parametrize(
    ("answer", "grade"),
    [("1 1 3 4", 1.0), ("1 1 4 3", 0.5), ("1 1 3", 0.75), ("1 1 3 4 5", 0.8), ("", 0.0), ("3 1 1 4", 0.0)],
)
def test_a_grade_is_the_share_before_the_first_mistake(answer: str, grade: float) -> None:
    source = Lists(op="sort", min_len=2, max_len=6)
    task = derive(source, "3 1 4 1")
    assert task.domain is not None
    assert task.domain.grade(task, answer) == grade
    assert task.domain.check(task, answer) == (grade == 1.0)
