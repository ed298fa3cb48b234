"""Names beside points, where they cover no other name, point or line."""

__all__ = ["label_points", "points_inside"]

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from matplotlib.transforms import Bbox


def label_points(
    figure: Figure,
    axes: Axes,
    points: Sequence[tuple[float, float, str, str]],
    others: np.ndarray,
    taken: Sequence[Bbox] = (),
) -> None:
    """Write each point's name beside it, at the nearest place free of labels, marks, points, lines and the frame.

    Args:
        figure: The figure, on an Agg canvas and laid out.
        axes: Where the points are.
        points: (x, y, name, colour) of the points to name.
        others: (n, 2) x and y of the points without a name.
        taken: Boxes in pixels that labels keep away from.
    """
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axes.get_window_extent(renderer)
    unit = figure.dpi / 72  # one point in pixels
    marks = [axes.transData.transform((x, y)) for x, y, _, _ in points]
    cloud = axes.transData.transform(others) if len(others) else np.empty((0, 2))
    lines: list[np.ndarray] = []  # points along the lines that lead from labels to marks
    filled = [Bbox.from_bounds(px - 4 * unit, py - 4 * unit, 8 * unit, 8 * unit) for px, py in marks] + list(taken)
    angles = np.deg2rad([20, 160, -20, -160, 60, 120, -60, -120, 90, -90, 0, 180])
    order = sorted(range(len(points)), key=lambda i: (-marks[i][1], marks[i][0]))
    for i in order:
        x, y, text, color = points[i]
        probe = axes.text(0, 0, text, fontsize=8, fontweight="bold")
        size = probe.get_window_extent(renderer)
        probe.remove()
        best: tuple[float, Bbox] | None = None
        for radius in (9, 16, 25, 36, 50, 66, 84, 104, 126):
            for angle in angles:
                cx = marks[i][0] + np.cos(angle) * (radius * unit + size.width / 2)
                cy = marks[i][1] + np.sin(angle) * (radius * unit + size.height / 2)
                box = Bbox.from_bounds(cx - size.width / 2, cy - size.height / 2, size.width, size.height)
                grown = box.padded(1.5 * unit)
                clash = sum(grown.overlaps(other) for other in filled)
                outside = grown.x0 < frame.x0 or grown.x1 > frame.x1 or grown.y0 < frame.y0 or grown.y1 > frame.y1
                covered = points_inside(grown, cloud) + sum(points_inside(grown, line) > 0 for line in lines)
                cost = clash * 1000 + outside * 500 + min(covered, 10) * 40 + radius
                if best is None or cost < best[0]:
                    best = (cost, box)
        assert best is not None
        filled.append(best[1])
        middle = np.array([(best[1].x0 + best[1].x1) / 2, (best[1].y0 + best[1].y1) / 2])
        lines.append(middle + np.linspace(0, 1, 24)[:, None] * (np.asarray(marks[i]) - middle))
        at = axes.transData.inverted().transform(middle)
        label = axes.annotate(
            text,
            xy=(x, y),
            xytext=(float(at[0]), float(at[1])),
            ha="center",
            va="center",
            fontsize=8,
            fontweight="bold",
            color=color,
            zorder=5,
            path_effects=[Stroke(linewidth=2, foreground="white"), Normal()],
            arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
        )
        label.set_in_layout(False)  # the places were found for the layout as it stands


def points_inside(box: Bbox, points: np.ndarray) -> int:
    """How many of the points (n, 2) lie in a box."""
    inside = (points[:, 0] > box.x0) & (points[:, 0] < box.x1) & (points[:, 1] > box.y0) & (points[:, 1] < box.y1)
    return int(inside.sum())
