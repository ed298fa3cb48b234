"""A collection prepared: labels, boxes and masks go along, bad files are listed, killed and shared runs end alike."""

import errno
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers_collections import WRITERS
from helpers_dicom import TOMOSYNTHESIS, breast, dicom_file
from helpers_kills import ended, killed_at
from PIL import Image

from mammosae_plugin.adapters.preprocessing import BadImageError
from mammosae_plugin.datasets import load_images, open_dataset, prepared_folder, prepared_images
from mammosae_plugin.datasets.annotations import read_annotations
from mammosae_plugin.datasets.base import BOX_COLUMNS, DatasetError
from mammosae_plugin.datasets.mapping import load_mapping
from mammosae_plugin.datasets.mask_files import read_mask
from mammosae_plugin.datasets.phantoms import make_phantoms
from mammosae_plugin.datasets.prepared_folder import prepare_dicom, read_transforms
from mammosae_plugin.datasets.registry import of_its_kind
from mammosae_plugin.datasets.vindr import VinDrMammo
from mammosae_plugin.errors import InputError

SIZE = (60, 45)
MAPPING = {
    "name": "clinic",
    "table": "images.csv",
    "image": "{folder}/{image_id}.dcm",
    "patient_id": "patient",
    "laterality": {"column": "side", "values": {"LEFT": "L", "RIGHT": "R"}},
    "view": "view",
    "split": "split",
    "labels": {
        "Mass": {"column": "findings", "contains": "Mass"},
        "Calc": {"column": "findings", "contains": "Calc"},
        "density": {"kind": "graded", "classes": ["A", "B", "C", "none"], "values": {"none": "none"}},
        "cancer": {"rows": "same"},
    },
    "boxes": {"columns": ["x", "y", "w", "h"], "form": "xywh", "origin": 1},
    "masks": {"image": "masks/{image_id}*.png"},
    "covariates": {"age": "number", "machine": "category"},
}
SYNTAXES = ["explicit", "JPEG lossless", "RLE", "big endian", "deflated", "implicit"]


def write_collection(root: Path, n: int = 7) -> Path:
    """Patients with one image each, two rows in some; every third right breast, every second MONOCHROME1."""
    rows = []
    for at in range(n):
        side = "RIGHT" if at % 3 == 2 else "LEFT"
        pixels = breast(120 + at, 90, seed=at, right=side == "RIGHT")
        inverted = at % 2 == 1
        dicom_file(
            root / "dcm" / f"00{at}.dcm",
            (4095 - pixels).astype(np.uint16) if inverted else pixels,
            syntax=SYNTAXES[at % 6],
            bits=12,
            inverted=inverted,
            **({"BreastImplantPresent": "YES"} if at == 1 else {}),
        )
        left = 55 if side == "RIGHT" else 15
        row = {
            "folder": "dcm", "image_id": f"00{at}", "patient": f"0{at}", "side": side, "view": "CC",
            "split": "test" if at % 2 else "train", "findings": "['No Finding']",
            "density": ["A", "B", "C", "none", ""][at % 5],
            "cancer": ["0", "1", ""][at % 3], "x": "", "y": "", "w": "", "h": "",
            "age": "" if at == 3 else 40.5 + at, "machine": f"M,{at % 2}", "secret": "Doe",
        }  # fmt: skip
        if at % 2 == 0:
            rows.append({**row, "findings": "['Mass']", "x": left + 1, "y": 41, "w": 20, "h": 17.5})
        if at % 3 == 0:
            rows.append({**row, "findings": "['Mass', 'Calc']", "x": left + 4, "y": 60, "w": 9, "h": 9})
        if at % 2 and at % 3:
            rows.append({**row, "findings": "['Calc']" if at == 5 else row["findings"]})
        if at == 5:
            mask = np.zeros(pixels.shape, dtype=np.uint8)
            mask[50:60, left : left + 12] = 255
            (root / "masks").mkdir(exist_ok=True)
            Image.fromarray(mask).save(root / "masks" / f"00{at}_1.png")
    pd.DataFrame(rows).to_csv(root / "images.csv", index=False)
    return root


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return write_collection(tmp_path_factory.mktemp("collection"))


@pytest.fixture(scope="module")
def prepared(collection, tmp_path_factory):
    return prepare_dicom(MAPPING, collection, tmp_path_factory.mktemp("prepared") / "out", image_size=SIZE)


def files_of(folder: Path) -> dict[str, bytes]:
    """All files but those of the work, by name."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and "work" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def annotations_of(source, root=None):
    return read_annotations(*load_mapping(source, root))


def test_labels_covariates_and_splits_go_along(collection, prepared):
    before, after = annotations_of(MAPPING, collection), annotations_of(prepared)
    same = [name for name in before.images if name != "file"]
    pd.testing.assert_frame_equal(before.images[same], after.images[same])
    assert after.images["implant"].tolist() == [0, 1, 0, 0, 0, 0, 0] and not after.images["spot_view"].any()
    labels = ["image_id", *MAPPING["labels"]]
    pd.testing.assert_frame_equal(before.findings[labels], after.findings[labels])
    assert [one.to_json() for one in before.concepts] == [one.to_json() for one in after.concepts]
    assert after.mapping.image_size == SIZE and after.mapping.name == "clinic" and after.mapping.restricted


def test_boxes_masks_and_their_way_back(collection, prepared):
    before, after = annotations_of(MAPPING, collection), annotations_of(prepared)
    transforms = read_transforms(prepared)
    assert list(transforms) == before.images["image_id"].tolist()
    boxed = before.findings["xmin"].notna().to_numpy()
    assert boxed.sum() == 7 and (after.findings["xmin"].notna() == boxed).all()
    for row in np.flatnonzero(boxed):
        there = before.findings.loc[row, list(BOX_COLUMNS)].to_numpy(dtype=float)
        back = transforms[before.findings["image_id"][row]].boxes_back(
            after.findings.loc[row, list(BOX_COLUMNS)].to_numpy(dtype=float)
        )
        assert np.abs(back - there).max() < 0.5
    masked = after.findings[after.findings["mask"] != ""]
    assert masked["image_id"].tolist() == ["005"]
    mask = np.asarray(Image.open(prepared / masked["mask"].iloc[0]))
    rows, columns = np.nonzero(mask)
    box = transforms["005"].boxes([55, 50, 67, 60])[0]
    assert mask.shape == SIZE and set(np.unique(mask)) == {0, 255}
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(found - box).max() <= 1


def test_images_are_what_prepare_picture_makes_whoever_asks(collection, prepared, tmp_path):
    from mammosae_plugin.datasets.dicom import read_picture
    from mammosae_plugin.datasets.preparation import prepare_picture

    again = prepare_dicom(
        MAPPING, collection, tmp_path / "out", image_size=SIZE, preparation="letterbox", bits=16, flip="laterality"
    )
    images = annotations_of(prepared).images
    for image_id, file, side in zip(images["image_id"], images["file"], images["laterality"], strict=True):
        picture = read_picture(collection / "dcm" / f"{image_id}.dcm", rescale=False)
        with Image.open(prepared / file) as image:
            assert (np.asarray(image) == prepare_picture(picture, "mammo-clip", SIZE).pixels).all()
            assert not image.info
        expected = prepare_picture(picture, "letterbox", SIZE, bits=16, flip="laterality", laterality=side)
        assert (np.asarray(Image.open(again / file)) == expected.pixels).all()
        assert read_transforms(again)[image_id] == expected.transform


def test_nothing_of_a_header_or_of_the_table_leaves_that_the_mapping_does_not_name(prepared):
    for name, content in files_of(prepared).items():
        for secret in (b"Doe", b"SECRET-7", b"20011122", b"1.2.3.4"):
            assert secret not in content, name
    assert b"Doe" not in (prepared / "transforms.parquet").read_bytes()


PLANTED = {
    "PatientName": "Doe^Planted", "PatientBirthDate": "19510203", "InstitutionName": "PLANTED HOSPITAL",
    "OperatorsName": "Planted^Op", "StudyInstanceUID": "1.2.826.0.99.1", "SeriesInstanceUID": "1.2.826.0.99.2",
    "SOPInstanceUID": "1.2.826.0.99.3", "AccessionNumber": "PLANTED9", "StationName": "PLANTEDSTN",
    "StudyDescription": "planted study", "PatientID": "PLANTEDID", "StudyDate": "20011122",
}  # fmt: skip
FROM_HEADERS = {
    **{name: value for name, value in MAPPING.items() if name not in ("masks", "boxes")},
    "dicom": {
        "side_of_header": "ImageLaterality",
        "0018,5101": "(0018,5101)",
        "years": "PatientAge",
        "maker": "00080070",
    },
    "laterality": "side_of_header",
    "view": "0018,5101",
    "covariates": {"age": {"column": "years", "kind": "number"}, "maker": "category"},
}


@pytest.fixture(scope="module")
def with_headers(tmp_path_factory):
    """Five images whose side, view, age and maker stand in their headers only, and much else that must stay there."""
    root = tmp_path_factory.mktemp("headers")
    table = pd.read_csv(write_collection(root, 5) / "images.csv", dtype=str)
    table.drop(columns=["side", "view", "age"]).to_csv(root / "images.csv", index=False)
    for at in range(5):
        tags = {
            **PLANTED,
            "ImageLaterality": "R" if at == 2 else "L",
            "ViewPosition": "CC" if at % 2 else "MLO",
            "PatientAge": ["045Y", "006M", "", "070Y", "051Y"][at],
            "Manufacturer": "Maker",
            "AccessionNumber": f"{PLANTED['AccessionNumber']}-{at}",
        }
        if at == 3:  # what is wrong with this one is in its header, and what is said of it goes to the list
            tags["WindowCenter"], tags["WindowWidth"] = "7", "9"
        path = dicom_file(root / "dcm" / f"00{at}.dcm", breast(120 + at, 90, seed=at), bits=12, **tags)
        if at == 3:
            content = path.read_bytes()
            path.write_bytes(content.replace(b"\x28\x00\x10\x00US\x02\x00", b"\x28\x00\x10\x00LO\x02\x00"))
    return root


def everything_in(folder: Path) -> str:
    """All that a folder holds, tables and records opened, names of files included."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found += [str(path.relative_to(folder)), path.read_bytes().decode("latin-1")]
        if path.suffix == ".parquet":
            table = pd.read_parquet(path)
            found.append(" ".join(map(str, [*table.columns, *table.to_numpy(dtype=object).ravel()])))
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
                assert not image.info and image.mode in ("L", "I;16"), path
    return "\n".join(found)


def test_no_tag_leaves_that_the_mapping_does_not_name_but_two_flags(with_headers, tmp_path):
    out = prepare_dicom(FROM_HEADERS, with_headers, tmp_path / "out", image_size=SIZE, max_bad_share=0.3)
    images = annotations_of(out).images
    assert images["image_id"].tolist() == ["000", "001", "002", "004"]
    assert images["laterality"].tolist() == ["L", "L", "R", "L"] and images["view"].tolist() == [
        "MLO",
        "CC",
        "MLO",
        "MLO",
    ]
    assert images["age"].fillna(-1).tolist() == [45, 0.5, -1, 51] and set(images["maker"]) == {"Maker"}
    assert {"implant", "spot_view"} == {*images.columns} - {*annotations_of(FROM_HEADERS, with_headers).images.columns}
    text = everything_in(tmp_path / "out")
    assert "Maker" in text and "implant" in text  # the search sees what is there
    for keyword, value in PLANTED.items():
        assert value not in text, keyword
    named = {**FROM_HEADERS, "dicom": {**FROM_HEADERS["dicom"], "who": "PatientID"}, "patient_id": "who"}
    named["split"] = {"make": {"shares": {"training": 1.0}}}
    text = everything_in(prepare_dicom(named, with_headers, tmp_path / "named", image_size=SIZE, max_bad_share=0.3))
    assert [keyword for keyword, value in PLANTED.items() if value in text] == ["PatientID"]


def test_files_are_found_by_their_headers(with_headers, tmp_path):
    table = pd.read_csv(with_headers / "images.csv", dtype=str).drop(columns="folder")
    table["study"] = [f"PLANTED9-{int(one)}" for one in table["image_id"]]
    table.to_csv(with_headers / "by_number.csv", index=False)
    columns = {**FROM_HEADERS["dicom"], "study": "AccessionNumber", "PatientName": "PatientName"}
    mapping = {**FROM_HEADERS, "table": "by_number.csv", "image": "dicom_file"}
    mapping["dicom"] = {"columns": columns, "files": "**/*.dcm"}
    found = annotations_of(mapping, with_headers).images
    assert found.equals(annotations_of(FROM_HEADERS, with_headers).images)
    several = {**mapping, "dicom": {"columns": {**columns, "cancer": "Modality"}, "files": "**/*.dcm"}}
    for changed, said in (
        ({"columns": {"who": "PatientName"}, "files": "**/*.dcm"}, "none of the columns who"),
        ({"columns": columns, "files": "*.dicom"}, r"no file fits \*.dicom under"),
        ({"columns": columns, "files": "*.csv"}, "of 2 files have no DICOM header .*is no DICOM file"),
        ({"columns": {**columns, "study": "StudyName"}, "files": "**/*.dcm"}, "'StudyName' is no keyword or tag"),
        ({"columns": {**columns, "study": "0009,1001"}, "files": "**/*.dcm"}, "'0009,1001' is no keyword or tag"),
    ):
        with pytest.raises(InputError, match=said):
            annotations_of({**several, "dicom": changed}, with_headers)
    table.assign(study="PLANTEDID").to_csv(with_headers / "by_number.csv", index=False)
    mapping["dicom"] = {"columns": {**columns, "study": "PatientID"}, "files": "**/*.dcm"}
    with pytest.raises(DatasetError, match="1 value of study has several files"):
        annotations_of(mapping, with_headers)


def test_headers_that_cannot_be_read_are_missing_values(with_headers, tmp_path, caplog):
    root = tmp_path / "in"
    (root / "dcm").mkdir(parents=True)
    for at in (0, 1, 2, 4):
        (root / "dcm" / f"00{at}.dcm").symlink_to(with_headers / "dcm" / f"00{at}.dcm")
    (root / "images.csv").symlink_to(with_headers / "images.csv")
    with caplog.at_level("WARNING"):
        images = annotations_of({**FROM_HEADERS, "covariates": {"maker": "category"}}, root).images
    assert images["laterality"].tolist() == ["L", "L", "R", "", "L"] and images["maker"].tolist()[3] == ""
    assert "1 of 5 files has no DICOM header" in caplog.text
    with pytest.raises(DatasetError, match="the table has machine itself"):
        annotations_of({**FROM_HEADERS, "dicom": {**FROM_HEADERS["dicom"], "machine": "Manufacturer"}}, root)
    with pytest.raises(DatasetError, match="reads from the headers of these very files"):
        annotations_of({**FROM_HEADERS, "image": "{maker}.dcm"}, root)


def test_png_originals_are_prepared_as_well(collection, prepared, tmp_path):
    table = pd.read_csv(collection / "images.csv", dtype=str)
    for name in table["image_id"].unique():
        from mammosae_plugin.datasets.dicom import read_dicom

        (tmp_path / "in" / "dcm").mkdir(parents=True, exist_ok=True)
        pixels = read_dicom(collection / "dcm" / f"{name}.dcm")[0].astype(np.uint16)
        Image.fromarray(pixels).save(tmp_path / "in" / "dcm" / f"{name}.dcm", format="PNG")  # a name that lies
    table.to_csv(tmp_path / "in" / "images.csv", index=False)
    out = prepare_dicom({**MAPPING, "masks": None}, tmp_path / "in", tmp_path / "out", image_size=SIZE)
    for name, content in files_of(prepared).items():
        if name.startswith("images/"):
            assert (out / name).read_bytes() == content


def test_masks_may_be_dicom(collection, prepared, tmp_path):
    mask = np.asarray(Image.open(collection / "masks" / "005_1.png"))
    root = tmp_path / "in"
    for name in ("dcm", "images.csv"):
        root.mkdir(exist_ok=True)
        (root / name).symlink_to(collection / name)
    copied = {"PresentationIntentType": "FOR PROCESSING", "RescaleIntercept": -9, "RescaleSlope": 1}  # as of the image
    file = dicom_file(root / "masks" / "005_1.dcm", mask, syntax="RLE", inverted=True, **copied)
    assert (read_mask(file) == (mask > 0)).all()
    parts = np.stack([np.where(np.arange(len(mask))[:, None] < 55, mask, 0), mask * (mask.cumsum(0) > 999)])
    for syntax in ("explicit", "JPEG lossless"):
        frames = dicom_file(tmp_path / "frames", parts.astype(np.uint8), syntax=syntax, SOPClassUID=TOMOSYNTHESIS)
        assert (read_mask(frames) == parts.any(axis=0)).all()
    signed = dicom_file(tmp_path / "signed", (mask > 0).astype(np.int16), syntax="big endian")
    assert (read_mask(signed) == (mask > 0)).all()
    out = prepare_dicom({**MAPPING, "masks": "masks/{image_id}*"}, root, tmp_path / "out", image_size=SIZE)
    before, after = files_of(prepared), files_of(out)
    assert {name for name in after if before[name] != after[name]} == {".mammosae-files.json", "prepared.json"}
    data = load_images(out)
    at = data.images["image_id"].tolist().index("005")
    assert data.masks(at)["Calc"].any() and len(data[at]["boxes"]["Calc"]) == 1
    with pytest.raises(BadImageError, match="pixels|truncated"):
        file.write_bytes(file.read_bytes()[:-200])
        read_mask(file)
    with pytest.raises(BadImageError, match="without pixels"):
        read_mask(dicom_file(file, None))


# -- killed, shared, changed -------------------------------------------------------------------------------------------


def test_a_killed_run_continues_and_ends_with_the_same_bytes(collection, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(prepared_folder, "_SHARD", 2)
    expected, moment, n_killed = files_of(prepared), 1, 0

    def work():
        prepare_dicom(MAPPING, collection, tmp_path / "out", image_size=SIZE)

    while killed_at(moment, work, ((prepared_images, "prepare_picture"),)):
        n_killed, moment = n_killed + 1, moment + 5  # at another place each time, further on with what is there
    assert n_killed > 4
    assert files_of(tmp_path / "out") == expected
    assert not [*(tmp_path / "out").rglob(".tmp-*")]


def test_shares_end_like_a_single_run_in_any_order(collection, prepared, tmp_path):
    for number in (2, 0, 1):
        assert not (tmp_path / "out" / "mapping.yaml").exists()
        prepare_dicom(MAPPING, collection, tmp_path / "out", image_size=SIZE, share=f"{number}/3")
        if number == 2:
            with pytest.raises(InputError, match="was begun in 3 shares, not in 2; go on with that number, or delete"):
                prepare_dicom(MAPPING, collection, tmp_path / "out", image_size=SIZE, share="0/2")
    assert files_of(tmp_path / "out") == files_of(prepared)
    for wrong in ("3/3", "x", "1", "-1/3"):
        with pytest.raises(InputError, match="counted from 0"):
            prepare_dicom(MAPPING, collection, tmp_path / "out", share=wrong)
    with pytest.raises(InputError, match=r"prepared otherwise \(bits is 8 there and 16 here\)"):
        prepare_dicom(MAPPING, collection, tmp_path / "out", image_size=SIZE, share="0/2", bits=16)
    assert files_of(tmp_path / "out") == files_of(prepared)


PROCESSES = """
import sys
import numpy as np
from mammosae_plugin.datasets.prepared_folder import prepare_dicom
import yaml
if __name__ == "__main__":
    mapping, root, out = sys.argv[1:4]
    prepare_dicom(mapping, root, out, image_size=(60, 45), workers=2)
"""


def test_processes_end_like_a_single_one(collection, prepared, tmp_path):
    (tmp_path / "mapping.yaml").write_text(yaml.safe_dump(MAPPING, sort_keys=False))
    ended(PROCESSES, tmp_path / "mapping.yaml", collection, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(prepared)


def test_only_what_changed_is_prepared_again(tmp_path, monkeypatch):
    monkeypatch.setattr(prepared_folder, "_SHARD", 1)
    root = write_collection(tmp_path / "in", 4)
    out = prepare_dicom(MAPPING, root, tmp_path / "out", image_size=SIZE)
    before, seen = files_of(out), []
    original = prepared_images.prepare_picture
    monkeypatch.setattr(
        prepared_images, "prepare_picture", lambda picture, *a, **k: seen.append(picture) or original(picture, *a, **k)
    )
    prepare_dicom(MAPPING, root, out, image_size=SIZE)
    assert not seen and files_of(out) == before
    (out / annotations_of(out).images["file"][1]).unlink()
    dicom_file(root / "dcm" / "002.dcm", breast(140, 80, seed=9, right=True), bits=12)
    prepare_dicom(MAPPING, root, out, image_size=SIZE)
    assert len(seen) == 2 and read_transforms(out)["002"].source == (140, 80)
    assert [name for name, content in files_of(out).items() if before[name] != content][:1] == [".mammosae-files.json"]
    file = root / "dcm" / "003.dcm"
    content = file.read_bytes()
    file.write_bytes(content[:-1000] + bytes(reversed(content[-1000:-500])) + content[-500:])  # of the same size
    prepare_dicom(MAPPING, root, out, image_size=SIZE)
    assert len(seen) == 3
    table = pd.read_csv(root / "images.csv", dtype=str).assign(cancer="1")
    table.to_csv(root / "images.csv", index=False)
    prepare_dicom(MAPPING, root, out, image_size=SIZE)
    assert len(seen) == 3 and (annotations_of(out).images["cancer"] == 1).all()


# -- what is wrong -----------------------------------------------------------------------------------------------------


def test_bad_files_are_listed_with_their_reasons_and_too_many_stop(tmp_path):
    root = write_collection(tmp_path / "in")
    frames = np.stack([breast(seed=seed) for seed in range(3)])
    dicom_file(root / "dcm" / "000.dcm", frames, SOPClassUID=TOMOSYNTHESIS)
    dicom_file(root / "dcm" / "001.dcm", breast(), PresentationIntentType="FOR PROCESSING")
    (root / "dcm" / "002.dcm").unlink()
    Image.fromarray(np.zeros((9, 9), dtype=np.uint8)).save(root / "masks" / "005_2.png")
    (root / "masks" / "005_2.png").write_bytes(b"no image")
    with pytest.raises(
        DatasetError, match=r"of 7 images cannot be used .*000: is tomosynthesis of 3 frames.*1.0%"
    ) as stop:
        prepare_dicom(MAPPING, root, tmp_path / "out", image_size=SIZE)
    assert "\n" not in str(stop.value) and not (tmp_path / "out" / "mapping.yaml").exists()
    assert len(pd.read_csv(tmp_path / "out" / "work" / "quarantine.csv")) >= 1
    out = prepare_dicom(MAPPING, root, tmp_path / "out", image_size=SIZE, max_bad_share=0.6)
    bad = pd.read_csv(out / "quarantine.csv", dtype=str).set_index("image_id")["reason"]
    assert list(bad.index) == ["000", "001", "002", "005"]
    for image_id, why in {
        "000": "tomosynthesis",
        "001": "FOR PROCESSING",
        "002": "does not exist",
        "005": "mask",
    }.items():
        assert why in bad[image_id]
    assert annotations_of(out).images["image_id"].tolist() == ["003", "004", "006"]
    middle = prepare_dicom(MAPPING, root, tmp_path / "other", image_size=SIZE, max_bad_share=0.6, multi_frame="middle")
    assert "000" in read_transforms(middle)


CRASH = """
import os, sys
from mammosae_plugin.datasets import prepared_images
from mammosae_plugin.datasets.prepared_folder import prepare_dicom
original = prepared_images.read_picture
def read_picture(path, **settings):
    if path.endswith("003.dcm"):
        os.abort()  # as a decoder does with a file that it does not expect
    return original(path, **settings)
prepared_images.read_picture = read_picture
if __name__ == "__main__":
    mapping, root, out = sys.argv[1:4]
    prepare_dicom(mapping, root, out, image_size=(60, 45), workers=2, max_bad_share=0.2)
"""


def test_a_file_that_crashes_its_decoder_costs_one_image(collection, tmp_path):
    (tmp_path / "mapping.yaml").write_text(yaml.safe_dump(MAPPING, sort_keys=False))
    (tmp_path / "crash.py").write_text(CRASH)
    program = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]], check=True)"
    ended(program, tmp_path / "crash.py", tmp_path / "mapping.yaml", collection, tmp_path / "out")
    bad = pd.read_csv(tmp_path / "out" / "quarantine.csv", dtype=str)
    assert bad["image_id"].tolist() == ["003"] and "crashes" in bad["reason"][0]


def test_wrong_arguments_and_places_are_refused(collection, tmp_path):
    for settings, said in (
        ({"preparation": "mammoclip"}, "preparation is 'mammoclip'; choose one of mammo-clip, letterbox"),
        ({"voi": "best"}, "voi is 'best'"),
        ({"bits": 12}, "bits is 12"),
        ({"workers": -1}, "workers"),
    ):
        with pytest.raises(InputError, match=said):
            prepare_dicom(MAPPING, collection, tmp_path / "out", **settings)
    (tmp_path / "link").symlink_to(collection)
    for place in (collection, collection.parent, tmp_path / "link"):
        with pytest.raises(InputError, match="is the folder of the originals, or above it"):
            prepare_dicom(MAPPING, collection, place)
    with pytest.raises(InputError, match="holds originals; name another folder"):
        prepare_dicom(MAPPING, collection, collection / "dcm")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "images.csv").write_text("mine")
    with pytest.raises(InputError, match="in the way"):
        prepare_dicom(MAPPING, collection, tmp_path / "mine")
    assert (tmp_path / "mine" / "images.csv").read_text() == "mine"
    without_sides = {name: value for name, value in MAPPING.items() if name != "laterality"}
    with pytest.raises(InputError, match="names no column of laterality"):
        prepare_dicom(without_sides, collection, tmp_path / "out", flip="laterality")


def test_boxes_that_cannot_be_right_stop_and_few_are_dropped(tmp_path):
    root = write_collection(tmp_path / "in")
    table = pd.read_csv(root / "images.csv", dtype=str)
    table["x"] = [str(float(x) * 9) if isinstance(x, str) else "" for x in table["x"]]
    table.to_csv(root / "images.csv", index=False)
    with pytest.raises(DatasetError, match="boxes are inverted or lie outside of their image"):
        prepare_dicom(MAPPING, root, tmp_path / "out", image_size=SIZE)
    table["x"] = [x if x == "" else "16" for x in table["x"]]
    table.loc[0, "x"] = "900"
    table.to_csv(root / "images.csv", index=False)
    out = prepare_dicom(MAPPING, root, tmp_path / "out", image_size=SIZE)
    assert "outside of the original" in pd.read_csv(out / "boxes.csv")["change"][0]
    after = annotations_of(out)
    assert np.isnan(after.findings["xmin"][0]) and after.images["Mass"][0] == 1  # the finding stays


# -- the demo's data ---------------------------------------------------------------------------------------------------


def test_phantoms_as_dicom_give_the_same_labels_boxes_and_pixels(tmp_path):
    size = (192, 128)
    file = make_phantoms(tmp_path / "png", n_patients=4, image_size=size, seed=3)
    today = VinDrMammo(tmp_path / "png", image_size=size)
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    found = table.rename(columns={"patient_id": "study_id", "view": "view_position"})
    found["image_id"] = found["image_id"].str.removesuffix(".png")
    for name in BOX_COLUMNS:
        found[name] = found[f"resized_{name}"]
    kept = "study_id series_id image_id laterality view_position breast_density finding_categories split"
    (tmp_path / "dicom").mkdir()
    found[[*kept.split(), *BOX_COLUMNS]].to_csv(tmp_path / "dicom" / "finding_annotations.csv", index=False)
    for at, path in enumerate(today.image_paths):
        pixels = np.asarray(Image.open(path)).astype(np.uint16) * 16
        side = today.images["image_id"][at].removesuffix(".png")
        dicom_file(
            tmp_path / "dicom" / "images" / today.images["patient_id"][at] / f"{side}.dicom",
            (4095 - pixels).astype(np.uint16) if at % 2 else pixels,
            syntax=["JPEG lossless", "JPEG 2000", "RLE", "explicit"][at % 4],
            bits=12,
            inverted=bool(at % 2),
        )
    mapping = {
        "table": "finding_annotations.csv",
        "image": "images/{study_id}/{image_id}.dicom",
        "patient_id": "study_id",
        "laterality": "laterality",
        "view": "view_position",
        "labels": {
            **{name: {"column": "finding_categories", "contains": name.replace("_", " ")} for name in today.concepts},
            "density": {"column": "breast_density", "classes": [f"DENSITY {one}" for one in "ABCD"], "kind": "graded"},
        },
        "boxes": {"columns": list(BOX_COLUMNS)},
        "phantom": True,
    }
    out = prepare_dicom(mapping, tmp_path / "dicom", tmp_path / "out", preparation="letterbox", image_size=size)
    after = annotations_of(out)
    for name in (*today.concepts, "density", "split", "patient_id"):
        assert after.images[name].tolist() == today.images[name].tolist(), name
    boxes = today.findings[list(BOX_COLUMNS)].to_numpy(dtype=float)
    assert np.allclose(after.findings[list(BOX_COLUMNS)].to_numpy(dtype=float), boxes, atol=1e-9, equal_nan=True)
    for at, path in enumerate(after.images["file"]):
        prepared_pixels = np.asarray(Image.open(out / path))
        expected = today[at]["image"].numpy()
        from mammosae_plugin.adapters.preprocessing import MAMMO_CLIP

        assert np.abs(MAMMO_CLIP(prepared_pixels).numpy() - expected).max() < 0.02


def test_a_full_disk_is_told_in_a_line_and_the_same_command_continues(collection, prepared, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from mammosae_plugin.cli import app

    (tmp_path / "mapping.yaml").write_text(yaml.safe_dump(MAPPING, sort_keys=False))
    command = ["prepare", "--mapping", str(tmp_path / "mapping.yaml"), "--root", str(collection)]
    command += ["-o", str(tmp_path / "out"), "--image-size", "60", "45", "--workers", "0"]
    write, written = prepared_images.write_png, []

    def full(path, pixels):
        if len(written) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        written.append(path)
        write(path, pixels)

    monkeypatch.setattr(prepared_images, "write_png", full)
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2 and "No space left on device" in done.stderr.splitlines()[-1]
    monkeypatch.setattr(prepared_images, "write_png", write)
    assert CliRunner().invoke(app, command).exit_code == 0
    assert files_of(tmp_path / "out") == files_of(prepared)


# -- presets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", WRITERS)
def test_a_preset_prepared_is_what_it_is_read_directly(preset, tmp_path):
    """Whole images: the same labels, covariates, boxes, masks and pixels; cropped ones keep every image and label."""
    WRITERS[preset](tmp_path / "in")
    direct = load_images(preset, tmp_path / "in", image_size=SIZE)
    for preparation in ("letterbox", "mammo-clip"):
        out = prepare_dicom(preset, tmp_path / "in", tmp_path / preparation, preparation=preparation, image_size=SIZE)
        data = load_images(out)  # whatever lies outside of the crop
        assert data.about == direct.about and [*data.vocabulary] == [*direct.vocabulary]
        kept = list(direct.images.columns)
        pd.testing.assert_frame_equal(data.images[kept], direct.images)
        assert {*data.images.columns} - {*kept} <= {"implant", "spot_view"}
        assert data.findings[[*data.vocabulary]].equals(direct.findings[[*data.vocabulary]])
        if preparation == "letterbox":
            assert data.vocabulary == direct.vocabulary
            boxes = [one.findings[list(BOX_COLUMNS)].to_numpy() for one in (data, direct)]
            np.testing.assert_allclose(*boxes, atol=1e-6)
            for at in range(len(data)):
                assert (data.pixels(at) == direct.pixels(at)).all()
                masks, others = data.masks(at), direct.masks(at)
                assert masks.keys() == others.keys() and all((masks[one] == others[one]).all() for one in masks)


def test_masks_outside_of_the_crop_are_dropped_and_listed(tmp_path):
    root = write_collection(tmp_path / "in")
    table = pd.read_csv(root / "images.csv", dtype=str).drop(columns=["x", "y", "w", "h"])
    table.to_csv(root / "images.csv", index=False)
    for at, part in ((0, (0, 3)), (3, (50, 53)), (4, (50, 90))):
        mask = np.zeros((120 + at, 90), dtype=np.uint8)
        mask[part[0] : part[1], 20:23] = 255
        Image.fromarray(mask).save(root / "masks" / f"00{at}.png")
    mapping = {**MAPPING, "boxes": None, "masks": {"image": "masks/{image_id}*.png", "min_area": 100}}
    out = prepare_dicom(mapping, root, tmp_path / "out", image_size=SIZE)
    changes = pd.read_csv(out / "boxes.csv", dtype=str)
    assert changes["image_id"].tolist() == ["000"] and "mask shows nothing" in changes["change"][0]
    data = load_images(out)
    boxed = data.findings["xmin"].notna()
    assert data.findings["image_id"][boxed].tolist() == ["003", "004", "005"]  # small parts too, where it is all
    assert data.images["Mass"][0] == 1  # the finding stays


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_made(collection, prepared, tmp_path, capsys):
    from typer.testing import CliRunner

    from mammosae_plugin.cli import app

    (tmp_path / "mapping.yaml").write_text(yaml.safe_dump(MAPPING, sort_keys=False))
    common = ["prepare", "--mapping", str(tmp_path / "mapping.yaml"), "--root", str(collection)]
    common += ["-o", str(tmp_path / "out"), "--image-size", "60", "45", "--workers", "0"]
    first = CliRunner().invoke(app, [*common, "--share", "0/2"])
    assert first.exit_code == 0 and "1 shares are done" in first.output
    done = CliRunner().invoke(app, [*common, "--share", "1/2"])
    assert done.exit_code == 0 and "7 images of 60 x 45" in done.output and "data.root" in done.output
    assert files_of(tmp_path / "out") == files_of(prepared)
    WRITERS["vindr"](tmp_path / "vindr")
    preset = CliRunner().invoke(
        app, ["prepare", "--preset", "vindr", "--root", str(tmp_path / "vindr"), "-o", str(tmp_path / "png")]
        + ["--image-size", "60", "45", "--workers", "0", "--bits", "16"],
    )  # fmt: skip
    assert preset.exit_code == 0 and "5 images of 60 x 45" in preset.output, preset.output
    data = open_dataset(of_its_kind({"root": str(tmp_path / "png")}))  # as a study's section data, and nothing else
    assert len(data) == 5 and data.image_size == SIZE and data.pixels(0).dtype == np.uint16
    assert data.about == load_images("vindr", tmp_path / "vindr", image_size=SIZE).about
    for root, text, said in (
        ("nowhere", None, "does not exist or is no folder"),
        ("empty", None, "images.csv does not exist"),
        ("no_dicom", "image,", "is no DICOM file"),
        ("gone", None, "the file does not exist"),
    ):
        if root in ("no_dicom", "gone"):
            (tmp_path / root / "dcm").mkdir(parents=True)
            (tmp_path / root / "images.csv").write_bytes((collection / "images.csv").read_bytes())
        elif root == "empty":
            (tmp_path / root).mkdir()
        for at in range(7) if text else ():
            (tmp_path / root / "dcm" / f"00{at}.dcm").write_text(text)
        wrong = ["--root", str(tmp_path / root), "-o", str(tmp_path / "wrong")]
        bad = CliRunner().invoke(app, [*common[:3], *wrong, "--workers", "0"])
        line = [one for one in bad.stderr.splitlines() if one.startswith("mammosae: ")]
        assert bad.exit_code == 2 and len(line) == 1 and said in line[0], bad.stderr
    neither = CliRunner().invoke(app, ["prepare", "-o", str(tmp_path / "x")])
    assert neither.exit_code == 2 and "--preset" in neither.output
