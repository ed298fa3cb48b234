"""Networks that are no Mammo-CLIP: a ResNet, a ConvNeXt and a vision transformer, trained, studied and reported."""

import json

import pytest
import torch
from helpers_datasets import csv_folder
from helpers_results import read_report
from helpers_study import study_settings, write_study

from mammosae_plugin.adapters import (
    HookedVisionModel,
    TimmClassifier,
    load_classifier,
    new_timm_classifier,
    save_classifier,
)
from mammosae_plugin.adapters.preprocessing import MAMMO_CLIP
from mammosae_plugin.config import load_config
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import LatentTable
from mammosae_plugin.study import Study

FAMILIES = {  # the final layer, and whether what the head reads is its mean over positions
    "test_resnet": ("layer4", "linear"),
    "test_convnext": ("stages.3", "network"),  # a norm lies between pool and head
    "test_vit": ("blocks.4", "network"),  # the head reads the class token, which the last block's patches do not reach
}


def settings_of(folder, phantom_root, architecture, **train):
    training = {"d_sae": 48, "epochs": 2, "batch_size": 64}
    return study_settings(folder, phantom_root) | {
        "concepts": ["Mass"],
        "models": [
            {
                "name": "net",
                "timm": {"architecture": architecture, "weights": "random", "seed": 3},
                "train": {"epochs": 1, "batch_size": 8, "lr": 1e-3, "drop_connect": 0.1, "dropout": 0.1} | train,
            }
        ],
        "sae": {"train": {"model": "net", "concept": "Mass", "fraction": 0.5, "training": training}},
        "analysis": {"n_bootstrap": 100, "ks": [0, 1, 48], "top": 3, "inner_controls": 1},
        "report": {"n_images": 1},
    }


@pytest.mark.parametrize("architecture", FAMILIES)
def test_any_classifier_of_timms_is_trained_studied_and_reported(architecture, tmp_path, phantom_root):
    final, readout = FAMILIES[architecture]
    study = Study(load_config(write_study(tmp_path, settings_of(tmp_path, phantom_root, architecture))))
    study.run()
    found = json.loads((study.results_folder / "results.json").read_text())
    assert (study.results_folder / "report.html").exists()
    (model,) = found["models"]
    assert (model["architecture"], model["hook_name"]) == (architecture, f"{final}.hook_out")
    (file,) = study.classifier_files[study.pairs[0]]
    network = load_classifier(file)
    assert isinstance(network, TimmClassifier)
    assert network.image_size == ((96, 64) if architecture == "test_vit" else None)
    images = study.split("test").with_preprocessing(network.preprocessing)
    batch = torch.stack([images[number]["image"] for number in range(4)])
    table = LatentTable(study.work / "latents" / found["tables"][0]["table"])
    assert table.readout_kind == readout
    rows = table.rows("Mass", split="test").image_rows[:4]
    with torch.no_grad(), HookedVisionModel(network.network, [final]) as hooked:
        own, spliced = hooked(batch).double(), hooked.run_with_saes(batch, saes=study.primary.sae).double()
    assert torch.allclose(torch.from_numpy(table.logits("Mass")[rows]), own, atol=1e-4)
    assert torch.allclose(torch.from_numpy(table.logits_with_sae("Mass")[rows]), spliced, atol=1e-4)
    assert (own - spliced).abs().max() > 1e-4
    sae = study.primary.sae.cfg.metadata
    plans = [json.loads(file.read_text()) for file in study.work.rglob("*.plan.json")]
    prepared = {plan["step"]: plan["images"]["preprocessing"] for plan in plans if "images" in plan}
    assert set(prepared) == {"classify", "extract", "encode"} | ({"intervene"} if readout == "network" else set())
    assert set(prepared.values()) == {network.preprocessing.fingerprint} != {MAMMO_CLIP.fingerprint}
    assert sae.preprocessing == network.preprocessing.describe() == network.source["metadata"]["preprocessing"]


def test_a_concept_of_three_classes_runs_to_a_report_that_cites_what_was_used(tmp_path, phantom_root):
    csv_folder(tmp_path / "data", phantom_root)
    settings = settings_of(tmp_path, phantom_root, "test_resnet", drop_connect=0, dropout=0)
    grade = {"kind": "multiclass", "classes": ["low", "middle", "high"]}
    settings["data"] = {
        "kind": "csv",
        "root": str(tmp_path / "data"),
        "labels": {"Grade": grade},
        "image_size": [96, 64],
    }
    settings["concepts"], settings["sae"]["train"]["concept"] = ["Grade"], "Grade"
    settings["models"][0]["preprocessing"] = {"size": [64, 64], "mean": 0.4, "std": 0.2, "channels": 1}
    study = Study(load_config(write_study(tmp_path, settings)))
    study.run()
    found = json.loads((study.results_folder / "results.json").read_text())
    (model,) = found["models"]
    said = {"read_as": "8-bit gray", "mean": 0.4, "std": 0.2, "resize": [64, 64]}
    assert (model["library"], model["readout"], model["grid"]) == ("timm", "linear", [2, 2])
    assert said.items() <= model["preprocessing"].items()
    assert study.primary.sae.cfg.metadata.preprocessing == model["preprocessing"]
    table = next(iter(study.primary.tables.values()))
    assert table.logits("Grade").shape[1] == 3 and table.image_size == (96, 64)
    assert {row["class"] for row in found["rankings"]} == {0, 1, 2}
    sweep = [row for row in found["interventions"] if row["mode"] == "activate" and not row["error_term"]]
    assert {row["k"]: row["n_latents"] for row in sweep}[0] == 0
    rows = table.rows("Grade", split="test")
    right = table.logits("Grade")[rows.image_rows].argmax(1) == rows.labels
    assert found["reconstruction"][0]["accuracy"] == pytest.approx(right.mean())
    page = read_report(study.results_folder)
    assert "stretched to 64" in page and "over 255, minus 0.4, over 0.2" in page
    cited = page.split('id="cite"')[1]
    assert "PyTorch Image Models" in cited and "Mammo-CLIP" not in cited


def refused(folder, settings):
    """The line with which a study is refused before it has read an image."""
    with pytest.raises(InputError) as caught:
        Study(load_config(write_study(folder, settings))).run()
    assert not list((folder / "out" / "work").glob("*"))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_layer_that_the_head_does_not_hear_of_is_refused(tmp_path, phantom_root):
    settings = settings_of(tmp_path, phantom_root, "test_vit") | {"layers": ["blocks.2", "blocks.5"]}
    line = refused(tmp_path, settings)
    assert line.startswith("layer blocks.5 of model net: what the classifier reads does not depend on its positions")
    assert line.endswith("choose blocks.4 or an earlier one")


def test_a_network_for_images_of_another_size_is_refused(tmp_path, phantom_root):
    other = new_timm_classifier("test_vit", image_size=(64, 48))
    save_classifier(other, tmp_path / "vit.safetensors", metadata={})
    settings = settings_of(tmp_path, phantom_root, "test_vit")
    settings["models"][0] = {"name": "net", "encoder": str(tmp_path / "vit.safetensors"), "train": {"epochs": 1}}
    assert "the network takes images of 64 x 48 pixels alone" in refused(tmp_path, settings)


def test_weights_that_cannot_be_had_are_one_line(tmp_path, phantom_root, monkeypatch):
    def unreachable(*_, **settings):
        raise OSError(f"cannot reach the Hub\nfor {settings['pretrained']}")

    settings = settings_of(tmp_path, phantom_root, "test_resnet")
    settings["models"][0]["timm"] = "test_resnet"
    monkeypatch.setattr("timm.create_model", unreachable)
    line = refused(tmp_path, settings)
    assert "timm cannot make test_resnet: cannot reach the Hub for True; give a file of its weights, or" in line


def test_where_a_model_starts_from_is_said_once(tmp_path, phantom_root):
    def read(**model):
        settings = settings_of(tmp_path, phantom_root, "test_resnet")
        settings["models"][0] = {"name": "net", **model}
        return load_config(write_study(tmp_path, settings)).models[0].timm

    by_name = read(timm="test_resnet", train={"epochs": 1})
    assert (by_name.architecture, by_name.weights) == ("test_resnet", "pretrained")
    from_file = read(timm={"architecture": "test_resnet", "weights": "a/net.safetensors"}, train={"epochs": 1})
    assert from_file.weights == tmp_path / "a" / "net.safetensors"
    for model, said in (
        ({"timm": "test_resnet", "encoder": "a.tar", "train": {"epochs": 1}}, "needs an `encoder` to start from, or"),
        ({"timm": "test_resnet", "classifiers": {"Mass": "a.pth"}}, "`timm` is .*for `train` to start from"),
        (
            {"timm": {"architecture": "test_resnet", "weight": "random"}, "train": {"epochs": 1}},
            "did you mean 'weights'",
        ),
    ):
        with pytest.raises(InputError, match=said):
            read(**model)
