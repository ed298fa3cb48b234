"""The outline of a phantom: the skin as a curve, the nipple on it, and how deep every pixel lies under it."""

__all__ = ["Dent", "Outline"]

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from mammosae_plugin.datasets.phantom_textures import Array


@dataclass(frozen=True)
class Dent:
    """A place where the skin is drawn in: how far from the nipple (of the height), how deep and wide (of `u`)."""

    offset: float
    depth: float
    width: float


class Outline:
    """One view of a left breast, its chest wall at the left edge.

    Args:
        rng: of the shape.
        view: "CC" or "MLO".
        shape: (height, width) of the image in pixels.
        is_retracted: whether the nipple is drawn in.
        dents: other places that are.

    Attributes:
        u: the unit of length, the square root of the image's area, in pixels.
        nipple: (x, y).
        nipple_size: in pixels.
        dents: (x, y) of the skin in the middle of each dent, its depth and width in pixels.
        depth: (H, W) distance to the skin in pixels, 0 outside.
        inside: (H, W) whether a pixel is of the breast.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        view: str,
        shape: tuple[int, int],
        *,
        is_retracted: bool = False,
        dents: tuple[Dent, ...] = (),
    ) -> None:
        height, width = self.shape = shape
        self.u = float(np.sqrt(height * width))
        y = np.arange(height) + 0.5
        reach = rng.uniform(0.68, 0.86) * width
        tilt, wave, phase = rng.uniform(-0.05, 0.05), rng.uniform(0.004, 0.012), rng.uniform(0, 2 * np.pi)
        if view == "CC":
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
        if is_retracted:
            skin = skin - 1.8 * size * np.exp(-0.5 * (offset / 1.3) ** 2)
        else:
            skin = skin + 1.1 * size * np.exp(-(np.abs(offset) ** 3))
        self.dents: list[tuple[float, float, float, float]] = []
        for dent in dents:
            at, depth, extent = nipple_y + dent.offset * height, dent.depth * self.u, dent.width * self.u
            self.dents.append((float(np.interp(at, y, skin)) - depth, float(at), depth, extent))
            skin = skin - depth * np.exp(-(((y - at) / extent) ** 2))
        self.nipple = (float(np.interp(nipple_y, y, skin)), float(nipple_y))
        self.nipple_size = size
        self.inside = np.arange(width)[None, :] < skin[:, None]
        # The chest wall and the image's edges are no skin: the distance is taken in a padded image that goes on there.
        padded = np.pad(self.inside, ((0, 0), (1, 0)), constant_values=True)
        distance = ndimage.distance_transform_edt(padded)[:, 1:]
        self.depth = ndimage.gaussian_filter(distance, max(0.0015 * self.u, 0.5)).astype(np.float32)

    def window(self, center: tuple[float, float], radius: float) -> tuple[slice, slice, Array, Array]:
        """The part of the image within `radius` of `center`, and the pixel offsets (dx, dy) from the centre there."""
        x, y = center
        rows = slice(max(int(y - radius), 0), min(int(y + radius) + 2, self.shape[0]))
        columns = slice(max(int(x - radius), 0), min(int(x + radius) + 2, self.shape[1]))
        dy, dx = np.mgrid[rows, columns].astype(np.float32)
        return rows, columns, dx + np.float32(0.5 - x), dy + np.float32(0.5 - y)
