"""A study of images with lesion masks: lesions are the masks, not the boxes around them, and edited masks count."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_results import read_report
from helpers_study import results_of, study_settings, write_study
from PIL import Image

from mammosae_plugin.config import load_config
from mammosae_plugin.datasets import VinDrMammo
from mammosae_plugin.study import Study, layer_report

CELL = 32  # pixels of a position of the small network's map


def _ring(box: np.ndarray, margin: int) -> np.ndarray:
    """A square ring in the cell of the map in which a lesion lies: the cell's centre is in its box, but not in it."""
    x, y = (int(middle // CELL * CELL) for middle in (box[[0, 2]].mean(), box[[1, 3]].mean()))
    mask = np.zeros((96, 64), np.uint8)
    outer, hole = slice(margin, CELL - margin), slice(margin + 4, CELL - margin - 4)
    mask[y : y + CELL, x : x + CELL][outer, outer] = 255
    mask[y : y + CELL, x : x + CELL][hole, hole] = 0
    return mask


@pytest.fixture(scope="module")
def masked(phantoms: VinDrMammo, phantom_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's file, whose data are a table of phantoms with a mask file of a ring for every mass."""
    folder: Path = tmp_path_factory.mktemp("masked")
    (folder / "masks").mkdir()
    rows = phantoms.findings[["image_id", "Mass", "xmin", "ymin", "xmax", "ymax"]].merge(
        phantoms.images[["image_id", "patient_id", "split", "laterality", "view"]], on="image_id"
    )
    rows["roi"] = ""
    for number, row in enumerate(rows.to_dict("records")):
        if row["Mass"]:
            file = folder / "masks" / f"{number}.png"
            box = np.array([row[name] for name in ("xmin", "ymin", "xmax", "ymax")])
            Image.fromarray(_ring(box, number % 7)).save(file)
            rows.loc[number, "roi"] = str(file)
    rows["file"] = "images_png/" + rows["patient_id"] + "/" + rows["image_id"]
    rows.drop(columns=["xmin", "ymin", "xmax", "ymax"]).drop_duplicates().to_csv(folder / "table.csv", index=False)
    settings = study_settings(folder, phantom_root)
    mapping = {
        "table": str(folder / "table.csv"),
        "image": "file",
        "laterality": "laterality",
        "view": "view",
        "labels": ["Mass"],
        "masks": "roi",
        "phantom": True,
    }
    settings["data"] = {"kind": "images", "root": str(phantom_root), "image_size": [96, 64], "mapping": mapping}
    settings["concepts"] = ["Mass"]
    settings["models"] = [{**settings["models"][0]}]
    settings["models"][0]["classifiers"] = {"Mass": settings["models"][0]["classifiers"]["Mass"]}
    settings["analysis"] |= {"ks": [0, 1], "top": 2, "views": None}
    return write_study(folder, settings)


def _draw(_results: Any, _class_means: Any, _panels: Any, folder: Path, **_: Any) -> None:
    """The curves, under which the report says what a lesion is; what they show takes longer to draw than the rest."""
    (folder / "figures").mkdir(exist_ok=True)
    Image.new("RGB", (60, 40)).save(folder / "figures" / "froc_Mass.png")


def _run(file: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Study, list[dict[str, Any]], str]:
    monkeypatch.setattr(layer_report, "write_figures", _draw)
    study = Study(load_config(file))
    study.run()
    report = read_report(study.results_folder)
    return study, results_of(study.output)["lesions"], report


def test_lesions_are_the_masks_and_edited_masks_renew_them(masked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, rings, report = _run(masked, monkeypatch)
    test = study.split("test")
    n_masks = int((test.findings["Mass"] == 1).sum())
    boxes = study.primary.tables[study.pairs[0]].findings
    assert n_masks > 3 and {row["n_lesions"] for row in rings} == {n_masks}
    assert {row["n_reachable"] for row in rings} == {0}, (
        "the centre of no position lies in a ring, but in the box around it"
    )
    centres = 32 * (boxes.loc[boxes["Mass"] == 1, ["xmin", "ymin"]] // 32) + 16
    inside = boxes.loc[boxes["Mass"] == 1, ["xmax", "ymax"]].to_numpy() > centres.to_numpy()
    assert inside.all(), "it lies in every box around a mask"
    assert "a lesion is a connected part of a mask" in report and "lies in 0 of them" in report

    for file in (masked.parent / "masks").glob("*.png"):
        mask = np.asarray(Image.open(file))
        filled = np.zeros_like(mask)
        (top, *_, bottom), (left, *_, right) = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        filled[top : bottom + 1, left : right + 1] = 255
        Image.fromarray(filled).save(file)
    again, filled_lesions, report = _run(masked, monkeypatch)
    assert again.all_images.fingerprint == study.all_images.fingerprint, "labels and boxes are as they were"
    assert again.content != study.content
    assert {row["n_reachable"] for row in filled_lesions} == {n_masks} and "lies in 0 of them" not in report
    energy = {row["latent"]: row["energy"] for row in rings if row["method"] == "latent"}
    assert all(row["energy"] > energy[row["latent"]] for row in filled_lesions if row["method"] == "latent")
