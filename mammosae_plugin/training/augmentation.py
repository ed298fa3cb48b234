"""Augmented mammograms: what a training image looks like follows from seed, epoch and image, not from who reads it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from zlib import crc32

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as v2

from mammosae_plugin.datasets import MammogramDataset
from mammosae_plugin.datasets.preprocessing import MEAN, STD
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
            "mammo_clip", Mammo-CLIP's recipe: flips, for half of the images that affine map, for half of them an
            elastic one, and then the image stretched to its full range again, as the preprocessing does it.
        elastic_alpha: how far the elastic map moves pixels: random numbers from -1 to 1, blurred, times this many
            pixels.
        elastic_sigma: standard deviation in pixels of the blur.
    """

    kind: Kind
    elastic_alpha: float = 10.0
    elastic_sigma: float = 15.0

    def __call__(self, image: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
        """A changed copy of a preprocessed image (3, H, W); `generator` decides how.

        What enters from outside the frame has the image's background value, its minimum.
        """
        if self.kind == "none":
            return image
        image = flipped(image, *(generator.random(2) < 0.5))
        if self.kind == "affine" or (self.kind == "mammo_clip" and generator.random() < 0.5):
            image = affine(image, generator)
        if self.kind == "mammo_clip":
            if generator.random() < 0.5:
                image = elastic(image, generator, self.elastic_alpha, self.elastic_sigma)
            image = stretched(image)
        return image


class EpochImages(Dataset[torch.Tensor]):
    """The training images of one epoch, in its order: item i is the augmented image (3, H, W) of `order[i]`.

    Randomness of an image depends on seed, epoch and image id alone. The flips of kind "flips" depend on the image's
    place in the epoch's order instead, which the seed decides too.
    """

    def __init__(
        self, dataset: MammogramDataset, order: Sequence[int], augmentation: Augmentation, *, seed: int, epoch: int
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
        return self.augmentation(item["image"], generator)


def flipped(image: torch.Tensor, horizontally: bool, vertically: bool) -> torch.Tensor:
    """(..., H, W), left and right exchanged, up and down exchanged, or both."""
    if horizontally:
        image = v2.horizontal_flip(image)
    return v2.vertical_flip(image) if vertically else image


def affine(image: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """(3, H, W) after a random rotation, shift, scale and shear about its centre, bilinear."""
    height, width = image.shape[-2:]
    shift = generator.uniform(-SHIFT, SHIFT, 2) * (width, height)
    background = image.min()
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


def elastic(image: torch.Tensor, generator: np.random.Generator, alpha: float, sigma: float) -> torch.Tensor:
    """(3, H, W) with every pixel moved by smooth random numbers, bilinear (Simard et al., ICDAR 2003).

    The move along each axis, in pixels, is `alpha` times uniform noise from -1 to 1 under a Gaussian blur of standard
    deviation `sigma` pixels.
    """
    height, width = image.shape[-2:]
    noise = generator.uniform(-1, 1, (2, height, width)).astype(np.float32)
    pixels = alpha * gaussian_filter(noise, (0, sigma, sigma))
    # A displacement is in units in which the image is 2 wide and 2 high.
    displacement = torch.from_numpy(np.stack([pixels[0] * (2 / width), pixels[1] * (2 / height)], axis=-1))[None]
    background = image.min()
    moved: torch.Tensor = v2.elastic(image - background, displacement.float(), InterpolationMode.BILINEAR)
    return moved + background


def stretched(image: torch.Tensor) -> torch.Tensor:
    """A preprocessed image over its full range again: minimum to 0, maximum to 1, then minus MEAN and over STD.

    Mammo-CLIP augments before it preprocesses. A warp that left nothing but background changes nothing here.
    """
    low, high = image.min(), image.max()
    if low == high:
        return image
    return ((image - low) / (high - low) - MEAN) / STD
