"""SAIL's files as its own code left them, and embeddings in its format."""

from pathlib import Path

import pandas as pd
from helpers_adapters import DATA
from safetensors.torch import load_file

from mammosae_plugin.activations.embedding_files import write_vectors

SAIL = DATA / "sail"
CKPT = SAIL / "sae" / "last.ckpt"


def sail_embeddings(folder: Path) -> Path:
    """A folder as SAIL leaves it: one file per split, an image_id that is unique only within its modality."""
    rows = load_file(SAIL / "sae" / "expected.safetensors")["embeddings_raw"].numpy()
    for words, chosen in (("train", slice(0, 12)), ("valid", slice(12, 18)), ("test", slice(18, 28))):
        count = len(rows[chosen])
        known = pd.DataFrame(
            {
                "age": [None] * count,
                "image_id": [f"s{number % 3:04d}" for number in range(count)],
                "modality": ["ct" if number % 6 < 3 else "mri" for number in range(count)],
                "slice_orientation": "x",
                "slice_idx": [chosen.start + number for number in range(count)],
                "split": "train",  # the collection's own, which says nothing here
                "gender": ["f", "m", None, "m"][:count] + ["f"] * max(0, count - 4),
                "liver": [number % 2 for number in range(count)],
                "spleen": 0,
            }
        )
        write_vectors(folder / f"total_seg_dinov3_encodings_{words}.parquet", known, [rows[chosen]])
    return folder
