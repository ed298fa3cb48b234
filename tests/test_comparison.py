"""Comparing two studies: what must come out of identical, permuted, independent and incomparable ones."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_study import random_sae, save_random_sae
from scipy.stats import linregress, spearmanr

from mammosae_plugin.errors import InputError
from mammosae_plugin.findings.comparison import match_latents
from mammosae_plugin.hub.findings import Findings, compare_findings
from mammosae_plugin.provenance import tensors_fingerprint

D_SAE, DEAD = 64, 8
MODEL, CONCEPTS = "finetuned", ("Mass", "Suspicious_Calcification")


def make_findings(means, *, sae="same", model=MODEL, origin="a study", precisions=(0.1, 0.3, 0.3)) -> Findings:
    """Findings of one layer whose class means are given: concept -> (2, d_sae), ranked by the centred mean."""
    rows = []
    for concept, of_class in means.items():
        scores = of_class - of_class.mean(axis=0)
        for number, (mean, score) in enumerate(zip(of_class, scores, strict=True)):
            rank = np.empty(len(mean), dtype=int)
            rank[np.argsort(-score, kind="stable")] = np.arange(1, len(mean) + 1)
            rows += [
                (
                    *("bn2", model, latent, concept, number, 40),
                    mean[latent],
                    score[latent],
                    rank[latent],
                    np.nan,
                    np.nan,
                )
                for latent in range(len(mean))
            ]
    columns = ["layer", "encoder", "latent", "concept", "class", "n_images", "class_mean", "score", "rank"]
    concepts = pd.DataFrame(rows, columns=[*columns, "average_precision", "ablation_effect"])
    localization = pd.DataFrame(
        [
            *(
                ("bn2", model, "Mass", "latent", "percentile 95", 0.25, i, 10 + i, ap)
                for i, ap in enumerate(precisions, 1)
            ),
            ("bn2", model, "Mass", "latent", "relative 0.3", 0.25, 1, 99, 0.9),
            ("bn2", model, "Mass", "channel", "percentile 95", 0.25, 1, 98, 0.8),
        ],
        columns=[
            "layer",
            "model",
            "concept",
            "method",
            "threshold",
            "iou_threshold",
            "rank",
            "latent",
            "average_precision",
        ],
    )
    models = [
        {"layer": "bn2", "hook_name": "bn2.hook_out", "encoder": model, "name": model, "concept": concept}
        for concept in means
    ]
    nothing = pd.DataFrame()
    return Findings(
        origin=origin,
        latents=nothing,
        concepts=concepts.sort_values(["latent", "concept", "class"]),
        interventions=nothing,
        reconstruction=nothing,
        localization=localization,
        notes=nothing,
        study={
            "models": models,
            "sae": {"bn2": {"sha256": sae}},
            "config": {"analysis": {"score": "centered_mean"}},
        },
    )


def random_means(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    means = {concept: rng.random((2, D_SAE)) for concept in CONCEPTS}
    for of_class in means.values():
        of_class[:, -DEAD:] = 0
    return means


def test_a_study_compared_with_itself_agrees_in_all():
    findings = make_findings(random_means(0))
    found = compare_findings(findings, findings, top=5)
    assert len(found.latents) == 4
    assert found.latents["rank_correlation"].tolist() == pytest.approx([1] * 4)
    assert found.latents["shared_top"].tolist() == [5] * 4
    assert (found.latents["n_latents"] == D_SAE - DEAD).all()
    assert found.matching is None and found.replication is None
    assert found.effects["class"].tolist() == [1, 1]  # the effect on class 0 is the same with the sign turned
    assert found.effects[["slope", "r"]].to_numpy() == pytest.approx(np.ones((2, 2)))
    assert (found.effects["p"] < 0.01).all() and (found.effects["n_latents"] == D_SAE - DEAD).all()
    mass = found.localization.set_index("concept").loc["Mass"]
    assert (mass["best_latent_a"], mass["best_latent_b"]) == (12, 12)  # the better-ranked of two with 0.3
    assert (mass["average_precision_a"], mass["average_precision_b"]) == (0.3, 0.3)
    assert found.localization.set_index("concept").loc["Suspicious_Calcification"].isna()["best_latent_a"]


def test_scores_in_the_opposite_order_correlate_to_minus_one_and_share_nothing():
    means = {"Mass": np.stack([np.zeros(D_SAE), np.arange(1.0, D_SAE + 1)])}
    reversed_means = {"Mass": means["Mass"][:, ::-1].copy()}
    found = compare_findings(make_findings(means), make_findings(reversed_means), top=10).latents
    assert found["rank_correlation"].tolist() == pytest.approx([-1, -1])
    assert found["shared_top"].tolist() == [0, 0]
    assert found["p_value"].tolist() == pytest.approx([1, 1])


def test_shared_latents_and_their_chance_level_are_those_of_a_construction():
    means = {"Mass": np.stack([np.zeros(D_SAE), np.arange(D_SAE, 0.0, -1)])}
    moved = means["Mass"].copy()
    moved[1, [0, 1, 2]] = 0.5, 0.4, 0.3  # three of the best ten fall to the end
    found = compare_findings(make_findings(means), make_findings({"Mass": moved}), top=10).latents
    of_class_1 = found.set_index("class").loc[1]
    assert of_class_1["shared_top"] == 7
    assert of_class_1["expected_shared"] == pytest.approx(100 / D_SAE)
    assert of_class_1["rank_correlation"] == pytest.approx(spearmanr(means["Mass"][1], moved[1]).statistic)


def test_independent_studies_share_what_chance_gives():
    shared, expected, p_values = [], [], []
    for seed in range(30):
        found = compare_findings(
            make_findings({"Mass": random_means(2 * seed)["Mass"]}),
            make_findings({"Mass": random_means(2 * seed + 1)["Mass"]}),
            top=10,
        ).latents.iloc[1]
        shared.append(found["shared_top"])
        expected.append(found["expected_shared"])
        p_values.append(found["p_value"])
    # 30 draws of a hypergeometric variable of variance 1.2: the mean lies within 0.81 (4 standard errors).
    assert np.mean(shared) == pytest.approx(expected[0], abs=0.81)
    assert 0.3 < np.mean(p_values) < 0.9


def test_effects_of_independent_studies_do_not_go_together():
    found = compare_findings(make_findings(random_means(0)), make_findings(random_means(1))).effects
    assert (found["r"].abs() < 0.4).all()
    assert ((found["r_low"] < found["r"]) & (found["r"] < found["r_high"])).all()
    assert (found["p"] > 0.01).all()


def test_an_effect_is_the_mean_in_a_class_less_that_in_all_other_images():
    """Three classes of 10, 20 and 30 images; the second study's effects are half of the first's."""
    rng = np.random.default_rng(0)
    means = {"density": rng.random((3, D_SAE))}
    a, b = make_findings(means), make_findings({"density": means["density"] / 2 + 1})
    for one in (a, b):
        one.concepts["n_images"] = one.concepts["class"].map({0: 10, 1: 20, 2: 30})
    found = compare_findings(a, b).effects
    assert found["class"].tolist() == [0, 1, 2]
    assert found["slope"].tolist() == pytest.approx([0.5] * 3)
    b.concepts.loc[b.concepts["class"] == 2, "class_mean"] += rng.random(D_SAE)
    moved = compare_findings(a, b).effects.set_index("class")
    of_a, of_b = (one.concepts.pivot(index="latent", columns="class", values="class_mean").to_numpy() for one in (a, b))
    first, second = (of[:, 0] - (20 * of[:, 1] + 30 * of[:, 2]) / 50 for of in (of_a, of_b))
    expected = linregress(first, second)
    assert moved.loc[0, ["slope", "r"]].tolist() == pytest.approx([expected.slope, expected.rvalue])


def test_latents_that_fire_in_neither_study_do_not_count():
    a, b = random_means(0), random_means(1)
    b["Mass"][:, -1] = 1.0  # one of the dead latents is alive in b
    found = compare_findings(make_findings(a), make_findings(b)).latents
    assert found.groupby("concept")["n_latents"].first().to_dict() == {
        "Mass": D_SAE - DEAD + 1,
        "Suspicious_Calcification": D_SAE - DEAD,
    }


def test_suppressed_scores_give_no_number():
    findings = make_findings(random_means(0))
    concepts = findings.concepts.copy()
    concepts.loc[concepts["concept"] == "Mass", ["score", "rank", "class_mean"]] = np.nan
    found = compare_findings(replace(findings, concepts=concepts), findings).latents.set_index("concept")
    assert found.loc["Mass", ["rank_correlation", "shared_top", "expected_shared", "p_value"]].isna().all(axis=None)
    assert (found.loc["Suspicious_Calcification", "rank_correlation"] > 0.999).all()
    effects = compare_findings(replace(findings, concepts=concepts), findings).effects.set_index("concept")
    assert effects.loc["Mass", "n_latents"] == 0 and np.isnan(effects.loc["Mass", "r"])


def test_different_saes_are_refused_in_one_line():
    a, b = make_findings(random_means(0)), make_findings(random_means(0), sae="another", origin="b study")
    with pytest.raises(InputError, match="a study and b study use different SAEs at layer bn2") as error:
        compare_findings(a, b)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="give the SAEs of both studies"):
        compare_findings(a, b, match="decoder")


def permuted(sae, order):
    other = random_sae(sae.cfg.d_in, sae.cfg.d_sae)
    state = sae.state_dict()
    other.load_state_dict(
        {**state, "W_enc": state["W_enc"][:, order], "b_enc": state["b_enc"][order], "W_dec": 3 * state["W_dec"][order]}
    )
    return other


def test_latents_of_another_sae_are_matched_by_decoder_directions(tmp_path):
    sae, order = random_sae(32, D_SAE), torch.randperm(D_SAE)
    other = permuted(sae, order)
    prints = [tensors_fingerprint(one.state_dict()) for one in (sae, other)]
    means = random_means(0)
    a = make_findings(means, sae=prints[0])
    b = make_findings({concept: of_class[:, order.numpy()] for concept, of_class in means.items()}, sae=prints[1])
    found = compare_findings(a, b, match="decoder", saes=(sae, {"bn2": other}), top=5)
    assert found.matching is not None
    assert found.matching["latent_a"].tolist() == list(range(D_SAE))
    assert found.matching.set_index("latent_b")["latent_a"].sort_index().tolist() == order.tolist()
    assert found.matching["cosine"].to_numpy() == pytest.approx(np.ones(D_SAE))
    assert found.latents["rank_correlation"].tolist() == pytest.approx([1] * 4)
    assert found.latents["shared_top"].tolist() == [5] * 4
    assert "matched by decoder directions" in found.as_text()
    # The codes are the same, and each latent moves the layer three times as far.
    assert found.effects["r"].tolist() == pytest.approx([1, 1])
    assert found.effects[["slope", "slope_low", "slope_high"]].to_numpy() == pytest.approx(np.full((2, 3), 3.0))
    assert found.replication is not None
    replicated = found.replication.iloc[0]
    assert (replicated["n_a"], replicated["n_b"], replicated["n_matched"], replicated["share"]) == (*[D_SAE] * 3, 1)
    assert replicated["chance_share"] < 0.1

    folder = save_random_sae(tmp_path / "sae", 32)
    with pytest.raises(InputError, match="given for layer bn2 is not the one that a study used there"):
        compare_findings(a, b, match="decoder", saes=(other, other))
    assert len(compare_findings(a, b, match="decoder", saes=(folder, other)).latents) == 4
    with pytest.raises(InputError, match="no SAE is given for layer bn2"):
        compare_findings(a, b, match="decoder", saes=({}, other))


def test_only_each_others_nearest_directions_are_matched():
    a = np.array([[1.0, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0, -1]])
    b = np.array([[0, 0, 1.0], [0, 2, 0], [1, 0.02, 0], [0, 0, 0]])
    found = match_latents(a, b)
    # The second of a lies nearest to what the first takes, and the fourth points away from everything.
    assert found[["latent_a", "latent_b"]].to_numpy().tolist() == [[0, 2], [2, 1]]
    assert match_latents(a, b, min_cosine=0.9999)["latent_a"].tolist() == [2]
    with pytest.raises(InputError, match="width 3 and 2 cannot be matched"):
        match_latents(a, b[:, :2])


def test_matching_in_blocks_is_the_same_as_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 8)), rng.normal(size=(40, 8))
    cosines = (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
    expected = [
        [i, int(cosines[i].argmax())]
        for i in range(50)
        if cosines[:, cosines[i].argmax()].argmax() == i and cosines[i].max() >= 0.7
    ]
    monkeypatch.setattr("mammosae_plugin.findings.comparison._ROWS", 7)
    assert match_latents(a, b)[["latent_a", "latent_b"]].to_numpy().tolist() == expected


def test_models_of_other_names_are_paired_when_asked_to():
    a, b = make_findings(random_means(0)), make_findings(random_means(0), model="tuned", origin="b study")
    with pytest.raises(InputError, match="have no layer, model and concept in common: bn2/finetuned/Mass"):
        compare_findings(a, b)
    found = compare_findings(a, b, models={"finetuned": "tuned"})
    assert set(found.latents["model"]) == {"finetuned"}
    assert (found.latents["rank_correlation"] > 0.999).all()


def test_studies_that_rank_by_different_scores_are_refused():
    a, b = make_findings(random_means(0)), make_findings(random_means(0), origin="b study")
    b.study["config"] = {"analysis": {"score": "mean"}}
    with pytest.raises(InputError, match="a study ranks latents by centered_mean and b study by mean"):
        compare_findings(a, b)


def test_studies_that_count_by_different_units_are_told_apart():
    a, b = make_findings(random_means(0)), make_findings(random_means(0), origin="b study")
    assert "counts by" not in compare_findings(a, b).as_text()
    b.study["data"] = {**b.study.get("data", {}), "unit": "breast by maximum"}
    found = compare_findings(a, b)
    assert found.units == ("image", "breast by maximum")
    assert "a counts by image, b by breast by maximum" in found.as_text()


@pytest.mark.parametrize(("arguments", "message"), [({"top": 0}, "top is 0"), ({"match": "name"}, "match is 'name'")])
def test_settings_that_cannot_be_are_refused(arguments, message):
    findings = make_findings(random_means(0))
    with pytest.raises(InputError, match=message):
        compare_findings(findings, findings, **arguments)
