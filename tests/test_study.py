"""A study as a whole: killed and run again, and at the real size."""

import random
import resource
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from helpers_adapters import calibrated_classifier, fixture_checkpoint, fixture_downstream
from helpers_study import mammosae, results_of, small_phantoms, study_settings, write_study

from mammosae_plugin.adapters import save_classifier
from mammosae_plugin.config import load_config
from mammosae_plugin.study import Study, claims, run_study


def _training_settings(folder, phantom_root):
    """A study in which everything is trained, so that every kind of step can be hit."""
    settings = study_settings(folder, phantom_root)
    save_classifier(calibrated_classifier(0), folder / "encoder.safetensors", metadata={})
    settings["models"] = [
        {"name": "pretrained", "encoder": "encoder.safetensors", "train": {"kind": "pretrained"}},
        {"name": "finetuned", "encoder": "encoder.safetensors", "train": {"epochs": 2, "lr": 1e-3, "batch_size": 8}},
    ]
    training = {"d_sae": 64, "epochs": 30, "batch_size": 32, "checkpoint_every": 3}
    settings["sae"] = {"train": {"model": "finetuned", "concept": "Mass", "fraction": 1.0, "training": training}}
    return settings


@pytest.mark.slow
def test_a_study_killed_at_five_random_moments_ends_like_an_undisturbed_one(tmp_path, phantom_root):
    undisturbed = write_study(tmp_path / "whole", _training_settings(tmp_path / "whole", phantom_root))
    start = time.monotonic()
    result = mammosae("study", "--config", undisturbed)
    duration = time.monotonic() - start
    assert result.returncode == 0, result.stderr

    disturbed = write_study(tmp_path / "broken", _training_settings(tmp_path / "broken", phantom_root))
    moments = random.Random(0)
    for _ in range(5):
        command = [sys.executable, "-m", "mammosae_plugin", "study", "--config", str(disturbed)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=moments.uniform(0.15, 0.9) * duration)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    result = mammosae("study", "--config", disturbed)
    assert result.returncode == 0, result.stderr
    assert results_of(tmp_path / "broken" / "out") == results_of(tmp_path / "whole" / "out")
    whole, broken = (tmp_path / name / "out" / "results" for name in ("whole", "broken"))
    for path in whole.rglob("*"):
        if path.is_file():
            assert (broken / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name


def test_models_with_the_same_encoder_share_one_pass(tmp_path, phantom_root):
    study = Study(load_config(write_study(tmp_path, study_settings(tmp_path, phantom_root))))
    tables = study.tables
    folders = {pair.key: table.folder for pair, table in tables.items()}
    assert folders["pretrained/Mass"] == folders["pretrained/Suspicious_Calcification"]
    assert folders["finetuned/Mass"] != folders["finetuned/Suspicious_Calcification"]
    assert tables[study.pairs[0]].heads == ("Mass", "Suspicious_Calcification")


def test_changed_settings_make_new_results_beside_the_old(tmp_path, phantom_root):
    file = write_study(tmp_path, study_settings(tmp_path, phantom_root))
    first = Study(load_config(file)).reconstruction
    second = Study(load_config(file, ["data.unit=finding_row"])).reconstruction
    assert first["n_rows"][0] < second["n_rows"][0]
    pd.testing.assert_frame_equal(first, Study(load_config(file)).reconstruction)


def test_an_image_that_was_repaired_leaves_quarantine(tmp_path):
    root = small_phantoms(tmp_path / "data")
    image = next((root / "images_png").rglob("*.png"))
    content = image.read_bytes()
    image.write_bytes(content[:100])
    file = write_study(tmp_path, study_settings(tmp_path, root))
    overrides = ["data.max_bad_share=0.1"]
    assert len(Study(load_config(file, overrides)).quarantine) == 1
    image.write_bytes(content)
    assert len(Study(load_config(file, overrides)).quarantine) == 0


def test_concepts_can_be_taken_away_between_runs(tmp_path, phantom_root):
    settings = study_settings(tmp_path, phantom_root)
    file = write_study(tmp_path, settings)
    Study(load_config(file)).encode()
    Study(load_config(file, ["concepts=[Mass]"])).encode()


def test_an_image_of_other_pixels_and_the_same_size_makes_new_results(tmp_path):
    root = small_phantoms(tmp_path / "data")
    image = next((root / "images_png").rglob("*.png"))
    file = write_study(tmp_path, study_settings(tmp_path, root))
    before = Study(load_config(file)).content
    content = bytearray(image.read_bytes())
    content[-20] ^= 1
    image.write_bytes(content)
    assert Study(load_config(file)).content != before


def test_images_of_patients_are_drawn_on_request_only_and_removed_without_it(tmp_path, phantom_root):
    settings = study_settings(tmp_path, phantom_root)
    settings["data"]["phantom"] = False
    file = write_study(tmp_path, settings)
    run_study(load_config(file, ["report.include_images=true"]))
    figures = tmp_path / "out" / "results" / "figures"
    assert len(list(figures.glob("figure_3_*"))) == 4
    run_study(load_config(file))
    assert not list(figures.glob("figure_3_*"))
    page = (tmp_path / "out" / "results" / "report.html").read_text()
    assert "phantom_000" not in page + (tmp_path / "out" / "results" / "results.json").read_text()


def test_the_best_latents_are_always_among_the_groups(tmp_path, phantom_root):
    settings = study_settings(tmp_path, phantom_root)
    settings["analysis"] |= {"ks": [1, 5], "error_term": False, "top": 7}
    study = Study(load_config(write_study(tmp_path, settings)))
    assert sorted(study.interventions["k"].unique()) == [1, 5, 7]
    assert not study.interventions["error_term"].any()


def test_a_graded_concept_runs_through_the_whole_study(tmp_path):
    root = small_phantoms(tmp_path / "data", n_patients=40)
    save_classifier(calibrated_classifier(0), tmp_path / "encoder.safetensors", metadata={})
    settings = study_settings(tmp_path, root)
    settings["concepts"] = ["density"]
    settings["models"] = [{"name": "probe", "encoder": "encoder.safetensors", "train": {"kind": "pretrained"}}]
    config = load_config(write_study(tmp_path, settings))
    report = run_study(config)
    found = results_of(report.parent.parent)
    assert found["localization"] == []
    assert len({row["class"] for row in found["rankings"]}) == 4
    table = next(iter(Study(config).tables.values()))
    rows = table.rows("density", split="test")
    right = table.logits("density")[rows.image_rows].argmax(1) == rows.labels
    assert found["reconstruction"][0]["accuracy"] == pytest.approx(right.mean())


def test_claims_are_what_their_names_say():
    def sweep(mode, auroc, random):
        return {
            "model": "m", "concept": "Mass", "mode": mode, "k": 10, "error_term": False, "auroc": auroc,
            "random_auroc_mean": random,
        }  # fmt: skip

    results = {
        "reconstruction": [
            {"model": "m", "concept": "Mass", "variant": "without_sae", "auroc": 0.9},
            {"model": "m", "concept": "Mass", "variant": "with_sae", "auroc": 0.87},
        ],
        "interventions": [sweep("activate", 0.89, 0.6), sweep("deactivate", 0.7, 0.85)],
        "localization": [
            {"model": "m", "concept": "Mass", "average_precision": 0.2},
            {"model": "m", "concept": "Mass", "average_precision": 0.3},
        ],
    }
    found = [(round(check["value"], 6), check["passed"]) for check in claims(results, top=10)]
    assert found == [(0.03, False), (0.975, True), (0.15, True), (0.3, True)]


@pytest.mark.slow
def test_the_real_path_at_the_real_size_in_four_gigabytes(tmp_path):
    """24 phantoms of 1520 x 912, a full B5 in the originals' file formats, an SAE of 2048 x 16384, one command."""
    small_phantoms(tmp_path / "data", n_patients=12, image_size=(1520, 912), seed=2)
    torch.save(fixture_checkpoint("b5"), tmp_path / "b5.tar")
    torch.save(fixture_downstream("b5"), tmp_path / "mass.pth")
    generator = torch.Generator().manual_seed(0)
    encoder = torch.randn(1, 16384, 2048, generator=generator) / 2048**0.5
    bias = torch.zeros(1, 2048)
    sae = {
        "tied_bias": bias,
        "pre_encoder_bias._bias_reference": bias,
        "post_decoder_bias._bias_reference": bias,
        "encoder._weight": encoder,
        "encoder._bias": torch.zeros(1, 16384),
        "decoder._weight": encoder.transpose(1, 2).contiguous(),
    }
    torch.save(sae, tmp_path / "sparse_autoencoder_final.pt")
    settings = {
        "output": "out",
        "data": {"root": "data", "phantom": True},
        "concepts": ["Mass"],
        "models": [{"name": "finetuned", "encoder": "b5.tar", "classifiers": {"Mass": "mass.pth"}}],
        "sae": {"path": "sparse_autoencoder_final.pt"},
        "analysis": {"n_bootstrap": 100},
        "report": {"n_images": 1},
    }
    del sae, encoder
    file = write_study(tmp_path, settings)
    result = mammosae("study", "--config", file, timeout=1200)
    assert result.returncode == 0, result.stderr
    found = results_of(tmp_path / "out")
    assert found["models"][0]["architecture"] == "tf_efficientnet_b5"
    assert found["models"][0]["grid"] == [48, 29]
    assert found["sae"]["d_sae"] == 16384
    gigabytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    assert gigabytes < 4, f"a child process of the tests took {gigabytes:.1f} GiB"
