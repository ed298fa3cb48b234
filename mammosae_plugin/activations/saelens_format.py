"""Activation stores as SAELens's cached-activations datasets, and back.

SAELens's `ActivationsStore(cached_activations_path=...)` and its training runner read a Hugging Face dataset written
with `save_to_disk`, with a column named after the hook point: one (context_size, d_in) array per sequence. Here a
sequence is an image and its context the image's positions, so every image must have the same number of rows. SAELens
ignores the other columns, `image_id` and `positions`, and the manifest beside the data: they say what the rows are.
"""

__all__ = ["BYTES_PER_SHARD", "IMAGE_ID", "NOT_KNOWN", "POSITIONS", "read_saelens_dataset", "write_saelens_dataset"]

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mammosae_plugin.activations.store import (
    DTYPES,
    FORMAT_VERSION,
    MANIFEST,
    ActivationStore,
    seal_store,
    shard_tensors,
)
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import TEMPORARY, is_sealed, local_path, read_json, sha256_of_file, write_json
from mammosae_plugin.shards import run_shards

IMAGE_ID, POSITIONS = "image_id", "positions"
BYTES_PER_SHARD = 256 * 2**20
NOT_KNOWN = "SAELens dataset"
"""The name of the data behind rows of which nobody said what they are from."""


def write_saelens_dataset(store: ActivationStore, folder: str | Path) -> int:
    """Write the rows as a dataset that SAELens trains on.

    Rows of bfloat16, which such a dataset cannot hold, are written as float32.

    Args:
        store: The rows.
        folder: Where the dataset goes (SAELens's `cached_activations_path`); while it is written, as much room again is
            used beside it.

    Returns:
        Rows per image: SAELens's `context_size`.

    Raises:
        InputError: Images with different numbers of rows, a damaged store, or a folder that exists.
    """
    from datasets import Array2D, Dataset, Features, Sequence, Value
    from datasets.exceptions import DatasetGenerationError

    folder = local_path(folder)
    if folder.exists():
        raise InputError(f"{folder} exists; name a folder that does not")
    counts = np.bincount(store.labels()[0])
    counts = np.unique(counts[counts > 0])
    if len(counts) > 1:
        raise InputError(
            f"images of {store.folder} have from {counts[0]} to {counts[-1]} rows; SAELens needs as many of each"
        )
    context = int(counts[0])
    dtype = "float32" if store.dtype == torch.bfloat16 else store.manifest["dtype"]
    columns = {
        store.hook_name: Array2D((context, store.d_in), dtype),
        IMAGE_ID: Value("string"),
        POSITIONS: Sequence(Value("int32"), length=context),
    }

    def images() -> Iterator[dict[str, Any]]:
        for rows, image, position in store.shards():
            for start in range(0, len(rows), context):
                part = slice(start, start + context)
                yield {
                    store.hook_name: rows[part].to(DTYPES[dtype]).numpy(),
                    IMAGE_ID: store.image_ids[int(image[start])],
                    POSITIONS: position[part].numpy(),
                }

    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=TEMPORARY))
    try:
        dataset = Dataset.from_generator(
            images, features=Features(columns), cache_dir=str(temporary / "cache"), writer_batch_size=16
        )
        dataset.save_to_disk(str(temporary / "dataset"))
        write_json(temporary / "dataset" / MANIFEST, store.manifest)
        os.replace(temporary / "dataset", folder)
    except DatasetGenerationError as error:
        raise error.__cause__ or error from error  # the store's own error says which file is damaged
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return context


def read_saelens_dataset(
    dataset_folder: str | Path, folder: str | Path, *, hook_name: str | None = None
) -> ActivationStore:
    """Make a store of a dataset that SAELens's `CacheActivationsRunner` or `write_saelens_dataset` wrote.

    A killed call is made again and continues.

    Args:
        dataset_folder: The dataset.
        folder: Where the store goes.
        hook_name: The column to read; None means the only one that holds activations.

    Raises:
        InputError: No such dataset, no such column, a row that is not finite, or a folder that holds something else.
    """
    from datasets import Array2D, Dataset, load_from_disk

    dataset_folder, folder = local_path(dataset_folder), local_path(folder)
    try:
        dataset = load_from_disk(str(dataset_folder))
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{dataset_folder} is not a dataset that `save_to_disk` wrote") from error
    if not isinstance(dataset, Dataset) or len(dataset) == 0:
        raise InputError(f"{dataset_folder} is not one dataset with rows; name the folder of one split")
    hook_names = [name for name, feature in dataset.features.items() if isinstance(feature, Array2D)]
    chosen = hook_name or (hook_names[0] if len(hook_names) == 1 else None)
    if chosen not in hook_names:
        raise InputError(f"{dataset_folder} has activations of {', '.join(hook_names) or 'nothing'}; name one of them")
    feature = dataset.features[chosen]
    if feature.dtype not in ("float16", "float32"):
        raise InputError(f"{dataset_folder} has activations of type {feature.dtype}; a store holds float16 or float32")
    context, d_in = feature.shape
    ids = list(dataset[IMAGE_ID]) if IMAGE_ID in dataset.features else [f"sequence {n}" for n in range(len(dataset))]
    arrays = dataset.with_format("numpy", columns=[chosen, *({POSITIONS} & set(dataset.features))])

    def compute(items: range) -> dict[str, torch.Tensor]:
        read = arrays[items.start : items.stop]
        values = np.asarray(read[chosen], dtype=feature.dtype).reshape(len(items) * context, d_in)
        image = np.repeat(np.arange(items.start, items.stop), context)
        position = np.asarray(read[POSITIONS] if POSITIONS in read else np.tile(np.arange(context), len(items))).ravel()
        broken = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(broken):
            raise InputError(
                f"{dataset_folder} has a row that is not finite: image {ids[image[broken[0]]]}, "
                f"position {position[broken[0]]}"
            )
        tensors = [torch.from_numpy(array.copy()) for array in (values, image, position)]
        return shard_tensors([tensors[0]], [tensors[1]], [tensors[2]], seed=[0, items.start])

    plan = {
        "saelens": [sha256_of_file(file["filename"]) for file in dataset.cache_files],
        "hook_name": chosen,
        "dtype": feature.dtype,
    }
    shard_size = max(1, BYTES_PER_SHARD // (context * d_in * DTYPES[feature.dtype].itemsize))
    run_shards(folder, plan, len(dataset), shard_size, compute, description="read SAELens's dataset")
    unknown = {
        "model": "unknown",
        "architecture": "unknown",
        "source": {},
        "image_size": [],
        "dataset": plan["saelens"][0],
        "dataset_name": NOT_KNOWN,
        "splits": [],
    }
    beside = dataset_folder / MANIFEST
    said = read_json(beside) if beside.exists() else unknown
    if said.get("format_version") == FORMAT_VERSION and not is_sealed(said):
        raise InputError(f"{beside} was changed after it was written; restore it, or write the dataset again")
    return seal_store(folder, said | {"hook_name": chosen, "image_ids": ids}, d_in=d_in, dtype=feature.dtype)
