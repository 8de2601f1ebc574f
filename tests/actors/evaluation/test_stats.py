"""Judge metrics against scikit-learn, SciPy and numbers worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from actors.evaluation import stats
from protocols.types import Episode, Judgment, Outcome, Task, Turn


def test_wilson_by_hand():
    # Brown, Cai and DasGupta's formula worked out for 8 of 10.
    assert stats.wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert stats.wilson(0, 20)[0] == 0.0
    assert stats.wilson(20, 20)[1] == 1.0


@settings(deadline=None)
@given(st.integers(1, 400), st.data())
def test_wilson_is_scipys(n, data):
    from scipy.stats import binomtest

    hits = data.draw(st.integers(0, n))
    expected = binomtest(hits, n).proportion_ci(method="wilson")
    assert stats.wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_unclustered_proportion_is_wilson():
    interval = stats.proportion([1] * 8 + [0] * 2)
    assert interval.mean == 0.8
    assert (interval.low, interval.high) == stats.wilson(8, 10)
    assert interval.n == 10


def test_repeats_of_one_image_count_once():
    """20 images, each debated 25 times with the same result: as wide as 20 debates, not as 500."""
    values = [float(image < 16) for image in range(20) for _ in range(25)]
    images = [image for image in range(20) for _ in range(25)]
    clustered = stats.proportion(values, images)
    alone = stats.proportion(values)
    assert clustered.mean == alone.mean == 0.8
    assert clustered.high - clustered.low > 3 * (alone.high - alone.low)
    # The bootstrap of 20 values of a coin has standard error sqrt(.8 * .2 / 20) = .0894.
    assert (clustered.high - clustered.low) / (2 * 1.96) == pytest.approx(0.0894, rel=0.15)


def test_all_right_still_has_an_interval():
    interval = stats.proportion([1.0] * 40, [i // 4 for i in range(40)])
    assert (interval.low, interval.high) == stats.wilson(10, 10)


def test_intervals_cover_the_truth():
    """Clustered data with a shared effect per image: about 95% of the intervals hold the true mean."""
    rng = np.random.default_rng(0)
    images = np.repeat(np.arange(60), 5)
    covered = 0
    for trial in range(200):
        chance = rng.beta(4, 1, 60)[images]
        interval = stats.proportion(
            list((rng.random(300) < chance).astype(float)), list(images), trial, resamples=300
        )
        covered += interval.low <= 0.8 <= interval.high
    assert 178 <= covered <= 199


def test_no_values():
    assert stats.proportion([]).n == 0
    assert np.isnan(stats.mean_interval([]).mean)


def test_mean_interval_of_rewards():
    rng = np.random.default_rng(1)
    values = rng.normal(3.0, 2.0, 400)
    interval = stats.mean_interval(list(values))
    assert interval.mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert (interval.low, interval.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.03
    )


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 1)), min_size=1, max_size=30))
def test_brier_is_sklearns(pairs):
    from sklearn.metrics import brier_score_loss

    probs, truth = zip(*pairs, strict=True)
    ours = stats.brier([(p, 1 - p) for p in probs], truth)
    expected = brier_score_loss([1 - t for t in truth], probs, labels=[0, 1], pos_label=1)
    assert ours == pytest.approx(expected, abs=1e-12)


@pytest.mark.filterwarnings("ignore:A single label")
@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=40))
def test_mcc_is_sklearns(pairs):
    from sklearn.metrics import matthews_corrcoef

    truth, verdict = zip(*pairs, strict=True)
    assert stats.mcc(truth, verdict) == pytest.approx(matthews_corrcoef(truth, verdict), abs=1e-9)


def test_ece_by_hand():
    # Ten bins: (.5,.6] holds .55 (right) and .6 (wrong): mean .575, accuracy .5; (.9,1] holds .95 and 1, both right.
    confidence, correct = [0.55, 0.6, 0.95, 1.0], [1, 0, 1, 1]
    assert stats.ece(confidence, correct, bins=10) == pytest.approx(0.5 * 0.075 + 0.5 * 0.025)
    bins = stats.reliability(confidence, correct, bins=10)
    assert [(entry.n, entry.accuracy) for entry in bins] == [(2, 0.5), (2, 1.0)]


# ---- from episodes -----------------------------------------------------------------------------------


def debate(belief, truth, reads=(), earlier=(), id="e", valid=True, image="image"):
    """`belief`: P(first claim) at the end; `reads`: probabilities of the two labels in both orders, per poll."""
    task = Task(f"{image}/x", "q", answer=("a", "b")[truth], choices=("a", "b"), parent=image)
    beliefs = [*earlier, belief]
    judgments = tuple(Judgment("judge", (p, 1 - p), valid, turn) for turn, p in enumerate(beliefs))
    turns = tuple(
        Turn("judge", "judge", "j", i, "", (), "A", ("A", "B"), probs=probs, read=True)
        for i, probs in enumerate(reads)
    )
    score = float((belief > 0.5) == (truth == 0))
    return Episode(id, "debate", task, 0, turns, Outcome("ok", judgments, score=score))


def test_honest_win_rate_by_speaking_order():
    plays = [debate(0.9, 0), debate(0.8, 0), debate(0.3, 0), debate(0.4, 1), debate(0.7, 1)]
    health = stats.judge_health(plays)
    assert health["honest_first"].mean == pytest.approx(2 / 3)
    assert health["honest_second"].mean == 0.5
    assert health["accuracy"].mean == 0.6


def test_only_judgments_that_decide_count():
    play = debate(0.9, 0)
    other = Judgment("held out", (0.1, 0.9), True, 0, decides=False)
    outcome = Outcome("ok", (*play.outcome.judgments, other), score=1.0)
    play = Episode("e", "debate", play.task, 0, play.turns, outcome)
    assert [verdict.probs_K[0] for verdict in stats.verdicts([play])] == [0.9]
    assert stats.accuracy_by_round([play]) == {0: 1.0}


def test_swap_flips_compare_claims_not_labels():
    same = debate(0.8, 0, reads=[(0.8, 0.2), (0.2, 0.8)])  # the first claim is A, then B
    flipped = debate(0.5, 0, reads=[(0.8, 0.2), (0.8, 0.2)])  # A whatever it stands for
    other_flip = debate(0.5, 0, reads=[(0.3, 0.7), (0.4, 0.6)])
    undecided = debate(0.7, 0, reads=[(0.5, 0.5), (0.1, 0.9)])
    assert [verdict.flipped for verdict in stats.verdicts([same, flipped, other_flip, undecided])] == [
        False, True, True, False,
    ]  # fmt: skip
    assert stats.judge_health([same, flipped])["swap_flip_rate"] == 0.5


def test_only_the_last_poll_counts_for_flips():
    play = debate(0.8, 0, reads=[(0.9, 0.1), (0.9, 0.1), (0.8, 0.2), (0.2, 0.8)], earlier=[0.5])
    assert stats.verdicts([play])[0].flipped is False


def test_one_order_only_has_no_flips():
    assert stats.verdicts([debate(0.8, 0, reads=[(0.8, 0.2)])])[0].flipped is None
    assert stats.judge_health([debate(0.8, 0, reads=[(0.8, 0.2)])])["swap_flip_rate"] is None


def test_accuracy_by_round_and_ties():
    plays = [debate(0.9, 0, earlier=[0.5, 0.4]), debate(0.2, 1, earlier=[0.5, 0.4])]
    assert stats.accuracy_by_round(plays) == {0: 0.5, 1: 0.5, 2: 1.0}


def test_unreadable_verdicts_never_score():
    plays = [debate(0.9, 0), debate(0.9, 1, valid=False)]
    health = stats.judge_health(plays)
    assert health["n"] == 1
    assert health["accuracy"].mean == 1.0
    assert health["unreadable"] == 0.5
    assert stats.judge_health(plays[1:]) == {}


def test_score_interval_leaves_out_missing_data():
    ok = [debate(0.9, 0, image=f"i{i}") for i in range(4)]
    invalid = Episode("x", "debate", ok[0].task, 0, (), Outcome("invalid", score=0.0))
    unknown = Episode("y", "debate", ok[0].task, 0, (), Outcome("ok"))
    interval = stats.score_interval([*ok, invalid, unknown])
    assert (interval.mean, interval.n) == (1.0, 4)


# ---- judges beside the one that decides ------------------------------------------------------------


def audited(belief, other, truth, image="image", valid=True):
    """A debate with a judge who decides and an auditor who is only recorded, twice: the last verdict counts."""
    play = debate(belief, truth, image=image)
    first = Judgment("auditor", (0.0, 1.0), True, 0, decides=False)
    last = Judgment("auditor", (other, 1 - other), valid, 1, decides=False)
    outcome = Outcome("ok", (first, last, *play.outcome.judgments), score=play.outcome.score)
    return Episode(play.id, "debate", play.task, 0, play.turns, outcome)


def test_held_out_judges_by_hand():
    plays = [audited(0.9, 0.8, 0, "i1"), audited(0.7, 0.4, 0, "i2"), audited(0.2, 0.5, 1, "i3"), debate(0.9, 0)]
    (found,) = stats.beside(plays).values()
    assert found["n"] == 3
    assert found["accuracy"].mean == pytest.approx((1 + 0 + 0.5) / 3)
    assert found["agreement"].mean == pytest.approx((1 + 0 + 0.5) / 3), "one half each: it would draw"
    assert found["brier"] == pytest.approx((0.2**2 + 0.6**2 + 0.5**2) / 3)
    assert found["belief_gap"] == pytest.approx((0.1 + 0.3 + 0.3) / 3)
    assert stats.beside([debate(0.9, 0)]) == {}


def test_unreadable_verdicts_of_a_held_out_judge_are_missing():
    (found,) = stats.beside([audited(0.9, 0.8, 0, valid=False)]).values()
    assert found["belief_gap"] == pytest.approx(0.9), "the last that could be read"
    assert stats.beside([debate(0.9, 0, valid=False)]) == {}


def test_figures_of_judges_are_plain_numbers():
    figures = stats.health_metrics([audited(0.9, 0.8, 0, "i1"), audited(0.3, 0.4, 0, "i2")])
    assert figures["brier"] == pytest.approx((0.1**2 + 0.7**2) / 2)
    assert figures["auditor/agreement"] == 1.0 and figures["auditor/accuracy"] == 0.5
    assert "swap_flip_rate" not in figures, "only one order was asked"
    assert stats.health_metrics([debate(0.8, 0, reads=[(0.8, 0.2), (0.8, 0.2)])])["swap_flip_rate"] == 1.0
    assert stats.health_metrics([]) == {}
