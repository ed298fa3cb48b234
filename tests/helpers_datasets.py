"""Builders for the dataset tests: a tiny folder in VinDr's format, written by hand and not by the phantom generator."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from mammosae_plugin.datasets import CONCEPTS, VinDrMammo

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


def publish_boxes(root: Path, image_size: tuple[int, int], *, seed: int = 0) -> pd.DataFrame:
    """Rewrite the annotation file of a folder as the published one was made, its defect included.

    Each image is taken for a crop of an invented original; the file's boxes are carried to it, and back with the lines
    of the author's code: 5 pixels cut from each side, right edge clipped at the height, lower edge at the width.

    Returns:
        One row per box, in the file's order: xmin, ymin, xmax, ymax (the true ones) and defect ("", "cut", "inverted").
    """
    file = root / "vindr_detection_v1_folds.csv"
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    rng = np.random.default_rng(seed)
    rows = []
    for _, own in table.groupby("image_id", sort=False):
        height = int(rng.integers(2800, 3600))
        width = int(height * rng.choice([0.5, 0.7, 0.9]))
        left, top, right, bottom = (int(rng.integers(0, 90)) for _ in range(4))
        sx = image_size[1] / (width - 10 - left - right)
        sy = image_size[0] / (height - 10 - top - bottom)
        for line in own.index:
            table.loc[line, ["height", "width"]] = [str(height), str(width)]
            if table.at[line, "resized_xmin"] == "":
                continue
            true = [float(table.at[line, f"resized_{corner}"]) for corner in CORNERS]
            original = [
                true[0] / sx + left + 5,
                true[1] / sy + top + 5,
                true[2] / sx + left + 5,
                true[3] / sy + top + 5,
            ]
            published = author_box(original, (height, width), (left, top), (sx, sy))
            table.loc[line, list(CORNERS)] = list(map(str, original))
            table.loc[line, [f"resized_{corner}" for corner in CORNERS]] = list(map(str, published))
            defect = "inverted" if published[3] <= published[1] else "cut" if published[3] < true[3] - 1e-6 else ""
            rows.append(dict(zip(CORNERS, true, strict=True)) | {"line": line + 2, "defect": defect})
    table.to_csv(file, index=False)
    return pd.DataFrame(rows).sort_values("line", ignore_index=True)


CORNERS = ("xmin", "ymin", "xmax", "ymax")


def author_box(
    original: Sequence[float], shape: tuple[int, int], crop: tuple[int, int], scale: tuple[float, float]
) -> tuple[float, float, float, float]:
    """A box (xyxy) of an original image of `shape` (h, w) in the prepared image, as the published code computes it."""
    (height, width), (left, top), (sx, sy) = shape, crop, scale
    xmin, ymin = original[0] - 5, original[1] - 5
    xmax, ymax = min(height - 10, original[2] - 5), min(width - 10, original[3] - 5)
    return (xmin - left) * sx, (ymin - top) * sy, (xmax - left) * sx, (ymax - top) * sy


def csv_folder(root: Path, phantom_root: Path, *, boxes: bool = False) -> pd.DataFrame:
    """The phantoms as a folder of images and a table: Cancer is a mass, Grade is the density up to three classes.

    There is no laterality, view, density or BI-RADS. Returns the table, as it was written to `images.csv`.
    """
    data = VinDrMammo(phantom_root, image_size=(96, 64))
    (root / "images").mkdir(parents=True, exist_ok=True)
    for path in data.image_paths:
        target = root / "images" / path.name
        if not target.exists():
            target.hardlink_to(path)
    rows = data.findings if boxes else data.images
    of_image = data.images.set_index("image_id").loc[rows["image_id"]]
    grades = np.minimum(of_image["density"].to_numpy(), 2)
    table = pd.DataFrame(
        {
            "image_id": [name.removesuffix(".png") for name in rows["image_id"]],
            "patient_id": of_image["patient_id"].to_numpy(),
            "split": of_image["split"].to_numpy(),
            "Cancer": rows["Mass"].to_numpy(),
            "Grade": [("low", "middle", "high")[grade] for grade in grades],
            "age": 40 + np.arange(len(rows)) % 7 if not boxes else 50,
        }
    )
    if boxes:
        corners = rows[["xmin", "ymin", "xmax", "ymax"]].where(rows["Mass"] == 1).reset_index(drop=True)
        table = table.join(corners)
    table = table.drop_duplicates(ignore_index=True)
    table.to_csv(root / "images.csv", index=False)
    return table
