"""AUROCs of many columns, permutation tests and power, held against other implementations and published numbers."""

import math

import numpy as np
import pytest
from scipy import sparse, stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.multitest import multipletests

from mammosae_plugin.analysis.coherence import benjamini_hochberg
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures import bootstrap_aurocs, delong, delong_columns, detectable_auroc, permutation_test
from mammosae_plugin.measures.permutations import permuted_labels
from mammosae_plugin.measures.roc import hanley_mcneil_error
from mammosae_plugin.measures.statistics import bootstrap_metrics, patient_bootstrap, separation_bound

# The worked example of DeLong et al. (1988): 43 patients with ovarian cancer, as SAS/STAT's documentation of PROC
# LOGISTIC has them: albumin, total protein, K-G score, whether surgery was of use.
OVARIAN = """
    3.0 5.8 10 0 3.2 6.3 5 1 3.9 6.8 3 1 2.8 4.8 6 0 3.2 5.8 3 1 0.9 4.0 5 0 2.5 5.7 8 0 1.6 5.6 5 1 3.8 5.7 5 1
    3.7 6.7 6 1 3.2 5.4 4 1 3.8 6.6 6 1 4.1 6.6 5 1 3.6 5.7 5 1 4.3 7.0 4 1 3.6 6.7 4 0 2.3 4.4 6 1 4.2 7.6 4 0
    4.0 6.6 6 0 3.5 5.8 6 1 3.8 6.8 7 1 3.0 4.7 8 0 4.5 7.4 5 1 3.7 7.4 5 1 3.1 6.6 6 1 4.1 8.2 6 1 4.3 7.0 5 1
    4.3 6.5 4 1 3.2 5.1 5 1 2.6 4.7 6 1 3.3 6.8 6 0 1.7 4.0 7 0 3.7 6.1 5 1 3.3 6.3 7 1 4.2 7.7 6 1 3.5 6.2 5 1
    2.9 5.7 9 0 2.1 4.8 7 1 2.8 6.2 8 0 4.0 7.0 7 1 3.3 5.7 6 1 3.7 6.9 5 1 3.6 6.6 5 1
"""


def test_the_worked_example_of_delong_and_others_comes_out():
    albumin, protein, score, useful = np.array(OVARIAN.split(), dtype=float).reshape(-1, 4).T
    found = delong_columns(useful, np.stack([albumin, 10 - score, protein], axis=1))
    assert found.auc.round(4).tolist() == [0.7366, 0.7258, 0.6478]
    assert found.standard_error.round(4).tolist() == [0.0927, 0.1028, 0.1000]
    assert (round(found.low[0], 4), round(found.high[0], 4)) == (0.5549, 0.9182)
    of_protein = delong(useful, protein, 10 - score)
    assert (round(of_protein.difference, 4), round(of_protein.standard_error, 4)) == (-0.0780, 0.1046)
    assert (round(of_protein.p_value, 4), round(delong(useful, albumin, 10 - score).p_value, 4)) == (0.4561, 0.9102)


@pytest.fixture(scope="module")
def clustered():
    """Rows of patients, some with both classes, and 70 sparse columns with ties."""
    rng = np.random.default_rng(0)
    groups = np.sort(rng.integers(60, size=200))
    labels = (rng.random(200) < 0.2 + 0.4 * (groups % 3 == 0)).astype(int)
    scores = np.where(rng.random((200, 70)) < 0.4, np.round(rng.random((200, 70)) + 0.3 * labels[:, None], 1), 0)
    scores[:, 1], scores[:, 2], scores[:, 3] = 0, labels, -labels
    return labels, scores, groups


def obuchowski(labels, scores, groups):
    """The variance of a clustered AUROC, written out pair by pair and cluster by cluster."""
    kernel = np.array(
        [[1.0 if p > q else 0.5 if p == q else 0.0 for q in scores[labels == 0]] for p in scores[labels == 1]]
    )
    area, (m, n) = kernel.mean(), kernel.shape
    of_positive, of_negative = groups[labels == 1], groups[labels == 0]
    clusters = np.unique(groups)
    x = np.array([(kernel.mean(axis=1) - area)[of_positive == one].sum() for one in clusters])
    y = np.array([(kernel.mean(axis=0) - area)[of_negative == one].sum() for one in clusters])
    i10, i01, i = len(set(of_positive)), len(set(of_negative)), len(clusters)
    s10, s01 = i10 / ((i10 - 1) * m) * (x**2).sum(), i01 / ((i01 - 1) * n) * (y**2).sum()
    return area, math.sqrt(s10 / m + s01 / n + 2 * i / (i - 1) * (x * y).sum() / (m * n))


def test_every_column_is_delong_and_with_groups_obuchowski(clustered):
    labels, scores, groups = clustered
    alone, together = delong_columns(labels, sparse.csr_array(scores)), delong_columns(labels, scores, groups)
    for column in range(scores.shape[1]):
        one = delong(labels, scores[:, column])
        assert alone.auc[column] == pytest.approx(one.auc, abs=1e-12)
        assert alone.standard_error[column] == pytest.approx(one.standard_error, abs=1e-12)
        assert (alone.low[column], alone.high[column]) == pytest.approx(one.interval, abs=1e-9)
    for column in (0, 1, 17, 69):
        found = (together.auc[column], together.standard_error[column])
        assert found == pytest.approx(obuchowski(labels, scores[:, column], groups), abs=1e-9)
    few = [len(set(groups[labels == label])) for label in (1, 0)]
    assert (alone.p_value[1], together.auc[2], together.low[2]) == (1, 1, separation_bound(*few))
    assert together.auc[3] == together.low[3] == 0 < together.high[3] < 0.15
    assert 0 < together.p_value[2] < 1e-9 and (np.diff(alone.to_frame()[["low", "auc", "high"]]) >= 0).all()


def test_intervals_of_clustered_rows_hold_the_truth_where_those_of_single_rows_do_not():
    rng = np.random.default_rng(1)
    groups, n = np.repeat(np.arange(60), 4), 300
    labels = np.repeat(np.arange(60) % 2, 4)
    shared = np.repeat(rng.normal(size=(60, n)), 4, axis=0)
    scores = shared + 0.5 * rng.normal(size=(240, n)) + labels[:, None]
    truth = stats.norm.cdf(1 / math.sqrt(2 * 1.25))
    held = []
    for found in (delong_columns(labels, scores, groups), delong_columns(labels, scores)):
        held.append(((found.low <= truth) & (truth <= found.high)).mean())
    assert 0.91 <= held[0] <= 0.98 and held[1] < 0.8
    null = delong_columns(labels, shared + 0.5 * rng.normal(size=(240, n)), groups)
    assert 0.02 <= (null.p_value < 0.05).mean() <= 0.09


@pytest.mark.parametrize("firing", [1.0, 0.05])
@pytest.mark.parametrize(("n_positive", "n_negative", "rows"), [(10, 10, 1), (10, 200, 1), (12, 100, 4)])
def test_of_scores_that_say_nothing_few_positives_call_none(firing, n_positive, n_negative, rows):
    rng, called = np.random.default_rng(0), []
    labels, n = np.repeat([1, 0], [n_positive * rows, n_negative * rows]), n_positive + n_negative
    for _ in range(12):
        fires = np.repeat(rng.random((n, 300)) < firing, rows, axis=0)
        scores = fires * (1 + rng.random((n * rows, 300)))
        found = delong_columns(labels, scores, np.repeat(np.arange(n), rows))
        called.append((benjamini_hochberg(found.p_value) < 0.05).any())
    assert np.mean(called) <= 0.25  # 5 % are expected; of 12, more than 3 have a chance of 0.0002


def test_a_score_of_the_side_says_nothing_where_either_side_may_have_the_finding():
    rng, n, rejected = np.random.default_rng(0), 10, []
    for _ in range(400):
        labels = np.zeros(2 * n, dtype=int)
        labels[2 * np.arange(n) + rng.integers(0, 2, n)] = 1
        side = np.tile([0.0, 1.0], n)[:, None]
        rejected.append(delong_columns(labels, side, np.repeat(np.arange(n), 2)).p_value[0] < 0.05)
    assert np.mean(rejected) <= 0.08


def test_a_score_that_is_not_finite_is_told():
    with pytest.raises(InputError, match="1 are missing or infinite"):
        delong_columns([0, 0, 1, 1], [[0.1], [np.inf], [0.35], [0.8]])


def test_resamples_of_every_column_are_those_of_one(clustered):
    labels, scores, groups = clustered
    resamples = patient_bootstrap(groups, 150, 0)
    found = bootstrap_aurocs(labels, sparse.csr_array(scores), resamples)
    for column in (0, 2, 3, 69):
        one = bootstrap_metrics(scores[:, [column]], labels, resamples)["auroc"]
        assert np.allclose(found[:, column], one, atol=1e-12, equal_nan=True)
    assert found[0, 5] == pytest.approx(roc_auc_score(labels, scores[:, 5], sample_weight=resamples[0]))
    assert np.isnan(bootstrap_aurocs(labels, scores, np.where(labels, 0, resamples))).all()
    assert bootstrap_aurocs(labels, scores, resamples[:0]).shape == (0, 70)


def test_permutation_p_is_scipys_and_holds_on_random_labels():
    rng = np.random.default_rng(0)
    labels, values = np.repeat([0, 1], [14, 10]), rng.normal(size=24)
    values[labels == 1] += 0.8

    def gap(orders):
        return np.stack([values, -values]) @ (orders / orders.sum(axis=0) - (1 - orders) / (1 - orders).sum(axis=0))

    found = permutation_test(gap, labels, np.arange(24), n_permutations=4999, seed=1)
    known = stats.permutation_test(
        (values[labels == 1], values[labels == 0]), lambda a, b: a.mean() - b.mean(), n_resamples=4999, rng=0
    )
    assert found.p_value[0] == pytest.approx(known.pvalue, abs=0.02) and 0.01 < known.pvalue < 0.3
    assert found.p_value[1] == found.p_value[0] == found.p_family[0]

    noise, groups = rng.normal(size=(200, 60)), np.repeat(np.arange(20), 3)
    noise = noise + np.repeat(rng.normal(size=(200, 20)), 3, axis=1)
    by_patient = np.repeat(np.arange(20) % 2, 3)
    test = permutation_test(lambda y: noise @ (y - y.mean(axis=0)), by_patient, groups, n_permutations=199)
    assert (test.p_value < 0.05).mean() < 0.1 and test.p_family.min() > 0.01
    orders = permuted_labels(by_patient, groups, n_permutations=5)
    assert (orders.reshape(20, 3, 6).std(axis=1) == 0).all()  # images of a patient keep like labels


def test_adjusted_p_values_are_those_of_statsmodels():
    p = np.random.default_rng(0).random(50) ** 3
    q = benjamini_hochberg(np.append(p, np.nan))
    assert np.allclose(q[:-1], multipletests(p, method="fdr_bh")[1], atol=1e-15) and np.isnan(q[-1])


def test_the_expected_error_is_hanley_and_mcneils_and_what_is_detectable_is_detected():
    assert round(hanley_mcneil_error(0.893, 51, 58), 3) in (0.032, 0.033)  # their example: 0.032
    smallest = detectable_auroc(20, 200)
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 0], [20, 200])
    scores = rng.normal(size=(220, 1000)) + math.sqrt(2) * stats.norm.ppf(smallest) * labels[:, None]
    ranks = stats.mannwhitneyu(scores[labels == 1], scores[labels == 0], axis=0)
    assert 0.75 <= (ranks.pvalue < 0.05).mean() <= 0.86
    assert detectable_auroc(5, 200) > smallest > detectable_auroc(200, 200) and math.isnan(detectable_auroc(1, 1))
    assert detectable_auroc(20, 200, n_tests=850) > smallest


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: delong_columns([0, 0], np.zeros((2, 1))), "0 rows are of class 1 and 2 of class 0"),
        (lambda: delong_columns([0, 1], np.zeros(2)), r"scores have shape \(2,\): expected \(2, m\)"),
        (lambda: delong_columns([0, 1], np.zeros((2, 1)), groups=["a", None]), "the group of every row, none missing"),
        (lambda: bootstrap_aurocs([0, 1], np.zeros((2, 1)), np.ones((3, 1), int)), "multiplicities have shape"),
        (lambda: permutation_test(lambda y: y[0], [0, 1], [0, 1]), "the statistic has shape"),
        (lambda: permuted_labels([0, 1], [0], n_permutations=1), "do not fit"),
        (lambda: detectable_auroc(0, 5), "n_positive is 0"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(call, message):
    with pytest.raises(InputError, match=message):
        call()
