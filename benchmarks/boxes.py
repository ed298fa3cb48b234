"""Boxes of heatmaps: processor time against the plain way, which looks at every pixel; whether the boxes are equal.

The plain way enlarges the map, takes `numpy.percentile`, labels all pixels by `scipy.ndimage`, scores every region.
Then the localization of ten concepts on each of three encoders, whose concepts share images and latents: each concept
by itself, and with the boxes that all of them share, made by one process and by two.

    OMP_NUM_THREADS=1 python benchmarks/boxes.py
"""

import resource
import time
from types import SimpleNamespace

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from mammosae_plugin.localization import MapBoxes, heatmap, heatmap_boxes, localize

IMAGE, MAP, N, ROUNDS = (1520, 912), (48, 29), 32, 5
ENCODERS, CONCEPTS, IMAGES, TOP, COMMON = 3, [f"concept {i}" for i in range(10)], 24, 10, 5
FINDINGS = 1.6  # of an image, about as many as in VinDr-Mammo's images with any


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


class Encoder:
    """What `localize` asks of a latents table: images with a box of each of their findings, and maps of latents."""

    concepts, image_size, d_sae, d_in, gradcam_heads, mean_latents = CONCEPTS, IMAGE, 256, 8, (), 0
    folder = "TABLE"

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.has = rng.random((IMAGES, len(CONCEPTS))) < FINDINGS / len(CONCEPTS)
        self.has[0] = True
        common = list(range(COMMON))  # latents that are among the best of every concept
        self.best = [[*common, *rng.choice(np.arange(COMMON, 256), TOP - COMMON, replace=False)] for _ in CONCEPTS]
        self.noise = [list(maps()) for _ in range(2)]

    def rows(self, concept, **_):
        """All images."""
        labels = self.has[:, CONCEPTS.index(concept)].astype(int)
        return SimpleNamespace(image_rows=np.arange(IMAGES), labels=labels)

    def boxes(self, row, concept):
        """One box."""
        x, y = 40 * CONCEPTS.index(concept), 30 * row
        return np.array([[x, y, x + 200, y + 300]], dtype=np.float32)

    def maps(self, latents, row):
        """Of each latent in each image another one."""
        return np.stack([np.roll(self.noise[row % 2][latent % N], (row, latent), (0, 1)) for latent in latents])


def seconds():
    """Processor time of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def localized(encoder, boxes):
    """The rows of all concepts, and the processor time and wall time that they took."""
    start, clock = seconds(), time.perf_counter()
    found = [
        localize(encoder, best, concept, boxes=boxes) for concept, best in zip(CONCEPTS, encoder.best, strict=True)
    ]
    return found, seconds() - start, time.perf_counter() - clock


def compare_concepts():
    """Print what ten concepts on three encoders cost."""
    took, equal, asked, distinct = np.zeros((4, 2)), True, 0, set()
    for number in range(ENCODERS):
        encoder = Encoder(number)
        pairs = [
            (number, row, int(one))
            for c in range(len(CONCEPTS))
            for row in np.flatnonzero(encoder.has[:, c])
            for one in encoder.best[c]
        ]
        asked, distinct = asked + len(pairs), distinct | set(pairs)
        start, clock = seconds(), time.perf_counter()
        for _, row, latent in pairs:
            plain_boxes(enlarged(encoder.maps([latent], row)[0]), 95)
        took[0] += seconds() - start, time.perf_counter() - clock
        alone, *took_alone = localized(encoder, None)
        shared, *took_shared = localized(encoder, MapBoxes(encoder))
        split, *took_split = localized(encoder, MapBoxes(encoder, num_workers=2))
        took[1:] += took_alone, took_shared, took_split
        equal &= all(
            one.equals(two) and one.equals(three) for one, two, three in zip(alone, shared, split, strict=True)
        )
    print(
        f"{len(CONCEPTS)} concepts on {ENCODERS} encoders: {asked} heatmaps asked for, {len(distinct)} of them distinct"
    )
    for what, (processor, wall) in zip(
        ("plain boxes alone", "each concept by itself", "boxes shared", "boxes shared, two processes"),
        took,
        strict=True,
    ):
        ratio = took[0, 0] / processor
        print(f"  {what}: {processor:.1f} CPU-s ({ratio:.1f} times less than plain), {wall:.1f} s on the clock")
    print(f"  equal rows: {equal}")


def main():
    """Print both times, the ratio and whether all boxes and scores are equal; then what concepts share."""
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
    compare_concepts()


if __name__ == "__main__":
    main()
