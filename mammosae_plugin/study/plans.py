"""What the result of each step depends on, a function per step.

A result bears its plan's digest in its name, and the plan lies beside it as JSON that people read:
`work/latents/<name>.plan.json` beside `work/latents/<name>`. What is left out changes no number: the device, worker
processes, where files lie.
"""

__all__ = [
    "digest", "keep", "of_analysis", "of_classifier", "of_embeddings", "of_encoding", "of_layer_outputs",
    "of_rows", "of_sae", "of_table", "Plan", "Tensors",
]  # fmt: skip

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mammosae_plugin import distributed
from mammosae_plugin.activations.layer_outputs import FORMAT_VERSION as OUTPUTS_FORMAT
from mammosae_plugin.activations.store import FORMAT_VERSION as STORE_FORMAT
from mammosae_plugin.config import StudyConfig
from mammosae_plugin.config.embeddings import EmbeddingModel, EmbeddingStudyConfig
from mammosae_plugin.datasets import StudyDataset
from mammosae_plugin.files import sha256_of_file, sha256_of_json, write_json
from mammosae_plugin.latents.table import ELEMENTS, PEAKS
from mammosae_plugin.latents.table import FORMAT_VERSION as TABLE_FORMAT
from mammosae_plugin.measures.units import EvaluationUnit
from mammosae_plugin.provenance import package_versions, plain, tensors_fingerprint
from mammosae_plugin.study.in_use import ask_for
from mammosae_plugin.training import ClassifierTraining

Plan = dict[str, Any]
Tensors = Mapping[str, torch.Tensor]

_OF_ROWS = {
    *("fraction", "count", "sample_from", "limit", "augmentation", "dtype", "autocast", "fold_batch_norms", "compile")
}

_OF_PEAKS = {"peaks", "top", "group"}


def digest(value: Any) -> str:
    """Twelve digits that stand for a JSON value in file names."""
    return sha256_of_json(plain(value))[:12]


def keep(plan: Plan, result: Path) -> Path:
    """Write a plan beside the file or folder that it makes, whose path is returned."""
    ask_for(result)
    file = result.with_name(f"{result.name}.plan.json")
    if distributed.is_main() and not file.exists():
        write_json(file, plain(plan))
    return result


def _images(images: StudyDataset, content: str) -> Plan:
    """Which images, what is in their files, and how they are prepared; `content` covers annotations and image size."""
    ids = images.images["image_id"].tolist()
    return {
        "n": len(ids),
        "ids_sha256": sha256_of_json(ids),
        "content": content,
        "preprocessing": images.preprocessing.fingerprint,
    }


def of_classifier(
    training: ClassifierTraining, encoder: str, concept: str, images: StudyDataset, content: str, unit: EvaluationUnit
) -> Plan:
    """A classifier that the study trains.

    Args:
        training: The model's `train` section.
        encoder: The fingerprint of the network that it starts from.
        concept: What it tells.
        images: The training images.
        content: The digest of the annotations and of every image file.
        unit: What chooses the epoch, where patients are held out.
    """
    chosen_by = {"unit": str(unit)} if unit.has_several_images and training.validation_share else {}
    return {
        "step": "classify",
        "concept": concept,
        "encoder": encoder,
        "training": training.model_dump(),
        "images": _images(images, content),
        **chosen_by,
    }


def of_embeddings(config: EmbeddingStudyConfig, model: EmbeddingModel, images: StudyDataset, content: str) -> Plan:
    """The vectors that a network makes.

    Args:
        config: The study's configuration.
        model: Its model, with a network.
        images: All images of the study.
        content: As in `of_classifier`.
    """
    files = {
        name: sha256_of_file(path)
        for name in ("network", "weights")
        if (path := Path(getattr(model, name) or "")).is_file()
    }
    return {
        "step": "extract",
        "store_format": STORE_FORMAT,
        "model": {**model.model_dump(exclude={"name", "embeddings", "column"}), **files},
        "images": _images(images, content),
        "batch_size": config.batch_size,
    }


def of_rows(config: StudyConfig, network: str, images: StudyDataset, content: str) -> Plan:
    """The rows on which SAEs are trained.

    Args:
        config: The study's configuration, with a section `sae.train`.
        network: The fingerprint of the classifier whose features they are.
        images: The training images.
        content: As in `of_classifier`.
    """
    assert config.sae.train is not None
    return {
        "step": "extract",
        "format_version": STORE_FORMAT,
        "network": network,
        "images": _images(images, content),
        "rows": config.sae.train.model_dump(include=_OF_ROWS),
        "seed": config.seed,
        "batch_size": config.batch_size,
    }


def of_sae(config: StudyConfig, rows: Mapping[str, Any]) -> Plan:
    """An SAE that the study trains.

    Args:
        config: The study's configuration, with a section `sae.train`.
        rows: The manifest of the store of rows, with its hook point and the SHA-256 of every shard.
    """
    assert config.sae.train is not None
    source = config.sae.train
    return {
        "step": "train",
        "rows": digest(rows),
        "training": source.training.model_dump(),
        "model": source.model,  # which the SAE's own metadata say, with the concept
        "concept": source.concept,
    }


def of_encoding(
    config: StudyConfig,
    *,
    hook_name: str,
    encoder: str,
    sae: Tensors,
    sae_settings: Mapping[str, Any],
    images: StudyDataset,
    content: str,
) -> Plan:
    """What the latents of images depend on.

    Args:
        config: The study's configuration.
        hook_name: The layer.
        encoder: The fingerprint of the network up to its heads.
        sae: The SAE's weights.
        sae_settings: What its latents depend on beside them.
        images: The images.
        content: As in `of_classifier`.
    """
    return {
        "step": "encode",
        "format_version": TABLE_FORMAT,
        "hook_name": hook_name,
        "encoder": encoder,
        "sae": tensors_fingerprint(sae),
        "sae_settings": dict(sae_settings),
        "images": _images(images, content),
        "batch_size": config.batch_size,
    }


def of_table(
    config: StudyConfig,
    *,
    hook_name: str,
    encoder: str,
    sae: Tensors,
    sae_settings: Mapping[str, Any],
    heads: Mapping[str, nn.Linear],
    with_boxes: Sequence[str],
    scores: Sequence[str],
    images: StudyDataset,
    content: str,
) -> Plan:
    """A latents table.

    Args:
        config: The study's configuration.
        hook_name: The layer.
        encoder: The fingerprint of the network up to its heads.
        sae: The SAE's weights.
        sae_settings: What its latents depend on beside them.
        heads: The linear heads by concept.
        with_boxes: The concepts whose best latents have maps.
        scores: The scores that say which are best.
        images: All images of the study.
        content: As in `of_classifier`.
    """
    analysis = config.analysis
    lesions = analysis.lesions
    peaks = {} if lesions is None else {"peaks": {"version": ELEMENTS[PEAKS], **lesions.model_dump(include=_OF_PEAKS)}}
    encoding = of_encoding(
        config,
        hook_name=hook_name,
        encoder=encoder,
        sae=sae,
        sae_settings=sae_settings,
        images=images,
        content=content,
    )
    return {
        **encoding,
        "heads": {concept: tensors_fingerprint(linear.state_dict()) for concept, linear in heads.items()},
        "maps": {
            "concepts": list(with_boxes),
            "top": analysis.top,
            "scores": list(scores),
            "unit": str(config.data.evaluation_unit),
            "gradcam": analysis.gradcam,
        },
        **peaks,
    }


def of_layer_outputs(config: StudyConfig, *, hook_name: str, encoder: str, images: StudyDataset, content: str) -> Plan:
    """The outputs of a layer, on which interventions at it are computed.

    Args:
        config: The study's configuration.
        hook_name: The layer.
        encoder: The fingerprint of the network up to its heads.
        images: The test images.
        content: As in `of_classifier`.
    """
    return {
        "step": "intervene",
        "format_version": OUTPUTS_FORMAT,
        "hook_name": hook_name,
        "encoder": encoder,
        "images": _images(images, content),
        "batch_size": config.batch_size,
    }


def of_analysis(name: str, *, table: str, model: str, concept: str, settings: Mapping[str, Any]) -> Plan:
    """One analysis of one classifier.

    Args:
        name: What is computed.
        table: The name of the latents table's folder, which bears its digest.
        model: The model.
        concept: The concept.
        settings: Every argument of the analysis but the table, the model and the concept.
    """
    return {
        "step": name,
        "table": table,
        "model": model,
        "concept": concept,
        "settings": dict(settings),
        "mammosae_plugin": package_versions()["mammosae-plugin"],
    }
