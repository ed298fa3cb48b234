"""What images of one patient agree on: the views of a breast, and the two breasts."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers_results import synthetic_results, whole_report
from helpers_study import mammosae
from scipy import sparse
from scipy.stats import spearmanr

from mammosae_plugin.analysis import view_agreement
from mammosae_plugin.config.maps import AnalysisConfig, ViewSettings
from mammosae_plugin.errors import InputError
from mammosae_plugin.findings.layers import read_layers, write_layers
from mammosae_plugin.findings.told_evidence import told_views
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.provenance import plain
from mammosae_plugin.schema.findings import LAYERS, VIEWS
from mammosae_plugin.study import Study
from mammosae_plugin.study.layer import LayerStudy

BREAST, PATIENT, NOISE, SIDE, RARE, ALWAYS = range(6)
N_PATIENTS = 60


def table_of(values: np.ndarray, images: pd.DataFrame) -> Any:
    codes = sparse.csr_array(values.astype(np.float32))
    return SimpleNamespace(
        images=images, max_latents=codes, mean_latents=codes, d_sae=values.shape[1], folder=Path("TABLE")
    )


@pytest.fixture(scope="module")
def planted() -> Any:
    """Latents that read a breast, a patient, nothing, a side, something rare, and the same in all; then 40 of noise."""
    rng = np.random.default_rng(0)
    images = pd.DataFrame(
        [
            {"image_id": f"{patient}{side}{view}", "patient_id": f"p{patient}", "laterality": side, "view": view}
            for patient in range(N_PATIENTS)
            for side in "LR"
            for view in ("CC", "MLO")
        ]
    ).assign(split="test")
    noise = rng.random((len(images), 46))
    values = np.where(noise < 0.3, 0, noise)
    values[:, BREAST] = np.repeat(rng.random(2 * N_PATIENTS), 2) + 0.1 * noise[:, BREAST]
    values[:, PATIENT] = np.repeat(rng.random(N_PATIENTS), 4) + 0.1 * noise[:, PATIENT]
    values[:, SIDE] = (images["laterality"] == "R") + 0.01 * noise[:, SIDE]
    values[:, RARE] = np.arange(len(images)) < 12
    values[:, ALWAYS] = 1
    return table_of(values, images)


@pytest.fixture(scope="module")
def found(planted: Any) -> pd.DataFrame:
    return view_agreement(planted, n_draws=1000, n_bootstrap=200).set_index("latent")


def test_what_a_latent_reads_shows_in_where_images_agree(found: pd.DataFrame) -> None:
    breast, patient, side = found.loc[BREAST], found.loc[PATIENT], found.loc[SIDE]
    assert breast["views"] > 0.9 and breast["views_low"] > 0.85 and breast["views_q"] < 0.05
    assert abs(breast["sides"]) < 0.3 and breast["own_breast_low"] > 0.5
    assert min(patient["views"], patient["sides"], patient["crossed"]) > 0.9
    assert patient["own_breast_low"] < 0 < patient["own_breast_high"]
    # A side's latent is alike in both views, and as much so in other patients.
    assert side["views"] > 0.6 and side["views_chance"] > 0.6 and side["views_p"] > 0.05


def test_noise_agrees_no_more_than_other_patients(found: pd.DataFrame) -> None:
    noise = found.drop(index=[BREAST, PATIENT, SIDE, RARE, ALWAYS])
    assert len(noise) == 41 and (noise[["views_q", "sides_q", "crossed_q"]] < 0.05).to_numpy().mean() < 0.02
    assert abs(noise["views_chance"]).max() < 0.05
    covered = (noise["views_low"] <= 0) & (noise["views_high"] >= 0)
    assert covered.mean() > 0.8


def test_what_cannot_be_scored_says_why(found: pd.DataFrame) -> None:
    assert np.isnan(found.loc[RARE, "views"])
    assert "views: fires in pairs of 3 patients, fewer than 10" in found.loc[RARE, "reason"]
    assert found.loc[ALWAYS, "reason"].startswith("views: the same in all images of a part")
    assert found.loc[BREAST, "reason"] == ""


def test_agreement_is_spearmans_correlation(planted: Any, found: pd.DataFrame) -> None:
    images, values = planted.images, planted.max_latents.toarray()
    cells = {
        (side, view): np.flatnonzero((images["laterality"] == side) & (images["view"] == view))
        for side in "LR"
        for view in ("CC", "MLO")
    }
    pairs = {
        "views": [(("L", "CC"), ("L", "MLO")), (("R", "CC"), ("R", "MLO"))],
        "sides": [(("L", "CC"), ("R", "CC")), (("L", "MLO"), ("R", "MLO"))],
        "crossed": [(("L", "CC"), ("R", "MLO")), (("R", "CC"), ("L", "MLO"))],
    }
    for name, parts in pairs.items():
        rows, others = (np.concatenate([cells[part[at]] for part in parts]) for at in (0, 1))
        for latent in (BREAST, PATIENT, NOISE, 20):
            expected = spearmanr(values[rows, latent], values[others, latent]).statistic
            assert found.loc[latent, name] == pytest.approx(expected, abs=1e-9)
    assert found.loc[BREAST, ["views_pairs", "views_patients", "views_firing"]].tolist() == [120, 60, 60]


def test_several_images_count_as_their_mean_and_exams_are_paired_apart(planted: Any) -> None:
    images, values = planted.images, planted.max_latents.toarray()
    plain = view_agreement(planted, latents=[BREAST, NOISE], n_draws=1, n_bootstrap=0)
    twice = table_of(np.vstack([values * 0.5, values * 1.5]), pd.concat([images, images], ignore_index=True))
    again = view_agreement(twice, latents=[BREAST, NOISE], n_draws=1, n_bootstrap=0)
    np.testing.assert_allclose(again["views"], plain["views"], atol=1e-6)
    # CC of one exam and MLO of another are no pair.
    apart = images.assign(exam_id=np.where(images["view"] == "CC", "first", "second"))
    found = view_agreement(table_of(values, apart), latents=[BREAST], n_draws=1, n_bootstrap=0)
    assert found["views"].isna().all() and found["sides"].notna().all()
    assert "views: 0 patients with such pairs, fewer than 10" in found["reason"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images.drop(columns="view"), "TABLE knows no view of its images.*encode data"),
        (lambda images: images.assign(laterality=None), "knows no laterality of its images"),
        (lambda images: images.assign(view="ML"), r"has the views ML and the sides L, R"),
    ],
)
def test_images_that_cannot_be_paired_are_refused(planted: Any, change: Any, message: str) -> None:
    broken = table_of(planted.max_latents.toarray(), change(planted.images))
    with pytest.raises(InputError, match=message):
        view_agreement(broken)
    with pytest.raises(InputError, match="give the two views"):
        view_agreement(planted, views=["CC"])


def test_the_command_tells_and_writes_what_the_function_gives(encoded: LatentTable, tmp_path: Path) -> None:
    settings = ["--split", "training", "--draws", "50", "--bootstrap", "20", "--min-patients", "3"]
    done = mammosae("views", encoded.folder, *settings, "-o", tmp_path / "found.csv")
    assert done.returncode == 0 and "CC and MLO of one breast: " in done.stdout, done.stderr
    expected = view_agreement(encoded, split="training", n_draws=50, n_bootstrap=20, min_patients=3)
    written = pd.read_csv(tmp_path / "found.csv").drop(columns="reason")
    pd.testing.assert_frame_equal(written, expected.drop(columns="reason"), check_dtype=False)
    (tmp_path / "mine.csv").write_text("mine")
    for name, code in (("found.csv", 0), ("mine.csv", 2)):  # its own of before, and another's
        assert mammosae("views", encoded.folder, *settings, "-o", tmp_path / name).returncode == code
    assert (tmp_path / "mine.csv").read_text() == "mine"
    refused = mammosae("views", encoded.folder, "--views", "ML", "XCC")
    assert refused.returncode == 2 and "it has the views CC, MLO" in refused.stderr and refused.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def results(found: pd.DataFrame) -> dict[str, Any]:
    """What a study finds, with this agreement; the latent of a breast and of a patient are drawn."""
    results = synthetic_results()
    pair = {"model": "pretrained", "concept": "Mass"}
    for row in results["rankings"]:
        if row["class"] == 1:
            row["latents"] = [BREAST, PATIENT, RARE, *range(100, 117)]
    results["config"] = {**results["config"], "analysis": {"views": ViewSettings().model_dump(mode="json")}}
    return {**results, "views": plain([{**pair, **row} for row in found.reset_index().to_dict("records")])}


def test_a_report_tells_the_agreement_of_the_latents_that_are_drawn(results: dict[str, Any], tmp_path: Path) -> None:
    page = whole_report(results, tmp_path)
    section = page.split('<section id="views">')[1].split("</section>")[0]
    breast = results["views"][BREAST]
    assert "CC and MLO of one breast" in section and f"{breast['views']:.3f}" in section
    assert section.count("<tr>") + section.count("<tr ") == 1 + 3, "the heading and three latents"
    told = sum(row["views_q"] is not None and row["views_q"] < 0.05 for row in results["views"])
    assert f"CC and MLO of one breast: {told} of 44 latents (120 pairs of images of {N_PATIENTS} patients)" in section
    assert "fires in pairs of" in section
    few = [{**row, "views": None, "sides": None} for row in results["views"]]
    section = whole_report({**results, "views": few}, tmp_path).split('<section id="views">')[1].split("</section>")[0]
    assert "of no latent can it be told" in section and "<tr" not in section, "no table of nothing"
    without = whole_report({**results, "views": []}, tmp_path)
    assert "was not examined: the data do not say laterality and view" in without
    off = {**results, "views": [], "config": {**results["config"], "analysis": {"views": None}}}
    assert 'id="views"' not in whole_report(off, tmp_path)
    assert 'id="views"' not in whole_report(synthetic_results(), tmp_path), "an earlier version's"


def test_agreement_is_kept_and_what_is_of_a_few_patients_is_not_published(
    results: dict[str, Any], tmp_path: Path
) -> None:
    assert set(results["views"][0]) == {one.name for one in LAYERS["views"]} - {"layer"}
    write_layers({"final": results}, tmp_path)
    assert read_layers(tmp_path)["final"]["views"][BREAST]["views"] == results["views"][BREAST]["views"]
    (tmp_path / "views.parquet").unlink()
    assert "views" not in read_layers(tmp_path)["final"]
    assert not {"views_firing", "reason"} & {one.name for one in VIEWS}
    row = results["views"][BREAST]
    assert told_views(row, min_group=5) == row
    few = told_views({**row, "views_firing": 4}, min_group=5)
    assert few["views"] is few["views_q"] is few["own_breast_low"] is None and few["sides"] == row["sides"]
    assert few["views_pairs"] == row["views_pairs"]
    silent = told_views({**row, "sides_firing": N_PATIENTS - 3}, min_group=5)
    assert silent["sides"] is None and silent["own_breast"] == row["own_breast"]
    small = told_views({**row, "crossed_patients": 3, "crossed_firing": 3}, min_group=5)
    assert small["crossed_pairs"] is small["crossed_patients"] is small["crossed"] is small["own_breast"] is None


def test_a_study_has_the_agreement_of_each_of_its_tables(finished_study: Study) -> None:
    layer = finished_study.primary
    settings = AnalysisConfig().views
    assert settings is not None
    for pair, table in layer.tables.items():
        own = layer.views[(layer.views["model"] == pair.model) & (layer.views["concept"] == pair.concept)]
        expected = view_agreement(
            table,
            **settings.model_dump(),
            min_patients=finished_study.config.analysis.min_patients,
            seed=finished_study.config.seed,
        )
        pd.testing.assert_frame_equal(
            own.drop(columns=["model", "concept"]).reset_index(drop=True), expected, check_dtype=False
        )
    assert "more agreement than by chance" in finished_study.evidence_summary()


def test_a_study_of_images_without_views_leaves_agreement_out_in_one_line(
    finished_study: Study, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    layer = LayerStudy(finished_study, finished_study.primary.name, finished_study.primary.hook_name, is_final=True)
    layer.tables = finished_study.primary.tables
    for table in layer.tables.values():
        monkeypatch.setattr(table, "images", table.images.drop(columns="view", errors="ignore"))
    monkeypatch.setattr(layer, "work", tmp_path)
    with caplog.at_level("WARNING"):
        assert layer.views.empty
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("agreement between views and sides is left out: ") and "knows no view" in said
    config = finished_study.config
    off = config.model_copy(update={"analysis": config.analysis.model_copy(update={"views": None})})
    monkeypatch.setattr(layer, "config", off)
    del layer.views
    assert layer.views.empty and len(caplog.records) == 1
