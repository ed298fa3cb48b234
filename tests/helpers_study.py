"""Builders for tests that run more than one room: small phantoms, a random SAE, a small study."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from helpers_adapters import calibrated_classifier
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata
from typer.testing import CliRunner

from mammosae_plugin.activations import ActivationStore, write_store
from mammosae_plugin.adapters import save_classifier
from mammosae_plugin.cli import app
from mammosae_plugin.datasets import make_phantoms


def small_phantoms(root: Path, *, n_patients: int = 24, image_size: tuple[int, int] = (96, 64), seed: int = 2) -> Path:
    """Phantoms in which both splits show masses and calcifications."""
    make_phantoms(
        root,
        n_patients=n_patients,
        images_per_patient=2,
        image_size=image_size,
        mass_share=0.5,
        calcification_share=0.5,
        seed=seed,
    )
    return root


def random_sae(d_in: int, d_sae: int = 64, *, seed: int = 0, hook_name: str = "bn2.hook_out") -> StandardSAE:
    """A standard SAE with random weights, some latents dead, in the Mammo-SAE form (bias before and after)."""
    metadata = SAEMetadata(hook_name=hook_name, layout="channels_last")
    sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=d_sae, apply_b_dec_to_input=True, metadata=metadata))
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(d_sae, d_in, generator=generator) / d_in**0.5
    bias = 0.1 * torch.randn(d_sae, generator=generator) - 0.05
    bias[::8] = -1e4  # never fires
    decoder = torch.randn(d_sae, d_in, generator=generator) / d_in**0.5
    sae.load_state_dict(
        {"W_enc": weight.T.contiguous(), "b_enc": bias, "W_dec": decoder, "b_dec": 0.01 * torch.ones(d_in)}
    )
    return sae


def save_random_sae(folder: Path, d_in: int = 1280, **settings: Any) -> Path:
    """A random SAE in SAELens's format on disk."""
    random_sae(d_in, **settings).save_model(folder)
    return folder


def toy_store(folder: Path, *, d_in: int = 32, n_directions: int = 48, n_rows: int = 400) -> ActivationStore:
    """An activation store whose rows are sparse combinations of a few directions: a task that an SAE can solve."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(n_directions, d_in, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    coefficients = torch.rand(n_rows, n_directions, generator=generator)
    coefficients *= torch.rand(n_rows, n_directions, generator=generator) < 0.08
    rows = 5 * coefficients @ directions + 0.3

    places = torch.arange(n_rows)
    n_images = -(-n_rows // 10)
    described = {
        "hook_name": "bn2.hook_out",
        "image_size": [96, 64],
        "dataset_name": "toy",
        "dataset": "toy",
        "image_ids": [f"{number}.png" for number in range(n_images)],
        "patients": [number // 2 for number in range(n_images)],
        "splits": ["training"],
        "model": "toy",
        "architecture": "toy",
        "source": {},
    }
    shards = [(rows[part], part // 10, part % 10) for part in places.split(100)]
    return write_store(folder, shards, described)


def study_settings(folder: Path, phantom_root: Path, *, image_size: tuple[int, int] = (96, 64)) -> dict[str, Any]:
    """Settings of a study of two small models with files for everything: no training, seconds to run."""
    folder.mkdir(parents=True, exist_ok=True)
    models = []
    for number, name in enumerate(("pretrained", "finetuned")):
        files = {}
        for concept in ("Mass", "Suspicious_Calcification"):
            seed = number * 10 + (concept == "Mass") * number
            path = folder / f"{name}-{concept}.safetensors"
            if not path.exists():
                save_classifier(calibrated_classifier(1, seed=seed), path, metadata={})
            files[concept] = str(path)
        models.append({"name": name, "classifiers": files})
    sae = folder / "sae"
    if not sae.exists():
        save_random_sae(sae)
    return {
        "output": str(folder / "out"),
        "data": {"root": str(phantom_root), "image_size": list(image_size), "phantom": True},
        "concepts": ["Mass", "Suspicious_Calcification"],
        "models": models,
        "sae": {"path": str(sae)},
        "analysis": {"n_bootstrap": 100, "ks": [0, 1, 5, 64]},
        "report": {"n_images": 2},
        "batch_size": 4,
    }


LAYER_WIDTHS = {"layer_6": 56, "layer_10": 1280}
"""Two layers of the small network: an inner block and the final map."""

_HOOK_NAMES = {"layer_6": "blocks.4.1.hook_out", "layer_10": "bn2.hook_out"}


def layered_settings(folder: Path, phantom_root: Path) -> dict[str, Any]:
    """Settings of a quick study at an inner layer and at the final map, of classifiers that share an encoder."""
    settings = study_settings(folder, phantom_root)
    settings["models"] = settings["models"][:1]
    settings["layers"] = list(LAYER_WIDTHS)
    paths = {}
    for layer, width in LAYER_WIDTHS.items():
        path = folder / f"sae-{layer}"
        if not path.exists():
            save_random_sae(path, width, hook_name=_HOOK_NAMES[layer])
        paths[layer] = str(path)
    settings["sae"] = {"paths": paths}
    settings["analysis"] |= {"ks": [0, 1, 64], "top": 3, "inner_controls": 2}
    settings["analysis"]["repair"] = {
        "latents": [{"model": settings["models"][0]["name"], "concept": "Mass", "latents": [1, 2, 5]}],
        "groups": ["view", "laterality"],
        "froc": True,
    }
    settings["report"]["n_images"] = 1
    return settings


def write_study(folder: Path, settings: dict[str, Any]) -> Path:
    """The settings as a YAML file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def mammosae(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run the command line in this process, which has imported already what the command needs."""
    command = list(map(str, arguments))
    done = CliRunner().invoke(app, command, prog_name="mammosae")
    return subprocess.CompletedProcess(command, done.exit_code, done.stdout, done.stderr)


def mammosae_process(*arguments: str | Path, timeout: float = 600) -> "subprocess.CompletedProcess[str]":
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "mammosae_plugin", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def results_of(folder: Path) -> dict[str, Any]:
    """The results of a study without the date."""
    found: dict[str, Any] = json.loads((folder / "results" / "results.json").read_text())
    found.pop("created")
    return found
