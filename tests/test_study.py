"""A study as a whole: its layers, and killed and run again."""

import importlib.util
import json
import re
import signal
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers_adapters import calibrated_classifier
from helpers_results import read_report
from helpers_study import (
    LAYER_WIDTHS,
    layered_settings,
    mammosae,
    results_of,
    save_random_sae,
    small_phantoms,
    study_settings,
    write_study,
)
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from mammosae_plugin.adapters import MammoClipClassifier, load_classifier, save_classifier
from mammosae_plugin.adapters.fast_inference import compiled
from mammosae_plugin.adapters.sources import Source
from mammosae_plugin.config import load_config
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents.table import logit_error
from mammosae_plugin.measures.statistics import settled
from mammosae_plugin.own_files import replace_files
from mammosae_plugin.study import Study, layer_report, networks, run_study
from mammosae_plugin.study.claims import claims
from mammosae_plugin.study.steps import STEPS


def _training_settings(folder, phantom_root):
    """A study of two layers in which everything is trained, so that every kind of step can be hit."""
    settings = study_settings(folder, phantom_root)
    save_classifier(calibrated_classifier(0), folder / "encoder.safetensors", metadata={})
    settings["models"] = [
        {"name": "pretrained", "encoder": "encoder.safetensors", "train": {"kind": "pretrained"}},
        {"name": "finetuned", "encoder": "encoder.safetensors", "train": {"epochs": 2, "lr": 1e-3, "batch_size": 8}},
    ]
    settings["layers"], settings["concepts"] = list(LAYER_WIDTHS), ["Mass"]
    settings["analysis"] |= {"top": 3, "inner_controls": 1}
    settings["report"]["n_images"] = 1
    training = {"d_sae": 64, "epochs": 30, "batch_size": 32, "checkpoint_every": 3}
    settings["sae"] = {"train": {"model": "finetuned", "concept": "Mass", "fraction": 1.0, "training": training}}
    return settings


# The command in a process that is killed outright when it has renamed so many files, as every whole file is in the end.
KILLED = """
import os, signal, sys
left = int(sys.argv.pop(1))
def hook(event, arguments):
    global left
    if event == "os.rename" and (left := left - 1) < 0:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
from mammosae_plugin.cli import main
main()
"""


@pytest.mark.slow
def test_a_study_killed_three_times_ends_like_an_undisturbed_one(tmp_path, phantom_root):
    undisturbed = write_study(tmp_path / "whole", _training_settings(tmp_path / "whole", phantom_root))
    assert (done := mammosae("study", "--config", undisturbed)).returncode == 0, done.stderr
    n_files = sum(path.is_file() for path in (tmp_path / "whole" / "out").rglob("*"))

    disturbed = write_study(tmp_path / "broken", _training_settings(tmp_path / "broken", phantom_root))
    for share in (0.1, 0.3, 0.25):
        command = [sys.executable, "-c", KILLED, str(int(share * n_files)), "study", "--config", str(disturbed)]
        killed = subprocess.run(command, capture_output=True, text=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (done := mammosae("study", "--config", disturbed)).returncode == 0, done.stderr
    assert results_of(tmp_path / "broken" / "out") == results_of(tmp_path / "whole" / "out")
    assert (tmp_path / "whole" / "out" / "results" / "layers" / "layer_6" / "report.html").exists()
    whole, broken = (tmp_path / name / "out" / "results" for name in ("whole", "broken"))
    for path in whole.rglob("*"):
        if path.is_file():
            assert (broken / path.relative_to(whole)).read_bytes() == path.read_bytes(), path.name
    _serves_who_asks_afterwards(undisturbed, tmp_path)


def _serves_who_asks_afterwards(file, folder):
    """The SAE that a study trained is read by itself, which takes a network into memory, and closes another's hooks."""
    for model in ("pretrained", "finetuned"):
        told = mammosae("explain", "with_finding:1", "--study", file, "--model", model, "-o", folder / model)
        assert told.returncode == 0, told.stderr
    repaired = folder / "repaired.safetensors"
    done = mammosae("repair", file, "--model", "finetuned", "--layer", "layer_10", "--latents", "3", "-o", repaired)
    assert done.returncode == 0, done.stderr
    assert load_classifier(repaired).n_class == 1


def test_models_with_the_same_encoder_share_one_pass(tmp_path, phantom_root):
    study = Study(load_config(write_study(tmp_path, study_settings(tmp_path, phantom_root))))
    tables = study.primary.tables
    folders = {pair.key: table.folder for pair, table in tables.items()}
    assert folders["pretrained/Mass"] == folders["pretrained/Suspicious_Calcification"]
    assert folders["finetuned/Mass"] != folders["finetuned/Suspicious_Calcification"]
    assert tables[study.pairs[0]].heads == ("Mass", "Suspicious_Calcification")


def test_changed_settings_make_new_results_beside_the_old(tmp_path, phantom_root):
    file = write_study(tmp_path, study_settings(tmp_path, phantom_root))
    first = Study(load_config(file)).primary.reconstruction
    second = Study(load_config(file, ["data.unit=finding_row"])).primary.reconstruction
    assert first["n_rows"][0] < second["n_rows"][0]
    pd.testing.assert_frame_equal(first, Study(load_config(file)).primary.reconstruction)


def test_a_study_that_counts_breasts_says_so_to_the_report(tmp_path, phantom_root):
    settings = study_settings(tmp_path, phantom_root)
    settings["models"], settings["concepts"] = settings["models"][1:], ["Mass"]
    settings["analysis"] |= {"ks": [0, 3], "top": 3, "error_term": False}
    settings["data"]["unit"] = "breast"
    settings["report"]["n_images"] = 1
    file = write_study(tmp_path, settings)
    done = mammosae("study", "--config", file)
    assert done.returncode == 0, done.stderr

    found, table = results_of(tmp_path / "out"), next(iter(Study(load_config(file)).primary.tables.values()))
    images = table.images.assign(logit=table.logits("Mass")[:, 0])
    images = images[images["split"] == "test"]
    images["probability"] = expit(images["logit"])
    breasts = images.groupby(["patient_id", "laterality"]).agg({"Mass": "max", "probability": "mean"})
    row, scores = found["reconstruction"][0], settled(logit(breasts["probability"]), logit_error(table, "Mass"))
    assert row["auroc"] == pytest.approx(roc_auc_score(breasts["Mass"], scores))
    split, counted = found["data"]["splits"][1], found["data"]["concepts"][1]
    assert found["data"]["unit"] == "breast" and split["n_images"] == len(images)
    assert split["n_units"] == counted["n_images"] == row["n_rows"] == len(breasts) < len(images)
    assert counted["n_positive"] == row["n_positive"] == breasts["Mass"].sum()
    text = read_report(tmp_path / "out" / "results")
    assert "Breasts are counted: each has the mean over its images as its score." in text
    assert f"n = {len(breasts)} test breasts of {split['n_patients']} patients, {row['n_positive']} with Mass" in text
    assert "breasts with the finding against breasts without" in text

    refused = mammosae("study", "--config", file, "--set", "data.unit=exam")
    assert refused.returncode == 2
    assert "knows no exam_id of its images, which unit exam needs; use unit patient" in refused.stderr
    assert len(refused.stderr.strip().splitlines()[-1:]) == 1


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


def test_missing_images_count_as_bad_ones_and_come_back_when_they_are_there(tmp_path):
    root = small_phantoms(tmp_path / "data")
    missing, unreadable = sorted((root / "images_png").rglob("*.png"))[:2]
    content = missing.read_bytes()
    missing.unlink()
    unreadable.write_bytes(content[:100])
    file = write_study(tmp_path, study_settings(tmp_path, root))
    overrides = ["data.max_bad_share=0.03"]  # one of 48 images, but not two
    with pytest.raises(InputError, match="2 of 48 images .* are bad"):
        _ = Study(load_config(file, overrides)).dataset
    with pytest.raises(InputError, match="1 image file is missing"):
        _ = Study(load_config(file)).dataset
    study = Study(load_config(file, ["data.max_bad_share=0.05"]))
    assert study.quarantine["reason"].tolist()[0] == "the file does not exist"
    assert len(study.dataset) == 46
    before = study.content
    missing.write_bytes(content)
    study = Study(load_config(file, overrides))
    assert study.quarantine["image_id"].tolist() == [unreadable.name]
    assert study.content != before


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
    settings["concepts"] = ["Mass"]
    settings["analysis"] |= {"error_term": False, "top": 2}
    settings["data"]["phantom"] = False
    file = write_study(tmp_path, settings)
    run_study(load_config(file, ["report.include_images=true"]))
    figures = tmp_path / "out" / "results" / "figures"
    assert len(list(figures.glob("figure_3_*"))) == 2
    run_study(load_config(file))
    assert not list(figures.glob("figure_3_*"))
    page = read_report(tmp_path / "out" / "results")
    assert "phantom_000" not in page + (tmp_path / "out" / "results" / "results.json").read_text()


def test_a_rerun_leaves_what_the_user_put_or_edited_among_the_results(tmp_path, phantom_root, monkeypatch):
    settings = study_settings(tmp_path, phantom_root)
    settings["concepts"] = ["Mass"]
    settings["analysis"] |= {"error_term": False, "top": 2}
    file = write_study(tmp_path, settings)
    results = run_study(load_config(file)).parent
    figure, table = results / "figures" / "figure_2_Mass.png", results / "tables" / "table_1.csv"
    drawn = figure.read_bytes()
    figure.write_bytes(b"with my arrows")
    mine = ["figures/mine.png", "tables/draft/chapter.tex", "report-notes.txt", "layers/layer_6/mine.txt"]
    for name in mine:
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).write_text(name)
    table.unlink()
    table.mkdir()
    (table / "inner.txt").write_text("mine")
    run_study(load_config(file))
    drawings = []
    monkeypatch.setattr(layer_report, "write_figures", lambda *_, **__: drawings.append("drawn"))
    run_study(load_config(file))
    assert drawings == []  # all is there, and would be the same again
    assert [(results / name).read_text() for name in mine] == mine
    assert (results / "figures" / "figure_2_Mass.edited.png").read_bytes() == b"with my arrows"
    assert figure.read_bytes() == drawn
    assert (results / "tables" / "table_1.edited.csv" / "inner.txt").read_text() == "mine"
    assert table.is_file()


def test_the_best_latents_are_always_among_the_groups(tmp_path, phantom_root):
    settings = study_settings(tmp_path, phantom_root)
    settings["analysis"] |= {"ks": [1, 5], "error_term": False, "top": 7}
    study = Study(load_config(write_study(tmp_path, settings)))
    assert sorted(study.primary.interventions["k"].unique()) == [1, 5, 7]
    assert not study.primary.interventions["error_term"].any()


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
    table = next(iter(Study(config).primary.tables.values()))
    rows = table.rows("density", split="test")
    right = table.logits("density")[rows.image_rows].argmax(1) == rows.labels
    assert found["reconstruction"][0]["accuracy"] == pytest.approx(right.mean())
    swept = [row for row in found["interventions"] if row["mode"] == "deactivate" and not row["error_term"]]
    assert {row["concept"] for row in swept} == {"density"} and all(0 <= row["auroc"] <= 1 for row in swept)
    page = (report.parent / "concepts" / "density.html").read_text()
    assert all(f"Latent, {name}<" in page for name in "ABCD")
    assert "explained" not in found  # images of findings alone are taken apart by a study
    row = int(rows.image_rows[0])
    _explains_any_class(tmp_path, str(table.images["image_id"].iloc[row]), table.logits("density")[row])


def _explains_any_class(folder, image_id, logits):
    """`mammosae explain --class` takes the logit of that class apart, by default that of the likeliest."""
    for chosen in (None, 0, 3):
        asked = [] if chosen is None else ["--class", str(chosen)]
        done = mammosae("explain", image_id, "--study", folder / "study.yaml", "-o", folder / "why", *asked)
        assert done.returncode == 0, done.stderr
        output = int(logits.argmax()) if chosen is None else chosen
        said = json.loads((folder / "why" / "explanation.json").read_text())
        assert (said["output"], said["class"], said["n_outputs"]) == (output, "ABCD"[output], 4)
        assert said["logit"] == pytest.approx(logits[output], abs=1e-4)
        assert sum(part["contribution"] for part in said["sum"]) == pytest.approx(said["logit"], abs=1e-4)
        assert f"the logit of density, {'ABCD'[output]}, is" in done.stdout and "probability" not in done.stdout
    none = mammosae("explain", image_id, "--study", folder / "study.yaml", "--class", "4")
    assert none.returncode == 2 and none.stderr.count("\n") == 1
    assert "--class is 4; density has 0 (A), 1 (B), 2 (C), 3 (D)" in none.stderr


# Several layers


@contextmanager
def networks_counted():
    """What is read, by file, and the sizes of what runs through a whole network that is no image of the data."""
    loads, looks = Counter(), Counter()
    load, forward = networks.load_classifier, MammoClipClassifier.forward

    def counting_load(*files, **settings):
        loads[files[-1].stem] += 1
        return load(*files, **settings)

    def counting_forward(self, images):
        range_of_data = 1 / 0.25053555  # of every preprocessed image; what is skipped gets NaN
        ranges = images.flatten(1).amax(1) - images.flatten(1).amin(1)
        if not images.isnan().any() and not torch.allclose(ranges, torch.full_like(ranges, range_of_data), atol=1e-3):
            looks[tuple(images.shape[-2:])] += 1
        return forward(self, images)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "load_classifier", counting_load)
        patch.setattr(MammoClipClassifier, "forward", counting_forward)
        yield loads, looks


@pytest.fixture(scope="module")
def layered_and_counted(tmp_path_factory, phantom_root):
    """A study of an inner layer and the final map, run in this process, its configuration file, and `Counter`s."""
    folder = tmp_path_factory.mktemp("layered")
    settings = layered_settings(folder, phantom_root)
    settings["analysis"] |= {"gradcam": importlib.util.find_spec("captum") is not None, "repair": None}
    file = write_study(folder, settings)
    study = Study(load_config(file))
    with networks_counted() as counted:
        study.run()
    return study, file, counted


@pytest.fixture(scope="module")
def layered(layered_and_counted):
    return layered_and_counted[:2]


def test_a_network_is_read_once_per_step_and_looked_at_once_for_all_layers(layered_and_counted):
    _, file, (loads, looks) = layered_and_counted
    once = {"pretrained-Mass": 1, "pretrained-Suspicious_Calcification": 1}
    at_once = {(106, 106): 1, (64, 96): 1, (64, 64): 1}  # for the hook points, for a second size, for what is behind
    assert loads == once
    assert looks == at_once | {(96, 64): 1}  # of the data's size: what is behind, for tables and interventions
    for step in STEPS:  # each in a run of its own, as by its command
        with networks_counted() as (loads, looks):
            Study(load_config(file))._run(step)
        assert set(loads.values()) <= {1}, step
        assert set(looks.values()) <= {1}, step


def layer_results(study, name):
    return json.loads(
        (study.report_folder(next(x for x in study.layers if x.name == name)) / "results.json").read_text()
    )


def test_every_layer_has_a_whole_report_and_leads_to_the_others(layered):
    study, _ = layered
    assert study.primary.name == "layer_10"
    inner = study.results_folder / "layers" / "layer_6"
    names = {path.name for path in (inner / "figures").iterdir()}
    assert {"layers.png", "figure_2_Mass.png", "figure_3_pretrained_Mass.png", "figure_4_pretrained_Mass.png"} <= names
    of_all_layers = {"layers", "findings"}
    at_the_top = {path.name for path in study.results_folder.iterdir()}
    assert {path.name for path in inner.iterdir()} == at_the_top - of_all_layers and of_all_layers < at_the_top
    for page, link in ((study.results_folder / "report.html", "layers/layer_6/report.html"),
                       (inner / "report.html", "../../report.html")):  # fmt: skip
        assert f'href="{link}"' in page.read_text()
        assert (page.parent / link).exists()
    said = study.summary("probe")
    assert said.index("layer layer_6:") < said.index("layer layer_10:")
    assert str(inner / "report.html") in study.summary("report")


def test_the_layers_rows_are_the_numbers_of_each_layers_own_results(layered):
    study, _ = layered
    rows = layer_results(study, "layer_6")["layers"]
    assert rows == layer_results(study, "layer_10")["layers"]
    assert [(row["layer"], row["concept"]) for row in rows] == [
        (layer, concept) for layer in LAYER_WIDTHS for concept in ("Mass", "Suspicious_Calcification")
    ]
    for row in rows:
        found = layer_results(study, row["layer"])
        assert (row["d_in"], row["d_sae"], row["grid"]) == (LAYER_WIDTHS[row["layer"]], 64, found["models"][0]["grid"])
        assert found["models"][0]["hook_name"] == row["hook_name"]

        def of(section, row=row, found=found, **equal):
            return [
                x for x in found[section] if x["concept"] == row["concept"] and all(x[k] == equal[k] for k in equal)
            ]

        auroc = {x["variant"]: x["auroc"] for x in of("reconstruction")}
        assert (row["auroc_without_sae"], row["auroc_with_sae"]) == (auroc["without_sae"], auroc["with_sae"])
        sweep = {x["mode"]: x for x in of("interventions", k=3, error_term=False)}
        whole = auroc["without_sae"] - 0.5
        kept = (sweep["activate"]["auroc"] - 0.5) / whole if whole > 0 else None
        assert row["recovered"] == (pytest.approx(kept) if kept is not None else None)
        excess = sweep["deactivate"]["random_auroc_mean"] - sweep["deactivate"]["auroc"]
        assert row["removal_excess"] == pytest.approx(excess)
        (quality,) = of("sae_quality", split="test")
        assert (row["l0"], row["dead_share"]) == (quality["l0"], quality["dead_share"])
        assert quality["auroc_cost"] == pytest.approx(auroc["without_sae"] - auroc["with_sae"])
        for column, section, method in (
            ("best_latent_ap", "localization", None),
            ("best_channel_ap", "baselines", "channel"),
            ("gradcam_ap", "baselines", "grad_cam"),
        ):
            own = [x for x in of(section, threshold="percentile 95") if method is None or x["method"] == method]
            assert row[column] == (max(x["average_precision"] for x in own) if own else None)
        assert row["single_latent_auroc_low"] is None  # too few patients for an interval
        named = [one for of_pair in found["named_latents"].values() for one in of_pair]
        assert named
        assert all(one[f"{name}_high"] is None for one in named for name in ("auroc", "ablation", "place"))
        assert 0 <= row["single_latent_auroc"] <= 1


def test_the_same_classifier_is_judged_at_every_layer(layered):
    study, _ = layered
    inner, final = (layer.reconstruction.query("variant == 'without_sae'") for layer in study.layers)
    np.testing.assert_allclose(inner["auroc"], final["auroc"])
    assert not np.allclose(*(layer.tables[study.pairs[0]].logits_with_sae("Mass") for layer in study.layers))


def test_keeping_every_latent_of_an_inner_layer_is_the_sae_and_silencing_none_with_its_error_the_model(layered):
    study, _ = layered
    inner = study.layers[0]
    auroc = inner.reconstruction.query("concept == 'Mass'").set_index("variant")["auroc"]
    sweep = inner.interventions.query("concept == 'Mass'").set_index(["mode", "k", "error_term"])["auroc"]
    assert sweep["activate", 64, False] == pytest.approx(auroc["with_sae"])
    assert sweep["deactivate", 0, True] == pytest.approx(auroc["without_sae"])


def test_inner_layers_have_fewer_random_groups_and_the_report_says_how_many(layered):
    study, _ = layered
    assert [layer.n_controls for layer in study.layers] == [2, 20]
    page = read_report(study.results_folder / "layers" / "layer_6")
    assert "There are 2 such groups of either kind" in page


def test_classifiers_on_one_encoder_share_a_table_and_a_cache_of_the_test_images_at_each_layer(layered):
    study, _ = layered
    for layer in study.layers:
        assert len({table.folder for table in layer.tables.values()}) == 1
    (cache,) = (file.parent for file in (study.work / "layer-outputs").glob("*/layer_outputs.json"))
    test = set(study.split("test").images["image_id"])
    assert set(json.loads((cache / "layer_outputs.json").read_text())["image_ids"]) == test


def test_a_done_study_needs_its_layer_outputs_no_more_and_changes_no_byte(layered):
    study, file = layered
    before = {path: path.read_bytes() for path in study.results_folder.rglob("*") if path.is_file()}
    (study.work / "layer-outputs").rename(study.output / "away")
    run_study(load_config(file))
    assert not (study.work / "layer-outputs").exists()
    (study.output / "away").rename(study.work / "layer-outputs")
    assert {path: path.read_bytes() for path in study.results_folder.rglob("*") if path.is_file()} == before


def test_a_changed_number_of_inner_controls_repeats_the_inner_interventions_and_roles_alone(layered):
    study, file = layered
    before = set((study.work / "analyses").glob("*.parquet"))
    Study(load_config(file, ["analysis.inner_controls=1"])).intervene()
    new = sorted(path.name.rpartition("-")[0] for path in set((study.work / "analyses").glob("*.parquet")) - before)
    pairs = ("pretrained-Mass", "pretrained-Suspicious_Calcification")
    assert new == [f"{step}-{pair}" for step in ("interventions", "roles") for pair in pairs]


def test_a_layer_that_is_taken_away_takes_its_report_with_it(layered, tmp_path, phantom_root):
    settings = layered_settings(layered[1].parent, phantom_root)
    settings["output"] = str(tmp_path / "out")
    settings["concepts"] = ["Mass"]
    settings["layers"] = ["layer_6"]
    settings["sae"] = {"path": settings["sae"]["paths"]["layer_6"]}
    stale = tmp_path / "out" / "results" / "layers" / "layer_4"
    (tmp_path / "staged").mkdir()
    (tmp_path / "staged" / "report.html").write_text("old")
    replace_files(tmp_path / "staged", stale)
    report = run_study(load_config(write_study(tmp_path, settings)))
    assert not stale.exists()
    found = results_of(tmp_path / "out")
    assert found["models"][0]["hook_name"] == "blocks.4.1.hook_out"
    assert "layers" not in found
    assert 'id="layers"' not in report.read_text()


def refused(settings, folder):
    """The message with which a study is refused, before it has trained or encoded anything."""
    with pytest.raises(InputError) as caught:
        Study(load_config(write_study(folder, settings))).run()
    assert not list((folder / "out" / "work").glob("*"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ("layer_66", ["layer layer_66", "did you mean layer_6"]),
        ("global_pool", ["layer global_pool", "grid"]),
        ("blocks.4.1.bn1", ["layer blocks.4.1.bn1", "choose"]),
        ("blocks.4.1", ["layer_6, blocks.4.1 are the same"]),
    ],
)
def test_a_layer_that_cannot_be_studied_is_refused_before_any_image_is_read(tmp_path, phantom_root, layer, said):
    settings = layered_settings(tmp_path, phantom_root)
    settings["layers"] = ["layer_6", layer]
    settings["sae"] = {"train": {"model": "pretrained", "concept": "Mass"}}
    line = refused(settings, tmp_path)
    assert all(words in line for words in said), line


def test_an_sae_of_another_layer_or_width_and_too_few_latents_are_refused_with_the_layers_name(tmp_path, phantom_root):
    settings = layered_settings(tmp_path, phantom_root)
    settings["sae"]["paths"]["layer_6"] = str(save_random_sae(tmp_path / "other", 56, hook_name="blocks.3.1.hook_out"))
    line = refused(settings, tmp_path)
    assert (
        "layer layer_6 of model pretrained: other is an SAE of blocks.3.1.hook_out, not of blocks.4.1.hook_out" in line
    )
    settings["sae"]["paths"]["layer_6"] = str(save_random_sae(tmp_path / "narrow", 40, hook_name="blocks.4.1.hook_out"))
    assert "layer layer_6 of model pretrained: narrow takes vectors of width 40" in refused(settings, tmp_path)
    training = {"model": "pretrained", "concept": "Mass", "training": {"expansion_factor": 1}}
    settings |= {"sae": {"train": training}, "analysis": {"top": 60}}
    line = refused(settings, tmp_path)
    assert "analysis.top is 60, but the SAE of layer_6 will have only 56 latents" in line


@pytest.mark.parametrize(
    ("training", "said"),
    [
        (
            {"architecture": "topk", "k": 4, "dead_feature_window": 5000},
            "dead_feature_window is 5000, but the run",
        ),
        ({"batch_size": 100_000}, "which is not one batch of 100000"),
        ({"architecture": "topk", "k": 60}, "k is 60, but the SAE has only 56 latents"),
        ({"lr_warm_up_steps": 9000}, "is 9000, but the run has only"),
    ],
)
def test_a_training_that_cannot_work_is_refused_before_any_image_is_read(tmp_path, phantom_root, training, said):
    settings = layered_settings(tmp_path, phantom_root)
    training = {"expansion_factor": 1, "batch_size": 16, "epochs": 1, **training}
    settings |= {"sae": {"train": {"model": "pretrained", "concept": "Mass", "training": training}}}
    settings["layers"] = ["layer_6"]
    line = refused(settings, tmp_path)
    assert line.startswith("layer layer_6 of model pretrained: ")
    assert said in line


def test_checkpoints_and_saes_on_the_hub_are_read_from_there(tmp_path, phantom_root, monkeypatch):
    settings = layered_settings(tmp_path, phantom_root)
    on_hub = {"hf://owner/name/mass.safetensors": Path(settings["models"][0]["classifiers"]["Mass"])}
    on_hub["hf://owner/name@v1/layer_6"] = Path(settings["sae"]["paths"]["layer_6"])
    settings["models"][0]["classifiers"]["Mass"], settings["sae"]["paths"]["layer_6"] = on_hub

    def find_source(place, **_):
        path = on_hub.get(place, place)
        return Source(path=path, name=path.name)

    monkeypatch.setattr("mammosae_plugin.study.inputs.find_source", find_source)
    study = Study(load_config(write_study(tmp_path, settings)))
    assert study.classifier_files[study.pairs[0]] == (on_hub["hf://owner/name/mass.safetensors"],)
    assert study.layers[0].sae.cfg.d_in == LAYER_WIDTHS["layer_6"]


def test_the_rows_of_all_layers_come_from_one_pass_into_a_store_each(tmp_path, phantom_root):
    settings = layered_settings(tmp_path, phantom_root)
    settings["sae"] = {"train": {"model": "pretrained", "concept": "Mass", "fraction": 0.5}}
    study = Study(load_config(write_study(tmp_path, settings)))
    study.extract()
    (folder,) = (path for path in (study.work / "activations").iterdir() if path.is_dir())
    assert {path.name for path in folder.iterdir()} == {layer.hook_name for layer in study.layers}
    assert [layer.extract().d_in for layer in study.layers] == list(LAYER_WIDTHS.values())


def test_extract_takes_the_first_images_augmented_and_a_share_of_each_batchs_positions(tmp_path, phantom_root):
    settings = study_settings(tmp_path, phantom_root)
    settings["sae"] = {
        "train": {"model": "pretrained", "concept": "Mass", "sample_from": "batch", "training": {"batch_size": 8}}
    }
    file = write_study(tmp_path, settings)
    done = mammosae("extract", "--config", file, "--limit", "5", "--augmentation", "flips")
    assert done.returncode == 0
    (manifest,) = (tmp_path / "out" / "work" / "activations").glob("*/*/activations.json")
    said = json.loads(manifest.read_text())
    assert (said["limit"], said["sample_from"], len(said["image_ids"])) == (5, "batch", 5)
    assert said["augmentation"]["kind"] == "flips"
    wrong = mammosae("extract", "--config", file, "--augmentation", "blur")
    assert wrong.returncode == 2
    assert "sae.train.augmentation" in wrong.stderr


@pytest.mark.parametrize("fold", [False, True])
def test_the_settings_of_the_store_decide_its_rows(tmp_path, phantom_root, fold):
    settings = layered_settings(tmp_path, phantom_root)
    source = {"model": "pretrained", "concept": "Mass", "count": 3}
    settings["sae"] = {"train": source}
    plain = Study(load_config(write_study(tmp_path, settings)))
    plain.extract()
    source |= {"dtype": "bfloat16", "autocast": None if fold else "bfloat16", "fold_batch_norms": fold}
    study = Study(load_config(write_study(tmp_path, settings)))
    study.extract()
    for hook_name, store in study.stores.items():
        assert (store.manifest["count"], store.manifest["dtype"]) == (3, "bfloat16")
        assert store.n_rows == 3 * len(store.image_ids)
        rows, expected = (torch.cat([rows for rows, _, _ in one.shards()]) for one in (store, plain.stores[hook_name]))
        error = float((rows - expected).norm() / expected.norm())
        assert 1e-4 < error < 0.05  # other types, and no other rows
        assert (store.manifest["model"] != plain.stores[hook_name].manifest["model"]) == fold
    said = study.summary("extract")
    assert "3 positions of each" in said
    found = re.findall(r"the features of (\S+) differ by (\S+) \(relative", said)
    assert [name for name, _ in found] == (list(study.stores) if fold else [])
    assert all(0 < float(error) < 1e-5 for _, error in found)
    if fold:
        assert study.stores["bn2.hook_out"].manifest["source"]["folded_batch_norms"].keys() == study.stores.keys()


def test_a_compiled_network_gives_the_same_rows_and_extract_says_by_how_much_they_differ(
    tmp_path, phantom_root, monkeypatch
):
    monkeypatch.setattr(
        "mammosae_plugin.study.inputs.compiled", partial(compiled, backend="aot_eager")
    )  # needs no compiler
    settings = layered_settings(tmp_path, phantom_root)
    source = {"model": "pretrained", "concept": "Mass", "count": 3}
    settings["sae"] = {"train": source}
    plain = Study(load_config(write_study(tmp_path, settings)))
    plain.extract()
    source["compile"] = True
    study = Study(load_config(write_study(tmp_path, settings)))
    study.extract()
    for hook_name, store in study.stores.items():
        assert store.manifest["compiled"] and not plain.stores[hook_name].manifest["compiled"]
        assert store.folder != plain.stores[hook_name].folder
        rows, expected = (torch.cat([rows for rows, _, _ in one.shards()]) for one in (store, plain.stores[hook_name]))
        assert torch.allclose(rows, expected, rtol=1e-4, atol=1e-4)
    found = re.findall(r"compiled: the features of (\S+) differ by (\S+) \(relative", study.summary("extract"))
    assert [name for name, _ in found] == list(study.stores)
    assert all(0 <= float(error) < 1e-5 for _, error in found)


def test_folding_that_changes_a_layers_features_is_refused(tmp_path, phantom_root, monkeypatch):
    settings = layered_settings(tmp_path, phantom_root)
    settings["sae"] = {"train": {"model": "pretrained", "concept": "Mass", "fold_batch_norms": True}}
    study = Study(load_config(write_study(tmp_path, settings)))
    monkeypatch.setattr("mammosae_plugin.study.inputs._FOLDED", 1e-12)
    with pytest.raises(InputError, match=r"with folded batch norms blocks\.4\.1\.hook_out gives other features"):
        study.extract()


def test_an_error_at_a_layer_says_which(layered, monkeypatch):
    study, _ = layered
    with pytest.raises(InputError, match=r"^layer layer_6: no latent fires$"), study.layers[0].errors_name_it():
        raise InputError("no latent fires")


def test_large_layer_outputs_are_announced_before_they_are_written(layered, monkeypatch, caplog):
    study, _ = layered
    monkeypatch.setattr("mammosae_plugin.study.layer_passes.layer_output_nbytes", lambda *_: 300_000_000)
    monkeypatch.setattr("mammosae_plugin.study.layer_passes.cache_layer_outputs", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(study.layers[0], "work", study.work / "empty")
    with pytest.raises(ZeroDivisionError):
        study.layers[0]._masked_passes(study.encoder_groups[0])
    n_images = len(study.split("test"))
    assert f"layer_6 for {n_images} test images take {n_images * 0.3:.1f} GB" in caplog.text
    assert "can be deleted" in caplog.text


def test_inner_interventions_are_those_of_each_concept_alone_and_the_evidence_runs_none_of_them_again(layered):
    study, _ = layered
    layer, (group,) = study.layers[0], study.encoder_groups
    passes = layer._masked_passes(group)
    for pair in group.heads:
        table = layer.tables[pair]
        alone = pd.concat([layer._sweep(table, pair, error_term, passes) for error_term in (False, True)])
        kept = layer.interventions.query("model == @pair.model and concept == @pair.concept")
        pd.testing.assert_frame_equal(kept[alone.columns].reset_index(drop=True), alone.reset_index(drop=True))
    assert passes.n_passes > 0
    for result in [*(study.work / "analyses").glob("evidence-*.parquet")]:
        result.rename(result.with_suffix(".away"))
    again = Study(load_config(layered[1])).layers[0]
    again._masked_passes = lambda _: pytest.fail("a network is run again")
    pd.testing.assert_frame_equal(again.evidence, layer.evidence)


def test_interventions_beyond_the_hours_allowed_are_refused_before_a_layers_outputs_are_written(layered, tmp_path):
    _, file = layered
    study = Study(load_config(file, ["analysis.inner_hours=1e-9", "analysis.inner_controls=3", "analysis.top=2"]))
    outputs = study.work / "layer-outputs"
    outputs.rename(tmp_path / "away")
    with pytest.raises(InputError) as caught:
        study.intervene()
    assert not outputs.exists()
    assert list((study.work / "masked-passes").glob("*/shard*")) == list(
        (layered[0].work / "masked-passes").glob("*/shard*")
    )
    (tmp_path / "away").rename(outputs)
    said = str(caught.value)
    assert "\n" not in said
    assert re.search(r"interventions at layer_6: [\d,]+ masks \([\d,]+ were asked for.*about [\d,]+ passes", said), said
    assert "set analysis.inner_patients to" in said


def test_inner_layers_may_be_intervened_on_in_some_patients_alone(layered, tmp_path):
    settings = yaml.safe_load(layered[1].read_text())
    settings |= {"concepts": ["Mass"], "output": str(tmp_path / "out")}
    settings["analysis"] |= {"inner_patients": 5, "n_controls": 20, "lesions": None, "gradcam": False}
    study = Study(load_config(write_study(tmp_path, settings)))
    study.intervene()
    inner, final = study.layers
    everyone = study.split("test").images["patient_id"].nunique()
    assert everyone > 5
    assert set(inner.interventions["n_patients"]) == {5}
    assert set(final.interventions["n_patients"]) == {everyone}
    (cache,) = (study.work / "layer-outputs").glob("*/layer_outputs.json")
    ids = json.loads(cache.read_text())["image_ids"]
    images = study.split("test").images
    assert set(images.loc[images["image_id"].isin(ids), "patient_id"]) == set(study.sampled_patients)
    assert set(inner.roles["n_patients_with"] + inner.roles["n_patients_without"]) == {everyone}


def test_a_sample_of_patients_of_one_class_is_refused_before_anything_is_made(tmp_path, phantom_root):
    settings = layered_settings(tmp_path, phantom_root)
    settings["analysis"]["inner_patients"] = 2
    study = Study(load_config(write_study(tmp_path, settings)))
    images = study.split("test").images
    study.sampled_patients = images.loc[images["Mass"] == 0, "patient_id"].unique()[:1].tolist()
    with pytest.raises(InputError, match="analysis.inner_patients draws 1 test patients, all of one class of "):
        study.classify()
    assert not (study.work / "latents").exists()


def test_claims_are_what_their_names_say():
    def sweep(mode, auroc, random):
        return {
            "model": "m", "concept": "Mass", "mode": mode, "k": 10, "error_term": False, "auroc": auroc,
            "random_auroc_mean": random,
        }  # fmt: skip

    results = {
        "rankings": [{"concept": "Mass", "class": number} for number in (0, 1)],
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
