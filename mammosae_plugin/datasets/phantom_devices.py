"""What phantoms have of the devices: letters, a marker beside or in the breast, and machines whose images differ."""

__all__ = ["clip_ink", "draw_letters", "letter_ink", "Machine", "MACHINES", "MARKERS", "REFERENCE", "side_letters"]

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mammosae_plugin.datasets.phantom_outline import Outline
from mammosae_plugin.datasets.phantom_textures import STROKES, Array, distance_to_segment

REFERENCE = "reference"
MARKERS = ("letter", "clip")
"""A lead letter in the dark corner below the breast, or a metal clip within the breast."""


@dataclass(frozen=True)
class Machine:
    """How a machine's images differ from the reference's.

    Attributes:
        noise: its noise, as a multiple of the reference's.
        blur: the deviation of its blur, as a share of `u`.
        gamma: of its contrast curve; below 1 is brighter.
        low: the gray of its black, 0 to 1.
    """

    noise: float = 1.0
    blur: float = 0.0
    gamma: float = 1.0
    low: float = 0.0

    def blurred(self, image: Array, u: float) -> Array:
        """The image as the machine's optics give it."""
        return np.asarray(ndimage.gaussian_filter(image, self.blur * u), dtype=np.float32) if self.blur else image

    def developed(self, image: Array) -> Array:
        """The image under the machine's contrast curve."""
        if self.gamma != 1:
            image = np.clip(image, 0, None) ** np.float32(self.gamma)
        return image if not self.low else np.float32(self.low) + image * np.float32(1 - self.low)


MACHINES: dict[str, Machine] = {
    REFERENCE: Machine(),
    "grainy": Machine(noise=2.2),
    "soft": Machine(noise=0.7, blur=0.006),
    "flat": Machine(gamma=0.72, low=0.03),
    "hard": Machine(noise=1.2, gamma=1.35),
}
"""The machines that phantoms can be of."""


def _ink(shape: tuple[int, int], text: str, letter: float, left: float, top: float) -> tuple[slice, slice, Array]:
    """Rows, columns and the darkness (0 to 1) of block letters, `letter` pixels high."""
    pitch = 0.92 * letter
    length = pitch * len(text)
    rows = slice(max(int(top) - 2, 0), int(top + letter) + 4)
    columns = slice(max(int(left) - 2, 0), min(int(left + length) + 3, shape[1]))
    y, x = np.mgrid[rows, columns].astype(np.float32)
    nearest = np.full(y.shape, np.inf, dtype=np.float32)
    for at, character in enumerate(text):
        for stroke in STROKES[character]:
            points = np.asarray(stroke) * letter + (left + at * pitch, top)
            for start, end in zip(points[:-1], points[1:], strict=True):
                nearest = np.minimum(nearest, distance_to_segment(x + 0.5, y + 0.5, start, end))
    return rows, columns, np.clip(0.085 * letter + 0.5 - nearest, 0, 1)


def draw_letters(image: Array, ink: tuple[slice, slice, Array], brightness: float) -> None:
    """Burn something bright into an image (H, W)."""
    rows, columns, darkness = ink
    image[rows, columns] = np.maximum(image[rows, columns], brightness * darkness)


def side_letters(image: Array, laterality: str, view: str, rng: np.random.Generator) -> None:
    """Burn in the side and view in block letters, in the dark upper corner away from the chest wall."""
    text = f"{laterality} {view}"
    height, width = image.shape
    u = float(np.sqrt(height * width))
    letter = 0.034 * u
    margin = rng.uniform(0.02, 0.04) * u
    top = margin + rng.uniform(0, 0.03) * height
    left = width - margin - 0.92 * letter * len(text) if laterality == "L" else margin
    ink = _ink((height, width), text, letter, left, top)
    draw_letters(image, ink, rng.uniform(0.8, 0.95))


def letter_ink(shape: tuple[int, int], laterality: str, rng: np.random.Generator) -> tuple[slice, slice, Array]:
    """The ink of a lead letter in the dark corner below the breast, away from the chest wall."""
    height, width = shape
    u = float(np.sqrt(height * width))
    letter = 0.062 * u
    margin = rng.uniform(0.02, 0.045) * u
    top = height - margin - rng.uniform(0, 0.02) * height - letter
    left = width - margin - 0.8 * letter if laterality == "L" else margin
    rows, columns, darkness = _ink(shape, "C", letter, left, top)
    rows = slice(rows.start, min(rows.stop, height))
    return rows, columns, darkness[: rows.stop - rows.start]


def clip_ink(outline: Outline, rng: np.random.Generator) -> tuple[slice, slice, Array]:
    """The ink of a small metal clip, bent like a staple, within the breast (of the left breast's frame)."""
    u = outline.u
    inside = np.argwhere(outline.depth > 0.12 * u)
    inside = inside if len(inside) else np.argwhere(outline.depth == outline.depth.max())
    y, x = inside[rng.integers(len(inside))]
    rows, columns, dx, dy = outline.window((float(x) + 0.5, float(y) + 0.5), 0.03 * u + 2)
    turn, half, leg = rng.uniform(0, np.pi), 0.014 * u, 0.011 * u
    along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    corners = [np.array(point) for point in ((-half, leg), (-half, 0.0), (half, 0.0), (half, leg))]
    nearest = np.minimum.reduce(
        [
            distance_to_segment(np.asarray(along), np.asarray(across), start, end)
            for start, end in zip(corners[:-1], corners[1:], strict=True)
        ]
    )
    return rows, columns, np.clip(max(0.0035 * u, 0.5) + 0.5 - nearest, 0, 1).astype(np.float32)
