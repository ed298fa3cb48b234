"""Counterfactual pairs as a part of a study: their tables, the block in the results, the report, and refusals."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from helpers_results import read_report
from helpers_study import mammosae, random_sae, save_random_sae, study_settings, write_study
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, TopKSAE, TopKSAEConfig

from mammosae_plugin.analysis import beside_untrained, pair_responses, pair_responses_of
from mammosae_plugin.config import load_config
from mammosae_plugin.datasets import make_phantom_pairs, read_pairs
from mammosae_plugin.errors import InputError
from mammosae_plugin.findings.study_folder import StudyFolder
from mammosae_plugin.findings.tables import findings_tables
from mammosae_plugin.report.pairs import pairs_section
from mammosae_plugin.schema.pairs import PAIRS
from mammosae_plugin.study import Study
from mammosae_plugin.training.controls import measured_l0, untrained_like

SIZE = (96, 64)


@pytest.fixture(scope="module")
def pair_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("pairs")
    make_phantom_pairs(root, n_pairs=12, attributes=["Mass", "contrast", "blur"], image_size=SIZE)
    return root


def settings_with_pairs(folder, phantom_root, pair_root, **pairs):
    settings = study_settings(folder, phantom_root)
    settings["concepts"] = ["Mass"]
    settings["models"] = [{"name": "one", "classifiers": {"Mass": settings["models"][0]["classifiers"]["Mass"]}}]
    settings |= {"layers": ["layer_6"], "sae": {"path": str(folder / "sae-6")}}
    save_random_sae(folder / "sae-6", 56, hook_name="blocks.4.1.hook_out")
    data = {"root": str(pair_root), "image_size": list(SIZE), "phantom": True}
    few = {"n_bootstrap": 50, "n_permutations": 50}
    settings["analysis"] |= {
        "ks": [0, 1], "top": 2, "error_term": False, "lesions": None, "views": None, "evidence": {**few, "masked": 0},
        "inner_controls": 1,
        "pairs": {"data": data, "n_bootstrap": 100, "n_permutations": 2, "statistic": "mean", **pairs},
    }  # fmt: skip
    return settings


@pytest.fixture(scope="module")
def study_of_pairs(tmp_path_factory, phantom_root, pair_root):
    """A finished study with pairs, its images of the pairs named by a path that counts from the configuration."""
    folder = tmp_path_factory.mktemp("study")
    shutil.copytree(pair_root, folder / "own")
    file = write_study(folder, settings_with_pairs(folder, phantom_root, "own"))
    study = Study(load_config(file))
    study.run()
    return study, file


def rows_of(study):
    return json.loads((study.results_folder / "results.json").read_text())["pairs"]


def test_a_study_says_of_its_pairs_what_their_tables_say(study_of_pairs):
    study, _ = study_of_pairs
    rows = rows_of(study)
    assert [row["attribute"] for row in rows] == ["Mass", "contrast", "blur"]
    assert set(rows[0]) == {column.name for column in PAIRS}
    (layer,), (group,) = study.layers, study.encoder_groups
    pairs = read_pairs(study.config.analysis.pairs.pair_file)
    table, untrained = layer._pair_table(group, layer.sae), layer._untrained_tables(group)
    found = pair_responses(table, pairs, statistic="mean", untrained=untrained, n_bootstrap=100, n_permutations=2)
    assert found.attributes["n_responding"].max() > 0
    for row, expected in zip(rows, found.attributes.to_dict("records"), strict=True):
        for name in ("n_patients", "n_responding", "n_selective", "best_selectivity", "concept_score_untrained"):
            assert row[name] == pytest.approx(expected[name]), name
        if row["best_latent"] is None:
            assert pd.isna(expected["best_latent"])
            continue
        own = found.latents.query("attribute == @row['attribute'] and latent == @row['best_latent']").iloc[0]
        for name in ("response", "response_low", "q", "sign", "selectivity", "selectivity_high"):
            assert row[name] == pytest.approx(own[name]), name
    with_place = [row for row in rows if row["inside"] is not None]
    assert {row["attribute"] for row in with_place} <= {"Mass"}  # which alone has a place
    assert all(0 <= row["inside"] <= 1 and row["n_inside"] == 12 for row in with_place)
    assert rows[0]["share_untrained"] == pytest.approx(found.share_untrained)
    one, other = layer.sae, layer._untrained(group)[0]
    assert (one.cfg.architecture(), one.cfg.d_sae) == (other.cfg.architecture(), other.cfg.d_sae)
    assert (table.mean_latents != untrained[0].mean_latents).nnz > 0


def test_the_report_and_the_command_tell_them_and_nothing_of_them_is_published(study_of_pairs):
    study, file = study_of_pairs
    page = read_report(study.results_folder)
    assert 'id="pairs"' in page and "of 3 attributes have a selective latent" in page and "untrained SAEs" in page
    assert "drawn phantoms" in page and "36 pairs, 12 patients for each" in page
    own = page.split('<section id="pairs">')[1].split("</section>")[0]
    numbers = pd.read_csv(study.results_folder / "tables" / "pairs.csv")
    assert len(numbers) == 3
    whole = [f">{int(value)}<" for value in (*numbers["n_selective"], *numbers["best_latent"].dropna())]
    assert all(value in own for value in whole)  # not as 62.0
    assert "what latents answer to:" in study.summary("evidence")
    tables = findings_tables(StudyFolder(study.output))
    assert "pairs" not in tables
    (published,) = tables["study"].to_pylist()
    assert json.loads(published["config"])["analysis"]["pairs"] is None
    shown = json.loads((study.results_folder / "results.json").read_text())["config"]["analysis"]["pairs"]
    assert (shown["data"]["root"], str(file.parent) in json.dumps(shown)) == ("own", False)


def test_nothing_is_made_again_but_what_was_cut_off_and_edited_pairs_renew_the_result(
    study_of_pairs, tmp_path, monkeypatch
):
    study, file = study_of_pairs
    before = {path: path.stat().st_mtime_ns for path in _files(study.work)}
    with monkeypatch.context() as patch:
        for module in ("layer_pairs", "layer_tables"):
            patch.setattr(f"mammosae_plugin.study.{module}.encode_latents", None)  # no table is looked at again
        Study(load_config(file)).run("evidence")
    assert {path: path.stat().st_mtime_ns for path in _files(study.work)} == before
    # Killed in a table, before its analysis
    shutil.copytree(file.parent, copy := tmp_path / "copy")
    settings = copy / "study.yaml"
    settings.write_text(settings.read_text().replace(str(file.parent), str(copy)))
    for path in [*(copy / "out/work/pairs").glob("one-*/table.json"), *(copy / "out/work/analyses").glob("pairs-*")]:
        path.unlink()
    again = Study(load_config(settings))
    again.run("evidence")
    pd.testing.assert_frame_equal(again.layers[0].answers, study.layers[0].answers)
    pair_file = copy / "own" / "pairs.csv"
    kept = pd.read_csv(pair_file, dtype=str, keep_default_na=False)
    kept[kept["attribute"] != "blur"].to_csv(pair_file, index=False)
    edited = Study(load_config(settings))
    edited.run("evidence")
    assert edited.layers[0].answers["attribute"].tolist() == ["Mass", "contrast"]


def _files(folder):
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def _identical(root):
    ids = pd.read_csv(root / "pairs.csv").iloc[0]
    one, other = (next(root.rglob(ids[side])) for side in ("image_id_a", "image_id_b"))
    shutil.copy(one, other)


def _without_image(root):
    next(root.rglob(pd.read_csv(root / "pairs.csv")["image_id_b"][0])).unlink()


def _edited(change):
    def edit(root):
        file = root / "pairs.csv"
        change(pd.read_csv(file, dtype=str, keep_default_na=False)).to_csv(file, index=False)

    return edit


REFUSED = {
    "no_file": (lambda root: (root / "pairs.csv").unlink(), "pairs.csv does not exist"),
    "no_column": (_edited(lambda table: table.drop(columns="image_id_b")), "the column image_id_b is missing"),
    "no_attribute": (_edited(lambda table: table.assign(attribute="")), "line 2 has no attribute"),
    "no_row": (_edited(lambda table: table.iloc[:0]), "has no rows"),
    "other_images": (_edited(lambda table: table.assign(image_id_b="lost.png")), "names the image 'lost.png'"),
    "no_image": (_without_image, "1 image file is missing"),
    "twice": (_edited(lambda table: table.assign(image_id_b=table["image_id_a"])), "are the same image"),
    "far_box": (
        _edited(lambda table: table.assign(xmin=900, ymin=0, xmax=1000, ymax=9)),
        "outside the image of 96 x 64",
    ),
    "identical": (_identical, "are the same image (1 such pairs)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_pairs_that_cannot_be_are_refused_before_anything_is_computed(case, phantom_root, pair_root, tmp_path):
    break_it, words = REFUSED[case]
    shutil.copytree(pair_root, tmp_path / "own")
    break_it(tmp_path / "own")
    done = mammosae("classify", write_study(tmp_path, settings_with_pairs(tmp_path, phantom_root, "own")))
    assert done.returncode == 2, done.stdout
    assert words in done.stderr and done.stderr.count("\n") == 1


def test_settings_of_pairs_that_do_not_fit_the_study_are_refused(phantom_root, pair_root, tmp_path):
    settings = settings_with_pairs(tmp_path, phantom_root, pair_root)
    for override, words in (
        ("analysis.pairs.data.image_size=[128, 96]", "image_size is 128 x 96, but the study's images are 96 x 64"),
        ("analysis.pairs.statistic=sum", "analysis.pairs.statistic: must be one of 'max', 'mean'"),
        ("analysis.pairs.data.kind=volumes", "pairs"),
        ("analysis.pairs={}", "analysis.pairs.data is missing"),
    ):
        with pytest.raises(InputError, match=words.replace("[", r"\[")):
            load_config(write_study(tmp_path, settings), [override])


def test_the_report_says_where_pairs_are_too_few_or_differ_in_one_thing():
    results = {"config": {}}
    row = {column.name: None for column in PAIRS} | {"encoder": "one", "n_responding": 0, "n_selective": 0}
    few = [{**row, "attribute": name, "n_pairs": 4, "n_patients": 4} for name in ("clip", "Mass")]
    told = pairs_section({**results, "pairs": few})
    assert told["few"].startswith("Nothing can be told of these pairs: an interval and a p-value take 10 patients")
    assert told["few"].endswith("there are of clip 4, Mass 4.")
    assert told["said"] == ["one: 8 pairs, by which no attribute is scored."]
    assert "in one thing alone (clip)" in pairs_section({**results, "pairs": few[:1]})["few"]
    assert pairs_section(results) is None


def planted_rows(strength):
    """Rows (images, positions, 64), pair by pair, a direction planted at some positions of the second; and the rest."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(4, 64))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    mixing = rng.normal(size=(64, 64)) / 8
    rows, attributes, patients = [], [], []
    for patient in range(12):
        first = np.maximum(rng.normal(size=(30, 64)), 0) @ mixing
        for number, direction in enumerate(directions):
            second = first.copy()
            second[rng.choice(30, 4, replace=False)] += strength * direction
            rows += [first, second]
            attributes.append(f"thing {number}")
            patients.append(patient)
    return torch.tensor(np.stack(rows), dtype=torch.float32), attributes, patients, torch.tensor(directions.T).float()


@pytest.mark.parametrize("strength", [4, 6])  # of rows whose length is about 6
def test_an_untrained_sae_scores_about_0_where_planted_latents_score_1(strength):
    rows, attributes, patients, directions = planted_rows(strength)
    flat = rows.reshape(-1, 64)
    planted = JumpReLUSAE(JumpReLUSAEConfig(d_in=64, d_sae=128, apply_b_dec_to_input=False))
    with torch.no_grad():
        for weights in (planted.W_enc, planted.b_enc, planted.W_dec, planted.b_dec):
            weights.zero_()
        planted.W_enc[:, :4] = directions
        planted.b_enc[:4] = -flat.mean(0) @ directions
        planted.threshold.fill_(0.6 * strength)

    def found(sae):
        with torch.no_grad():
            codes = torch.stack([sae.encode(image).max(0).values for image in rows]).numpy()
        return pair_responses_of(codes[1::2] - codes[::2], attributes, patients, n_bootstrap=200, n_permutations=4)

    shape = TopKSAE(TopKSAEConfig(d_in=64, d_sae=128, k=6))
    untrained = [found(untrained_like(shape, flat, seed=seed)) for seed in range(3)]
    scored = beside_untrained(found(planted), untrained).attributes
    by_mixing = np.mean([one.attributes["concept_score"].mean() for one in untrained])
    if strength == 4:
        assert scored["concept_score"].min() > 0.95
        assert scored["concept_score_untrained"].max() < 0.05
    else:  # so strong that some random latent finds it too, which mixtures of latents do not tell
        assert by_mixing > 0.6 > scored["best_selectivity_mixed"].max()
        assert scored["concept_score_untrained"].mean() < by_mixing - 0.3
    assert (scored["concept_score"] > scored["concept_score_untrained"] + 0.3).all()


@pytest.mark.parametrize("architecture", ["standard", "jumprelu", "topk"])
def test_an_untrained_sae_has_the_shape_and_the_l0_of_the_other(architecture):
    rows = torch.randn(500, 24)
    if architecture == "standard":
        sae = random_sae(24, 40)
    elif architecture == "topk":
        sae = TopKSAE(TopKSAEConfig(d_in=24, d_sae=40, k=5))
    else:
        sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=24, d_sae=40))
        torch.nn.init.constant_(sae.threshold, 0.6)
    one, other = (untrained_like(sae, rows, seed=seed) for seed in (0, 1))
    assert one.cfg.architecture() == sae.cfg.architecture()
    assert (one.cfg.d_in, one.cfg.d_sae) == (24, 40)
    assert measured_l0(one, rows) == pytest.approx(measured_l0(sae, rows), abs=0.05)
    assert not torch.equal(one.W_enc, other.W_enc)
