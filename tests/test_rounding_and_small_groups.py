"""Scores that differ by rounding tie; intervals say what they rest on, and are left out where that is too little."""

import math

import numpy as np
import pytest
import torch
from helpers_study import small_phantoms
from helpers_tables import make_table
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score

from mammosae_plugin.adapters import HookedVisionModel, MammoClipClassifier
from mammosae_plugin.analysis.intervention import sweep
from mammosae_plugin.analysis.localization import heatmap, heatmap_boxes
from mammosae_plugin.analysis.probing import best_single_latent, class_mean_latents, rank_latents
from mammosae_plugin.analysis.reconstruction import reconstruction_metrics
from mammosae_plugin.datasets import VinDrMammo
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import encode_latents
from mammosae_plugin.latents.table import logit_error
from mammosae_plugin.measures.boxes import average_precision
from mammosae_plugin.measures.statistics import (
    NETWORK_ERROR,
    Resamples,
    bootstrap_metrics,
    classification_metrics,
    interval,
    ranking_metrics,
    separation_bound,
    settled,
)

# Rounding


def groups_by_walking(scores, error):
    """The rule of `settled`, one score at a time."""
    order, levels = np.argsort(scores), np.empty(len(scores))
    level = None
    for place in order:
        value = scores[place] if abs(scores[place]) > error else 0.0
        starts = level is None or np.sign(value) != np.sign(level)
        if starts or value - level > error + 2**-40 * max(abs(value), abs(level)):
            level = value
        levels[place] = level
    return levels


@pytest.mark.parametrize("error", [0.0, 0.003, 0.4, 10.0])
def test_settled_scores_are_grouped_from_the_lowest_up(error):
    for seed in range(20):
        scores = np.random.default_rng(seed).normal(size=300)
        found = settled(scores, error)
        assert np.array_equal(found, groups_by_walking(scores, error))
        assert np.abs(found - scores).max() <= max(error, 1e-11)
        assert (np.diff(found[np.argsort(scores)]) >= 0).all()


def test_scores_at_the_error_are_zero_and_those_beyond_it_keep_their_sign():
    beyond = 0.5 * (1 + 2.0**-45)
    assert settled([-0.5, 0.0, 0.5], 0.5).tolist() == [0.0] * 3
    assert settled([-beyond, 0.0, beyond], 0.5).tolist() == [-beyond, 0.0, beyond]


def test_a_long_chain_of_close_scores_does_not_become_one():
    scores = np.linspace(0, 1, 100_001)
    assert len(np.unique(settled(scores, 2.5e-5))) == pytest.approx(100_001 / 3, rel=0.01)


def test_sums_in_another_order_are_equal_scores():
    assert len(np.unique(settled([0.1 + 0.2, 0.3, (0.1 + 0.3) - 0.1]))) == 1
    assert len(np.unique(settled([1.0, 1.0 + 1e-9]))) == 2
    assert settled(np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("n_out", [1, 4])
def test_logits_that_are_equal_to_rounding_say_nothing(n_out):
    rng = np.random.default_rng(0)
    labels = np.arange(40) % max(2, n_out)
    logits = rng.normal(size=n_out) * (1 + 1e-14 * rng.normal(size=(40, n_out)))
    assert classification_metrics(logits, labels)["auroc"] == ranking_metrics(logits, labels)[0] == 0.5
    samples = bootstrap_metrics(logits, labels, np.ones((3, 40), dtype=int))
    assert samples["auroc"].tolist() == [0.5] * 3


def test_a_threshold_is_not_crossed_by_rounding():
    labels = np.array([0, 1, 0, 1])
    logits = settled(np.array([[-1e-9], [1e-9], [2.0], [3.0]]), error=1e-6)
    assert classification_metrics(logits, labels)["recall"] == 0.5  # the second is not above probability one half


def dead_sae(hook_name, d_in):
    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=16, metadata=SAEMetadata(hook_name=hook_name)))
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
        sae.b_dec.normal_()
    return sae


@pytest.mark.parametrize("where", ["final map", "inner layer"])
def test_equal_logits_have_an_auroc_of_one_half_in_every_batch_size(where, classifier, tmp_path):
    """With an SAE in which nothing fires every image has the same logit, but for rounding that depends on the batch."""
    data = VinDrMammo(small_phantoms(tmp_path / "data", n_patients=12), image_size=(96, 64))
    name, layer = ("bn2.hook_out", "bn2") if where == "final map" else ("blocks.3.hook_out", "blocks.3")
    with HookedVisionModel(classifier, [layer]) as model:
        hook_name = model.resolve_hook_name(name)
        sae = dead_sae(hook_name, model.hook_shapes[hook_name][-1])
        for size in (1, 4):
            table = encode_latents(
                model, sae, data, tmp_path / str(size), heads={"Mass": classifier.classifier}, batch_size=size
            )
            found = reconstruction_metrics(table, "Mass", n_bootstrap=20, min_patients=1).set_index("variant")
            row = found.loc["with_sae"]
            assert (row["auroc"], row["auroc_low"], row["auroc_high"]) == (0.5, 0.5, 0.5)
            assert np.ptp(table.logits_with_sae("Mass")) <= logit_error(table, "Mass")


def test_what_is_left_of_an_exact_sae_without_its_latents_does_not_rank_images():
    """The logit less all that latents say is a constant: a difference of large numbers, which rounding would rank."""
    table = make_table(n_patients=60)
    table.features = table.latents @ table.decoder + table.bias
    ranking = rank_latents(class_mean_latents(table, "Mass"))
    found = sweep(
        table, ranking, concept="Mass", ks=(table.d_sae,), modes=("deactivate",), error_term=True, n_controls=0,
        n_bootstrap=20, min_patients=1,
    )  # fmt: skip
    assert found.loc[0, ["auroc", "auroc_low", "auroc_high"]].tolist() == [0.5, 0.5, 0.5]


def test_a_classifier_whose_logits_are_equal_is_validated_at_one_half():
    from mammosae_plugin.training.classifier import _auroc

    rng = np.random.default_rng(0)
    logits = 0.3 * (1 + 1e-7 * rng.normal(size=(40, 1)))
    assert _auroc(logits, np.arange(40)[:, None] % 2) == 0.5


def test_a_latent_that_differs_by_rounding_alone_is_no_classifier():
    table = make_table()
    noise = 1 + 1e-7 * np.random.default_rng(0).normal(size=(len(table.images), 1, 1))
    table.latents[:] = 0
    table.latents[..., 5] = 0.7 * noise
    found = best_single_latent(table, "Mass", n_bootstrap=0)
    assert (found.latent, found.auroc_training, found.auroc) == (5, 0.5, 0.5)


def test_latents_whose_class_means_are_equal_to_rounding_rank_by_index():
    table = make_table()
    noise = 1 + 1e-7 * np.random.default_rng(0).normal(size=table.latents.shape[:3])
    table.latents[..., :10] = 0.7 * noise[..., None]
    centered = class_mean_latents(table, "Mass", score="centered_mean")
    assert not centered[:, :10].any()
    assert np.abs(centered[:, 10:32]).min() > 0
    same = rank_latents(0.7 + 1e-15 * np.random.default_rng(0).normal(size=(2, 30)))
    assert same.indices.tolist() == [list(range(30))] * 2


def test_box_scores_that_differ_by_rounding_keep_the_order_given():
    boxes = [[0.0, 0, 10, 10], [50.0, 50, 60, 60]]
    for scores in ([0.3, 0.1 + 0.2], [0.1 + 0.2, 0.3], [0.3, 0.3]):
        assert average_precision([(boxes, scores)], [boxes[1:]]) == 0.5


def test_a_map_that_is_constant_to_rounding_has_no_box():
    for value in (0.1, 0.7, 123.456):
        upsampled = heatmap(np.full((5, 4), value, dtype=np.float32), (152, 91))
        assert len(heatmap_boxes(upsampled)[0]) == 0
        noisy = np.full((40, 30), value) * (1 + 1e-8 * np.random.default_rng(0).normal(size=(40, 30)))
        assert len(heatmap_boxes(noisy)[0]) == 0


def test_an_overlap_at_the_threshold_counts_whatever_rounding_makes_of_it():
    for shift in np.random.default_rng(0).uniform(0, 900, size=50):
        truth = np.array([[0.0, 0, 0.3, 0.3]]) + shift
        half = truth.copy()
        half[0, 2] = (truth[0, 0] + truth[0, 2]) / 2
        assert average_precision([(half, [1.0])], [truth], iou_threshold=0.5) == 1


# Intervals


def rows_of(n_positive, n_negative, images=2):
    labels = np.repeat([1] * n_positive + [0] * n_negative, images)
    return labels, np.repeat(np.arange(n_positive + n_negative), images)


@pytest.mark.parametrize(("n_positive", "n_negative"), [(1, 40), (2, 61), (30, 1), (12, 15)])
def test_the_share_of_undefined_resamples_is_that_of_the_binomial(n_positive, n_negative):
    labels, patients = rows_of(n_positive, n_negative)
    resamples = Resamples(labels, patients, n_bootstrap=4000, seed=1)
    n = n_positive + n_negative
    expected = (1 - n_positive / n) ** n + (1 - n_negative / n) ** n
    assert resamples.undefined_share == pytest.approx(expected, abs=0.025)
    logits = np.random.default_rng(0).normal(size=(len(labels), 1))
    assert np.isnan(resamples.metrics(logits)["auroc"]).mean() == resamples.undefined_share


def test_one_positive_patient_gives_no_interval_and_says_why():
    labels, patients = rows_of(1, 40)
    logits = labels[:, None] * 2.0 + np.random.default_rng(0).random((len(labels), 1))
    resamples = Resamples(labels, patients)
    samples = resamples.metrics(logits)["auroc"]
    assert interval(samples) == (1.0, 1.0)  # what the defined resamples agree on, and what must not be printed
    assert np.isnan(resamples.interval(samples)).all()
    counts = resamples.counts(binary=True)
    assert counts["undefined_share"] == pytest.approx(math.exp(-1), abs=0.05)
    assert (counts["n_rows"], counts["n_positive"], counts["n_patients"]) == (82, 2, 41)
    assert (counts["n_positive_patients"], counts["n_negative_patients"], counts["fewest_patients"]) == (1, 40, 1)


@pytest.mark.parametrize(("n_positive", "n_negative", "given"), [(9, 40, False), (10, 40, True), (40, 9, False)])
def test_an_interval_needs_ten_patients_of_either_class(n_positive, n_negative, given):
    labels, patients = rows_of(n_positive, n_negative)
    logits = labels[:, None] + np.random.default_rng(0).normal(size=(len(labels), 1))
    resamples = Resamples(labels, patients)
    assert np.isfinite(resamples.interval(resamples.metrics(logits)["auroc"])).all() == given
    fewer = Resamples(labels, patients, min_patients=9)
    assert np.isfinite(fewer.interval(fewer.metrics(logits)["auroc"])).all()


@pytest.mark.parametrize(("m", "n"), [(10, 10), (10, 40), (25, 12), (1, 3)])
def test_the_bound_of_perfect_separation_is_the_quantile_of_the_products_of_largest_uniform_numbers(m, n):
    rng = np.random.default_rng(0)
    # The largest of m uniform numbers has the distribution of the m-th root of one.
    products = rng.random(400_000) ** (1 / m) * rng.random(400_000) ** (1 / n)
    assert separation_bound(m, n) == pytest.approx(np.quantile(products, 0.025), abs=0.004)
    assert separation_bound(m, n) == separation_bound(n, m)


def test_beside_a_large_class_the_bound_is_that_of_a_binomial_share():
    exact = binomtest(12, 12).proportion_ci(0.95, "exact").low
    assert separation_bound(12, 10**7) == pytest.approx(exact, abs=1e-6)


def test_the_bound_of_perfect_separation_lies_above_the_true_auroc_in_at_most_one_of_forty_samples():
    rng = np.random.default_rng(0)
    for shift in (1.0, 1.3, 1.6):  # true AUROCs of 0.76, 0.82, 0.87, about the bound of 12 and 15 patients (0.65)
        positive, negative = rng.normal(shift, 1, (20_000, 12)), rng.normal(size=(20_000, 15))
        too_high = separation_bound(12, 15) > norm.cdf(shift / np.sqrt(2))
        assert too_high * (positive.min(axis=1) > negative.max(axis=1)).mean() <= 0.025


@pytest.mark.parametrize(("sign", "value"), [(1, 1.0), (-1, 0.0)])
def test_perfect_separation_gives_an_interval_with_a_width(sign, value):
    labels, patients = rows_of(12, 30)
    logits = sign * (labels[:, None] * 2.0 + np.random.default_rng(0).random((len(labels), 1)))
    resamples = Resamples(labels, patients)
    samples = resamples.metrics(logits)
    assert (samples["auroc"][~np.isnan(samples["auroc"])] == value).all()
    bound = separation_bound(12, 30)
    assert resamples.interval(samples["auroc"], auroc=True) == ((bound, 1.0) if value else (0.0, 1 - bound))
    assert np.isnan(resamples.interval(samples["average_precision"])).all() == (value == 1)
    assert np.isnan(resamples.interval(samples["auroc"] - samples["auroc"])).all()


def test_a_patient_with_rows_of_both_classes_counts_in_both():
    counts = Resamples([0, 1, 1, 0], ["a", "a", "b", "c"]).counts(binary=True)
    assert (counts["n_patients"], counts["n_positive_patients"], counts["n_negative_patients"]) == (3, 2, 2)


def test_of_several_classes_the_one_with_the_fewest_patients_counts():
    labels, patients = [0, 0, 1, 1, 2, 3, 3], ["a", "b", "a", "b", "c", "d", "e"]
    counts = Resamples(labels, patients, n_bootstrap=0).counts(binary=False)
    assert counts["fewest_patients"] == 1
    assert np.isnan([counts["n_positive"], counts["n_positive_patients"], counts["undefined_share"]]).all()


def test_tables_carry_what_their_intervals_rest_on():
    table = make_table(n_patients=60)
    rows = table.rows("Mass", split="test")
    positive = set(rows.patient_ids[rows.labels == 1])
    ranking = rank_latents(class_mean_latents(table, "Mass"))
    frames = [
        reconstruction_metrics(table, "Mass", n_bootstrap=50),
        sweep(table, ranking, concept="Mass", ks=(1,), n_controls=0, n_bootstrap=50),
        best_single_latent(table, "Mass", n_bootstrap=50).to_frame(),
    ]
    for frame in frames:
        assert (frame["n_positive_patients"] == len(positive)).all()
        assert (frame["undefined_share"] == 0).all()
        assert frame["auroc_low"].notna().all()
    few = reconstruction_metrics(table, "Mass", n_bootstrap=50, min_patients=len(positive) + 1)
    assert few["auroc"].notna().all()
    assert few.filter(regex="_(low|high)$").isna().all(axis=None)


def test_settled_scores_change_an_auroc_by_no_more_than_the_ties_are_worth():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=3000)
    logits = rng.normal(size=(3000, 1)) + labels[:, None]
    found = classification_metrics(settled(logits, NETWORK_ERROR * np.abs(logits).max()), labels)["auroc"]
    assert found == pytest.approx(roc_auc_score(labels, logits[:, 0]), abs=1e-5)


def test_bad_scores_and_errors_are_refused():
    for scores, error in (([1.0, np.nan], 0.0), ([1.0, np.inf], 0.0), ([1.0], -1.0), ([1.0], np.nan), (["a"], 0.0)):
        with pytest.raises(InputError):
            settled(scores, error)


def test_the_network_error_covers_what_the_batch_does_to_a_network(classifier: MammoClipClassifier):
    images = torch.randn(12, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        together = classifier(images)
        alone = torch.cat([classifier(image[None]) for image in images])
    assert (together - alone).abs().max() <= NETWORK_ERROR * together.abs().max()
