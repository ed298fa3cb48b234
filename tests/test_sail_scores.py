"""Scores of codes, held against SAIL's own functions and against plain definitions."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.spatial.distance import jaccard
from scipy.stats import entropy

from mammosae_plugin.analysis import activation_similarity_of, monosemanticity_of, recovery_thresholds, retrieve_of
from mammosae_plugin.errors import InputError

SAIL = Path(__file__).parent / "data" / "sail"
KEYS = {"as_released": ["image_id"], "image_key_with_modality": ["modality", "image_id"]}
RETRIEVAL_KEYS = {"as_released": ["image_id"], "modality_image_key": ["modality", "image_id"]}


def codes_of(name, shape):
    stored = pd.read_parquet(SAIL / f"{name}_codes.parquet")
    return sparse.coo_array((stored["value"], (stored["row"], stored["feature"])), shape=shape)


def groups_of(name, keys):
    return pd.read_parquet(SAIL / f"{name}_slices.parquet")[keys].agg("/".join, axis=1).to_numpy()


@pytest.fixture(scope="module")
def organs():
    listed = pd.read_parquet(SAIL / "monosemanticity_slices.parquet")["organs"]
    labels = np.zeros((len(listed), 121), dtype=bool)
    for row, numbers in enumerate(listed):
        labels[row, [int(number) for number in numbers.split(",") if number]] = True
    return labels


# Monosemanticity


@pytest.mark.parametrize("variant", KEYS)
def test_monosemanticity_is_sails(organs, variant):
    expected = pd.read_parquet(SAIL / f"monosemanticity_{variant}.parquet").set_index("feature_idx").sort_index()
    found = monosemanticity_of(
        codes_of("monosemanticity", (600, 200)),
        organs,
        groups_of("monosemanticity", KEYS[variant]),
        null="rows",
        seed=42,
    ).set_index("latent")
    assert found.index.tolist() == expected.index.tolist()
    assert found["n_images"].tolist() == expected["n_nonzero_activations"].tolist()
    assert found["n_groups"].clip(upper=50).tolist() == expected["n_retrieved"].tolist()
    assert found["null_10"].iloc[0] == 0.029581
    for name in ("coherence", "specificity", "monosemanticity"):
        for n in (10, 50):
            np.testing.assert_allclose(
                found[f"{name}_{n}"], expected[f"{name}_{n}"], rtol=0, atol=1e-6
            )  # SAIL computes in float32


def test_a_null_that_is_given_is_used_as_it_is(organs):
    codes, groups = codes_of("monosemanticity", (600, 200)), groups_of("monosemanticity", ["modality", "image_id"])
    drawn = monosemanticity_of(codes, organs, groups, null="rows", seed=42)
    given = monosemanticity_of(codes, organs, groups, null={10: 0.029581, 50: 0.031927})
    for name in ("monosemanticity_10", "monosemanticity_50"):
        np.testing.assert_array_equal(drawn[name], given[name])
    assert given["p_10"].isna().all()
    with pytest.raises(InputError, match="the null has no value for n = 50; it has 10"):
        monosemanticity_of(codes, organs, groups, null={10: 0.03})


def test_dense_and_sparse_codes_and_any_block_give_the_same(organs, monkeypatch):
    codes, groups = codes_of("monosemanticity", (600, 200)), groups_of("monosemanticity", ["modality", "image_id"])
    whole = monosemanticity_of(codes, organs, groups)
    monkeypatch.setattr("mammosae_plugin.analysis.codes._BLOCK", 500)
    monkeypatch.setattr("mammosae_plugin.analysis.coherence._BLOCK", 7)
    pd.testing.assert_frame_equal(whole, monosemanticity_of(codes.toarray(), organs.astype(int), groups))


@pytest.fixture(scope="module")
def planted():
    """600 images of 200 patients with 6 labels; latent 0 stands for label 0, 1 for two labels, 2 and 3 for none."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(200), 3)
    labels = rng.random((600, 6)) < 0.25
    strength = rng.uniform(1, 2, 600)
    codes = np.stack(
        [
            strength * labels[:, 0] * ~labels[:, 1:].any(axis=1),
            strength * (labels[:, 1] ^ labels[:, 2]) * ~labels[:, 3:].any(axis=1) * ~labels[:, 0],
            strength * (rng.random(600) < 0.5),
            rng.permutation(strength) * (rng.random(600) < 0.5),
        ],
        axis=1,
    )
    return codes, labels, groups


def test_the_planted_latents_are_ranked_and_only_they_beat_their_null(planted):
    codes, labels, groups = planted
    found = monosemanticity_of(codes, labels, groups, n=(10,), n_draws=1000)
    assert found["latent"].tolist() == [0, 1, 2, 3]
    one, two, *none = found["monosemanticity_10"]
    assert one == pytest.approx(1 - found["null_10"][0]) and one > two > max(none)
    assert (found["p_10"] < 0.01).tolist() == [True, True, False, False]
    assert (found["q_10"] >= found["p_10"]).all()


def test_coherence_and_specificity_are_their_definitions(planted):
    codes, labels, groups = planted
    found = monosemanticity_of(codes, labels, groups, n=(10,), n_draws=1).set_index("latent")
    order = np.argsort(-codes[:, 2], kind="stable")
    _, first = np.unique(groups[order], return_index=True)
    top = labels[order[np.sort(first)][:10]]
    pairs = [1 - jaccard(top[i], top[j]) if (top[i] | top[j]).any() else 1 for i in range(10) for j in range(i)]
    assert found.loc[2, "coherence_10"] == pytest.approx(np.mean(pairs), abs=1e-14)
    assert found.loc[2, "specificity_10"] == pytest.approx(1 - entropy(top.sum(axis=0)) / math.log(6))


def test_on_random_labels_p_values_are_those_of_chance():
    rng = np.random.default_rng(1)
    codes = rng.random((400, 200)) * (rng.random((400, 200)) < 0.3)
    found = monosemanticity_of(codes, rng.random((400, 8)) < 0.3, np.arange(400) // 2, n=(10,), n_draws=500)
    # 200 p-values that are uniform: 5 % of them, with a standard deviation of 1.5 %, lie below 0.05.
    assert (found["p_10"] < 0.05).mean() < 0.11
    assert (found["q_10"] < 0.05).sum() <= 1


def test_what_cannot_be_scored_is_left_out_or_nan(planted):
    codes, labels, groups = planted
    empty = np.zeros((600, 1))
    found = monosemanticity_of(np.hstack([empty, codes, empty + 1, -codes[:, :1]]), labels, groups, n=(10, 201))
    assert found["latent"].tolist() == [
        1,
        2,
        3,
        4,
    ]  # neither the dead one, nor the one that always fires, nor negatives
    assert found[["coherence_201", "p_201", "monosemanticity_201"]].isna().all(axis=None)
    assert monosemanticity_of(codes, labels[:, :1], groups, n=(10,))["monosemanticity_10"].isna().all()
    assert monosemanticity_of(codes, labels, np.zeros(600), n=(10,)).empty


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": np.ones((3, 2))}, r"labels have shape \(3, 2\): expected \(600, L\)"),
        ({"labels": np.full((600, 6), np.nan)}, "something else than true and false: leave out images"),
        ({"groups": np.arange(3)}, r"groups have shape \(3,\): expected \(600,\)"),
        ({"groups": np.r_[np.nan, np.arange(599)]}, "a row has no group"),
        ({"groups": ["p1", float("nan"), *["p2"] * 598]}, "a row has no group"),
        ({"groups": pd.array([pd.NA, *["p2"] * 599], dtype="string")}, "a row has no group"),
        ({"groups": pd.Series([[1]] * 600)}, "groups hold something else than text and numbers"),
        ({"labels": sparse.csr_array(np.ones((600, 2)))}, r"labels are a sparse matrix: give .* labels.toarray\(\)"),
        ({"codes": sparse.csr_array(np.ones((600, 2)) + 0j)}, "codes are complex128: give numbers"),
        ({"codes": np.full((600, 2), np.inf)}, "codes hold a value that is not finite"),
        ({"codes": np.ones(600)}, r"codes have shape \(600,\): expected \(N, D\)"),
        ({"n": ()}, "n is empty"),
        ({"n": (1,)}, "n is 1: give a whole number, 2 or more"),
        ({"null": "patients"}, "null is 'patients': choose 'groups' or 'rows'"),
        ({"null": np.eye(2)}, r"null is array\(\[\[1., 0.\], \[0., 1.\]\]\): choose"),
    ],
)
def test_monosemanticity_refuses_in_one_line(planted, changed, message):
    codes, labels, groups = planted
    given = {"codes": codes, "labels": labels, "groups": groups} | changed
    with pytest.raises(InputError, match=message):
        monosemanticity_of(given.pop("codes"), given.pop("labels"), given.pop("groups"), **given)


# The label-free score


def test_the_closed_form_is_the_loop_over_pairs():
    rng = np.random.default_rng(2)
    codes = rng.random((40, 5)) * (rng.random((40, 5)) < 0.4)
    codes[:, 3], codes[:, 4] = 0, np.r_[2.0, np.zeros(39)]
    vectors = rng.normal(size=(40, 8)) + 0.5
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = []
    for a in codes.T:
        pairs = [(a[i] * a[j], unit[i] @ unit[j]) for i in range(40) for j in range(i)]
        weight = sum(w for w, _ in pairs)
        expected.append(sum(w * c for w, c in pairs) / weight if weight else np.nan)
    np.testing.assert_allclose(activation_similarity_of(codes, vectors), expected, rtol=1e-12)
    np.testing.assert_allclose(
        activation_similarity_of(sparse.csr_array(codes * 1e-170), vectors), expected, rtol=1e-12
    )


def test_the_label_free_score_refuses_in_one_line():
    with pytest.raises(InputError, match="codes hold -1: give activations of 0 or more"):
        activation_similarity_of(-np.ones((3, 2)), np.ones((3, 2)))
    with pytest.raises(InputError, match="an embedding is zero or not finite"):
        activation_similarity_of(np.ones((3, 2)), np.zeros((3, 2)))
    with pytest.raises(InputError, match=r"embeddings have shape \(2, 2\): expected \(3, d\)"):
        activation_similarity_of(np.ones((3, 2)), np.ones((2, 2)))
    assert np.isnan(activation_similarity_of(np.zeros((0, 2)), np.zeros((0, 4)))).tolist() == [True, True]


# Retrieval


@pytest.mark.parametrize("variant", RETRIEVAL_KEYS)
def test_fingerprints_retrieve_what_sails_do(variant):
    codes, groups = codes_of("fingerprint", (504, 160)), groups_of("fingerprint", RETRIEVAL_KEYS[variant])
    expected = pd.read_parquet(SAIL / "fingerprint_retrieved.parquet").query("variant == @variant")
    n_compared = 0
    for (reference, k), hits in expected.groupby(["reference", "k"]):
        rows, similarities = retrieve_of(codes, int(reference), groups, k=int(k))
        np.testing.assert_allclose(similarities, hits["similarity"], atol=1e-5)
        if hits["tie_gap"].iloc[0] >= 1e-6:
            n_compared += 1
            assert rows.tolist() == hits["array_idx"].tolist()
    assert n_compared > 60


def test_a_query_with_few_latents_has_a_shorter_fingerprint():
    codes, groups = codes_of("fingerprint", (504, 160)).tocsr(), groups_of("fingerprint", ["modality", "image_id"])
    rows, similarities = retrieve_of(codes, 126, groups, k=5)  # only latent 62 is not active in every image
    value = codes[:, [62]].toarray().ravel()
    np.testing.assert_allclose(similarities, 1 / (1 + np.abs(value[rows] - value[126])))


@pytest.mark.parametrize("method", ["fingerprint", "cosine", "bm25"])
def test_images_of_the_same_kind_come_first_one_of_a_group_and_none_of_the_own(method):
    rng = np.random.default_rng(3)
    kind = np.arange(60) % 3
    codes = rng.random((60, 12)) * 0.1 + np.kron(np.eye(3), np.ones(4))[kind] * rng.uniform(0.5, 1, (60, 12))
    codes[codes < 0.05] = 0
    groups = np.arange(60) // 6
    rows, similarities = retrieve_of(codes, 7, groups, method=method, n=5)
    assert (kind[rows] == kind[7]).all()
    assert len(set(groups[rows])) == 5 and groups[7] not in groups[rows]
    assert (np.diff(similarities) <= 0).all()
    assert len(retrieve_of(codes, 7, groups, method=method, n=50)[0]) == 9
    np.testing.assert_array_equal(retrieve_of(sparse.csc_matrix(codes), 7, groups, method=method)[0], rows)


def test_cosine_and_bm25_are_their_formulas():
    rng = np.random.default_rng(4)
    codes = rng.random((20, 9)) * (rng.random((20, 9)) < 0.5)
    codes[0, 0] = 1
    unit = codes / np.maximum(np.linalg.norm(codes, axis=1, keepdims=True), 1e-300)
    _, found = retrieve_of(codes, 0, np.arange(20), method="cosine", n=19)
    np.testing.assert_allclose(found, np.sort(unit[1:] @ unit[0])[::-1])
    words = codes / codes[codes > 0].mean()
    expected = np.zeros(20)
    for image in range(20):
        for word in range(9):
            in_images = (words[:, word] > 0).sum()
            rarity = math.log(1 + (20 - in_images + 0.5) / (in_images + 0.5))
            length = words[image].sum() / words.sum(axis=1).mean()
            often = words[image, word]
            expected[image] += words[0, word] * rarity * often * 2.5 / (often + 1.5 * (0.25 + 0.75 * length))
    _, found = retrieve_of(codes, 0, np.arange(20), method="bm25", n=19)
    np.testing.assert_allclose(found, np.sort(expected[1:])[::-1])


@pytest.mark.parametrize(
    ("query", "groups", "settings", "message"),
    [
        (5, np.arange(5), {}, "query is 5: give a whole number, 0 to 4"),
        (0, np.zeros(5), {}, "every row is of the query's own group"),
        (4, np.arange(5), {}, "image 4 has no latent above 0 that is not above 0 in every image"),
        (4, np.arange(5), {"method": "cosine"}, "image 4 has no active latent"),
        (4, np.arange(5), {"method": "bm25"}, "image 4 has no latent above 0"),
        (0, np.arange(5), {"method": "dense"}, "method is 'dense': choose one of fingerprint, cosine, bm25"),
    ],
)
def test_retrieval_refuses_in_one_line(query, groups, settings, message):
    with pytest.raises(InputError, match=message):
        retrieve_of(np.eye(5)[:, :4], query, groups, **settings)


# Recovery


def thresholds_in(row, prefix):
    return [
        None if math.isnan(number := row[f"{prefix}n_features_{p}pct"]) else int(number) for p in range(50, 101, 10)
    ]


def test_recovery_thresholds_are_sails_and_chance_corrected_above_a_dense_auroc_of_055():
    curves = pd.read_parquet(SAIL / "recovery_curves.parquet").groupby("curve")
    table = pd.read_parquet(SAIL / "recovery_thresholds.parquet")
    n_undefined = 0
    for row in table.to_dict("records"):
        curve = curves.get_group(row["curve"])
        given = curve["n_features"], curve["valid_roc_auc"], row["dense_valid_auc"]
        assert list(recovery_thresholds(*given, chance_corrected=False).values()) == thresholds_in(row, "")
        corrected = recovery_thresholds(*given)
        defined = row["dense_valid_auc"] > 0.55
        n_undefined += not defined
        assert list(corrected.values()) == (thresholds_in(row, "chance_corrected_") if defined else [None] * 6)
        assert list(corrected) == [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert 0 < n_undefined < len(table) / 2


def test_missing_values_and_unsorted_numbers_of_latents():
    given = [10, 1, 5, 2], [0.9, float("nan"), 0.95, 0.7]
    assert recovery_thresholds(*given, 0.9) == {0.5: 2, 0.6: 5, 0.7: 5, 0.8: 5, 0.9: 5, 1.0: 5}
    assert set(recovery_thresholds(*given, float("nan")).values()) == {None}
    assert recovery_thresholds([], [], 0.9, thresholds=(0.5,)) == {0.5: None}
    with pytest.raises(InputError, match=r"thresholds is \[\[0.5\]\]: give a list of numbers"):
        recovery_thresholds([1], [0.7], 0.9, thresholds=[[0.5]])
    for wrong, message in [
        (([1, 2], [0.5], 0.9), "do not fit"),
        (([1.5], [0.5], 0.9), "give whole numbers"),
        (([1], [1.5], 0.9), "outside 0 to 1"),
    ]:
        with pytest.raises(InputError, match=message):
            recovery_thresholds(*wrong)
