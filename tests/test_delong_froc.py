"""DeLong's AUROC and FROC, held against plain definitions."""

import math

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from mammosae_plugin.analysis import froc_of
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures import delong
from mammosae_plugin.measures.statistics import separation_bound


def structural(labels, scores):
    """V10 and V01 of DeLong et al. (1988), pair by pair."""
    kernel = [[1.0 if p > q else 0.5 if p == q else 0.0 for q in scores[labels == 0]] for p in scores[labels == 1]]
    return np.mean(kernel, axis=1), np.mean(kernel, axis=0)


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    labels = (rng.random(120) < 0.3).astype(int)
    shared = rng.normal(size=120) + labels
    return labels, np.round(shared + rng.normal(size=120), 1), np.round(shared + rng.normal(size=120) * 0.6, 1)


def test_auroc_and_standard_error_are_their_definitions(rows):
    labels, scores, _ = rows
    found = delong(labels, scores)
    v10, v01 = structural(labels, scores)
    error = math.sqrt(v10.var(ddof=1) / len(v10) + v01.var(ddof=1) / len(v01))
    assert found.auc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert found.standard_error == pytest.approx(error, abs=1e-12)
    assert found.interval == pytest.approx((found.auc - norm.ppf(0.975) * error, found.auc + norm.ppf(0.975) * error))


def test_the_difference_counts_that_the_rows_are_the_same(rows):
    labels, scores, other = rows
    found = delong(labels, scores, other)
    pairs = [structural(labels, one) for one in (scores, other)]
    covariance = sum(np.cov(np.stack([a, b])) / len(a) for a, b in zip(*pairs, strict=True))
    error = math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert found.difference == pytest.approx(roc_auc_score(labels, scores) - roc_auc_score(labels, other))
    assert found.standard_error == pytest.approx(error, abs=1e-12)
    assert found.p_value == pytest.approx(2 * norm.sf(abs(found.difference) / error))
    back = delong(labels, other, scores)
    assert (back.difference, back.p_value) == (-found.difference, found.p_value)


def test_scores_that_order_alike_do_not_differ(rows):
    labels, scores, _ = rows
    same = delong(labels, scores, 3 * scores + 1)
    assert (same.difference, same.standard_error, same.p_value) == (0, 0, 1)


def test_a_perfect_auroc_is_not_certain():
    labels = np.repeat([0, 1], [30, 12])
    assert delong(labels, labels).interval == (separation_bound(12, 30), 1)
    assert delong(labels, -labels).interval == (0, 1 - separation_bound(12, 30))
    assert math.isnan(delong(labels, labels, -labels).p_value)
    alone = delong([0, 0, 0, 1], [1, 2, 3, 2.5])
    assert alone.auc == pytest.approx(2 / 3) and math.isnan(alone.standard_error)


def test_95_percent_intervals_hold_the_truth():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 60)
    truth = norm.cdf(1 / math.sqrt(2))
    inside = 0
    for _ in range(400):
        low, high = delong(labels, rng.normal(size=120) + labels).interval
        inside += low <= truth <= high
    assert 0.91 <= inside / 400 <= 0.98


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 0], [1, 2], "0 rows are of class 1 and 2 of class 0"),
        ([0, 2], [1, 2], "labels run from 0 to 2"),
        ([0, 1], [1, np.nan], "expected \\(2,\\), one finite number"),
        ([0, 1], [1, 2, 3], "scores have shape \\(3,\\)"),
    ],
)
def test_delong_refuses_in_one_line(labels, scores, message):
    with pytest.raises(InputError, match=message):
        delong(labels, scores)


# FROC

BOX = [10, 10, 20, 20]


def test_a_point_finds_every_box_that_it_lies_in_and_the_best_one_counts():
    two = [BOX, [15, 15, 40, 40]]
    predictions = [([[16, 16], [12, 12], [0, 0]], [0.5, 0.9, 0.7])]
    assert froc_of(predictions, [two], fppi=(0,)).sensitivity.tolist() == [0.5]  # 0.7 outside is false
    assert froc_of(predictions, [two], fppi=(1,)).sensitivity.tolist() == [1.0]


def test_sensitivity_is_read_off_without_interpolation_and_healthy_images_count():
    # Scores of false positives 0.8 and 0.6 in two images of four; hits at 0.7 and 0.5 of three boxes.
    predictions = [
        ([[15, 15], [0, 0]], [0.7, 0.8]),
        ([[15, 15]], [0.5]),
        ([], []),
        ([[1, 1]], [0.6]),
    ]
    found = froc_of(predictions, [[BOX], [BOX], [BOX], []])
    assert found.sensitivity.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3])
    assert found.cpm == pytest.approx(found.sensitivity.mean())


def test_a_false_positive_of_the_same_score_comes_with_the_hit():
    assert froc_of([([[15, 15], [0, 0]], [0.5, 0.5])], [[BOX]], fppi=(0, 1)).sensitivity.tolist() == [0, 1]


def test_froc_is_the_best_over_all_thresholds():
    rng = np.random.default_rng(2)
    truth = [rng.uniform(0, 60, (rng.integers(0, 3), 2)) for _ in range(30)]
    truth = [np.hstack([corner, corner + rng.uniform(10, 30, corner.shape)]) for corner in truth]
    predictions = [(rng.uniform(0, 90, (6, 2)), np.round(rng.random(6), 1)) for _ in truth]
    limits = (1 / 8, 1, 2.5, 4)
    best = dict.fromkeys(limits, 0.0)
    for threshold in np.unique(np.concatenate([scores for _, scores in predictions])):
        hits = false = 0
        for (points, scores), boxes in zip(predictions, truth, strict=True):
            shown = points[scores >= threshold]
            inside = [[(x1 <= x <= x2 and y1 <= y <= y2) for x1, y1, x2, y2 in boxes] for x, y in shown]
            hits += sum(any(column) for column in zip(*inside, strict=True))
            false += sum(not any(row) for row in inside)
        for limit in limits:
            if false <= limit * len(truth):
                best[limit] = max(best[limit], hits / sum(map(len, truth)))
    np.testing.assert_allclose(froc_of(predictions, truth, fppi=limits).sensitivity, list(best.values()))


@pytest.mark.parametrize(
    ("predictions", "truth", "message"),
    [
        ([([], [])], [[]], "undefined without a ground-truth box"),
        ([([], [])], [[BOX], [BOX]], "1 images have predictions, but 2 have ground truth"),
        ([([[1, 2]], [0.1, 0.2])], [[BOX]], r"points \(1, 2\) and scores \(2,\)"),
        ([([[1, np.nan]], [0.1])], [[BOX]], "not finite"),
        ([([[1, 2]], [0.1])], [[[20, 10, 10, 20]]], "image 0 has ground truth with an impossible box"),
        ([[1, 2, 3]], [[BOX]], "no pair"),
        ([], [], "there is no image"),
    ],
)
def test_froc_refuses_in_one_line(predictions, truth, message):
    with pytest.raises(InputError, match=message):
        froc_of(predictions, truth)
