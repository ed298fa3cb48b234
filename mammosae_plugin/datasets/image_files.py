"""Where the image files of a dataset lie, and in what their names differ from the table's where they do not."""

__all__ = ["checked_size", "find_images", "size_of"]

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from mammosae_plugin.arguments import shown, whole
from mammosae_plugin.datasets.base import describe
from mammosae_plugin.errors import InputError

logger = logging.getLogger(__name__)


def checked_size(image_size: Any) -> tuple[int, int]:
    """Height and width as whole numbers."""
    if isinstance(image_size, str) or not hasattr(image_size, "__len__") or len(image_size) != 2:
        raise InputError(f"image_size is {shown(image_size)}: give (height, width) in pixels, such as (1520, 912)")
    return whole(image_size[0], "the height", least=1), whole(image_size[1], "the width", least=1)


def find_images(
    folder: Path,
    relative: Sequence[tuple[str, str]],
    image_size: tuple[int, int] | None,
    problems: list[str],
    max_missing_share: float,
    n_probed: int = 8,
    named: tuple[str, str] = ("patient_id", "image_id"),
) -> list[str]:
    """The image files; too many that are missing, and images that are all of another size, are problems.

    Args:
        folder: the folder of all images.
        relative: of every image its patient's folder in it, "" where there is none, and the file's name.
        image_size: (height, width) that they should have; None: any.
        problems: where problems are added.
        max_missing_share: the share of the files that may be missing.
        n_probed: how many images are opened to see their size.
        named: what messages call that which names the folders and the files.

    Returns:
        A path per image.
    """
    if not folder.is_dir():
        problems.append(f"the image folder {folder} does not exist")
        return []
    names: dict[
        str, set[str]
    ] = {}  # one listing per patient is far cheaper than one look-up per image on network disks
    for patient in dict.fromkeys(patient for patient, _ in relative):
        try:
            names[patient] = set(os.listdir(folder / patient))
        except OSError:
            names[patient] = set()
    missing = [(patient, image) for patient, image in relative if image not in names[patient]]
    if len(missing) > max_missing_share * len(relative):
        why = _why_missing(folder, missing, names, named)
        what = f"image files are missing under {folder}" + (f": {why}" if why else "")
        problems.append(describe(len(missing), what, [os.path.join(*one) for one in missing]))
    elif missing:
        logger.warning("%d of %d image files are missing under %s", len(missing), len(relative), folder)
    prefix = str(folder)
    paths = [os.path.join(prefix, patient, image) for patient, image in relative]
    present = [path for path, (patient, image) in zip(paths, relative, strict=True) if image in names[patient]]
    probed = np.linspace(0, len(present) - 1, n_probed).astype(int) if present and image_size is not None else ()
    sizes = {size_of(present[at]) for at in probed}
    sizes.discard(None)
    if image_size is not None and sizes and image_size not in sizes:
        height, width = cast(tuple[int, int], min(sizes))  # type: ignore[type-var]
        what = "have several sizes, such as" if len(sizes) > 1 else "are"
        problems.append(
            f"the images {what} {height} x {width} pixels (height x width) but image_size is "
            f"{image_size[0]} x {image_size[1]}: set image_size to the size of the prepared images, or "
            "prepare them (mammosae prepare)"
        )
    return paths


def _why_missing(
    folder: Path, missing: Sequence[tuple[str, str]], names: Mapping[str, set[str]], named: tuple[str, str]
) -> str | None:
    """The commonest of the causes that can be told from what lies there instead; None where none can."""
    folders = os.listdir(folder)
    causes = Counter(_cause(folder, patient, image, names[patient], folders, named) for patient, image in missing[:200])
    del causes[None]
    return causes.most_common(1)[0][0] if causes else None


_DIFFERENCES: dict[str, Callable[[str], str]] = {
    "{} and {} differ in upper and lower case": str.casefold,
    "{} have leading zeros that {} lacks; a spreadsheet drops them": lambda name: name.lstrip("0"),
    "{} lack the .0 that {} ends in; a program took them for numbers": lambda name: name.removesuffix(".0"),
    "{} lack the quotation marks or equals signs of {}": lambda name: name.strip("'\"="),
    "{} and {} differ in blanks, underscores or hyphens": lambda name: re.sub(r"[\s_-]+", "", name),
}


def _difference(name: str, there: Iterable[str]) -> str | None:
    """In what alone a name differs from one of those that are there, to be formatted with the names of both."""
    others = list(there)
    return next((how for how, plain in _DIFFERENCES.items() if plain(name) in {plain(other) for other in others}), None)


def _cause(
    folder: Path, patient: str, image: str, there: set[str], folders: Sequence[str], named: tuple[str, str]
) -> str | None:
    of_folder, of_file = named
    if not (folder / patient).is_dir():
        if (folder / image).is_file():
            return f"the images lie directly in that folder, not in a folder for each {of_folder}"
        how = _difference(patient, folders)
        if how:
            return how.format("the folders' names", of_folder)
        return f"there are no folders of these {of_folder}" if folders else "the folder is empty"
    how = _difference(image, there)
    if how:
        return how.format("the files' names", of_file)
    stem, suffix = os.path.splitext(image)
    for name in sorted(there):
        other_stem, other_suffix = os.path.splitext(name)
        if suffix == ".0" and other_stem == stem:
            return f"{of_file} ends in .0 as numbers of a spreadsheet do, the files in {other_suffix}"
        if other_stem == image and other_suffix:
            return f"the files have the ending {other_suffix}, which {of_file} lacks; add it there"
        if name == stem and suffix:
            return f"{of_file} has the ending {suffix}, which the files lack; take it away or rename the files"
        if other_stem == stem:
            return (
                f"the files end in {other_suffix}, {of_file} in {suffix}; the images must be PNG and named as {of_file}"
            )
    return None


def size_of(path: str) -> tuple[int, int] | None:
    """Height and width of an image file as its header says; None where it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
