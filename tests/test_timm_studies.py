"""Networks that are no Mammo-CLIP: a ResNet, a ConvNeXt and a vision transformer, trained, studied and reported."""

import json

import pytest
import torch
from helpers_study import study_settings, write_study

from mammosae_plugin.adapters import HookedVisionModel, TimmClassifier, load_classifier
from mammosae_plugin.adapters.preprocessing import MAMMO_CLIP
from mammosae_plugin.config import load_config
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
