from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from helpers_results import named_latent
from helpers_roles import (
    BESIDE_IT,
    EVERYWHERE,
    IN_BOXES_OF_BOTH,
    N_PLANTED,
    OF_THE_FINDING,
    RARE,
    TWIN,
    UNUSED,
    USED_EVERYWHERE,
    planted_table,
)
from helpers_tables import MemoryTable, make_table
from sklearn.metrics import roc_auc_score

from mammosae_plugin.analysis.intervention import intervene
from mammosae_plugin.analysis.lesion_truth import covered
from mammosae_plugin.analysis.probing import RankedLatents, rank_latents
from mammosae_plugin.analysis.roles import _role, latent_roles
from mammosae_plugin.errors import InputError
from mammosae_plugin.findings.notes import Note, with_readers
from mammosae_plugin.findings.tables import shared_role
from mammosae_plugin.schema.results import ROLE_NUMBERS, role_evidence, stated_role


def roles_of(table: MemoryTable, top: int = N_PLANTED, **settings):
    """Roles of the first latents, whatever their scores."""
    order = np.tile(np.arange(table.d_sae), (2, 1))
    ranking = RankedLatents(order, np.zeros(order.shape))
    return latent_roles(table, ranking, "Mass", top=top, **{"n_bootstrap": 200} | settings).set_index("latent")


@pytest.fixture(scope="module")
def planted():
    return planted_table()


@pytest.fixture(scope="module")
def roles(planted):
    return roles_of(planted, top=20)


def test_latents_get_the_role_that_was_planted_and_never_another(roles):
    assert roles["role"][[OF_THE_FINDING, TWIN]].tolist() == ["concept", "concept"]
    assert roles["role"][EVERYWHERE] == "background"
    for latent in (BESIDE_IT, UNUSED, RARE, USED_EVERYWHERE, IN_BOXES_OF_BOTH):
        assert roles["role"][latent] == "unclear", latent
    assert "concept" not in set(roles["role"][N_PLANTED:])


@pytest.mark.parametrize(
    ("latent", "reason"),
    [
        (BESIDE_IT, "not enough of it lies in the boxes"),
        (UNUSED, "rests on it no more than on random groups"),
        (RARE, "fires in few images"),
    ],
)
def test_a_latent_that_lacks_one_part_of_the_evidence_is_unclear_and_says_which(roles, latent, reason):
    assert reason in roles["reason"][latent]


def test_a_latent_that_is_1_7_times_as_active_with_the_finding_in_its_boxes_is_of_the_concept(roles):
    assert roles["mean_with"][TWIN] / roles["mean_without"][TWIN] == pytest.approx(1.7, abs=0.25)
    assert roles["place_low"][TWIN] > 5
    assert roles["role"][TWIN] == "concept"


def test_equal_class_means_are_never_a_concept(planted):
    table = replace(planted, latents=planted.latents.copy())
    table.latents[..., OF_THE_FINDING] = table.latents[..., EVERYWHERE] * 0.00259
    assert roles_of(table)["role"][OF_THE_FINDING] != "concept"


def test_the_numbers_are_those_of_plain_definitions(planted, roles):
    rows = planted.rows("Mass", split="test")
    means = planted.latents.mean(axis=(1, 2))[rows.image_rows]
    one = roles.loc[TWIN]
    assert one["auroc"] == pytest.approx(roc_auc_score(rows.labels, means[:, TWIN]))
    assert one["auroc_low"] < one["auroc"] < one["auroc_high"]
    assert one["mean_with"] == pytest.approx(means[rows.labels == 1, TWIN].mean())
    assert one["fires_without"] == pytest.approx((means[rows.labels == 0, TWIN] != 0).mean())
    left = intervene(planted, np.array([TWIN]), mode="deactivate", head="Mass", error_term=True)[rows.image_rows, 0]
    loss = planted.logits("Mass")[rows.image_rows, 0] - left
    assert one["ablation"] == pytest.approx(loss[rows.labels == 1].mean() - loss[rows.labels == 0].mean())
    assert (one["n_patients_with"], one["n_patients_without"]) == (46, 46)
    assert one["n_random"] == 99


def test_place_is_the_share_in_the_own_boxes_over_that_in_the_boxes_of_others(roles):
    assert roles["place"][BESIDE_IT] == 0
    assert roles["place"][EVERYWHERE] == pytest.approx(1, abs=0.05)
    assert roles["place"][UNUSED] > 10


def test_a_box_covers_its_share_of_the_cells():
    inside = covered(np.array([[0, 0, 8, 4], [4, 0, 12, 4]]), (2, 2), (16, 16)).reshape(2, 2)
    np.testing.assert_allclose(inside, [[0.5, 0.25], [0, 0]])


def test_without_boxes_the_place_is_not_asked_and_the_reason_says_so():
    roles = roles_of(planted_table(boxes=False))
    assert roles["role"][OF_THE_FINDING] == "concept"
    assert "place was not examined" in roles["reason"][OF_THE_FINDING]
    assert roles["place"].isna().all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_random_labels_give_unclear(planted, seed):
    images = planted.images.copy()
    rng = np.random.default_rng(seed)
    of_patient = {patient: int(rng.random() < 0.5) for patient in images["patient_id"].unique()}
    images["Mass"] = images["patient_id"].map(of_patient)
    findings = planted.findings.assign(Mass=images["Mass"].to_numpy())
    roles = roles_of(replace(planted, images=images, findings=findings), top=20)
    assert set(roles["role"]) == {"unclear"}
    assert roles["reason"].str.contains("does not tell the classes").all()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_untrained_sae_gives_unclear(planted, seed):
    rng = np.random.default_rng(seed)
    encoder = rng.normal(size=(planted.d_sae, planted.d_sae)) / np.sqrt(planted.d_sae)
    latents = np.maximum(planted.features @ encoder, 0)
    untrained = replace(planted, latents=latents, decoder=encoder.T / np.square(encoder).sum(axis=0)[:, None])
    roles = roles_of(untrained, top=20)
    assert set(roles["role"]) == {"unclear"}
    assert roles["reason"].str.startswith("the SAE explains").all()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"n_controls": 18}, "only 18 random groups"), ({"n_bootstrap": 0}, "no interval over patients was asked for")],
)
def test_too_few_controls_or_no_interval_give_unclear(planted, settings, reason):
    roles = roles_of(planted, **settings)
    assert set(roles["role"]) == {"unclear"}
    assert roles["reason"].str.contains(reason).all()


_ENDS = [f"{name}_{end}" for name in ("auroc", "ablation", "place") for end in ("low", "high")]


@pytest.mark.parametrize(("n_patients", "settings", "fewest"), [(32, {}, 10), (180, {"min_patients": 47}, 47)])
def test_fewer_patients_than_the_minimum_give_unclear_and_no_interval(n_patients, settings, fewest):
    roles = roles_of(planted_table(n_patients=n_patients), **settings)
    reason = rf"only \d+ test patients? with the finding, fewer than {fewest}"
    assert roles["reason"].str.fullmatch(reason).all()
    assert set(roles["role"]) == {"unclear"}
    assert roles["auroc"].notna().all()
    assert roles[_ENDS].isna().all(axis=None)
    evidence = [role_evidence(row) for row in roles.reset_index().to_dict("records")]
    assert not any("[" in text for text in evidence)


def test_a_lower_minimum_gives_intervals_but_no_role():
    roles = roles_of(planted_table(n_patients=32), min_patients=5)
    assert roles["auroc_low"].notna().all()
    assert set(roles["role"]) == {"unclear"}


def test_patients_who_all_say_the_same_give_no_interval(planted, roles):
    assert roles["place"][BESIDE_IT] == 0
    assert np.isnan(roles["place_high"][BESIDE_IT])
    assert roles["place_low"][OF_THE_FINDING] > 1
    weightless = replace(planted, head_weight={"Mass": np.zeros_like(planted.head_weight["Mass"])})
    without = roles_of(weightless, top=1)
    assert without["ablation"].tolist() == [0]
    assert np.isnan(without["ablation_low"].iloc[0])


def test_one_positive_patient_gives_unclear_and_no_error(planted):
    images = planted.images.assign(Mass=(planted.images["patient_id"].isin(["patient0", "patient5"])).astype(int))
    findings = planted.findings.assign(Mass=images["Mass"].to_numpy())
    roles = roles_of(replace(planted, images=images, findings=findings))
    assert set(roles["role"]) == {"unclear"}
    assert roles["reason"].str.startswith("only 1 test patient with the finding").all()


def test_the_share_of_resamples_without_a_class_stands_beside_the_intervals(planted):
    rows = planted.rows("Mass", split="test")
    two, n = list(dict.fromkeys(rows.patient_ids[rows.labels == 1]))[:2], len(set(rows.patient_ids))
    kept = planted.images["patient_id"].isin(two) | (planted.images["split"] == "training")
    images = planted.images.assign(Mass=planted.images["Mass"].where(kept, 0))
    findings = planted.findings.assign(Mass=images["Mass"].to_numpy())
    roles = roles_of(replace(planted, images=images, findings=findings), n_bootstrap=2000, top=2, min_patients=1)
    assert roles["undefined_share"].to_list() == pytest.approx([(1 - 2 / n) ** n] * 2, abs=0.04)


def test_an_inverted_classifier_gives_unclear(planted):
    roles = roles_of(replace(planted, head_weight={"Mass": -planted.head_weight["Mass"]}))
    assert set(roles["role"]) == {"unclear"}


def test_roles_are_for_findings_and_rankings_of_the_table():
    table = make_table()
    with pytest.raises(InputError, match="'density' has 4 classes: roles are for a finding"):
        latent_roles(table, rank_latents(np.zeros((4, table.d_sae))), "density")
    with pytest.raises(InputError, match="the ranking has 3 latents, but the table has 40"):
        latent_roles(table, rank_latents(np.zeros((2, 3))), "Mass")


LACKED = ("0.0 % of resamples lacked a class", "0.0 % of resamples lacked boxes of others")


def test_the_evidence_is_one_line_that_holds_every_number(roles):
    row = roles.reset_index().to_dict("records")[0]
    assert set(ROLE_NUMBERS) <= set(row)
    assert stated_role(row) == "concept"
    text = role_evidence(row)
    told = ("AUROC 0.99 [", "95 % of 99 random groups below", "times as much in the boxes", "46 patients with")
    for part in (*told, *LACKED):
        assert part in text
    assert "\n" not in text


def test_what_is_published_of_a_role_is_of_enough_patients():
    few = named_latent(1, "concept", n_firing_without=3)
    assert shared_role(few, 5) == {"latent": 1, "role": "unclear", "reason": "its numbers are of fewer than 5 patients"}
    assert shared_role(few | {"by": "AB", "role": "skin"}, 5)["role"] == "skin"
    told = shared_role(named_latent(1, "concept"), 5)
    assert (told["role"], told["fires_with"], told["place"]) == ("concept", None, 4.2)  # silent in 2 patients of 57
    assert not {"n_firing_with", "n_firing_without"} & set(told)
    assert shared_role(named_latent(1, "concept", n_patients_boxed=4), 5)["place"] is None


def said(author, latent, *, label=None, concept=None, encoder=None):
    made = {"text": "a fold of skin", "confidence": None, "created": "2026-01-01", "sae": "x"}
    return Note(author, "bn2", latent, label=label, concept=concept, encoder=encoder, **made)


@pytest.mark.parametrize(
    ("notes", "role", "by"),
    [
        ([], "concept", None),
        ([said("AB", 1, label="Background")], "background", "AB"),
        ([said("AB", 1, label="Skin fold")], "Skin fold", "AB"),
        ([said("AB", 1, label="x"), said("AB", 1, label="artefact")], "artefact", "AB"),  # the last label counts
        ([said("AB", 1, label="artefact"), said("CD", 1, label="Artefact")], "Artefact", "AB, CD"),
        ([said("AB", 1, label="artefact"), said("CD", 1, label="concept")], "unclear", "AB, CD"),
        ([said("AB", 1)], "see note", "AB"),
        ([said("AB", 1, label="artefact", concept="Mass", encoder="finetuned")], "artefact", "AB"),
        ([said("AB", 1, label="artefact", concept="Suspicious_Calcification")], "concept", None),
        ([said("AB", 1, label="artefact", encoder="pretrained")], "concept", None),
        ([said("AB", 2, label="artefact")], "concept", None),
    ],
)
def test_what_a_reader_says_outranks_the_rule(notes, role, by):
    encoder = SimpleNamespace(name="finetuned", model="finetuned", concepts=("Mass",))
    layer = SimpleNamespace(name="bn2", encoders={"finetuned": encoder})
    found = with_readers({"finetuned/Mass": [named_latent(1, "concept")]}, notes, layer)["finetuned/Mass"][0]
    assert (stated_role(found), found.get("by")) == (role, by)
    assert "AUROC 0.83" in role_evidence(found)


CERTAIN = {
    "n_random": 99, "n_patients_boxed": 20, "ablation": 1.0, "ablation_random": 0.5, "ablation_low": 0.1,
    "ablation_share": 0.5, "auroc": 0.8, "auroc_low": 0.7, "auroc_high": 0.9, "place": 3.0, "place_low": 2.0,
    "mean_with": 2.0, "mean_without": 1.0, "fires_with": 0.9, "fires_without": 0.9,
}  # fmt: skip
ALIKE = {"auroc": 0.5, "auroc_low": 0.45, "auroc_high": 0.55, "ablation": 0.4, "ablation_low": -0.1, "place": 1.0}


@pytest.mark.parametrize(
    ("changed", "role"),
    [
        ({}, "concept"),
        ({"n_random": 19}, "concept"),
        ({"n_random": 18}, "unclear"),
        ({"auroc": 0.6}, "concept"),
        ({"auroc": 0.5999}, "unclear"),
        ({"auroc_low": 0.5}, "unclear"),
        ({"mean_without": 2.0}, "unclear"),
        ({"ablation_low": 0.0}, "unclear"),
        ({"ablation_random": 1.0}, "unclear"),
        ({"ablation_share": 0.01}, "concept"),
        ({"ablation_share": 0.0099}, "unclear"),
        ({"place": 1.5}, "concept"),
        ({"place": 1.4999}, "unclear"),
        ({"place_low": 1.0}, "unclear"),
        ({"n_patients_boxed": 0, "place": np.nan, "place_low": np.nan}, "concept"),
        (ALIKE, "background"),
        (ALIKE | {"auroc_high": 0.6}, "unclear"),
        (ALIKE | {"auroc_low": 0.4}, "unclear"),
        (ALIKE | {"fires_without": 0.5}, "background"),
        (ALIKE | {"fires_without": 0.4999}, "unclear"),
        (ALIKE | {"ablation": 0.5}, "background"),
        (ALIKE | {"ablation": 0.6, "ablation_low": 0.1}, "unclear"),
        (ALIKE | {"place": 1.5}, "unclear"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_the_thresholds_of_a_role_are_where_its_definition_puts_them(changed, role):
    assert _role(CERTAIN | changed, True)[0] == role
    assert _role(CERTAIN | changed, False)[0] == ("unclear" if role == "concept" else role)
