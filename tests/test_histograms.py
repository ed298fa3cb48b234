"""Histograms, neighbours and the map of latents, counted and found in tables where it is known what is right."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers_inference import bins
from helpers_tables import make_table
from scipy.sparse import csr_array
from scipy.stats import t as student

from mammosae_plugin.analysis.histograms import class_mean_intervals, count_activations
from mammosae_plugin.analysis.neighbours import decoder_neighbours, firing_neighbours, map_latents
from mammosae_plugin.analysis.probing import class_mean_latents
from mammosae_plugin.findings.kept import read_page
from mammosae_plugin.findings.leading_latents import strengths, with_neighbours
from mammosae_plugin.findings.study_folder import StudyFolder
from mammosae_plugin.findings.tables import findings_tables
from mammosae_plugin.findings.told_pages import joined_bins
from mammosae_plugin.hub.findings import Findings
from mammosae_plugin.schema.findings import parquet_path
from mammosae_plugin.schema.results import leading_latents
from mammosae_plugin.visualization.strengths import plot_strengths


def table_of(codes, patients, **labels):
    codes = csr_array(np.asarray(codes, dtype=np.float32))
    images = pd.DataFrame({"patient_id": patients, "split": "test", **labels})
    return SimpleNamespace(max_latents=codes, mean_latents=codes, images=images, d_sae=codes.shape[1], folder="TABLE")


def test_images_and_patients_are_counted_as_one_by_one():
    rng = np.random.default_rng(0)
    n, d, n_bins = 300, 12, 5
    codes = np.where(rng.random((n, d)) < 0.4, rng.gamma(1, 1, (n, d)), 0).astype(np.float32)
    codes[:, 3] = 0
    patients = rng.integers(0, 80, n)
    labels = {"Mass": rng.integers(-1, 2, n), "density": rng.integers(0, 3, n)}
    found = count_activations(table_of(codes, patients, **labels), ["Mass", "density"], n_bins=n_bins)
    signs = [tuple(one) for one in found.signs["classes"]]
    assert np.isnan(found.largest[3]) and 3 not in set(found.cells["latent"])
    assert found.signs["n_images"].sum() == n and found.signs["n_patients"].sum() == len(set(patients))
    by_cell = {(row.latent, row.bin, row.sign): row for row in found.cells.itertuples()}
    for latent in set(range(d)) - {3}:
        values = codes[:, latent]
        bins = np.where(
            values > 0, np.minimum((values.astype(float) / values.max() * n_bins).astype(int), n_bins - 1) + 1, 0
        )
        for bin_ in range(n_bins + 1):
            for number, sign in enumerate(signs):
                there = (bins == bin_) & (labels["Mass"] == sign[0]) & (labels["density"] == sign[1])
                cell = by_cell.get((latent, bin_, number))
                assert (cell.n_images if cell else 0) == there.sum()
                assert (cell.n_patients if cell else 0) <= len(set(patients[there]))
        fired = found.cells[(found.cells["latent"] == latent) & (found.cells["bin"] > 0)]
        assert fired["n_patients"].sum() == len(set(patients[values > 0]))


@pytest.mark.parametrize("unit", ["image", "finding_row", "patient"])
def test_intervals_of_class_means_are_those_of_a_sandwich_by_hand(unit):
    table = make_table(n_patients=300)
    low, high = class_mean_intervals(table, "Mass", unit=unit)
    means = class_mean_latents(table, "Mass", unit=unit)
    rows = table.rows("Mass", split="training", unit=unit)
    values = np.asarray(rows.values(table.mean_latents).todense())
    for label in (0, 1):
        own, patients = values[rows.labels == label], rows.patient_ids[rows.labels == label]
        residuals = own - own.mean(axis=0)
        sums = np.stack([residuals[patients == one].sum(axis=0) for one in set(patients)])
        error = np.sqrt(len(sums) / (len(sums) - 1) * np.square(sums).sum(axis=0)) / len(own)
        assert len(sums) >= 10
        assert high[label] - means[label] == pytest.approx(student.ppf(0.975, len(sums) - 1) * error, rel=1e-4)
        assert (low + high)[label] / 2 == pytest.approx(means[label], abs=1e-9)
    few = make_table(n_patients=9)
    assert np.isnan(class_mean_intervals(few, "Mass")[0]).all()


def test_intervals_of_class_means_hold_the_truth_about_as_often_as_they_say():
    rng, inside = np.random.default_rng(1), 0
    for _ in range(60):
        of_patient = np.repeat(rng.gamma(2, 1, (30, 20)), 4, axis=0)
        codes = of_patient * rng.gamma(2, 0.5, (120, 20))
        rows = SimpleNamespace(
            labels=np.zeros(120, dtype=int), patient_ids=np.repeat(np.arange(30), 4), unit_of_row=None,
            image_rows=np.arange(120),
        )  # fmt: skip
        table = table_of(codes, np.repeat(np.arange(30), 4))
        table.rows, table.classes = (lambda *_, **__: rows), (lambda _: (0,))  # noqa: B023
        low, high = class_mean_intervals(table, "Mass")
        inside += int(((low[0] <= 2) & (high[0] >= 2)).sum())
    assert 0.9 < inside / (60 * 20) < 0.98


def fires_at_random(n_patients, rates, rng):
    """Two images per patient, which of every latent are alike in half of the patients."""
    first = rng.random((n_patients, len(rates))) < rates
    second = np.where(rng.random(first.shape) < 0.5, first, rng.random((n_patients, len(rates))) < rates)
    return np.stack([first, second], axis=1).reshape(2 * n_patients, -1).astype(float)


def test_latents_that_always_fire_together_are_found_and_those_at_random_stay_within_chance():
    rng = np.random.default_rng(0)
    codes = fires_at_random(300, rng.uniform(0.05, 0.6, 200), rng)
    codes[:, 17] = codes[:, 40]
    codes[:, 5] = 0
    codes[:4, 5] = 1  # too few
    codes[:, 6] = 1
    found = firing_neighbours(table_of(codes, np.repeat(np.arange(300), 2)))
    assert not {5, 6} & {*found["latent"], *found["neighbour"]}
    first = found[found["rank"] == 1].set_index("latent")
    assert (first.loc[[17, 40], "neighbour"] == [40, 17]).all() and first.loc[17, "value"] == pytest.approx(1, abs=1e-5)
    assert (first.loc[17, ["n_only", "n_other"]] == 0).all() and first.loc[17, "n"] == 600
    at_random = found[~found["latent"].isin([17, 40])]
    assert (at_random["value"] > at_random["chance"]).mean() < 0.1
    assert (at_random["chance"] < first.loc[17, "chance"] + 0.2).all() and first.loc[17, "chance"] < 0.6
    one = next(at_random.itertuples())
    a, b = codes[:, one.latent], codes[:, one.neighbour]
    assert one.value == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-5)
    patients = np.repeat(np.arange(300), 2)
    assert one.n_only == len(set(patients[(a > 0) & (b == 0)]))


def test_near_directions_are_found_and_random_ones_stay_within_chance():
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(300, 40))
    directions[8] = 3 * directions[21] + rng.normal(size=40) / 10
    found = decoder_neighbours(directions)
    first = found[found["rank"] == 1].set_index("latent")
    assert first.loc[8, "neighbour"] == 21 and first.loc[8, "value"] > 0.99 > first.loc[8, "chance"]
    at_random = found[~found["latent"].isin([8, 21])]
    assert (at_random["value"] > at_random["chance"]).mean() < 0.1
    assert set(decoder_neighbours(directions, [1, 4, 6], n=9)["neighbour"]) == {1, 4, 6}
    assert len(decoder_neighbours(directions, [3])) == 0


def test_a_map_keeps_groups_of_directions_apart_and_its_trust_lies_above_chance():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 30))
    directions = np.repeat(centres, 20, axis=0) + rng.normal(size=(80, 30)) / 5
    found = map_latents(directions, rng.permutation(80), most=60)
    assert found is not None and found.n_mapped == 60
    places = found.places[["x", "y"]].to_numpy()
    distances = np.linalg.norm(places[:, None] - places, axis=2) + 9 * np.eye(80)
    assert (np.argmin(distances, axis=1) // 20 == np.arange(80) // 20).mean() > 0.95
    assert found.trustworthiness > found.by_chance + 0.05
    again = map_latents(directions, found.places["latent"], most=60)
    assert again is not None and np.isfinite(again.places.to_numpy()).all()
    assert map_latents(directions, range(9)) is None


@pytest.mark.parametrize("min_group", [1, 3, 10])
def test_bins_are_joined_until_none_holds_few_and_no_image_is_lost(min_group):
    rng = np.random.default_rng(min_group)
    patients = rng.poisson(1.5, (50, 9, 4))
    images = patients + rng.integers(0, 3, patients.shape) * (patients > 0)
    joined, begins = joined_bins(images, patients, min_group)
    assert (joined.sum(axis=1) == images.sum(axis=1)).all() and (joined[~begins] == 0).all() and begins[:, 0].all()
    several = begins.sum(axis=1) > 1
    assert several.any() and (min_group == 1) == bool(begins.all())
    for row in np.flatnonzero(several):
        starts = np.flatnonzero(begins[row])
        for start, stop in zip(starts, [*starts[1:], 9], strict=True):
            counted = patients[row, start:stop].sum(axis=0)
            assert ((counted == 0) | (counted >= min_group)).all()


def test_a_study_tells_histograms_neighbours_and_a_map_and_says_how_far_to_trust_it(finished_study):
    found = Findings.of_study(finished_study.output, min_group=2)
    rows = found.histograms.groupby(["layer", "encoder", "latent"])
    assert len(found.histograms) and (rows["concept"].nunique() == 2).all()
    assert all(
        len(row.edges) == len(row.n_images) + 1 >= 2 and row.edges[0] == 0 for row in found.histograms.itertuples()
    )
    assert not bins(StudyFolder(finished_study.output), Findings.of_study(finished_study.output, min_group=3), 3)
    near = found.neighbours
    assert set(near["kind"]) <= {"together", "decoder"} and (near["latent"] != near["neighbour"]).all()
    assert (
        near.groupby(["layer", "encoder", "kind", "latent"])["rank"]
        .agg(lambda own: list(own) == [*range(1, len(own) + 1)])
        .all()
    )
    places = found.latent_map
    for layer, about in found.study["sae"].items():
        own = places[places["layer"] == layer]
        assert len(own) <= about["latent_map"]["n_latents"] and own["latent"].is_unique
        assert 0 < about["latent_map"]["trustworthiness_by_chance"] < 1
    live = found.concepts.dropna(subset="mean_low")
    assert ((live["mean_low"] <= live["class_mean"]) & (live["class_mean"] <= live["mean_high"])).all() and len(live)


def test_the_report_tells_in_how_many_images_of_each_class_leading_latents_fire_and_beside_which(finished_study):
    layer = StudyFolder(finished_study.output).layers[0]
    encoder = next(iter(layer.encoders.values()))
    found = next(iter(strengths(layer)))
    assert found.latents and set(found.latents) <= set(leading_latents(layer.results, encoder.model, found.concept))
    images = encoder.table.images
    tested = (images["split"] == "test").to_numpy()
    maxima = encoder.table.max_latents[tested][:, found.latents].toarray().astype(np.float64)
    for label in range(2):
        own = maxima[images.loc[tested, found.concept].to_numpy() == label]
        for place, top in enumerate(found.largest):
            fired = own[own[:, place] > 0, place]
            assert found.counts[place, label, 0] == len(own) - len(fired)
            assert found.counts[place, label, 1:].tolist() == np.histogram(fired, np.linspace(0, top, 17))[0].tolist()
    axes = plot_strengths(found.latents, found.largest, found.counts, title="", class_names=["none", "some"]).axes
    share = 1 - found.counts[0, 1, 0] / found.counts[0, 1].sum()
    assert [text.get_text() for text in axes[0].texts][1] == f"fires in {share:.0%}"
    assert np.allclose(axes[0].patches[0].get_data().values, found.counts[0, 0, 1:] / found.counts[0, 0].sum())
    rows = with_neighbours(layer.results, layer)["neighbours"]
    kept = read_page(finished_study.output, "neighbours").to_pandas()
    for row in rows:
        same = (
            kept[(kept["layer"] == layer.name) & (kept["encoder"] == encoder.name)]
            if row["model"] == encoder.model
            else kept
        )
        assert len(
            same[
                (same["latent"] == row["latent"])
                & (same["kind"] == row["kind"])
                & (same["neighbour"] == row["neighbour"])
            ]
        )
    assert rows and all(row["latent"] in leading_latents(layer.results, row["model"], row["concept"]) for row in rows)


def test_findings_of_before_there_were_these_are_read_with_none_of_them(finished_study, tmp_path):
    tables = findings_tables(StudyFolder(finished_study.output), min_group=1)
    nested = tables["latents"]["concepts"].to_pylist()
    old = [[{k: v for k, v in one.items() if "class_mean_" not in k} for one in row] for row in nested]
    column = tables["latents"].schema.get_field_index("concepts")
    tables["latents"] = tables["latents"].set_column(column, "concepts", pa.array(old))
    for config, table in tables.items():
        if config not in ("histograms", "neighbours", "latent_map"):
            (tmp_path / config).mkdir()
            pq.write_table(table, tmp_path / parquet_path(config))
    found, new = Findings.load(tmp_path), Findings.of_study(finished_study.output, min_group=1)
    assert found.histograms is None and found.neighbours is None and found.latent_map is None
    assert found.concepts["mean_low"].isna().all() and new.concepts["mean_low"].notna().any()
    pd.testing.assert_series_equal(found.concepts["class_mean"], new.concepts["class_mean"])
