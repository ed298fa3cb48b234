"""How a latent lies in the image: scattered or in one piece, and where."""

__all__ = ["box_region", "cell_shares", "energy_share_of", "moran_of", "position_entropy_of"]

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mammosae_plugin.arguments import as_array, numbers, whole
from mammosae_plugin.errors import InputError


def _as_maps(maps: ArrayLike) -> NDArray[np.float64]:
    found = numbers(maps, "maps")
    if found.ndim != 3 or 0 in found.shape[1:]:
        raise InputError(f"maps have shape {found.shape}: expected (n, h, w)")
    if found.shape[1:] == (1, 1):
        raise InputError(
            "maps have a single position: where a latent lies is told of maps, not of one vector per image"
        )
    if not np.isfinite(found).all():
        raise InputError("maps hold a value that is not finite")
    return found


def moran_of(
    maps: ArrayLike, *, n_permutations: int = 199, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Moran's I of every map: whether neighbouring positions are alike (Moran, Biometrika 37, 1950).

    With z the deviations from the map's mean and w_ij 1 for the up to 8 neighbours of a position,
    I = (P / sum w) * sum_ij w_ij z_i z_j / sum_i z_i^2. Chance is -1 / (P - 1) for P positions.

    Args:
        maps: (n, h, w) activations.
        n_permutations: how often the positions of each map are put into a random order.
        seed: of the orders.

    Returns:
        (n,) Moran's I, and (n,) the share of the orders, with the map's own as one of them, that are as clustered. NaN
        twice for a map that is the same everywhere.

    Raises:
        InputError: not (n, h, w), a single position, or values that are not finite.

    Example:
        >>> import numpy as np
        >>> blob = np.zeros((1, 8, 8))
        >>> blob[0, 2:5, 2:5] = 1
        >>> moran_of(blob)[0].round(2).item()
        0.66
    """
    found = _as_maps(maps)
    n_permutations, seed = whole(n_permutations, "n_permutations", least=1), whole(seed, "seed", least=0)
    n = len(found)
    varies = np.ptp(found, axis=(1, 2)) > 0
    own = _moran(found)
    as_clustered = np.ones(n)
    generator = np.random.default_rng(seed)
    flat = found.reshape(n, -1)
    for _ in range(n_permutations):
        shuffled = generator.permuted(flat, axis=1).reshape(found.shape)
        as_clustered += _moran(shuffled) >= own - 1e-12
    p = as_clustered / (1 + n_permutations)
    return np.where(varies, own, np.nan), np.where(varies, p, np.nan)


def _moran(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    n, height, width = maps.shape
    z = maps - maps.mean(axis=(1, 2), keepdims=True)
    products, n_pairs = np.zeros(n), 0
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = z[:, : height - down, max(0, -right) : width - max(0, right)]
        there = z[:, down:, max(0, right) : width - max(0, -right)]
        pairs = here * there
        products += pairs.sum(axis=(1, 2))
        n_pairs += pairs.shape[1] * pairs.shape[2]
    squares = np.square(z).sum(axis=(1, 2))
    scale = height * width / max(n_pairs, 1)
    found: NDArray[np.float64] = np.divide(scale * products, squares, out=np.full(n, np.nan), where=squares > 0)
    return found


def position_entropy_of(maps: ArrayLike) -> NDArray[np.float64]:
    """Over how many positions every map is spread: its entropy in nats, 0 at one position, ln P at most.

    Args:
        maps: (n, h, w), 0 or more.

    Returns:
        (n,) float64; NaN for a map of zeros.

    Raises:
        InputError: not (n, h, w), a single position, or values below 0 or not finite.
    """
    share = _shares(_as_maps(maps))
    found: NDArray[np.float64] = -(share * np.log(np.where(share > 0, share, 1))).sum(axis=(1, 2))
    return np.where(share.any(axis=(1, 2)), found, np.nan)


def energy_share_of(maps: ArrayLike, region: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The share of every map that lies in a region (a breast, a lesion), and the region's share of the area.

    Args:
        maps: (n, h, w), 0 or more.
        region: (n, h, w) or (h, w): the share of each position that belongs to the region, 0 to 1.

    Returns:
        (n,) shares of the activation, NaN for a map of zeros; and (n,) shares of the area, which an activation that is
        the same everywhere has.

    Raises:
        InputError: shapes that do not fit, activations below 0, a region outside 0 to 1.
    """
    found = _as_maps(maps)
    inside = numbers(as_array(region, "region"), "region")
    if inside.shape not in (found.shape, found.shape[1:]):
        raise InputError(f"region has shape {inside.shape}: expected {found.shape} or {found.shape[1:]}, as the maps")
    if not ((inside >= 0) & (inside <= 1)).all():
        raise InputError("region holds a value outside 0 to 1: give the share of each position that belongs to it")
    inside = np.broadcast_to(inside, found.shape)
    share = _shares(found)
    within: NDArray[np.float64] = (share * inside).sum(axis=(1, 2))
    return np.where(share.any(axis=(1, 2)), within, np.nan), inside.mean(axis=(1, 2))


def cell_shares(pixels: ArrayLike, grid: tuple[int, int]) -> NDArray[np.float64]:
    """Which share of each cell of a map a region of the image fills: a region as `energy_share_of` takes it.

    Args:
        pixels: (H, W), True or 1 inside the region.
        grid: (h, w) of the map, whose cells cut the image into equal parts.

    Returns:
        (h, w), 0 to 1.

    Raises:
        InputError: not (H, W).

    Example:
        >>> import numpy as np
        >>> cell_shares(np.eye(4), (2, 1)).tolist()
        [[0.25], [0.25]]
    """
    found = numbers(as_array(pixels, "pixels"), "pixels")
    if found.ndim != 2 or 0 in found.shape:
        raise InputError(f"pixels have shape {found.shape}: expected (H, W)")
    down, right = (_overlaps(size, cells) for size, cells in zip(found.shape, grid, strict=True))
    shares: NDArray[np.float64] = np.clip(down @ found @ right.T, 0, 1)
    return shares


def _overlaps(size: int, cells: int) -> NDArray[np.float64]:
    """(cells, size) which share of each cell each pixel is."""
    edges = np.linspace(0, size, cells + 1)
    pixel = np.arange(size)
    inside = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    shares: NDArray[np.float64] = np.clip(inside, 0, None) * (cells / size)
    return shares


def box_region(boxes: ArrayLike, image_size: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) the pixels that lie in any of the boxes (n, 4), xyxy; a box takes the pixels that it touches."""
    found = np.zeros(image_size, dtype=bool)
    for xmin, ymin, xmax, ymax in numbers(boxes, "boxes").reshape(-1, 4):
        found[max(0, int(ymin)) : int(np.ceil(ymax)), max(0, int(xmin)) : int(np.ceil(xmax))] = True
    return found


def _shares(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    if (maps < 0).any():
        raise InputError(f"maps hold {maps.min():g}: give activations of 0 or more")
    sums = maps.sum(axis=(1, 2), keepdims=True)
    found: NDArray[np.float64] = np.divide(maps, sums, out=np.zeros_like(maps), where=sums > 0)
    return found
