import warnings

import numpy as np
import pytest
from scipy.special import softmax
from sklearn import metrics

from mammosae_plugin.errors import InputError
from mammosae_plugin.measures import statistics
from mammosae_plugin.measures.statistics import (
    METRICS,
    Resamples,
    bootstrap_metrics,
    classification_metrics,
    interval,
    patient_bootstrap,
    ranking_metrics,
    require_two_classes,
)


def binary_case(seed, *, ties):
    rng = np.random.default_rng(seed)
    labels = (rng.random(60) < 0.3).astype(np.int64)
    logits = rng.normal(size=60) + labels
    return (np.round(logits) if ties else logits)[:, None], labels


def multi_class_case(seed, *, ties):
    rng = np.random.default_rng(seed)
    labels = rng.integers(4, size=60)
    logits = rng.normal(size=(60, 4)) + 1.5 * np.eye(4)[labels]
    return (np.round(logits) if ties else logits), labels


CASES = [binary_case, multi_class_case]


def sklearn_reference(logits, labels, weight):
    """Every metric by one call to scikit-learn, with sample weights, written out."""
    if logits.shape[1] == 1:
        score, predicted = logits[:, 0], (logits[:, 0] > 0).astype(int)
        average = "binary"
        auroc = metrics.roc_auc_score(labels, score, sample_weight=weight)
        average_precision = metrics.average_precision_score(labels, score, sample_weight=weight)
    else:
        score, predicted = np.round(softmax(logits, axis=1), 12), logits.argmax(axis=1)
        average = "macro"
        one_hot = np.eye(logits.shape[1])[labels]
        auroc = metrics.roc_auc_score(one_hot, score, average="macro", sample_weight=weight)
        average_precision = metrics.average_precision_score(one_hot, score, average="macro", sample_weight=weight)
    keywords = {"average": average, "zero_division": 0, "sample_weight": weight}
    return {
        "auroc": auroc,
        "average_precision": average_precision,
        "precision": metrics.precision_score(labels, predicted, **keywords),
        "recall": metrics.recall_score(labels, predicted, **keywords),
        "f1": metrics.f1_score(labels, predicted, **keywords),
        "accuracy": metrics.accuracy_score(labels, predicted, sample_weight=weight),
    }


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_point_metrics_equal_scikit_learn(case, ties):
    logits, labels = case(0, ties=ties)
    assert classification_metrics(logits, labels) == pytest.approx(sklearn_reference(logits, labels, None), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_bootstrapped_metrics_equal_scikit_learn_with_sample_weights(case, ties):
    for seed in range(5):
        logits, labels = case(seed, ties=ties)
        # More resamples than fit one block, so that the blocks are joined too.
        multiplicities = patient_bootstrap(np.arange(60) // 2, 130, seed)
        samples = bootstrap_metrics(logits, labels, multiplicities)
        for resample in [*range(0, 130, 9), 127, 128, 129]:
            expected = sklearn_reference(logits, labels, multiplicities[resample])
            assert {name: samples[name][resample] for name in METRICS} == pytest.approx(expected, abs=1e-12)


def test_weights_mean_the_same_as_repeated_rows():
    logits, labels = binary_case(3, ties=True)
    multiplicities = patient_bootstrap(np.arange(60) // 4, 10, 1)
    samples = bootstrap_metrics(logits, labels, multiplicities)
    for resample, counts in enumerate(multiplicities):
        repeated = classification_metrics(np.repeat(logits, counts, axis=0), np.repeat(labels, counts))
        assert {name: samples[name][resample] for name in METRICS} == pytest.approx(repeated, abs=1e-12)


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    logits, labels = binary_case(4, ties=True)
    positive, negative = logits[labels == 1], logits[labels == 0].T
    share = np.mean((positive > negative) + 0.5 * (positive == negative))
    assert classification_metrics(logits, labels)["auroc"] == pytest.approx(share, abs=1e-12)
    assert ranking_metrics(logits, labels)[0] == pytest.approx(share, abs=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_ranking_metrics_equal_the_point_metrics(case):
    logits, labels = case(5, ties=True)
    point = classification_metrics(logits, labels)
    assert ranking_metrics(logits, labels) == pytest.approx((point["auroc"], point["average_precision"]), abs=1e-12)


def test_a_logit_of_zero_is_not_above_probability_one_half():
    point = classification_metrics(np.array([[0.0], [1.0], [-1.0]]), np.array([1, 1, 0]))
    assert point["recall"] == 0.5
    assert point["precision"] == 1.0


def test_precision_without_a_positive_prediction_is_zero():
    logits, labels = np.array([[-2.0], [-1.0], [-3.0]]), np.array([1, 0, 0])
    point = classification_metrics(logits, labels)
    samples = bootstrap_metrics(logits, labels, np.ones((1, 3), dtype=np.int64))
    for name, value in (("precision", 0), ("recall", 0), ("f1", 0), ("accuracy", 2 / 3)):
        assert point[name] == pytest.approx(value)
        assert samples[name][0] == pytest.approx(value)


def test_rows_with_the_same_odds_tie_to_the_last_bit():
    others = np.random.default_rng(0).normal(size=3)
    orders = np.array([[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]])
    logits = np.concatenate([np.zeros((6, 1)), others[orders]], axis=1)
    for labels in (np.array([0, 0, 0, 1, 2, 3]), np.array([1, 0, 2, 0, 3, 0])):
        scores = statistics._decisions(logits, labels)[1]
        assert len(np.unique(scores[:, 0])) == 1


def test_softmax_probabilities_that_round_to_one_still_rank():
    logits = np.array([[40.0, 0, 0], [50, 0, 0], [60, 0, 0], [0, 30, 0], [0, 0, 30]])
    labels = np.array([1, 0, 0, 1, 2])
    ranks_class_0 = metrics.roc_auc_score(labels == 0, logits[:, 0])
    assert ranks_class_0 == 1.0
    others = [metrics.roc_auc_score(labels == c, softmax(logits, axis=1)[:, c]) for c in (1, 2)]
    assert classification_metrics(logits, labels)["auroc"] >= np.mean([1.0, *others]) - 1e-12


def test_macro_averages_run_over_the_classes_that_occur():
    logits, labels = multi_class_case(6, ties=False)
    kept = labels != 3
    point = classification_metrics(logits[kept], labels[kept])
    recalls = [np.mean(logits[labels == c].argmax(axis=1) == c) for c in range(3)]
    assert point["recall"] == pytest.approx(np.mean(recalls))


def test_a_patients_rows_are_drawn_together():
    patients = np.array(["b", "a", "b", "c", "a", "b"])
    multiplicities = patient_bootstrap(patients, 50, 0)
    assert multiplicities.shape == (50, 6)
    for patient in "abc":
        own = multiplicities[:, patients == patient]
        assert (own == own[:, :1]).all()
    one_row_each = multiplicities[:, [1, 0, 3]]
    assert (one_row_each.sum(axis=1) == 3).all()
    assert len(np.unique(one_row_each, axis=0)) > 5


def test_resamples_depend_on_the_seed_and_not_on_the_order_of_rows():
    patients = np.array(["b", "a", "b", "c"], dtype=object)
    order = np.array([3, 1, 0, 2])
    first = patient_bootstrap(patients, 20, 7)
    assert np.array_equal(first[:, order], patient_bootstrap(patients[order], 20, 7))
    assert not np.array_equal(first, patient_bootstrap(patients, 20, 8))


def test_every_patient_is_drawn_once_on_average():
    multiplicities = patient_bootstrap(np.arange(50), 4000, 0)
    assert multiplicities.mean(axis=0) == pytest.approx(np.ones(50), abs=0.08)
    assert multiplicities.var() == pytest.approx(1 - 1 / 50, rel=0.02)


def test_resamples_of_one_class_are_nan_and_left_out_of_intervals():
    logits, labels = np.array([[2.0], [-1.0], [0.5]]), np.array([1, 0, 0])
    multiplicities = np.array([[1, 1, 1], [0, 2, 1], [3, 0, 0], [1, 2, 0]])
    samples = bootstrap_metrics(logits, labels, multiplicities)
    for name in METRICS:
        assert np.isnan(samples[name]).tolist() == [False, True, True, False]
    assert interval(samples["auroc"]) == (1.0, 1.0)


def test_a_multi_class_resample_that_misses_a_class_is_nan():
    logits, labels = np.eye(3), np.array([0, 1, 2])
    samples = bootstrap_metrics(logits, labels, np.array([[1, 1, 1], [2, 1, 0]]))
    assert samples["accuracy"][0] == 1.0
    assert np.isnan(samples["accuracy"][1])


def test_no_warning_comes_from_undefined_resamples():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bootstrap_metrics(np.array([[1.0], [2.0]]), np.array([0, 1]), np.array([[2, 0], [0, 2], [0, 0]]))


def test_interval_is_the_percentile_interval():
    samples = np.random.default_rng(0).normal(size=1001)
    assert interval(samples) == pytest.approx((np.percentile(samples, 2.5), np.percentile(samples, 97.5)))
    assert interval(samples, 0.5) == pytest.approx((np.percentile(samples, 25), np.percentile(samples, 75)))


def test_interval_without_a_defined_sample_is_nan():
    assert np.isnan(interval(np.full(3, np.nan))).all()
    assert np.isnan(interval(np.empty(0))).all()
    with pytest.raises(InputError, match="level is 95"):
        interval(np.zeros(3), 95)


def test_resampling_patients_gives_wider_intervals_than_resampling_their_images():
    """With four equal images per patient, resampling images makes intervals half as wide as they should be."""
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(2, size=100), 4)
    logits = (np.repeat(rng.normal(size=100), 4) + labels)[:, None]
    by_patient = bootstrap_metrics(logits, labels, patient_bootstrap(np.arange(400) // 4, 1000, 0))["auroc"].std()
    by_image = bootstrap_metrics(logits, labels, patient_bootstrap(np.arange(400), 1000, 0))["auroc"].std()
    assert by_patient / by_image == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 0, 0], "split 'test' has no positive image for 'Mass' among 3 rows: choose"),
        ([1, 1], "no image outside class 1 of 'Mass'"),
        ([], "no image with a label for 'Mass'"),
    ],
)
def test_a_split_with_one_class_is_an_error_that_names_concept_and_split(labels, message):
    with pytest.raises(InputError, match=message):
        require_two_classes(np.array(labels, dtype=np.int64), concept="Mass", split="test")
    require_two_classes(np.array([0, 1]), concept="Mass", split="test")


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((3, 1)), [0, 0, 0], "only one class"),
        (np.zeros(3), [0, 1, 0], "do not fit"),
        (np.zeros((3, 1)), [0, 1], "do not fit"),
        (np.array([[0.0], [np.nan], [1]]), [0, 1, 0], "1 rows have a logit that is not finite"),
        (np.zeros((3, 1)), [0, 1, 2], "labels run from 0 to 2, but the classifier has the classes 0 to 1"),
        (np.zeros((3, 3)), [0, 1, 4], "classes 0 to 2"),
    ],
)
def test_bad_logits_and_labels_are_named(logits, labels, message):
    with pytest.raises(InputError, match=message):
        classification_metrics(logits, np.array(labels))


def test_multiplicities_of_another_width_are_an_error():
    with pytest.raises(InputError, match=r"expected \(n_bootstrap, 3\)"):
        bootstrap_metrics(np.zeros((3, 1)), np.array([0, 1, 0]), np.ones((5, 4), dtype=int))
    with pytest.raises(InputError, match="n_bootstrap is -1"):
        patient_bootstrap(["a"], -1, 0)


GOOD_LOGITS, GOOD_LABELS = np.array([[0.0], [1.0], [2.0]]), [0, 1, 0]
IMPOSSIBLE_LABELS = [
    ([0.4, 0.6, 1], "labels hold 0.4"),
    ([0, np.nan, 1], "labels: 1 of 3 are missing"),
    ([0, None, 1], "labels: 1 of 3 are missing"),
    ([0, np.inf, 1], "labels hold inf"),
    ([0, -1, 1], "labels run from -1"),
    (["no", "yes", "no"], "labels are not numbers"),
    ([[0], [1], [1]], "do not fit|have shape"),
]


@pytest.mark.parametrize(("labels", "message"), IMPOSSIBLE_LABELS)
def test_labels_that_are_no_classes_are_refused_by_every_function(labels, message):
    for call in (
        lambda: classification_metrics(GOOD_LOGITS, labels),
        lambda: bootstrap_metrics(GOOD_LOGITS, labels, np.ones((2, 3), dtype=int)),
        lambda: ranking_metrics(GOOD_LOGITS, labels),
        lambda: require_two_classes(labels, concept="Mass", split="test"),
        lambda: Resamples(labels, ["a", "b", "c"]),
    ):
        with pytest.raises(InputError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_whole_labels_of_any_type_are_classes():
    expected = classification_metrics(GOOD_LOGITS, np.array(GOOD_LABELS))
    for labels in ([0.0, 1.0, 0.0], [False, True, False], np.array([0, 1, 0], dtype=np.uint8), [0, 1, 0]):
        assert classification_metrics(GOOD_LOGITS, labels) == expected


@pytest.mark.parametrize("logits", [[["a"], ["b"], ["c"]], np.zeros((3, 0)), np.zeros((3, 1, 1)), [[np.inf], [0], [1]]])
def test_logits_that_are_none_are_refused(logits):
    for call in (classification_metrics, ranking_metrics):
        with pytest.raises(InputError):
            call(logits, GOOD_LABELS)


@pytest.mark.parametrize("multiplicities", [np.full((2, 3), 0.5), -np.ones((2, 3), dtype=int), np.ones(3, dtype=int)])
def test_multiplicities_that_are_no_counts_are_refused(multiplicities):
    with pytest.raises(InputError, match="multiplicities"):
        bootstrap_metrics(GOOD_LOGITS, GOOD_LABELS, multiplicities)


def test_impossible_resamples_and_levels_are_refused():
    for n_bootstrap in (-1, 1.5, np.nan, "many", True, None):
        with pytest.raises(InputError, match="n_bootstrap is"):
            patient_bootstrap(["a", "b"], n_bootstrap, 0)
    for seed in (-1, 0.5, None):
        with pytest.raises(InputError, match="seed is"):
            patient_bootstrap(["a", "b"], 10, seed)
    for patients in (["a", None], [1.0, np.nan]):
        with pytest.raises(InputError, match="1 rows have no patient id"):
            patient_bootstrap(patients, 10, 0)
    with pytest.raises(InputError, match="2 rows have no patient id"):
        patient_bootstrap(["a", float("nan"), None], 5, 0)
    with pytest.raises(InputError, match=r"expected \(n_rows,\)"):
        patient_bootstrap([["a"], ["b"]], 10, 0)
    for level in (0, 1, -0.5, np.nan, np.inf, "95 %", None):
        with pytest.raises(InputError, match="level is"):
            interval(np.zeros(3), level)
    for samples in (np.zeros((2, 2)), [0.0, np.inf], ["a"]):
        with pytest.raises(InputError, match="samples"):
            interval(samples)
    with pytest.raises(InputError, match="3 rows have a label"):
        Resamples([0, 1, 0], ["a", "b"])
    with pytest.raises(InputError, match="min_patients is 0"):
        Resamples([0, 1, 0], ["a", "b", "c"], min_patients=0)
