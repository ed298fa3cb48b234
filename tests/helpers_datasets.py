"""Builders for the dataset tests: a tiny folder in VinDr's format, written by hand and not by the phantom generator."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from mammosae_plugin.datasets import CONCEPTS

SIZE = (40, 24)  # (H, W)
NO_BOX = ("", "", "", "")


def row(
    patient: str,
    image: str,
    *findings: str,
    split: str = "training",
    box: tuple[Any, Any, Any, Any] | None = None,
    density: int = 2,
    birads: int = 1,
    **changed: Any,
) -> dict[str, Any]:
    """One row of the annotation file; `box` is in the image's pixels, the original is three times as large."""
    corners = ("xmin", "ymin", "xmax", "ymax")
    box = box or ((4, 5, 14, 20) if findings else NO_BOX)
    values: dict[str, Any] = {
        "patient_id": patient,
        "series_id": "s",
        "image_id": image,
        "laterality": "L",
        "view": "CC",
        "height": 3 * SIZE[0],
        "width": 3 * SIZE[1],
        "breast_birads": f"BI-RADS {birads}",
        "breast_density": f"DENSITY {'ABCD'[density]}",
        "finding_categories": str([name.replace("_", " ") for name in findings] or ["No Finding"]),
        "finding_birads": "BI-RADS 4" if findings else "",
    }
    values |= {name: value if isinstance(value, str) else 3 * value for name, value in zip(corners, box, strict=True)}
    values["split"] = split
    values |= {f"resized_{name}": value for name, value in zip(corners, box, strict=True)}
    values["fold"] = 0
    values |= {name: int(name in findings) for name in sorted((*CONCEPTS, "No_Finding"))}
    values |= {"No_Finding": int(not findings), "density": density}
    return values | changed


def good_rows() -> list[dict[str, Any]]:
    """Three patients, four images, six rows; image b1.png carries a mass and, in another row, a calcification."""
    return [
        row("00012e34", "a1.png"),
        row("00012e34", "a2.png", "Mass", box=(-0.6, 5, 14, 20)),
        row("bb", "b1.png", "Mass", birads=4),
        row("bb", "b1.png", "Suspicious_Calcification", box=(1, 2, 6, 9), birads=4),
        row("bb", "b1.png", "Mass", "Skin_Thickening", box=(10, 10, 24.4, 30), birads=4),
        row("cc", "c1.png", "Suspicious_Calcification", split="test", box=(8, 8, 20, 30), density=0, birads=5),
    ]


def write_dataset(root: Path, rows: list[dict[str, Any]], *, size: tuple[int, int] = SIZE) -> Path:
    """Write the rows and a random 8-bit image for each of their images; return the root."""
    root.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(root / "vindr_detection_v1_folds.csv", index=False)
    rng = np.random.default_rng(0)
    for values in rows:
        path = root / "images_png" / str(values["patient_id"]) / str(values["image_id"])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(path)
    return root
