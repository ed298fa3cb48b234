"""Pairs of phantoms that differ in one thing, and pairs of anybody's images: what latents answer to."""

__all__ = ["make_phantom_pairs", "PAIR_ATTRIBUTES", "PAIR_FILE", "read_pairs"]

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from mammosae_plugin.arguments import entries, one_of, whole
from mammosae_plugin.datasets.base import BOX_COLUMNS, DatasetError
from mammosae_plugin.datasets.csv_files import read_csv
from mammosae_plugin.datasets.phantom_devices import MARKERS, REFERENCE, Machine
from mammosae_plugin.datasets.phantoms import (
    PHANTOM_VERSION,
    Look,
    Patient,
    Phantom,
    View,
    drawn_by,
    phantom_size,
    save_png,
    write_rows,
)
from mammosae_plugin.datasets.vindr import ANNOTATION_FILE, CONCEPTS, IMAGE_FOLDER
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import local_path, read_json, write_json

PAIR_FILE, MASK_FOLDER, _MANIFEST = "pairs.csv", "masks", "phantom_pairs.json"
PAIR_VERSION = 1  # raise it with every change of what is drawn
_MACHINES = {"noise": Machine(noise=2.2), "blur": Machine(blur=0.006), "contrast": Machine(gamma=0.75)}
_NO_FINDING = {"mass": 0.0, "calcification": 0.0, "other": 0.0}
_LOCAL = (*CONCEPTS, *MARKERS, "pectoral_muscle")
PAIR_ATTRIBUTES: tuple[str, ...] = (*_LOCAL, "density", "noise", "blur", "contrast", "exposure")
"""What the images of a pair can differ in: a finding, a marker and the muscle change a place, the others the image.

The second image has it, or more of it: the next class of density, 2.2 times the noise, a blur of 0.6 % of the square
root of the area, a brighter contrast curve (gamma 0.75). "exposure" is the same image with other noise of the same
strength: what a latent does there it does for nothing.
"""


def make_phantom_pairs(
    root: str | os.PathLike[str],
    *,
    n_pairs: int,
    attributes: Sequence[str] = PAIR_ATTRIBUTES,
    image_size: tuple[int, int] = (1520, 912),
    seed: int = 0,
    num_workers: int = 0,
) -> Path:
    """Write phantom mammograms in pairs that differ in one thing; `VinDrMammo(root, image_size=...)` reads them.

    Every patient gives one pair for each attribute, all with one image: the healthy breast, CC in one patient and MLO
    in the next (the muscle is always of an MLO view). Outside of the change the two images of a pair are the same to
    the byte. A call that was interrupted goes on where it stopped, and a call with more pairs adds to the folder.

    Beside the images lie VinDr's annotation file, with the columns machine and marker, all in the split "test"; masks
    of what changed (`masks/`); and last `pairs.csv`, with a row for each pair: attribute, image_id_a, image_id_b (which
    has it), patient_id, laterality, view, density (of the first image, 0 to 3), changed (the share of pixels that
    differ), and where the change has a place its box xmin, ymin, xmax, ymax in pixels, which holds all that changed,
    and mask.

    Args:
        root: the folder to write; made when it does not exist.
        n_pairs: pairs of each attribute, each of another patient.
        attributes: some of `PAIR_ATTRIBUTES`.
        image_size: (height, width) in pixels, at least 96 x 64.
        seed: of all randomness.
        num_workers: threads that draw at once; 0 draws in the calling thread. The files do not depend on it.

    Returns:
        The path of `pairs.csv`.

    Raises:
        InputError: an argument is out of range, or the folder holds something else.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     file = make_phantom_pairs(folder, n_pairs=1, attributes=["Mass", "clip"], image_size=(96, 64))
        ...     read_pairs(file)["attribute"].tolist()
        ['Mass', 'clip']
    """
    n_pairs = whole(n_pairs, "n_pairs", least=1)
    num_workers, seed = whole(num_workers, "num_workers", least=0), whole(seed, "seed", least=0)
    wanted = entries(attributes, "attributes")
    for name in wanted:
        one_of(name, "an attribute", PAIR_ATTRIBUTES)
    if not wanted or len(set(wanted)) < len(wanted):
        raise InputError(f"attributes are {wanted}; name each once, and at least one")
    size = phantom_size(image_size)
    folder = local_path(root)
    made_with = {
        "pair_version": PAIR_VERSION,
        "phantom_version": PHANTOM_VERSION,
        "image_size": list(size),
        "attributes": wanted,
        "seed": seed,
    }
    manifest = folder / _MANIFEST
    if manifest.exists():
        if read_json(manifest) != made_with:
            raise InputError(f"{folder} holds pairs made with other arguments; choose another folder or delete it")
    elif any((folder / name).exists() for name in (IMAGE_FOLDER, ANNOTATION_FILE, PAIR_FILE, MASK_FOLDER)):
        raise InputError(f"{folder} holds something else than pairs of this generator; choose another folder")
    else:
        write_json(manifest, made_with)

    def make_patient(index: int) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
        images: dict[str, npt.NDArray[np.uint8]] = {}
        rows: list[dict[str, object]] = []
        pairs: list[dict[str, object]] = []
        for name in wanted:
            ids = []
            for drawing in _pair(seed, index, name):
                phantom = drawing.phantom(size)
                ids.append(phantom.image_id)
                if phantom.image_id not in images:
                    target = folder / IMAGE_FOLDER / phantom.patient.patient_id / phantom.image_id
                    save_png(target, phantom.pixels)
                    images[phantom.image_id] = np.asarray(Image.open(target))
                    rows += phantom.annotation_rows("test", fold=index % 4)
            changed = images[ids[0]] != images[ids[1]]
            first = (
                drawing.patient if name != "density" else replace(drawing.patient, density=drawing.patient.density - 1)
            )
            pair: dict[str, object] = {"attribute": name, "image_id_a": ids[0], "image_id_b": ids[1]}
            pair |= {"patient_id": first.patient_id, "laterality": drawing.view.laterality, "view": drawing.view.view}
            pair |= {"density": first.density, "changed": round(float(changed.mean()), 6)}
            pair |= dict.fromkeys((*BOX_COLUMNS, "mask"), "")
            if name in _LOCAL:
                pair |= dict(zip(BOX_COLUMNS, _box(changed), strict=True))
                mask = f"{MASK_FOLDER}/{Path(ids[1]).stem}__{name}.png"
                save_png(folder / mask, partial((255 * changed).astype, np.uint8))
                pair["mask"] = mask
            pairs.append(pair)
        return rows, pairs

    made = drawn_by(make_patient, n_pairs, num_workers)
    write_rows(folder / ANNOTATION_FILE, [row for rows, _ in made for row in rows])
    file = folder / PAIR_FILE
    write_rows(file, [pair for _, pairs in made for pair in pairs])
    return file


def _box(changed: npt.NDArray[np.bool_]) -> tuple[float, ...]:
    """The smallest box that holds all that changed; nothing but a point where nothing did."""
    if not changed.any():
        return (np.nan,) * 4
    (top, left), (bottom, right) = (ends(np.argwhere(changed), axis=0) for ends in (np.min, np.max))
    return float(left), float(top), float(right) + 1, float(bottom) + 1


@dataclass(frozen=True)
class _Drawing:
    """One image of a pair: what is drawn, and what its name says that it has."""

    patient: Patient
    view: View
    look: Look = Look()
    name: str = ""

    def phantom(self, size: tuple[int, int]) -> Phantom:
        truth = {"machine": self.name if self.name in _MACHINES else REFERENCE, "marker": int(bool(self.look.marker))}
        phantom = Phantom(self.patient, self.view, size, replace(self.look, keeps_anatomy=True, truth=truth))
        if self.name:
            phantom.image_id = f"{Path(phantom.image_id).stem}__{self.name}.png"
        return phantom


def _pair(seed: int, index: int, attribute: str) -> Iterator[_Drawing]:
    """The image without and the image with an attribute; everything else is of the patient's own stream."""
    at = 1 if attribute == "pectoral_muscle" else index % 2
    findings = {attribute: 1.0} if attribute in CONCEPTS else {}
    healthy, other = (Patient.drawn(seed, index, 2, _NO_FINDING, each) for each in ({}, findings))
    density = min(healthy.density, 2)  # there is a denser class
    healthy, other = replace(healthy, density=density), replace(other, density=density + (attribute == "density"))
    look = Look()
    if attribute in MARKERS:
        look = Look(marker=attribute)
    elif attribute in _MACHINES:
        look = Look(machine=_MACHINES[attribute])
    elif attribute == "exposure":
        look = Look(is_second_exposure=True)
    if attribute == "pectoral_muscle":
        yield _Drawing(healthy, healthy.views[at], Look(has_muscle=False), "no_muscle")
        yield _Drawing(healthy, healthy.views[at])
    else:
        yield _Drawing(healthy, healthy.views[at])
        yield _Drawing(other, other.views[at], look, attribute)


def read_pairs(file: str | os.PathLike[str]) -> pd.DataFrame:
    """A table of pairs: that of `make_phantom_pairs`, or anybody's.

    Args:
        file: a CSV file with the columns image_id_a, image_id_b and attribute (in what they differ), and if one wants
            xmin, ymin, xmax, ymax: where, in pixels of the network's input. Other columns stay as they are.

    Returns:
        A row per pair; the corners of boxes are numbers, NaN where there is none.

    Raises:
        DatasetError: the file is no such table; the message names the lines.
    """
    path = local_path(file)
    if not path.exists():
        raise DatasetError(f"the CSV of pairs {path} does not exist; of phantoms it is {PAIR_FILE} in their folder")
    table = read_csv(path, ("image_id_a", "image_id_b", "attribute"))
    missing = [name for name in ("image_id_a", "image_id_b", "attribute") if name not in table.columns]
    if missing:
        raise DatasetError(f"{path.name}: the column {missing[0]} is missing; it has {', '.join(table.columns)}")
    for name in ("image_id_a", "image_id_b", "attribute"):
        if (empty := table[name] == "").any():
            raise DatasetError(
                f"{path.name}: line {table.index[empty][0]} has no {name}: fill it in or delete the line"
            )
    there = [name for name in BOX_COLUMNS if name in table.columns]
    if there and len(there) < 4:
        raise DatasetError(
            f"{path.name}: of a box there is only {', '.join(there)}; give all of {', '.join(BOX_COLUMNS)}"
        )
    table = table.assign(**{name: "" for name in BOX_COLUMNS if not there})
    corners = table[list(BOX_COLUMNS)].apply(pd.to_numeric, errors="coerce")
    wrong = (corners.isna() & (table[list(BOX_COLUMNS)] != "")).any(axis=1) | corners.isna().any(
        axis=1
    ) ^ corners.isna().all(axis=1)
    wrong |= (corners["xmax"] <= corners["xmin"]) | (corners["ymax"] <= corners["ymin"])
    if wrong.any():
        raise DatasetError(
            f"{path.name}: line {table.index[wrong][0]} has a box that is none: give xmin < xmax and ymin < ymax in "
            "pixels, or leave all four empty"
        )
    return table.assign(**{name: corners[name] for name in BOX_COLUMNS}).reset_index(drop=True)
