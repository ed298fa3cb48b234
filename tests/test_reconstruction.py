import numpy as np
import pytest
from helpers_tables import make_table

from mammosae_plugin.analysis.reconstruction import reconstruction_metrics, reconstruction_quality
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.statistics import (
    METRICS,
    bootstrap_metrics,
    classification_metrics,
    interval,
    patient_bootstrap,
)


@pytest.mark.parametrize("unit", ["image", "finding_row"])
@pytest.mark.parametrize("concept", ["Mass", "Suspicious_Calcification", "density"])
def test_the_rows_compare_the_model_with_and_without_the_sae(concept, unit):
    table = make_table()
    results = reconstruction_metrics(table, concept, unit=unit, n_bootstrap=50, seed=2, min_patients=1).set_index(
        "variant"
    )
    assert results.index.tolist() == ["without_sae", "with_sae", "difference"]
    rows = table.rows(concept, split="test", unit=unit)
    multiplicities = patient_bootstrap(rows.patient_ids, 50, 2)
    without = table.logits(concept)[rows.image_rows]
    with_sae = table.logits_with_sae(concept)[rows.image_rows]
    samples = {
        "without_sae": bootstrap_metrics(without, rows.labels, multiplicities),
        "with_sae": bootstrap_metrics(with_sae, rows.labels, multiplicities),
    }
    samples["difference"] = {name: samples["with_sae"][name] - samples["without_sae"][name] for name in METRICS}
    points = {
        "without_sae": classification_metrics(without, rows.labels),
        "with_sae": classification_metrics(with_sae, rows.labels),
    }
    points["difference"] = {name: points["with_sae"][name] - points["without_sae"][name] for name in METRICS}
    for variant, row in results.iterrows():
        for name in METRICS:
            assert row[name] == points[variant][name]
            low, high = interval(samples[variant][name])
            if low < high:
                assert (row[f"{name}_low"], row[f"{name}_high"]) == (low, high)
            else:  # all resamples agree
                assert row[f"{name}_low"] != row[f"{name}_high"] or 0 < low < 1


def test_the_counts_say_what_was_evaluated():
    table = make_table()
    images = table.images[table.images["split"] == "test"]
    row = reconstruction_metrics(table, "Mass", n_bootstrap=5).iloc[0]
    assert (row["n_rows"], row["n_positive"], row["n_patients"]) == (32, images["Mass"].sum(), 8)
    findings = table.findings[table.findings["image_row"].isin(images.index)]
    row = reconstruction_metrics(table, "Mass", unit="finding_row", n_bootstrap=5).iloc[0]
    assert (row["n_rows"], row["n_positive"]) == (len(findings), findings["Mass"].sum())
    assert len(findings) > 32
    assert np.isnan(reconstruction_metrics(table, "density", n_bootstrap=5)["n_positive"]).all()


def test_an_sae_that_changes_nothing_has_a_difference_of_exactly_zero():
    table = make_table()
    table.features = table.latents @ table.decoder + table.bias
    difference = reconstruction_metrics(table, "Mass", n_bootstrap=50, min_patients=1).iloc[2]
    for name in METRICS:
        assert (difference[name], difference[f"{name}_low"], difference[f"{name}_high"]) == (0, 0, 0)


def test_the_paired_interval_is_narrower_than_the_intervals_that_it_pairs():
    table = make_table(n_patients=60)
    rng = np.random.default_rng(0)
    table.features = table.latents @ table.decoder + table.bias + rng.normal(size=table.features.shape) / 30
    widths = reconstruction_metrics(table, "Mass", n_bootstrap=200)
    width = (widths["auroc_high"] - widths["auroc_low"]).tolist()
    assert 0 < width[2] < width[0] / 2


def test_a_concept_without_a_positive_image_is_an_error():
    table = make_table()
    table.images["Mass"] = 0
    with pytest.raises(InputError, match="split 'test' has no positive image for 'Mass'"):
        reconstruction_metrics(table, "Mass")


def test_quality_equals_its_definition_on_the_features():
    table = make_table()
    chosen = (table.images["split"] == "test").to_numpy()
    features = table.features[chosen].reshape(-1, 6)
    latents = table.latents[chosen].reshape(-1, 40)
    error = latents @ table.decoder + table.bias - features
    n_live = int((latents > 0).any(axis=0).sum())
    quality = reconstruction_quality(table, "test")
    assert quality.split == "test" and quality.to_frame().drop(columns="split").iloc[0].to_dict() == pytest.approx(
        {
            "explained_variance": 1 - np.square(error).sum() / np.square(features - features.mean(axis=0)).sum(),
            "mse": np.square(error).mean(),
            "l0": (latents > 0).sum(axis=1).mean(),
            "n_live": n_live,
            "n_dead": 40 - n_live,
            "dead_share": (40 - n_live) / 40,
            "n_positions": 32 * 20,
            "n_images": 32,
        },
        rel=1e-9,
    )
    assert 8 <= 40 - n_live < 40


def test_a_reconstruction_by_the_mean_explains_nothing_and_a_perfect_one_everything():
    table = make_table()
    table.latents[:] = 0
    chosen = (table.images["split"] == "test").to_numpy()
    table.bias = table.features[chosen].mean(axis=(0, 1, 2))
    assert reconstruction_quality(table, "test").explained_variance == pytest.approx(0, abs=1e-12)
    table = make_table()
    table.features = table.latents @ table.decoder + table.bias
    assert reconstruction_quality(table, "test").explained_variance == 1


def test_features_that_do_not_vary_have_no_explained_variance():
    table = make_table()
    table.features[:] = 0
    assert np.isnan(reconstruction_quality(table, "test").explained_variance)


def test_a_split_that_the_table_lacks_is_an_error():
    with pytest.raises(InputError, match="no image of split 'validation': choose one of test, training"):
        reconstruction_quality(make_table(), "validation")


def test_reconstruction_reads_an_encoded_table(encoded):
    results = reconstruction_metrics(encoded, "Mass", n_bootstrap=20).set_index("variant")
    rows = encoded.rows("Mass", split="test")
    without = classification_metrics(encoded.logits("Mass")[rows.image_rows], rows.labels)
    assert {name: results.loc["without_sae", name] for name in METRICS} == without
    quality = reconstruction_quality(encoded, "test")
    assert quality.n_images == len(rows.image_rows)
    assert quality.n_positions == len(rows.image_rows) * np.prod(encoded.grid)
    assert quality.n_dead >= 8
