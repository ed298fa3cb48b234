"""One pass of networks over a dataset, writing the rows of hook points to activation stores."""

__all__ = [
    "Augment", "Autocast", "BYTES_PER_SHARD", "capture", "capture_several", "extract_activations", "extract_together",
    "extract_vectors", "image_batches", "IMAGES_PER_SHARD", "sampled_positions", "SampleFrom",
]  # fmt: skip

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, get_args, overload
from zlib import crc32

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from mammosae_plugin import distributed
from mammosae_plugin.activations.store import DTYPES, FORMAT_VERSION, ActivationStore, seal_store, shard_tensors
from mammosae_plugin.activations.stored_shards import patient_number
from mammosae_plugin.adapters import HookedVisionModel
from mammosae_plugin.adapters.hooked_vision_model import require_hooked
from mammosae_plugin.adapters.recording import evaluation
from mammosae_plugin.adapters.views import common_views, require_columns, whole_exams
from mammosae_plugin.arguments import between, entries, one_of, whole
from mammosae_plugin.datasets import StudyDataset, for_network, made_of
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, sha256_of_json
from mammosae_plugin.provenance import environment, package_versions, plain, tensors_fingerprint
from mammosae_plugin.shards import ShardTask, Tensors, require_room, run_shards_together

IMAGES_PER_SHARD = 64
_AUGMENTED = 1  # a stream of its own beside the one that chooses positions
BYTES_PER_SHARD = 256 * 2**20  # the shards of one range of images are in memory while they are made

Autocast = Literal["bfloat16", "float16"]
SampleFrom = Literal["image", "batch"]


class Augment(Protocol):
    """A dataclass that changes an image (3, H, W) by the numbers of a generator."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __call__(self, image: torch.Tensor, generator: np.random.Generator) -> torch.Tensor: ...


@dataclass(frozen=True)
class _Settings:
    """The settings of an extraction, which `extract_activations` explains, checked."""

    dtype: str
    fraction: float
    count: int | None
    sample_from: SampleFrom
    limit: int | None
    augmentation: Augment | None
    seed: int
    device: str
    batch_size: int
    num_workers: int
    autocast: Autocast | None

    def __post_init__(self) -> None:
        one_of(self.dtype, "dtype", DTYPES)
        if self.autocast is not None:
            one_of(self.autocast, "autocast", get_args(Autocast))
        for name, least in (("seed", 0), ("batch_size", 1), ("num_workers", 0)):
            object.__setattr__(self, name, whole(getattr(self, name), name, least=least))
        between(self.fraction, "fraction", 0, 1, with_low=False)
        object.__setattr__(self, "fraction", float(self.fraction))
        for name in ("count", "limit"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole(getattr(self, name), name, least=1))
        if self.count is not None and self.fraction != 1:
            raise InputError("give the positions to keep per image as a fraction or as a count, not as both")
        one_of(self.sample_from, "sample_from", get_args(SampleFrom))
        if self.sample_from == "batch" and self.count is not None:
            raise InputError("a count of positions is of each image; with sample_from 'batch' give a fraction")

    def chosen(self, ids: Sequence[str], n_positions: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(n,) places of images among `ids`, which pass the network together, and (n,) positions that are kept."""
        if self.sample_from == "image":
            n_kept = self.n_kept(n_positions)
            positions = [sampled_positions(image_id, n_positions, n_kept, self.seed) for image_id in ids]
            return np.repeat(np.arange(len(ids)), n_kept), np.concatenate(positions)
        n_all = len(ids) * n_positions
        together = "\n".join(ids)
        kept = sampled_positions(together, n_all, max(1, round(n_all * self.fraction)), self.seed)
        return kept // n_positions, kept % n_positions

    def n_kept(self, n_positions: int) -> int:
        """How many of an image's positions are kept."""
        return min(n_positions, self.count or max(1, round(n_positions * self.fraction)))


class _Images(Dataset[torch.Tensor | InputError]):
    """The images of a dataset alone; one that cannot be read is handed over as its error.

    An error raised in a worker process would arrive as a traceback in a message of many lines.
    """

    def __init__(self, dataset: StudyDataset, augmentation: Augment | None, seed: int) -> None:
        self.dataset, self.seed = dataset, seed
        bound = getattr(augmentation, "for_preprocessing", None)
        self.augmentation: Augment | None = augmentation if bound is None else bound(dataset.preprocessing)

    def __getitem__(self, index: int) -> torch.Tensor | InputError:
        try:
            item = self.dataset[index]
        except InputError as error:
            return error
        if self.augmentation is None:
            return item["image"]
        return self.augmentation(
            item["image"], np.random.default_rng([self.seed, _AUGMENTED, crc32(item["image_id"].encode())])
        )


def _stack(items: Sequence[torch.Tensor | InputError]) -> torch.Tensor | InputError:
    bad = [item for item in items if isinstance(item, InputError)]
    return bad[0] if bad else torch.stack([item for item in items if isinstance(item, torch.Tensor)])


def image_batches(
    dataset: StudyDataset,
    items: range | Sequence[range],
    batch_size: int,
    num_workers: int = 0,
    *,
    pin_memory: bool = False,
    augmentation: Augment | None = None,
    seed: int = 0,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Batches of preprocessed images (b, 3, H, W) with the index of their first, in order.

    Args:
        dataset: Gives images (3, H, W) float32.
        items: The indices to read: consecutive ones, or several such ranges; no batch crosses into the next.
        batch_size: Images per batch; the last of a range may be smaller.
        num_workers: Processes that decode and preprocess ahead of whoever takes the batches; 0 reads in this one.
        pin_memory: Put the batches where a GPU copies them from without waiting.
        augmentation: How images are changed first, by seed and image id.
        seed: Of the augmentation.

    Raises:
        InputError: An image cannot be read.
    """
    ranges = [items] if isinstance(items, range) else items
    batches = [
        range(start, min(start + batch_size, one.stop))
        for one in ranges
        for start in range(one.start, one.stop, batch_size)
    ]
    loader: DataLoader[Any] = DataLoader(
        _Images(dataset, augmentation, seed),
        batch_sampler=[list(batch) for batch in batches],
        num_workers=num_workers,
        collate_fn=_stack,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # or the loader would draw from the global one
    )
    for batch, images in zip(batches, loader, strict=True):
        if isinstance(images, InputError):
            raise images
        distributed.check()
        yield batch.start, images


def capture(model: HookedVisionModel, hook_name: str, images: torch.Tensor) -> torch.Tensor:
    """The value shown at one hook point, (B, h, w, C), (B, n, C) or (B, C), for images (B, 3, H, W)."""
    name = model.resolve_hook_name(hook_name)
    return capture_several(model, [name], images)[name]


def capture_several(
    model: HookedVisionModel, hook_names: Sequence[str], images: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The values shown at several hook points (full names), from one pass over images (B, 3, H, W)."""
    _, cache = model.run_with_cache(images, names_filter=list(hook_names), return_cache_object=False)
    return {name: cache[name] for name in hook_names}


def sampled_positions(image_id: str, n_positions: int, n_kept: int, seed: int) -> NDArray[np.int64]:
    """Sorted positions to keep for an image: `n_kept` random ones of `n_positions`, by seed and image id alone."""
    if n_kept >= n_positions:
        return np.arange(n_positions)
    generator = np.random.default_rng([seed, crc32(image_id.encode())])
    return np.sort(generator.choice(n_positions, n_kept, replace=False))


@overload
def extract_activations(
    model: HookedVisionModel,
    dataset: StudyDataset | Any,
    folder: str | Path,
    *,
    hook_name: str | None = ...,
    hook_names: None = ...,
    dtype: str = ...,
    fraction: float = ...,
    count: int | None = ...,
    sample_from: SampleFrom = ...,
    limit: int | None = ...,
    augmentation: Augment | None = ...,
    seed: int = ...,
    device: str = ...,
    batch_size: int = ...,
    num_workers: int = ...,
    autocast: Autocast | None = ...,
) -> ActivationStore: ...


@overload
def extract_activations(
    model: HookedVisionModel,
    dataset: StudyDataset | Any,
    folder: str | Path,
    *,
    hook_name: None = ...,
    hook_names: Sequence[str],
    dtype: str = ...,
    fraction: float = ...,
    count: int | None = ...,
    sample_from: SampleFrom = ...,
    limit: int | None = ...,
    augmentation: Augment | None = ...,
    seed: int = ...,
    device: str = ...,
    batch_size: int = ...,
    num_workers: int = ...,
    autocast: Autocast | None = ...,
) -> dict[str, ActivationStore]: ...


def extract_activations(
    model: HookedVisionModel,
    dataset: StudyDataset | Any,
    folder: str | Path,
    *,
    hook_name: str | None = None,
    hook_names: Sequence[str] | None = None,
    dtype: str = "float32",
    fraction: float = 1.0,
    count: int | None = None,
    sample_from: SampleFrom = "image",
    limit: int | None = None,
    augmentation: Augment | None = None,
    seed: int = 0,
    device: str = "cpu",
    batch_size: int = 1,
    num_workers: int = 0,
    autocast: Autocast | None = None,
) -> ActivationStore | dict[str, ActivationStore]:
    """Write the activations at a hook point, one row per kept position, to a store on disk.

    A killed call is made again and continues. Which rows there are depends on seed and image ids, and not on order,
    interruptions or worker processes. Under torchrun all processes make the same call, and each reads its share of the
    images.

    Args:
        model: The hookable model.
        dataset: The images, all of which are read: a dataset, or a tensor, a dataset of torch, an ImageFolder, a
            DataLoader or a dataset of Hugging Face, which `datasets.as_images` makes one (with a transform, labels).
        folder: Where the store goes.
        hook_name: A hook point or alias; None means the final map. Rows are (C,): one per position of a map
            (B, h, w, C), one per token of (B, n, C), one per image of a vector (B, C).
        hook_names: Several hook points, read in one pass: each gets a store of its own, `folder/<full hook name>`.
        dtype: Type of the stored rows: "float32", "float16" or "bfloat16".
        fraction: Share of each image's positions to keep, in (0, 1]; the released code keeps 0.25.
        count: Or how many positions to keep of each image, at most; of one that has fewer, all.
        sample_from: What the fraction is drawn from: "image", the same number of every image; "batch", all positions of
            the images of one forward pass together, as the released code draws its 25 %.
        limit: Extract the first so many images of the dataset only; the release takes 4,000.
        augmentation: How images are changed first: a `training.Augmentation`, or a dataclass of your own that is called
            with an image (3, H, W) and a NumPy generator. What an image looks like depends on seed and image id alone.
        seed: Chooses the positions, the augmentation, and the order of rows within a shard.
        device: Where the networks run; under torchrun "cuda" is each process's own GPU.
        batch_size: Images per forward pass.
        num_workers: Processes that decode and preprocess images while the networks run.
        autocast: Run the networks under autocast to "bfloat16" or "float16"; None is the weights' own type.

    Returns:
        The store; with `hook_names` the stores by full hook name.

    Raises:
        InputError: An impossible setting, an empty dataset, an unknown hook name, values that are not finite, or a
            folder that holds other activations.
        OSError: A file cannot be written; the call can be made again and continues.
    """
    require_hooked(model)
    settings = _Settings(
        dtype, fraction, count, sample_from, limit, augmentation, seed, device, batch_size, num_workers, autocast
    )
    if hook_names is not None:
        if hook_name is not None:
            raise InputError("give hook_name or hook_names, not both")
        names = list(dict.fromkeys(model.resolve_hook_name(name) for name in entries(hook_names, "hook_names")))
        if not names:
            raise InputError("name at least one hook point to extract")
        return _extract([_Source(name, model, name, local_path(folder) / name) for name in names], dataset, settings)
    if hook_name is None and model.final_hook is None:
        raise InputError("the model has no hook point at its final map; name the layer to extract (hook_name)")
    name = model.resolve_hook_name(str(model.final_hook) if hook_name is None else hook_name)
    return _extract([_Source(name, model, name, local_path(folder))], dataset, settings)[name]


def extract_together(
    sources: Mapping[str, tuple[HookedVisionModel, str]],
    dataset: StudyDataset | Any,
    folder: str | Path,
    *,
    dtype: str = "float32",
    fraction: float = 1.0,
    count: int | None = None,
    sample_from: SampleFrom = "image",
    limit: int | None = None,
    augmentation: Augment | None = None,
    seed: int = 0,
    device: str = "cpu",
    batch_size: int = 1,
    num_workers: int = 0,
    autocast: Autocast | None = None,
) -> dict[str, ActivationStore]:
    """Write the activations at hook points of one or several models, reading each image once.

    Args:
        sources: By name, a model and a hook point of it. A model that occurs several times runs once per image.
        dataset: The images; all of them are read.
        folder: Each source's store goes to `folder/<name>`.
        dtype, fraction, count, sample_from, limit, augmentation, seed, device, batch_size, num_workers, autocast:
            As for `extract_activations`.

    Returns:
        The stores by name.

    Raises:
        InputError: As for `extract_activations`.
        OSError: A file cannot be written; the call can be made again and continues.
    """
    if not sources:
        raise InputError("name at least one hook point to extract")
    found = [
        _Source(name, model, model.resolve_hook_name(hook_name), local_path(folder) / name)
        for name, (model, hook_name) in sources.items()
    ]
    given = (dtype, fraction, count, sample_from, limit, augmentation, seed, device, batch_size, num_workers, autocast)
    return _extract(found, dataset, _Settings(*given))


def extract_vectors(
    model: HookedVisionModel,
    dataset: StudyDataset,
    folder: Path,
    *,
    hook_name: str,
    about: Callable[[StudyDataset], Mapping[str, Any]],
    images_per_shard: int,
    dtype: str,
    limit: int | None,
    seed: int,
    device: str,
    batch_size: int,
    num_workers: int,
    autocast: Autocast | None,
) -> ActivationStore:
    """`extract_activations` at a hook point that shows one vector per image.

    Args:
        model, dataset, folder, hook_name, dtype, limit, seed, device, batch_size, num_workers, autocast: As for
            `extract_activations`.
        about: Called with the images once the rows are there; gives more fields for the manifest.
        images_per_shard: Vectors in a file.
    """
    settings = _Settings(dtype, 1.0, None, "image", limit, None, seed, device, batch_size, num_workers, autocast)
    name = model.resolve_hook_name(hook_name)
    if model.hook_layouts[name].kind != "vector":
        raise InputError(f"{name} shows {model.hook_shapes[name]} and no vector; extract_activations takes maps")
    source = _Source(name, model, name, folder)
    return _extract([source], dataset, settings, about=about, images_per_shard=images_per_shard)[name]


@dataclass(frozen=True)
class _Source:
    name: str
    model: HookedVisionModel
    hook_name: str
    folder: Path


def _extract(
    sources: Sequence[_Source],
    dataset: StudyDataset | Any,
    settings: _Settings,
    *,
    about: Callable[[StudyDataset], Mapping[str, Any]] = lambda _images: {},
    images_per_shard: int | None = None,
) -> dict[str, ActivationStore]:
    n_views = common_views([source.model.n_views for source in sources])
    dataset = for_network(dataset, sources[0].model.model, n_views)
    dataset = _limited(dataset, settings.limit)
    if len(dataset) == 0:
        raise InputError("there is no image to extract activations from; check the split and the quarantine file")
    if dataset.unit != "image":
        raise InputError("the dataset counts rows of its annotation file; open it with unit='image' to extract")
    device = distributed.place(settings.device)
    models = {id(source.model): source.model for source in sources}
    require_columns(models.values(), dataset.images)
    fingerprints = {key: tensors_fingerprint(model.encoder_state()) for key, model in models.items()}
    ids = dataset.images["image_id"].tolist()
    image_size = dataset.preprocessing.input_size(dataset.image_size)
    common = {
        "format_version": FORMAT_VERSION,
        "dataset": dataset.fingerprint,
        "image_size": list(image_size),
        "preprocessing": dataset.preprocessing.describe(),
        "fraction": settings.fraction if settings.count is None else None,
        "count": settings.count,
        "sample_from": settings.sample_from,
        "limit": settings.limit,
        "augmentation": _described(settings.augmentation),
        "seed": settings.seed,
        "dtype": settings.dtype,
        "autocast": settings.autocast,
        "batch_size": settings.batch_size,
    }
    plans = {
        source.name: {
            **common,
            "model": fingerprints[id(source.model)],
            "hook_name": source.hook_name,
            "layout": _layout(source, image_size),
            "compiled": source.model.compiled,
            **source.model.inputs.settings,
        }
        for source in sources
    }
    n_bytes = sum(_nbytes_per_image(source, image_size, settings) for source in sources)
    size = whole_exams(min(images_per_shard or IMAGES_PER_SHARD, max(1, BYTES_PER_SHARD // n_bytes)), n_views)
    room = partial(require_room, sources[0].folder, len(dataset), size, n_bytes, "the rows", "fewer positions")
    distributed.on_main(room)
    with evaluation(*models.values(), device=device):
        run_shards_together(
            {source.name: (source.folder, plans[source.name] | {"images": sha256_of_json(ids)}) for source in sources},
            len(dataset),
            size,
            partial(_stream, sources, dataset, ids, settings, device=device),
            description="extract activations",
        )
    about_images = {
        "dataset_name": dataset.name,
        **made_of(dataset),
        "image_ids": ids,
        "patients": [patient_number(patient) for patient in dataset.images["patient_id"]],
        "splits": sorted(dataset.images["split"].unique()),
        "packages": package_versions(),
        **environment(),
        **about(dataset),
    }
    stores = {}
    for source in sources:
        model = source.model.model
        about_model = {
            "architecture": getattr(model, "architecture", type(model).__name__),
            "source": plain(getattr(model, "source", {})),
        }
        described = plans[source.name] | about_images | about_model
        d_in = source.model.hook_shapes[source.hook_name][-1]
        stores[source.name] = seal_store(source.folder, described, d_in=d_in, dtype=settings.dtype)
    return stores


def _limited(dataset: StudyDataset, limit: int | None) -> StudyDataset:
    """The first `limit` images of a dataset."""
    if limit is None or limit >= len(dataset):
        return dataset
    return dataset.select(image_ids=dataset.images["image_id"][:limit].tolist())


def _described(augmentation: Augment | None) -> dict[str, Any] | None:
    """What the manifest says of an augmentation: the fields of the dataclass."""
    if augmentation is None:
        return None
    if isinstance(augmentation, type) or not hasattr(augmentation, "__dataclass_fields__"):
        raise InputError(
            "augmentation must be a training.Augmentation, such as Augmentation('mammo_clip'), or a dataclass of your "
            f"own whose fields say what it does, not a {type(augmentation).__name__}"
        )
    return {"name": type(augmentation).__name__, **asdict(augmentation)}


def _layout(source: _Source, image_size: tuple[int, int]) -> dict[str, Any]:
    layout = source.model.hook_layouts[source.hook_name]
    return {
        "kind": layout.kind,
        "grid": list(source.model.grid(source.hook_name, image_size)) if layout.shows_grid else None,
        "prefix_tokens": layout.n_shown_prefix,
    }


def _nbytes_per_image(source: _Source, image_size: tuple[int, int], settings: _Settings) -> int:
    """Bytes of one image's rows: an early layer has hundreds of times the final map's."""
    *positions, width = source.model.hook_shapes[source.hook_name]
    if source.model.hook_layouts[source.hook_name].shows_grid:
        positions = list(source.model.grid(source.hook_name, image_size))
    return settings.n_kept(prod(positions)) * width * DTYPES[settings.dtype].itemsize


@torch.inference_mode()
def _stream(
    sources: Sequence[_Source],
    dataset: StudyDataset,
    ids: Sequence[str],
    settings: _Settings,
    tasks: Sequence[ShardTask],
    *,
    device: str,
) -> Generator[Mapping[str, Tensors], None, None]:
    """The shards of all tasks in order, while worker processes read ahead, over the borders of shards too."""
    batches = image_batches(
        dataset,
        [task.items for task in tasks],
        whole_exams(settings.batch_size, sources[0].model.n_views),
        settings.num_workers,
        pin_memory=torch.device(device).type == "cuda",
        augmentation=settings.augmentation,
        seed=settings.seed,
    )
    for task in tasks:
        wanted = [source for source in sources if source.name in task.names]
        pieces: dict[str, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]] = {
            source.name: [] for source in wanted
        }
        n_seen = 0
        while n_seen < len(task.items):
            first, images = next(batches)
            n_seen += len(images)
            of_images = dataset.images.iloc[first : first + len(images)]
            values = _values(wanted, images.to(device, non_blocking=True), of_images, device, settings.autocast)
            for source in wanted:
                _refuse_not_finite(values[source.name], ids[first : first + len(images)])
                pieces[source.name].append(_kept(values[source.name], first, ids, settings))
            del values
        shards = {}
        for name, found in pieces.items():
            rows, image, position = zip(*found, strict=True)
            shards[name] = shard_tensors(rows, image, position, seed=[settings.seed, task.items.start])
            found.clear()
            del rows, image, position
        yield shards
        del shards


def _values(
    sources: Sequence[_Source], images: torch.Tensor, rows: pd.DataFrame, device: str, autocast: Autocast | None
) -> dict[str, torch.Tensor]:
    """(B, n, C) by source; every model runs once."""
    low_precision: AbstractContextManager[Any] = nullcontext()
    if autocast is not None:
        low_precision = torch.autocast(torch.device(device).type, dtype=DTYPES[autocast])
    values = {}
    for model in {id(source.model): source.model for source in sources}.values():
        mine = [source for source in sources if source.model is model]
        with low_precision, model.inputs.of_rows(rows):
            found = capture_several(model, list({source.hook_name for source in mine}), images)
        for source in mine:
            value = found[source.hook_name]
            values[source.name] = value.reshape(len(images), -1, value.shape[-1])
    return values


def _refuse_not_finite(values: torch.Tensor, ids: Sequence[str]) -> None:
    low, high = torch.aminmax(values.flatten(1), dim=1)  # both are NaN where any value is
    broken = (~(torch.isfinite(low) & torch.isfinite(high))).nonzero()
    if len(broken):
        raise InputError(f"the model gives features that are not finite for image {ids[int(broken[0, 0])]}")


def _kept(
    values: torch.Tensor, first: int, ids: Sequence[str], settings: _Settings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, image numbers and positions of a batch (B, n, C), chosen and converted where the network runs."""
    dtype = DTYPES[settings.dtype]
    place, position = map(torch.from_numpy, settings.chosen(ids[first : first + len(values)], values.shape[1]))
    rows = values[place.to(values.device), position.to(values.device)].to(dtype)
    if dtype == torch.float16:
        too_large = torch.isinf(rows).any(1).nonzero()
        if len(too_large):
            raise InputError(
                f"image {ids[first + int(place[too_large[0, 0]])]} has features above 65504, which float16 cannot "
                "hold; store bfloat16 or float32"
            )
    return rows.cpu(), (place + first).to(torch.int32), position
