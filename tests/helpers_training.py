"""Builders for tests of SAE training: a small store of rows, and settings that train in a second."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mammosae_plugin.activations import ActivationStore
from mammosae_plugin.activations.store import write_store
from mammosae_plugin.training import SAETraining

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "standard": {"sparsity": 3e-3},
    "gated": {"sparsity": 3e-3},
    "topk": {"k": 4},
    "abstopk": {"k": 4},
    "batchtopk": {"k": 4},
    "jumprelu": {"sparsity": 1e-2, "sparsity_warm_up_steps": 5, "pre_act_loss": 3e-6},
    "matryoshka_batchtopk": {"k": 4},
    "matryoshka_independent": {"k": 4, "matryoshka_k": (1, 1.5, 3, 4)},
    "matching_pursuit": {"k": 4},
}
"""Every architecture that can be trained, with settings of its own."""


def rows_store(folder: Path, *, n_images: int = 40, rows_per_image: int = 10, d_in: int = 16) -> ActivationStore:
    """Sparse combinations of directions, but the first value says which image; two images per patient."""
    generator = torch.Generator().manual_seed(0)
    n_rows, n_directions = n_images * rows_per_image, 24
    directions = torch.nn.functional.normalize(torch.randn(n_directions, d_in, generator=generator), dim=1)
    coefficients = torch.rand(n_rows, n_directions, generator=generator)
    coefficients *= torch.rand(n_rows, n_directions, generator=generator) < 0.12
    rows = 5 * coefficients @ directions + 0.3
    image = torch.arange(n_rows) // rows_per_image
    rows[:, 0] = image / n_images
    return store_of(rows, folder, rows_per_image=rows_per_image)


def store_of(rows: torch.Tensor, folder: Path, *, rows_per_image: int = 10, **more: Any) -> ActivationStore:
    """A store of rows (n, d), of positions of each image in order; two images per patient; `more` for its manifest."""
    n_rows = len(rows)
    n_images = n_rows // rows_per_image
    image = torch.arange(n_rows) // rows_per_image
    step = 100 // rows_per_image * rows_per_image  # images lie in one shard each
    position = torch.arange(n_rows) % rows_per_image
    shards = [
        (rows[first : first + step], image[first : first + step], position[first : first + step])
        for first in range(0, n_rows, step)
    ]
    described = {
        "hook_name": "bn2.hook_out",
        "image_size": [96, 64],
        "dataset_name": "toy",
        "dataset": "toy",
        "splits": ["training"],
        "model": "toy",
        "architecture": "toy",
        "source": {},
        "image_ids": [f"image-{number}" for number in range(n_images)],
        "patients": [number // 2 for number in range(n_images)],
        **more,
    }
    return write_store(folder, shards, described)


def small_training(**settings: Any) -> SAETraining:
    """Settings for 30 steps on `rows_store`; the architecture's own ones unless they are given."""
    own = ARCHITECTURES[settings.get("architecture", "standard")]
    small = {
        "d_sae": 48,
        "epochs": 2.4,
        "batch_size": 32,
        "lr": 1e-3,
        "checkpoint_every": 7,
        "log_every": 3,
        "evaluate_every": 10,
        "dead_feature_window": 4,
    }
    return SAETraining(**{**small, **own, **settings})


def assert_same_weights(one: Any, other: Any) -> None:
    """Two SAEs are equal, bit for bit."""
    weights: Mapping[str, torch.Tensor] = one.state_dict()
    assert weights.keys() == other.state_dict().keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, other.state_dict()[name]), name
