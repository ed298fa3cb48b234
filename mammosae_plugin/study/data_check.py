"""`mammosae data check`: what was understood of images and annotations, and a sheet of images with their boxes."""

__all__ = ["check_data", "DataCheck"]

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from mammosae_plugin.adapters.preprocessing import BadImageError
from mammosae_plugin.config import load_data
from mammosae_plugin.datasets.about import DatasetAbout
from mammosae_plugin.datasets.annotations import read_annotations
from mammosae_plugin.datasets.base import BOX_COLUMNS, MammogramDataset
from mammosae_plugin.datasets.concepts import Vocabulary
from mammosae_plugin.datasets.dicom import read_picture
from mammosae_plugin.datasets.mapping import load_mapping
from mammosae_plugin.datasets.overview import Overview, overview, various_images
from mammosae_plugin.datasets.registry import dataset_kind, open_dataset
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, write_text
from mammosae_plugin.visualization.contact_sheet import Mark, Tile, plot_contact_sheet
from mammosae_plugin.visualization.style import save_figure

SHEET, TABLE = "contact_sheet.png", "data_check.txt"
_DRAWN_HEIGHT = 640


@dataclass(frozen=True)
class DataCheck:
    """What a check found.

    Attributes:
        found: What was understood, counted.
        sheet: The picture.
        problems: What is wrong, a line each; what cannot be read among the images that were drawn, too.
    """

    found: Overview
    sheet: Path
    problems: tuple[str, ...]


@dataclass(frozen=True)
class _Data:
    images: pd.DataFrame
    findings: pd.DataFrame
    vocabulary: Vocabulary
    about: DatasetAbout
    files: Sequence[Path]
    root: Path


def check_data(
    output: str | os.PathLike[str],
    *,
    config: str | os.PathLike[str] | None = None,
    source: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    root: str | os.PathLike[str] | None = None,
    settings: Sequence[str] = (),
    n_images: int = 24,
) -> DataCheck:
    """Read the annotations of a study's data, or of a preset or mapping, count them, and draw some of the images.

    Only the images that are drawn are opened; the picture and the table are written to `output` and nowhere else.

    Args:
        output: The folder for the picture and the table.
        config: A study's YAML file; its section `data`.
        source: Instead, a preset's name, a mapping's file or dict, or a prepared folder.
        root: The folder of the data of `source`.
        settings: `key=value` for the configuration.
        n_images: How many images are drawn.

    Raises:
        InputError: The annotations cannot be read; all that is wrong with them is named.
    """
    if (config is None and not settings) == (source is None):
        raise InputError("say what to check: a study (--config), or a preset or mapping with the folder of its data")
    data = _of_study(config, settings) if source is None else _of_mapping(source, root)
    found = overview(data.images, data.findings, data.vocabulary, data.about, data.files)
    folder = local_path(output)
    folder.mkdir(parents=True, exist_ok=True)
    rows = various_images(data.images, data.findings, data.vocabulary, n_images)
    by_image = data.findings.groupby("image_id", sort=False).indices
    unreadable: list[str] = []
    tiles = [_tile(data, int(row), by_image, unreadable) for row in rows]
    named = f"{found.title}: {len(tiles)} of {len(data.images):,} images"
    save_figure(plot_contact_sheet(tiles, named), folder / SHEET, dpi=180)
    write_text(folder / TABLE, f"{found}\n")
    return DataCheck(found, folder / SHEET, (*found.problems, *unreadable))


def _of_study(config: str | os.PathLike[str] | None, settings: Sequence[str]) -> _Data:
    section = load_data(None if config is None else local_path(config), settings)
    if not dataset_kind(section.kind).of_files:
        raise InputError(f"data.kind {section.kind} is of slices of volumes; images of files are checked here")
    found = open_dataset(section)
    assert isinstance(found, MammogramDataset)
    return _Data(found.images, found.findings, found.vocabulary, section.about, found.image_paths, section.root)


def _of_mapping(source: str | os.PathLike[str] | Mapping[str, Any], root: str | os.PathLike[str] | None) -> _Data:
    mapping, folder = load_mapping(source, root)
    found = read_annotations(mapping, folder)
    files = [folder / file for file in found.images["file"]]
    return _Data(found.images, found.findings, Vocabulary(found.concepts), mapping.about, files, folder)


def _tile(data: _Data, row: int, by_image: Mapping[Any, Any], unreadable: list[str]) -> Tile:
    image = data.images.iloc[row]
    pixels: npt.NDArray[np.uint8] | None = None
    size = (4, 3)
    try:
        pixels, size = _gray(data.files[row])
    except (BadImageError, OSError) as error:
        unreadable.append(str(error))
    marks, named = [], set()
    colors = {name: number for number, name in enumerate(data.vocabulary.binary)}
    for at in by_image.get(image["image_id"], ()):
        finding = data.findings.iloc[int(at)]
        names = [name for name in colors if finding[name] == 1]
        label = " + ".join(map(_readable, names)) or "?"
        color = colors.get(names[0], 0) if names else 0
        box = tuple(float(finding[column]) for column in BOX_COLUMNS)
        if not np.isnan(box[0]):
            marks.append(Mark(label, color, box=box))  # type: ignore[arg-type]
        masks = finding.get("mask") or ()
        marks += [Mark(label, color, mask=mask) for mask in _masks(data.root, masks, unreadable)]
        if not np.isnan(box[0]) or len(masks):
            named |= set(names)
    return Tile(pixels, size, str(image["image_id"]), _caption(data, image, named), tuple(marks))


def _masks(root: Path, files: Any, unreadable: list[str]) -> list[npt.NDArray[np.bool_]]:
    found = []
    for file in [files] if isinstance(files, str) else files:
        try:
            found.append(read_picture(root / file).pixels > 0)
        except (BadImageError, OSError) as error:
            unreadable.append(str(error))
    return found


def _gray(file: Path) -> tuple[npt.NDArray[np.uint8], tuple[int, int]]:
    """An image as a reader would see it, small; and its height and width."""
    picture = read_picture(file, voi="auto")
    height, width = picture.codes.shape
    step = max(1, round(height / _DRAWN_HEIGHT))
    values = picture.values[picture.codes[step // 2 :: step, step // 2 :: step]]
    low, high = values.min(), np.quantile(values, 0.998)
    share = np.clip((values - low) / max(float(high - low), 1e-9), 0, 1)
    return np.asarray(Image.fromarray((255 * share).astype(np.uint8))), (height, width)


def _caption(data: _Data, image: "pd.Series[Any]", named: set[str]) -> tuple[str, ...]:
    """Side, view and split; classes of graded concepts; findings without a place."""
    first = [str(image[name]) for name in ("laterality", "view", "split") if image.get(name)]
    graded = [
        f"{_readable(name)} {concept.classes[int(image[name])] if image[name] >= 0 else '?'}"
        for name, concept in data.vocabulary.items()
        if not concept.is_binary
    ]
    without = [_readable(name) for name in data.vocabulary.binary if image[name] == 1 and name not in named]
    lines = [" ".join(first), ", ".join(graded), f"not marked: {', '.join(without)}" if without else ""]
    return tuple(line if len(line) <= 46 else f"{line[:45]}…" for line in lines if line)


def _readable(name: str) -> str:
    return name.replace("_", " ")
