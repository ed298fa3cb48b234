"""Boxes of heatmaps: processor time against the plain way, which looks at every pixel; whether the boxes are equal.

The plain way enlarges the map, takes `numpy.percentile`, labels all pixels by `scipy.ndimage`, scores every region.

    OMP_NUM_THREADS=1 python benchmarks/boxes.py
"""

import time

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from mammosae_plugin.localization import heatmap, heatmap_boxes

IMAGE, MAP, N, ROUNDS = (1520, 912), (48, 29), 32, 5


def plain_boxes(values, percentile, min_area=10):
    """Boxes and maxima, one region after the other."""
    above = values > np.percentile(values, percentile) + 2.0**-20 * values.max()
    labels, _ = ndimage.label(above, structure=np.ones((3, 3)))
    boxes, scores = [], []
    for number, (y, x) in enumerate(ndimage.find_objects(labels), start=1):
        if (y.stop - y.start) * (x.stop - x.start) >= min_area:
            boxes.append((x.start, y.start, x.stop, y.stop))
            scores.append(values[y, x][labels[y, x] == number].max())
    return np.array(boxes, dtype=np.float32).reshape(-1, 4), np.array(scores, dtype=np.float32)


def enlarged(latent_map):
    """The map at the image's size, as torch gives it."""
    return functional.interpolate(torch.from_numpy(latent_map)[None, None], IMAGE, mode="bilinear").numpy()[0, 0]


def maps():
    """Smooth sparse maps, from a few spots to many."""
    rng = np.random.default_rng(0)
    for number in range(N):
        smooth = ndimage.gaussian_filter(rng.standard_normal(MAP), (0.5, 1, 2)[number % 3])
        yield np.maximum(smooth - (number % 4) * 0.5 * smooth.std(), 0).astype(np.float32)


def main():
    """Print both times, the ratio and whether all boxes and scores are equal."""
    torch.set_num_threads(1)
    given = list(maps())
    ratios = []
    for _ in range(ROUNDS):
        start = time.process_time()
        plain = [plain_boxes(enlarged(one), 95) for one in given]
        middle = time.process_time()
        ours = [heatmap_boxes(heatmap(one, IMAGE), percentile=95) for one in given]
        end = time.process_time()
        ratios.append((middle - start) / (end - middle))
    equal = all(np.array_equal(a, b) for pair in zip(plain, ours, strict=True) for a, b in zip(*pair, strict=True))
    print(f"plain {(middle - start) / N * 1e3:.1f} ms, ours {(end - middle) / N * 1e3:.1f} ms a heatmap, one thread")
    print(f"{np.median(ratios):.1f} times as fast ({min(ratios):.1f} to {max(ratios):.1f}); equal boxes: {equal}")


if __name__ == "__main__":
    main()
