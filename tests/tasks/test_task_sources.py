"""Sources of tasks for games, ontologies, taxonomies and toys: by hand, and what every source promises."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, strategies as st

from protocols.proposals import carried_proposal
from protocols.types import InvalidProposal, Task, VerifierError
from tasks.base import TaskSource
from tasks.kinds.games import Bargains, TabooWords
from tasks.kinds.ontology import CONCEPTS, Ontology, OntologyDomain, f1, read_alignment
from tasks.kinds.taxonomy import TREE, Taxonomy, leaves, overlap
from tasks.kinds.toys import HELD_OUT, OPEN, PAIRS, Toys

SOURCES: list[TaskSource] = [TabooWords(), Bargains(), Ontology(), Taxonomy(), Toys()]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.kind)
def test_what_every_source_promises(source: TaskSource) -> None:
    assert source.problems() == []
    known = set(source.words())
    for seed in range(20):
        task = source.train(random.Random(seed))
        again = source.train(random.Random(seed))
        assert task.id == again.id and task.hidden == again.hidden
        assert source.root(task.id).id == task.id
    for n in (1, 30):
        found = source.derived_heldout(n, 0)
        assert len(found) == n == len(source.heldout(n, 0))
        assert [task.id for task in found] == [task.id for task in source.derived_heldout(n, 0)]
        for task in found:
            assert not set(task.question.split()) - known, "the words of a task have tokens of their own"
    with pytest.raises(KeyError):
        source.root("nowhere")


@pytest.mark.parametrize("source", [TabooWords(), Bargains()], ids=lambda source: source.kind)
def test_held_out_games_are_not_trained_on(source: TaskSource) -> None:
    trained = {source.train(random.Random(seed)).id for seed in range(500)}
    assert not trained & {task.id for task in source.heldout(100, 0)}


def test_bargains_leave_something_to_gain() -> None:
    for seed in range(200):
        hidden = Bargains(lowest=5, gain=10).train(random.Random(seed)).hidden
        cost, value = int(hidden["cost"].text), int(hidden["value"].text)
        assert 5 <= cost <= 10 and 5 <= value - cost <= 10
        assert hidden["cost"].roles == ("seller",) and hidden["value"].roles == ("buyer",)


# ---- ontology


def test_f1_by_hand() -> None:
    right = "Author = Writer\nStudent = Person & Enrolled\nCity = Town\nFilm = Movie"
    domain, task = OntologyDomain(), Task("t", "", right)
    assert domain.grade(task, right) == 1.0 and domain.check(task, right)
    assert domain.check(task, "film=movie\n\ncity = TOWN\n Author = Writer \nStudent = Enrolled&Person"), "order, case"
    # two of four right, one wrong, one line of talk: precision 2/4, recall 2/4
    assert domain.grade(task, "Here it is\nAuthor = Writer\nCity = Town\nStudent = Person") == pytest.approx(0.5)
    # one of four, precision 1: 2 x 1 x 0.25 / 1.25
    assert domain.grade(task, "City = Town") == pytest.approx(0.4)
    assert domain.grade(task, "") == 0.0 and not domain.check(task, "")
    assert f1([], []) == 1.0


@given(st.sets(st.integers(0, 9)), st.sets(st.integers(0, 9)))
def test_f1_is_the_harmonic_mean_of_precision_and_recall(found: set[int], right: set[int]) -> None:
    both = len(found & right)
    if not both:
        assert f1(found, right) == (0.0 if found or right else 1.0)
        return
    precision, recall = both / len(found), both / len(right)
    assert f1(found, right) == pytest.approx(2 / (1 / precision + 1 / recall))


def test_lines_that_are_no_correspondence_count_as_wrong_ones() -> None:
    assert read_alignment("a = b = c") == {("a = b = c", frozenset())}
    assert len(read_alignment("a =\n= b\na = b & \nok")) == 4 and read_alignment(" \n\n") == frozenset()


def test_derived_alignments_show_every_class_and_reserve_a_tenth() -> None:
    task = Ontology().derived_heldout(1, 0)[0]
    pairs = dict(CONCEPTS)
    for line in (task.answer or "").splitlines():
        left, right = line.split(" = ")
        assert pairs[left] == right and left in task.question
        assert all(part in task.question for part in right.split(" & "))
    chosen = {frozenset((carried_proposal(t) or "").split()) for t in Ontology().heldout(50, 0)}
    trained = {frozenset((carried_proposal(Ontology().train(random.Random(s))) or "").split()) for s in range(300)}
    assert not chosen & trained
    names = [name for left, right in CONCEPTS for name in (left, *right.split(" & "))]
    assert len(set(names)) == len(names), "a class that stood twice would make a reference disputable"
    for bad in ("", "Author Author", "Nothing"):
        with pytest.raises(InvalidProposal):
            OntologyDomain().derive(Ontology().root("ontology"), bad)


# ---- taxonomy


def test_a_leaf_shows_its_examples_but_the_reserved_one() -> None:
    source = Taxonomy()
    for path, examples in leaves(TREE):
        task = source.root("/".join(path))
        assert all(example in task.question for example in examples[:-1])
        assert examples[-1] not in task.question and path[-1] in task.question
    assert {source.train(random.Random(seed)).id for seed in range(200)} == {"/".join(path) for path, _ in leaves(TREE)}
    skills = {Taxonomy(phase="skills").train(random.Random(seed)).id.split("/")[0] for seed in range(50)}
    assert skills == {"skills"}


def test_instructions_that_are_none_and_copies() -> None:
    task = Taxonomy(max_words=6).root("skills/writing/letters")
    assert task.domain is not None
    child = task.domain.derive(task, " Write to your landlord. ")
    assert child.question == "Write to your landlord." and child.parent == task.id and child.answer is None
    # four of five words: 4 / 5 = 0.8 of all
    assert overlap("Decline an invitation politely.", "Decline an invitation politely. please") == pytest.approx(0.8)
    for bad in ("  ", "one two three four five six seven", "decline an invitation politely.", "Ask for a refund."):
        with pytest.raises(InvalidProposal):
            task.domain.derive(task, bad)
    with pytest.raises(VerifierError):
        task.domain.check(child, "Dear landlord")


# ---- toys


def test_toys_by_hand() -> None:
    root = Toys().root("toy")
    assert root.domain is not None
    pair = next(pair for pair in OPEN if pair.startswith("3"))
    task = root.domain.derive(root, pair)
    low, high = sorted(pair.split())
    assert task.answer == high and set(task.choices) == {low, high} and f"larger, {pair[0]}" in task.question
    assert task.hidden["cost"].text == low and int(task.hidden["value"].text) == int(low) + 4
    assert task.domain is not None and task.domain.check(task, f" {high}\n") and not task.domain.check(task, low)
    with pytest.raises(InvalidProposal):
        root.domain.derive(root, HELD_OUT[0])
    assert len(PAIRS) == 90 and len(HELD_OUT) == 10
    trained = {root.domain.derive(root, pair).hidden["word"].text for pair in OPEN}
    assert not trained & {task.hidden["word"].text for task in Toys().derived_heldout(10, 0)}


BROKEN: list[tuple[Any, str]] = [
    (TabooWords(holdout=0), "holdout"), (TabooWords(("a b", "c", "d"), 1), "vocabulary"),
    (TabooWords(("a", "a", "b"), 1), "vocabulary"),
    (Bargains(lowest=0), "lowest"), (Bargains(gain=1), "gain"), (Ontology(size=1), "size"), (Ontology(size=99), "size"),
    (Taxonomy(phase="art"), "phase"), (Taxonomy({"a": ["x"]}), "tree.a"), (Taxonomy(max_words=0), "max_words"),
    (Taxonomy({}), "tree"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "key"), BROKEN, ids=[f"{source.kind}-{key}" for source, key in BROKEN])
def test_bad_settings_are_named(source: TaskSource, key: str) -> None:
    assert [where for where, _ in source.problems()] == [key]
