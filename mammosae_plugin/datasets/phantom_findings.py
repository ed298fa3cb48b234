"""The findings of phantoms: the ten of VinDr-Mammo, each as an opacity laid over the tissue, and its box."""

__all__ = ["benign_specks", "Box", "draw_lesion", "Layer", "Lesion", "SKIN_RETRACTION", "skin_dents"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mammosae_plugin.datasets.phantom_outline import Dent, Outline
from mammosae_plugin.datasets.phantom_textures import Array, noise, sigmoid, speck

Layer = tuple[slice, slice, Array]
"""Rows and columns of the image, and the opacity (0 to 1) of every pixel there."""
Box = tuple[float, float, float, float]
SKIN_RETRACTION = "Skin_Retraction"


@dataclass(frozen=True)
class Lesion:
    """A finding of one breast: `depth` is the share of the way from nipple to chest wall, `angle` the direction."""

    concepts: tuple[str, ...]
    depth: float
    angle: float
    area: float  # of the box, as a share of the image
    birads: int
    entropy: int

    @classmethod
    def drawn(cls, rng: np.random.Generator, concept: str, is_grave: bool) -> "Lesion":
        """A finding's place, size and category; `is_grave` ones are of category 3 to 5, others of 3."""
        depth, angle = rng.uniform(0.25, 0.72), rng.uniform(-0.7, 0.7)
        area = float(np.clip(np.exp(rng.normal(np.log(0.036), 0.45)), 0.018, 0.08))
        severity = int(rng.choice([3, 4, 5], p=[0.35, 0.45, 0.2])) if is_grave else 3
        return cls((concept,), depth, angle, area, severity, int(rng.integers(2**31)))


def skin_dents(lesions: Sequence[Lesion]) -> tuple[Dent, ...]:
    """Where retractions among the findings draw the skin in."""
    return tuple(
        Dent(
            offset=(1 if lesion.angle < 0 else -1) * (0.09 + 0.1 * abs(lesion.angle)),
            depth=0.024 + 0.025 * lesion.depth,
            width=0.03 + 0.03 * lesion.depth,
        )
        for lesion in lesions
        if SKIN_RETRACTION in lesion.concepts
    )


def draw_lesion(lesion: Lesion, outline: Outline, view: str, rng: np.random.Generator) -> tuple[Layer, Box]:
    """A finding's opacity in the frame of the left breast, and its box (x1, y1, x2, y2) in pixels."""
    concept = lesion.concepts[0]
    if concept in _AT_SKIN:
        draw, threshold = _AT_SKIN[concept]
        layer = draw(outline, rng)
    else:
        draw_in, threshold, scale = _WITHIN[concept]
        side = np.sqrt(lesion.area) * outline.u
        if concept == "Suspicious_Lymph_Node":
            center = _towards_the_armpit(outline, view, rng)
        else:
            center = _place(lesion, outline, view, side, rng)
        layer = draw_in(outline, center, scale * side, rng)
    rows, columns, values = layer
    bright = np.argwhere(values > threshold * values.max())
    (top, left), (bottom, right) = bright.min(axis=0), bright.max(axis=0) + 1
    box = (columns.start + left, rows.start + top, columns.start + right, rows.start + bottom)
    return layer, tuple(map(float, box))  # type: ignore[return-value]


def _place(lesion: Lesion, outline: Outline, view: str, side: float, rng: np.random.Generator) -> tuple[float, float]:
    """A centre (x, y) near the planned place whose box lies inside the breast and the image."""
    height, width = outline.shape
    nipple_x, nipple_y = outline.nipple
    best, best_room = (nipple_x / 2, nipple_y), -np.inf
    for attempt in range(40):
        spread = 0.02 + 0.02 * attempt
        depth = lesion.depth + rng.normal(0, spread)
        angle = lesion.angle + rng.normal(0, 2 * spread) + (0.25 if view == "MLO" else 0.0)
        radius = depth * nipple_x
        x, y = nipple_x - radius * np.cos(angle), nipple_y - radius * np.sin(angle)
        if not (0.55 * side < x < width - 0.55 * side and 0.55 * side < y < height - 0.55 * side):
            continue
        room = float(outline.depth[int(y), int(x)]) - 0.56 * side
        if room > best_room:
            best, best_room = (x, y), room
        if room > 0:
            break
    return best


def _towards_the_armpit(outline: Outline, view: str, rng: np.random.Generator) -> tuple[float, float]:
    """Where nodes lie: over the muscle in MLO views, far back on the outer side in CC views."""
    height, width = outline.shape
    if view == "MLO":
        return rng.uniform(0.1, 0.17) * width, rng.uniform(0.1, 0.22) * height
    return rng.uniform(0.07, 0.1) * width, outline.nipple[1] - rng.uniform(0.24, 0.3) * height


def _mass(outline: Outline, center: tuple[float, float], side: float, rng: np.random.Generator) -> Layer:
    """An irregular soft-edged density, often with spicules; its box is about `side` wide."""
    spiculated = rng.random() < 0.5
    orders = np.arange(2, 8)
    waves = rng.normal(0, 0.16 / orders**0.8), rng.uniform(0, 2 * np.pi, len(orders))

    def border(angle: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
        lobes = (size * np.cos(k * angle + phase) for k, size, phase in zip(orders, *waves, strict=True))
        return np.asarray(1 + sum(lobes))

    turn = np.linspace(0, 2 * np.pi, 256)
    extent = np.ptp(border(turn) * np.cos(turn)) * np.ptp(border(turn) * np.sin(turn))
    radius = side * (0.84 if spiculated else 0.97) / np.sqrt(extent)
    rows, columns, dx, dy = outline.window(center, 0.85 * side)
    angle, distance = np.arctan2(dy, dx), np.hypot(dx, dy)
    edge = border(angle)
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


def _calcifications(outline: Outline, center: tuple[float, float], side: float, rng: np.random.Generator) -> Layer:
    """10 to 25 bright specks. They grow slower than the image, or they would be too coarse on a large one."""
    rows, columns, dx, dy = outline.window(center, 0.72 * side)
    layer = np.zeros_like(dx)
    scale = (outline.u / 202) ** 0.65  # 202 is u of 256 x 160 pixels
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


def benign_specks(outline: Outline, rng: np.random.Generator) -> list[Layer]:
    """Single calcifications scattered over the breast, as most breasts have: a bright speck alone is no finding."""
    scale = (outline.u / 202) ** 0.65
    inside = np.argwhere(outline.depth > 0.06 * outline.u)
    layers = []
    for y, x in inside[rng.integers(0, len(inside), rng.poisson(4))] if len(inside) else []:
        diameter = rng.uniform(1.5, 2.6) * scale
        rows, columns, dx, dy = outline.window((x + 0.5, y + 0.5), 2 * diameter + 1)
        layers.append((rows, columns, rng.uniform(0.5, 0.95) * speck(dx, dy, diameter, rng)))
    return layers


def _blob(dx: Array, dy: Array, side: float, rng: np.random.Generator) -> Array:
    """A bell about `side` wide, drawn out in one direction."""
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1.2, 1.6)
    along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    return np.asarray(np.exp(-4 * ((along / side) ** 2 + (across * stretch / side) ** 2)))


def _asymmetry(outline: Outline, center: tuple[float, float], side: float, rng: np.random.Generator) -> Layer:
    """A broad faint density without a border."""
    rows, columns, dx, dy = outline.window(center, 0.9 * side)
    blob = _blob(dx, dy, side, rng)
    layer = np.clip(blob * (1 + 0.4 * noise(blob.shape, 1.6, rng, low=2)) - 0.03, 0, None)
    return rows, columns, (rng.uniform(0.13, 0.2) * layer * (outline.depth[rows, columns] > 0)).astype(np.float32)


def _focal_asymmetry(outline: Outline, center: tuple[float, float], side: float, rng: np.random.Generator) -> Layer:
    """A small density that is denser in its middle, with fat between its strands and edges that curve inwards."""
    rows, columns, dx, dy = outline.window(center, 0.9 * side)
    blob = _blob(dx, dy, side, rng)
    strands = noise(blob.shape, 2.2, rng, low=3)
    layer = np.clip(1.25 * blob * sigmoid(1.8 * (strands + 0.8)) - 0.05, 0, None)
    return rows, columns, (rng.uniform(0.3, 0.42) * layer * (outline.depth[rows, columns] > 0)).astype(np.float32)


def _global_asymmetry(outline: Outline, center: tuple[float, float], side: float, rng: np.random.Generator) -> Layer:
    """Much more glandular tissue over a large part of the breast, without a mass."""
    rows, columns, dx, dy = outline.window(center, 0.8 * side)
    blob = _blob(dx, dy, side, rng)
    lobes = noise(blob.shape, 2.0, rng, low=3)
    under_skin = sigmoid((outline.depth[rows, columns] / outline.u - 0.055) / 0.012)
    layer = np.clip(1.2 * blob * sigmoid(1.6 * (lobes + 0.7)) - 0.04, 0, None)
    return rows, columns, (rng.uniform(0.26, 0.34) * layer * under_skin).astype(np.float32)


def _distortion(outline: Outline, center: tuple[float, float], side: float, rng: np.random.Generator) -> Layer:
    """Fine straight lines that run together at a point, without a mass there."""
    rows, columns, dx, dy = outline.window(center, 0.75 * side)
    layer = np.zeros_like(dx)
    n_lines = int(rng.integers(13, 20))
    first = rng.uniform(0, 2 * np.pi)
    for line in range(n_lines):
        direction = first + 2 * np.pi * (line + rng.uniform(-0.45, 0.45)) / n_lines
        length = rng.uniform(0.3, 0.62) * side
        bend, miss = rng.normal(0, 0.18) / side, rng.normal(0, 0.03) * side
        along = dx * np.cos(direction) + dy * np.sin(direction)
        across = -dx * np.sin(direction) + dy * np.cos(direction) + bend * along**2 + miss
        thickness = max(rng.uniform(0.01, 0.018) * side, 0.5)
        taper = np.clip((length - along) / (0.6 * length), 0, 1) * sigmoid((along - 0.03 * side) / (0.02 * side))
        layer = np.maximum(layer, rng.uniform(0.4, 1.0) * np.exp(-0.5 * (across / thickness) ** 2) * taper)
    return rows, columns, (0.42 * layer * (outline.depth[rows, columns] > 0)).astype(np.float32)


def _lymph_node(outline: Outline, center: tuple[float, float], side: float, rng: np.random.Generator) -> Layer:
    """A dense oval with a sharp border and nothing of the fat that a healthy node has in its middle."""
    rows, columns, dx, dy = outline.window(center, 0.8 * side)
    turn, stretch = rng.uniform(0.25, 0.75) * np.pi, rng.uniform(1.15, 1.5)
    along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    distance = np.hypot(along, across * stretch) / (0.5 * side)
    body = sigmoid((1 - distance) / 0.1) * (1 - 0.15 * np.clip(distance, 0, 1) ** 2)
    return rows, columns, (rng.uniform(0.4, 0.55) * body * (outline.depth[rows, columns] > 0)).astype(np.float32)


def _skin_thickening(outline: Outline, rng: np.random.Generator) -> Layer:
    """A bright broad band along a stretch of the skin."""
    height, width = outline.shape
    y = (np.arange(height, dtype=np.float32) + 0.5)[:, None]
    middle = outline.nipple[1] + rng.choice([-1, 1]) * rng.uniform(0.1, 0.18) * height
    stretch = np.exp(-(((y - middle) / (rng.uniform(0.07, 0.12) * height)) ** 4))
    band = sigmoid((rng.uniform(0.022, 0.03) * outline.u - outline.depth) / (0.003 * outline.u)) * (outline.depth > 0)
    band = band * (np.abs(y - middle) < 0.25 * height)
    return slice(0, height), slice(0, width), (0.38 * band * stretch).astype(np.float32)


def _nipple_shadow(outline: Outline, rng: np.random.Generator) -> Layer:
    """The density behind a nipple that is drawn in (the dent itself is part of the outline)."""
    size = outline.nipple_size * rng.uniform(1.3, 1.7)
    x, y = outline.nipple
    rows, columns, dx, dy = outline.window((x - size, y), 4.5 * size)
    shadow = np.exp(-0.5 * ((dx / (1.5 * size)) ** 2 + (dy / size) ** 2)) * (outline.depth[rows, columns] > 0)
    return rows, columns, (0.45 * shadow).astype(np.float32)


def _drawn_in_skin(outline: Outline, rng: np.random.Generator) -> Layer:
    """The density and the thicker skin behind a dent (the dent itself is part of the outline)."""
    x, y, dent, extent = outline.dents[0]
    size = 0.8 * extent * rng.uniform(0.9, 1.1)
    rows, columns, dx, dy = outline.window((x - 0.6 * dent, y), 4.5 * size)
    depth = outline.depth[rows, columns]
    shadow = np.exp(-0.5 * ((dx / (1.2 * size)) ** 2 + (dy / (0.8 * size)) ** 2))
    band = sigmoid((0.016 * outline.u - depth) / (0.003 * outline.u)) * np.exp(-((dy / (1.3 * extent)) ** 4))
    return rows, columns, (np.maximum(0.36 * shadow, 0.4 * band) * (depth > 0)).astype(np.float32)


# By concept: the function, and the share of the highest opacity that its box holds; of findings that have a place of
# their own within the breast also their width, in that of the lesion's box.
_AT_SKIN: dict[str, tuple[Callable[[Outline, np.random.Generator], Layer], float]] = {
    "Skin_Thickening": (_skin_thickening, 0.25),
    "Nipple_Retraction": (_nipple_shadow, 0.25),
    SKIN_RETRACTION: (_drawn_in_skin, 0.25),
}
_WITHIN: dict[str, tuple[Callable[[Outline, tuple[float, float], float, np.random.Generator], Layer], float, float]] = {
    "Architectural_Distortion": (_distortion, 0.3, 1.25),
    "Asymmetry": (_asymmetry, 0.35, 1.3),
    "Focal_Asymmetry": (_focal_asymmetry, 0.25, 1.1),
    "Global_Asymmetry": (_global_asymmetry, 0.25, 3.0),
    "Mass": (_mass, 0.12, 1.0),
    "Suspicious_Calcification": (_calcifications, 0.15, 1.0),
    "Suspicious_Lymph_Node": (_lymph_node, 0.3, 0.6),
}
