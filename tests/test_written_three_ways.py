"""The demo's data as a PNG folder, as DICOM with its annotations, and as a table with masks: one and the same study."""

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers_dicom import SYNTAXES, breast, dicom_file
from helpers_study import small_phantoms, study_settings, write_study
from PIL import Image

from mammosae_plugin.config import load_config
from mammosae_plugin.datasets import CONCEPTS, VinDrMammo, load_images, prepare_dicom, preprocess
from mammosae_plugin.datasets.base import BOX_COLUMNS
from mammosae_plugin.study import Study

SIZE = (96, 64)


def stretched_phantoms(root):
    """Phantoms that fill the range of 8 bits, so that no preparation has anything to stretch."""
    small_phantoms(root, image_size=SIZE)
    for path in root.glob("images_png/*/*.png"):
        pixels = np.asarray(Image.open(path)).astype(float)
        pixels = np.rint((pixels - pixels.min()) / (pixels.max() - pixels.min()) * 255)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    return VinDrMammo(root, image_size=SIZE)


def as_dicom(png, root):
    """VinDr-Mammo as distributed: 12 bit, half of it MONOCHROME1, in four transfer syntaxes."""
    table = pd.read_csv(png / "vindr_detection_v1_folds.csv", dtype=str, keep_default_na=False)
    table = table.rename(columns={"patient_id": "study_id", "view": "view_position"})
    table["image_id"] = table["image_id"].str.removesuffix(".png")
    table["height"], table["width"] = map(str, SIZE)
    table[list(BOX_COLUMNS)] = table[[f"resized_{name}" for name in BOX_COLUMNS]]
    kept = "study_id series_id image_id laterality view_position height width breast_birads breast_density "
    kept += "finding_categories finding_birads"
    root.mkdir()
    table[[*kept.split(), *BOX_COLUMNS, "split"]].to_csv(root / "finding_annotations.csv", index=False)
    for at, path in enumerate(sorted(png.glob("images_png/*/*.png"))):
        pixels = np.asarray(Image.open(path)).astype(np.uint16) * 16
        inverted = bool(at % 2)
        stored = 4080 - pixels if inverted else pixels
        syntax = ["JPEG lossless", "JPEG 2000", "RLE", "explicit"][at // 2 % 4]
        to = root / "images" / path.parent.name / f"{path.stem}.dicom"
        dicom_file(to, stored.astype(np.uint16), syntax=syntax, bits=12, inverted=inverted)


def as_own_table(data, root):
    """A spreadsheet's CSV in German with a row per image, PNG in one folder, a mask per finding and label."""
    (root / "bilder").mkdir(parents=True)
    (root / "masken").mkdir()
    rows = []
    for at, path in enumerate(data.image_paths):
        image = data.images.iloc[at]
        (root / "bilder" / path.name).write_bytes(path.read_bytes())
        side = {"L": "links", "R": "rechts"}[image["laterality"]]
        row = {"Bild": path.stem, "Patientin": image["patient_id"], "Seite": side, "Ansicht": image["view"]}
        row |= {"Gruppe": {"training": "lernen", "test": "prüfen"}[image["split"]], "Dichte": "abcd"[image["density"]]}
        row |= {f"{name}?": ("nein", "ja")[image[name]] for name in CONCEPTS}
        rows.append(row)
        for name, boxes in data[at]["boxes"].items():
            for number, (left, top, right, bottom) in enumerate(boxes.int().tolist()):
                mask = np.zeros(SIZE, np.uint8)
                mask[top:bottom, left:right] = 255
                Image.fromarray(mask).save(root / "masken" / f"{path.stem} {name} {number}.png")
    pd.DataFrame(rows).to_csv(root / "befunde.csv", sep=";", index=False, encoding="utf-8-sig", lineterminator="\r\n")
    mapping = {
        "table": "befunde.csv",
        "image": "bilder/{Bild}.png",
        "image_id": "Bild",
        "patient_id": "Patientin",
        "laterality": {"column": "Seite", "values": {"links": "L", "rechts": "R"}},
        "view": "Ansicht",
        "split": {"column": "Gruppe", "values": {"training": "lernen", "test": "prüfen"}},
        "labels": {
            **{name: {"column": f"{name}?", "positive": "ja", "negative": "nein"} for name in CONCEPTS},
            "density": {"column": "Dichte", "kind": "graded", "classes": ["A", "B", "C", "D"]},
        },
        "masks": "masken/{Bild} {label} *.png",
        "phantom": True,
        "image_size": list(SIZE),
    }
    mapping["labels"]["density"]["values"] = dict(zip("abcd", "ABCD", strict=True))
    (root / "mapping.yaml").write_text(yaml.safe_dump(mapping, allow_unicode=True))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """By way of writing, the folder that a study reads."""
    base = tmp_path_factory.mktemp("ways")
    data = stretched_phantoms(base / "png")
    as_dicom(base / "png", base / "dicom")
    as_own_table(data, base / "own")
    # of their own size, and filling the range already: the preparation has nothing to change
    prepare_dicom("vindr", base / "dicom", base / "prepared", preparation="letterbox", image_size=SIZE)
    return {"png": base / "png", "dicom": base / "prepared", "own": base / "own"}


def boxes_of(item):
    return {name: sorted(boxes.tolist()) for name, boxes in item["boxes"].items()}


@pytest.mark.parametrize("way", ["dicom", "own"])
def test_labels_boxes_and_network_input_are_the_same_however_the_data_are_written(way, folders):
    today, other = VinDrMammo(folders["png"], image_size=SIZE), load_images(folders[way])
    places = {f"{name}.png": at for at, name in enumerate(other.images["image_id"])}
    assert len(other) == len(today) == len(places)
    n_boxes = 0
    for at in range(len(today)):
        expected, found = today[at], other[places[today.images["image_id"][at]]]
        shared = (*CONCEPTS, "density")
        assert {name: found["labels"][name] for name in shared} == {name: expected["labels"][name] for name in shared}
        assert (found["patient_id"], found["split"]) == (expected["patient_id"], expected["split"])
        assert {name: boxes_of(found)[name] for name in CONCEPTS} == boxes_of(expected)
        assert (found["image"] == expected["image"]).all()
        n_boxes += sum(map(len, expected["boxes"].values()))
    assert n_boxes > 20
    for name in ("laterality", "view"):
        assert [other.images[name][at] for at in places.values()] == today.images[name].tolist()


@pytest.fixture(scope="module")
def studies(folders, tmp_path_factory):
    """By way of writing, a study with the same networks and the same SAE."""
    base = tmp_path_factory.mktemp("studies")
    settings = study_settings(base, folders["png"])
    settings["models"] = settings["models"][1:]
    settings["analysis"] |= {"ks": [0, 2, 64], "top": 5, "iou_threshold": 0.02, "error_term": False}
    found = {}
    for way, root in folders.items():
        settings["output"], settings["data"] = str(base / way), {"root": str(root)}
        if way == "png":
            settings["data"] |= {"image_size": list(SIZE), "phantom": True}
        found[way] = Study(load_config(write_study(base, settings)))
    assert {way: study.config.data.kind for way, study in found.items()} == {
        "png": "vindr",
        "dicom": "images",
        "own": "images",
    }
    return {way: study.primary for way, study in found.items()}


PROBING = ["reconstruction", "sae_quality", "class_means", "single_latents", "rankings"]


def table_of(study, name):
    return pd.DataFrame(study.rankings()) if name == "rankings" else getattr(study, name)


@pytest.mark.slow
@pytest.mark.parametrize("table", [*PROBING, "interventions", "roles", "localization", "baselines"])
def test_a_study_finds_the_same_however_its_data_are_written(table, studies):
    expected = table_of(studies["png"], table)
    for way in ("dicom", "own"):
        pd.testing.assert_frame_equal(table_of(studies[way], table), expected, rtol=1e-9, atol=1e-9)
    if table == "localization":
        precision = expected["average_precision"]
        assert precision.nunique() > 3 and precision.max() > 0.1  # so that other boxes would be other numbers


@pytest.mark.parametrize("preparation", ["mammo-clip", "letterbox"])
def test_one_picture_is_the_same_network_input_in_every_form_of_file(preparation, tmp_path):
    picture = breast(top=60000)
    inverted = (65535 - picture).astype(np.uint16)
    files = ["a.png"]
    Image.fromarray(picture).save(tmp_path / "a.png")
    for syntax in SYNTAXES:
        for name, stored in (("1", inverted), ("2", picture)):
            files.append(f"{syntax} MONOCHROME{name}.dcm")
            dicom_file(tmp_path / files[-1], stored, syntax=syntax, inverted=name == "1")
    rows = {"file": files, "image_id": [f"{at:02}" for at in range(len(files))], "patient_id": "p", "split": "test"}
    pd.DataFrame(rows).assign(Mass=0).to_csv(tmp_path / "images.csv", index=False)
    mapping = {"table": "images.csv", "image": "file", "labels": ["Mass"]}
    out = prepare_dicom(mapping, tmp_path, tmp_path / "out", preparation=preparation, image_size=(64, 40))
    images = load_images(out)
    assert len(images) == len(files) == 15
    with Image.open(out / "images" / "p" / "00.png") as prepared:
        expected = preprocess(np.asarray(prepared))
    assert expected.std() > 0.5
    for at, file in enumerate(files):
        assert (images[at]["image"] == expected).all(), file
