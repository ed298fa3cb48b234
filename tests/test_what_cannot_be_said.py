"""No label, one group, three positives, no latent that fires: NaN with its reason, or a line, from every score."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers_tables import CodesTable
from scipy import sparse

from mammosae_plugin.analysis import (
    latent_aurocs,
    linear_probes,
    monosemanticity,
    recovery,
    retrieval_scores,
)
from mammosae_plugin.analysis.score_card import audit_of
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents.image_codes import ImageCodes

N = 80
NO_LABEL, ONE_GROUP, THREE, SILENT = "no label", "one group", "three positives", "no latent fires"


def table_of(situation: str) -> CodesTable:
    """Eighty images of 40 patients; `a` is told by the layer's first channel, unless it cannot be."""
    rng = np.random.default_rng(0)
    groups = np.arange(N) // 2
    a, b = (rng.integers(0, 2, 40)[groups] for _ in range(2))
    rows = rng.normal(size=(N, 4))
    rows[:, 0] += 6 * a
    codes = rng.random((N, 6)) * (rng.random((N, 6)) < 0.5) * (situation != SILENT)
    if situation == NO_LABEL:
        a = np.full(N, -1)
    if situation == THREE:
        a = np.isin(np.arange(N), (0, 20, 40)).astype(int)
    groups = groups * (situation != ONE_GROUP)
    return CodesTable(codes.astype(np.float32), {"a": a, "b": b}, groups, embeddings=rows)


def probes(table: CodesTable) -> Any:
    found = linear_probes(table, ["a"], arms=["max_latents"], ks=(1,), n_bootstrap=20)
    return found.reindex(columns=["auroc", "auroc_low", "reason"])


def single(table: CodesTable) -> Any:
    return latent_aurocs(table, "a", n_permutations=10)[["auroc", "p", "reason"]]


def retrieval(table: CodesTable) -> Any:
    found = retrieval_scores(table, ["a"], methods=["cosine"], n=3, n_bootstrap=20, n_draws=0)
    return found[["precision", "precision_low", "reason"]]


def recovered(table: CodesTable) -> Any:
    found = recovery(table, ["a"], ks=(1,), n_bootstrap=20).targets
    return found.assign(missing=np.nan).reindex(columns=["sparse_auroc", "missing", "reason"])


def meaning(table: CodesTable) -> Any:
    found = monosemanticity(table, ["a", "b"], n=(10,), n_bootstrap=0)
    if THREE in str(table.folder):
        return found.labels.assign(missing=np.nan)[["n_positive", "missing", "reason"]]
    return found.summary[["value", "low", "reason"]]


SINGLE_GROUP = "a class has a single group"
EXPECTED: dict[Callable[[CodesTable], Any], dict[str, str]] = {
    probes: {
        NO_LABEL: "no image of split 'test' is of this class",
        ONE_GROUP: SINGLE_GROUP,
        THREE: "intervals need 10 groups",
        SILENT: "no feature varies",
    },
    single: {
        NO_LABEL: "0 rows have a label",
        ONE_GROUP: "all rows are of one group",
        SILENT: "it is the same in every row",
    },
    retrieval: {
        NO_LABEL: "no image has this label",
        ONE_GROUP: "all images are of one group",
        THREE: "queries are of 3 groups: an interval needs 10",
        SILENT: "no query has a latent to go by",
    },
    recovered: {
        NO_LABEL: "no image of the split has this label",
        ONE_GROUP: SINGLE_GROUP,
        THREE: "(a class has 3 groups, fewer than 10|the dense probe has an AUROC)",
        SILENT: "no latent differs between these images",
    },
    meaning: {
        NO_LABEL: "no image of the split has every label",
        ONE_GROUP: "the split is of one group",
        THREE: "3 groups have it, fewer than 10",
        SILENT: "no latent fires in 10 groups",
    },
}


@pytest.mark.parametrize(
    ("score", "situation"), [(score, situation) for score, some in EXPECTED.items() for situation in some]
)
def test_what_cannot_be_scored_is_nan_with_its_reason_or_refused_in_a_line(score, situation):
    table, why = table_of(situation), EXPECTED[score][situation]
    table.folder = situation
    if score is single and situation == NO_LABEL:
        with pytest.raises(InputError, match=why):
            score(table)
        return
    value, end, reason = score(table).iloc[0]
    assert np.isnan(end)
    at_chance = situation == SILENT and score in (probes, recovered)  # a probe on nothing is at chance, and says so
    assert value == 0.5 if at_chance else situation == THREE or score is single or np.isnan(value)
    assert re.match(why, reason), reason


@pytest.mark.parametrize(
    ("situation", "why"),
    [
        (NO_LABEL, "no label has 5 groups of either class"),
        (ONE_GROUP, "no label has 5 groups of either class"),
        (THREE, "no label has 5 groups of either class"),
        (SILENT, "none of its latents fires"),
    ],
)
def test_a_score_card_says_what_it_lacks(situation, why):
    table = table_of(situation)
    labels = table.images["a"].to_numpy().astype(float)
    labels[labels < 0] = np.nan
    codes = ImageCodes(sparse.csr_array(table.max_latents), 0.5, 1.0, 0.0, N)
    card = audit_of({"sae": [codes]}, {"a": labels}, table.images["patient_id"].to_numpy(), vectors=table.mean_channels)
    scores = card.members[0].scores
    if situation == SILENT:
        assert scores["probe_all"] == 0.5 and card.reasons["sae"].startswith(why)
        assert f"Not scored: this SAE, because {why}" in card.as_text()
    else:
        assert scores["probe_all"] is None and card.reasons["probe_all"] == card.reasons["retrieval_bm25"] == why
    assert {name for name, value in scores.items() if value is None} == set(card.reasons) - {"sae"}
