from pathlib import Path

import numpy as np
import pytest
from helpers_tables import PLANTED, make_table
from safetensors.numpy import load_file
from sklearn.metrics import roc_auc_score

from mammosae_plugin.analysis import probing
from mammosae_plugin.analysis.probing import (
    best_single_latent,
    class_mean_latents,
    rank_channels,
    rank_latents,
)
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.statistics import interval, patient_bootstrap

PUBLISHED = Path(__file__).parent / "data/published_mean_latents_suspicious_calcification_finetuned.safetensors"


def published_scores():
    tensors = load_file(PUBLISHED)
    return np.stack([tensors["class_0"], tensors["class_1"]]).astype(np.float64)


def slow_class_mean(table, concept, split, label, unit="image"):
    """Equation 2 written out: the mean over every position of every image (or row) of the class."""
    rows = table.rows(concept, split=split, unit=unit)
    positions = [
        position
        for image_row, row_label in zip(rows.image_rows, rows.labels, strict=True)
        if row_label == label
        for position in table.latents[image_row].reshape(-1, table.d_sae)
    ]
    return np.mean(positions, axis=0)


@pytest.mark.parametrize("unit", ["image", "finding_row"])
@pytest.mark.parametrize("concept", ["Mass", "density"])
def test_class_means_are_means_over_all_positions_of_the_class(concept, unit):
    table = make_table()
    means = class_mean_latents(table, concept, split="training", unit=unit)
    assert means.shape == (len(table.classes(concept)), table.d_sae)
    for label in table.classes(concept):
        assert means[label] == pytest.approx(slow_class_mean(table, concept, "training", label, unit), abs=1e-6)


def test_class_means_use_only_the_images_of_the_split():
    table = make_table()
    training = class_mean_latents(table, "Mass")
    assert not np.allclose(training, class_mean_latents(table, "Mass", split="test"))
    table.latents[(table.images["split"] == "test").to_numpy()] = 0
    assert np.array_equal(training, class_mean_latents(table, "Mass"))


def test_class_means_do_not_depend_on_the_block_size(monkeypatch):
    table = make_table()
    whole = class_mean_latents(table, "Mass")
    monkeypatch.setattr(probing, "_IMAGES_PER_BLOCK", 7)
    assert class_mean_latents(table, "Mass") == pytest.approx(whole, abs=1e-12)


@pytest.mark.parametrize("unit", ["image", "finding_row"])
@pytest.mark.parametrize("concept", ["Suspicious_Calcification", "density"])
def test_centered_means_weighted_by_image_counts_sum_to_zero(concept, unit):
    table = make_table()
    centered = class_mean_latents(table, concept, unit=unit, score="centered_mean")
    labels = table.rows(concept, split="training", unit=unit).labels
    counts = np.bincount(labels)
    assert counts @ centered == pytest.approx(np.zeros(table.d_sae), abs=1e-12)
    assert np.abs(centered).max() > 0.01


def test_centered_means_are_class_means_minus_the_overall_mean():
    table = make_table()
    everything = table.latents[(table.images["split"] == "training").to_numpy()].mean(axis=(0, 1, 2))
    centered = class_mean_latents(table, "Mass", score="centered_mean")
    assert centered == pytest.approx(class_mean_latents(table, "Mass") - everything, abs=1e-6)


def test_the_published_scores_obey_the_identity_of_centered_means():
    class_0, class_1 = published_scores()
    assert 37.28 * class_0 + class_1 == pytest.approx(np.zeros(16384), abs=2e-4 * np.abs(class_1).max())
    alive = np.abs(class_1) > 0.1
    assert -class_1[alive] / class_0[alive] == pytest.approx(np.full(alive.sum(), 37.28), abs=0.01)


def test_the_published_scores_rank_the_latents_that_the_paper_names():
    ranking = rank_latents(published_scores())
    names = [13867, 15699, 15892, 15946, 2971, 13093, 2559, 11097, 14779, 12632]
    assert ranking.indices[1, :10].tolist() == names
    assert ranking.scores[1, :2] == pytest.approx([10.875, 2.530], abs=5e-4)
    assert ranking.n_class == 2
    assert ranking.d_sae == 16384


@pytest.mark.parametrize("concept", PLANTED)
def test_the_latent_that_stands_for_the_concept_ranks_first(concept):
    scores = class_mean_latents(make_table(), concept, score="centered_mean")
    assert rank_latents(scores).indices[1, 0] == PLANTED[concept]


def test_rankings_are_permutations_sorted_by_falling_score():
    scores = np.random.default_rng(0).normal(size=(3, 50))
    ranking = rank_latents(scores)
    assert np.array_equal(np.sort(ranking.indices, axis=1), np.tile(np.arange(50), (3, 1)))
    assert (np.diff(ranking.scores, axis=1) <= 0).all()
    assert np.array_equal(ranking.scores, np.take_along_axis(scores, ranking.indices, axis=1))


def test_equal_scores_rank_by_rising_index():
    ranking = rank_latents(np.array([[0.0, 1, 0, 1, -0.0, 2]]))
    assert ranking.indices.tolist() == [[5, 1, 3, 0, 2, 4]]
    assert ranking.indices.dtype == np.int64
    assert rank_latents(np.zeros((2, 500))).indices.tolist() == [list(range(500))] * 2


def test_scores_that_cannot_be_ranked_are_an_error():
    with pytest.raises(InputError, match="1 class scores are NaN"):
        rank_latents(np.array([[0.0, np.nan]]))
    with pytest.raises(InputError, match=r"expected \(n_class, d_sae\)"):
        rank_latents(np.zeros(5))


def test_a_class_without_an_image_is_an_error_that_names_it():
    table = make_table()
    table.images["Mass"] = 0
    with pytest.raises(InputError, match="split 'training' has no image of class 1 of 'Mass' among 64 rows"):
        class_mean_latents(table, "Mass")
    with pytest.raises(InputError, match="score is 'median': choose one of mean, centered_mean, overall_mean"):
        class_mean_latents(table, "density", score="median")


def test_class_means_read_an_encoded_table(encoded):
    means = class_mean_latents(encoded, "Mass", split="test")
    rows = encoded.rows("Mass", split="test")
    dense = encoded.mean_latents.toarray().astype(np.float64)
    for label in (0, 1):
        assert means[label] == pytest.approx(dense[rows.image_rows[rows.labels == label]].mean(axis=0), abs=1e-12)


@pytest.mark.parametrize("statistic", ["max", "mean"])
def test_the_best_single_latent_is_the_one_that_scikit_learn_finds(statistic):
    table = make_table(n_patients=60)
    found = best_single_latent(table, "Mass", statistic=statistic, n_bootstrap=50, seed=4, min_patients=1)
    scores = getattr(table.latents, statistic)(axis=(1, 2)).astype(np.float32)
    training, test = (table.rows("Mass", split=split) for split in ("training", "test"))
    aurocs = [roc_auc_score(training.labels, scores[training.image_rows, latent]) for latent in range(table.d_sae)]
    assert found.latent == np.argmax(aurocs) == PLANTED["Mass"]
    assert found.auroc_training == pytest.approx(max(aurocs), abs=1e-12)
    chosen = scores[test.image_rows, found.latent]
    assert found.auroc == pytest.approx(roc_auc_score(test.labels, chosen), abs=1e-12)
    samples = [
        roc_auc_score(test.labels, chosen, sample_weight=weights)
        for weights in patient_bootstrap(test.patient_ids, 50, 4)
    ]
    assert found.interval == pytest.approx(interval(np.array(samples)), abs=1e-9)


def test_the_single_latent_is_chosen_without_the_test_split_and_in_any_block_size(monkeypatch):
    table = make_table()
    before = best_single_latent(table, "Mass", n_bootstrap=0)
    assert np.isnan(before.interval).all()
    monkeypatch.setattr(probing, "_LATENTS_PER_BLOCK", 7)
    assert best_single_latent(table, "Mass", n_bootstrap=0).to_frame().equals(before.to_frame())
    test = (table.images["split"] == "test").to_numpy()
    table.latents[test] = np.random.default_rng(0).permutation(table.latents[test])
    after = best_single_latent(table, "Mass", n_bootstrap=0)
    assert after.latent == before.latent
    assert after.auroc != before.auroc


def test_a_single_latent_is_refused_where_it_cannot_be_chosen():
    table = make_table()
    with pytest.raises(InputError, match="'density' has 4 classes: a single latent can only tell two"):
        best_single_latent(table, "density")
    with pytest.raises(InputError, match="statistic is 'median'"):
        best_single_latent(table, "Mass", statistic="median")
    table.latents[(table.images["split"] == "training").to_numpy()] = 0
    with pytest.raises(InputError, match="no latent fires in the training split"):
        best_single_latent(table, "Mass")


@pytest.mark.parametrize("score", ["mean", "centered_mean"])
def test_channels_are_ranked_by_the_same_scores_as_latents(score):
    table = make_table()
    ranking = rank_channels(table, "Mass", score=score)
    as_latents = make_table()
    as_latents.latents = table.features
    expected = rank_latents(class_mean_latents(as_latents, "Mass", score=score))
    assert ranking.d_sae == table.features.shape[-1]
    assert np.array_equal(ranking.indices, expected.indices)
    assert ranking.scores == pytest.approx(expected.scores, abs=1e-6)
    if score == "centered_mean":
        assert ranking.indices[1, 0] == 0  # the channel on which the table's masses are switched


def test_the_overall_mean_ranks_latents_alike_for_every_class():
    table = make_table()
    training = (table.images["split"] == "training").to_numpy()
    scores = class_mean_latents(table, "density", score="overall_mean")
    assert scores == pytest.approx(np.tile(table.latents[training].mean(axis=(0, 1, 2)), (4, 1)), abs=1e-6)
    ranking = rank_latents(scores)
    assert (ranking.indices == ranking.indices[0]).all()
    channels = rank_channels(table, "Mass", score="overall_mean")
    assert channels.scores[0, 0] == pytest.approx(table.features[training].mean(axis=(0, 1, 2)).max(), abs=1e-6)


def test_the_overall_mean_needs_no_image_of_each_class():
    table = make_table()
    before = class_mean_latents(table, "Mass", score="overall_mean")
    table.images["Mass"] = 0
    assert np.array_equal(class_mean_latents(table, "Mass", score="overall_mean"), before)


def test_impossible_arguments_of_probing_are_errors():
    table = make_table()
    for score in ("median", None, 3):
        with pytest.raises(InputError, match="score is"):
            class_mean_latents(table, "Mass", score=score)
    for scores in ([["a", "b"]], [[1.0], [1.0, 2.0]], np.zeros((2, 3, 1)), [[1j]]):
        with pytest.raises(InputError):
            rank_latents(scores)
    for settings in ({"n_bootstrap": -1}, {"n_bootstrap": 1.5}, {"seed": -3}, {"min_patients": 0}, {"statistic": None}):
        with pytest.raises(InputError, match=f"{next(iter(settings))} is"):
            best_single_latent(table, "Mass", **settings)
