"""The output of one layer for every image, on disk: an intervention there starts from it and runs only what follows."""

__all__ = [
    "BYTES_PER_SHARD", "cache_layer_outputs", "FORMAT_VERSION", "IMAGES_PER_SHARD", "layer_output_nbytes",
    "LayerOutputs", "MANIFEST",
]  # fmt: skip

import logging
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open

from mammosae_plugin import distributed
from mammosae_plugin.activations.extraction import image_batches
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.adapters.recording import evaluation
from mammosae_plugin.datasets import StudyDataset
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import SEAL, is_sealed, local_path, read_json, sealed, sha256_of_json, write_json
from mammosae_plugin.provenance import environment, package_versions, plain, tensors_fingerprint
from mammosae_plugin.shards import require_room, run_shards, shard_paths

FORMAT_VERSION = 2
MANIFEST = "layer_outputs.json"
IMAGES_PER_SHARD = 64
BYTES_PER_SHARD = 512 * 2**20  # a shard is in memory while it is made

logger = logging.getLogger(__name__)


class LayerOutputs:
    """A module's own outputs that `cache_layer_outputs` wrote, read one image at a time.

    Args:
        folder: The cache.

    Attributes:
        manifest: What the outputs are: hook name, model, dataset, image size.
        n_images: Number of images.
        image_ids: Their ids, in order.
        hook_name: The full hook name of the layer.
        image_size: (H, W) of the images in pixels.
        nbytes_per_image: Bytes on disk per image.

    Raises:
        InputError: The folder is not a complete cache, or of another format.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = local_path(folder)
        if not (self.folder / MANIFEST).exists():
            raise InputError(f"{self.folder} is not a complete cache of layer outputs (no {MANIFEST}); make it again")
        self.manifest: dict[str, Any] = read_json(self.folder / MANIFEST)
        version = self.manifest.get("format_version") if isinstance(self.manifest, dict) else None
        if version not in (1, FORMAT_VERSION):
            raise InputError(
                f"{self.folder} has layer-outputs format {version}; this version reads format {FORMAT_VERSION}, so "
                "make it again"
            )
        if (version == FORMAT_VERSION or SEAL in self.manifest) and not is_sealed(self.manifest):
            raise InputError(f"{self.folder / MANIFEST} was changed after it was written; delete it and run again")
        self.image_ids: tuple[str, ...] = tuple(self.manifest["image_ids"])
        self.n_images = len(self.image_ids)
        self.hook_name: str = self.manifest["hook_name"]
        self.image_size: tuple[int, int] = (self.manifest["image_size"][0], self.manifest["image_size"][1])
        self.nbytes_per_image: int = self.manifest["nbytes_per_image"]

    @cached_property
    def _paths(self) -> list[Path]:
        return shard_paths(self.folder)

    @cached_property
    def _number_of(self) -> dict[str, int]:
        return {image_id: number for number, image_id in enumerate(self.image_ids)}

    def number_of(self, image_id: str) -> int:
        """The number of an image by its id.

        Raises:
            InputError: The cache has no such image.
        """
        if image_id not in self._number_of:
            raise InputError(f"{self.folder} has no output for image {image_id}; cache the images of that split")
        return self._number_of[image_id]

    def raw(self, image_number: int) -> torch.Tensor:
        """(1, ...): the module's output for one image, on the CPU, in the memory order in which the module gave it."""
        if not 0 <= image_number < self.n_images:
            raise InputError(f"there is no image {image_number}: {self.folder} has the images 0 to {self.n_images - 1}")
        shard, place = divmod(image_number, int(self.manifest["shard_size"]))
        with safe_open(self._paths[shard], framework="pt") as file:
            stored: torch.Tensor = file.get_slice("raw")[place : place + 1]
        return stored.permute(0, 3, 1, 2) if self.manifest["channels_last_memory"] else stored


@dataclass(frozen=True)
class _Stored:
    """How one image's output is stored: its size, and whether the module keeps maps in channels-last memory."""

    nbytes: int
    channels_last_memory: bool


def layer_output_nbytes(model: HookedVisionModel, hook_name: str, image_size: tuple[int, int]) -> int:
    """Bytes that `cache_layer_outputs` writes per image of `image_size` (H, W); one pass over a blank image.

    Raises:
        InputError: An unknown hook name.
    """
    with evaluation(model):
        return _stored(model, model.resolve_hook_name(hook_name), image_size).nbytes


def cache_layer_outputs(
    model: HookedVisionModel,
    dataset: StudyDataset,
    folder: str | Path,
    *,
    hook_name: str,
    device: str = "cpu",
    batch_size: int = 1,
    num_workers: int = 0,
) -> LayerOutputs:
    """Write the output of one layer for every image, from which the rest of the network can be run again and again.

    A killed call is made again and continues. Early layers are large (33 MB per image of 1520 x 912 at the first block
    of an EfficientNet-B5); the folder may be deleted once the interventions are done.

    Args:
        model: The hookable model.
        dataset: The images; all of them are read.
        folder: Where the cache goes.
        hook_name: The layer.
        device: Where the network runs.
        batch_size: Images per forward pass.
        num_workers: Processes that read images beside the network.

    Raises:
        InputError: An unknown hook name, an empty dataset, a folder that holds something else, or a disk without enough
            room; nothing is written then.
    """
    if len(dataset) == 0:
        raise InputError("there is no image to cache layer outputs of; check the split and the quarantine file")
    folder, hook_name = local_path(folder), model.resolve_hook_name(hook_name)
    device, image_size = distributed.place(device), dataset.preprocessing.input_size(dataset.image_size)
    with evaluation(model, device=device):
        stored = _stored(model, hook_name, image_size)
    shard_size = min(IMAGES_PER_SHARD, max(1, BYTES_PER_SHARD // stored.nbytes))
    distributed.on_main(
        lambda: require_room(
            folder, len(dataset), shard_size, stored.nbytes, f"the outputs of {hook_name}", "a later layer"
        )
    )
    plan = {
        "format_version": FORMAT_VERSION,
        "model": tensors_fingerprint(model.encoder_state()),
        "hook_name": hook_name,
        "dataset": dataset.fingerprint,
        "preprocessing": dataset.preprocessing.fingerprint,
        "images": sha256_of_json(dataset.images["image_id"].tolist()),
        "image_size": list(image_size),
        "batch_size": batch_size,
    }
    compute = partial(_read_shard, model, dataset, hook_name, stored, device, batch_size, num_workers)
    with evaluation(model, device=device):
        run_shards(folder, plan, len(dataset), shard_size, compute, description=f"cache {hook_name}")
    manifest = {
        **plan,
        "shard_size": shard_size,
        "nbytes_per_image": stored.nbytes,
        "channels_last_memory": stored.channels_last_memory,
        "image_ids": dataset.images["image_id"].tolist(),
        "dataset_name": dataset.name,
        "source": plain(getattr(model.model, "source", {})),
        "packages": package_versions(),
        **environment(),
    }

    def write() -> None:
        file = folder / MANIFEST
        if not file.exists() or not is_sealed(read_json(file)):
            write_json(file, sealed(manifest))

    distributed.on_main(write)
    return LayerOutputs(folder)


def _stored(model: HookedVisionModel, hook_name: str, image_size: tuple[int, int]) -> _Stored:
    call = model.call_at(hook_name, image_size)
    assert call.shape is not None and call.dtype is not None  # a hook point gives a tensor
    # A map of one channel or one position counts as both orders; it does not matter then.
    return _Stored(prod(call.shape) * call.dtype.itemsize, call.channels_last)


@torch.inference_mode()
def _read_shard(
    model: HookedVisionModel,
    dataset: StudyDataset,
    hook_name: str,
    stored: _Stored,
    device: str,
    batch_size: int,
    num_workers: int,
    items: range,
) -> dict[str, torch.Tensor]:
    ids = dataset.images["image_id"].to_numpy(dtype=object)
    pieces = []
    for first, images in image_batches(dataset, items, batch_size, num_workers):
        raw = model.read(images.to(device), hook_name).raw.cpu()
        broken = np.flatnonzero(~torch.isfinite(raw).flatten(1).all(1).numpy())
        if len(broken):
            raise InputError(f"the model gives features that are not finite for image {ids[first + broken[0]]}")
        pieces.append(raw.permute(0, 2, 3, 1) if stored.channels_last_memory else raw)
    return {"raw": torch.cat(pieces)}
