"""A latents table whose latents were planted: what each of them is for the finding is known."""

import numpy as np
import pandas as pd
from helpers_tables import MemoryTable

GRID, CELL = (6, 5), 8
OF_THE_FINDING, EVERYWHERE, BESIDE_IT, UNUSED, RARE, USED_EVERYWHERE, IN_BOXES_OF_BOTH, TWIN = range(8)
"""Latents: fires in the boxes and decides; alike in all images, at fixed places, unused; goes with the finding and
decides, but fires at a fixed place outside the boxes; in the boxes, but without weight; fires in few images of either
class; alike in all images, and decides; in the boxes of the finding and at such places without it; as the first one,
weaker and 1.7 times as active with the finding as without."""
N_PLANTED = 8


def planted_table(*, n_patients: int = 180, d_sae: int = 48, boxes: bool = True, seed: int = 0) -> MemoryTable:
    """Two images per patient, half of the patients with the finding, half of them in the test split."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(n_patients), 2)
    n = len(patients)
    present = patients % 4 < 2
    image_size = (GRID[0] * CELL, GRID[1] * CELL)
    places = np.stack([rng.integers(0, GRID[0], n), rng.integers(0, GRID[1] - 1, n)], axis=1)
    lesion = np.zeros((n, *GRID))
    lesion[np.arange(n), places[:, 0], places[:, 1]] = 1

    latents = np.zeros((n, *GRID, d_sae), dtype=np.float64)
    amount = rng.gamma(8.0, 0.25, (n, 1, 1))
    with_it = present[:, None, None] * 1.0
    fixed = np.zeros(GRID)
    fixed[0, -1] = 1  # no box reaches the last column
    latents[..., OF_THE_FINDING] = lesion * amount * with_it + 0.3 * (rng.random((n, *GRID)) < 0.02)
    latents[..., EVERYWHERE] = 1 + 0.3 * rng.random((n, *GRID))
    latents[..., BESIDE_IT] = fixed * rng.gamma(8.0, 0.25, (n, 1, 1)) * (with_it + 0.05)
    latents[..., UNUSED] = lesion * rng.gamma(8.0, 0.25, (n, 1, 1)) * with_it
    latents[..., RARE] = (rng.random((n, 1, 1)) < 0.2) * rng.random((n, *GRID))
    latents[..., USED_EVERYWHERE] = 1 + 0.3 * rng.random((n, *GRID)) + 0.1 * lesion * with_it
    latents[..., IN_BOXES_OF_BOTH] = lesion * rng.gamma(8.0, 0.25, (n, 1, 1))
    latents[..., TWIN] = lesion * rng.gamma(8.0, 0.25, (n, 1, 1)) * (1.7 * present + ~present)[:, None, None]
    rest = latents[..., N_PLANTED:]
    rest[...] = np.maximum(rng.normal(size=rest.shape) - 1, 0) * (rng.random(rest.shape) < 0.5)

    decoder = np.linalg.qr(rng.normal(size=(d_sae, d_sae)))[0]
    weight = np.zeros(d_sae)
    weight[[OF_THE_FINDING, BESIDE_IT, TWIN]] = (12.0, 12.0, 12.0)
    weight[USED_EVERYWHERE] = 12.0
    weight[N_PLANTED:] = rng.normal(size=d_sae - N_PLANTED) / 4
    features = latents @ decoder + 0.02 * rng.normal(size=(*latents.shape[:3], d_sae))
    images = pd.DataFrame(
        {
            "image_id": [f"image{i}" for i in range(n)],
            "patient_id": [f"patient{i}" for i in patients],
            "split": np.where(patients % 8 < 4, "test", "training"),
            "laterality": np.where(np.arange(n) % 2, "L", "R"),
            "view": "CC",
            "Mass": present.astype(int),
            "Suspicious_Calcification": 0,
            "density": 0,
        }
    )
    corners = np.stack([places[:, 1], places[:, 0], places[:, 1] + 1, places[:, 0] + 1], axis=1) * float(CELL)
    corners[~present | (not boxes)] = np.nan
    findings = images[["image_id", "Mass", "Suspicious_Calcification", "density"]].copy()
    findings.insert(1, "image_row", np.arange(n))
    findings[["xmin", "ymin", "xmax", "ymax"]] = corners
    return MemoryTable(
        features=features,
        latents=latents,
        decoder=decoder,
        bias=np.zeros(d_sae),
        head_weight={"Mass": (decoder.T @ weight)[:, None]},
        head_bias={"Mass": np.zeros(1)},
        images=images,
        findings=findings,
        image_size=image_size,
    )
