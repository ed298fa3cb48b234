"""Embeddings: one vector per image of any backbone, as an activation store with one position per image."""

__all__ = ["embed", "IMAGES_PER_SHARD"]

import os
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from mammosae_plugin import distributed
from mammosae_plugin.activations.extraction import Autocast, extract_vectors
from mammosae_plugin.activations.row_sources import IMAGES
from mammosae_plugin.activations.store import MANIFEST, ActivationStore
from mammosae_plugin.adapters import Classifier
from mammosae_plugin.adapters.embedders import Embedder, Pooling, load_embedder
from mammosae_plugin.datasets import StudyDataset, require_study_dataset
from mammosae_plugin.files import local_path, remove_temporaries, sha256_of_file, write_parquet

IMAGES_PER_SHARD = 512  # of vectors, which are small: a million images are 2,000 files


def embed(
    model: str | os.PathLike[str] | nn.Module | Classifier | Embedder,
    dataset: StudyDataset,
    folder: str | os.PathLike[str],
    *,
    pooling: Pooling = "model",
    weights: str | os.PathLike[str] | None = None,
    dtype: str = "float32",
    limit: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    batch_size: int = 8,
    num_workers: int = 0,
    autocast: Autocast | None = None,
) -> ActivationStore:
    """Write one vector per image to an activation store: SAEs are trained on it, `encode_rows` reads it.

    A killed call is made again and continues, with the same bytes in the end. Under torchrun all processes make the
    same call, and each reads its share of the images. What is known of the images (labels, split, patient) lies beside
    the rows in `images.parquet`.

    Args:
        model: The backbone: timm's name ("vit_large_patch16_dinov3.lvd1689m"), "hf:" and a model of transformers, a
            checkpoint of Mammo-CLIP's or of ours, or a network; see `load_embedder`.
        dataset: The images; all of them are read, as the model wants them where it says how.
        folder: Where the store goes.
        pooling: How the vector is made: "model" (its own), "class_token", "mean_of_patches", or "projected".
        weights: "random" for the control with the same network and random weights; None for its own.
        dtype: Type of the stored rows: "float32", "float16" or "bfloat16".
        limit: The first so many images of the dataset only.
        seed: Of random weights, and of the order of rows within a shard.
        device: Where the network runs; under torchrun "cuda" is each process's own GPU.
        batch_size: Images per forward pass.
        num_workers: Processes that read images while the network runs.
        autocast: Run the network under autocast to "bfloat16" or "float16".

    Raises:
        InputError: No such model, a pooling that it cannot have, an impossible setting, vectors that are not finite, or
            a folder that holds other activations.

    Example:
        >>> images = TotalSegmentator("ct")                                                      # doctest: +SKIP
        >>> store = embed("vit_large_patch16_dinov3.lvd1689m", images, "out", device="cuda")     # doctest: +SKIP
    """
    require_study_dataset(dataset)
    embedder = load_embedder(model, pooling=pooling, weights=weights, seed=seed, image_size=dataset.image_size)
    if embedder.preprocessing is not None:
        dataset = dataset.with_preprocessing(embedder.preprocessing)
    with embedder.hooked(dataset.image_size) as hooked:
        return extract_vectors(
            hooked,
            dataset,
            local_path(folder),
            hook_name=embedder.hook_path,
            about=partial(_write_images, local_path(folder)),
            images_per_shard=IMAGES_PER_SHARD,
            dtype=dtype,
            limit=limit,
            seed=seed,
            device=device,
            batch_size=batch_size,
            num_workers=num_workers,
            autocast=autocast,
        )


def _write_images(folder: Path, dataset: StudyDataset) -> dict[str, Any]:
    """Write what is known of the images, and give what the manifest says of that."""

    path = folder / IMAGES

    def write() -> str:
        if (folder / MANIFEST).exists() and path.exists():
            return sha256_of_file(path)  # of a store that is whole; another one is named when it is read
        remove_temporaries(folder)  # of a run that was killed between its shards and its manifest
        write_parquet(path, dataset.images)
        return sha256_of_file(path)

    digest = distributed.on_main(write)
    return {"images_table": {"sha256": digest, "vocabulary": dataset.vocabulary.to_json()}}
