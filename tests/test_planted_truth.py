"""Latents of known kinds, planted: every score must tell them apart, and random labels must tell nothing."""

from types import SimpleNamespace

import numpy as np
import pytest

from mammosae_plugin.analysis import (
    absorption_of,
    activation_similarity_of,
    clarity_of,
    code_redundancy_of,
    decoder_redundancy_of,
    firing_density_of,
    latent_aurocs_of,
    monosemanticity_of,
    probe_of,
    replication_of,
    retrieval_scores_of,
    splitting_of,
)

KINDS = (
    *("mono_mass", "mono_edema", "mono_nodule", "absorbed_calc", "absorbs_coarse", "child_oval", "poly"),
    *("random_0", "random_1", "random_2", "copy_of_edema", "dead"),
)
AT = {kind: number for number, kind in enumerate(KINDS)}
FINDINGS = ("mass", "oval", "calc", "coarse", "edema", "nodule")


@pytest.fixture(scope="module")
def planted():
    """400 images of 200 patients. Oval masses are masses, coarse calcifications are calcifications.

    The latent of masses fires for oval ones too, beside theirs; that of calcifications is silent for nine in ten coarse
    ones, which have a latent of their own. `poly` fires for edema and for nodules, as if they were one. Embeddings are
    the findings' directions and noise.
    """
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(200), 2)
    found = {name: rng.random(400) < share for name, share in (("mass", 0.3), ("calc", 0.4), ("edema", 0.2))}
    found |= {"oval": found["mass"] & (rng.random(400) < 0.5), "coarse": found["calc"] & (rng.random(400) < 0.35)}
    found["nodule"] = ~found["edema"] & (rng.random(400) < 0.25)
    fires = {
        "mono_mass": found["mass"],
        "mono_edema": found["edema"],
        "mono_nodule": found["nodule"],
        "absorbed_calc": found["calc"] & (~found["coarse"] | (rng.random(400) < 0.1)),
        "absorbs_coarse": found["coarse"],
        "child_oval": found["oval"],
        "poly": found["edema"] | found["nodule"],
        **{f"random_{number}": rng.random(400) < 0.25 for number in range(3)},
        "dead": np.zeros(400, dtype=bool),
    }
    strength = {kind: own * (1 + rng.random(400)) for kind, own in fires.items()}
    strength["copy_of_edema"] = strength["mono_edema"] * (3 + 0.1 * rng.random(400))
    codes = np.column_stack([strength[kind] for kind in KINDS])
    labels = np.column_stack([found[name] for name in FINDINGS])
    directions = rng.normal(size=(len(FINDINGS), 32))
    embeddings = labels @ directions + 0.3 * rng.normal(size=(400, 32))
    sets = {name: found[name].astype(float) for name in FINDINGS}
    return SimpleNamespace(codes=codes, labels=labels, sets=sets, groups=groups, embeddings=embeddings)


def of(kind, frame, column):
    return frame.set_index("latent")[column][AT[kind]]


def test_monosemantic_latents_score_above_polysemantic_and_random_ones(planted):
    scores = monosemanticity_of(planted.codes, planted.labels[:, 4:], planted.groups, n=(20,))
    for kind in ("mono_edema", "mono_nodule"):
        assert of(kind, scores, "monosemanticity_20") > of("poly", scores, "monosemanticity_20") + 0.2
        assert of(kind, scores, "q_20") < 0.05
    random = [of(f"random_{number}", scores, "monosemanticity_20") for number in range(3)]
    assert max(random) < 0.15
    assert of("mono_edema", scores, "monosemanticity_20") > max(random) + 0.3


def test_scores_without_labels_rank_them_alike(planted):
    likeness = activation_similarity_of(planted.codes, planted.embeddings)
    chance = activation_similarity_of(np.ones((400, 1)), planted.embeddings)[0]
    clear = clarity_of(planted.codes, planted.embeddings, planted.groups, n=20)
    for kind in ("mono_edema", "mono_nodule"):
        assert likeness[AT[kind]] > likeness[AT["poly"]] + 0.05
        assert of(kind, clear, "clarity_low") > of("poly", clear, "clarity") > of("poly", clear, "null")
        assert of(kind, clear, "q") < 0.05
    for number in range(3):
        assert likeness[AT[f"random_{number}"]] == pytest.approx(chance, abs=0.06)
        assert of(f"random_{number}", clear, "clarity") < of("mono_edema", clear, "clarity") - 0.2
    assert np.isnan(likeness[AT["dead"]])


@pytest.mark.parametrize(
    ("finding", "best"),
    [("mass", "mono_mass"), ("oval", "child_oval"), ("coarse", "absorbs_coarse"), ("nodule", "mono_nodule")],
)
def test_the_planted_latent_tells_its_finding(planted, finding, best):
    labels = planted.sets[finding]
    single = latent_aurocs_of(planted.codes, labels, planted.groups)
    assert single.loc[single["auroc"].idxmax(), "latent"] == AT[best]
    assert of(best, single, "q") < 0.01
    assert of(best, single, "auroc") > single["best_by_chance"].iloc[0] + 0.2
    probe = probe_of(planted.codes, labels, planted.groups, ks=(1,), n_bootstrap=0, strengths=(1.0,)).iloc[0]
    assert probe["auroc"] > 0.95 > probe["auroc_permuted"] + 0.3
    without = np.delete(planted.codes, [AT[best], AT["poly"]], axis=1)
    worse = probe_of(without, labels, planted.groups, ks=(1,), n_bootstrap=0, strengths=(1.0,)).iloc[0]
    assert worse["auroc"] < probe["auroc"] - 0.05


def test_a_polysemantic_latent_needs_a_second_one(planted):
    codes = np.delete(planted.codes, [AT["mono_edema"], AT["copy_of_edema"]], axis=1)
    found = probe_of(codes, planted.sets["edema"], planted.groups, ks=(1, 2), n_bootstrap=0, strengths=(10.0,))
    assert found["auroc"].iloc[1] > 0.98 > found["auroc"].iloc[0] + 0.03


@pytest.mark.parametrize("basis", ["features", "pca", "kmeans"])
def test_random_labels_give_every_probe_chance_within_its_interval(planted, basis):
    labels = np.random.default_rng(3).integers(0, 2, 200)[planted.groups]
    found = probe_of(planted.codes, labels, planted.groups, ks=(1, 5, None), basis=basis, n_bootstrap=200)
    assert ((found["auroc_low"] < 0.49) & (found["auroc_high"] > 0.51)).all()
    single = latent_aurocs_of(planted.codes, labels, planted.groups)
    assert (single["q"] > 0.05).all()
    assert single["p_family"].min() > 0.05


def test_only_the_absorbed_latent_is_found_absorbed(planted):
    found = absorption_of(planted.codes, planted.sets, planted.groups).set_index("child")
    assert found["parent"].to_dict() == {"oval": "mass", "coarse": "calc"}
    assert found.loc["coarse", ["main", "absorber"]].tolist() == [AT["absorbed_calc"], AT["absorbs_coarse"]]
    assert 0.7 < found.loc["coarse", "excess_low"] < found.loc["coarse", "excess_high"] <= 1
    assert found.loc["coarse", "q"] < 0.05
    assert found.loc["oval", ["main", "absorbed"]].tolist() == [AT["mono_mass"], 0]
    assert found.loc["oval", "q"] > 0.5


def test_random_finer_labels_are_not_absorbed(planted):
    rng = np.random.default_rng(4)
    sets = {"calc": planted.sets["calc"], "half": planted.sets["calc"] * (rng.random(200) < 0.5)[planted.groups]}
    found = absorption_of(planted.codes, sets, planted.groups, {"half": "calc"}).iloc[0]
    assert found["excess_low"] < 0.02
    assert found["excess"] < 0.15
    assert found["p"] > 0.02
    assert found["miss_child"] > 0.2  # the latent is silent for coarse ones, whichever half they are in


def test_split_kept_and_lost_latents_are_told(planted):
    rng = np.random.default_rng(5)
    kinds = rng.integers(0, 3, 400)
    mass = planted.codes[:, AT["mono_mass"]]
    parts = np.column_stack([mass * (kinds == kind) * scale for kind, scale in enumerate((1, 2, 5))])
    wide = np.column_stack(
        [parts, planted.codes[:, AT["mono_edema"]], rng.random((400, 9)) * (rng.random((400, 9)) < 0.2)]
    )
    small = planted.codes[:, [AT["mono_mass"], AT["mono_edema"], AT["mono_nodule"]]]
    found = splitting_of(small, wide, planted.groups)
    assert found.latents["fate"].tolist() == ["split", "kept", "gone"]
    assert sorted(found.parts.loc[found.parts["latent"] == 0, "part"]) == [0, 1, 2]
    assert found.latents["together"].iloc[0] > 0.95
    assert found.latents["coverage"].iloc[0] == 1 > 2 * found.latents["coverage_chance"].iloc[0]
    assert (found.chance_kept, found.chance_split) == (0, 0)


def test_copies_are_redundant_and_others_are_not(planted):
    found = code_redundancy_of(planted.codes, planted.groups, threshold=0.95)
    assert of("copy_of_edema", found.latents, "nearest") == AT["mono_edema"]
    assert set(found.latents.loc[found.latents["likeness"] > 0.95, "latent"]) == {AT["copy_of_edema"], AT["mono_edema"]}
    assert of("mono_edema", found.latents, "likeness_low") > 0.9
    assert found.chance_share == 0
    decoder = np.random.default_rng(6).normal(size=(12, 64))
    decoder[AT["copy_of_edema"]] = 2 * decoder[AT["mono_edema"]] + 0.1 * decoder[0]
    rows = decoder_redundancy_of(decoder)
    assert rows.share == pytest.approx(2 / 12)
    assert rows.chance_share == 0
    assert firing_density_of(planted.codes, planted.groups).latents["kind"].tolist()[-1] == "dead"


def test_planted_latents_find_images_of_like_findings_and_random_ones_do_not(planted):
    sets = {name: planted.sets[name] for name in ("edema", "coarse")}
    own, random = (
        retrieval_scores_of(planted.codes[:, span], sets, planted.groups, n=10, n_queries=40).set_index("method")
        for span in (slice(0, AT["poly"]), slice(AT["random_0"], AT["copy_of_edema"]))
    )
    for name in sets:
        planted_ones, others = own[own["label"] == name], random[random["label"] == name]
        at_random = planted_ones["precision"]["random"]
        for method in ("fingerprint", "cosine", "bm25"):
            assert planted_ones["precision_low"][method] > at_random + 0.2
            assert others["precision"][method] < at_random + 0.2


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_permuted_copy_replicates_and_an_untrained_sae_does_not(planted, noise):
    rng = np.random.default_rng(7)
    order = rng.permutation(len(KINDS))
    other = planted.codes[:, order] * np.exp(noise * rng.normal(size=planted.codes.shape))
    found = replication_of(planted.codes, 2 * other)
    assert found.share == 1
    edema = {AT["mono_edema"], AT["copy_of_edema"]}
    for one, its_match in zip(found.pairs["latent_a"], order[found.pairs["latent_b"]], strict=True):
        assert one == its_match or {one, its_match} == edema  # these two are one thing
    untrained = np.maximum(planted.embeddings @ rng.normal(size=(32, len(KINDS))) - 5, 0)
    against = replication_of(planted.codes, untrained)
    assert against.share < 0.6
    assert found.mean > against.mean + 0.3
