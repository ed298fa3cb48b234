"""One pass of the network over a dataset, writing the rows of one hook point to an activation store."""

from collections.abc import Iterator, Sequence
from functools import partial
from math import prod
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from mammosae_plugin.activations.store import FORMAT_VERSION, MANIFEST, ActivationStore
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.datasets import MammogramDataset, collate
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import sha256_of_json, write_json
from mammosae_plugin.provenance import environment, package_versions, plain, tensors_fingerprint
from mammosae_plugin.shards import run_shards

IMAGES_PER_SHARD = 64
BYTES_PER_SHARD = 768 * 2**20  # a shard is in memory while it is made: 64 images of a B5's final map are 730 MB


def image_batches(
    dataset: MammogramDataset, items: range, batch_size: int, num_workers: int = 0
) -> Iterator[tuple[int, torch.Tensor]]:
    """Batches of preprocessed images (b, 3, H, W) with the index of their first, in order.

    Args:
        dataset: Gives images (3, H, W) float32.
        items: The indices to read, consecutive.
        batch_size: Images per batch; the last may be smaller.
        num_workers: Processes that read ahead; 0 reads in this one.
    """
    loader = DataLoader(Subset(dataset, items), batch_size, num_workers=num_workers, collate_fn=collate)
    for number, batch in enumerate(loader):
        yield items.start + number * batch_size, batch["image"]


def capture(model: HookedVisionModel, hook_name: str, images: torch.Tensor) -> torch.Tensor:
    """The value shown at one hook point, (B, h, w, C), (B, n, C) or (B, C), for images (B, 3, H, W)."""
    name = model.resolve_hook_name(hook_name)
    _, cache = model.run_with_cache(images, names_filter=name)
    value: torch.Tensor = cache[name]
    return value


def sampled_positions(image_id: str, n_positions: int, fraction: float, seed: int) -> np.ndarray:
    """Sorted int64 positions to keep for an image: a random `fraction`, at least one, by seed and image id alone."""
    n_kept = max(1, round(n_positions * fraction))
    if n_kept == n_positions:
        return np.arange(n_positions)
    generator = np.random.default_rng([seed, crc32(image_id.encode())])
    return np.sort(generator.choice(n_positions, n_kept, replace=False))


def extract_activations(
    model: HookedVisionModel,
    dataset: MammogramDataset,
    folder: str | Path,
    *,
    hook_name: str | None = None,
    fraction: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
    batch_size: int = 1,
    num_workers: int = 0,
) -> ActivationStore:
    """Write the activations at a hook point, one row per kept position, to a store on disk.

    A killed call is made again and continues; the rows depend on seed and image id, not on order or interruptions.

    Args:
        model: The hookable model.
        dataset: The images; all of them are read.
        folder: Where the store goes.
        hook_name: A hook point or alias; None means the final map. Rows are (C,) float32: one per position of a map
            (B, h, w, C), one per token of (B, n, C), one per image of a vector (B, C).
        fraction: Share of each image's positions to keep, in (0, 1]. The released code keeps 0.25.
        seed: Chooses the positions.
        device: Where the network runs.
        batch_size: Images per forward pass.
        num_workers: Processes that read images beside the network.

    Raises:
        InputError: An impossible fraction, an empty dataset, an unknown hook name, or a folder that holds other
            activations.
    """
    if not 0 < fraction <= 1:
        raise InputError(f"fraction is {fraction}; it must be above 0 and at most 1")
    if len(dataset) == 0:
        raise InputError("there is no image to extract activations from; check the split and the quarantine file")
    if hook_name is None and model.final_hook is None:
        raise InputError("the model has no hook point at its final map; name the layer to extract (hook_name)")
    folder, hook_name = Path(folder), model.resolve_hook_name(hook_name or str(model.final_hook))
    model.to(device).eval()
    plan = {
        "format_version": FORMAT_VERSION,
        "model": tensors_fingerprint(model.state_dict()),
        "hook_name": hook_name,
        "dataset": dataset.fingerprint,
        "images": sha256_of_json(dataset.images["image_id"].tolist()),
        "image_size": list(dataset.image_size),
        "fraction": fraction,
        "seed": seed,
        "batch_size": batch_size,
    }
    compute = partial(
        _extract_shard,
        model,
        dataset,
        hook_name,
        fraction,
        seed,
        device,
        batch_size=batch_size,
        num_workers=num_workers,
    )
    shard_size = _images_per_shard(model, hook_name, dataset.image_size, fraction)
    run_shards(folder, plan, len(dataset), shard_size, compute, description="extract activations")
    if not (folder / MANIFEST).exists():
        manifest = {
            **plan,
            "dataset_name": dataset.name,
            "splits": sorted(dataset.images["split"].unique()),
            "image_ids": dataset.images["image_id"].tolist(),
            "architecture": getattr(model.model, "architecture", type(model.model).__name__),
            "source": plain(getattr(model.model, "source", {})),
            "packages": package_versions(),
            **environment(),
        }
        write_json(folder / MANIFEST, manifest)
    return ActivationStore(folder)


def _images_per_shard(model: HookedVisionModel, hook_name: str, image_size: tuple[int, int], fraction: float) -> int:
    """Few enough images that their rows fit into memory: an early layer has hundreds of times the final map's rows."""
    *positions, width = model.hook_shapes[hook_name]
    if model.hook_layouts[hook_name].shows_grid:
        positions = list(model.grid(hook_name, image_size))
    nbytes = max(1, round(prod(positions) * fraction)) * width * 4
    return min(IMAGES_PER_SHARD, max(1, BYTES_PER_SHARD // nbytes))


@torch.inference_mode()
def _extract_shard(
    model: HookedVisionModel,
    dataset: MammogramDataset,
    hook_name: str,
    fraction: float,
    seed: int,
    device: str,
    items: range,
    *,
    batch_size: int,
    num_workers: int,
) -> dict[str, torch.Tensor]:
    ids: Sequence[str] = dataset.images["image_id"].tolist()
    rows, images, positions = [], [], []
    for first, batch in image_batches(dataset, items, batch_size, num_workers):
        values = capture(model, hook_name, batch.to(device)).float().cpu()
        for offset, value in enumerate(values):
            flat = value.reshape(-1, value.shape[-1])
            kept = torch.from_numpy(sampled_positions(ids[first + offset], len(flat), fraction, seed))
            if not torch.isfinite(flat).all():
                raise InputError(f"the model gives features that are not finite for image {ids[first + offset]}")
            rows.append(flat[kept])
            images.append(torch.full((len(kept),), first + offset))
            positions.append(kept)
    return {"rows": torch.cat(rows), "image": torch.cat(images), "position": torch.cat(positions)}
