"""Breasts, exams and patients as what is counted: labels, scores, intervals, held against pandas and scikit-learn."""

import copy

import numpy as np
import pandas as pd
import pytest
from helpers_tables import MemoryTable, make_table
from scipy.sparse import csr_array
from scipy.special import expit, softmax
from sklearn.metrics import roc_auc_score

from mammosae_plugin.analysis import linear_probes
from mammosae_plugin.analysis.intervention import intervene, latent_group, sweep
from mammosae_plugin.analysis.probes import latent_aurocs
from mammosae_plugin.analysis.probing import best_single_latent, class_mean_latents, rank_channels, rank_latents
from mammosae_plugin.analysis.reconstruction import reconstruction_metrics
from mammosae_plugin.analysis.roles import latent_roles
from mammosae_plugin.datasets.concepts import Concept, Vocabulary
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures.units import EvaluationRows, EvaluationUnit, count_units, grouped_rows

CONCEPT = "Suspicious_Calcification"
KEYS = {
    "breast": ["patient_id", "exam_id", "laterality"],
    "exam": ["patient_id", "exam_id"],
    "patient": ["patient_id"],
}
UNITS = [(unit, scores) for unit in KEYS for scores in ("mean", "maximum")]
NAMES = [unit if scores == "mean" else f"{unit} by maximum" for unit, scores in UNITS]


@pytest.fixture(scope="module")
def table() -> MemoryTable:
    """Patients of one or two exams, with one to four images of either side, some of them without a label."""
    made = make_table(n_patients=60, seed=3)
    rng = np.random.default_rng(0)
    n = len(made.images)
    made.images["density"] = np.clip(np.arange(n) // 4 // 3 % 4 + rng.integers(2, size=n), 0, 3)
    made.images["exam_id"] = rng.choice(["first", "first", "second"], n)
    made.images["laterality"] = rng.choice(["L", "R"], n)
    for concept in (CONCEPT, "density"):
        made.images.loc[rng.random(n) < 0.1, concept] = -1
    made.is_of_rows = False
    return made


def together(values: np.ndarray, keys: list[pd.Series], scores: str) -> pd.DataFrame:
    """Values (n, m) of images, the mean or maximum of each group, by its key."""
    grouped = pd.DataFrame(np.asarray(values, dtype=np.float64)).groupby(keys, sort=False)
    return grouped.mean() if scores == "mean" else grouped.max()


def expected(table: MemoryTable, concept: str, unit: str, scores: str, values: np.ndarray, split: str = "test"):
    """Labels (n,), scores (n, m) and patients (n,) of the units with a known label."""
    own = table.images[table.images["split"] == split]
    keys = [own[name].reset_index(drop=True) for name in KEYS[unit]]
    top = {CONCEPT: 1, "density": 3}[concept]

    def label(images: pd.Series) -> int:
        known = [one for one in images if one >= 0]
        return max(known) if len(known) == len(images) or top in known else -1

    labels = own[concept].reset_index(drop=True).groupby(keys, sort=False).agg(label)
    known = labels.to_numpy() >= 0
    patients = labels.index.get_level_values(0) if len(keys) > 1 else labels.index
    found = together(values[own.index], keys, scores).to_numpy()
    return labels.to_numpy()[known], found[known], np.asarray(patients)[known]


@pytest.mark.parametrize(("unit", "scores", "name"), [(*u, n) for u, n in zip(UNITS, NAMES, strict=True)])
def test_table_1_by_unit_equals_pandas_and_scikit_learn_and_a_bootstrap_by_hand(table, unit, scores, name):
    found = reconstruction_metrics(table, CONCEPT, unit=name, n_bootstrap=40, seed=7, min_patients=1)
    resampled = {}
    for row, logits in zip(
        found.to_dict("records"), (table.logits(CONCEPT), table.logits_with_sae(CONCEPT)), strict=False
    ):
        labels, judged, patients = expected(table, CONCEPT, unit, scores, expit(logits))
        assert row["auroc"] == pytest.approx(roc_auc_score(labels, judged[:, 0]), abs=1e-12)
        assert row["accuracy"] == pytest.approx(np.mean((judged[:, 0] > 0.5) == labels), abs=1e-12)
        assert (row["n_rows"], row["n_positive"]) == (len(labels), labels.sum())
        names, rng, drawn = np.unique(patients), np.random.default_rng(7), []
        assert row["n_patients"] == len(names)
        for _ in range(40):
            times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
            weights = times[np.searchsorted(names, patients)]
            drawn.append(roc_auc_score(labels, judged[:, 0], sample_weight=weights))
        assert (row["auroc_low"], row["auroc_high"]) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=1e-12)
        resampled[row["variant"]] = np.array(drawn)
    difference = found.set_index("variant").loc["difference"]
    ends = np.quantile(resampled["with_sae"] - resampled["without_sae"], [0.025, 0.975])
    assert (difference["auroc_low"], difference["auroc_high"]) == pytest.approx(ends, abs=1e-12)


@pytest.mark.parametrize(("unit", "scores", "name"), [(*u, n) for u, n in zip(UNITS, NAMES, strict=True)])
def test_latents_by_unit_are_ranked_judged_and_removed_as_pandas_says(table, unit, scores, name):
    mean, highest = (one.toarray().astype(np.float64) for one in (table.mean_latents, table.max_latents))
    for values, given in (
        (mean, class_mean_latents(table, "density", unit=name)),
        (table.mean_channels, rank_channels(table, "density", unit=name, score="mean")),
    ):
        labels, judged, _ = expected(table, "density", unit, scores, values, "training")
        means = np.array([judged[labels == number].mean(axis=0) for number in range(4)])
        if isinstance(given, np.ndarray):
            assert given == pytest.approx(means, rel=1e-9, abs=1e-12)
            overall = class_mean_latents(table, "density", unit=name, score="overall_mean")
            assert overall[0] == pytest.approx(judged.mean(axis=0), rel=1e-9, abs=1e-12)
        else:
            assert given.scores == pytest.approx(-np.sort(-means, axis=1), rel=1e-9, abs=1e-12)

    single = best_single_latent(table, CONCEPT, unit=name, n_bootstrap=0)
    labels, judged, _ = expected(table, CONCEPT, unit, scores, highest)
    assert single.auroc == pytest.approx(roc_auc_score(labels, judged[:, single.latent]), abs=1e-12)
    labels, judged, _ = expected(table, CONCEPT, unit, scores, highest, "training")
    live = table.live_latents()
    best = max(roc_auc_score(labels, judged[:, latent]) for latent in live)
    assert single.auroc_training == pytest.approx(best, abs=1e-12)

    ranking = rank_latents(class_mean_latents(table, CONCEPT, unit=name, score="centered_mean"))
    swept = sweep(table, ranking, concept=CONCEPT, ks=[2], unit=name, n_controls=0, n_bootstrap=0)
    for row in swept.to_dict("records"):
        logits = intervene(table, latent_group(ranking, 2), mode=row["mode"], head=CONCEPT)
        labels, judged, _ = expected(table, CONCEPT, unit, scores, expit(logits))
        assert row["auroc"] == pytest.approx(roc_auc_score(labels, judged[:, 0]), abs=1e-12)

    role = latent_roles(table, ranking, CONCEPT, unit=name, top=1, n_controls=0, n_bootstrap=0).iloc[0]
    labels, judged, patients = expected(table, CONCEPT, unit, scores, mean)
    own = judged[:, role["latent"]]
    assert role["auroc"] == pytest.approx(roc_auc_score(labels, own), abs=1e-12)
    assert role["mean_with"] == pytest.approx(own[labels == 1].mean())
    assert role["fires_without"] == pytest.approx((own[labels == 0] != 0).mean())
    assert role["n_patients_with"] == len(set(patients[labels == 1]))
    without = intervene(table, np.array([role["latent"]]), mode="deactivate", head=CONCEPT, error_term=True)
    _, lost, _ = expected(table, CONCEPT, unit, "mean", table.logits(CONCEPT) - without)
    assert role["ablation"] == pytest.approx(lost[labels == 1].mean() - lost[labels == 0].mean(), abs=1e-9)


@pytest.mark.parametrize(("unit", "scores", "name"), [(*u, n) for u, n in zip(UNITS, NAMES, strict=True)])
def test_classes_by_unit_are_told_apart_by_their_mean_or_highest_probabilities(table, unit, scores, name):
    found = reconstruction_metrics(table, "density", unit=name, n_bootstrap=0).iloc[0]
    labels, judged, _ = expected(table, "density", unit, scores, softmax(table.logits("density"), axis=1))
    judged = judged / judged.sum(axis=1, keepdims=True)  # of the maxima; means add up to 1
    aurocs = [roc_auc_score(labels == number, judged[:, number]) for number in np.unique(labels)]
    assert found["auroc"] == pytest.approx(np.mean(aurocs), abs=1e-12)
    assert found["accuracy"] == pytest.approx((judged.argmax(axis=1) == labels).mean(), abs=1e-12)


def test_probes_and_latents_alone_read_the_means_of_a_breast(table):
    table.vocabulary = Vocabulary([Concept(CONCEPT)])
    labels, judged, _ = expected(table, CONCEPT, "breast", "mean", table.mean_latents.toarray())
    alone = latent_aurocs(table, CONCEPT, unit="breast", n_permutations=20)
    alone = alone[alone["statistic"] == "mean"].set_index("latent")["auroc"]
    live = np.flatnonzero(judged.any(axis=0))
    assert alone[live].to_numpy() == pytest.approx([roc_auc_score(labels, judged[:, one]) for one in live], abs=1e-6)
    probes = linear_probes(table, [CONCEPT], unit="breast", arms=["mean_latents"], ks=[1], n_bootstrap=0)
    assert probes.loc[0, ["n_rows", "n_positive"]].tolist() == [len(labels), labels.sum()]


@pytest.mark.parametrize("name", ["exam", "breast by maximum"])
def test_units_of_one_image_give_what_images_give_to_the_last_bit(name):
    table = make_table(seed=5)
    table.images["exam_id"] = table.images["image_id"]
    table.images["laterality"] = "L"
    table.images.loc[::9, CONCEPT] = -1
    ranking = rank_latents(class_mean_latents(table, CONCEPT, score="centered_mean"))
    common = {"n_bootstrap": 30, "min_patients": 1}
    keeps = table.images[CONCEPT] >= 0

    def rows(concept: str, *, split: str, unit: str = "image") -> EvaluationRows:
        if unit != "image":
            return MemoryTable.rows(table, concept, split=split, unit=unit)
        own = np.flatnonzero((table.images["split"] == split) & keeps)
        patients = table.images["patient_id"].to_numpy(dtype=object)[own]
        return EvaluationRows(own, table.images[concept].to_numpy()[own], patients)

    table.rows = rows
    for score in ("mean", "centered_mean"):
        means = [class_mean_latents(table, CONCEPT, unit=unit, score=score) for unit in ("image", name)]
        assert np.array_equal(*means)
    for analysis in (
        lambda unit: reconstruction_metrics(table, CONCEPT, unit=unit, **common),
        lambda unit: sweep(table, ranking, concept=CONCEPT, ks=[0, 3], unit=unit, n_controls=2, **common),
        lambda unit: latent_roles(table, ranking, CONCEPT, unit=unit, top=3, n_controls=2, **common),
        lambda unit: best_single_latent(table, CONCEPT, unit=unit, **common).to_frame(),
    ):
        pd.testing.assert_frame_equal(analysis("image"), analysis(name), check_exact=True)


@pytest.mark.parametrize("name", NAMES)
def test_labels_that_mean_nothing_are_told_apart_no_better_than_by_chance(table, name):
    rng = np.random.default_rng(4)
    guessed = copy.copy(table)
    guessed.images = table.images.assign(**{CONCEPT: (rng.random(len(table.images)) < 0.3).astype(int)})
    row = reconstruction_metrics(guessed, CONCEPT, unit=name, n_bootstrap=300, min_patients=1).iloc[0]
    assert row["auroc_low"] < 0.5 < row["auroc_high"]


def test_a_positive_image_makes_its_breast_positive_and_a_missing_one_unknown_without_it():
    images = pd.DataFrame(
        {
            "patient_id": ["a", "a", "a", "b", "b", "b", "c", "d", "d"],
            "laterality": ["L", "R", "L", "L", "L", "R", "L", "R", "R"],
            "Mass": [1, 0, -1, 0, -1, 0, -1, 0, 0],
            "density": [2, 1, -1, 3, -1, 0, 1, 1, 2],
        }
    )
    everywhere = np.ones(len(images), dtype=bool)
    unit = EvaluationUnit("breast")

    def labels(concept: Concept) -> dict[str, int]:
        rows = grouped_rows(images, concept, chosen=everywhere, unit=unit, where="here")
        first = np.flatnonzero(np.diff(rows.unit_of_row, prepend=-1))
        names = (images["patient_id"] + images["laterality"])[rows.image_rows[first]]
        return dict(zip(names, rows.labels.tolist(), strict=True))

    assert labels(Concept("Mass")) == {"aL": 1, "aR": 0, "bR": 0, "dR": 0}
    graded = Concept("density", "graded", tuple("ABCD"))
    assert labels(graded) == {"aR": 1, "bL": 3, "bR": 0, "cL": 1, "dR": 2}
    rows = grouped_rows(images, Concept("Mass"), chosen=everywhere, unit=unit, where="here")
    assert rows.image_rows[rows.unit_of_row == 0].tolist() == [0, 2]  # the image without a label has a score
    assert count_units(images, unit, "here") == 6
    with pytest.raises(InputError, match="of 1 breast the images have different classes of 'density'"):
        labels(Concept("density", "multiclass", tuple("ABCD")))
    images.loc[8, "density"] = 1
    assert labels(Concept("density", "multiclass", tuple("ABCD"))) == {"aR": 1, "bR": 0, "cL": 1, "dR": 1}


@pytest.mark.parametrize("scores", ["mean", "maximum"])
def test_sparse_latents_of_either_sign_are_put_together_as_dense_ones(scores):
    rng = np.random.default_rng(1)
    dense = rng.normal(size=(30, 12)).astype(np.float32) * (rng.random((30, 12)) < 0.4)
    unit_of_row = np.sort(rng.integers(9, size=30))
    unit_of_row = np.unique(unit_of_row, return_inverse=True)[1]
    n = unit_of_row.max() + 1
    rows = EvaluationRows(rng.permutation(30), np.zeros(n), np.arange(n), unit_of_row, scores)
    found = rows.values(csr_array(dense))
    assert found.toarray() == pytest.approx(
        together(dense[rows.image_rows], [unit_of_row], scores).to_numpy(), abs=1e-12
    )
    assert np.array_equal(found.toarray(), rows.values(dense)) or scores == "mean"


def test_logits_that_are_sure_stay_finite_and_equal_images_tie_with_themselves():
    rows = EvaluationRows(np.arange(6), np.zeros(3), np.arange(3), np.array([0, 0, 1, 1, 2, 2]))
    logits = rows.logits(np.array([[900.0], [900.0], [-900.0], [900.0], [2.5], [2.5]]))
    assert logits[:, 0] == pytest.approx([900, 0, 2.5], abs=1e-9)


def test_the_logits_of_an_image_alone_in_its_unit_are_its_own_to_the_last_bit():
    given = np.random.default_rng(0).normal(size=(40, 3))
    rows = EvaluationRows(np.arange(40), np.zeros(39), np.arange(39), np.append(np.arange(39), 38))
    for logits in (given, given[:, :1]):
        assert np.array_equal(rows.logits(logits)[:38], logits[:38])


@pytest.mark.parametrize(
    ("columns", "unit", "message"),
    [
        ({}, "breast", "here knows no laterality of its images, which unit breast needs; use unit image or patient"),
        ({"laterality": ["L", None, ""]}, "breast", "here knows no laterality of 2 of 3 images"),
        ({"laterality": ["L"] * 3, "exam_id": ["1", None, "2"]}, "breast", "here knows no exam_id of 1 of 3 images"),
        ({"exam_id": [None] * 3}, "exam", "here knows no exam_id of its images, .* use unit patient"),
        ({}, "side", "unit is 'side'; it must be one of image, finding_row, breast, exam, patient"),
        ({}, "image by maximum", "unit is 'image by maximum'; it must be one of"),
    ],
)
def test_images_that_belong_to_no_unit_are_told_in_a_line(columns, unit, message):
    images = pd.DataFrame({"patient_id": list("abc"), **columns})
    with pytest.raises(InputError, match=message):
        count_units(images, EvaluationUnit.named(unit), "here")
