"""Textures and strokes of which phantoms are drawn."""

import numpy as np
import numpy.typing as npt
import scipy.fft
from scipy import ndimage

__all__ = [
    "STROKES",
    "Array",
    "contour_lines",
    "distance_to_segment",
    "noise",
    "polar_noise",
    "sigmoid",
    "speck",
]

Array = npt.NDArray[np.float32]


def sigmoid(values: npt.NDArray[np.floating]) -> Array:
    """1 / (1 + exp(-x)), which does not overflow."""
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * values), dtype=np.float32)


def noise(shape: tuple[int, ...], exponent: float, rng: np.random.Generator, low: float) -> Array:
    """Noise of mean 0, deviation 1, its amplitude falling as frequency**-exponent above `low` cycles per length u."""
    height, width = shape
    grid = scipy.fft.next_fast_len(height, real=True), scipy.fft.next_fast_len(width, real=True)
    white = rng.standard_normal(grid, dtype=np.float32)
    unit = np.sqrt(height * width)
    fy, fx = scipy.fft.fftfreq(grid[0]) * unit, scipy.fft.rfftfreq(grid[1]) * unit
    frequency = np.hypot(fy[:, None], fx[None, :]).astype(np.float32)
    amplitude = (frequency**2 + low**2) ** (-exponent / 2)
    amplitude[0, 0] = 0
    field = scipy.fft.irfft2(scipy.fft.rfft2(white) * amplitude, s=grid)[:height, :width]
    return np.asarray((field - field.mean()) / field.std(), dtype=np.float32)


def contour_lines(values: Array, width: float) -> Array:
    """The zero contours of a smooth field as lines about `width` pixels wide, curved and branching like ligaments."""
    slope_y, slope_x = np.gradient(values)
    distance = np.abs(values) / (np.hypot(slope_x, slope_y) + 1e-6)
    return np.asarray(np.exp(-((distance / max(width, 0.8)) ** 2)), dtype=np.float32)


def polar_noise(radius: Array, angle: Array, rng: np.random.Generator) -> Array:
    """Noise in the frame of the nipple, drawn out along the radius: strands that run to the nipple."""
    n_radius, n_angle = 96, 256
    white = rng.standard_normal((n_radius, n_angle), dtype=np.float32)
    fine, coarse = (ndimage.gaussian_filter(white, sigma, mode="wrap") for sigma in ((6.0, 1.3), (9.0, 4.0)))
    streaks = fine / fine.std() + coarse / coarse.std()
    streaks /= streaks.std()
    swirl = 0.08 * np.sin(9 * radius)  # ducts are not straight
    rows = radius * (n_radius / 1.2)
    columns = (angle + swirl + np.pi) * (n_angle / (2 * np.pi))
    return np.asarray(ndimage.map_coordinates(streaks, [rows, columns], order=1, mode="grid-wrap"), dtype=np.float32)


def speck(dx: Array, dy: Array, diameter: float, rng: np.random.Generator) -> Array:
    """One calcification: a small irregular grain with a soft rim."""
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.7)
    along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    distance = np.hypot(along / np.sqrt(stretch), across * np.sqrt(stretch))
    return np.asarray(np.clip(0.5 * diameter + 0.5 - distance, 0, 1), dtype=np.float32)


def distance_to_segment(x: Array, y: Array, start: npt.NDArray[np.float64], end: npt.NDArray[np.float64]) -> Array:
    """How far every point (x, y) is from a straight line between two."""
    step = end - start
    share = np.clip(((x - start[0]) * step[0] + (y - start[1]) * step[1]) / max(float(step @ step), 1e-9), 0, 1)
    return np.asarray(np.hypot(x - start[0] - share * step[0], y - start[1] - share * step[1]), dtype=np.float32)


def _arc(
    center: tuple[float, float], radii: tuple[float, float], start: float, end: float
) -> list[tuple[float, float]]:
    angles = np.radians(np.linspace(start, end, 13))
    return [(float(center[0] + radii[0] * np.cos(a)), float(center[1] + radii[1] * np.sin(a))) for a in angles]


STROKES: dict[str, list[list[tuple[float, float]]]] = {
    " ": [],
    "L": [[(0.1, 0.0), (0.1, 1.0), (0.6, 1.0)]],
    "R": [
        [(0.1, 1.0), (0.1, 0.0), (0.35, 0.0), *_arc((0.35, 0.26), (0.25, 0.26), -90, 90), (0.1, 0.52)],
        [(0.35, 0.52), (0.62, 1.0)],
    ],
    "C": [_arc((0.4, 0.5), (0.33, 0.5), -50, -310)],
    "M": [[(0.05, 1.0), (0.05, 0.0), (0.37, 0.6), (0.7, 0.0), (0.7, 1.0)]],
    "O": [_arc((0.4, 0.5), (0.35, 0.5), 0, 360)],
}
"""Letters as polylines in a cell one letter high (y down)."""
