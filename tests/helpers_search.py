"""A table whose latents are planted: what each fires for is known, and so what a search by their names must find."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sae_lens import StandardSAE, StandardSAEConfig
from sae_lens.saes.sae import SAEMetadata

from mammosae_plugin.activations.embedding_files import write_vectors
from mammosae_plugin.datasets.concepts import Concept
from mammosae_plugin.interpretation import LatentNames
from mammosae_plugin.latents import LatentTable, encode_rows

MEANINGS = {
    "density=A": "fatty breast", "density=D": "dense breast", "view=CC": "craniocaudal view",
    "view=MLO": "mediolateral oblique view",
}  # fmt: skip
PLANTED = ("Mass", "Suspicious_Calcification", "density=A", "density=D", "view=CC", "view=MLO")
PER_NAME, N_RANDOM = 2, 24


def planted_images(n_patients: int = 240, seed: int = 0) -> pd.DataFrame:
    """Two views of each patient; half of the patients are in training."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(n_patients), 2)
    images = pd.DataFrame(
        {
            "image_id": [f"{row}.png" for row in range(len(patient))],
            "patient_id": patient.astype(str),
            "split": np.where(patient < n_patients // 2, "training", "test"),
            "view": ["CC", "MLO"] * n_patients,
            "age": rng.integers(40, 80, n_patients)[patient],
        }
    )
    for name, share in (("Mass", 0.4), ("Suspicious_Calcification", 0.35)):
        images[name] = (rng.random(n_patients) < share)[patient].astype(int)
    images["density"] = rng.choice(4, n_patients, p=[0.35, 0.15, 0.15, 0.35])[patient]
    return images


def fires(images: pd.DataFrame, name: str) -> np.ndarray:
    """Which images a latent of this name is planted in."""
    column, _, value = name.partition("=")
    wanted = {"density": "ABCD".find(value), "view": value}.get(column, 1)
    return (images[column] == wanted).to_numpy()


def planted_codes(images: pd.DataFrame, seed: int = 1) -> np.ndarray:
    """Latents that fire exactly where their attribute is, then as many that fire in a fifth of the images at random."""
    rng = np.random.default_rng(seed)
    own = [fires(images, name) * rng.uniform(1, 2, len(images)) for name in PLANTED for _ in range(PER_NAME)]
    other = [(rng.random(len(images)) < 0.2) * rng.uniform(1, 2, len(images)) for _ in range(N_RANDOM)]
    return np.stack([*own, *other], axis=1).astype(np.float32)


def planted_table(folder: Path) -> LatentTable:
    """The table on disk, of an SAE that hands its rows through."""
    images = planted_images()
    codes = planted_codes(images)
    width = codes.shape[1]
    sae = StandardSAE(StandardSAEConfig(d_in=width, d_sae=width, metadata=SAEMetadata(hook_name="rows")))
    eye, zero = torch.eye(width), torch.zeros(width)
    sae.load_state_dict({"W_enc": eye, "b_enc": zero, "W_dec": eye, "b_dec": zero})
    folder.mkdir(parents=True, exist_ok=True)
    write_vectors(folder / "rows.parquet", images, [codes])
    concepts = ["Mass", "Suspicious_Calcification", Concept("density", "graded", ("A", "B", "C", "D"))]
    return encode_rows(folder / "rows.parquet", sae, folder / "table", concepts=concepts)


def names_of(named: dict[int, str], *, n_latents: int = len(PLANTED) * PER_NAME + N_RANDOM) -> LatentNames:
    """Names by somebody who is sure; all other latents have none."""
    latents = pd.DataFrame(
        {
            "latent": range(n_latents),
            "method": "oracle",
            "name": [named.get(latent, "") for latent in range(n_latents)],
            "score": 1.0,
            "low": 0.8,
            "high": 1.0,
            "chance": 0.25,
            "p": 0.001,
            "q": 0.01,
            "n": 20,
            "abstained": [latent not in named for latent in range(n_latents)],
            "reason": ["" if latent in named else "nothing stands out" for latent in range(n_latents)],
        }
    )
    return LatentNames("oracle", latents, latents.iloc[:0], {})


def oracle_names() -> LatentNames:
    """The truth of the planted latents."""
    return names_of({place * PER_NAME + twin: name for place, name in enumerate(PLANTED) for twin in range(PER_NAME)})
