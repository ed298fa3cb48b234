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

from mammosae_plugin.adapters.preprocessing import BadImageError
from mammosae_plugin.config import load_data
from mammosae_plugin.datasets.base import BOX_COLUMNS, MammogramDataset
from mammosae_plugin.datasets.image_table import ImageTable, load_images
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

    Images are shown as a network would be (`load_images`): letterboxed where they are not prepared. Opened are those
    that are drawn, and all masks; the picture and the table are written to `output` and nowhere else.

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
    data, allowed = _of_study(config, settings) if source is None else _of_mapping(source, root)
    found = overview(data.images, data.findings, data.vocabulary, data.about, data.image_paths, allowed)
    folder = local_path(output)
    folder.mkdir(parents=True, exist_ok=True)
    rows = various_images(data.images, data.findings, data.vocabulary, n_images)
    unreadable: list[str] = []
    tiles = [_tile(data, int(row), unreadable) for row in rows]
    named = f"{found.title}: {len(tiles)} of {len(data.images):,} images"
    save_figure(plot_contact_sheet(tiles, named), folder / SHEET, dpi=180)
    write_text(folder / TABLE, f"{found}\n")
    return DataCheck(found, folder / SHEET, (*found.problems, *unreadable))


def _of_study(config: str | os.PathLike[str] | None, settings: Sequence[str]) -> tuple[MammogramDataset, float]:
    """The images of a study, those that are missing among them, and which share may be."""
    section = load_data(None if config is None else local_path(config), settings)
    if not dataset_kind(section.kind).of_files:
        raise InputError(f"data.kind {section.kind} is of slices of volumes; images of files are checked here")
    found = open_dataset(section.model_copy(update={"max_bad_share": 1.0}))
    assert isinstance(found, MammogramDataset)
    return found, section.max_bad_share


def _of_mapping(
    source: str | os.PathLike[str] | Mapping[str, Any], root: str | os.PathLike[str] | None
) -> tuple[MammogramDataset, float]:
    return load_images(source, root, max_missing_share=1.0), 0.0


def _tile(data: MammogramDataset, row: int, unreadable: list[str]) -> Tile:
    image = data.images.iloc[row]
    pixels: npt.NDArray[np.uint8] | None = None
    mask: npt.NDArray[np.bool_] | None = None
    try:
        pixels = _smaller(data.gray(row))
        if isinstance(data, ImageTable) and (masks := data.masks(row)):
            mask = _smaller(np.logical_or.reduce([*masks.values()]))
    except BadImageError as error:
        if data.image_paths[row].exists():  # what is missing is told by the overview
            unreadable.append(str(error))
    marks, named = [], set()
    own = data.findings[(data.findings["image_id"] == image["image_id"]) & data.findings[BOX_COLUMNS[0]].notna()]
    for finding in own.to_dict("records"):
        names = [name for name in data.vocabulary.binary if finding[name] == 1]
        named.update(names)
        left, top, right, bottom = (float(finding[column]) for column in BOX_COLUMNS)
        marks.append(Mark(", ".join(map(_readable, names)) or "?", (left, top, right, bottom)))
    return Tile(pixels, data.image_size, str(image["image_id"]), _caption(data, image, named), tuple(marks), mask)


def _smaller(pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    step = max(1, round(pixels.shape[0] / _DRAWN_HEIGHT))
    return pixels[step // 2 :: step, step // 2 :: step]


def _caption(data: MammogramDataset, image: "pd.Series[Any]", named: set[str]) -> tuple[str, ...]:
    """Side, view and split; classes of graded concepts; findings without a place."""
    first = [str(image[name]) for name in ("laterality", "view", "split") if image.get(name)]
    graded = [
        f"{_readable(name)} {concept.classes[int(image[name])] if image[name] >= 0 else '?'}"
        for name, concept in data.vocabulary.items()
        if not concept.is_binary
    ]
    without = [_readable(name) for name in data.vocabulary.binary if image[name] == 1 and name not in named]
    lines = [" ".join(first), ", ".join(graded), f"not marked: {', '.join(without)}" if without else ""]
    return tuple(line for line in lines if line)


def _readable(name: str) -> str:
    return name.replace("_", " ")
