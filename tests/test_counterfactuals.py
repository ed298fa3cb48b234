"""Latents that answer to one thing, planted, are found by pairs; random ones and random pairs are not."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from helpers_study import random_sae
from scipy.sparse import csr_array
from scipy.stats import false_discovery_control, wilcoxon
from typer.testing import CliRunner

from mammosae_plugin.adapters import HookedVisionModel, new_classifier
from mammosae_plugin.analysis import pair_responses, pair_responses_of
from mammosae_plugin.cli import app
from mammosae_plugin.datasets import VinDrMammo, make_phantom_pairs, read_pairs
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import encode_latents

ATTRIBUTES = ("mass", "clip", "density", "noise", "letter", "exposure")
N_PATIENTS = 24


def changes_of(latents_of_attribute, *, n_latents=40, noise=0.05, seed=0):
    """(n_pairs, D): each attribute's own vector of answers, of varying strength, and noise."""
    rng = np.random.default_rng(seed)
    attributes = np.repeat(ATTRIBUTES, N_PATIENTS)
    patients = np.tile(np.arange(N_PATIENTS), len(ATTRIBUTES))
    strength = 1 + 0.3 * rng.random(len(attributes))
    answers = np.stack([latents_of_attribute[name] for name in attributes])
    return strength[:, None] * answers + noise * rng.normal(size=(len(attributes), n_latents)), attributes, patients


@pytest.fixture(scope="module")
def planted():
    answers = {name: np.eye(40)[number] for number, name in enumerate(ATTRIBUTES)}
    answers["density"] = -answers["density"]
    answers["exposure"] = np.zeros(40)  # the control, which nothing answers to
    answers["letter"] = np.eye(40)[1] + 0.9 * np.eye(40)[7]  # the clip's latent answers as much, and a second less
    return pair_responses_of(*changes_of(answers), seed=1, n_permutations=8)


def test_planted_latents_are_recovered_with_sign_and_selectivity(planted):
    found = planted.attributes.set_index("attribute")
    assert found.loc[["mass", "density", "noise"], "best_latent"].tolist() == [0, 2, 3]
    assert (found.loc[["mass", "density", "noise"], "concept_score"] > 0.85).all()
    rows = planted.latents.set_index(["attribute", "latent"])
    assert rows.loc[("mass", 0), ["sign", "selective"]].tolist() == [1, True]
    assert rows.loc[("density", 2), ["sign", "selective"]].tolist() == [-1, True]
    assert rows.loc[("mass", 0), "response"] == pytest.approx(1.15, abs=0.06)
    assert rows.loc[("mass", 0), "response_low"] < 1.15 < rows.loc[("mass", 0), "response_high"]
    assert rows.loc[("clip", 1), ["sign", "selective"]].tolist() == [1, False]  # letters move it as much
    assert abs(rows.loc[("clip", 1), "selectivity"]) < 0.1
    assert rows.loc[("letter", 7), "selective"]
    assert found.loc["exposure", ["n_selective", "concept_score"]].tolist() == [0, 0]
    assert planted.share == pytest.approx(4 / 6)
    assert planted.share_permuted < 0.1
    assert planted.share_mixed < planted.share
    assert planted.latents.loc[planted.latents["latent"] > 7, "selective"].sum() == 0


def test_random_pairs_show_nothing_and_untrained_latents_score_about_0_where_planted_ones_score_1(planted):
    nothing = {name: np.zeros(40) for name in ATTRIBUTES}
    random = pair_responses_of(*changes_of(nothing), seed=1, n_permutations=2)
    assert random.attributes["n_selective"].sum() == 0
    assert random.attributes["concept_score"].max() == 0
    rng = np.random.default_rng(2)
    directions = {name: rng.normal(size=40) for name in ATTRIBUTES}  # every latent answers to everything
    untrained = pair_responses_of(*changes_of(directions), seed=1, n_permutations=8).attributes.set_index("attribute")
    assert untrained["best_selectivity"].max() > 0.3  # the best of 40 for one thing
    assert untrained["concept_score"].mean() < 0.1
    trained = planted.attributes.set_index("attribute")
    assert (trained.loc[["mass", "density", "noise"], "concept_score"] > 0.8).all()


def test_every_number_is_what_its_formula_says(planted):
    answers = {name: np.linspace(-1, 1, 40) * number for number, name in enumerate(ATTRIBUTES)}
    changes, attributes, patients = changes_of(answers, noise=0.5)
    patients = patients // 2  # twelve patients with two pairs of each attribute
    found = pair_responses_of(changes, attributes, patients, n_permutations=0)
    means = pd.DataFrame(changes).groupby([attributes, patients], sort=False).mean()
    expected = means.groupby(level=0).mean()
    p = {
        name: [wilcoxon(own[latent], method="exact").pvalue for latent in range(40)]
        for name, own in means.groupby(level=0)
    }
    q = false_discovery_control(np.concatenate([p[name] for name in ATTRIBUTES]))
    np.testing.assert_allclose(found.latents["q"], q)
    for name in ATTRIBUTES:
        own = found.latents[found.latents["attribute"] == name]
        np.testing.assert_allclose(own["response"], expected.loc[name])
        np.testing.assert_allclose(own["p"], p[name])
        others = expected.drop(name).abs().max()
        size = expected.loc[name].abs()
        np.testing.assert_allclose(own["selectivity"], (size - others) / (size + others))
        assert own["n_patients"].iloc[0] == 12
    again = pair_responses_of(csr_array(changes), attributes, patients, n_permutations=0)
    pd.testing.assert_frame_equal(again.latents, found.latents)


def test_few_patients_or_a_single_attribute_say_nothing_of_selectivity():
    changes = np.abs(np.random.default_rng(0).normal(size=(12, 3)))
    few = pair_responses_of(changes, ["a", "b"] * 6, np.repeat(range(6), 2))
    assert few.latents[["p", "q", "response_low", "selectivity_low"]].isna().all(axis=None)
    assert np.isnan(few.share)
    assert few.attributes[["best_selectivity", "concept_score"]].isna().all(axis=None)
    one = pair_responses_of(changes, ["a"] * 12, range(12))
    assert (one.latents["q"] < 0.05).all()
    assert one.latents["selectivity"].isna().all()
    assert np.isnan(one.share)
    dead = pair_responses_of(np.zeros((4, 3)), ["a", "b"] * 2, range(4))
    assert len(dead.latents) == 0
    assert dead.attributes[["n_pairs", "n_selective"]].to_numpy().tolist() == [[2, 0], [2, 0]]


@pytest.fixture(scope="module")
def pair_table(tmp_path_factory):
    """A table in memory of pairs of phantoms: latent 0 is bright where a clip is, 1 answers to density, 2 is noise."""
    root = tmp_path_factory.mktemp("pairs")
    chosen = ["clip", "density", "exposure"]
    pairs = read_pairs(make_phantom_pairs(root, n_pairs=12, attributes=chosen, image_size=(96, 64)))
    data = VinDrMammo(root, image_size=(96, 64))
    rng = np.random.default_rng(0)
    maps = np.zeros((len(data), 3, 12, 8))
    for row in range(len(data)):
        image = data.gray(row).astype(float)
        cells = image.reshape(12, 8, 8, 8)
        maps[row, 0] = np.maximum(cells.max(axis=(1, 3)) - np.median(cells, axis=(1, 3)) - 60, 0)
        maps[row, 1] = image.mean()
        maps[row, 2] = rng.random((12, 8))
    images = data.images

    def map_latents(_row):
        return np.arange(3)

    def of(latents, row):
        return maps[row][np.asarray(latents)]

    return (
        SimpleNamespace(
            images=images,
            folder="TABLE",
            max_latents=csr_array(maps.max(axis=(2, 3))),
            mean_latents=csr_array(maps.mean(axis=(2, 3))),
            map_latents=map_latents,
            maps=of,
            grid=(12, 8),
            image_size=(96, 64),
            d_sae=3,
        ),
        pairs,
    )


def test_pairs_of_phantoms_tell_what_latents_of_a_table_answer_to_and_where(pair_table):
    table, pairs = pair_table
    found = pair_responses(table, pairs, statistic="mean", n_permutations=2)
    assert found.attributes.set_index("attribute")["best_latent"][["clip", "density"]].tolist() == [0, 1]
    rows = found.latents.set_index(["attribute", "latent"])
    clip = rows.loc[("clip", 0)]
    assert clip["selective"]
    assert clip["inside"] > 0.95 > 0.2 > clip["inside_chance"]
    assert clip["n_inside"] == clip["n_pairs"] == 12
    noise = rows.loc[("clip", 2)]
    assert noise["inside"] == pytest.approx(noise["inside_chance"], abs=0.05)
    assert noise["inside_low"] < noise["inside"] < noise["inside_high"]
    assert rows.loc[("density", 1), "inside":"inside_chance"].isna().all()  # the change has no place
    both = pair_responses(table, pairs, statistic="mean", untrained=table, n_permutations=2)
    assert both.share_untrained == both.share > 0
    assert both.attributes["concept_score"].tolist() == [0, 0, 0]  # no better than what stands beside
    assert both.attributes["concept_score_untrained"].isna().all()  # of which there is no other
    only = pair_responses(table, pairs, statistic="mean", map_latents=[0], n_permutations=0).latents
    assert set(only.loc[only["inside"].notna(), "latent"]) == {0}


def test_pairs_across_patients_count_as_one_patient(pair_table):
    table, pairs = pair_table
    ids = table.images.groupby("patient_id")["image_id"].first().tolist()
    own = pd.DataFrame({"image_id_a": ids[:-1], "image_id_b": ids[1:], "attribute": "chain"})
    assert pair_responses(table, own, n_permutations=0).latents["n_patients"].max() == 1
    halves = pd.DataFrame({"image_id_a": ids[::2], "image_id_b": ids[1::2], "attribute": "x"})
    assert pair_responses(table, halves, n_permutations=0).latents["n_patients"].max() == len(ids) // 2


def test_pairs_that_the_table_cannot_answer_are_refused(pair_table):
    table, pairs = pair_table
    for wrong, words in (
        (pairs.assign(image_id_b="lost.png"), "no image 'lost.png'"),
        (pairs.assign(image_id_b=pairs["image_id_a"]), "twice"),
        (pairs.drop(columns="attribute"), "no attribute"),
        (pairs.iloc[:0], "no pair"),
        (pairs.assign(xmin=0, ymin=-9, xmax=9, ymax=0), r"\(xmin 0, ymin -9, xmax 9, ymax 0\) lies outside the image"),
    ):
        with pytest.raises(InputError, match=words):
            pair_responses(table, wrong)
    for arguments, words in (
        ((np.ones(3), ["a"] * 3, range(3)), "changes have shape"),
        ((np.ones((3, 2)), ["a"] * 2, range(3)), "attributes have shape"),
        ((np.ones((3, 2)), [None] * 3, range(3)), "attributes hold a missing value"),
        ((np.full((3, 2), np.nan), ["a"] * 3, range(3)), "not finite"),
    ):
        with pytest.raises(InputError, match=words):
            pair_responses_of(*arguments)


def test_the_command_draws_pairs_and_scores_a_table_of_them(tmp_path):
    drawn = ["--attribute", "clip", "--attribute", "density", "--image-size", "96", "64"]
    run = CliRunner().invoke
    made = run(app, ["pairs", "--make", str(tmp_path / "p"), "-n", "10", *drawn])
    assert made.exit_code == 0, made.output
    pairs = read_pairs(tmp_path / "p" / "pairs.csv")
    assert len(pairs) == 20
    images = VinDrMammo(tmp_path / "p", image_size=(96, 64))
    with HookedVisionModel(new_classifier("test_efficientnet", 0, seed=0), ["bn2"]) as model:
        sae = random_sae(model.hook_shapes["bn2.hook_out"][-1])
        table = encode_latents(model, sae, images, tmp_path / "t", heads={}, map_latents=[0, 1], map_images="all")
    assert table.map_latents(0).tolist() == [0, 1]  # of images without a box too
    files = [str(tmp_path / "t"), str(tmp_path / "p" / "pairs.csv")]
    scored = run(app, ["pairs", *files, "--untrained", str(tmp_path / "t"), "-o", str(tmp_path / "out")])
    assert scored.exit_code == 0, scored.output
    assert "attributes with a selective latent:" in scored.output
    assert "untrained SAEs:" in scored.output
    written = pd.read_csv(tmp_path / "out" / "pair_responses.csv")
    assert written["attribute"].tolist() == ["clip", "density"]
    expected = pair_responses(table, pairs, untrained=table)
    np.testing.assert_allclose(written["concept_score"], expected.attributes["concept_score"])
    one, embeddings = tmp_path / "one.csv", tmp_path / "embeddings.parquet"
    pairs.iloc[:1].to_csv(one, index=False)
    pairs.to_parquet(embeddings)
    for arguments, words in (
        (["pairs"], "--make"),
        (["pairs", files[0]], "CSV of pairs"),
        (["pairs", files[0], str(tmp_path / "lost.csv")], "lost.csv does not exist"),
        (["pairs", files[0], str(one)], "pairs of 1 patients for clip"),
        (["pairs", files[0], str(embeddings)], "not a CSV"),
        (["pairs", str(embeddings), files[1]], "is a file; name a latents table"),
        (["pairs", *files, "--min-patients", "11"], "an interval takes 11"),
    ):
        refused = run(app, arguments)
        assert refused.exit_code == 2
        assert words in refused.output
