"""Mammo-CLIP files with weights that are known exactly, rebuilt by the rule in tests/data/README.md."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from mammosae_plugin.adapters import MammoClipClassifier, new_classifier

DATA = Path(__file__).parent / "data"

_CONFIG_NAMES = {"b5": "tf_efficientnet_b5_ns-detect", "b2": "tf_efficientnetv2-detect"}
N_FEATURES = {"b5": 2048, "b2": 1408}


def fixture_tensor(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor of a key outside the batch norms: standard normal, seeded by the key and scaled by the shape."""
    values = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)  # noqa: NPY002
    scale = np.float32(0.05) if key.endswith("bias") else np.float32(np.sqrt(2 / np.prod(shape[1:])))
    return torch.from_numpy(values * scale)


def fixture_state_dict(variant: str) -> dict[str, torch.Tensor]:
    """The image encoder's state dict of "b5" or "b2", under the original's names without prefix."""
    shapes = json.loads((DATA / "mammo_clip_image_encoder_keys.json").read_text())[variant]
    statistics = load_file(DATA / f"mammo_clip_{variant}_bn_stats.safetensors")
    state_dict = {}
    for key, shape in shapes.items():
        module, _, leaf = key.rpartition(".")
        if key in statistics:
            state_dict[key] = statistics[key]
        elif leaf == "num_batches_tracked":
            state_dict[key] = torch.tensor(0)
        elif f"{module}.running_mean" in statistics:
            state_dict[key] = torch.ones(shape) if leaf == "weight" else torch.zeros(shape)
        else:
            state_dict[key] = fixture_tensor(key, tuple(shape))
    return state_dict


def fixture_checkpoint(variant: str) -> dict[str, Any]:
    """What a pretraining checkpoint of the variant holds, for `torch.save`."""
    model = {f"image_encoder.{key}": tensor for key, tensor in fixture_state_dict(variant).items()}
    model |= {
        "text_encoder.text_encoder.embeddings.position_ids": torch.arange(8)[None],
        "image_projection.projection.weight": torch.zeros(4, N_FEATURES[variant]),
        "logit_scale": torch.tensor(1.0),
    }
    return {
        "model": model,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 5e-5, "params": [0]}]},
        "scheduler": {"last_epoch": 3, "_last_lr": [5e-5]},
        "config": {"model": {"name": "clip_custom", "image_encoder": {"name": _CONFIG_NAMES[variant]}}},
        "epoch": 7,
        "train_loss": 1.5,
    }


def fixture_downstream(variant: str, *, n_class: int = 1, prefix: str = "") -> dict[str, Any]:
    """What a downstream classifier file of the variant holds, numpy values included, for `torch.save`.

    Args:
        variant: "b5" or "b2".
        n_class: outputs of the linear head; with 1 the head is that of the fixtures' expected logit.
        prefix: goes before every key of the model, such as DataParallel's "module.".
    """
    model = {f"image_encoder.{key}": tensor for key, tensor in fixture_state_dict(variant).items()}
    for leaf, shape in (("weight", (n_class, N_FEATURES[variant])), ("bias", (n_class,))):
        key = f"classifier.classification_head.{leaf}"
        model[key] = fixture_tensor(key, shape)
    return {
        "model": {prefix + key: tensor for key, tensor in model.items()},
        "predictions": np.linspace(0, 1, 5, dtype=np.float32),
        "epoch": 4,
        "auroc": np.float64(0.979),
    }


def fixture_input() -> torch.Tensor:
    """The input (1, 3, 1520, 912) to which the fixtures' expected outputs belong."""
    values = np.random.RandomState(7).standard_normal((1, 3, 1520, 912))  # noqa: NPY002 (the fixtures' rule)
    return torch.from_numpy(values.astype(np.float32))


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The L2 norm of the difference over that of the expected tensor."""
    return float((found - expected).norm() / expected.norm())


def calibrated_classifier(
    n_class: int, *, seed: int = 0, images: torch.Tensor | None = None, architecture: str = "tinynet_e"
) -> MammoClipClassifier:
    """Random weights whose batch norms know their inputs: with timm's fresh statistics the final map is nearly zero."""
    model = new_classifier(architecture, n_class, seed=seed).train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    if images is None:
        images = torch.randn(8, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        model(images)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()
