"""Phantom mammograms in VinDr-Mammo's layout: drawn, so that everything can be tried without patient data.

An image is drawn as a left breast (chest wall at the left edge) in pixels and mirrored for the right breast. `u`, the
square root of the image's area, is the unit of length; so a phantom looks alike at every size. Each patient has its own
random streams, and the findings have streams apart from the anatomy: the same breast can be drawn with and without a
finding.
"""

__all__ = [
    "draw_phantom", "drawn_by", "Look", "make_phantoms", "Patient", "Phantom", "phantom_size", "PHANTOM_VERSION",
    "save_png", "View", "write_rows",
]  # fmt: skip

import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image
from scipy import ndimage

from mammosae_plugin.arguments import between, one_of, whole
from mammosae_plugin.datasets.about import PHANTOM_ID
from mammosae_plugin.datasets.image_files import checked_size
from mammosae_plugin.datasets.phantom_devices import (
    MACHINES,
    MARKERS,
    REFERENCE,
    Machine,
    clip_ink,
    draw_letters,
    letter_ink,
    side_letters,
)
from mammosae_plugin.datasets.phantom_findings import Box, Layer, Lesion, benign_specks, draw_lesion, skin_dents
from mammosae_plugin.datasets.phantom_outline import Outline
from mammosae_plugin.datasets.phantom_textures import Array, contour_lines, noise, polar_noise, sigmoid
from mammosae_plugin.datasets.vindr import ANNOTATION_FILE, CONCEPTS, IMAGE_FOLDER
from mammosae_plugin.errors import InputError
from mammosae_plugin.files import atomic_path, local_path, read_json, write_json, write_text
from mammosae_plugin.progress import progress

T = TypeVar("T")
PHANTOM_VERSION = 3  # raise it with every change of what is drawn, so that folders of two versions never mix
_MANIFEST = "phantoms.json"
_ORIGINAL_SCALE = 2  # the "original" images of the annotation file are twice as large as the prepared ones
_DENSITY_SHARES = (0.15, 0.35, 0.35, 0.15)
_GLAND_SHARES = (0.08, 0.22, 0.42, 0.62)  # of the breast's area that is glandular tissue, by density class
_LESION_LEVEL = 1.0  # the brightness towards which a finding lifts the tissue
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"

_EXTRA_FINDINGS, _MACHINE, _MARKER = 5, 6, 7  # the streams of a patient after those of the plan and of the views


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
    finding_shares: Mapping[str, float] | None = None,
    machine_shares: Mapping[str, float] | None = None,
    marker: Literal["letter", "clip"] | None = None,
    marker_share: float = 0.5,
    marker_finding: str | None = None,
    marker_agreement: tuple[float, float] = (0.9, 0.5),
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
        finding_shares: by finding, any of the ten of `CONCEPTS`, the probability that a patient has it in one breast,
            beside what the three shares above draw; each is drawn apart, so that one changes none of the others.
        machine_shares: by name in `MACHINES` (reference, grainy, soft, flat, hard) the share of patients whose images
            are of it; what is missing to 1 is of the reference. The annotation file then has a column machine.
        marker: "letter", a lead letter in the dark below the breast, or "clip", a metal clip in the breast, in some
            images; the annotation file then has a column marker (0 or 1). None draws none.
        marker_share: probability that an image has the marker; not used where `marker_finding` is given.
        marker_finding: a finding that the marker goes with, for shortcuts whose truth is known.
        marker_agreement: probability, in training and in test, that an image has the marker if and only if it has that
            finding: 0.9 is a shortcut, 0.5 is independence.
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
    height, width = phantom_size(image_size)
    folder = local_path(root)
    made_with: dict[str, Any] = {
        "phantom_version": PHANTOM_VERSION,
        "images_per_patient": images_per_patient,
        "image_size": [height, width],
        "test_share": test_share,
        "seed": seed,
        "shares": shares,
    }
    if finding_shares:
        made_with["findings"] = _checked_shares(finding_shares, "finding_shares", CONCEPTS)
    if machine_shares:
        made_with["machines"] = _checked_shares(machine_shares, "machine_shares", MACHINES)
        if (total := sum(made_with["machines"].values())) > 1 + 1e-9:
            raise InputError(f"machine_shares add up to {total:g}; give shares of the patients, 1 together at the most")
    if marker is not None:
        made_with["marker"] = _marker_plan(marker, marker_share, marker_finding, marker_agreement)
    elif marker_finding is not None:
        raise InputError('marker_finding is given without a marker; say which: marker="letter" or marker="clip"')
    manifest = folder / _MANIFEST
    if manifest.exists():
        if read_json(manifest) != made_with:
            raise InputError(f"{folder} holds phantoms made with other arguments; choose another folder or delete it")
    elif (folder / IMAGE_FOLDER).exists() or (folder / ANNOTATION_FILE).exists():
        raise InputError(f"{folder} holds images that are no phantoms of this generator; choose another folder")
    else:
        write_json(manifest, made_with)

    def make_patient(index: int) -> list[dict[str, object]]:
        rows = []
        for phantom in _phantoms_of(made_with, index):
            target = folder / IMAGE_FOLDER / phantom.patient.patient_id / phantom.image_id
            save_png(target, phantom.pixels)
            rows += phantom.annotation_rows(_split(made_with, index), fold=index % 4)
        return rows

    rows = [row for rows in drawn_by(make_patient, n_patients, num_workers) for row in rows]
    file = folder / ANNOTATION_FILE
    write_rows(file, rows)
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
    for phantom in _phantoms_of(made, int(number)):
        if phantom.image_id == image_id:
            return phantom.pixels(without=without)
    raise InputError(f"{root} has no image {image_id!r}; a patient there has {made['images_per_patient']} images")


def drawn_by(make_patient: Callable[[int], T], n_patients: int, num_workers: int) -> list[T]:
    """What a function gives for each patient, by several threads; the array routines release Python's lock."""
    with ThreadPoolExecutor(max(num_workers, 1)) as pool:
        results = pool.map(make_patient, range(n_patients)) if num_workers else map(make_patient, range(n_patients))
        return list(progress(results, total=n_patients, description="drawing phantoms", unit="patient", leave=False))


def phantom_size(image_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of images that phantoms can be drawn in.

    Raises:
        InputError: they are too small.
    """
    height, width = checked_size(image_size)
    if height < 96 or width < 64:
        raise InputError(f"image_size is {height} x {width}; phantoms need at least 96 x 64 pixels (height x width)")
    return height, width


def write_rows(file: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write a table, which may have grown or shrunk at its end alone.

    Raises:
        InputError: what lies there is another table.
    """
    text = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
    before = file.read_text(encoding="utf-8") if file.exists() else ""
    if not (text.startswith(before) or before.startswith(text)):  # more or fewer patients only
        raise InputError(f"{file} was edited, and drawing again would lose that; name another folder, or move it away")
    write_text(file, text)


def save_png(target: Path, pixels: Callable[[], npt.NDArray[np.uint8]]) -> None:
    """Draw an image and write it, unless it lies there whole."""
    if not _is_whole(target):
        drawn = pixels()
        with atomic_path(target) as temporary:
            Image.fromarray(drawn).save(temporary, compress_level=4)


def _is_whole(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:
        return False


def _checked_shares(shares: Mapping[str, float], name: str, known: Collection[str]) -> dict[str, float]:
    if not isinstance(shares, Mapping):
        raise InputError(f"{name} is {shares!r}; give a share by name, such as {{{next(iter(known))!r}: 0.2}}")
    for each in shares:
        one_of(each, f"a name in {name}", known)
    return {each: between(shares[each], f"{name}[{each!r}]", 0, 1) for each in known if each in shares}


def _marker_plan(kind: str, share: float, finding: str | None, agreement: tuple[float, float]) -> dict[str, Any]:
    one_of(kind, "marker", MARKERS)
    if finding is None:
        return {"kind": kind, "share": between(share, "marker_share", 0, 1)}
    one_of(finding, "marker_finding", CONCEPTS)
    if not isinstance(agreement, (tuple, list)) or len(agreement) != 2:
        raise InputError(f"marker_agreement is {agreement!r}; give two shares, of training and of test: (0.9, 0.5)")
    ends = [between(each, "marker_agreement", 0, 1) for each in agreement]
    return {"kind": kind, "finding": finding, "agreement": ends}


def _split(made: Mapping[str, Any], index: int) -> str:
    share = made["test_share"]
    return "test" if int((index + 1) * share + 0.5) > int(index * share + 0.5) else "training"


def _phantoms_of(made: Mapping[str, Any], index: int) -> "Iterator[Phantom]":
    """The images of a patient of a folder, by what the folder was made with."""
    seed, (height, width) = made["seed"], made["image_size"]
    patient = Patient.drawn(seed, index, made["images_per_patient"], made["shares"], made.get("findings", {}))
    machine = REFERENCE
    if "machines" in made:
        at = np.random.default_rng(np.random.SeedSequence([seed, index], spawn_key=(_MACHINE,))).random()
        bounds = np.cumsum(list(made["machines"].values()))
        machine = [*made["machines"], REFERENCE][int(np.searchsorted(bounds, at, side="right"))]
    for number, view in enumerate(patient.views):
        kind = None
        if (plan := made.get("marker")) is not None:
            draw = np.random.default_rng(np.random.SeedSequence([seed, index], spawn_key=(_MARKER, number))).random()
            share = plan.get("share")
            if share is None:
                agreement = plan["agreement"][_split(made, index) == "test"]
                has_it = any(plan["finding"] in lesion.concepts for lesion in view.lesions)
                share = agreement if has_it else 1 - agreement
            kind = plan["kind"] if draw < share else None
        truth: dict[str, object] = {"machine": machine} if "machines" in made else {}
        truth |= {"marker": int(kind is not None)} if "marker" in made else {}
        yield Phantom(patient, view, (height, width), Look(machine=MACHINES[machine], marker=kind, truth=truth))


# -- the plan of a patient ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """What is planned of one image."""

    laterality: str
    view: str
    seeds: np.random.SeedSequence
    lesions: tuple[Lesion, ...]
    birads: int


@dataclass(frozen=True)
class Look:
    """How an image differs from the reference's of the same breast.

    Attributes:
        machine: what it was taken with.
        marker: one of `MARKERS`, or none.
        has_muscle: whether an MLO view shows the pectoral muscle.
        is_second_exposure: whether its noise is another draw of the same.
        keeps_anatomy: whether the tissue of a breast whose nipple is drawn in is that of the breast before.
        truth: further columns of its annotation rows.
    """

    machine: Machine = MACHINES[REFERENCE]
    marker: str | None = None
    has_muscle: bool = True
    is_second_exposure: bool = False
    keeps_anatomy: bool = False
    truth: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Patient:
    """What is planned of a patient, before anything is drawn."""

    patient_id: str
    density: int
    entropy: int
    views: tuple[View, ...] = field(repr=False)

    @classmethod
    def drawn(
        cls,
        seed: int,
        index: int,
        n_views: int,
        shares: Mapping[str, float],
        findings: Mapping[str, float] = MappingProxyType({}),
    ) -> "Patient":
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
        lesions: tuple[list[Lesion], list[Lesion]] = ([], [])
        streams = [(rng, concept, shares[name], name != "other") for name, concept in kinds.items()]
        for number, concept in enumerate(CONCEPTS):
            if concept in findings:
                own = np.random.SeedSequence([seed, index], spawn_key=(_EXTRA_FINDINGS, number))
                grave = "symmetry" not in concept and "Skin" not in concept and concept != "Nipple_Retraction"
                streams.append((np.random.default_rng(own), concept, findings[concept], grave))
        for rng, concept, share, is_grave in streams:
            has_it = rng.random() < share
            side_draw = rng.random()
            side = int(side_draw < 0.5) if n_views > 2 else 0
            lesion = Lesion.drawn(rng, concept, is_grave)
            if has_it:
                lesions[side].append(lesion)
        names = [(sides[0], "CC", 0), (sides[0], "MLO", 0), (sides[1], "CC", 1), (sides[1], "MLO", 1)]
        views = tuple(
            View(
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


class Phantom:
    """One view of one breast: its outline and findings at once, its tissue only when `pixels` is asked for."""

    def __init__(self, patient: Patient, view: View, image_size: tuple[int, int], look: "Look | None" = None) -> None:
        self.patient, self.view, self.look = patient, view, look or Look()
        self.shape = image_size
        self.u = float(np.sqrt(image_size[0] * image_size[1]))
        self.image_id = f"{patient.patient_id}_{view.laterality}_{view.view}.png"
        outline_seed, self._tissue_seed, self._lesion_seed, self._noise_seed = (
            np.random.SeedSequence(view.seeds.entropy, spawn_key=(*view.seeds.spawn_key, number)) for number in range(4)
        )  # as `spawn` makes them, which would give others to a second image of the same view
        is_retracted = any("Nipple_Retraction" in lesion.concepts for lesion in view.lesions)
        dents = skin_dents(view.lesions)

        def outline(is_retracted: bool, **options: Any) -> Outline:
            rng = np.random.default_rng(outline_seed)
            return Outline(rng, view.view, image_size, is_retracted=is_retracted, **options)

        self.outline = outline(is_retracted, dents=dents)
        is_moved = bool(dents) or (is_retracted and self.look.keeps_anatomy)
        self._anatomy = outline(is_retracted and not self.look.keeps_anatomy) if is_moved else self.outline
        self._layers: list[Layer] = []
        self._found: list[tuple[Lesion, Box]] = []
        for lesion, seed in zip(view.lesions, self._lesion_seed.spawn(len(view.lesions)), strict=True):
            rng = np.random.default_rng(np.random.SeedSequence([lesion.entropy, *seed.generate_state(2).tolist()]))
            layer, box = draw_lesion(lesion, self.outline, view.view, rng)
            self._layers.append(layer)
            self._found.append((lesion, box))

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
        for rows, columns, layer in [*benign_specks(self._anatomy, rng), *findings]:
            breast[rows, columns] += layer * (_LESION_LEVEL - breast[rows, columns])
        u, depth, machine = self.u, self.outline.depth, self.look.machine
        # Compressed tissue thins out towards the skin; the skin itself is a fine bright line.
        thickness = np.sqrt(1 - (1 - np.clip(depth / (0.05 * u), 0, 1)) ** 2)
        line = max(0.0022 * u, 0.7)
        skin = np.exp(-0.5 * ((depth - 1.2 * line) / line) ** 2) * (depth > 0)
        image = breast * thickness + 0.07 * skin
        marker_rng = np.random.default_rng(np.random.SeedSequence(self._noise_seed.entropy, spawn_key=self._marker_key))
        if self.look.marker == "clip":
            draw_letters(image, clip_ink(self.outline, marker_rng), 0.95)
        image = machine.blurred(image, u)
        noise_rng = np.random.default_rng(self._noise_seed)
        grain = noise_rng.standard_normal(self.shape, dtype=np.float32)
        if self.look.is_second_exposure:
            grain = marker_rng.standard_normal(self.shape, dtype=np.float32)
        if u > 500:  # detectors blur their own noise a little
            grain = 1.8 * ndimage.gaussian_filter(grain, 0.7)
        if machine.noise != 1:
            grain = grain * np.float32(machine.noise)
        image = image + grain * (0.004 + 0.016 * np.sqrt(np.clip(image, 0, 1)))
        image = machine.developed(np.where(depth > 0, image, 0.004 + 0.003 * grain))
        if self.view.laterality == "R":
            image = image[:, ::-1].copy()
        side_letters(image, self.view.laterality, self.view.view, noise_rng)
        if self.look.marker == "letter":
            draw_letters(image, letter_ink(self.shape, self.view.laterality, marker_rng), 0.95)
        return np.asarray(np.clip(np.rint(image * 255), 0, 255), dtype=np.uint8)

    @property
    def _marker_key(self) -> tuple[int, ...]:
        return (*self._noise_seed.spawn_key, 0)

    def _tissue(self, rng: np.random.Generator) -> Array:
        """Fat, glandular tissue that converges on the nipple, ligaments, and in MLO views the pectoral muscle."""
        height, width = self.shape
        u = self.u
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        nipple_x, nipple_y = self._anatomy.nipple
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
        under_skin = sigmoid((self._anatomy.depth / u - 0.055) / 0.012)
        field = 2.4 * fan * under_skin + 0.42 * cloud + 0.26 * lobes + 0.30 * ducts * fan + 0.07 * net
        sample = field[::4, ::4][self._anatomy.inside[::4, ::4]]
        cut = np.quantile(sample, 1 - _GLAND_SHARES[self.patient.density])
        gland = sigmoid((field - cut) / 0.27) * under_skin
        bright = 0.245 + 0.02 * self.patient.density
        ligaments = contour_lines(lobes, 0.0022 * u) * np.clip(0.6 + 0.5 * cloud, 0, 1)
        vessels = contour_lines(drift, 0.0035 * u) * np.clip(0.3 + 0.7 * cloud, 0, 1)
        tissue = 0.22 + 0.02 * cloud + 0.008 * net + 0.025 * ligaments + 0.045 * vessels
        tissue += 0.02 * np.clip(ducts, 0, None) * fan
        tissue += gland * (bright + 0.03 * cloud + 0.025 * lobes + 0.04 * ducts + 0.022 * net)
        behind = np.exp(
            -0.5 * ((dx / (2.2 * self._anatomy.nipple_size)) ** 2 + (dy / (1.3 * self._anatomy.nipple_size)) ** 2)
        )
        tissue += 0.10 * behind
        if self.view.view == "MLO":
            across, down = rng.uniform(0.3, 0.42) * width, rng.uniform(0.48, 0.66) * height
            bulge = rng.uniform(0.02, 0.06) * width * np.sin(np.pi * np.clip(y / down, 0, 1))
            border = across * (1 - y / down) + bulge
            muscle = sigmoid((border - x) / (0.006 * u)) * np.float32(self.look.has_muscle)
            tissue = tissue * (1 - 0.75 * muscle) + muscle * (0.40 + 0.025 * cloud + 0.012 * net + 0.02 * lobes)
        return np.asarray(tissue, dtype=np.float32)

    # -- annotations ---------------------------------------------------------------------------------------------------

    def annotation_rows(self, split: str, fold: int) -> list[dict[str, object]]:
        """One row per finding, or one No_Finding row, with the columns of the file that VinDr's users have."""
        height, width = self.shape
        found: list[tuple[Lesion | None, Box | None]] = [*self._found] or [(None, None)]
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
            rows.append(row | self.look.truth)
        return rows
