"""Embeddings: one vector per image of any backbone, as an activation store with one position per image."""

__all__ = ["embed", "IMAGES_PER_SHARD", "store_embeddings"]

import hashlib
import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from mammosae_plugin import distributed
from mammosae_plugin.activations.extraction import Autocast, extract_vectors
from mammosae_plugin.activations.row_sources import IMAGES, Source, in_lengths, open_rows
from mammosae_plugin.activations.store import FORMAT_VERSION, MANIFEST, ActivationStore, seal_store, shard_tensors
from mammosae_plugin.activations.stored_shards import patient_number
from mammosae_plugin.adapters import Classifier
from mammosae_plugin.adapters.embedders import Embedder, Pooling, load_embedder
from mammosae_plugin.datasets import StudyDataset, as_images, for_network, is_study_dataset
from mammosae_plugin.datasets.concepts import Concept, Vocabulary
from mammosae_plugin.datasets.splits import TRAINING
from mammosae_plugin.files import local_path, remove_temporaries, sha256_of_file, write_parquet
from mammosae_plugin.shards import ShardTask, Tensors, run_shards_together

IMAGES_PER_SHARD = 512  # of vectors, which are small: a million images are 2,000 files
_ROWS_PER_SHARD = 8192  # of vectors that need no network
_STORED = "stored embeddings"


def embed(
    model: str | os.PathLike[str] | nn.Module | Classifier | Embedder,
    dataset: StudyDataset | Any,
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
        dataset: The images; all of them are read, as the model wants them where it says how. A dataset, or any source
            of `datasets.as_images`.
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
    dataset = dataset if is_study_dataset(dataset) else as_images(dataset)
    embedder = load_embedder(model, pooling=pooling, weights=weights, seed=seed, image_size=dataset.image_size)
    if embedder.preprocessing is not None:
        dataset = dataset.with_preprocessing(embedder.preprocessing)
    dataset = for_network(dataset, embedder)
    with embedder.hooked(dataset.preprocessing.input_size(dataset.image_size)) as hooked:
        return extract_vectors(
            hooked,
            dataset,
            local_path(folder),
            hook_name=embedder.hook_path,
            about=lambda images: _write_images(local_path(folder), images.images, images.vocabulary),
            images_per_shard=IMAGES_PER_SHARD,
            dtype=dtype,
            limit=limit,
            seed=seed,
            device=device,
            batch_size=batch_size,
            num_workers=num_workers,
            autocast=autocast,
        )


def store_embeddings(
    source: Source,
    folder: str | os.PathLike[str],
    *,
    column: str | None = None,
    images: pd.DataFrame | None = None,
    concepts: Sequence[str | Concept] | None = None,
    split: str = TRAINING,
) -> ActivationStore:
    """Write vectors that are there, in files of embeddings, as an activation store, on which SAEs are trained.

    A killed call is made again and continues. What is known of the images lies beside the rows in `images.parquet`, as
    `embed` leaves it.

    Args:
        source: A parquet file (SAIL's, or any with a column of lists), a `.npy` with a CSV beside it, several, of one
            split each, or a folder with them; another store too.
        folder: Where the store goes.
        column: Of files, the column with the vectors.
        images: What is known of the images, by image_id, instead of what lies beside the rows.
        concepts: Which columns are labels; by default those that hold 0 and 1 alone.
        split: The split of rows of which nothing says another.

    Raises:
        InputError: As `encode_rows` for its rows, or a folder that holds something else.
    """
    rows = open_rows(source, column=column, images=images, concepts=concepts, split=split)
    known, folder = rows.images, local_path(folder)
    of_rows = hashlib.sha256(pd.util.hash_pandas_object(known).to_numpy().tobytes()).hexdigest()
    plan = {"format_version": FORMAT_VERSION, "rows": rows.fingerprint, "images": [known.columns.tolist(), of_rows]}

    def stream(tasks: Sequence[ShardTask]) -> Generator[Mapping[str, Tensors], None, None]:
        wanted = [np.arange(task.items.start, task.items.stop) for task in tasks]
        for number, vectors in zip(wanted, in_lengths(rows, wanted), strict=True):
            tensors = [torch.from_numpy(one) for one in (vectors, number, np.zeros(len(number), dtype=np.int64))]
            yield {"": shard_tensors([tensors[0]], [tensors[1]], [tensors[2]], seed=[0, int(number[0])])}

    run_shards_together(
        {"": (folder, plan)}, len(known), _ROWS_PER_SHARD, stream, description="store embeddings", unit="row"
    )
    described = {
        "hook_name": rows.hook_name,
        "image_ids": known["image_id"].tolist(),
        "patients": [patient_number(patient) for patient in known["patient_id"]],
        "splits": sorted(known["split"].unique()),
        "model": "unknown",
        "architecture": "unknown",
        "source": {},
        "image_size": list(rows.image_size),
        "dataset": rows.fingerprint,
        "dataset_name": _STORED,
        **_write_images(folder, known, rows.vocabulary),
    }
    return seal_store(folder, described, d_in=rows.width, dtype="float32")


def _write_images(folder: Path, images: pd.DataFrame, vocabulary: Vocabulary) -> dict[str, Any]:
    """Write what is known of the images, and give what the manifest says of that."""

    path = folder / IMAGES

    def write() -> str:
        if (folder / MANIFEST).exists() and path.exists():
            return sha256_of_file(path)  # of a store that is whole; another one is named when it is read
        remove_temporaries(folder)  # of a run that was killed between its shards and its manifest
        write_parquet(path, images)
        return sha256_of_file(path)

    digest = distributed.on_main(write)
    return {"images_table": {"sha256": digest, "vocabulary": vocabulary.to_json()}}
