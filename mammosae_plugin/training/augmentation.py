"""Augmented mammograms: what a training image looks like follows from seed, epoch and image, not from who reads it."""

__all__ = [
    "affine", "Augmentation", "DEGREES", "elastic", "EpochImages", "fixed_affine", "fixed_affine_matrix", "flipped",
    "Kind", "SCALE", "SHIFT", "three_points_matrix", "three_points_moved",
]  # fmt: skip

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal
from zlib import crc32

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as v2

from mammosae_plugin.adapters.preprocessing import MAMMO_CLIP, Preprocessing
from mammosae_plugin.datasets import StudyDataset
from mammosae_plugin.provenance import torch_generator

Kind = Literal["none", "flips", "affine", "mammo_clip"]

DEGREES = 20.0
SHIFT = 0.1
SCALE = (0.8, 1.2)


@dataclass(frozen=True)
class Augmentation:
    """How training images are changed.

    Attributes:
        kind: "none"; "flips", left-right and up-down, each for half of the images; "affine", flips and for every image
            a rotation (up to 20 degrees), shift (10 %), scale (0.8 to 1.2) and shear (20 degrees, both axes);
            "mammo_clip", what Mammo-CLIP's code does under albumentations 1.4.7: flips, for half of the images an
            affine map of fixed rotation, shift and shear (`fixed_affine`), for half of them an elastic one, and then
            the image stretched to its full range again, as the preprocessing does it.
        elastic_alpha: mammo_clip: how far the elastic map moves pixels: random numbers from -1 to 1, blurred, times
            this many pixels.
        elastic_sigma: mammo_clip: standard deviation in pixels of the blur.
        elastic_affine: mammo_clip: how far, in pixels, the affine part of the elastic map moves its three points:
            albumentations 1.4.7's `alpha_affine`, 50 by default there. 0: none, as in albumentations 2.
    """

    kind: Kind
    elastic_alpha: float = 10.0
    elastic_sigma: float = 15.0
    elastic_affine: float = 50.0

    def __call__(
        self, image: torch.Tensor, generator: np.random.Generator, preprocessing: Preprocessing = MAMMO_CLIP
    ) -> torch.Tensor:
        """A changed copy of an image (3, H, W) under a preprocessing; `generator` decides how.

        What enters from outside the frame has the image's background value, each channel's minimum; in the elastic map
        it is the image's reflection.
        """
        if self.kind == "none":
            return image
        image = flipped(image, *(generator.random(2) < 0.5))
        if self.kind == "affine":
            return affine(image, generator)
        return self._as_mammo_clip(image, generator, preprocessing) if self.kind == "mammo_clip" else image

    def for_preprocessing(self, preprocessing: Preprocessing) -> Callable[..., torch.Tensor]:
        """The augmentation of images under a preprocessing, to be called with an image and a generator."""
        return partial(self, preprocessing=preprocessing)

    def _as_mammo_clip(
        self, image: torch.Tensor, generator: np.random.Generator, preprocessing: Preprocessing
    ) -> torch.Tensor:
        if generator.random() < 0.5:
            image = fixed_affine(image, generator)
        if generator.random() < 0.5:
            if self.elastic_affine:
                image = three_points_moved(image, generator, self.elastic_affine)
            image = elastic(image, generator, self.elastic_alpha, self.elastic_sigma)
        return preprocessing.again(image)


class EpochImages(Dataset[torch.Tensor]):
    """The training images of one epoch, in its order: item i is the augmented image (3, H, W) of `order[i]`.

    Randomness of an image depends on seed, epoch and image id alone. The flips of kind "flips" depend on the image's
    place in the epoch's order instead, which the seed decides too.
    """

    def __init__(
        self, dataset: StudyDataset, order: Sequence[int], augmentation: Augmentation, *, seed: int, epoch: int
    ) -> None:
        self.dataset = dataset
        self.order = order
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = epoch
        # A stream of their own: classifiers trained by earlier versions stay reproducible, whose data loader took the
        # first number of this generator.
        generator = torch_generator(seed, epoch, 1)
        torch.empty((), dtype=torch.int64).random_(generator=generator)
        self._flips = torch.rand(len(order), 2, generator=generator) < 0.5

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, place: int) -> torch.Tensor:
        item = self.dataset[self.order[place]]
        if self.augmentation.kind == "flips":
            return flipped(item["image"], *self._flips[place].tolist())
        generator = np.random.default_rng([self.seed, self.epoch, crc32(item["image_id"].encode())])
        return self.augmentation(item["image"], generator, self.dataset.preprocessing)


def flipped(image: torch.Tensor, horizontally: bool, vertically: bool) -> torch.Tensor:
    """(..., H, W), left and right exchanged, up and down exchanged, or both."""
    if horizontally:
        image = v2.horizontal_flip(image)
    return v2.vertical_flip(image) if vertically else image


def affine(image: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """(3, H, W) after a random rotation, shift, scale and shear about its centre, bilinear."""
    height, width = image.shape[-2:]
    shift = generator.uniform(-SHIFT, SHIFT, 2) * (width, height)
    background = _background(image)
    moved: torch.Tensor = (
        v2.affine(  # zeros come in from outside, so the background is made zero; `fill` would leave a bright seam
            image - background,
            angle=float(generator.uniform(-DEGREES, DEGREES)),
            translate=shift.tolist(),
            scale=float(generator.uniform(*SCALE)),
            shear=generator.uniform(-DEGREES, DEGREES, 2).tolist(),
            interpolation=InterpolationMode.BILINEAR,
        )
    )
    return moved + background


def fixed_affine_matrix(image_size: tuple[int, int], scale_x: float, scale_y: float) -> npt.NDArray[np.float64]:
    """(2, 3), pixels (x, y, 1) of an image (H, W) -> where they go, by albumentations' Affine with single numbers.

    A single number means that value and not a range there (1.4.7 and 2.0.8): every image turns by 20 degrees, is
    sheared by 20 degrees along both axes, and shifted by 10 % of its sides. In order, about the centre: shear along y,
    shear along x together with scale and rotation, shift.
    """
    height, width = image_size
    turn, shear = -np.radians(DEGREES), -np.tan(np.radians(DEGREES))
    shear_y = np.array([[1, 0], [shear, 1]])
    shear_x = np.array([[1, -shear], [0, 1]])
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    linear = rotation @ shear_x @ np.diag([scale_x, scale_y]) @ shear_y
    centre = np.array([width / 2 - 0.5, height / 2 - 0.5])
    offset = centre + SHIFT * np.array([width, height]) - linear @ centre
    return np.column_stack([linear, offset])


def fixed_affine(image: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """(3, H, W) under `fixed_affine_matrix`; the scales along x and y are drawn independently from 0.8 to 1.2."""
    background = _background(image)
    matrix = fixed_affine_matrix((image.shape[-2], image.shape[-1]), *generator.uniform(*SCALE, 2))
    return _warped(image - background, matrix, "zeros") + background


def three_points_matrix(
    image_size: tuple[int, int], generator: np.random.Generator, reach: float
) -> npt.NDArray[np.float64]:
    """(2, 3), the affine map that moves three points by up to `reach` pixels along each axis.

    The affine part of albumentations 1.4.7's ElasticTransform (`alpha_affine`). Its points are three corners of a
    square, a third of the shorter side from a centre whose coordinates it exchanges: x is half the height.
    """
    height, width = image_size
    centre, size = np.array([height // 2, width // 2]), min(height, width) // 3
    points = centre + size * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = points + generator.uniform(-reach, reach, (3, 2))
    return np.linalg.solve(np.column_stack([points, np.ones(3)]), moved).T


def three_points_moved(image: torch.Tensor, generator: np.random.Generator, reach: float) -> torch.Tensor:
    """(3, H, W) under `three_points_matrix`; what comes from outside the frame is the reflection at its border."""
    matrix = three_points_matrix((image.shape[-2], image.shape[-1]), generator, reach)
    return _warped(image, matrix, "reflection")


def _warped(image: torch.Tensor, matrix: npt.NDArray[np.float64], outside: str) -> torch.Tensor:
    """(3, H, W) with every pixel (x, y) moved to matrix @ (x, y, 1), bilinear."""
    back = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))[:2]
    rows, columns = np.mgrid[0 : image.shape[-2], 0 : image.shape[-1]]
    return _sampled(image, np.stack([columns, rows, np.ones_like(rows)], axis=-1) @ back.T, outside)


def _sampled(image: torch.Tensor, source: npt.NDArray[np.float64], outside: str) -> torch.Tensor:
    """(3, H, W), every pixel taken from where `source` (H, W, 2) says in pixels (x, y), bilinear."""
    height, width = image.shape[-2:]
    grid = torch.from_numpy(2 * source / (width - 1, height - 1) - 1).to(image.dtype)
    return functional.grid_sample(image[None], grid[None], padding_mode=outside, align_corners=True)[0]


def elastic(image: torch.Tensor, generator: np.random.Generator, alpha: float, sigma: float) -> torch.Tensor:
    """(3, H, W) with every pixel moved by smooth random numbers, bilinear (Simard et al., ICDAR 2003).

    The move along each axis, in pixels, is `alpha` times uniform noise from -1 to 1 under a Gaussian blur of standard
    deviation `sigma` pixels. What comes from outside the frame is the reflection at its border.
    """
    height, width = image.shape[-2:]
    noise = generator.uniform(-1, 1, (2, height, width)).astype(np.float32)
    pixels = alpha * gaussian_filter(noise, (0, sigma, sigma))
    rows, columns = np.mgrid[0:height, 0:width]
    background = _background(image)
    source = np.stack([columns + pixels[0], rows + pixels[1]], axis=-1)
    return _sampled(image - background, source, "reflection") + background


def _background(image: torch.Tensor) -> torch.Tensor:
    """(3, 1, 1), the least value of each channel."""
    return image.amin((-2, -1), keepdim=True)
