"""A latents table in which it is known what every latent stands for."""

import numpy as np
import pandas as pd
from helpers_tables import MemoryTable

from mammosae_plugin.measures.permutations import in_random_groups

FINDING, MARKER, SITE, DENSITY, BACKGROUND = range(5)
D_SAE = 24


def planted_table(*, n_patients: int = 240, seed: int = 0, explained: bool = True) -> MemoryTable:
    """Two views of every patient, half of them in the test split; the label is the patient's.

    Latent `FINDING` fires in the boxes of images with a mass, `MARKER` in a corner: in 9 of 10 training images as the
    label says, in test images at random. `SITE` fires in another corner of images of site B, where 85 % of the masses
    and 15 % of the others are, in both splits; `DENSITY` everywhere, the more so the denser, and masses are dense.
    `BACKGROUND` fires everywhere, the others anywhere. The classifier rests on the first four.

    Args:
        n_patients: patients.
        seed: of everything.
        explained: whether the SAE reconstructs what it reads, or nothing of it.
    """
    rng = np.random.default_rng(seed)
    of_patient = rng.random(n_patients) < 0.5
    label = np.repeat(of_patient, 2).astype(int)
    n, grid = len(label), (6, 5)
    training = np.repeat(np.arange(n_patients) % 2 == 0, 2)
    agrees = rng.random(n) < np.where(training, 0.9, 0.5)
    marker = np.where(agrees, label, 1 - label)
    site = np.repeat(np.where(rng.random(n_patients) < 0.85, of_patient, ~of_patient), 2)
    density = np.repeat(np.clip(rng.integers(0, 3, n_patients) + (rng.random(n_patients) < 0.8) * of_patient, 0, 3), 2)
    images = pd.DataFrame(
        {
            "image_id": [f"image{i}" for i in range(n)],
            "patient_id": [f"patient{i // 2}" for i in range(n)],
            "split": np.where(training, "training", "test"),
            "view": np.where(np.arange(n) % 2, "CC", "MLO"),
            "site": np.where(site, "B", "A"),
            "age": np.repeat(rng.integers(40, 80, n_patients), 2).astype(float),
            "Mass": label,
            "Suspicious_Calcification": 0,
            "density": density,
        }
    )
    latents = np.where(rng.random((n, *grid, D_SAE)) < 0.1, rng.gamma(2, 0.5, (n, *grid, D_SAE)), 0)
    latents[..., : BACKGROUND + 1] = 0
    records = []
    for row in range(n):
        y, x = int(rng.integers(1, 4)), int(rng.integers(0, 4))
        box = (8.0 * x, 8.0 * y, 8.0 * x + 16, 8.0 * y + 16) if label[row] else (np.nan,) * 4
        if label[row]:
            latents[row, y : y + 2, x : x + 2, FINDING] = rng.gamma(4, 0.4, (2, 2))
        names = {"Mass": label[row], "Suspicious_Calcification": 0, "density": density[row]}
        place = dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        records.append({"image_id": f"image{row}", "image_row": row, **names, **place})
    latents[:, 0, 0, MARKER] = marker * rng.gamma(20, 0.3, n)
    latents[:, 0, 4, SITE] = site * rng.gamma(20, 0.3, n)
    latents[..., DENSITY] = (0.1 + 0.2 * density[:, None, None]) * rng.gamma(20, 0.05, (n, *grid))
    latents[..., BACKGROUND] = rng.gamma(20, 0.02, (n, *grid))
    decoder = np.eye(D_SAE)
    features = latents + (0.05 if explained else 2.0) * rng.normal(size=latents.shape)
    weight = np.zeros((D_SAE, 1))
    weight[:4, 0] = np.array([1, 1, 1, 0.5]) * 10
    weight[BACKGROUND + 1 :, 0] = 0.1 * rng.normal(size=D_SAE - BACKGROUND - 1)
    return MemoryTable(
        features=features, latents=latents, decoder=decoder, bias=np.zeros(D_SAE), head_weight={"Mass": weight},
        head_bias={"Mass": np.array([-6.0])}, images=images, findings=pd.DataFrame(records), image_size=(48, 40),
    )  # fmt: skip


def permuted_table(table: MemoryTable, seed: int) -> MemoryTable:
    """The same with the label permuted between the patients of each split."""
    images, rng = table.images.copy(), np.random.default_rng(seed)
    for split in ("training", "test"):
        rows = np.flatnonzero(images["split"] == split)
        groups = pd.factorize(images["patient_id"].iloc[rows])[0]
        images.iloc[rows[in_random_groups(groups, rng)], images.columns.get_loc("Mass")] = images["Mass"].to_numpy()[
            rows[np.argsort(groups, kind="stable")]
        ]
    return MemoryTable(**{**vars(table), "images": images})
