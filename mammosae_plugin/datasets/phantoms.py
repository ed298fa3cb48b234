"""Phantom mammograms in VinDr-Mammo's layout: drawn, so that everything can be tried without patient data.

An image is drawn as a left breast (chest wall at the left edge) in pixels and mirrored for the right breast. `u`, the
square root of the image's area, is the unit of length; so a phantom looks alike at every size. Each patient has its own
random streams, and the findings have streams apart from the anatomy: the same breast can be drawn with and without a
finding.
"""

__all__ = ["Array", "Box", "draw_phantom", "make_phantoms", "PHANTOM_VERSION"]

import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from mammosae_plugin.arguments import between, whole
from mammosae_plugin.datasets.about import PHANTOM_ID
from mammosae_plugin.datasets.image_files import checked_size
from mammosae_plugin.datasets.phantom_textures import (
    STROKES,
    Array,
    contour_lines,
    distance_to_segment,
    noise,
    polar_noise,
    sigmoid,
    speck,
)
from mammosae_plugin.datasets.vindr import ANNOTATION_FILE, CONCEPTS, IMAGE_FOLDER
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import atomic_path, local_path, read_json, write_json, write_text

PHANTOM_VERSION = 3  # raise it with every change of what is drawn, so that folders of two versions never mix
_MANIFEST = "phantoms.json"
_ORIGINAL_SCALE = 2  # the "original" images of the annotation file are twice as large as the prepared ones
_DENSITY_SHARES = (0.15, 0.35, 0.35, 0.15)
_GLAND_SHARES = (0.08, 0.22, 0.42, 0.62)  # of the breast's area that is glandular tissue, by density class
_LESION_LEVEL = 1.0  # the brightness towards which a finding lifts the tissue
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"

Box = tuple[float, float, float, float]


def make_phantoms(
    root: str | os.PathLike[str],
    *,
    n_patients: int,
    images_per_patient: int = 4,
    image_size: tuple[int, int] = (1520, 912),
    test_share: float = 0.3,
    seed: int = 0,
    mass_share: float = 0.28,
    calcification_share: float = 0.28,
    other_share: float = 0.12,
    num_workers: int = 0,
) -> Path:
    """Write phantom mammograms and their annotation file; `VinDrMammo(root, image_size=image_size)` reads them.

    A patient's images come in the order CC and MLO of one breast, then of the other. A finding shows in every view of
    one breast, the patient's other breast is clean of it. Patients are independent: patient 7 of a seed is the same
    whatever `n_patients` is. A call that was interrupted goes on where it stopped, and a call with more patients adds
    to the folder.

    Args:
        root: the folder to write; made when it does not exist.
        n_patients: number of patients.
        images_per_patient: 1 to 4.
        image_size: (height, width) in pixels, at least 96 x 64.
        test_share: share of the patients in the test split, exact to within one patient.
        seed: of all randomness.
        mass_share: probability that a patient has a mass.
        calcification_share: probability of a cluster of calcifications, independent of the mass.
        other_share: probability of one other finding (Asymmetry, Skin_Thickening or Nipple_Retraction).
        num_workers: threads that draw at once; 0 draws in the calling thread. The files do not depend on it.

    Returns:
        The path of the annotation file, which is written last.

    Raises:
        InputError: an argument is out of range, or the folder holds phantoms made with other arguments.
    """
    shares = {"mass": mass_share, "calcification": calcification_share, "other": other_share}
    for name, share in {**shares, "test": test_share}.items():
        between(share, f"{name}_share", 0, 1)
    n_patients = whole(n_patients, "n_patients", least=1)
    images_per_patient = whole(images_per_patient, "images_per_patient", least=1, most=4)
    num_workers, seed = whole(num_workers, "num_workers", least=0), whole(seed, "seed", least=0)
    height, width = checked_size(image_size)
    if height < 96 or width < 64:
        raise InputError(f"image_size is {height} x {width}; phantoms need at least 96 x 64 pixels (height x width)")
    folder = local_path(root)
    made_with = {
        "phantom_version": PHANTOM_VERSION,
        "images_per_patient": images_per_patient,
        "image_size": [height, width],
        "test_share": test_share,
        "seed": seed,
        "shares": shares,
    }
    manifest = folder / _MANIFEST
    if manifest.exists():
        if read_json(manifest) != made_with:
            raise InputError(f"{folder} holds phantoms made with other arguments; choose another folder or delete it")
    elif (folder / IMAGE_FOLDER).exists() or (folder / ANNOTATION_FILE).exists():
        raise InputError(f"{folder} holds images that are no phantoms of this generator; choose another folder")
    else:
        write_json(manifest, made_with)

    def make_patient(index: int) -> list[dict[str, object]]:
        patient = _Patient.drawn(seed, index, images_per_patient, shares)
        is_test = int((index + 1) * test_share + 0.5) > int(index * test_share + 0.5)
        rows = []
        for view in patient.views:
            phantom = _Phantom(patient, view, (height, width))
            target = folder / IMAGE_FOLDER / patient.patient_id / phantom.image_id
            if not _is_whole(target):
                pixels = phantom.pixels()
                with atomic_path(target) as temporary:
                    Image.fromarray(pixels).save(temporary, compress_level=4)
            rows += phantom.annotation_rows("test" if is_test else "training", fold=index % 4)
        return rows

    with ThreadPoolExecutor(max(num_workers, 1)) as pool:  # the array routines release Python's lock
        results = pool.map(make_patient, range(n_patients)) if num_workers else map(make_patient, range(n_patients))
        rows = [
            row
            for rows in tqdm(results, total=n_patients, desc="drawing phantoms", unit="patient", leave=False)
            for row in rows
        ]
    file = folder / ANNOTATION_FILE
    text = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    if not (text.startswith(before) or before.startswith(text)):  # more or fewer patients only
        raise InputError(f"{file} was edited, and drawing again would lose that; name another folder, or move it away")
    write_text(file, text)
    return file


def draw_phantom(
    root: str | os.PathLike[str], image_id: str, *, without: Collection[str] = ()
) -> npt.NDArray[np.uint8]:
    """An image of a phantom folder drawn again: as it is there, or as it would be without some of its findings.

    Breast, noise and the other findings stay the same to the pixel, so that the difference is what the findings did.

    Args:
        root: a folder that `make_phantoms` wrote.
        image_id: an image's id, such as "phantom_00007_L_CC.png".
        without: concepts whose findings are left out. A drawn-in nipple stays drawn in: it is part of the outline.

    Returns:
        uint8 (H, W).

    Raises:
        InputError: the folder holds no phantoms of this version, or no such image.
    """
    manifest = local_path(root) / _MANIFEST
    made = read_json(manifest) if manifest.exists() else {}
    if made.get("phantom_version") != PHANTOM_VERSION:
        raise InputError(f"{root} holds no phantoms of version {PHANTOM_VERSION}; make them with make_phantoms")
    number = image_id.removeprefix(PHANTOM_ID).partition("_")[0]
    if not image_id.startswith(PHANTOM_ID) or not number.isdecimal():
        raise InputError(f"{image_id!r} is no image of a phantom; its id looks like {PHANTOM_ID}00007_L_CC.png")
    patient = _Patient.drawn(made["seed"], int(number), made["images_per_patient"], made["shares"])
    for view in patient.views:
        phantom = _Phantom(patient, view, (made["image_size"][0], made["image_size"][1]))
        if phantom.image_id == image_id:
            return phantom.pixels(without=without)
    raise InputError(f"{root} has no image {image_id!r}; a patient there has {made['images_per_patient']} images")


def _is_whole(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:
        return False


# -- the plan of a patient ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lesion:
    """A finding of one breast: `depth` is the share of the way from nipple to chest wall, `angle` the direction."""

    concepts: tuple[str, ...]
    depth: float
    angle: float
    area: float  # of the box, as a share of the image
    birads: int
    entropy: int


@dataclass(frozen=True)
class _View:
    laterality: str
    view: str
    seeds: np.random.SeedSequence
    lesions: tuple[_Lesion, ...]
    birads: int


@dataclass(frozen=True)
class _Patient:
    patient_id: str
    density: int
    entropy: int
    views: tuple[_View, ...] = field(repr=False)

    @classmethod
    def drawn(cls, seed: int, index: int, n_views: int, shares: dict[str, float]) -> "_Patient":
        """Every draw is made in a fixed order whether it is used or not, so a share of zero changes nothing else."""
        plan_seed, *view_seeds = np.random.SeedSequence([seed, index]).spawn(5)
        rng = np.random.default_rng(plan_seed)
        density = int(rng.choice(4, p=_DENSITY_SHARES))
        sides = ("L", "R") if rng.random() < 0.5 else ("R", "L")
        benign = [int(birads) for birads in rng.integers(1, 3, size=2)]
        entropy = int(rng.integers(2**31))
        kinds = {
            "mass": "Mass",
            "calcification": "Suspicious_Calcification",
            "other": str(rng.choice(["Asymmetry", "Skin_Thickening", "Nipple_Retraction"])),
        }
        lesions: tuple[list[_Lesion], list[_Lesion]] = ([], [])
        for name, concept in kinds.items():
            has_it = rng.random() < shares[name]
            side_draw = rng.random()
            side = int(side_draw < 0.5) if n_views > 2 else 0
            depth, angle = rng.uniform(0.25, 0.72), rng.uniform(-0.7, 0.7)
            area = float(np.clip(np.exp(rng.normal(np.log(0.036), 0.45)), 0.018, 0.08))
            severity = int(rng.choice([3, 4, 5], p=[0.35, 0.45, 0.2])) if name != "other" else 3
            lesion = _Lesion((concept,), depth, angle, area, severity, int(rng.integers(2**31)))
            if has_it:
                lesions[side].append(lesion)
        names = [(sides[0], "CC", 0), (sides[0], "MLO", 0), (sides[1], "CC", 1), (sides[1], "MLO", 1)]
        views = tuple(
            _View(
                laterality,
                view,
                view_seeds[at],
                tuple(lesions[side]),
                max([benign[side], *(lesion.birads for lesion in lesions[side])]),
            )
            for at, (laterality, view, side) in enumerate(names[:n_views])
        )
        return cls(f"{PHANTOM_ID}{index:05d}", density, entropy, views)


# -- one image ---------------------------------------------------------------------------------------------------------


class _Phantom:
    """One view of one breast: its outline and findings at once, its tissue only when `pixels` is asked for."""

    def __init__(self, patient: _Patient, view: _View, image_size: tuple[int, int]) -> None:
        self.patient, self.view = patient, view
        self.shape = image_size
        self.u = float(np.sqrt(image_size[0] * image_size[1]))
        self.image_id = f"{patient.patient_id}_{view.laterality}_{view.view}.png"
        outline_seed, self._tissue_seed, self._lesion_seed, self._noise_seed = view.seeds.spawn(4)
        self._draw_outline(np.random.default_rng(outline_seed))
        self._draw_lesions()

    # -- outline -------------------------------------------------------------------------------------------------------

    def _draw_outline(self, rng: np.random.Generator) -> None:
        """The skin as a curve x(y), the nipple on it, and the distance of every pixel to the skin."""
        height, width = self.shape
        y = np.arange(height) + 0.5
        reach = rng.uniform(0.68, 0.86) * width
        tilt, wave, phase = rng.uniform(-0.05, 0.05), rng.uniform(0.004, 0.012), rng.uniform(0, 2 * np.pi)
        if self.view.view == "CC":
            nipple_y = (0.5 + tilt) * height
            above = nipple_y - rng.uniform(0.02, 0.08) * height
            below = rng.uniform(0.92, 0.985) * height - nipple_y
            power = rng.uniform(2.0, 2.5, size=2)
            t = np.where(y < nipple_y, (nipple_y - y) / above, (y - nipple_y) / below)
            inside = np.clip(1 - t ** np.where(y < nipple_y, *power), 0, None)
            skin = np.where(t < 1, reach * inside**0.56, -1.0)
        else:
            nipple_y = (0.62 + tilt) * height
            top = rng.uniform(0.36, 0.5) * width
            fold_y = rng.uniform(0.9, 0.96) * height
            belly = rng.uniform(0.08, 0.16) * width
            power = rng.uniform((1.05, 1.9), (1.3, 2.3))
            up = np.clip((nipple_y - y) / nipple_y, 0, 1)
            down = np.clip((y - nipple_y) / (fold_y - nipple_y), 0, 1)
            upper = top + (reach - top) * (0.5 + 0.5 * np.cos(np.pi * up ** power[0]))
            lower = reach * (1 - down ** power[1]) ** 0.58
            flank = belly / (1 + np.exp((fold_y - 0.01 * height - y) / (0.02 * height)))
            blend = 0.02 * width  # the fold under the breast is rounded
            lower = blend * np.logaddexp(lower / blend, flank / blend) - blend * np.log(2) * (lower < 1)
            skin = np.where(y < nipple_y, upper, lower)
        skin = skin * (1 + wave * np.sin(5 * y / height + phase))
        size = rng.uniform(0.014, 0.02) * self.u  # of the nipple
        offset = (y - nipple_y) / size
        retracted = any("Nipple_Retraction" in lesion.concepts for lesion in self.view.lesions)
        if retracted:
            skin = skin - 1.8 * size * np.exp(-0.5 * (offset / 1.3) ** 2)
        else:
            skin = skin + 1.1 * size * np.exp(-(np.abs(offset) ** 3))
        self._nipple = (float(np.interp(nipple_y, y, skin)), float(nipple_y))
        self._nipple_size = size
        inside_skin = np.arange(width)[None, :] < skin[:, None]
        # The chest wall and the image's edges are no skin: the distance is taken in a padded image that goes on there.
        padded = np.pad(inside_skin, ((0, 0), (1, 0)), constant_values=True)
        depth = ndimage.distance_transform_edt(padded)[:, 1:]
        self._depth = ndimage.gaussian_filter(depth, max(0.0015 * self.u, 0.5)).astype(np.float32)
        self._inside = inside_skin

    # -- findings ------------------------------------------------------------------------------------------------------

    def _draw_lesions(self) -> None:
        """Every finding's opacity (left-breast frame), and its box."""
        self._layers: list[tuple[slice, slice, Array]] = []
        self._found: list[tuple[_Lesion, Box]] = []
        for lesion, seed in zip(self.view.lesions, self._lesion_seed.spawn(len(self.view.lesions)), strict=True):
            rng = np.random.default_rng(np.random.SeedSequence([lesion.entropy, *seed.generate_state(2).tolist()]))
            concept = lesion.concepts[0]
            if concept == "Skin_Thickening":
                layer, threshold = self._skin_thickening(rng), 0.25
            elif concept == "Nipple_Retraction":
                layer, threshold = self._nipple_shadow(rng), 0.25
            else:
                side = np.sqrt(lesion.area) * self.u
                center = self._place(lesion, side, rng)
                if concept == "Mass":
                    layer, threshold = self._mass(center, side, rng), 0.12
                elif concept == "Suspicious_Calcification":
                    layer, threshold = self._calcifications(center, side, rng), 0.15
                else:
                    layer, threshold = self._asymmetry(center, 1.3 * side, rng), 0.35
            rows, columns, values = layer
            bright = np.argwhere(values > threshold * values.max())
            (top, left), (bottom, right) = bright.min(axis=0), bright.max(axis=0) + 1
            box = (columns.start + left, rows.start + top, columns.start + right, rows.start + bottom)
            self._layers.append(layer)
            self._found.append((lesion, tuple(map(float, box))))  # type: ignore[arg-type]

    def _place(self, lesion: _Lesion, side: float, rng: np.random.Generator) -> tuple[float, float]:
        """A centre (x, y) near the planned place whose box lies inside the breast and the image."""
        height, width = self.shape
        nipple_x, nipple_y = self._nipple
        best, best_room = (nipple_x / 2, nipple_y), -np.inf
        for attempt in range(40):
            spread = 0.02 + 0.02 * attempt
            depth = lesion.depth + rng.normal(0, spread)
            angle = lesion.angle + rng.normal(0, 2 * spread) + (0.25 if self.view.view == "MLO" else 0.0)
            radius = depth * nipple_x
            x, y = nipple_x - radius * np.cos(angle), nipple_y - radius * np.sin(angle)
            if not (0.55 * side < x < width - 0.55 * side and 0.55 * side < y < height - 0.55 * side):
                continue
            room = float(self._depth[int(y), int(x)]) - 0.56 * side
            if room > best_room:
                best, best_room = (x, y), room
            if room > 0:
                break
        return best

    def _window(self, center: tuple[float, float], radius: float) -> tuple[slice, slice, Array, Array]:
        """The part of the image within `radius` of `center`, and the pixel offsets (dx, dy) from the centre there."""
        x, y = center
        rows = slice(max(int(y - radius), 0), min(int(y + radius) + 2, self.shape[0]))
        columns = slice(max(int(x - radius), 0), min(int(x + radius) + 2, self.shape[1]))
        dy, dx = np.mgrid[rows, columns].astype(np.float32)
        return rows, columns, dx + np.float32(0.5 - x), dy + np.float32(0.5 - y)

    def _mass(self, center: tuple[float, float], side: float, rng: np.random.Generator) -> tuple[slice, slice, Array]:
        """An irregular soft-edged density, often with spicules; its box is about `side` wide."""
        spiculated = rng.random() < 0.5
        orders = np.arange(2, 8)
        waves = rng.normal(0, 0.16 / orders**0.8), rng.uniform(0, 2 * np.pi, len(orders))

        def outline(angle: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
            lobes = (size * np.cos(k * angle + phase) for k, size, phase in zip(orders, *waves, strict=True))
            return np.asarray(1 + sum(lobes))

        turn = np.linspace(0, 2 * np.pi, 256)
        extent = np.ptp(outline(turn) * np.cos(turn)) * np.ptp(outline(turn) * np.sin(turn))
        radius = side * (0.84 if spiculated else 0.97) / np.sqrt(extent)
        rows, columns, dx, dy = self._window(center, 0.85 * side)
        angle, distance = np.arctan2(dy, dx), np.hypot(dx, dy)
        edge = outline(angle)
        soft = rng.uniform(0.07, 0.14)
        body = sigmoid((edge - distance / radius) / soft)
        grain = noise(body.shape, 1.4, rng, low=1.5)
        layer = body * (1 + 0.1 * grain) * (1.0 - 0.22 * np.clip(distance / radius, 0, 1.2) ** 2)
        if spiculated:
            for _ in range(rng.integers(9, 16)):
                direction, length = rng.uniform(0, 2 * np.pi), rng.uniform(1.25, 1.65) * radius
                bend = rng.normal(0, 0.12) / radius
                along = dx * np.cos(direction) + dy * np.sin(direction)
                across = -dx * np.sin(direction) + dy * np.cos(direction) + bend * along**2
                thickness = 0.055 * radius * np.clip(1.15 - along / length, 0.2, 1)
                spike = (
                    np.exp(-0.5 * (across / thickness) ** 2)
                    * np.clip((length - along) / (0.5 * length), 0, 1)
                    * (along > 0)
                )
                layer = np.maximum(layer, 0.6 * spike * (1 - body) + layer)
        return rows, columns, np.clip(rng.uniform(0.6, 0.78) * layer, 0, 0.85).astype(np.float32)

    def _calcifications(
        self, center: tuple[float, float], side: float, rng: np.random.Generator
    ) -> tuple[slice, slice, Array]:
        """10 to 25 bright specks. They grow slower than the image, or they would be too coarse on a large one."""
        rows, columns, dx, dy = self._window(center, 0.72 * side)
        layer = np.zeros_like(dx)
        scale = (self.u / 202) ** 0.65  # 202 is u of 256 x 160 pixels
        n_specks, aspect = rng.integers(10, 26), np.exp(rng.uniform(-0.25, 0.25))
        places = rng.uniform(0, 2 * np.pi, n_specks)
        places = rng.random((n_specks, 1)) ** 0.6 * np.stack([np.cos(places), np.sin(places)], axis=1)
        low, high = places.min(axis=0), places.max(axis=0)
        spread = 0.92 * side * np.array([aspect, 1 / aspect])  # the outermost specks span the box
        places = ((places - low) / (high - low) - 0.5) * spread
        for x, y in places:
            diameter = float(np.clip(rng.lognormal(np.log(2.0), 0.25), 1.5, 3.0)) * scale
            layer = np.maximum(layer, rng.uniform(0.55, 1.0) * speck(dx - x, dy - y, diameter, rng))
        return rows, columns, layer

    def _benign_specks(self, rng: np.random.Generator) -> list[tuple[slice, slice, Array]]:
        """Single calcifications scattered over the breast, as most breasts have: a bright speck alone is no finding."""
        scale = (self.u / 202) ** 0.65
        inside = np.argwhere(self._depth > 0.06 * self.u)
        layers = []
        for y, x in inside[rng.integers(0, len(inside), rng.poisson(4))] if len(inside) else []:
            diameter = rng.uniform(1.5, 2.6) * scale
            rows, columns, dx, dy = self._window((x + 0.5, y + 0.5), 2 * diameter + 1)
            layers.append((rows, columns, rng.uniform(0.5, 0.95) * speck(dx, dy, diameter, rng)))
        return layers

    def _asymmetry(
        self, center: tuple[float, float], side: float, rng: np.random.Generator
    ) -> tuple[slice, slice, Array]:
        """A broad faint density without a border."""
        rows, columns, dx, dy = self._window(center, 0.9 * side)
        turn, stretch = rng.uniform(0, np.pi), rng.uniform(1.2, 1.6)
        along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
        blob = np.exp(-4 * ((along / side) ** 2 + (across * stretch / side) ** 2))
        layer = np.clip(blob * (1 + 0.4 * noise(blob.shape, 1.6, rng, low=2)) - 0.03, 0, None)
        return rows, columns, (rng.uniform(0.13, 0.2) * layer * (self._depth[rows, columns] > 0)).astype(np.float32)

    def _skin_thickening(self, rng: np.random.Generator) -> tuple[slice, slice, Array]:
        """A bright broad band along a stretch of the skin."""
        height, width = self.shape
        y = (np.arange(height, dtype=np.float32) + 0.5)[:, None]
        middle = self._nipple[1] + rng.choice([-1, 1]) * rng.uniform(0.1, 0.18) * height
        stretch = np.exp(-(((y - middle) / (rng.uniform(0.07, 0.12) * height)) ** 4))
        band = sigmoid((rng.uniform(0.022, 0.03) * self.u - self._depth) / (0.003 * self.u)) * (self._depth > 0)
        band = band * (np.abs(y - middle) < 0.25 * height)
        return slice(0, height), slice(0, width), (0.38 * band * stretch).astype(np.float32)

    def _nipple_shadow(self, rng: np.random.Generator) -> tuple[slice, slice, Array]:
        """The density behind a nipple that is drawn in (the dent itself is part of the outline)."""
        size = self._nipple_size * rng.uniform(1.3, 1.7)
        x, y = self._nipple
        rows, columns, dx, dy = self._window((x - size, y), 4.5 * size)
        shadow = np.exp(-0.5 * ((dx / (1.5 * size)) ** 2 + (dy / size) ** 2)) * (self._depth[rows, columns] > 0)
        return rows, columns, (0.45 * shadow).astype(np.float32)

    # -- tissue --------------------------------------------------------------------------------------------------------

    def pixels(self, *, without: Collection[str] = ()) -> npt.NDArray[np.uint8]:
        """The image, uint8 (H, W); findings of the concepts in `without` are left out."""
        rng = np.random.default_rng(self._tissue_seed)
        breast = self._tissue(rng)
        findings = [
            layer
            for layer, (lesion, _) in zip(self._layers, self._found, strict=True)
            if not set(lesion.concepts) & set(without)
        ]
        for rows, columns, layer in [*self._benign_specks(rng), *findings]:
            breast[rows, columns] += layer * (_LESION_LEVEL - breast[rows, columns])
        u = self.u
        # Compressed tissue thins out towards the skin; the skin itself is a fine bright line.
        thickness = np.sqrt(1 - (1 - np.clip(self._depth / (0.05 * u), 0, 1)) ** 2)
        line = max(0.0022 * u, 0.7)
        skin = np.exp(-0.5 * ((self._depth - 1.2 * line) / line) ** 2) * (self._depth > 0)
        image = breast * thickness + 0.07 * skin
        noise_rng = np.random.default_rng(self._noise_seed)
        grain = noise_rng.standard_normal(self.shape, dtype=np.float32)
        if u > 500:  # detectors blur their own noise a little
            grain = 1.8 * ndimage.gaussian_filter(grain, 0.7)
        image = image + grain * (0.004 + 0.016 * np.sqrt(np.clip(image, 0, 1)))
        image = np.where(self._depth > 0, image, 0.004 + 0.003 * grain)
        if self.view.laterality == "R":
            image = image[:, ::-1].copy()
        self._draw_marker(image, noise_rng)
        return np.asarray(np.clip(np.rint(image * 255), 0, 255), dtype=np.uint8)

    def _tissue(self, rng: np.random.Generator) -> Array:
        """Fat, glandular tissue that converges on the nipple, ligaments, and in MLO views the pectoral muscle."""
        height, width = self.shape
        u = self.u
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        nipple_x, nipple_y = self._nipple
        dx, dy = np.float32(nipple_x) - x, y - np.float32(nipple_y)
        if self.view.view == "MLO":
            dy = dy + 0.25 * dx  # the gland points up and back, towards the armpit
        radius, angle = np.hypot(dx, dy), np.arctan2(dy, dx)

        cloud = noise(self.shape, 2.3, rng, low=2.5)
        lobes = noise(self.shape, 3.2, rng, low=9.0)
        net = noise(self.shape, 1.3, rng, low=14.0)
        drift = noise(self.shape, 4.0, rng, low=3.0)
        ducts = polar_noise(radius / u, angle, rng)
        reach = radius / nipple_x
        fan = np.exp(-(((reach - 0.42) / 0.40) ** 4)) * np.exp(-((angle / 1.0) ** 4))
        under_skin = sigmoid((self._depth / u - 0.055) / 0.012)
        field = 2.4 * fan * under_skin + 0.42 * cloud + 0.26 * lobes + 0.30 * ducts * fan + 0.07 * net
        sample = field[::4, ::4][self._inside[::4, ::4]]
        cut = np.quantile(sample, 1 - _GLAND_SHARES[self.patient.density])
        gland = sigmoid((field - cut) / 0.27) * under_skin
        bright = 0.245 + 0.02 * self.patient.density
        ligaments = contour_lines(lobes, 0.0022 * u) * np.clip(0.6 + 0.5 * cloud, 0, 1)
        vessels = contour_lines(drift, 0.0035 * u) * np.clip(0.3 + 0.7 * cloud, 0, 1)
        tissue = 0.22 + 0.02 * cloud + 0.008 * net + 0.025 * ligaments + 0.045 * vessels
        tissue += 0.02 * np.clip(ducts, 0, None) * fan
        tissue += gland * (bright + 0.03 * cloud + 0.025 * lobes + 0.04 * ducts + 0.022 * net)
        behind = np.exp(-0.5 * ((dx / (2.2 * self._nipple_size)) ** 2 + (dy / (1.3 * self._nipple_size)) ** 2))
        tissue += 0.10 * behind
        if self.view.view == "MLO":
            across, down = rng.uniform(0.3, 0.42) * width, rng.uniform(0.48, 0.66) * height
            bulge = rng.uniform(0.02, 0.06) * width * np.sin(np.pi * np.clip(y / down, 0, 1))
            border = across * (1 - y / down) + bulge
            muscle = sigmoid((border - x) / (0.006 * u))
            tissue = tissue * (1 - 0.75 * muscle) + muscle * (0.40 + 0.025 * cloud + 0.012 * net + 0.02 * lobes)
        return np.asarray(tissue, dtype=np.float32)

    def _draw_marker(self, image: Array, rng: np.random.Generator) -> None:
        """The side and view in block letters, in the dark upper corner away from the chest wall."""
        text = f"{self.view.laterality} {self.view.view}"
        height, width = self.shape
        letter = 0.034 * self.u
        pitch = 0.92 * letter
        length = pitch * len(text)
        margin = rng.uniform(0.02, 0.04) * self.u
        top = margin + rng.uniform(0, 0.03) * height
        left = width - margin - length if self.view.laterality == "L" else margin
        rows = slice(max(int(top) - 2, 0), int(top + letter) + 4)
        columns = slice(max(int(left) - 2, 0), min(int(left + length) + 3, width))
        y, x = np.mgrid[rows, columns].astype(np.float32)
        nearest = np.full(y.shape, np.inf, dtype=np.float32)
        for at, character in enumerate(text):
            for stroke in STROKES[character]:
                points = np.asarray(stroke) * letter + (left + at * pitch, top)
                for start, end in zip(points[:-1], points[1:], strict=True):
                    nearest = np.minimum(nearest, distance_to_segment(x + 0.5, y + 0.5, start, end))
        ink = np.clip(0.085 * letter + 0.5 - nearest, 0, 1)
        image[rows, columns] = np.maximum(image[rows, columns], rng.uniform(0.8, 0.95) * ink)

    # -- annotations ---------------------------------------------------------------------------------------------------

    def annotation_rows(self, split: str, fold: int) -> list[dict[str, object]]:
        """One row per finding, or one No_Finding row, with the columns of the file that VinDr's users have."""
        height, width = self.shape
        found: list[tuple[_Lesion | None, Box | None]] = [*self._found] or [(None, None)]
        rows = []
        for lesion, box in found:
            concepts = lesion.concepts if lesion else ()
            if box is not None and self.view.laterality == "R":
                box = (width - box[2], box[1], width - box[0], box[3])
            printed = [concept.replace("_", " ") for concept in concepts] or ["No Finding"]
            row: dict[str, object] = {
                "patient_id": self.patient.patient_id,
                "series_id": f"{self.patient.patient_id}_series",
                "image_id": self.image_id,
                "laterality": self.view.laterality,
                "view": self.view.view,
                "height": height * _ORIGINAL_SCALE,
                "width": width * _ORIGINAL_SCALE,
                "breast_birads": f"BI-RADS {self.view.birads}",
                "breast_density": f"DENSITY {'ABCD'[self.patient.density]}",
                "finding_categories": str(printed),
                "finding_birads": f"BI-RADS {lesion.birads}" if lesion else "",
            }
            corners = ("xmin", "ymin", "xmax", "ymax")
            row |= {name: "" if box is None else box[at] * _ORIGINAL_SCALE for at, name in enumerate(corners)}
            row["split"] = split
            row |= {f"resized_{name}": "" if box is None else box[at] for at, name in enumerate(corners)}
            row["fold"] = fold
            row |= {name: int(name in concepts) for name in sorted((*CONCEPTS, "No_Finding"))}
            row["No_Finding"] = int(not concepts)
            row["density"] = self.patient.density
            rows.append(row)
        return rows


# -- noise and shapes --------------------------------------------------------------------------------------------------
