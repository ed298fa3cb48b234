"""Monosemanticity, the label-free score and recovery of a latents table: planted truth, random labels, no training."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers_study import random_sae
from helpers_tables import CodesTable, make_table
from scipy import sparse

from mammosae_plugin.analysis import (
    activation_similarity,
    activation_similarity_of,
    monosemanticity,
    monosemanticity_of,
    recovery,
    recovery_thresholds,
)
from mammosae_plugin.analysis.codes import as_codes, as_groups, strongest_rows
from mammosae_plugin.analysis.coherence import coherence_null, resampled_monosemanticity
from mammosae_plugin.analysis.similarity import pair_similarity
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import encode_rows

SAIL = Path(__file__).parent / "data" / "sail"
LABELS = [f"organ{number}" for number in range(6)]
GROUPS = np.repeat(np.arange(200), 3)


def planted(seed=0):
    """600 images of 200 patients: latent 0 means one organ, 1 one of two, 2 an organ among others, 3 to 9 nothing, 10
    never fires, 11 always does."""
    rng = np.random.default_rng(seed)
    labels = rng.random((600, 6)) < 0.25
    strength = rng.uniform(1, 2, (600, 10)).astype(np.float32)
    alone = labels[:, 0] & ~labels[:, 1:].any(axis=1)
    either = (labels[:, 1] ^ labels[:, 2]) & ~labels[:, 3:].any(axis=1) & ~labels[:, 0]
    fires = np.column_stack([alone, either, labels[:, 0], rng.random((600, 7)) < 0.4])
    embeddings = labels @ rng.normal(size=(6, 16)) + rng.normal(size=(600, 16)) / 2
    codes = np.column_stack([strength * fires, np.zeros(600), strength[:, 0]])
    return codes, labels, embeddings.astype(np.float32)


def table_of(codes, labels, embeddings=None, groups=GROUPS, **columns):
    named = {name: labels[:, number].astype(int) for number, name in enumerate(LABELS[: labels.shape[1]])}
    return CodesTable(codes, {**named, **columns}, groups, embeddings=embeddings)


@pytest.fixture(scope="module")
def known():
    codes, labels, embeddings = planted()
    return table_of(codes, labels, embeddings), labels, embeddings


# Monosemanticity


def test_latents_of_a_table_have_the_scores_of_their_arrays(known):
    table, labels, _ = known
    found = monosemanticity(table, n=(10, 50), n_draws=100, n_bootstrap=0).latents
    expected = monosemanticity_of(table.max_latents, labels, GROUPS)
    shared = found.loc[expected["latent"], expected.columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(shared, expected)
    rest = found.drop(expected["latent"])
    assert rest["reason"].tolist() == ["never above 0 in these images", "above 0 in every image"]
    assert rest.filter(like="monosemanticity").isna().all(axis=None)


@pytest.mark.parametrize(
    ("variant", "best10", "best50", "above_null"),
    [
        ("as_released", 0.6212796657944882, 0.2752797891540571, 147 / 180),
        ("image_key_with_modality", 0.6212796657944882, 0.2779084045859646, 148 / 185),
    ],
)
def test_scores_of_an_sae_are_sails_configuration_scores(variant, best10, best50, above_null):
    images = pd.read_parquet(SAIL / "monosemanticity_slices.parquet")
    stored = pd.read_parquet(SAIL / "monosemanticity_codes.parquet")
    codes = sparse.coo_array((stored["value"], (stored["row"], stored["feature"])), shape=(600, 200))
    organs = [{int(number) for number in listed.split(",") if number} for listed in images["organs"]]
    labels = pd.DataFrame([[float(organ in own) for organ in range(121)] for own in organs])
    group = images["image_id"] if variant == "as_released" else images["modality"] + images["image_id"]
    table = CodesTable(codes, {}, group.to_numpy())
    scores = monosemanticity(table, labels, null="rows", n=(10,), n_draws=100, n_bootstrap=0, seed=42)
    assert scores.value("best10_10") == pytest.approx(best10, abs=1e-6)
    assert scores.value("best50_10") == pytest.approx(best50, abs=1e-6)
    assert scores.value("above_null_10") == pytest.approx(above_null)


def test_planted_latents_lead_and_the_sae_stands_beside_chance(known):
    scores = monosemanticity(known[0], n=(10,), n_draws=500)
    of_latents = scores.latents["monosemanticity_10"]
    assert of_latents.nlargest(3).index.tolist() == [0, 1, 2]
    inside = scores.latents.iloc[1:10]
    assert (inside["monosemanticity_10_low"] <= inside["monosemanticity_10"]).all()
    assert (inside["monosemanticity_10"] <= inside["monosemanticity_10_high"]).all()
    assert scores.latents[["monosemanticity_10_low", "monosemanticity_10_high"]].iloc[0].isna().all()  # all agree
    summary = scores.summary.set_index("measure")
    assert scores.value("best10_10") == pytest.approx(of_latents.nlargest(10).mean())
    assert summary.loc["best10_10", "low"] < scores.value("best10_10") < summary.loc["best10_10", "high"]
    assert summary.loc["best10_10", "low"] > summary.loc["best10_10", "chance_high"]
    assert summary.loc["called_10", "value"] == pytest.approx(0.3) and summary.loc["called_10", "chance"] < 0.01
    assert (summary[["n_images", "n_groups"]] == [600, 200]).all(axis=None) and (summary["reason"] == "").all()


def test_an_untrained_sae_and_random_labels_are_told_from_nothing():
    """Their best ten lie below what 95 % of SAEs of random latents have, and hardly any latent is called."""
    below, called = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        rows, labels = rng.normal(size=(600, 12)), rng.random((600, 6)) < 0.3
        codes = np.maximum(rows @ rng.normal(size=(12, 60)) - 4, 0)  # random directions: what is not trained
        scores = monosemanticity(table_of(codes, labels), n=(10,), n_draws=500, n_bootstrap=0)
        summary = scores.summary.set_index("measure")
        below.append(scores.value("best10_10") < summary.loc["best10_10", "chance_high"])
        called.append(scores.value("called_10"))
    assert sum(below) >= 4 and max(called) <= 2 / 60


def test_a_group_that_is_drawn_twice_counts_as_two_images_but_not_as_a_pair():
    rng = np.random.default_rng(0)
    labels, groups, top = rng.random((30, 5)) < 0.4, np.arange(30), rng.permutation(30)[None, :20]
    null = coherence_null({8: 0.1}, 8, labels, groups, 1, 0)
    weights = rng.integers(0, 3, (30, 4)).astype(np.float32)
    found, agree = resampled_monosemanticity(top, labels, groups, null, 8, weights)
    for number, own in enumerate(weights.T):
        drawn = [row for row in top[0] for _ in range(int(own[row]))][:8]
        pairs = [(a, b) for place, a in enumerate(drawn) for b in drawn[:place] if a != b]
        alike = [1.0 if not (labels[[a, b]]).any() else (labels[a] & labels[b]).sum() / (labels[a] | labels[b]).sum()
                 for a, b in pairs]  # fmt: skip
        share = labels[drawn].sum(axis=0) / labels[drawn].sum()
        entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
        expected = max(np.mean(alike) - 0.1, 0) * (1 - entropy / np.log(5))
        assert found[0, number] == pytest.approx(expected, abs=1e-6)
    assert agree.tolist() == [False]


@pytest.mark.parametrize("statistic", ["max", "mean"])
def test_tables_of_maps_and_of_rows_are_scored_alike(encoded, tmp_path, statistic):
    scores = monosemanticity(encoded, ["Mass", "density"], n=(2, 3), statistic=statistic, min_groups=2, n_bootstrap=10)
    assert len(scores.latents) == encoded.d_sae
    classes = encoded.vocabulary["density"].classes
    assert scores.labels["label"].tolist() == ["Mass", *(f"density={name}" for name in classes)]
    rows = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    np.save(tmp_path / "x_test.npy", rows)
    known = pd.DataFrame({"image_id": [f"i{n}" for n in range(40)], "liver": np.arange(40) % 2})
    known.to_csv(tmp_path / "x_test.csv", index=False)
    table = encode_rows(tmp_path / "x_test.npy", random_sae(8, 16), tmp_path / "table")
    scores = activation_similarity(table, tmp_path / "x_test.npy", statistic=statistic)
    order = table.images["image_id"].str[1:].astype(int).to_numpy()
    expected = activation_similarity_of(table.codes(), rows[order])
    np.testing.assert_allclose(scores.latents["similarity"], expected, atol=1e-6)
    with pytest.raises(InputError, match="was made of rows and keeps their codes alone: give the rows themselves"):
        activation_similarity(table)


def test_images_without_a_label_are_left_out_and_what_cannot_be_said_has_a_reason(known):
    table, labels, _ = known
    kept = np.arange(600) % 4 != 0
    missing = {name: np.where(kept, labels[:, number], -1) for number, name in enumerate(LABELS)}
    lacking = CodesTable(table.max_latents, missing, GROUPS)
    found, expected = (
        monosemanticity(lacking, n=(10,)),
        monosemanticity(table_of(table.max_latents[kept], labels[kept], groups=GROUPS[kept]), n=(10,)),
    )
    pd.testing.assert_frame_equal(found.latents, expected.latents)
    rare = np.zeros(600, dtype=int)
    rare[[0, 100, 200]] = 1
    about = monosemanticity(table_of(table.max_latents, labels, rare=rare), n=(10,), n_bootstrap=0).labels
    assert about["reason"].iloc[-1].startswith("3 groups have it, fewer than 10") and not about["reason"].iloc[0]
    one_group = monosemanticity(table_of(table.max_latents, labels, groups=np.zeros(600)), n=(10,))
    single = monosemanticity(table, LABELS[:1], n=(10,), n_bootstrap=5)
    nothing = monosemanticity(CodesTable(table.max_latents, {"a": np.full(600, -1)}, GROUPS), n=(10,))
    dead = monosemanticity(table_of(np.zeros((600, 3)), labels), n=(10,))
    for scores, why in (
        (one_group, "the split is of one group"),
        (single, "a single label has no entropy"),
        (nothing, "no image of the split has every label"),
        (dead, "no latent fires in 10 groups"),
    ):
        best = scores.summary.set_index("measure").loc["best10_10"]
        assert np.isnan(best["value"]) and best["reason"].startswith(why)
        assert (scores.latents["reason"] != "").all() and scores.latents["monosemanticity_10"].isna().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": ["liver"]}, "TABLE has no label 'liver'; its concepts are organ0, organ1"),
        ({"labels": pd.DataFrame({"a": [1, 0]})}, "has 2 rows and no image_id: expected 600"),
        ({"labels": pd.DataFrame({"a": np.full(600, 2)})}, "the label 'a' is 2 in a row"),
        ({"labels": pd.DataFrame({"a": ["x"] * 600})}, "the label 'a' is no number"),
        ({"labels": []}, "there is no label to score by"),
        ({"group": "volume"}, "TABLE has no column 'volume' to group images by"),
        ({"group": np.arange(3)}, "group is .*: give a column of table.images, or a value for each"),
        ({"split": "validation"}, "TABLE has no split 'validation'; it has test"),
        ({"statistic": "sum"}, "statistic is 'sum': choose one of max, mean"),
        ({"n": []}, "n is empty"),
    ],
)
def test_monosemanticity_of_a_table_refuses_in_one_line(known, settings, message):
    with pytest.raises(InputError, match=message):
        monosemanticity(known[0], **settings)


@pytest.mark.parametrize("block", [4_000_000, 40])
def test_strongest_rows_are_those_of_a_plain_loop(monkeypatch, block):
    """With ties, negative values, latents that rarely fire, and groups whose images are not side by side."""
    monkeypatch.setattr("mammosae_plugin.analysis.codes._BLOCK", block)
    monkeypatch.setattr("mammosae_plugin.analysis.codes._PADDED", block)
    rng = np.random.default_rng(0)
    codes = rng.integers(-1, 6, (90, 25)) * (rng.random((90, 25)) < np.linspace(0.02, 1, 25))
    groups = as_groups(rng.permutation(np.repeat(np.arange(30), 3)), 90)
    rows, n_groups = strongest_rows(as_codes(codes), groups, 7)
    for latent, column in enumerate(codes.T):
        expected: list[int] = []
        for row in sorted(range(90), key=lambda row: (-column[row], row)):
            if column[row] > 0 and groups[row] not in groups[expected]:
                expected.append(row)
        assert n_groups[latent] == len(expected)
        assert rows[latent].tolist() == (expected + [-1] * 7)[:7]


# The label-free score


def test_the_label_free_score_of_a_table_ranks_the_planted_latents_above_chance(known):
    table, _, embeddings = known
    scores = activation_similarity(table)
    expected = activation_similarity_of(table.max_latents, embeddings)
    np.testing.assert_allclose(scores.latents["similarity"], expected, atol=1e-6)
    assert scores.latents["similarity"].nlargest(3).index.tolist() == [0, 2, 1]
    called = scores.latents["q"] < 0.05
    assert called[:3].all() and called[3:].sum() <= 1
    chance = activation_similarity_of(np.ones((600, 1)), embeddings)[0]
    np.testing.assert_allclose(scores.latents["chance"], chance, atol=1e-6)
    summary = scores.summary.set_index("measure")
    assert summary.loc["mean", "value"] == pytest.approx(np.nanmean(expected), abs=1e-6)
    assert summary.loc["excess", "low"] > 0 and summary.loc["excess", "chance"] == 0
    order = np.random.default_rng(0).permutation(600)
    as_file = activation_similarity(table, embeddings)
    pd.testing.assert_frame_equal(as_file.latents, scores.latents)
    shuffled = activation_similarity(table, embeddings[order]).summary.set_index("measure")
    assert shuffled.loc["excess", "low"] < 0 < shuffled.loc["excess", "high"]


def test_errors_of_the_label_free_score_are_the_spread_over_samples():
    """Against the standard deviation over 150 samples of 80 patients, which is known to 6 %."""
    found = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(80), rng.integers(1, 4, 80))
        rows = rng.normal(size=(80, 6))[groups] + rng.normal(size=(len(groups), 6)) / 2 + 0.3
        codes = rng.random((len(groups), 4)) * (rng.random((len(groups), 4)) < 0.3)
        blocks = [np.arange(0, 37), np.arange(37, len(groups))]
        found.append(
            pair_similarity(
                as_codes(codes),
                lambda blocks=blocks, rows=rows: ((block, rows[block]) for block in blocks),
                groups,
                np.ones(4, dtype=bool),
            )
        )
    scores = np.array([one.similarity for one in found])
    chance = np.array([[one.chance] for one in found])
    for errors, spread in (
        ([one.error for one in found], scores.std(axis=0)),
        ([one.excess_error for one in found], (scores - chance).std(axis=0)),
        ([one.mean_error for one in found], scores.mean(axis=1).std()),
        ([one.mean_excess_error for one in found], (scores - chance).mean(axis=1).std()),
    ):
        ratio = np.median(errors, axis=0) / spread
        assert (ratio > 0.8).all() and (ratio < 1.35).all()


def test_activations_that_cancel_are_a_score_like_any_other():
    rows = np.repeat([[1.0, 0.0], [-1.0, 0.0]], 6, axis=0)
    codes = as_codes(np.ones((12, 1)))
    found = pair_similarity(codes, lambda: iter([(np.arange(12), rows)]), np.arange(12), np.ones(1, dtype=bool))
    assert found.similarity[0] == pytest.approx(-12 / (12 * 11)) and found.chance == pytest.approx(-12 / (12 * 11))
    # Without any one of them the score is the same, and a latent that always fires is chance itself.
    assert found.error[0] == pytest.approx(0, abs=1e-9) and found.excess_error[0] == pytest.approx(0, abs=1e-9)


def test_the_label_free_score_says_why_it_says_nothing(known):
    table, _, embeddings = known
    codes = np.zeros((600, 4))
    codes[5, 1] = codes[:3, 2] = codes[::20, 3] = 1.0
    scores = activation_similarity(CodesTable(codes, {}, GROUPS, embeddings=embeddings))
    assert scores.latents["reason"].tolist() == [
        "never fires in these images",
        "fires in one image, which has no pair",
        "fires in too few groups, fewer than 10",
        "",
    ]
    assert scores.latents["similarity"].notna().tolist() == [False, False, True, True]
    assert scores.latents["similarity_low"].notna().tolist() == [False, False, False, True]
    assert scores.summary["n_latents"].tolist() == [1, 1, 1]
    one_group = activation_similarity(CodesTable(codes, {}, np.zeros(600), embeddings=embeddings)).summary
    assert one_group["value"].isna().all() and one_group["reason"].str.startswith("no latent fires in 10 groups").all()
    for wrong, message in (
        (embeddings[:5], r"embeddings have shape \(5, 16\): expected \(600, d\)"),
        (np.zeros_like(embeddings), "an embedding is zero or not finite"),
        (np.full_like(embeddings, np.nan), "embeddings hold a value that is not finite"),
    ):
        with pytest.raises(InputError, match=message):
            activation_similarity(table, wrong)


def test_a_source_that_lacks_images_is_refused(tmp_path):
    np.save(tmp_path / "x_test.npy", np.ones((2, 3), dtype=np.float32))
    pd.DataFrame({"image_id": ["image0", "other"]}).to_csv(tmp_path / "x_test.csv", index=False)
    table = CodesTable(np.ones((2, 1)), {}, np.arange(2))
    with pytest.raises(InputError, match="lacks 1 of the 2 images of the table"):
        activation_similarity(table, tmp_path / "x_test.npy")


# Recovery


@pytest.fixture(scope="module")
def recovered():
    """One latent is the dense feature that tells `one`; `spread` is told by many latents together; `noise` by none."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(120), 2)
    labels = {name: rng.integers(0, 2, 120)[groups] for name in ("one", "spread", "noise")}
    rows = rng.normal(size=(240, 12))
    rows[:, 0] += 2.5 * labels["one"]
    rows[:, 1] += 2.5 * labels["spread"]
    codes = rng.random((240, 40)) * (rng.random((240, 40)) < 0.2)
    codes[:, 4] = np.maximum(rows[:, 0], 0)
    codes[:, 10:30] += np.maximum(rows[:, [1]] + 4 * rng.normal(size=(240, 20)), 0)
    rare = np.zeros(240, dtype=int)
    rare[[0, 100, 200]] = 1
    labels |= {"rare": rare, "none": np.zeros(240, dtype=int), "missing": np.full(240, -1)}
    table = CodesTable(codes.astype(np.float32), labels, groups, embeddings=rows)
    return table, recovery(table, ks=(1, 20), strengths=(0.1,), n_bootstrap=100)


def test_recovery_says_how_few_latents_tell_what_the_dense_layer_tells(recovered):
    _, found = recovered
    curves = found.curves.set_index(["label", "k"])
    assert curves.loc[("one", 1), "recovered"] > 0.85 > 0.75 > curves.loc[("spread", 1), "recovered"]
    assert curves.loc[("spread", 20), "recovered_low"] > curves.loc[("spread", 1), "recovered"]
    expected = (curves["auroc"] - 0.5) / (curves["dense_auroc"] - 0.5)
    counted = curves["counts"]
    np.testing.assert_allclose(curves["recovered"][counted], expected[counted])
    np.testing.assert_allclose(curves["ratio"], curves["auroc"] / curves["dense_auroc"])
    assert (curves["recovered_permuted"][counted].abs() < 0.4).all()
    for name in ("one", "spread"):
        own = found.curves[found.curves["label"] == name]
        target = found.targets.set_index("label").loc[name]
        smallest = recovery_thresholds(own["k"], own["auroc"], target["dense_auroc"])
        assert [target[f"n_{100 * share:g}"] for share in smallest] == [
            n if n is not None else pytest.approx(np.nan, nan_ok=True) for n in smallest.values()
        ]
    summary = found.summary.set_index("k")
    assert (summary["n_labels"] == 2).all()
    assert summary.loc[20, "recovered"] == pytest.approx(expected.loc[[("one", 20), ("spread", 20)]].mean())
    assert (summary["recovered_low"] < summary["recovered"]).all()
    assert (summary["recovered"] < summary["recovered_high"]).all()


def test_what_the_dense_layer_does_not_tell_is_not_recovered_and_says_why(recovered):
    targets = recovered[1].targets.set_index("label")
    for label, reason in (
        ("noise", "the dense probe (has an AUROC of|cannot be told from chance)"),
        ("rare", "a class has 3 groups, fewer than 10: no interval|the dense probe has an AUROC of"),
        ("none", "no image of the split has it"),
        ("missing", "no image of the split has this label"),
    ):
        assert re.match(reason, targets.loc[label, "reason"]), label
        assert not targets.loc[label, "counts"]
    assert targets.loc[["one", "spread"], "reason"].eq("").all()


def test_tables_of_maps_bring_their_own_dense_layer():
    table = make_table(n_patients=60)
    table.vocabulary = {}
    found = recovery(table, pd.DataFrame({"Mass": table.images["Mass"]}), ks=(1, 5), strengths=(0.1,), n_bootstrap=0)
    assert found.curves["k"].tolist() == [1, 5]
    assert found.targets["sparse_auroc"].iloc[0] > 0.6 and sparse.issparse(table.max_latents)
