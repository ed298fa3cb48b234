"""Retrieval judged by labels: by hand, on planted truth, and at random."""

import numpy as np
import pandas as pd
import pytest

from mammosae_plugin.analysis import retrieval_scores_of, retrieve, retrieve_of
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


def test_a_latent_of_the_finding_finds_it_and_chance_does_not(planted):
    codes, finding, groups = planted
    labels = {"finding": finding, "coin": np.random.default_rng(1).random(80) < 0.5}
    found = retrieval_scores_of(codes, labels, groups, k=1, n=5, embeddings=codes).set_index(["label", "method"])
    assert found.loc["finding"].index.tolist() == ["fingerprint", "cosine", "bm25", "dense", "random"]
    assert found.loc[("finding", "fingerprint"), "precision"] == 1
    assert found.loc[("finding", "fingerprint"), "average_precision"] == pytest.approx(1)
    assert found.loc[("finding", "fingerprint"), "ndcg"] == pytest.approx(1)
    assert found.loc[("finding", "fingerprint"), "recall"] == pytest.approx(5 / 9)
    chance = found.loc[("finding", "random")]
    assert chance["precision_low"] < 9 / 39 < chance["precision_high"]
    coin = found.loc["coin"]
    assert (np.abs(coin["precision"] - coin.loc["random", "precision"]) < 0.2).all()
    assert found["n_query_groups"].loc["finding"].tolist() == [10] * 5
    cosine, dense = (found.loc[("finding", method)].drop("reason") for method in ("cosine", "dense"))
    assert cosine.astype(float).equals(dense.astype(float))


def test_the_scores_are_their_definitions(planted):
    codes, finding, groups = planted
    found = retrieval_scores_of(codes, {"finding": finding}, groups, methods=["cosine"], n=4, n_bootstrap=0).iloc[0]
    precisions, recalls, averages, gains = [], [], [], []
    for query in np.flatnonzero(finding):
        rows, _ = retrieve_of(codes, int(query), groups, method="cosine", n=80)
        right = finding[rows]
        hits = np.flatnonzero(right)
        precisions.append(right[:4].sum() / 4)
        recalls.append(right[:4].sum() / right.sum())
        averages.append(np.mean([(place + 1) / (hit + 1) for place, hit in enumerate(hits)]))
        discounts = 1 / np.log2(np.arange(4) + 2)
        gains.append((right[:4] * discounts).sum() / discounts[: min(4, right.sum())].sum())
    expected = [np.mean(one) for one in (precisions, recalls, averages, gains)]
    scored = found[["precision", "recall", "average_precision", "ndcg"]].astype(float)
    np.testing.assert_allclose(scored, expected, atol=1e-12)
    assert np.isnan(found["precision_low"])


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
    one = retrieval_scores_of(codes, {"finding": finding}, np.zeros(80), methods=["bm25"])
    assert one["reason"].tolist() == ["all images are of one group"] * 2
    nothing = retrieval_scores_of(np.zeros((80, 2)), {"finding": finding}, groups, methods=["bm25"])
    assert nothing["reason"].tolist() == ["no query has a latent to go by", ""]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"methods": ["tfidf"]}, "methods is 'tfidf'"),
        ({"labels": {"a": np.full(80, 0.5)}}, "labels of a"),
        ({"labels": {"a": np.ones(3)}}, "labels of a"),
        ({"embeddings": np.ones((3, 2))}, "embeddings are of 3 images"),
        ({"n": 0}, "n is 0"),
    ],
    ids=["method", "values", "shape", "embeddings", "n"],
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
    with pytest.raises(InputError, match="has no image 'nobody'"):
        retrieve(encoded, "nobody")
