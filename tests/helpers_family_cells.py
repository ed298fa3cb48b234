"""The cells of the matrix of families in docs/compatibility.md, each made by running it."""

__all__ = ["block", "COLUMNS", "row"]

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from helpers_families import FAMILIES, made
from helpers_study import random_sae, small_phantoms
from torch import nn

from mammosae_plugin.activations import cache_layer_outputs, extract_activations
from mammosae_plugin.adapters import HookedVisionModel, Preprocessing, new_backbone_classifier
from mammosae_plugin.adapters.hook_names import module_path
from mammosae_plugin.adapters.hook_points import default_images
from mammosae_plugin.adapters.recording import tensors_in
from mammosae_plugin.adapters.token_places import changes_with_pixels
from mammosae_plugin.analysis import localize
from mammosae_plugin.analysis.intervention import intervene
from mammosae_plugin.analysis.probing import class_mean_latents
from mammosae_plugin.datasets import StudyDataset, VinDrMammo
from mammosae_plugin.errors import InputError
from mammosae_plugin.latents import LatentTable, encode_latents
from mammosae_plugin.latents.masked_passes import MaskedPasses
from mammosae_plugin.training import ClassifierTraining, train_classifier

OTHER = (96, 64)


@functools.cache
def _phantoms() -> StudyDataset:
    """A few images of each class, in both splits."""
    dataset = VinDrMammo(small_phantoms(Path(tempfile.mkdtemp()), n_patients=12), image_size=OTHER)
    images = dataset.images
    chosen = images.groupby([images["split"], images["Mass"]])["image_id"].head(3)
    return dataset.select(image_ids=list(chosen))


class Tried:
    """One family's network and its wrapper, shared by the cells of its row."""

    def __init__(self, family: str, folder: Path) -> None:
        self.family, self.folder = family, folder
        self.network: nn.Module = made(family)
        own = default_images(self.network)
        self.size = (int(own.shape[-2]), int(own.shape[-1]))
        self.images = torch.randn(2, *own.shape[1:], generator=torch.Generator().manual_seed(0))
        self.hooked = HookedVisionModel(self.network)
        self.names = list(self.hooked.hook_shapes)
        self.maps = [name for name in self.names if self.hooked.hook_layouts[name].shows_grid]
        self.preprocessing = Preprocessing(0.5, 0.25, "full_range", channels=own.shape[1], size=self.size)

    @property
    def dataset(self) -> StudyDataset:
        return _phantoms().with_preprocessing(self.preprocessing)

    @functools.cached_property
    def table(self) -> LatentTable:
        """Encoded without a head, at the last layer that shows a map."""
        sae = random_sae(self.hooked.hook_shapes[self.maps[-1]][-1], 16, hook_name=self.maps[-1])
        return encode_latents(
            self.hooked, sae, self.dataset, self.folder / "table", heads={}, map_latents=[1, 2], batch_size=4
        )


def _wrap(tried: Tried) -> str:
    with torch.no_grad():
        found, _ = tried.hooked.run_with_cache(tried.images)
        tried.hooked.close()
        expected = tried.network(tried.images)
        tried.hooked = HookedVisionModel(tried.network, tried.names)
    pairs = zip(tensors_in(found), tensors_in(expected), strict=True)
    return "yes" if all(torch.equal(one, other) for one, other in pairs) else "no: another output"


def _layers(tried: Tried) -> str:
    paths = [module_path(name) for name in tried.names]
    return f"`{paths[0]}` ... `{paths[-1]}` ({len(paths)})" if len(paths) > 1 else f"`{paths[0]}`"


def _grid(tried: Tried) -> str:
    sizes = [tried.size]
    try:
        tried.hooked.look([], OTHER)
        sizes += [OTHER] if OTHER not in sizes else []
    except InputError:
        pass
    return ", ".join(_grid_at(tried, size) for size in sizes)


@torch.no_grad()
def _grid_at(tried: Tried, size: tuple[int, int]) -> str:
    """Change the pixels of single positions: the row of that position must change most."""
    name = tried.maps[0]
    layout = tried.hooked.hook_layouts[name]
    path = module_path(name)
    example = torch.zeros(1, tried.images.shape[1], *size)
    pixels = changes_with_pixels(tried.network, example, [path])[path] if layout.kind == "tokens" else None
    is_separate = pixels is not None and pixels.is_separate
    height, width = tried.hooked.grid(name, size)
    noise = torch.randn(1, tried.images.shape[1], *size, generator=torch.Generator().manual_seed(0))
    stride = layout.stride if layout.kind == "tokens" else (size[0] / height, size[1] / width)
    cells = [(0, 0), (0, width - 1), (height - 1, 0), (height // 2, width // 3)]
    batch = noise.repeat(1 + len(cells), 1, 1, 1)
    for number, (row, column) in enumerate(cells, start=1):
        rows = slice(int(row * stride[0]), int((row + 1) * stride[0]))
        columns = slice(int(column * stride[1]), int((column + 1) * stride[1]))
        batch[number, :, rows, columns] += 3
    value = tried.hooked.run_with_cache(batch, names_filter=[name])[1][name]
    assert value.shape[1:3] == (height, width)
    for cell, changed in zip(cells, (value[1:] - value[:1]).norm(dim=-1), strict=True):
        place = divmod(int(changed.argmax()), width)
        away = max(abs(one - other) for one, other in zip(place, cell, strict=True))
        if away > (0 if is_separate else 1):  # behind convolutions and windows the largest may be a neighbour's
            return f"no: {cell} is seen at {place} for {size[0]} x {size[1]}"
    return f"{height} x {width}"


@torch.no_grad()
def _splice(tried: Tried) -> str:
    expected = tensors_in(tried.network(tried.images))[0]
    for name in tried.names:
        sae = random_sae(tried.hooked.hook_shapes[name][-1], 16, hook_name=name)
        found = tensors_in(tried.hooked.run_with_saes(tried.images, saes=sae, use_error_term=True))[0]
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
            return f"no: {name}"
    return "yes"


def _extract(tried: Tried) -> str:
    name = tried.maps[-1]
    store = extract_activations(tried.hooked, tried.dataset, tried.folder / "store", hook_name=name)
    height, width = tried.hooked.grid(name, tried.size)
    images = tried.dataset[0]["image"][None]
    with torch.no_grad():
        value = tried.hooked.run_with_cache(images, names_filter=[name])[1][name]
    rows = store.rows_of([0])
    same = torch.allclose(rows.reshape(value[0].shape).float(), value[0], atol=1e-4)
    return "yes" if same and store.n_rows == len(tried.dataset) * height * width else "no: other rows"


def _encode(tried: Tried) -> str:
    means = class_mean_latents(tried.table, "Mass")
    return "yes" if np.isfinite(means).all() and not tried.table.heads else "no"


def _localize(tried: Tried) -> str:
    return "yes" if len(localize(tried.table, [1, 2], "Mass", iou_threshold=0.1)) == 2 else "no"


def _intervene(tried: Tried) -> str:
    """With the head that the refusal tells to fit."""
    try:
        intervene(tried.table, np.array([1]), mode="deactivate", head="Mass")
        return "no: not refused without a head"
    except InputError as error:
        assert "kind='pretrained'" in str(error), error
    start = new_backbone_classifier(
        "function",
        "helpers_families:made",
        0,
        arguments={"family": tried.family},
        image_size=OTHER,
        preprocessing={"size": tried.size},
    )
    dataset = _phantoms().with_preprocessing(start.preprocessing)
    trained = train_classifier(
        start, dataset, "Mass", tried.folder / "head.safetensors", ClassifierTraining(kind="pretrained")
    )
    try:
        layer = trained.final_module
    except InputError:
        return "no: no layer that all passes through"
    with HookedVisionModel(trained.network, [layer]) as hooked:
        (name,) = hooked.hook_shapes
        sae = random_sae(hooked.hook_shapes[name][-1], 16, hook_name=name)
        heads = {"Mass": trained.network.get_submodule(trained.head_path)}
        table = encode_latents(hooked, sae, dataset, tried.folder / "with_head", heads=heads, batch_size=4)
        passes = None
        if table.readout_kind == "network":
            outputs = cache_layer_outputs(hooked, dataset, tried.folder / "outputs", hook_name=name, batch_size=4)
            passes = MaskedPasses(hooked, sae, outputs, heads)
        group = np.flatnonzero(np.asarray(table.mean_latents[0].todense()))[:4]
        rows = np.arange(2)
        settings = {"mode": "deactivate", "head": "Mass", "error_term": True, "image_rows": rows, "passes": passes}
        left = intervene(table, group, **settings)
        nothing = intervene(table, np.array([], dtype=np.int64), **settings)
    own = table.logits("Mass")[rows]
    if not np.allclose(nothing, own, atol=1e-3 * np.abs(own).max()):
        return "no: an edit of nothing changes logits"
    return "fitted head" if not np.allclose(left, own, atol=1e-5) else "no: no effect"


def _nnsight(tried: Tried) -> str:
    name = tried.names[-1]
    with torch.no_grad():
        expected = tried.hooked.run_with_cache(tried.images, names_filter=[name])[1][name]
        traced = tried.hooked.nnsight()
        with traced.trace(tried.images):
            found = traced.get(name).output.save()
    return "yes" if torch.equal(found, expected) else "no: another value"


COLUMNS: dict[str, Callable[[Tried], str]] = {
    "wrap": _wrap,
    "default layers": _layers,
    "grid": _grid,
    "splice no-op": _splice,
    "extract": _extract,
    "encode without head": _encode,
    "localize": _localize,
    "intervene": _intervene,
    "nnsight": _nnsight,
}


def _made(cell: Callable[[Tried], str], tried: Tried) -> str:
    try:
        return cell(tried)
    except InputError as error:
        return f"no: {str(error)[:100]}"


def row(family: str) -> str:
    """One row of the table: every cell made anew."""
    with tempfile.TemporaryDirectory() as folder:
        tried = Tried(family, Path(folder))
        return f"| {' | '.join([family, *(_made(cell, tried) for cell in COLUMNS.values())])} |"


def block() -> str:
    """The table as markdown."""
    head = [f"| family | {' | '.join(COLUMNS)} |", f"|{'---|' * (len(COLUMNS) + 1)}"]
    return "\n".join([*head, *(row(family) for family in FAMILIES)])
