"""What is said of every latent: exact where a formula is, and true where the truth was planted."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_evidence import BACKGROUND, DENSITY, FINDING, MARKER, SITE, permuted_table, planted_table
from helpers_study import random_sae
from helpers_tables import MemoryTable
from scipy.stats import chi2, rankdata
from statsmodels.api import GEE, Logit, families
from statsmodels.stats.multitest import multipletests

from mammosae_plugin.analysis import (
    confounders,
    covariate_associations,
    effect_sizes_of,
    group_performance,
    latent_evidence,
)
from mammosae_plugin.analysis.confounding import CONFOUNDED, verdict_of
from mammosae_plugin.analysis.evidence import EVIDENCE
from mammosae_plugin.errors import InputError
from mammosae_plugin.measures import delong
from mammosae_plugin.measures.statistics import settled_columns

QUICK = {"n_bootstrap": 60, "n_permutations": 60}


@pytest.fixture(scope="module")
def table():
    return planted_table()


@pytest.fixture(scope="module")
def evidence(table):
    return latent_evidence(table, "Mass", **QUICK)


@pytest.fixture(scope="module")
def told(table, evidence):
    return confounders(table, "Mass", evidence=evidence, **QUICK).set_index("latent")


def test_every_number_is_its_definition(table, evidence):
    rows = table.rows("Mass", split="test")
    present, means = rows.labels == 1, table.latents[rows.image_rows].mean(axis=(1, 2))
    found = evidence.set_index("latent")
    assert tuple(evidence) == EVIDENCE and list(found.index) == list(range(24))
    for latent in (FINDING, SITE, 11):
        own, row = means[:, latent], found.loc[latent]
        without = table.latents.copy()
        without[..., latent] = 0
        # Removed in the network, error term kept: what is read out of the features less the latent's part of them.
        loss = table.logits("Mass") - table.read_out(table.features - (table.latents - without) @ table.decoder, "Mass")
        loss = loss[rows.image_rows, 0]
        logit = table.logits("Mass")[rows.image_rows, 0]
        assert row["effect_with"] == pytest.approx(loss[present].mean(), rel=1e-5, abs=1e-7)
        assert row["effect"] == pytest.approx(loss[present].mean() - loss[~present].mean(), rel=1e-5, abs=1e-7)
        gap = logit[present].mean() - logit[~present].mean()
        assert row["effect_share"] == pytest.approx(row["effect"] / gap)
        assert row["reliance"] == pytest.approx(np.cov(loss, logit)[0, 1] / logit.var(ddof=1), rel=1e-4, abs=1e-7)
        assert row["auroc_mean"] == pytest.approx(delong(rows.labels, own).auc, abs=1e-6)
        highest = table.latents[rows.image_rows, ..., latent].max(axis=(1, 2))
        assert row["auroc_max"] == pytest.approx(delong(rows.labels, highest).auc, abs=1e-6)
        assert row["standardized_difference"] == pytest.approx(effect_sizes_of(own[:, None], rows.labels)[0], rel=1e-4)
        assert (row["mean_with"], row["firing_rate"]) == pytest.approx(
            (own[present].mean(), (own != 0).mean()), rel=1e-5
        )
        assert row["auroc_mean_low"] <= row["auroc_mean"] <= row["auroc_mean_high"]
        assert row["effect_low"] <= row["effect"] <= row["effect_high"]
    assert np.allclose(found["auroc_max_q"], multipletests(found["auroc_max_p"], method="fdr_bh")[1])
    error = table.logits("Mass") - table.logits_with_sae("Mass")
    rest = np.cov(error[rows.image_rows, 0], logit)[0, 1] / logit.var(ddof=1)
    assert found["reliance"].sum() + rest == pytest.approx(1, abs=1e-5)
    assert found.loc[FINDING, "inside"] == 1 and found.loc[MARKER, "inside"] == 0
    assert (found.loc[SITE, "covariate"], found.loc[DENSITY, "covariate"]) == ("site", "density")


def test_at_an_inner_layer_what_was_not_run_is_missing_and_says_so(table):
    inner = planted_table(n_patients=60)
    inner.readout_kind = "network"

    class Passes:
        def logits(self, table, kept, *, head, error_term, image_rows):  # noqa: ARG002
            left = np.einsum("nhwd,de->nhwde", table.latents[image_rows], kept.astype(float))
            full = table.logits(head)[image_rows][:, None]
            weight = table.head_weight[head][:, 0]
            return (
                full
                - ((table.mean_latents.toarray()[image_rows] @ (weight[:, None] * ~kept))[..., None])
                + 0 * left.sum()
            )

    with pytest.raises(InputError, match="give both or neither"):
        latent_evidence(inner, "Mass", masked=[FINDING], **QUICK)
    found = latent_evidence(inner, "Mass", masked=[FINDING], passes=Passes(), **QUICK).set_index("latent")
    assert found.loc[FINDING, "effect"] > 0 and np.isnan(found.loc[MARKER, "effect"])
    assert "name it in `masked`" in found.loc[MARKER, "effect_reason"] and not found.loc[FINDING, "effect_reason"]


def test_what_was_planted_is_found(told):
    assert ("latent", *told) == CONFOUNDED
    assert told["verdict"].to_dict() == {
        **dict.fromkeys(told.index, "unclear"), FINDING: "concept", MARKER: "shortcut", SITE: "shortcut",
        DENSITY: "context",
    }  # fmt: skip
    assert "training images only" in told.loc[MARKER, "reason"] and "site (acquisition)" in told.loc[SITE, "reason"]
    assert "density (patient)" in told.loc[DENSITY, "reason"] and told.loc[BACKGROUND, "auroc_q"] > 0.05


def test_what_the_covariates_are_decides_between_context_and_shortcut(table, evidence):
    found = confounders(table, "Mass", covariates={"density": "acquisition", "age": "patient"}, **QUICK)
    assert found.set_index("latent").loc[DENSITY, "verdict"] == "shortcut"
    assert found.set_index("latent").loc[SITE, "verdict"] == "context"  # outside the boxes; its site is not known


def test_the_likelihood_ratio_is_that_of_two_regressions(table, told):
    rows = table.rows("Mass", split="test")
    images = table.images.iloc[rows.image_rows]
    density, age = (images[name].astype(float).to_numpy() for name in ("density", "age"))
    base = np.column_stack([np.ones(len(images)), density, age, images["view"] == "CC", images["site"] == "B"])
    ranks = rankdata(settled_columns(table.mean_latents.toarray()[rows.image_rows])[:, DENSITY])
    full = np.column_stack([base.astype(float), (ranks - ranks.mean()) / ranks.std()])
    both, null = (Logit(rows.labels, design.astype(float)).fit(disp=0) for design in (full, base))
    row = told.loc[DENSITY]
    assert row["likelihood_ratio"] == pytest.approx(2 * (both.llf - null.llf), abs=1e-6)
    assert row["log_odds_given"] == pytest.approx(both.params[-1], rel=1e-5)
    clustered = GEE(rows.labels, full, groups=pd.factorize(rows.patient_ids)[0], family=families.Binomial()).fit()
    effect = (clustered.bse[-1] / both.bse[-1]) ** 2
    assert row["design_effect"] == pytest.approx(max(1, effect), rel=1e-3)
    assert row["given_p"] == pytest.approx(chi2.sf(row["likelihood_ratio"] / row["design_effect"], 1))


def test_with_permuted_labels_at_most_one_in_twenty_is_called_something(table):
    flagged = [
        (
            confounders(permuted_table(table, seed), "Mass", n_bootstrap=30, n_permutations=30)["verdict"] != "unclear"
        ).mean()
        for seed in range(20)
    ]
    assert np.mean(flagged) <= 0.05


def test_an_sae_that_explains_little_has_no_latents_of_anything():
    found = confounders(planted_table(n_patients=80, explained=False), "Mass", **QUICK)
    assert set(found["verdict"]) == {"unclear"} and "of the variance, less than 0.5" in found["reason"].iloc[0]


@pytest.mark.parametrize("labels", ["true", "permuted"])
def test_an_untrained_sae_has_no_concept(table, labels):
    sae = random_sae(table.features.shape[-1], 48)
    with torch.no_grad():
        latents = sae.encode(torch.as_tensor(table.features, dtype=torch.float32)).numpy()
    own = {"latents": latents, "decoder": sae.W_dec.detach().numpy(), "bias": sae.b_dec.detach().numpy()}
    untrained = MemoryTable(**{**vars(table if labels == "true" else permuted_table(table, 3)), **own})
    known = latent_evidence(untrained, "Mass", **QUICK)
    found = confounders(untrained, "Mass", evidence=known, **QUICK)
    # Mixtures of what was planted do go with the true label: what keeps them from a verdict is what the SAE loses.
    assert len(found) > 10 and ((found["auroc_q"] < 0.05).mean() > 0.3) == (labels == "true")
    assert set(found["verdict"]) == {"unclear"} and found["reason"].str.contains("SAE explains").all()


def test_a_latent_that_separates_the_classes_is_said_to(table):
    perfect = planted_table(n_patients=60, seed=1)
    row = confounders(perfect, "Mass", **QUICK).set_index("latent").loc[FINDING]
    assert "separates the classes" in row["given_reason"] and row["given_q"] < 0.01 and np.isnan(row["log_odds_given"])
    perfect.images["machine"] = np.where(perfect.images["Mass"] == 1, "one", "two")
    row = confounders(perfect, "Mass", covariates=["machine"], **QUICK).set_index("latent").loc[FINDING]
    assert "covariates alone separate the classes" in row["given_reason"] and np.isnan(row["given_q"])
    assert row["verdict"] == "unclear" and "covariates alone separate" in row["reason"]


def test_an_id_is_no_covariate(table):
    with pytest.raises(InputError, match="'patient_id' says which image or patient"):
        confounders(table, "Mass", covariates=["patient_id"], **QUICK)


def test_few_patients_give_no_intervals_and_no_verdict():
    found = latent_evidence(planted_table(n_patients=24), "Mass", **QUICK)
    assert found["auroc_max_p"].isna().all() and "fewer than 10" in found["reason"].iloc[0]
    assert found["auroc_max"].notna().all() and not found["detectable_auroc"].iloc[0] < 0.9
    assert set(confounders(planted_table(n_patients=24), "Mass", **QUICK)["verdict"]) == {"unclear"}


def test_where_the_breast_is_known_a_latent_outside_of_it_is_a_shortcut(table):
    inside = np.ones((48, 40), dtype=bool)
    inside[:8] = False
    found = confounders(table, "Mass", covariates=["age"], breast=lambda row: inside, **QUICK).set_index("latent")
    assert found.loc[SITE, "in_breast"] == 0 and found.loc[SITE, "verdict"] == "shortcut"
    assert "outside the breast" in found.loc[SITE, "reason"] and found.loc[FINDING, "verdict"] == "concept"
    assert found.loc[BACKGROUND, "in_breast"] == pytest.approx(found.loc[BACKGROUND, "in_breast_chance"], abs=0.02)


def test_covariates_and_their_levels_are_named_and_permuted_by_patient(table):
    found = covariate_associations(table, "Mass", n_permutations=100)
    site = found[(found["covariate"] == "site") & (found["latent"] == SITE)].iloc[0]
    assert site["r"] > 0.8 and site["level"] == "B" and site["q"] < 1e-6 and site["kind"] == "acquisition"
    noise = found[found["latent"] > BACKGROUND]
    assert (noise["p"] < 0.05).mean() < 0.12
    rows = table.rows("Mass", split="test")
    age = table.images["age"].to_numpy()[rows.image_rows]
    means = settled_columns(table.mean_latents.toarray()[rows.image_rows])[:, 9]
    expected = np.corrcoef(rankdata(age), rankdata(means))[0, 1]
    assert found[(found["covariate"] == "age") & (found["latent"] == 9)]["r"].iloc[0] == pytest.approx(expected)
    assert set(found["covariate"]) == {"view", "site", "age", "density"}


def test_performance_by_group_tells_the_worst_and_does_not_score_small_groups():
    table = planted_table(n_patients=400, seed=2)
    table.images.loc[:11, "site"] = "C"
    found = group_performance(table, "Mass", ["site", "age"], n_bootstrap=60)
    rows = table.rows("Mass", split="test")
    logits = table.logits("Mass")[rows.image_rows, 0]
    own = table.images["site"].to_numpy()[rows.image_rows] == "B"
    site = found[found["by"] == "site"].set_index("group")
    assert site.loc["B", "auroc"] == pytest.approx(delong(rows.labels[own], logits[own]).auc)
    assert site.loc["B", "rest_auroc"] == pytest.approx(delong(rows.labels[~own], logits[~own]).auc)
    assert np.isnan(site.loc["C", "auroc"]) and "not scored" in site.loc["C", "reason"]
    assert site["worst"].sum() == 1 and site["auroc"].idxmin() == site.index[site["worst"]][0]
    assert len(found[found["by"] == "age"]) == 4 and found.iloc[0]["by"] == "" and found["by"].iloc[0] == ""


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: confounders(t, "density"), "has 4 classes"),
        (lambda t: confounders(t, "Mass", covariates=["size"]), "no covariate 'size' of Mass; it has view, site, age"),
        (lambda t: confounders(t, "Mass", covariates=["Mass"]), "no covariate 'Mass'"),
        (lambda t: confounders(t, "Mass", covariates={"age": "woman"}), "choose one of patient, acquisition"),
        (lambda t: latent_evidence(t, "Suspicious_Calcification"), "no positive image"),
        (lambda t: latent_evidence(t, "density", label=4), "label is 4"),
        (lambda t: group_performance(t, "Mass", "size"), "no covariate 'size'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(table, call, message):
    with pytest.raises(InputError, match=message):
        call(table)


def test_without_boxes_and_covariates_nothing_is_called_a_concept(told):
    row = dict(told.loc[FINDING], given_q=np.nan, place=np.nan, place_low=np.nan, place_high=np.nan, covariate="")
    assert verdict_of(row, has_boxes=False)[0] == "unclear" and verdict_of(row)[0] == "unclear"
    assert verdict_of({**row, "given_q": 0.001}, has_boxes=False)[0] == "concept"
