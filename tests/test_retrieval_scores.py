"""Retrieval judged by labels: by hand, on planted truth, and at random."""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from helpers_adapters import DATA
from scipy import sparse
from sklearn.metrics import average_precision_score, ndcg_score

from mammosae_plugin.analysis import fingerprints, retrieval_scores, retrieval_scores_of, retrieve, retrieve_of
from mammosae_plugin.analysis.retrieval import VectorIndex, row_of_image
from mammosae_plugin.analysis.retrieval_quality import MEASURES, judged
from mammosae_plugin.datasets.concepts import Concept, Vocabulary
from mammosae_plugin.errors import InputError


@pytest.fixture(scope="module")
def planted():
    """40 patients with two images; latent 0 fires with the finding, the others do not care."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 2)
    finding = (np.arange(40) % 4 == 0)[groups]
    codes = rng.random((80, 12)) * (rng.random((80, 12)) < 0.3)
    codes[:, 0] = np.where(finding, 3 + rng.random(80), 0)
    return codes, finding, groups


@dataclass
class Table:
    """What retrieval reads of a latents table."""

    max_latents: sparse.csr_array
    images: pd.DataFrame
    vocabulary: Vocabulary
    folder: str = "table"
    is_of_rows: bool = True

    @property
    def mean_latents(self):
        return self.max_latents


@pytest.fixture(scope="module")
def keyed():
    """Slices of volumes whose ids repeat between modalities, and an image that is in two splits."""
    key = [(modality, f"s000{v}", at) for modality in ("ct", "mri") for v in (0, 1) for at in range(3)]
    images = pd.DataFrame(
        {
            "image_id": [*(f"{modality}/{volume}/x/{at:04d}" for modality, volume, at in key), "twice", "twice"],
            "patient_id": [*(f"{modality}/{volume}" for modality, volume, _ in key), "both", "both"],
            "split": [*(["training"] * 13), "test"],
            "modality": [*(modality for modality, _, _ in key), "ct", "mri"],
            "volume": [*(volume for _, volume, _ in key), "both", "both"],
            "liver": [at % 2 for at in range(14)],
            "site": "A",
        }
    )
    rng = np.random.default_rng(0)
    kind = (images["modality"] == "ct").to_numpy()
    codes = np.column_stack([kind * (3 + rng.random(14)), ~kind * (3 + rng.random(14)), rng.random((14, 4))])
    return Table(sparse.csr_array(codes), images, Vocabulary([Concept("liver")]))


def test_a_latent_of_the_finding_finds_it_and_chance_does_not(planted):
    codes, finding, groups = planted
    labels = {"finding": finding, "coin": np.random.default_rng(1).random(80) < 0.5}
    found = retrieval_scores_of(codes, labels, groups, k=1, n=5, embeddings=codes).set_index(["label", "method"])
    ways = ["fingerprint", "cosine", "bm25", "dense", "dense_fingerprint", "random"]
    assert found.loc["finding"].index.tolist() == ways
    best = found.loc[("finding", "fingerprint")]
    assert best["precision"] == 1 and best["average_precision"] == pytest.approx(1) and best["ndcg"] == pytest.approx(1)
    assert best["recall"] == pytest.approx(5 / 9) and best["k"] == 1 and best["n"] == 5
    chance = found.loc[("finding", "random")]
    assert chance["precision_low"] < 9 / 39 < chance["precision_high"]
    assert best["over_random_low"] > 0.5 and np.isnan(chance["over_random"])
    assert best["p"] == 1 / 201 and (found.loc["coin"].drop("random")["p"] > 0.05).all()
    assert found["n_query_groups"].loc["finding"].tolist() == [10] * 6
    cosine, dense = (found.loc[("finding", method), ["precision", *MEASURES]] for method in ("cosine", "dense"))
    assert cosine.astype(float).equals(dense.astype(float))
    assert found.loc[("finding", "dense"), "dense_cosine"] > chance["dense_cosine"]


def test_random_labels_are_at_chance_also_where_a_few_images_are_found_by_all(planted):
    codes, _, groups = planted
    codes = np.concatenate([codes, np.where(np.arange(80) < 8, 9, codes[:, 0])[:, None]], axis=1)
    coins = np.random.default_rng(3).random((30, 40)) < 0.4
    labels = {f"coin{number}": coin[groups] for number, coin in enumerate(coins)}
    found = retrieval_scores_of(codes, labels, groups, methods=["bm25"], n_bootstrap=100, n_draws=99)
    found = found[found["method"] == "bm25"]
    assert (found["p"] <= 0.05).mean() <= 0.1 and found["p"].median() > 0.2


def test_every_k_and_an_untrained_sae_have_rows_on_the_same_queries(planted):
    codes, finding, groups = planted
    found = retrieval_scores_of(
        codes, {"finding": finding}, groups, methods=["fingerprint"], k=[1, 3], untrained=codes[:, 1:], n_bootstrap=200
    )
    assert found[["source", "k"]].to_numpy().tolist() == [
        ["latents", 1], ["latents", 3], ["untrained", 1], ["untrained", 3], ["random", 0],
    ]  # fmt: skip
    one, three, untrained, _, _ = found["precision"]
    assert one == 1 and three > untrained
    assert found["over_untrained"][0] == pytest.approx(one - untrained)
    assert found["over_untrained_low"][0] > 0 and found["over_untrained"][2:].isna().all()


def test_the_measures_are_trec_evals_and_scikit_learns():
    for case in json.loads((DATA / "trec_eval.json").read_text()):
        right = np.array(case["right"], dtype=bool)
        np.testing.assert_allclose(judged(right, 5), case["scores"], rtol=0, atol=1e-12)
        places = -np.arange(len(right), dtype=float)
        expected = average_precision_score(right, places), ndcg_score([right.astype(float)], [places], k=5)
        np.testing.assert_allclose(judged(right, 5)[2:], expected, rtol=0, atol=1e-12)


def test_the_scores_are_the_means_over_queries():
    rng = np.random.default_rng(2)
    codes, finding, groups = rng.random((60, 8)), rng.random(60) < 0.4, np.repeat(np.arange(30), 2)  # no equal images
    found = retrieval_scores_of(codes, {"finding": finding}, groups, methods=["cosine"], n=4, n_bootstrap=0).iloc[0]
    each = []
    for query in np.flatnonzero(finding):
        rows, _ = retrieve_of(codes, int(query), groups, method="cosine", n=80)
        each.append(judged(finding[rows], 4))
    np.testing.assert_allclose(found[list(MEASURES)].astype(float), np.mean(each, axis=0), atol=1e-12)
    assert np.isnan(found["precision_low"])


def test_images_that_are_equally_like_do_not_stand_in_the_order_of_the_rows():
    """All of one kind first, and codes that say nothing: in the order of rows it would be found perfectly."""
    kind = np.arange(200) < 100
    found = retrieval_scores_of(np.ones((200, 2)), {"kind": kind}, np.arange(200), methods=["cosine"], n=10)
    assert found["over_random_low"][0] < 0 < found["over_random_high"][0]


def test_dense_fingerprints_are_of_the_largest_coordinates_whatever_their_sign():
    vectors = np.random.default_rng(5).normal(size=(12, 6)).astype(np.float32)
    index = VectorIndex(vectors, 12)
    for k in (2, 6):
        (_, found) = next(index.likenesses([3], "dense_fingerprint", k))
        part = vectors[:, np.argsort(-np.abs(vectors[3]))[:k]].astype(float)
        expected = part @ part[3] / np.linalg.norm(part, axis=1) / np.linalg.norm(part[3])
        np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(next(index.likenesses([3], "dense", 0))[1], found, atol=1e-12)


def test_what_cannot_be_judged_is_said(planted):
    codes, finding, groups = planted
    silent = codes.copy()
    silent[0] = 0
    missing = np.where(np.arange(80) < 40, np.nan, finding)
    labels = {"finding": finding, "none": np.zeros(80), "half": missing}
    found = retrieval_scores_of(silent, labels, groups, methods=["cosine"], n_bootstrap=20)
    by = found.set_index(["label", "method"])
    assert by.loc[("finding", "cosine"), "n_unanswered"] == 1
    assert by.loc[("none", "cosine"), "reason"] == "no image has this label"
    assert np.isnan(by.loc[("none", "random"), "precision"])
    assert by.loc[("half", "cosine"), "n_queries"] == finding[40:].sum()
    assert np.isnan(by.loc[("half", "cosine"), "precision_low"])  # five patients ask
    assert by.loc[("half", "cosine"), "reason"] == "queries are of 5 groups: an interval needs 10"
    alone = retrieval_scores_of(codes, {"one": groups == 3}, groups, methods=["bm25"])
    assert alone["reason"].tolist() == ["only one group has this label: there is nothing right to find"] * 2
    assert alone["precision"].isna().all()
    one = retrieval_scores_of(codes, {"finding": finding}, np.zeros(80), methods=["bm25"])
    assert one["reason"].tolist() == ["all images are of one group"] * 2
    nothing = retrieval_scores_of(np.zeros((80, 2)), {"finding": finding}, groups, methods=["bm25"])
    assert nothing["reason"].tolist() == ["no query has a latent to go by", ""]
    every = retrieval_scores_of(codes, {"all": np.ones(80)}, groups, methods=["bm25"])
    assert every["reason"].tolist() == ["every image has this label: any hit is right"] * 2


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"methods": ["tfidf"]}, "methods is 'tfidf'"),
        ({"labels": {"a": np.full(80, 0.5)}}, "labels of a"),
        ({"labels": {"a": np.ones(3)}}, "labels of a"),
        ({"embeddings": np.ones((3, 2))}, "embeddings are of 3 images"),
        ({"embeddings": np.full((80, 2), np.nan)}, "embeddings hold a value that is not finite"),
        ({"untrained": np.ones((3, 2))}, "the untrained codes are of 3 images"),
        ({"k": [5, 0]}, "k is 0"),
        ({"n": 0}, "n is 0"),
    ],
    ids=["method", "values", "shape", "embeddings", "nan", "untrained", "k", "n"],
)
def test_impossible_arguments_are_refused(planted, changed, words):
    codes, finding, groups = planted
    with pytest.raises(InputError, match=words):
        retrieval_scores_of(**{"codes": codes, "labels": {"a": finding}, "groups": groups, **changed})


def test_images_of_a_table_that_are_like_one(encoded):
    image = encoded.images.iloc[3]
    found = retrieve(encoded, image["image_id"], method="cosine", k=4, n=3)
    rows, likeness = retrieve_of(
        encoded.max_latents, 3, encoded.images["patient_id"].to_numpy(), method="cosine", k=4, n=3
    )
    assert found["image_id"].tolist() == encoded.images.loc[rows, "image_id"].tolist()
    assert found["likeness"].tolist() == likeness.tolist()
    assert image["patient_id"] not in set(found["patient_id"])
    pd.testing.assert_series_equal(
        found["Mass"], encoded.images.loc[rows, "Mass"].reset_index(drop=True), check_names=False
    )
    own = encoded.max_latents[[3]].toarray().ravel()
    for row, shared in zip(rows, found["shared"], strict=True):
        assert len(shared) <= 4
        assert (own[shared] > 0).all()
        assert (encoded.max_latents[[row]].toarray().ravel()[shared] > 0).all()
    dense = retrieve(encoded, image["image_id"], method="dense", n=3, embeddings=encoded.mean_channels)
    assert (dense["likeness"] <= 1 + 1e-12).all() and not set(dense["patient_id"]) & {image["patient_id"]}
    assert set(retrieve(encoded, "row:3", split="training", n=3)["split"]) == {"training"}
    latents = fingerprints(encoded, 3, found["row"], k=4)
    assert latents["place"].tolist() == np.repeat(range(4), 4).tolist()
    own = encoded.max_latents[[3]].toarray().ravel()
    always = (encoded.max_latents.toarray() > 0).all(axis=0)
    assert latents["latent"][:4].tolist() == np.argsort(np.where(always, 0, -own), kind="stable")[:4].tolist()
    assert latents["activation"][:4].tolist() == own[latents["latent"][:4]].tolist()
    for _, hit in found.iterrows():
        beside = latents[latents["row"] == hit["row"]].set_index("latent")["activation"]
        assert beside[beside > 0].to_dict() == dict(zip(hit["shared"], hit["activations"], strict=True))


def test_an_image_is_named_by_its_id_by_a_part_that_only_it_has_or_by_its_row(keyed):
    assert row_of_image(keyed, "ct/s0001/x/0002") == row_of_image(keyed, "row:5") == row_of_image(keyed, 5) == 5
    assert row_of_image(keyed, "mri/s0001/x/2") == 11
    hashed = Table(keyed.max_latents[:2], pd.DataFrame({"image_id": ["8269f5", "8370aa"], "split": "test"}), None)
    assert row_of_image(hashed, "83") == 1
    with pytest.raises(InputError, match="'8' names 2 images"):
        row_of_image(hashed, "8")


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("ct/s0001/x/002x", "has no image 'ct/s0001/x/002x'; the nearest are ct/s0001/x/0002, "),
        ("7777", "has no image"),
        (
            "s0001/x",
            r"names 6 images of .*, in part: ct/s0001/x/0000 \(row:3, training\), .*, \.\.\.; give the whole id",
        ),
        (
            "twice",
            r"names 2 images of .*: twice \(row:12, training\), twice \(row:13, test\); give the whole id, or the row",
        ),
        ("row:99", "the image's row is 99: give a whole number, 0 to 13"),
        ("", "has no image ''"),
    ],
    ids=["near", "no-part", "volume", "two-splits", "row", "empty"],
)
def test_a_name_of_no_image_or_of_several_is_refused_in_one_line(keyed, named, words):
    with pytest.raises(InputError, match=words) as refused:
        retrieve(keyed, named)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"method": "dense"}, "keeps their codes alone: give the rows themselves"),
        ({"method": "tfidf"}, "method is 'tfidf': choose one of fingerprint, cosine, bm25, dense"),
        ({"split": "tset"}, "has no split 'tset'; it has training, test"),
        ({"embeddings": np.ones((2, 3)), "method": "dense"}, r"embeddings have shape \(2, 3\)"),
        ({"statistic": "sum"}, "statistic is 'sum'"),
    ],
    ids=["dense", "method", "split", "embeddings", "statistic"],
)
def test_what_a_table_cannot_be_asked_is_refused(keyed, changed, words):
    with pytest.raises(InputError, match=words):
        retrieve(keyed, "row:0", **changed)


def test_an_image_without_latents_is_told_by_its_id(keyed):
    codes = keyed.max_latents.toarray()
    codes[13] = 0
    silent = Table(sparse.csr_array(codes), keyed.images, keyed.vocabulary)
    for method in ("fingerprint", "cosine", "bm25"):
        with pytest.raises(InputError, match="image twice has no latent above 0 of its own"):
            retrieve(silent, "row:13", method=method, split="training")
    dense = retrieve(silent, "row:13", method="dense", n=2, embeddings=keyed.max_latents.toarray())
    assert dense["shared"].tolist() == [[], []]


def test_a_table_is_judged_by_its_concepts_and_by_other_columns(keyed):
    found = retrieval_scores(keyed, ["liver", "modality"], split="all", ks=[1, 2], n=2, n_bootstrap=0)
    assert found["label"].unique().tolist() == ["liver", "modality=ct", "modality=mri"]
    assert found["k"].tolist()[:5] == [1, 2, 0, 0, 0]
    kind = found[(found["label"] == "modality=ct") & (found["method"] == "cosine")].iloc[0]
    assert kind["precision"] == 1 and kind["n_query_groups"] == 3
    untrained = retrieval_scores(keyed, ["liver"], split="all", n_bootstrap=0, untrained=keyed, methods=["bm25"])
    assert untrained["over_untrained"][0] == 0
    for given, words in (
        ({"labels": ["livr"]}, "has no label 'livr'; its concepts are liver"),
        ({"labels": ["site"]}, "the column 'site' has 1 values; a label has 2 to 20"),
        ({"group": "volumes"}, "has no column 'volumes' to group images by"),
        ({"split": "val"}, "has no split 'val'"),
        ({"embeddings": np.ones((2, 3))}, r"embeddings have shape \(2, 3\)"),
        ({"untrained": Table(keyed.max_latents[:3], keyed.images[:3], keyed.vocabulary)}, "lacks 11 of the 14 images"),
    ):
        with pytest.raises(InputError, match=words):
            retrieval_scores(keyed, **{"split": "all", **given})
