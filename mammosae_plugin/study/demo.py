"""`mammosae demo`: phantoms, a small EfficientNet, an SAE on its features, and the same studies as on real data.

The first is of the positions of its maps, the second of one vector per image of the network that the first fine-tuned.
"""

__all__ = ["CONCEPTS", "ENCODER", "FULL", "LAYERS", "N_LATENTS", "QUICK", "run_demo"]

import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from mammosae_plugin.adapters import new_classifier
from mammosae_plugin.arguments import whole
from mammosae_plugin.config import AnyStudy, StudyConfig, load_config
from mammosae_plugin.datasets import VinDrMammo, make_phantom_pairs, make_phantoms
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, write_text
from mammosae_plugin.findings.study_folder import StudyFolder
from mammosae_plugin.locks import only_run
from mammosae_plugin.schema.results import Results
from mammosae_plugin.study import Study, open_study, run_study
from mammosae_plugin.study.inputs import ModelPair
from mammosae_plugin.study.latent_names import name_lines
from mammosae_plugin.training import ClassifierTraining, train_classifier

logger = logging.getLogger(__name__)

CONCEPTS = ("Mass", "Suspicious_Calcification")
LAYERS = ("layer_6", "layer_10")  # of the small network: a block with positions of 16 pixels, and the final map
N_LATENTS = 256
ENCODER = "encoder.safetensors"


@dataclass(frozen=True)
class _Size:
    """How large the demo is."""

    image_size: tuple[int, int]
    n_patients: int
    pretraining_epochs: int
    finetuning_epochs: int
    sae_epochs: int
    dead_feature_window: int
    n_bootstrap: int
    ks: tuple[int, ...]
    error_term: bool
    inner_controls: int
    top: int
    n_images: int
    embedding_epochs: int
    probe_ks: tuple[int, ...]
    n_queries: int
    pairs: tuple[str, ...]  # in what they differ
    n_pairs: int
    untrained: bool
    named_from: tuple[int, int]  # images that a name is found in, and patients that it takes


_PAIRS = ("Mass", "Suspicious_Calcification", "clip", "density", "exposure")
# Fewer ks and random groups than the paper's and the default: at the inner layer each costs a pass.
FULL = _Size(
    *((256, 160), 400, 12, 3, 20, 100, 1000, (0, 1, 5, 10, 50, N_LATENTS), True, 2, 10, 4, 60, (1, 5, 20), 50),
    *(_PAIRS, 16, True, (20, 10)),
)
QUICK = _Size(
    (128, 96),
    40,
    1,
    1,
    5,
    1,
    100,
    (0, 1, N_LATENTS),
    False,
    1,
    3,
    1,
    100,
    (1,),
    5,
    ("Mass", "clip"),
    10,
    False,
    (6, 3),
)


def run_demo(output: Path, *, quick: bool = False, seed: int = 0) -> str:
    """Run the demo and say what came out.

    Args:
        output: Folder for the phantoms, `study.yaml`, the models and the results.
        quick: A small version that shows that everything runs; its numbers mean little.
        seed: Of the encoder's first weights and of the order of its training images; the phantoms are the same.

    Returns:
        Lines for the user: what the study should show, with the values that it found, how much of it holds, what to do
        about the rest, and the report's path.

    Raises:
        InputError: The folder holds something else, or another seed's demo; or `seed` is no whole number from 0 on.
    """
    output, seed = local_path(output), whole(seed, "seed", least=0)
    with only_run(output):
        return _run_demo(output, quick, seed)


def _run_demo(output: Path, quick: bool, seed: int) -> str:
    size = QUICK if quick else FULL
    config_file, settings = output / "study.yaml", _as_yaml(_study(ENCODER, size))
    _require_own(config_file, settings)
    phantoms = output / "phantoms"
    make_phantoms(
        phantoms,
        n_patients=size.n_patients,
        images_per_patient=2,
        image_size=size.image_size,
        mass_share=0.5,
        calcification_share=0.5,
        seed=0,
    )
    make_phantom_pairs(
        output / "pairs", n_pairs=size.n_pairs, attributes=size.pairs, image_size=size.image_size, seed=1
    )
    _pretrain(phantoms, output / ENCODER, size, seed)
    write_text(config_file, settings)
    config = load_config(config_file)
    report = run_study(config)
    results = StudyFolder(report.parents[1]).results
    of_embeddings = _study_embeddings(output, config, size)
    lines = ["The quick demo only shows that everything runs; its numbers mean little."]
    if not quick:
        lines = _verdict([*_classifiers_work(results), *results["checks"]])
    names = name_lines(pd.DataFrame(results.get("names", [])), ["encoder"])
    return "\n".join([*lines, *names, f"report: {report}", *of_embeddings])


def _study_embeddings(output: Path, first: AnyStudy, size: _Size) -> list[str]:
    """The second study, on the vectors of the network that the first fine-tuned; what it says when it is done."""
    assert isinstance(first, StudyConfig)  # the demo's own
    (network,) = Study(first).classifier_files[ModelPair("finetuned", CONCEPTS[-1])]
    config_file = output / "embeddings.yaml"
    beside = network.relative_to(output.resolve())  # the configuration's paths are absolute
    settings = _as_yaml(_embedding_study(beside.as_posix(), size))
    _require_own(config_file, settings)
    write_text(config_file, settings)
    study = open_study(load_config(config_file))
    study.run()
    return [
        "One vector per image of the finetuned network, and of the same with random weights:",
        study.summary("report"),
    ]


def _as_yaml(settings: dict[str, Any]) -> str:
    return yaml.safe_dump(settings, sort_keys=False)


def _require_own(config_file: Path, settings: str) -> None:
    if config_file.exists() and config_file.read_text(encoding="utf-8") != settings:
        raise InputError(
            f"{config_file} is not the demo's, or was edited; run it with `mammosae study`, or name another "
            "folder with --output"
        )


def _verdict(checks: list[dict[str, Any]]) -> list[str]:
    """A line per criterion, how many hold, and what to do where one does not."""
    passed = [check["passed"] for check in checks]
    unasked = f", {passed.count(None)} could not be asked" if None in passed else ""
    lines = [*map(_line, checks), f"{passed.count(True)} of {len(passed)} criteria hold{unasked}."]
    if not all(passed):
        lines.append(
            "The report is true to the networks trained here, but they do not show all that they should. Try another "
            "start (`mammosae demo --seed 1 --output demo-1`); where that misses the same lines, run `make test`."
        )
    return lines


def _classifiers_work(results: Results) -> list[dict[str, Any]]:
    """Whether the finetuned classifiers tell their concept on images of patients that they have not seen."""
    return [
        {
            "name": f"{row['model']}/{row['concept']}: test AUROC of the classifier",
            "value": row["auroc"],
            "threshold": 0.9,
            "direction": ">=",
            "passed": None if row["auroc"] is None else row["auroc"] >= 0.9,
        }
        for row in results["reconstruction"]
        if row["variant"] == "without_sae" and row["model"] == "finetuned"
    ]


def _line(check: dict[str, Any]) -> str:
    verdict = "n/a   " if check["passed"] is None else "ok    " if check["passed"] else "MISSED"
    value = "not defined" if check["value"] is None else f"{check['value']:.3f}"
    return f"{verdict} {check['name']}: {value} (wanted {check['direction']} {check['threshold']})"


def _pretrain(phantoms: Path, path: Path, size: _Size, seed: int) -> None:
    """An encoder that has seen both findings, as Mammo-CLIP's has through the reports it was pretrained on."""
    dataset = VinDrMammo(phantoms, image_size=size.image_size, split="training")
    training = ClassifierTraining(
        kind="finetuned",
        epochs=size.pretraining_epochs,
        batch_size=16,
        lr=2e-3,
        weight_decay=1e-3,
        augmentation="flips",
        seed=seed,
    )
    train_classifier(new_classifier("tinynet_e", 0, seed=seed), dataset, CONCEPTS, path, training)


def _study(encoder: str, size: _Size) -> dict[str, Any]:
    return {
        "output": "study",
        "data": {"root": "phantoms", "image_size": list(size.image_size), "phantom": True},
        "concepts": list(CONCEPTS),
        "models": [
            {"name": "pretrained", "encoder": encoder, "train": {"kind": "pretrained"}},
            {
                "name": "finetuned",
                "encoder": encoder,
                "train": {
                    "kind": "finetuned",
                    "epochs": size.finetuning_epochs,
                    "lr": 1e-4,
                    "weight_decay": 1e-3,
                    "augmentation": "flips",
                },
            },
        ],
        "layers": list(LAYERS),
        "sae": {
            "train": {
                "model": "finetuned",
                "concept": "Suspicious_Calcification",
                "fraction": 1.0,
                "training": {  # docs/choosing-an-sae.md compares it with others on these phantoms
                    "architecture": "batchtopk",
                    "k": 6,
                    "d_sae": N_LATENTS,
                    "epochs": size.sae_epochs,
                    "batch_size": 1024,
                    "lr": 1e-3,
                    "dead_feature_window": size.dead_feature_window,
                    "normalize_activations": "expected_average_only_in",
                },
            }
        },
        "analysis": {
            "n_bootstrap": size.n_bootstrap,
            "ks": list(size.ks),
            "error_term": size.error_term,
            "inner_controls": size.inner_controls,
            "top": size.top,
            "names": _names(size),
            "gradcam": importlib.util.find_spec("captum") is not None,
            "pairs": {
                "data": {"root": "pairs", "image_size": list(size.image_size), "phantom": True},
                "untrained": size.untrained,
                "n_bootstrap": size.n_bootstrap,
                "n_permutations": 10,
            },
        },
        "report": {
            "title": "Concept latents of a small classifier of phantoms",
            "n_images": size.n_images,
        },
        "batch_size": 8,
    }


def _names(size: _Size) -> dict[str, Any]:
    n, min_groups = size.named_from
    return {"by_labels": {"n": n, "min_groups": min_groups}}


def _embedding_study(network: str, size: _Size) -> dict[str, Any]:
    return {
        "kind": "embeddings",
        "output": "embeddings-study",
        "title": "Latents of the embeddings of a small classifier of phantoms",
        "data": {"root": "phantoms", "image_size": list(size.image_size), "phantom": True},
        "concepts": [*CONCEPTS, "density", "view", "laterality"],
        "models": [
            {"name": "finetuned", "network": network},
            {"name": "random", "network": network, "weights": "random"},
        ],
        "sae": {
            "train": {
                "d_sae": N_LATENTS,
                "k": 8,
                "epochs": size.embedding_epochs,
                "batch_size": 32,
                "lr": 1e-3,
                "dead_feature_window": max(size.dead_feature_window, 20),
            }
        },
        "analysis": {
            "n": [10],
            "ks": list(size.probe_ks),
            "n_folds": 3,
            "n_bootstrap": size.n_bootstrap,
            "n_queries": size.n_queries,
            "names": _names(size),
        },
        "batch_size": 16,
    }
