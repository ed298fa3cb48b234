"""What localization lesion by lesion costs on a table of a real study's size: seconds and memory.

4,000 images of 1,000 patients, 226 of them with a lesion, 850 latents that fire everywhere, five peaks of each on a
grid of 48 x 29: python benchmarks/lesions.py [--images 4000] [--latents 850] [--threads 2]
"""

import argparse
import resource
import time

import numpy as np
import pandas as pd
import torch

from mammosae_plugin.analysis import froc
from mammosae_plugin.latents.peak_finder import PeakFinder
from mammosae_plugin.latents.peaks import Peaks, cell_centres
from mammosae_plugin.measures.units import EvaluationRows

GRID, SIZE, N_PEAKS = (48, 29), (1520, 912), 5


class PeaksTable:
    """What `froc` asks of a latents table, with random peaks."""

    folder, mean_latents, d_in, grid, image_size, gradcam_heads, concepts = "TABLE", 0, 8, GRID, SIZE, (), ("Mass",)

    def __init__(self, n_images: int, d_sae: int, n_boxed: int) -> None:
        self.d_sae, generator = d_sae, np.random.default_rng(0)
        rows = np.arange(n_images)
        self.images = pd.DataFrame(
            {
                "image_id": rows.astype(str),
                "patient_id": (rows // 4).astype(str),
                "laterality": np.array(["L", "R"])[rows // 2 % 2],
                "view": np.array(["CC", "MLO"])[rows % 2],
            }
        )
        self.boxed = np.sort(generator.choice(n_images, n_boxed, replace=False))
        corners = generator.uniform(0, 700, size=(n_images, 2))
        self.all_boxes = np.concatenate([corners, corners + 90], axis=1)
        self.findings = pd.DataFrame({"image_row": self.boxed, "xmin": self.all_boxes[self.boxed, 0]})

    def need(self, element: str) -> None:
        """Every element is there."""

    def map_groups(self, split: str) -> dict[str, dict[int, float]]:  # noqa: ARG002
        """No group."""
        return {}

    def rows(self, concept: str, *, split: str) -> EvaluationRows:  # noqa: ARG002
        """All images."""
        labels = np.isin(np.arange(len(self.images)), self.boxed).astype(np.int64)
        return EvaluationRows(np.arange(len(labels)), labels, self.images["patient_id"].to_numpy(dtype=object))

    def boxes(self, row: int, concept: str) -> np.ndarray:  # noqa: ARG002
        """One box of each image that has the finding."""
        return self.all_boxes[[row]].astype(np.float32)

    def map_latents(self, row: int) -> np.ndarray:  # noqa: ARG002
        """No map was kept."""
        return np.zeros(0, dtype=np.int64)

    maps = None

    def peaks(self, latents: np.ndarray, *, split: str) -> Peaks:  # noqa: ARG002
        """As many as can be of every map."""
        n, k = len(self.images), len(latents)
        generator = np.random.default_rng(int(latents[0]))
        image_rows = np.repeat(np.arange(n), k * N_PEAKS)
        columns = np.tile(np.repeat(np.arange(k), N_PEAKS), n)
        values = -np.sort(-generator.random((n * k, N_PEAKS), dtype=np.float32), axis=1).ravel()
        cells = generator.integers(GRID[0] * GRID[1], size=len(values))
        return Peaks(image_rows, columns, cells, cell_centres(cells, GRID, SIZE), values)


def peak_seconds(device: str) -> tuple[float, float]:
    """Seconds that encoding and decoding one image of 16,384 latents, 850 of which fire, takes, and finding peaks."""
    torch.manual_seed(0)
    rows, encoder = torch.randn(1392, 2048, device=device), torch.randn(2048, 16384, device=device) / 45
    decoder = torch.randn(16384, 2048, device=device)
    latents = torch.relu(torch.randn(1392, 16384, device=device) - 0.5)
    latents[:, 850:] = 0

    def encode() -> None:
        for start in range(0, 1392, 512):
            _ = torch.relu(rows[start : start + 512] @ encoder) @ decoder

    def find() -> None:
        finder = PeakFinder(N_PEAKS, GRID[1])
        for start in range(0, 1392, 512):
            finder.add(latents[start : start + 512])
        finder.found()

    found = []
    for step in (encode, find):
        step()
        start = time.perf_counter()
        for _ in range(3):
            step()
        if device != "cpu":
            torch.cuda.synchronize()
        found.append((time.perf_counter() - start) / 3)
    return found[0], found[1]


def main() -> None:
    """Print the costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--latents", type=int, default=850)
    parser.add_argument("--boxed", type=int, default=226)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    encoding, finding = peak_seconds(given.device)
    print(f"one image on {given.device}: encoding and decoding {encoding:.4f} s, finding peaks {finding:.4f} s")
    table = PeaksTable(given.images, given.latents, given.boxed)
    megabytes = given.images * given.latents * (1 + 8 * N_PEAKS) / 1e6
    print(f"{given.images} images x {given.latents} latents: peaks of at most {megabytes:.0f} MB on disk")
    for n_bootstrap, n_null in ((0, 0), (0, 999), (1000, 999)):
        wall, cpu = time.perf_counter(), time.process_time()
        froc(table, range(given.latents), "Mass", n_bootstrap=n_bootstrap, n_null=n_null)  # type: ignore[arg-type]
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"{n_bootstrap} resamples, {n_null} draws: {wall:.1f} s ({cpu:.1f} CPU-s), {peak:.2f} GB at most")


if __name__ == "__main__":
    main()
