"""What images of one patient agree on: the views of a breast, and the two breasts."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers_study import mammosae
from scipy import sparse
from scipy.stats import spearmanr

from mammosae_plugin.analysis import view_agreement
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import LatentTable

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
    assert "views: 0 patients have such pairs, fewer than 10" in found["reason"][0]


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
    refused = mammosae("views", encoded.folder, "--views", "ML", "XCC")
    assert refused.returncode == 2 and "it has the views CC, MLO" in refused.stderr and refused.stderr.count("\n") == 1
