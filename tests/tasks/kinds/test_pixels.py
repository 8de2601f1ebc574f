import json
import pickle
import random
import subprocess
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from sklearn.datasets import load_digits

from protocols.types import InvalidProposal
from tasks.kinds.pixels import PixelDomain, Pixels
from tasks.registry import SOURCES


def test_evidence_states_exactly_the_non_zero_pixels_of_the_image() -> None:
    digits = load_digits()
    for number in (0, 17, 1796):
        task = Pixels(levels=4).root(f"img{number}")
        told = {}
        for statement in task.evidence:
            cell, level = statement.split("=")
            told[int(cell[1]), int(cell[3])] = int(level)
        expected = {}
        for row, column in product(range(8), repeat=2):
            value = digits.images[number][row, column]
            if value:
                expected[row, column] = 1 if value <= 4 else 2 if value <= 8 else 3 if value <= 12 else 4
        assert told == expected
        assert list(told) == sorted(told), "canonical order is raster order"
        assert task.answer == str(digits.target[number])
        assert task.hidden["image"].text.split() == list(task.evidence)


def test_finest_levels_are_the_values_themselves() -> None:
    task = Pixels(levels=16).root("img3")
    values = [int(v) for v in load_digits().data[3] if v]
    assert [int(statement.split("=")[1]) for statement in task.evidence] == values


def test_split_is_disjoint_complete_and_does_not_depend_on_seeds() -> None:
    source = Pixels(holdout=500)
    held = {task.id for task in source.heldout(500, seed=1)}
    assert held == {task.id for task in source.heldout(500, seed=2)} and len(held) == 500
    rng = random.Random(0)
    trained = {source.train(rng).id for _ in range(20_000)}
    assert not held & trained
    assert len(trained) > 1280
    pictures = {source.root(name).evidence for name in held}
    assert not pictures & {source.root(name).evidence for name in trained}


def test_heldout_is_deterministic_and_repeats_evenly() -> None:
    source = Pixels(holdout=30)
    ids = [task.id for task in source.heldout(75, seed=4)]
    assert ids == [task.id for task in source.heldout(75, seed=4)]
    assert ids != [task.id for task in source.heldout(75, seed=5)]
    assert set(Counter(ids).values()) == {2, 3} and ids[:30] == ids[30:60]


def test_derived_heldout_lies_are_uniform_and_all_different() -> None:
    source = Pixels()
    tasks = source.derived_heldout(4500, seed=0)
    assert len({task.id for task in tasks}) == 4500
    first = source.derived_heldout(500, seed=0)
    assert [task.id for task in first] == [task.id for task in tasks[:500]]
    offsets = Counter((int(task.id.split("/")[1]) - int(task.answer or "")) % 10 for task in first)
    assert set(offsets) == set(range(1, 10)) and max(offsets.values()) < 100
    assert {task.parent for task in tasks} == {task.id for task in source.heldout(500, seed=0)}


def test_derive_sets_two_claims_in_balanced_order() -> None:
    source = Pixels()
    tasks = source.derived_heldout(2000, seed=0)
    first_is_true = [task.choices[0] == task.answer for task in tasks]
    assert 0.45 < sum(first_is_true) / len(tasks) < 0.55
    for task in tasks[:50]:
        image, lie = task.id.split("/")
        assert sorted(task.choices) == sorted([str(task.answer), lie])
        assert task.proposals == () and task.parent == image
        assert task.evidence == source.root(image).evidence


def test_order_of_claims_is_the_same_in_another_process() -> None:
    code = (
        "import json; from tasks.kinds.pixels import Pixels;"
        "print(json.dumps([[t.id, *t.choices] for t in Pixels().derived_heldout(20, 0)]))"
    )
    root = Path(__file__).parents[3]
    other = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert json.loads(other.stdout) == [[t.id, *t.choices] for t in Pixels().derived_heldout(20, 0)]


def test_only_the_nine_false_labels_can_be_proposed() -> None:
    source = Pixels()
    task = source.root("img5")
    assert sorted([*task.proposals, task.answer or ""]) == [str(n) for n in range(10)]
    for bad in (task.answer or "", "10", "", "cat"):
        with pytest.raises(InvalidProposal):
            PixelDomain().derive(task, bad)
    derived = PixelDomain().derive(task, f" {task.proposals[0]}\n")
    with pytest.raises(InvalidProposal, match="already"):
        PixelDomain().derive(derived, task.proposals[1])


def test_check() -> None:
    task = Pixels().root("img5")
    assert PixelDomain().check(task, f" {task.answer} ")
    assert not PixelDomain().check(task, task.proposals[0])


def test_words_cover_every_text() -> None:
    for levels in (1, 4, 16):
        source = Pixels(levels=levels)
        words = source.words()
        assert len(words) == len(set(words))
        for task in source.derived_heldout(500, seed=0):
            hidden = " ".join(part.text for part in task.hidden.values())
            texts = [task.question, task.answer or "", hidden, *task.choices, *task.evidence]
            assert set(" ".join(texts).split()) <= set(words)


def test_who_sees_the_image() -> None:
    assert "judge" not in Pixels().root("img0").hidden["image"].roles
    assert Pixels(seen_by=["debater"]).root("img0").hidden["image"].roles == ("debater",)  # type: ignore[arg-type]


def test_root_refuses_other_ids() -> None:
    for bad in ("img1797", "img-1", "img05", "img1/3", "reverse"):
        with pytest.raises(KeyError):
            Pixels().root(bad)


def test_problems_name_the_setting() -> None:
    assert Pixels().problems() == []
    assert [key for key, _ in Pixels(levels=17, holdout=1797).problems()] == ["levels", "holdout"]


def test_tasks_survive_pickling() -> None:
    task = Pixels().derived_heldout(1, seed=0)[0]
    assert pickle.loads(pickle.dumps(task)) == task


def test_sources_import_without_the_heavy_libraries() -> None:
    heavy = "('numpy', 'sklearn', 'torch', 'ray')"
    code = f"import sys, tasks.registry; print([m for m in {heavy} if m in sys.modules])"
    root = Path(__file__).parents[3]
    other = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == "[]"
    assert SOURCES["pixels"] is Pixels
